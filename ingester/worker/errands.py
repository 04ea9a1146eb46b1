"""Carries out those commands of the core that take time: requests, reads, writes and commits.

Each is a task of its own, and ends with a fact. Nothing is decided or repeated here.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Final, assert_never

from ingester.core.batch import Batch
from ingester.core.delivery import Answer, Deferred
from ingester.core.messages import (
    AttemptEnded,
    Commit,
    CommitFailed,
    CommitOffsets,
    DeadLettersNotWritten,
    DeadLettersWritten,
    Fact,
    OffsetsCommitted,
    RangeNotRead,
    RangeRead,
    ReadRange,
    ReceiptNotWritten,
    ReceiptWritten,
    SendBatch,
    WriteDeadLetters,
    WriteReceipt,
)
from ingester.core.pipeline import Pipeline
from ingester.core.record import TopicPartition
from ingester.errors import UnavailableError
from ingester.kafka.group import UsageConsumer
from ingester.kafka.range import RangeReader
from ingester.kafka.receipts import Receipts
from ingester.kafka.writing import RecordWriter
from ingester.pacspace import PacspaceClient
from ingester.settings import Settings
from ingester.worker.telemetry import Telemetry

_GATHER_SECONDS_MIN: Final = 0.005  # a receipt waits for others; at 0 each takes twice the CPU
_GATHER_SECONDS_MAX: Final = 0.010  # where there are many: a tenth of the worker's CPU less
_GATHER_SECONDS_EACH: Final = 0.001  # so long for each that went the last time

Errand = SendBatch | ReadRange | WriteDeadLetters | WriteReceipt | CommitOffsets


class Errands:
    """Those of one worker; `handle` is told of their ends, `failed` of a bug in one of them."""

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        pipeline: Pipeline,
        consumer: UsageConsumer,
        receipts: Receipts,
        *,
        handle: Callable[[Fact], None],
        failed: Callable[[BaseException], None],
        keeps_letters: bool,
    ) -> None:
        """With `keeps_letters` nothing is written about dead letters: they are there already."""
        self._keeps_letters = keeps_letters
        self._settings = settings
        self._telemetry = telemetry
        self._pipeline = pipeline
        self._consumer = consumer
        self._receipts = receipts
        self._handle = handle
        self._failed = failed
        self._writer = RecordWriter(settings, compress=True)
        self._ranges = RangeReader(settings)
        self._pacspace = PacspaceClient.from_settings(
            settings, connections_max=settings.requests_in_flight_max
        )
        self._tasks: set[asyncio.Task[None]] = set()
        # Everything that was begun and has not ended; each removes itself.
        self._gathered: dict[TopicPartition, list[WriteReceipt]] = {}
        # Receipts that wait for others, by the source's partition; taken a moment after the first,
        # or after the end of those before them: a broker that is slow gets them in larger groups.
        self._receipting: set[TopicPartition] = set()
        self._departure: asyncio.TimerHandle | None = None
        self._gather_seconds = _GATHER_SECONDS_MIN  # written by each departure, read by the next

    async def start(self) -> None:
        """Connect to what dead letters are written to; UnavailableError when that is impossible."""
        await self._writer.start()

    async def stop(self) -> None:
        """Close every connection."""
        await self._ranges.stop()
        await self._writer.stop()
        await self._pacspace.aclose()

    def begin(self, command: Errand) -> None:
        """Start what a command asks for."""
        match command:
            case SendBatch(batch, attempt):
                self._run(self._send(batch, attempt, self._begin_write(batch)))
            case ReadRange(batch):
                self._run(self._read_range(batch))
            case WriteDeadLetters():
                self._run(self._write_dead_letters(command))
            case WriteReceipt():
                self._gather(command)
            case CommitOffsets(offsets):
                self._run(self._commit(offsets))
            case _:
                assert_never(command)

    def cancel(self) -> None:
        """End everything that is under way; nobody is told of it."""
        self._gathered.clear()
        for task in self._tasks:
            task.cancel()

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed(error)

    def _begin_write(self, batch: Batch) -> Awaitable[Answer] | None:
        """Send at once where that is possible, and where whoever owns the partition knows of it.

        Answers come in bunches. If all of one are read before the next requests leave, those come
        back as a bunch, too, and all wait for each other: 0.5 ms each, at 32 in flight.
        """
        if not self._consumer.is_member:
            return None
        return self._pacspace.begin_write(batch.body, idempotency_key=batch.idempotency_key)

    async def _send(self, batch: Batch, attempt: int, begun: Awaitable[Answer] | None) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        if begun is None and not self._consumer.is_member:
            # Somebody else may have the partition by now, and does not know of this attempt.
            self._handle(AttemptEnded(batch, Deferred("not in touch with the group"), _jitter()))
            return
        outcome = await self._pacspace.write(
            batch.body,
            idempotency_key=batch.idempotency_key,
            items_count=batch.items_count,
            begun=begun,
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
        if self._keeps_letters:
            self._handle(DeadLettersWritten(batch))
            self._telemetry.letters_kept(batch, letters)
            return
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
        self._gathered.setdefault(receipt.batch.partition, []).append(receipt)
        self._depart_soon()

    def _depart_soon(self) -> None:
        if self._departure is None:
            loop = asyncio.get_running_loop()
            self._departure = loop.call_later(self._gather_seconds, self._depart)

    def _depart(self) -> None:
        self._departure = None
        departed_count = 0
        for source in self._gathered.keys() - self._receipting:
            receipts = self._gathered.pop(source)
            departed_count += len(receipts)
            self._receipting.add(source)
            writing = self._run(self._write_receipts(source, receipts))
            # Not by the task itself: one that is cancelled before its first step runs no line.
            writing.add_done_callback(partial(self._arrived, source))
        self._gather_seconds = min(
            max(_GATHER_SECONDS_MIN, departed_count * _GATHER_SECONDS_EACH), _GATHER_SECONDS_MAX
        )

    def _arrived(self, source: TopicPartition, _: object) -> None:
        self._receipting.discard(source)
        if source in self._gathered:
            self._depart_soon()

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


def _jitter() -> float:
    return random.random()  # noqa: S311 -- spreads retries, guards nothing
