"""What a torture plays on: one broker behind a proxy, and rounds, each with a topic of its own.

Everything that is waited for has a deadline; what was waited for, and how things stood, is the
message. Nothing here blocks the loop for long: proxy and endpoint run in it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from aiokafka import AIOKafkaProducer

from ingester.local_kafka import Keeper, LocalKafka
from ingester.local_kafka.jvm import JvmCluster
from tests.support.kafka import committed_offsets, create_topic, delete_topics
from tests.support.kafka_proxy import Api, Exchange, KafkaProxy, Verdict
from tests.support.processes import Ingesters
from tests.support.workers import Group, Worker
from tests.torture.audit import Produced
from tests.torture.endpoint import Arrival, Endpoint, Moment
from tests.torture.outcome import Death, Outcome
from tests.torture.trap import Step, Steps, Trap, owner_of

SESSION_SECONDS = 2.0
WAIT_SECONDS_MAX = 45.0
_PAUSE_SECONDS = 0.05
_LOG_LINES = 12  # of each worker's log, in the message of a wait that was in vain
_KEYS = 7
_POISON = b'{"key":'
EXIT_UNSETTLED = 75


class StuckError(Exception):
    """Something that has to happen did not, in time."""


async def until(
    what: str,
    predicate: Callable[[], object],
    state: Callable[[], str],
    seconds: float = WAIT_SECONDS_MAX,
) -> None:
    """Wait until it holds; StuckError says what did not happen, and how things stand."""
    deadline = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > deadline:
            raise StuckError(f"waited {seconds:g} s until {what}; {state()}")
        await asyncio.sleep(_PAUSE_SECONDS)


class Stage:
    """The broker, its proxy and a producer that passes the proxy by."""

    def __init__(self, cluster: JvmCluster, keeper: Keeper, folder: Path) -> None:
        """Logs of rounds that went wrong stay in `folder`."""
        self.servers = cluster.bootstrap_servers
        self.proxy = KafkaProxy(cluster.routes)
        self.keeper = keeper
        self.folder = folder
        self.producer: AIOKafkaProducer | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Stage]:
        """Pass traffic on until the end of the block."""
        async with (
            self.proxy.running(),
            AIOKafkaProducer(bootstrap_servers=self.servers, acks="all", linger_ms=2) as producer,
        ):
            self.producer = producer
            yield self


class Round:
    """One topic, one group, one endpoint, the workers of the group, and the judgement."""

    def __init__(
        self,
        stage: Stage,
        name: str,
        random: Random,
        *,
        partitions: int = 4,
        honours_keys: bool = True,
        in_doubt: str = "retry",
    ) -> None:
        self.name = name
        self.random = random
        self.partitions = partitions
        self.topic = f"torture-{uuid.uuid4().hex[:12]}"
        self.endpoint = Endpoint(random, honours_keys=honours_keys)
        self.steps = Steps(self.topic)
        self.trap: Trap | None = None
        self.workers: dict[str, Worker] = {}
        """Every worker that was started, by its name."""
        self.alive: list[Worker] = []
        """Those that nobody has killed or asked to leave, oldest first."""
        self.produced: list[Produced] = []
        self.outcome = Outcome(name, honours_keys, in_doubt)
        self._stage = stage
        self._folder = stage.folder / name
        self._started: dict[Worker, float] = {}
        self.halted_at_end: frozenset[int] = frozenset()
        """The partitions that were halted when all the rest was settled."""
        self.takeovers: list[tuple[int, int]] = []
        """How many requests the endpoint and receipts the broker had at each assignment."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Round]:
        """Have topic and endpoint; at the end all workers are gone, and so is the topic.

        What goes wrong within is a violation of the round, not an exception.
        """
        self._folder.mkdir(parents=True)
        proxied = LocalKafka(self._stage.proxy.bootstrap_servers, "behind a proxy")
        self._ingesters = Ingesters(self._stage.keeper, self._folder)
        started = time.monotonic()
        await create_topic(self._stage.servers, self.topic, self.partitions)
        async with self.endpoint.running():
            settings = {"INGESTER_PACSPACE_URL": self.endpoint.url}
            self.group = Group(proxied, self._ingesters, settings, [self.topic])
            self._watch(self._stage.proxy)
            try:
                yield self
            except Exception as error:  # noqa: BLE001 - one round must not cost the report of all
                self.outcome.violations.append(f"{type(error).__name__}: {error}")
            finally:
                self.outcome.events = sum(each.event is not None for each in self.produced)
                self.outcome.requests = len(self.endpoint.arrivals)
                self._unwatch(self._stage.proxy)
                self._ingesters.close()
        self.outcome.seconds = time.monotonic() - started
        if not self.outcome.violations:
            shutil.rmtree(self._folder)
        topics = [self.topic, f"{self.topic}.receipts", f"{self.topic}.dead-letters"]
        await delete_topics(self._stage.servers, topics)

    # -- workers --------------------------------------------------------------------------------

    def start(self, instance: str | None = None, **settings: str) -> Worker:
        """Start a worker, as a static member under that name if there is one."""
        name = f"w{len(self.workers) + 1}"
        changed = {
            "session_timeout_seconds": f"{SESSION_SECONDS:g}",
            # A successor cuts otherwise than the dead one: recorded boundaries alone must hold.
            "items_max": str(self.random.choice((7, 10, 13))),
            "linger_seconds": "0.02",
            "requests_in_flight_max": "8",
            "connect_timeout_seconds": "2",
            "request_timeout_seconds": "10",
            "in_doubt": self.outcome.in_doubt_policy,
            "http_listen": "off",
            **settings,
        }
        if instance is not None:
            changed["group_instance_id"] = instance
        environment = {**self.group.settings(**changed), "PACSPACE_API_KEY": f"pk_test_{name}.x"}
        worker = Worker(self._ingesters.start("run", settings=environment), name)
        self.workers[name] = worker
        self.alive.append(worker)
        self._started[worker] = time.monotonic()
        return worker

    async def assigned(self, worker: Worker) -> None:
        """Wait until the group has given a worker its share, be it none."""
        await until(
            f"{worker.address} is assigned partitions",
            lambda: worker.events("partitions.assigned"),
            self.state,
        )

    async def killed(self, worker: Worker, point: str) -> None:
        """Kill a worker that may be dead already, and note what it leaves."""
        await asyncio.to_thread(worker.process.kill)
        self.alive.remove(worker)
        self.note(worker, point, killed=True)

    def note(self, worker: Worker, point: str, *, killed: bool = False) -> None:
        """Note what a worker leaves, if the group takes its partitions now."""
        seconds = time.monotonic() - self._started[worker]
        arrivals = None if killed else len(self.endpoint.arrivals)
        receipts = len(self.steps.receipted)
        self.outcome.deaths.append(Death(point, worker.address, receipts, seconds, arrivals))

    async def leave(self, worker: Worker) -> int:
        """Ask a worker to end; return its exit code."""
        self.alive.remove(worker)
        worker.process.terminate()
        return await asyncio.to_thread(worker.process.wait, WAIT_SECONDS_MAX)

    def state(self) -> str:
        """How things stand, for messages."""
        tails = []
        for name, worker in list(self.workers.items())[-3:]:
            lines = worker.process.log().splitlines()[-_LOG_LINES:]
            tails.append(f"{name} (exit {worker.process.exit_code}):\n" + "\n".join(lines))
        return (
            f"{len(self.produced)} produced, {len(self.endpoint.arrivals)} requests;"
            f" logs in {self._folder} end with\n" + "\n".join(tails)
        )

    # -- usage ----------------------------------------------------------------------------------

    async def produce(self, count: int, *, poisoned: int = 0) -> None:
        """Put events on random partitions; of the records that are none each has its share."""
        producer = self._stage.producer
        assert producer is not None
        first = sum(each.event is not None for each in self.produced)
        events = [
            {
                "key": f"usage-{number % _KEYS}",
                "accountId": f"customer-{number % _KEYS}",
                "bits": self.random.randrange(-(2**40), 2**41),
                "metadata": {"number": number},
            }
            for number in range(first, first + count)
        ]
        spread = [(event, self.random.randrange(self.partitions)) for event in events]
        spread += [(None, number % self.partitions) for number in range(poisoned)]
        self.random.shuffle(spread)
        sent = [
            await producer.send(
                self.topic,
                _POISON if event is None else json.dumps(event).encode(),
                partition=partition,
            )
            for event, partition in spread
        ]
        for (event, _), where in zip(spread, await asyncio.gather(*sent), strict=True):
            self.produced.append(Produced(where.partition, where.offset, event))

    async def settled(self, seconds: float = WAIT_SECONDS_MAX) -> None:
        """Wait until everything is committed, or halted where the policy is to halt."""
        ends: Counter[int] = Counter()
        for each in self.produced:
            ends[each.partition] = max(ends[each.partition], each.offset + 1)
        deadline = time.monotonic() + seconds
        while True:
            committed = await self.committed()
            halted = self.halted()
            behind = {
                partition: (committed.get(partition, 0), end)
                for partition, end in ends.items()
                if committed.get(partition, 0) < end and partition not in halted
            }
            if not behind:
                self.halted_at_end = frozenset(halted)
                return
            if time.monotonic() > deadline:
                raise StuckError(
                    f"waited {seconds:g} s until all is committed; (committed, end) by partition:"
                    f" {behind}; {self.state()}"
                )
            await asyncio.sleep(4 * _PAUSE_SECONDS)

    def halted(self) -> set[int]:
        """The partitions that the workers which live now have halted since their assignment."""
        halted: set[int] = set()
        if self.outcome.in_doubt_policy != "halt":
            return halted
        for worker in self.alive:
            owned: set[str] = set()
            lines = worker.process.log().splitlines(keepends=True)
            for line in (json.loads(each) for each in lines if each[0] == "{" and each[-1] == "\n"):
                if line["event"] == "partitions.revoked":
                    owned.clear()
                elif line["event"] == "partition.halted":
                    owned.add(line["partition"])
            halted |= {int(each.rpartition(":")[2]) for each in owned}
        return halted

    # -- what passes ----------------------------------------------------------------------------

    def _watch(self, proxy: KafkaProxy) -> None:
        self.endpoint.watch = self._request
        for api in (Api.OFFSET_COMMIT, Api.PRODUCE, Api.FETCH, Api.JOIN_GROUP):
            proxy.before[api] = self._before
        for api in (*proxy.before, Api.HEARTBEAT, Api.SYNC_GROUP):
            proxy.after[api] = self._after

    def _unwatch(self, proxy: KafkaProxy) -> None:
        proxy.before.clear()
        proxy.after.clear()
        if proxy.failure is not None:
            self.outcome.violations.append(f"a hook of the proxy failed: {proxy.failure!r}")
            proxy.failure = None

    async def _before(self, exchange: Exchange) -> Verdict:
        return self._sprung(self.steps.before(exchange), Moment.HELD, exchange)

    async def _after(self, exchange: Exchange) -> Verdict:
        if exchange.api == Api.SYNC_GROUP:
            self.takeovers.append((len(self.endpoint.arrivals), len(self.steps.receipted)))
            return Verdict.PASS
        steps = self.steps.after(exchange)
        if self._sprung(steps, Moment.STORED, exchange) is Verdict.DISCONNECT:
            return Verdict.DISCONNECT
        return self._sprung(steps, Moment.ANSWERED, exchange)

    def _sprung(self, steps: set[Step], moment: Moment, exchange: Exchange) -> Verdict:
        if self.trap and self.trap.take(steps, moment, owner_of(exchange.client_port)):
            return Verdict.DISCONNECT
        return Verdict.PASS

    async def _request(self, moment: Moment, arrival: Arrival) -> bool:
        if self.trap is None:
            return False
        return self.trap.take(
            {Step.REQUEST}, moment, lambda worker: worker.address == arrival.worker
        )

    async def committed(self) -> dict[int, int]:
        """The committed next offsets by partition."""
        found = await committed_offsets(self._stage.servers, self.group.name)
        return {where.partition: stored.offset for where, stored in found.items()}
