"""Who leads what in a cluster: of a partition, of a group, and among the controllers."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from ingester.local_kafka import JvmCluster
from tests.support.kafka import admin
from tests.support.waiting import eventually_async

T = TypeVar("T")

_ELECTION_SECONDS_MAX = 60.0  # a broker is missed after 9 s, and one that starts takes as long
_ANSWER_SECONDS_MAX = 5.0
_CORRELATION_ID = 1
# DescribeQuorum (key 55), version 0, no client id, no tagged fields; of partition 0 of the topic in
# which the controllers keep the cluster's state. https://kafka.apache.org/protocol
_TOPIC = b"__cluster_metadata"
_QUORUM_REQUEST = (
    struct.pack(">hhihb", 55, 0, _CORRELATION_ID, -1, 0)
    + struct.pack(">bb", 2, len(_TOPIC) + 1)
    + _TOPIC
    + struct.pack(">bibbb", 2, 0, 0, 0, 0)
)
# Correlation id, tags, error, one topic with its name, one partition, its error, its leader.
_QUORUM_ANSWER = struct.Struct(f">ibhbb{len(_TOPIC)}sbihi")


class Brokers:
    """Asks those brokers of a cluster that answer; a broker is its index in the cluster."""

    def __init__(self, cluster: JvmCluster) -> None:
        self.servers = cluster.bootstrap_servers

    async def create_fragile(self, topic: str, partitions: int) -> None:
        """Create a topic with one replica of each partition, spread over the brokers."""
        async with admin(self.servers) as client:
            new = NewTopic(topic, partitions, 1, topic_configs={"min.insync.replicas": "1"})
            await client.create_topics([new])
        await self.in_sync(topic)

    async def leaders(self, topic: str) -> list[int]:
        """The leader of each partition, once each has one."""
        partitions = await self._described(topic, lambda each: bool(each["leader"] >= 0))
        return [each["leader"] - 1 for each in partitions]

    async def in_sync(self, topic: str) -> None:
        """Wait until all replicas of each partition are in sync."""
        await self._described(topic, lambda each: len(each["isr"]) == len(each["replicas"]))

    async def coordinator(self, group: str) -> int:
        """The coordinator of a group, once there is one."""
        return await self._patiently(lambda client: client.find_coordinator(group)) - 1

    async def controller(self) -> int:
        """The controller that leads the others."""
        return await eventually_async(self._node_of_controller, _ELECTION_SECONDS_MAX) - 1

    async def _described(
        self, topic: str, is_right: Callable[[dict[str, list[int]]], bool]
    ) -> list[dict[str, int]]:
        async def described(client: AIOKafkaAdminClient) -> list[dict[str, int]]:
            (found,) = await client.describe_topics([topic])
            partitions = sorted(found["partitions"], key=lambda each: each["partition"])
            return partitions if all(map(is_right, partitions)) else []

        return await self._patiently(described)

    async def _patiently(self, question: Callable[[AIOKafkaAdminClient], Awaitable[T]]) -> T:
        async def asked() -> T | None:
            try:
                async with asyncio.timeout(_ANSWER_SECONDS_MAX), admin(self.servers) as client:
                    return await question(client)
            except (KafkaError, TimeoutError):
                return None

        return await eventually_async(asked, _ELECTION_SECONDS_MAX)

    async def _node_of_controller(self) -> int | None:
        for server in self.servers.split(","):
            host, _, port = server.partition(":")
            try:
                async with asyncio.timeout(_ANSWER_SECONDS_MAX):
                    reader, writer = await asyncio.open_connection(host, int(port))
                    writer.write(struct.pack(">i", len(_QUORUM_REQUEST)) + _QUORUM_REQUEST)
                    (size,) = struct.unpack(">i", await reader.readexactly(4))
                    answer = await reader.readexactly(size)
                    writer.close()
            except (OSError, EOFError, TimeoutError):
                continue
            _, _, error, _, _, topic, *_, leader = _QUORUM_ANSWER.unpack_from(answer)
            if not error and topic == _TOPIC and leader > 0:
                return int(leader)
        return None
