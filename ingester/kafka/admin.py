"""Questions to a Kafka cluster and topics made in it; never a record read or written.

Works on single connections rather than on aiokafka's admin client: that one creates the topics it
is asked about.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from aiokafka import errors as kafka_errors
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.protocol.admin import (
    CreatePartitionsRequest,
    CreateTopicsRequest,
    DescribeConfigsRequest,
    DescribeGroupsRequest,
)
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.metadata import MetadataRequest

from ingester.core.messages import Commit
from ingester.core.record import TopicPartition
from ingester.errors import IngesterError, RefusedError, UnavailableError
from ingester.kafka.connection import RETRY_BACKOFF_SECONDS, Connection, Connections
from ingester.kafka.topics import (
    KEPT_TOPIC_CONFIG,
    SMALL_INDEXES_CONFIG,
    USAGE_PARTITIONS_ADVISED,
)
from ingester.option import Address
from ingester.settings import KafkaSettings

ADMIN_TIMEOUT_SECONDS: Final = 10.0  # for one question of a command or of a start
BROKER_DEFAULT: Final = -1  # as the replication factor of a new topic

_GROUP = 0  # the coordinator type, as against transactions
_TOPIC = 2  # the resource type, as against brokers
# The first group ever makes the broker create the topic of the offsets.
_COORDINATOR_COMING = {
    kafka_errors.GroupCoordinatorNotAvailableError.errno,
    kafka_errors.GroupLoadInProgressError.errno,
    kafka_errors.NotCoordinatorForGroupError.errno,
}
_THERE: Final[Mapping[int, Literal["created", "exists"]]] = {
    kafka_errors.NoError.errno: "created",
    kafka_errors.TopicAlreadyExistsError.errno: "exists",
}
_NOT_WITH_THIS_CONFIG = {
    kafka_errors.InvalidConfigurationError.errno,
    kafka_errors.PolicyViolationError.errno,
}
_NOT_PERMITTED = {
    kafka_errors.TopicAuthorizationFailedError.errno,
    kafka_errors.ClusterAuthorizationFailedError.errno,
    kafka_errors.PolicyViolationError.errno,
}


class TopicConfigRefusedError(RefusedError):
    """The cluster makes no topic with these settings; without some of them it may."""


class KafkaFacts(msgspec.Struct, frozen=True):
    """What a cluster said about itself, some topics and a group."""

    brokers: tuple[str, ...]
    unreachable_brokers: Mapping[str, str]
    """Brokers whose advertised address does not work from here, each with the reason."""
    partitions: Mapping[str, int | None]
    """Number of partitions by topic, None where it is missing; only topics that may be seen."""
    refused_topics: frozenset[str]
    group: str | None
    """State and members of the group; None when it may not be read."""


class Member(msgspec.Struct, frozen=True):
    """One member of a consumer group, as the coordinator sees it."""

    member_id: str
    host: str
    partitions: Sequence[TopicPartition]
    """None yet while the group is being rebalanced."""


class KafkaAdmin:
    """Asks a cluster and makes topics; every call ends within the timeout, whatever happens."""

    def __init__(self, settings: KafkaSettings, *, timeout_seconds: float) -> None:
        self._connections = Connections(settings, timeout_seconds)
        self._servers = settings.kafka_bootstrap_servers
        self._timeout_seconds = timeout_seconds

    async def describe(self, topics: Iterable[str], group_id: str) -> KafkaFacts:
        """Look at the cluster without changing it, not even by automatic topic creation."""
        async with self._connections.session() as connection:
            metadata = await connection.send(MetadataRequest(sorted(topics), False))
            addresses = {node: Address(host, port) for node, host, port, *_ in metadata.brokers}
            brokers = tuple(f"{node} at {address}" for node, address in addresses.items())
            reasons = await asyncio.gather(
                *map(self._connections.why_unreachable, addresses.values())
            )
            unreachable = {
                broker: reason
                for broker, reason in zip(brokers, reasons, strict=True)
                if reason is not None
            }
            group = (
                "not known while a broker is out of reach"
                if unreachable
                else await self._describe_group(connection, group_id)
            )
        found = {topic: (error, partitions) for error, topic, _, partitions in metadata.topics}
        refused = frozenset(topic for topic in found if found[topic][0] in _NOT_PERMITTED)
        return KafkaFacts(
            brokers=brokers,
            unreachable_brokers=unreachable,
            partitions={
                topic: len(partitions) or None
                for topic, (_, partitions) in found.items()
                if topic not in refused
            },
            refused_topics=refused,
            group=group,
        )

    async def partition_counts(self, topics: Iterable[str]) -> Mapping[str, int]:
        """How many partitions each topic has, 0 where it does not exist.

        RefusedError for one that the login may not see, which is not to be taken for missing.
        """
        metadata = await self._metadata(topics)
        for error, topic, *_ in metadata.topics:
            if error in _NOT_PERMITTED:
                raise RefusedError(
                    f"the login may not see the topic {topic}. Have the cluster's administrator"
                    " grant READ and DESCRIBE on it."
                )
        return {topic: len(partitions) for _, topic, _, partitions in metadata.topics}

    async def lacking(self, wanted: Mapping[str, int]) -> Sequence[str]:
        """Return those topics that have fewer partitions than wanted, or cannot be seen."""
        metadata = await self._metadata(wanted)
        return [name for name, count in wanted.items() if _partitions_of(metadata, name) < count]

    async def topic_configs(self, topics: Iterable[str]) -> Mapping[str, Mapping[str, str] | None]:
        """The settings of topics, those included that are the brokers'; None where not permitted.

        Left out is what does not exist.
        """
        async with self._connections.session() as connection:
            asked: Any = [(_TOPIC, topic, None) for topic in topics]
            response = await connection.send(DescribeConfigsRequest(asked))
        return {
            topic: None if error else {name: value for name, value, *_ in entries}
            for error, _, _, topic, entries in response.resources
            if error in {0, *_NOT_PERMITTED}
        }

    async def committed_offsets(self, group_id: str) -> Mapping[TopicPartition, Commit]:
        """What a group has committed, with its metadata; empty when it has committed nothing."""
        async with self._connections.session() as connection:
            error, response = await self._ask_coordinator(
                connection,
                group_id,
                OffsetFetchRequest(group_id, None),
                lambda each: each.error_code,
            )
            if error:
                raise kafka_errors.for_code(error)(f"the offsets of {group_id} cannot be read")
        return {
            TopicPartition(topic, partition): Commit(next_offset, metadata or "")
            for topic, partitions in response.topics
            for partition, next_offset, metadata, _ in partitions
        }

    async def owners(self, group_id: str) -> Mapping[TopicPartition, str]:
        """The host of the member that has each partition now; empty when the group has none."""
        _, members = await self.members(group_id)
        return {name: member.host for member in members for name in member.partitions}

    async def members(self, group_id: str) -> tuple[str, Sequence[Member]]:
        """The state of a group in Kafka's word, `Dead` where it does not exist, and its members."""
        _, _, state, _, _, found, *_ = await self._described(group_id)
        return state, [
            Member(
                member_id,
                host.removeprefix("/"),
                [
                    TopicPartition(*each)
                    for each in ConsumerProtocolMemberAssignment.decode(assignment).partitions()
                ]
                if assignment
                else (),
            )
            for member_id, _, host, _, assignment in found
        ]

    async def wait_for_coordinator(self, group_id: str) -> None:
        """Wait until the group has one; whether that lets this login in shows when it joins."""
        request = FindCoordinatorRequest(group_id, _GROUP)
        async with self._connections.session() as connection:
            while True:  # ended by the session's timeout
                response = await connection.send(request)
                if response.error_code not in _COORDINATOR_COMING:
                    return
                await asyncio.sleep(RETRY_BACKOFF_SECONDS)

    async def members_count(self, group_id: str) -> int:
        """How many members a group has now, those included that are joining it."""
        _, members = await self.members(group_id)
        return len(members)

    async def ensure_topic(
        self,
        name: str,
        partitions: int,
        config: Mapping[str, str],
        *,
        validate_only: bool = False,
    ) -> Literal["created", "exists"]:
        """Create a topic, or the partitions it lacks; RefusedError carries the command for others.

        On return the brokers know the topic. With `validate_only` nothing is created, and "created"
        means that it would have been.
        """
        async with self._connections.session() as connection:
            metadata = await connection.send(MetadataRequest([name], False))
            there = _partitions_of(metadata, name)
            if there >= partitions:
                return "exists"
            timeout_ms = int(self._timeout_seconds * 1000)
            topic: Any = (name, partitions, BROKER_DEFAULT, [], list(config.items()))
            grown: Any = (name, (partitions, None))
            request: Any = (
                CreatePartitionsRequest([grown], timeout_ms, validate_only)
                if there
                else CreateTopicsRequest([topic], timeout_ms, validate_only)
            )
            controller = next(
                (broker for broker in metadata.brokers if broker[0] == metadata.controller_id),
                metadata.brokers[0],
            )
            async with self._connections.connected(Address(controller[1], controller[2])) as other:
                response = await other.send(request)
            _, error, reason = response.topic_errors[0]
            if error in _THERE:
                while not validate_only and _partitions_of(metadata, name) < partitions:
                    await asyncio.sleep(RETRY_BACKOFF_SECONDS)
                    metadata = await connection.send(MetadataRequest([name], False))
                return _THERE[error]
        kind: type[IngesterError] = UnavailableError
        if error in _NOT_WITH_THIS_CONFIG:
            kind = TopicConfigRefusedError
        elif error in _NOT_PERMITTED:
            kind = RefusedError
        raise kind(
            f"Kafka did not create the topic {name}: "
            f"{reason or kafka_errors.for_code(error).__name__}. Have it created:\n"
            f"  {self.create_command(name, partitions, config)}"
        )

    async def ensure_kept_topic(self, name: str, partitions: int) -> Literal["created", "exists"]:
        """`ensure_topic` for one of the ingester's own, with small indexes where that may be."""
        try:
            config = KEPT_TOPIC_CONFIG | SMALL_INDEXES_CONFIG
            return await self.ensure_topic(name, partitions, config)
        except TopicConfigRefusedError:  # some clusters let nobody choose the size of an index
            return await self.ensure_topic(name, partitions, KEPT_TOPIC_CONFIG)

    def create_command(self, name: str, partitions: int, config: Mapping[str, str]) -> str:
        """What somebody with the permission types to create a topic."""
        words = ["kafka-topics.sh", "--bootstrap-server", ",".join(self._servers), "--create"]
        words += ["--topic", name, "--partitions", str(partitions)]
        for item in config.items():
            words += ["--config", "=".join(item)]
        return shlex.join(words)

    def alter_command(self, name: str, config: Mapping[str, str]) -> str:
        """What somebody with the permission types to change settings of a topic."""
        words = ["kafka-configs.sh", "--bootstrap-server", ",".join(self._servers), "--alter"]
        words += [
            "--topic",
            name,
            "--add-config",
            ",".join("=".join(each) for each in config.items()),
        ]
        return shlex.join(words)

    def missing_topic(self, name: str, *, named_by: str = "INGESTER_TOPIC") -> UnavailableError:
        """What to raise about a usage topic that is missing; `named_by` is where it was named."""
        command = self.create_command(name, USAGE_PARTITIONS_ADVISED, {})
        return UnavailableError(
            f"Kafka at {', '.join(self._servers)} has no topic {name}: correct {named_by}, or"
            f" create it: {command}"
        )

    async def _metadata(self, topics: Iterable[str]) -> Any:
        async with self._connections.session() as connection:
            return await connection.send(MetadataRequest(sorted(topics), False))

    async def _describe_group(self, connection: Connection, group_id: str) -> str | None:
        error, response = await self._ask_coordinator(
            connection, group_id, DescribeGroupsRequest([group_id]), _group_error
        )
        if error == kafka_errors.GroupAuthorizationFailedError.errno:
            return None
        if error:
            raise kafka_errors.for_code(error)(f"the group {group_id} cannot be described")
        _, _, state, _, _, members, *_ = response.groups[0]
        if state == "Dead":
            return "does not exist yet"
        return f"{state.lower()}, {len(members)} member{'' if len(members) == 1 else 's'}"

    async def member_hosts(self, group_id: str) -> Mapping[str, str]:
        """The host of each member of a group, by the id that the coordinator gave it."""
        _, members = await self.members(group_id)
        return {each.member_id: each.host for each in members}

    async def _described(self, group_id: str) -> Any:
        async with self._connections.session() as connection:
            error, response = await self._ask_coordinator(
                connection, group_id, DescribeGroupsRequest([group_id]), _group_error
            )
            if error:
                raise kafka_errors.for_code(error)(f"the group {group_id} cannot be described")
        return response.groups[0]

    async def _ask_coordinator(
        self, connection: Connection, group_id: str, request: Any, error_of: Callable[[Any], int]
    ) -> tuple[int, Any]:
        """The group's own broker's answer, as soon as there is such a broker, and its error."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_seconds / 2
        # From then on one that is out of reach is not waited for: saying which takes time as well.
        while True:  # ended by the session's timeout
            response = await connection.send(FindCoordinatorRequest(group_id, _GROUP))
            error = response.error_code
            if not error:
                try:
                    async with self._connections.connected(
                        Address(response.host, response.port)
                    ) as coordinator:
                        response = await coordinator.send(request)
                    error = error_of(response)
                except UnavailableError:
                    # The others name a broker that has gone until they miss it.
                    if loop.time() > deadline:
                        raise
                    error = kafka_errors.GroupCoordinatorNotAvailableError.errno
            if error not in _COORDINATOR_COMING:
                return error, response
            await asyncio.sleep(RETRY_BACKOFF_SECONDS)


def _group_error(response: Any) -> int:
    error: int = response.groups[0][0]
    return error


def _partitions_of(metadata: Any, name: str) -> int:
    """Number of partitions, 0 where the topic is missing."""
    return next(
        (len(found) for error, topic, _, found in metadata.topics if topic == name and not error), 0
    )
