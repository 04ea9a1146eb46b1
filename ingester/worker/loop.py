"""`ingester run`: a member of the consumer group, the loop around the core.

Turns what happens into facts for the pipeline, and has its commands carried out; decides nothing
about records. Everything runs in one thread, and every wait is bounded.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from ingester import __version__
from ingester.core.batch import BatchLimits
from ingester.core.deadletter import DeadLetterLimit
from ingester.core.event import event_decoder
from ingester.core.mapping import CorrectedDecode
from ingester.core.messages import (
    Command,
    DrainRequested,
    Fact,
    HaltPartition,
    Limits,
    PartitionsAssigned,
    PartitionsRevoked,
    PausePartitions,
    PositionsReached,
    RecordsFetched,
    ResumePartitions,
    RevocationStarted,
    Start,
    Tick,
)
from ingester.core.partition import PartitionState
from ingester.core.pipeline import Pipeline
from ingester.core.record import TopicPartition
from ingester.core.replaying import Replaying
from ingester.errors import IncompleteError, UnavailableError
from ingester.kafka.group import UsageConsumer
from ingester.kafka.receipts import Receipts
from ingester.settings import Settings
from ingester.worker.errands import Errands
from ingester.worker.reopening import Reopening
from ingester.worker.starts import Starts
from ingester.worker.telemetry import Telemetry
from ingester.worker.timing import call_not_before
from ingester.worker.watchdog import Watchdog

_RETRY_SECONDS: Final = 2.0  # after a failed poll
_POSITIONS_SECONDS: Final = 0.5  # between looks at how far it was read, past the last records
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
        correction = replay.correction if replay else None
        keeps_letters = correction is not None  # what it reads are dead letters, and stay so
        self._pipeline = Pipeline(
            limits_of(settings),
            event_decoder(settings.unknown_members)
            if correction is None
            else CorrectedDecode(settings.unknown_members, correction),
            replay.namespace if replay else "",
        )
        self._consumer = UsageConsumer(settings, self)
        self._receipts = Receipts(settings, replay)
        self._starts = Starts(
            settings, telemetry, self._consumer, self._receipts, keeps_letters=keeps_letters
        )
        self._reopening = Reopening(
            settings,
            telemetry,
            self._pipeline,
            self._consumer,
            self._receipts,
            self._starts,
            handle=self._handle,
        )
        self._errands = Errands(
            settings,
            telemetry,
            self._pipeline,
            self._consumer,
            self._receipts,
            handle=self._handle,
            failed=self._fail,
            keeps_letters=keeps_letters,
        )
        self._watchdog = Watchdog(self._pipeline, self._consumer, telemetry, settings.stall_seconds)
        self._timer: asyncio.Handle | None = None
        # Calls `_tick` when the pipeline wants it, or before: set anew for what is earlier, and by
        # `_tick` for what has become later, which is most of it.
        self._timer_at = 0.0  # uvloop's handle does not tell
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
        async with self._serving_health():
            try:
                await self._settle_until_stopped()
                drained = self._failure is None and await self._drain()
                states = self._pipeline.partitions.items()
                halted = [str(name) for name, each in states if each.halt_reason]
                if self._failure is not None:
                    raise self._failure
            finally:
                self._errands.cancel()
                await self._close()
        self._telemetry.worker_stopped(drained=drained, halted=halted)
        if halted:
            raise IncompleteError(
                f"{', '.join(halted)} had halted and waits for somebody: the log says why"
                " (partition.halted). Nothing of it is lost."
            )
        if not drained:
            raise IncompleteError(
                f"not everything was settled within {self._settings.drain_seconds:g} s"
                " (INGESTER_DRAIN_TIMEOUT_SECONDS; in its second half nothing is begun). Nothing is"
                " lost: whoever reads the partitions next starts at the committed offsets."
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

    @asynccontextmanager
    async def _serving_health(self) -> AsyncIterator[None]:
        """Tell meanwhile who asks how it is, where the settings say so."""
        listen = self._settings.http_listen
        if listen is None:
            yield
            return
        # Not at the top: aiohttp takes 0.1 s of CPU at a start, and 10 MB, also where nobody asks.
        from ingester.worker.health import HealthServer  # noqa: PLC0415 -- as said

        health = HealthServer(
            self._pipeline,
            self._telemetry,
            self._settings.group_id,
            lambda: self._watchdog.stalled,
        )
        try:
            await health.start(listen)
            yield
        finally:
            await health.stop()

    async def _settle_until_stopped(self) -> None:
        """Start and poll until `request_stop`, which waits for no broker and no rebalance."""
        tasks = [
            asyncio.create_task(each)
            for each in (
                self._settle(),
                self._stop.wait(),
                self._reopening.run(),
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
        await self._starts.find_topics()
        await self._errands.start()
        await self._receipts.start()
        await self._consumer.start()

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
        await self._receipts.stop()
        await self._errands.stop()

    # -- rebalances: Kafka waits for these ------------------------------------------------------

    async def partitions_revoked(self) -> None:
        """Drain first, fence second: what is in doubt gets its time, then everything ends."""
        partitions = list(self._pipeline.partitions)
        self._handle(RevocationStarted())
        drained = await self._drained_within(self._settings.drain_seconds)
        self._errands.cancel()
        self._handle(PartitionsRevoked())
        if partitions:
            self._telemetry.partitions_revoked(partitions, drained=drained)

    async def look_up(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Start]:
        """Say where each partition begins; waits for brokers that fail meanwhile."""
        return await self._starts.look_up(partitions)

    def partitions_assigned(self, starts: Mapping[TopicPartition, Start]) -> None:
        """Begin anew with what the group gave."""
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
            case PausePartitions(partitions):
                self._consumer.pause(partitions)
            case ResumePartitions(partitions):
                self._consumer.resume(partitions)
            case HaltPartition():
                self._telemetry.partition_halted(command)
            case _:
                self._errands.begin(command)

    def _set_timer(self, now: float) -> None:
        wake_at = self._pipeline.wake_at()
        if wake_at is None or (self._timer is not None and self._timer_at <= wake_at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = max(wake_at, now)
        self._timer = call_not_before(self._timer_at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        wake_at = self._pipeline.wake_at()
        if wake_at is not None and wake_at <= now:
            self._handle(Tick())
        else:
            self._set_timer(now)

    def _fail(self, error: BaseException) -> None:
        """End the run because of a bug: what is not committed is safe, what goes on is not."""
        self._failure = self._failure or error
        self._stop.set()


async def run_worker(settings: Settings) -> None:
    """Run a worker until SIGTERM or SIGINT; a second signal exits at once with 128 + its number."""
    worker = Worker(settings, Telemetry())
    stop_by_signal(worker.request_stop)
    await worker.run()


def stop_by_signal(request_stop: Callable[[str], None]) -> None:
    """Ask by name at the first SIGTERM or SIGINT; exit at once at the second."""
    loop = asyncio.get_running_loop()
    received = False

    def on_signal(number: signal.Signals) -> None:
        nonlocal received
        if received:
            os._exit(128 + number)
        received = True
        request_stop(number.name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
