"""`ingester run`: a member of the consumer group, the loop around the core.

Turns what happens into facts for the pipeline and carries out its commands; decides nothing about
records. Everything runs in one thread, and every wait is bounded.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar, assert_never

from ingester import __version__
from ingester.core.batch import Batch, BatchLimits
from ingester.core.deadletter import DeadLetterLimit
from ingester.core.delivery import Deferred
from ingester.core.event import event_decoder
from ingester.core.messages import (
    AttemptEnded,
    Command,
    Commit,
    CommitFailed,
    CommitOffsets,
    DeadLettersNotWritten,
    DeadLettersWritten,
    DrainRequested,
    Fact,
    HaltPartition,
    Limits,
    OffsetsCommitted,
    PartitionReopened,
    PartitionsAssigned,
    PartitionsRevoked,
    PausePartitions,
    PositionsReached,
    RangeNotRead,
    RangeRead,
    ReadRange,
    ReceiptNotWritten,
    ReceiptWritten,
    RecordsFetched,
    ResumePartitions,
    RevocationStarted,
    SendBatch,
    Start,
    Tick,
    WriteDeadLetters,
    WriteReceipt,
)
from ingester.core.partition import PartitionState
from ingester.core.pipeline import Pipeline
from ingester.core.record import TopicPartition
from ingester.core.replaying import Replaying
from ingester.errors import IncompleteError, IngesterError, UnavailableError
from ingester.halts import Decisions
from ingester.health import HealthServer
from ingester.kafka_admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.kafka_group import UsageConsumer
from ingester.kafka_range import RangeReader
from ingester.kafka_topics import DEAD_LETTER_PARTITIONS, KEPT_TOPIC_CONFIG
from ingester.kafka_writing import RecordWriter
from ingester.pacspace import PacspaceClient
from ingester.receipts import Receipts, without_receipts
from ingester.settings import Settings
from ingester.telemetry import Telemetry
from ingester.watchdog import Watchdog

T = TypeVar("T")

_RETRY_SECONDS: Final = 2.0  # between attempts to reach Kafka at the start, and after a failed poll
_DECISION_SECONDS: Final = 5.0  # between looks for a decision about a halted partition
_POSITIONS_SECONDS: Final = 0.5  # between looks at how far it was read, past the last records
_GATHER_SECONDS: Final = 0.005  # a receipt waits for others; at 0 each takes twice the CPU
_POLL_FAILURES_MAX: Final = 30  # in a row: a minute, after which a fresh start is the better bet


def limits_of(settings: Settings) -> Limits:
    """The core's bounds, by the settings of the same names."""
    return Limits(
        batch=BatchLimits(
            items_max=settings.items_max,
            body_bytes_max=settings.body_bytes_max,
            linger_seconds=settings.linger_seconds,
        ),
        requests_in_flight_max=settings.requests_in_flight_max,
        buffer_bytes_max=settings.buffer_bytes_max,
        backoff_seconds_min=settings.backoff_seconds_min,
        backoff_seconds_max=settings.backoff_seconds_max,
        commit_interval_seconds=settings.commit_interval_seconds,
        idempotency_window_seconds=settings.idempotency_window_seconds,
        request_timeout_seconds=settings.request_timeout_seconds,
        session_timeout_seconds=settings.session_timeout_seconds,
        dead_letters=DeadLetterLimit(
            count_max=settings.dead_letters_max,
            share_max=settings.dead_letter_share_max,
            window_seconds=settings.dead_letter_window_seconds,
        ),
        in_doubt=settings.in_doubt,
        receipts=settings.receipts == "on",
        requests_per_second_max=settings.requests_per_second_max,
    )


class Worker:
    """One process's share of the topics; `run` returns after `request_stop` and the drain."""

    def __init__(
        self, settings: Settings, telemetry: Telemetry, replay: Replaying | None = None
    ) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._pipeline = Pipeline(
            limits_of(settings),
            event_decoder(settings.unknown_members),
            replay.namespace if replay else "",
        )
        self._consumer = UsageConsumer(settings, self)
        self._writer = RecordWriter(settings, compress=True)
        self._receipts = Receipts(settings, replay)
        self._decisions = Decisions(settings, self._receipts)
        self._watchdog = Watchdog(self._pipeline, self._consumer, telemetry, settings.stall_seconds)
        self._ranges = RangeReader(settings)
        self._admin = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)
        self._pacspace = PacspaceClient.from_settings(
            settings, connections_max=settings.requests_in_flight_max
        )
        self._tasks: set[asyncio.Task[None]] = set()
        # Everything that commands started and that has not ended; each removes itself.
        self._gathered: dict[TopicPartition, list[WriteReceipt]] = {}
        # Receipts that wait for others, by the source's partition; taken a moment after the first.
        self._assignment = object()  # another one for each; compared by whoever waits meanwhile
        self._wake_at: float | None = None
        self._timer: asyncio.Handle | None = None  # what calls `_tick` at `_wake_at`
        self._progress = asyncio.Event()  # set by each fact; drains wait for it
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None  # the first bug in a task; ends the run

    # -- the run ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Settle records until `request_stop`, then drain.

        Raises UnavailableError or RefusedError when Kafka cannot be used, and IncompleteError when
        the drain deadline passed with something unsettled. In no case is anything lost.
        """
        self._telemetry.worker_started(
            version=__version__,
            topics=self._settings.topics,
            group_id=self._settings.group_id,
            pacspace_url=self._settings.pacspace_url,
        )
        health = HealthServer(
            self._pipeline,
            self._telemetry,
            self._settings.group_id,
            lambda: self._watchdog.stalled,
        )
        try:
            await health.start(self._settings.http_listen)
            await self._settle_until_stopped()
            drained = self._failure is None and await self._drain()
            halted = [
                str(name) for name, each in self._pipeline.partitions.items() if each.halt_reason
            ]
            if self._failure is not None:
                raise self._failure
        finally:
            self._cancel_tasks()
            await self._close()
            await health.stop()
        self._telemetry.worker_stopped(drained=drained, halted=halted)
        if halted:
            raise IncompleteError(
                f"{', '.join(halted)} had halted and waits for somebody: the log says why"
                " (partition.halted). Nothing of it is lost."
            )
        if not drained:
            raise IncompleteError(
                f"not everything was settled within {self._settings.drain_seconds:g} s"
                " (INGESTER_DRAIN_TIMEOUT_SECONDS). Nothing is lost: whoever reads the partitions"
                " next starts at the committed offsets."
            )

    def request_stop(self, signal_name: str) -> None:
        """Drain and leave; called again, do nothing more."""
        if not self._stop.is_set():
            self._telemetry.drain_started(signal_name, self._settings.drain_seconds)
            self._stop.set()

    @property
    def partitions(self) -> Mapping[TopicPartition, PartitionState]:
        """Where each partition stands that this worker has now."""
        return self._pipeline.partitions

    def rest(self, partitions: Collection[TopicPartition]) -> None:
        """Read no more of these while they are assigned; what is read is settled."""
        self._consumer.pause(frozenset(partitions))

    async def _settle_until_stopped(self) -> None:
        """Start and poll until `request_stop`, which waits for no broker and no rebalance."""
        tasks = [
            asyncio.create_task(each)
            for each in (
                self._settle(),
                self._stop.wait(),
                self._look_for_decisions(),
                self._watchdog.run(),
            )
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled():
                await task  # to raise what ended it, if something did

    async def _settle(self) -> None:
        await self._start()
        await self._poll()

    async def _start(self) -> None:
        """Wait for Kafka and the topics as long as the settings allow, then join the group."""
        await self._patiently(self._find_topics, self._telemetry.start_retried)
        await self._writer.start()
        await self._receipts.start()
        await self._consumer.start()

    async def _patiently(
        self, question: Callable[[], Awaitable[T]], retried: Callable[[str, float], None]
    ) -> T:
        """Ask Kafka as often as it takes, but no longer than a start may."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.startup_timeout_seconds
        while True:
            try:
                return await question()
            except UnavailableError as error:
                seconds = min(_RETRY_SECONDS, deadline - loop.time())
                if seconds <= 0:
                    raise
                retried(str(error), seconds)
                await asyncio.sleep(seconds)

    async def _find_topics(self) -> None:
        admin = self._admin
        topics = self._settings.topics
        facts = await admin.describe(topics, self._settings.group_id)
        partitions = {topic: facts.partitions.get(topic) or 0 for topic in topics}
        missing = [topic for topic in topics if not partitions[topic]]
        if missing:
            raise admin.missing_topic(missing[0])
        for topic in dict.fromkeys(map(self._settings.dead_letter_topic_for, topics)):
            if (
                await admin.ensure_topic(topic, DEAD_LETTER_PARTITIONS, KEPT_TOPIC_CONFIG)
                == "created"
            ):
                self._telemetry.topic_created(topic)
        if self._settings.receipts == "on":
            for topic in await self._receipts.ensure_topics(admin, partitions):
                self._telemetry.topic_created(topic)

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        look_at = loop.time()
        failures = 0
        while True:
            try:
                fetched = await self._consumer.poll()
            except UnavailableError as error:
                failures += 1
                if failures > _POLL_FAILURES_MAX:
                    raise
                self._telemetry.poll_retried(str(error), _RETRY_SECONDS)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            failures = 0
            for failed in fetched.failed:
                self._handle(failed)
            if fetched.records:
                for partition, records in fetched.records.items():
                    self._telemetry.records_fetched(partition[0], len(records))
                self._handle(RecordsFetched(fetched.records))
                # With records at hand a poll returns without waiting: let the others run.
                await asyncio.sleep(0)
            if loop.time() >= look_at:
                look_at = loop.time() + _POSITIONS_SECONDS
                self._handle(PositionsReached(self._consumer.positions()))

    async def _look_for_decisions(self) -> None:
        """Reopen halted partitions about which somebody has decided."""
        while True:
            await asyncio.sleep(_DECISION_SECONDS)
            halted = {
                name: state
                for name, state in self._pipeline.partitions.items()
                if self._pipeline.may_be_reopened(name)
            }
            if not halted or self._settings.receipts == "off":
                continue
            assignment = self._assignment
            try:
                decided = await self._decisions.taken(halted)
                starts = await self._starts(list(decided)) if decided else {}
            except IngesterError as error:
                self._telemetry.decisions_retried(str(error))
                continue
            if self._assignment is not assignment:
                continue  # by others meanwhile, perhaps, more was settled than was looked up
            for name, start in starts.items():
                if self._pipeline.may_be_reopened(name):
                    self._consumer.seek(name, start.offset)
                    self._handle(PartitionReopened(name, start, time.time()))
                    self._telemetry.partition_reopened(name, start, decided[name])

    async def _drain(self) -> bool:
        """Settle what was read for half of the time, then only what may have been applied.

        A backlog that was cut off at the deadline would leave batches in doubt. Return whether
        everything was settled.
        """
        half_seconds = self._settings.drain_seconds / 2
        self._handle(DrainRequested())
        if await self._drained_within(half_seconds):
            return True
        self._handle(RevocationStarted())
        await self._drained_within(half_seconds)
        return False

    async def _drained_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while not self._pipeline.drained:
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            return False
        return True

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._consumer.stop()
        await self._ranges.stop()
        await self._receipts.stop()
        await self._writer.stop()
        await self._pacspace.aclose()

    # -- rebalances: Kafka waits for these ------------------------------------------------------

    async def partitions_revoked(self) -> None:
        """Drain first, fence second: what is in doubt gets its time, then everything ends."""
        partitions = list(self._pipeline.partitions)
        self._handle(RevocationStarted())
        drained = await self._drained_within(self._settings.drain_seconds)
        self._cancel_tasks()
        self._handle(PartitionsRevoked())
        if partitions:
            self._telemetry.partitions_revoked(partitions, drained=drained)

    async def look_up(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Start]:
        """Say where each partition begins, and what its former owners left in doubt.

        Waits for brokers that fail meanwhile: another start of this worker would find them no more
        alive.
        """
        return await self._patiently(
            partial(self._starts, partitions), self._telemetry.look_up_retried
        )

    async def _starts(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Start]:
        stored = await self._admin.committed_offsets(self._settings.group_id)
        beginnings = await self._consumer.beginnings(partitions)
        commits = {name: stored[name] for name in partitions if name in stored}
        if self._settings.receipts == "off":
            return without_receipts(commits, beginnings)
        counts: dict[str, int] = {}
        for topic, partition in partitions:
            counts[topic] = max(partition + 1, counts.get(topic, 0))
        await self._receipts.ensure_topics(self._admin, counts)
        return await self._receipts.starts(commits, beginnings)

    def partitions_assigned(self, starts: Mapping[TopicPartition, Start]) -> None:
        """Begin anew with what the group gave."""
        self._assignment = object()
        self._handle(PartitionsAssigned(starts, time.time()))
        self._telemetry.partitions_assigned(starts)

    def rebalance_failed(self, error: Exception) -> None:
        """End the run: what this member owns now is not known."""
        self._fail(error)

    # -- facts in, commands out -----------------------------------------------------------------

    def _handle(self, fact: Fact) -> None:
        now = asyncio.get_running_loop().time()
        try:
            for command in self._pipeline.handle(fact, now):
                self._carry_out(command)
        except Exception as error:  # noqa: BLE001 -- called from timers and listeners, which swallow
            self._fail(error)
        self._set_timer(now)
        self._progress.set()

    def _carry_out(self, command: Command) -> None:
        match command:
            case SendBatch(batch, attempt):
                self._begin(self._send(batch, attempt))
            case ReadRange(batch):
                self._begin(self._read_range(batch))
            case WriteDeadLetters():
                self._begin(self._write_dead_letters(command))
            case WriteReceipt():
                self._gather(command)
            case CommitOffsets(offsets):
                self._begin(self._commit(offsets))
            case PausePartitions(partitions):
                self._consumer.pause(partitions)
            case ResumePartitions(partitions):
                self._consumer.resume(partitions)
            case HaltPartition():
                self._telemetry.partition_halted(command)
            case _:
                assert_never(command)

    async def _send(self, batch: Batch, attempt: int) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        if not self._consumer.is_member:
            # Somebody else may have the partition by now, and does not know of this attempt.
            self._handle(AttemptEnded(batch, Deferred("not in touch with the group"), _jitter()))
            return
        outcome = await self._pacspace.write(
            batch.body, idempotency_key=batch.idempotency_key, items_count=batch.items_count
        )
        seconds = loop.time() - started
        self._handle(AttemptEnded(batch, outcome, _jitter()))
        self._telemetry.attempt_ended(batch, attempt, outcome, seconds)
        self._telemetry.blocked_now(self._pipeline.blocked)

    async def _read_range(self, batch: Batch) -> None:
        try:
            records = await self._ranges.read(
                batch.partition, batch.first_offset, batch.next_offset
            )
        except UnavailableError as error:
            self._telemetry.range_read_retried(batch, str(error))
            self._handle(RangeNotRead(batch, _jitter()))
        else:
            self._handle(RangeRead(batch, records))

    async def _write_dead_letters(self, command: WriteDeadLetters) -> None:
        batch, letters = command.batch, command.letters
        topic = self._settings.dead_letter_topic_for(batch.partition.topic)
        problem = await self._writer.write_dead_letters(topic, batch.partition, letters)
        if problem is None:
            self._handle(DeadLettersWritten(batch))
            self._telemetry.dead_letters_written(batch, letters, topic)
        else:
            self._telemetry.dead_letters_retried(
                batch, topic, problem.reason, refused=problem.refused
            )
            refused = problem.reason if problem.refused else None
            self._handle(DeadLettersNotWritten(batch, _jitter(), refused))

    def _gather(self, receipt: WriteReceipt) -> None:
        """Let receipts wait a moment for others: most of their cost is that of each request."""
        if not self._gathered:
            asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._write_gathered)
        self._gathered.setdefault(receipt.batch.partition, []).append(receipt)

    def _write_gathered(self) -> None:
        gathered, self._gathered = self._gathered, {}
        for source, receipts in gathered.items():
            self._begin(self._write_receipts(source, receipts))

    async def _write_receipts(
        self, source: TopicPartition, receipts: Sequence[WriteReceipt]
    ) -> None:
        outcomes = await self._receipts.write(source, receipts)
        for receipt, written in zip(receipts, outcomes, strict=True):
            batch = receipt.batch
            if isinstance(written, int):
                self._handle(ReceiptWritten(batch, written))
            else:
                self._telemetry.receipt_retried(batch, written.reason, refused=written.refused)
                refused = written.reason if written.refused else None
                self._handle(ReceiptNotWritten(batch, _jitter(), refused))

    async def _commit(self, offsets: Mapping[TopicPartition, Commit]) -> None:
        problem = await self._consumer.commit(offsets)
        if problem is None:
            self._handle(OffsetsCommitted())
            self._telemetry.offsets_committed(offsets)
        else:
            self._handle(CommitFailed(_jitter(), problem.fenced))
            self._telemetry.commit_failed(problem.reason)

    def _set_timer(self, now: float) -> None:
        wake_at = self._pipeline.wake_at()
        if wake_at == self._wake_at:
            return
        self._wake_at = wake_at
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wake_at is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(wake_at, now), self._tick)

    def _tick(self) -> None:
        self._wake_at = self._timer = None
        self._handle(Tick())

    # -- tasks ----------------------------------------------------------------------------------

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End the run because of a bug: what is not committed is safe, what goes on is not."""
        self._failure = self._failure or error
        self._stop.set()

    def _cancel_tasks(self) -> None:
        self._gathered.clear()
        for task in self._tasks:
            task.cancel()


async def run_worker(settings: Settings) -> None:
    """Run a worker until SIGTERM or SIGINT; a second signal exits at once with 128 + its number."""
    worker = Worker(settings, Telemetry())
    loop = asyncio.get_running_loop()
    received = False

    def on_signal(number: signal.Signals) -> None:
        nonlocal received
        if received:
            os._exit(128 + number)
        received = True
        worker.request_stop(number.name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    await worker.run()


def _jitter() -> float:
    return random.random()  # noqa: S311 -- spreads retries, guards nothing
