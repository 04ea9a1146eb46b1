"""The state machine of one worker: facts in, commands out.

Per partition: records -> open batch -> ready -> in flight -> settled -> committable offset. A batch
is settled when its items are acknowledged and its dead letters are written; an offset is committed
when every batch below it is settled. What is unsettled when partitions are revoked is forgotten,
and whoever owns them next reads it again from the committed offset.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import assert_never

from ingester.core.batch import Batch, BatchBuilder
from ingester.core.delivery import Acknowledged, Blocked, Refused
from ingester.core.dispatch import Delivery, Dispatcher
from ingester.core.event import Decode
from ingester.core.messages import (
    AttemptEnded,
    Command,
    CommitFailed,
    CommitOffsets,
    DeadLettersNotWritten,
    DeadLettersWritten,
    DrainRequested,
    Fact,
    HaltPartition,
    Limits,
    OffsetsCommitted,
    PartitionsAssigned,
    PartitionsRevoked,
    PausePartitions,
    PositionLost,
    RecordsFetched,
    ResumePartitions,
    RevocationStarted,
    SendBatch,
    Tick,
    WriteDeadLetters,
)
from ingester.core.offsets import OffsetTracker
from ingester.core.record import TopicPartition


@dataclass(slots=True, eq=False)
class _Partition:
    """One assignment of one partition."""

    builder: BatchBuilder
    offsets: OffsetTracker = field(default_factory=OffsetTracker)
    batches_bytes: int = 0
    """Bytes of all batches that are cut and not settled."""
    committed: int | None = None
    """What the last successful commit of this assignment said; None before the first."""
    halt_reason: str | None = None
    """Set once, by whatever stopped the partition; ends with the assignment."""

    @property
    def buffered_bytes(self) -> int:
        return self.batches_bytes + self.builder.buffered_bytes


@dataclass(frozen=True, slots=True)
class PartitionState:
    """Where one assigned partition stands."""

    committed: int | None
    """The next offset as this worker last committed it; None before its first commit."""
    unsettled_batches: int
    buffered_bytes: int
    halt_reason: str | None


class Pipeline:
    """Owns every partition assigned to this worker; called once for each fact, never at once."""

    def __init__(self, limits: Limits, decode: Decode) -> None:
        self._limits = limits
        self._decode = decode
        self._epoch = 0
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._open: OrderedDict[TopicPartition, float] = OrderedDict()
        # When the linger of each open batch ends. The linger is one for all: oldest first.
        self._dispatcher = Dispatcher(limits)
        self._deliveries: dict[Batch, Delivery] = {}
        # Every batch cut and not settled; a fact about any other is about a former assignment.
        self._rewrites: list[tuple[float, int, Delivery]] = []
        # Dead letters whose write failed: a heap by due time.
        self._sequence = count()  # breaks ties in the heap
        self._buffered_bytes = 0  # the sum over the partitions
        self._paused: set[TopicPartition] = set()
        self._uncommitted: dict[TopicPartition, int] = {}
        # Offsets that may be committed: written when a batch settles, emptied by the commit's end.
        self._committing = False
        self._commit_due = 0.0
        self._commit_failures = 0  # in a row
        self._revoking = False  # from the start of a revocation to the next assignment
        self._draining = False  # from the request on, for good

    # -- what the shell asks ------------------------------------------------------------------

    @property
    def drained(self) -> bool:
        """Whether waiting longer would settle or commit nothing more."""
        return not (self._open or self._deliveries or self._committing or self._uncommitted)

    @property
    def assigned(self) -> bool:
        """Whether the group has given this worker its share, be it none, and not taken it back."""
        return self._epoch > 0 and not self._revoking

    @property
    def in_flight(self) -> int:
        """Requests that have no answer yet."""
        return self._dispatcher.in_flight

    @property
    def buffered_bytes(self) -> int:
        """Bytes of records that are read and not settled."""
        return self._buffered_bytes

    @property
    def blocked(self) -> Blocked | None:
        """Why PacSpace refuses everything, if it does; single probes go on."""
        return self._dispatcher.blocked

    @property
    def partitions(self) -> Mapping[TopicPartition, PartitionState]:
        """Where each assigned partition stands, for status pages."""
        return {
            name: PartitionState(
                part.committed, part.offsets.unsettled_count, part.buffered_bytes, part.halt_reason
            )
            for name, part in self._partitions.items()
        }

    def wake_at(self) -> float | None:
        """Return when a `Tick` is next needed, or None when only a fact can change anything."""
        times = [self._dispatcher.wake_at()]
        if self._open:
            times.append(next(iter(self._open.values())))
        if self._rewrites:
            times.append(self._rewrites[0][0])
        if not self._committing and self._uncommitted:
            times.append(self._commit_due)
        return min((time for time in times if time is not None), default=None)

    # -- facts --------------------------------------------------------------------------------

    def handle(  # noqa: C901, PLR0912 -- one branch for each kind of fact
        self, fact: Fact, now: float
    ) -> list[Command]:
        """Take one fact and return what is to be done, in order; `now` is a monotonic clock."""
        commands: list[Command] = []
        match fact:
            case RecordsFetched():
                self._fetched(fact, now, commands)
            case AttemptEnded():
                self._attempt_ended(fact, now, commands)
            case OffsetsCommitted():
                self._committed(fact)
            case CommitFailed():
                self._commit_failed(fact, now)
            case DeadLettersWritten():
                self._dead_letters_written(fact.batch)
            case DeadLettersNotWritten():
                self._dead_letters_not_written(fact, now)
            case PositionLost():
                self._position_lost(fact, commands)
            case PartitionsAssigned():
                self._assigned(fact)
            case RevocationStarted():
                self._revocation_started()
            case PartitionsRevoked():
                self._revoked()
            case DrainRequested():
                self._drain(commands)
            case Tick():
                self._tick(now, commands)
            case _:
                assert_never(fact)
        self._resume(commands)
        commands += [SendBatch(each.batch, each.attempts) for each in self._dispatcher.start(now)]
        self._commit(now, commands)
        return commands

    def _assigned(self, fact: PartitionsAssigned) -> None:
        assert not self._partitions, "an assignment follows the revocation of everything"
        self._epoch += 1
        self._revoking = False
        for name in fact.partitions:
            builder = BatchBuilder(name, self._epoch, self._limits.batch, self._decode)
            self._partitions[name] = _Partition(builder)

    def _fetched(self, fact: RecordsFetched, now: float, commands: list[Command]) -> None:
        if self._revoking or self._draining:
            return
        for name, records in fact.records.items():
            part = self._partitions.get(name)
            if part is None or part.halt_reason or not records:
                continue
            before = part.buffered_bytes
            batches = part.builder.extend(records)
            if batches:
                self._open.pop(name, None)
                self._take(part, batches, commands)
            if part.builder.is_open:
                self._open.setdefault(name, now + self._limits.batch.linger_seconds)
            self._buffered_bytes += part.buffered_bytes - before
        self._pause(fact.records, commands)

    def _attempt_ended(self, fact: AttemptEnded, now: float, commands: list[Command]) -> None:
        delivery = self._deliveries.get(fact.batch)
        if delivery is None:
            return
        self._dispatcher.ended(delivery, fact, now)
        if isinstance(fact.outcome, Acknowledged):
            delivery.items_pending = False
            self._settle(delivery)
        elif isinstance(fact.outcome, Refused):
            self._forget([delivery])
            reason = f"{fact.batch} was refused: {fact.outcome.reason}"
            self._halt(fact.batch.partition, reason, commands)
        elif self._revoking or self._partitions[fact.batch.partition].halt_reason:
            self._forget(self._dispatcher.forget_unsent(fact.batch.partition))

    def _dead_letters_written(self, batch: Batch) -> None:
        delivery = self._deliveries.get(batch)
        if delivery is not None:
            delivery.dead_letters_pending = False
            self._settle(delivery)

    def _dead_letters_not_written(self, fact: DeadLettersNotWritten, now: float) -> None:
        delivery = self._deliveries.get(fact.batch)
        if delivery is not None:
            delivery.write_attempts += 1
            due = now + self._limits.backoff_seconds(delivery.write_attempts, fact.jitter)
            heapq.heappush(self._rewrites, (due, next(self._sequence), delivery))

    def _committed(self, fact: OffsetsCommitted) -> None:
        self._committing = False
        self._commit_failures = 0
        for name, offset in fact.offsets.items():
            if name in self._partitions:
                self._partitions[name].committed = offset
            if self._uncommitted.get(name) == offset:
                del self._uncommitted[name]

    def _commit_failed(self, fact: CommitFailed, now: float) -> None:
        self._committing = False
        self._commit_failures += 1
        self._commit_due = now + self._limits.backoff_seconds(self._commit_failures, fact.jitter)

    def _position_lost(self, fact: PositionLost, commands: list[Command]) -> None:
        reason = (
            f"the log of {fact.partition} does not hold offset {fact.offset} any more or yet:"
            " retention overtook the committed offset, or the topic was made anew"
        )
        self._halt(fact.partition, reason, commands)

    def _revocation_started(self) -> None:
        """Finish what may have been applied; the rest is quicker read again than sent."""
        self._revoking = True
        for name in list(self._open):
            self._discard(name)
        self._forget(self._dispatcher.forget_unsent())

    def _revoked(self) -> None:
        self._partitions.clear()
        self._open.clear()
        self._dispatcher.clear()
        self._deliveries.clear()
        self._rewrites.clear()
        self._buffered_bytes = 0
        self._paused.clear()
        self._uncommitted.clear()
        self._committing = False
        self._commit_due = 0.0
        self._commit_failures = 0

    def _drain(self, commands: list[Command]) -> None:
        self._draining = True
        self._cut_all(commands)

    def _tick(self, now: float, commands: list[Command]) -> None:
        while self._open and next(iter(self._open.values())) <= now:
            self._cut_oldest(commands)
        while self._rewrites and self._rewrites[0][0] <= now:
            batch = heapq.heappop(self._rewrites)[2].batch
            if batch in self._deliveries:
                commands.append(WriteDeadLetters(batch))

    # -- steps --------------------------------------------------------------------------------

    def _cut_all(self, commands: list[Command]) -> None:
        while self._open:
            self._cut_oldest(commands)

    def _cut_oldest(self, commands: list[Command]) -> None:
        name, _ = self._open.popitem(last=False)
        part = self._partitions[name]
        self._take(part, [part.builder.cut()], commands)

    def _discard(self, name: TopicPartition) -> None:
        """Forget the open batch of a partition."""
        builder = self._partitions[name].builder
        self._open.pop(name, None)
        self._buffered_bytes -= builder.buffered_bytes
        builder.discard()

    def _take(self, part: _Partition, batches: list[Batch], commands: list[Command]) -> None:
        for batch in batches:
            part.offsets.track(batch.first_offset, batch.next_offset)
            part.batches_bytes += batch.buffered_bytes
            delivery = Delivery(
                batch,
                items_pending=batch.items_count > 0,
                dead_letters_pending=bool(batch.dead_letters),
            )
            self._deliveries[batch] = delivery
            if delivery.items_pending:
                self._dispatcher.add(delivery)
            if delivery.dead_letters_pending:
                commands.append(WriteDeadLetters(batch))

    def _settle(self, delivery: Delivery) -> None:
        if not delivery.settled:
            return
        batch = delivery.batch
        del self._deliveries[batch]
        part = self._partitions[batch.partition]
        part.batches_bytes -= batch.buffered_bytes
        self._buffered_bytes -= batch.buffered_bytes
        before = part.offsets.committable
        part.offsets.settle(batch.next_offset)
        committable = part.offsets.committable
        if committable is not None and committable != before:
            self._uncommitted[batch.partition] = committable

    def _forget(self, deliveries: Iterable[Delivery]) -> None:
        """Drop batches for good; their spans stay unsettled, so no commit can pass them."""
        for delivery in deliveries:
            batch = delivery.batch
            del self._deliveries[batch]
            self._partitions[batch.partition].batches_bytes -= batch.buffered_bytes
            self._buffered_bytes -= batch.buffered_bytes

    def _halt(self, name: TopicPartition, reason: str, commands: list[Command]) -> None:
        part = self._partitions.get(name)
        if part is None or part.halt_reason:
            return
        part.halt_reason = reason
        self._discard(name)
        self._forget(self._dispatcher.forget_unsent(name))
        self._paused.discard(name)  # it stays paused, and must not be resumed
        commands.append(PausePartitions(frozenset({name})))
        commands.append(HaltPartition(name, reason))

    def _pause(self, names: Iterable[TopicPartition], commands: list[Command]) -> None:
        """Past the bound, stop the partitions that hold more than their share of it.

        Those below their share go on, so that a heavy partition does not starve the light ones;
        together they stay below twice the bound, plus one fetch each.
        """
        bound = self._limits.buffer_bytes_max
        if self._buffered_bytes < bound:
            return
        share = bound // len(self._partitions)
        heavy = frozenset(
            name
            for name in names
            if name in self._partitions
            and self._partitions[name].buffered_bytes >= share
            and not self._partitions[name].halt_reason
        )
        heavy -= self._paused
        if heavy:
            self._paused |= heavy
            commands.append(PausePartitions(heavy))

    def _resume(self, commands: list[Command]) -> None:
        """Below half of the bound go on with all; half, so that pausing does not flutter."""
        if self._paused and self._buffered_bytes <= self._limits.buffer_bytes_max // 2:
            commands.append(ResumePartitions(frozenset(self._paused)))
            self._paused.clear()
        if self._paused and not self._deliveries:
            self._cut_all(commands)  # nothing else can make room: their linger would be a stall

    def _commit(self, now: float, commands: list[Command]) -> None:
        at_once = (self._revoking or self._draining) and not self._commit_failures
        if self._uncommitted and not self._committing and (now >= self._commit_due or at_once):
            self._committing = True
            self._commit_due = now + self._limits.commit_interval_seconds
            commands.append(CommitOffsets(dict(self._uncommitted)))
