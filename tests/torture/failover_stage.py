"""A cluster of brokers, workers that settle a topic of theirs, and load on it that never rests.

Progress is what PacSpace has applied, partition by partition: each key belongs to one of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata

from ingester.local_kafka import JvmCluster, LocalKafka
from tests.support.kafka import create_topic
from tests.support.kafka_proxy import KafkaProxy
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.waiting import eventually_async
from tests.support.workers import Event, Group, Worker
from tests.torture.brokers import Brokers

PARTITIONS = 6  # each broker leads two of them
WORKERS = 3
BROKERS = 3
PROGRESS_SECONDS_MAX = 90.0
SESSION_TIMEOUT_SECONDS = 6
_KEYS = 5
_EVENTS_PER_SECOND = 150
_BURST = PARTITIONS
_PRODUCER_PAUSE_SECONDS = 0.5
# So large that what waits for one partition's leader does not hold up the others.
_PRODUCER_BATCH_BYTES_MAX = 512 * 1024
_ENDPOINT_LATENCY_SECONDS = 0.02
_ENDPOINT_FAULTS = (
    {
        "match": {"method": "POST", "probability": 0.05},
        "latency_seconds": _ENDPOINT_LATENCY_SECONDS,
        "effect": {"kind": "lose"},
    },
    {"match": {"method": "POST"}, "latency_seconds": _ENDPOINT_LATENCY_SECONDS},
)


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that was done to the cluster or the workers, and when, in seconds of the epoch."""

    what: str
    at: float


class Load:
    """Distinct events at a steady pace, the partitions in turn."""

    def __init__(self, servers: str, topic: str) -> None:
        self._servers = servers
        self._topic = topic
        self._sent = 0
        # Written as the brokers answer, read by waits and by the verdict:
        self.acknowledged: set[int] = set()
        self.acknowledged_at: list[list[float]] = [[] for _ in range(PARTITIONS)]
        self.failed = 0
        """Events of which the producer does not know whether the topic holds them."""

    async def run(self) -> None:
        """Produce until cancelled, then wait until the brokers have what was sent."""
        while True:
            try:
                async with AIOKafkaProducer(
                    bootstrap_servers=self._servers,
                    acks="all",
                    enable_idempotence=True,
                    linger_ms=5,
                    max_batch_size=_PRODUCER_BATCH_BYTES_MAX,
                ) as producer:
                    # After a write that was given up the client counts on as if it had been made,
                    # and the broker refuses whatever follows it in that partition.
                    failed = self.failed
                    while failed == self.failed:
                        await self._send_burst(producer)
                        await asyncio.sleep(_BURST / _EVENTS_PER_SECOND)
            except KafkaError:  # no broker answers
                await asyncio.sleep(_PRODUCER_PAUSE_SECONDS)

    async def _send_burst(self, producer: AIOKafkaProducer) -> None:
        for partition in range(PARTITIONS):
            number, self._sent = self._sent, self._sent + 1
            value = json.dumps(_event(partition, number)).encode()
            future = await producer.send(self._topic, value, partition=partition)
            future.add_done_callback(
                lambda ended, number=number, partition=partition: self._ended(
                    ended, number, partition
                )
            )

    def _ended(self, future: asyncio.Future[RecordMetadata], number: int, partition: int) -> None:
        if future.cancelled() or future.exception() is not None:
            self.failed += 1
        else:
            self.acknowledged.add(number)
            self.acknowledged_at[partition].append(time.time())


def _event(partition: int, number: int) -> Event:
    return {
        "key": f"usage-{partition}-{number // PARTITIONS % _KEYS}",
        "accountId": f"customer-{partition}",
        "bits": 3 * number - 100,
        "metadata": {"number": number},
    }


class Stage:
    """What a scenario acts upon; brokers are named by their index in the cluster."""

    def __init__(
        self, cluster: JvmCluster, proxy: KafkaProxy, group: Group, simulator: Simulator
    ) -> None:
        self.proxy = proxy
        self.group = group
        self.topic = group.topics[0]
        self.receipts_topic = f"{self.topic}.receipts"
        self.simulator = simulator
        self.brokers = Brokers(cluster)
        self.load = Load(cluster.bootstrap_servers, self.topic)
        self.workers: list[Worker] = []
        self.killed: list[Worker] = []
        self.marks: list[Mark] = []
        self._cluster = cluster

    # -- faults -------------------------------------------------------------------------------

    def mark(self, what: str) -> None:
        """Note what is about to be done: silence is measured from here."""
        self.marks.append(Mark(what, time.time()))

    def kill(self, broker: int) -> None:
        """End a broker by SIGKILL."""
        self._cluster.kill(broker)

    async def terminate(self, broker: int) -> None:
        """Ask a broker to hand over what it leads and to leave."""
        process = psutil.Process(self._cluster.pid(broker))
        os.kill(process.pid, signal.SIGTERM)
        await asyncio.to_thread(process.wait, 60)

    async def start(self, *brokers: int) -> None:
        """Start brokers that were ended; all replicas are in sync again on return."""
        await asyncio.gather(
            *(asyncio.to_thread(self._cluster.start, broker) for broker in brokers)
        )
        await self.in_sync()

    async def in_sync(self) -> None:
        """Wait until every topic that the workers depend on is fully replicated."""
        for topic in (self.topic, self.receipts_topic, "__consumer_offsets"):
            await self.brokers.in_sync(topic)

    def kill_worker(self, worker: Worker) -> None:
        """End a worker by SIGKILL."""
        self.workers.remove(worker)
        self.killed.append(worker)
        worker.process.kill()

    def start_worker(self, *, proxied: bool = False) -> Worker:
        """Start one more worker; all that one says to a proxied one passes the proxy."""
        servers = self.proxy.bootstrap_servers if proxied else self.group.servers
        worker = self.group.start(
            kafka_bootstrap_servers=servers,
            session_timeout_seconds=str(SESSION_TIMEOUT_SECONDS),
            request_timeout_seconds="5",
            connect_timeout_seconds="2",
        )
        self.workers.append(worker)
        return worker

    async def heal(self) -> None:
        """Undo whatever a scenario that failed has left behind."""
        self.proxy.latency_seconds = 0.0
        self.proxy.before.clear()
        await self.proxy.heal()
        ended = [
            broker for broker in range(BROKERS) if not psutil.pid_exists(self._cluster.pid(broker))
        ]
        await self.start(*ended)

    # -- waits --------------------------------------------------------------------------------

    def applied(self) -> list[int]:
        """How many events of each partition PacSpace has."""
        counts = [0] * PARTITIONS
        for key, total in self.simulator.report()["keys"].items():
            counts[int(key.split("-")[1])] += total["items"]
        return counts

    async def goes_on(
        self, *, at_least: int = PARTITIONS, seconds_max: float = PROGRESS_SECONDS_MAX
    ) -> None:
        """Wait until so many partitions have settled something that is not yet written now."""
        before = [len(each) for each in self.load.acknowledged_at]

        async def all_settled() -> bool:
            self._check_workers()
            gone_on = [
                applied > written for applied, written in zip(self.applied(), before, strict=True)
            ]
            return sum(gone_on) >= at_least

        await eventually_async(all_settled, seconds_max)

    async def shared(self, seconds_max: float = PROGRESS_SECONDS_MAX) -> None:
        """Wait until the workers have all partitions between them, none idle and none twice."""

        async def is_shared() -> bool:
            self._check_workers()
            given = [worker.assigned() for worker in self.workers]
            together = sorted(partition for each in given for partition in each)
            return all(given) and len(together) == len(set(together)) == PARTITIONS

        await eventually_async(is_shared, seconds_max)

    def _check_workers(self) -> None:
        codes = [worker.process.exit_code for worker in self.workers]
        assert codes == [None] * len(codes), f"workers have ended: {codes}"


@asynccontextmanager
async def staged(
    cluster: JvmCluster, ingesters: Ingesters, *, proxied_workers: int, fragile_receipts: bool
) -> AsyncIterator[Stage]:
    """Settle a topic of its own under load; some workers, the last ones, talk by the proxy."""
    topic = f"usage-{uuid.uuid4().hex[:12]}"
    await create_topic(cluster.bootstrap_servers, topic, PARTITIONS)
    if fragile_receipts:
        await Brokers(cluster).create_fragile(f"{topic}.receipts", PARTITIONS)
    simulator = Simulator(ingesters)
    simulator.add_faults(*_ENDPOINT_FAULTS)
    kafka = LocalKafka(cluster.bootstrap_servers, "three brokers", cluster)
    group = Group(kafka, ingesters, simulator.settings(), [topic])
    async with KafkaProxy(cluster.routes).running() as proxy:
        stage = Stage(cluster, proxy, group, simulator)
        for number in range(WORKERS):
            stage.start_worker(proxied=number >= WORKERS - proxied_workers)
        yield stage
