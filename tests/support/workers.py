"""Workers of one consumer group, the usage they settle, and how far they are."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import httpx
from aiokafka import AIOKafkaProducer

from ingester.local_kafka import LocalKafka, free_ports
from tests.support.kafka import committed_offsets, end_offsets, produce, read_all
from tests.support.processes import IngesterProcess, Ingesters
from tests.support.waiting import eventually_async

Event = dict[str, Any]
SETTLED_SECONDS_MAX = 60.0
_KEYS = 7


def usage(count: int, *, keys: int = _KEYS, first: int = 0) -> list[Event]:
    """Events over some keys, credits and debits, no two alike."""
    return [
        {
            "key": f"usage-{number % keys}",
            "accountId": f"customer-{number % keys}",
            "bits": 3 * number - 100,
            "metadata": {"number": number},
        }
        for number in range(first, first + count)
    ]


def totals(events: Iterable[Event]) -> dict[str, dict[str, int]]:
    """What PacSpace has to hold of each key, in the form of the simulator's report."""
    sums: dict[str, dict[str, int]] = {}
    for event in events:
        total = sums.setdefault(event["key"], {"bits": 0, "items": 0})
        total["bits"] += event["bits"]
        total["items"] += 1
    return sums


class Worker:
    """A running `ingester run`."""

    def __init__(self, process: IngesterProcess, address: str) -> None:
        self.process = process
        self.address = address
        self._url = f"http://{address}"

    def events(self, name: str) -> list[dict[str, Any]]:
        """Every log line of this event name so far, oldest first."""
        lines = self.process.log().splitlines(keepends=True)
        logged = [json.loads(line) for line in lines if line[0] == "{" and line[-1] == "\n"]
        return [each for each in logged if each["event"] == name]

    def status(self) -> dict[str, Any]:
        """What it says of itself; its health endpoint has to be up."""
        return dict(httpx.get(f"{self._url}/status").raise_for_status().json())

    def metrics(self) -> str:
        """What it tells Prometheus."""
        return httpx.get(f"{self._url}/metrics").raise_for_status().text

    def ready(self) -> bool:
        """Whether it has its share of the partitions."""
        try:
            return httpx.get(f"{self._url}/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            assert self.process.exit_code is None, f"it ended; it printed:\n{self.process.log()}"
            return False

    def assigned(self) -> list[str]:
        """The partitions that it was last given, as `topic:number`."""
        given = self.events("partitions.assigned")
        return list(given[-1]["partitions"]) if given else []


class Group:
    """A consumer group of workers over some topics; the tests' own settings are for haste."""

    def __init__(
        self,
        kafka: LocalKafka,
        ingesters: Ingesters,
        pacspace: Mapping[str, str],
        topics: Sequence[str],
    ) -> None:
        """The first topic is the one that `committed` and the like are about, if none is named."""
        self.servers = kafka.bootstrap_servers
        self.name = f"group-{uuid.uuid4().hex[:12]}"
        self.topics = tuple(topics)
        self._ingesters = ingesters
        self._pacspace = dict(pacspace)

    def settings(self, **changed: str) -> dict[str, str]:
        """The environment of a worker; `linger_seconds="1"` sets INGESTER_LINGER_SECONDS."""
        return {
            "INGESTER_KAFKA_BOOTSTRAP_SERVERS": self.servers,
            "INGESTER_TOPIC": ",".join(self.topics),
            "INGESTER_GROUP_ID": self.name,
            "INGESTER_SESSION_TIMEOUT_SECONDS": "6",
            "INGESTER_BACKOFF_SECONDS_MIN": "0.05",
            "INGESTER_BACKOFF_SECONDS_MAX": "0.5",
            "INGESTER_LOG_LEVEL": "debug",
            "INGESTER_LOG_FORMAT": "json",
            **self._pacspace,
            **{f"INGESTER_{name.upper()}": value for name, value in changed.items()},
        }

    def start(self, **settings: str) -> Worker:
        """Start one more worker."""
        (port,) = free_ports(1)
        listen = {"http_listen": f"127.0.0.1:{port}"}
        environment = self.settings(**{**listen, **settings})
        process = self._ingesters.start("run", settings=environment)
        return Worker(process, f"127.0.0.1:{port}")

    async def committed(self, topic: str | None = None) -> dict[int, int]:
        """The committed next offset of each partition of which anything is settled.

        Before that an offset is committed all the same, where the partition begins: for the
        intents in its metadata.
        """
        topic = topic or self.topics[0]
        committed = await committed_offsets(self.servers, self.name)
        return {
            where.partition: stored.offset
            for where, stored in committed.items()
            if where.topic == topic and stored.offset
        }

    async def commits(self, offsets: dict[int, int]) -> None:
        """Wait until these next offsets, and no others, are committed for the first topic."""

        async def committed() -> bool:
            return await self.committed() == offsets

        await eventually_async(committed, SETTLED_SECONDS_MAX)

    async def settled(self, timeout_seconds: float = SETTLED_SECONDS_MAX) -> None:
        """Wait until everything that is in the topics now is committed."""
        ends = {
            (topic, partition): end
            for topic in self.topics
            for partition, end in (await end_offsets(self.servers, topic)).items()
            if end
        }

        async def caught_up() -> bool:
            committed = await committed_offsets(self.servers, self.name)
            return {where: committed[where].offset for where in committed} == ends

        await eventually_async(caught_up, timeout_seconds)

    async def dead_letters(self, topic: str | None = None) -> list[Any]:
        """Every record of the dead-letter topic."""
        return await read_all(self.servers, f"{topic or self.topics[0]}.dead-letters")

    async def produce(self, events: Iterable[Event], *, partition: int | None = None) -> None:
        """Put usage on the first topic."""
        await produce(self.servers, self.topics[0], events, partition=partition)


async def produce_bare_record(servers: str, topic: str, partition: int = 0) -> None:
    """Write a record without key and without value, which producers only do by the batch."""
    async with AIOKafkaProducer(bootstrap_servers=servers, acks="all") as producer:
        batch = producer.create_batch()
        batch.append(key=None, value=None, timestamp=None)
        await (await producer.send_batch(batch, topic, partition=partition))
