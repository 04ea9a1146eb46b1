"""The state machine of one worker: facts in, commands out.

Per partition: records -> open batch -> ready -> in flight -> settled -> committable offset. A batch
is sent only after a commit has recorded its boundaries (its intent), and settled when its items
are acknowledged, its dead letters and its receipt written; an offset is committed when every batch
below it is settled. What is unsettled when partitions are revoked is forgotten: whoever owns them
next reads it again from the committed offset, and forms what was intended as it was.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import assert_never

from ingester.core.batch import Batch, BatchBuilder
from ingester.core.delivery import Acknowledged, Blocked, InDoubt, Refused
from ingester.core.dispatch import Delivery, Dispatcher
from ingester.core.event import Decode
from ingester.core.intent import INTENTS_MAX, encode
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
    PartitionsAssigned,
    PartitionsRevoked,
    PausePartitions,
    ReadFailed,
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
from ingester.core.offsets import OffsetTracker, Span
from ingester.core.record import TopicPartition

_INTENTS_SPACING_SECONDS = 0.005
"""Between two commits of a busy worker: 200 a second take some per cent of a core."""


@dataclass(slots=True, eq=False)
class _Partition:
    """One assignment of one partition."""

    builder: BatchBuilder
    offsets: OffsetTracker
    receipted: Mapping[tuple[int, int], int]
    """Which of the ranges that former owners intended has a receipt, and where."""
    unintended: deque[Delivery] = field(default_factory=deque)
    """Cut and in no commit yet, in offset order; emptied by commits."""
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
        # Those whose dead letters or receipt could not be written: a heap by due time.
        self._sequence = count()  # breaks ties in the heap
        self._buffered_bytes = 0  # the sum over the partitions
        self._paused: set[TopicPartition] = set()
        self._uncommitted: dict[TopicPartition, None] = {}
        # Partitions with a new position or new batches; emptied by commits, filled if one fails.
        # The keys are a set with an order, so that the same facts give the same commands.
        self._committing: dict[TopicPartition, tuple[int, list[Delivery]]] | None = None
        # What the commit under way stores: the position, and the batches it intends.
        self._wall_offset = 0.0  # what to add to `now` for seconds since the epoch
        self._commit_due = 0.0
        self._intents_due = 0.0  # before `_commit_due`, for a worker that has too little to send
        self._unintended_count = 0
        self._commit_failures = 0  # in a row
        self._fenced = False  # from a commit that says so to the end of the assignment
        self._revoking = False  # from the start of a revocation to the next assignment
        self._draining = False  # from the request on, for good

    # -- what the shell asks ------------------------------------------------------------------

    @property
    def drained(self) -> bool:
        """Whether waiting longer would settle or commit nothing more."""
        if self._fenced:
            return not self._dispatcher.in_flight
        busy = self._open or self._deliveries or self._uncommitted
        return not busy and self._committing is None

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
        if self._fenced:
            return None
        times = [self._dispatcher.wake_at()]
        if self._open:
            times.append(next(iter(self._open.values())))
        if self._rewrites:
            times.append(self._rewrites[0][0])
        if self._committing is None and self._uncommitted:
            times.append(self._next_commit())
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
                self._committed(commands)
            case CommitFailed():
                self._commit_failed(fact, now)
            case DeadLettersWritten():
                self._dead_letters_written(fact.batch, commands)
            case ReceiptWritten():
                self._receipt_written(fact)
            case DeadLettersNotWritten() | ReceiptNotWritten():
                self._not_written(fact, now)
            case ReadFailed():
                self._halt(fact.partition, fact.reason, commands)
            case PartitionsAssigned():
                self._assigned(fact, now, commands)
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
        if not self._fenced:
            for delivery in self._dispatcher.start(now):
                self._send(delivery, now, commands)
        self._resume(commands)  # after whatever gives room, before the commit of what it cuts
        if not self._fenced:
            self._commit(now, commands)
        return commands

    def _assigned(self, fact: PartitionsAssigned, now: float, commands: list[Command]) -> None:
        assert not self._partitions, "an assignment follows the revocation of everything"
        self._epoch += 1
        self._revoking = False
        self._wall_offset = fact.wall_seconds - now
        for name, start in fact.partitions.items():
            intents = start.ledger.intents
            builder = BatchBuilder(
                name, self._epoch, self._limits.batch, self._decode, frozen=deque(intents)
            )
            self._partitions[name] = _Partition(
                builder,
                OffsetTracker(start.offset, start.ledger.receipts_offset, intents),
                receipted=start.receipted,
            )
            reason = self._not_to_be_sent_again(start, fact.wall_seconds)
            if reason is not None:
                self._halt(name, reason, commands)

    def _not_to_be_sent_again(self, start: Start, wall_seconds: float) -> str | None:
        """Say why what a former owner left in doubt has to be judged by somebody, if it has."""
        in_doubt = [
            each
            for each in start.ledger.intents
            if (each.first_offset, each.next_offset) not in start.receipted
        ]
        if not in_doubt:
            return None
        ranges = ", ".join(f"[{each.first_offset},{each.next_offset})" for each in in_doubt)
        if self._limits.in_doubt == "halt":
            return f"in doubt, and INGESTER_IN_DOUBT is halt: {ranges}"
        window = self._limits.idempotency_window_seconds
        if wall_seconds - min(each.intended_at for each in in_doubt) > window:
            return self._perhaps_forgotten(ranges)
        return None

    def _perhaps_forgotten(self, ranges: str) -> str:
        return (
            f"in doubt for longer than {self._limits.idempotency_window_seconds:g} s, after which"
            f" PacSpace may have forgotten its key (INGESTER_IDEMPOTENCY_WINDOW_SECONDS): {ranges}"
        )

    def _fetched(self, fact: RecordsFetched, now: float, commands: list[Command]) -> None:
        if self._revoking or self._draining:
            return
        for name, records in fact.records.items():
            part = self._partitions.get(name)
            if part is None or part.halt_reason or not records:
                continue
            before = part.builder.buffered_bytes
            batches = part.builder.extend(records)
            cut_bytes = sum(batch.buffered_bytes for batch in batches)
            self._buffered_bytes += cut_bytes + part.builder.buffered_bytes - before
            if batches:
                self._open.pop(name, None)
                self._take(part, batches, commands)
            if part.builder.may_be_cut:
                self._open.setdefault(name, now + self._limits.batch.linger_seconds)
            if part.builder.lost is not None:
                lost = part.builder.lost
                reason = (
                    f"in doubt: [{lost.first_offset},{lost.next_offset}) was sent by a former"
                    " owner, and the log does not hold all of its records any more"
                )
                self._halt(name, reason, commands)
        self._pause(fact.records, commands)

    def _attempt_ended(self, fact: AttemptEnded, now: float, commands: list[Command]) -> None:
        delivery = self._deliveries.get(fact.batch)
        if delivery is None:
            return
        self._dispatcher.ended(delivery, fact, now)
        if isinstance(fact.outcome, Acknowledged):
            delivery.items_pending = False
            delivery.acknowledged = fact.outcome
            self._advance(delivery, commands)
        elif isinstance(fact.outcome, InDoubt) and self._limits.in_doubt == "halt":
            reason = (
                f"{fact.batch} is in doubt, and INGESTER_IN_DOUBT is halt: {fact.outcome.reason}"
            )
            self._dispatcher.forget(delivery)
            self._forget([delivery])
            self._halt(fact.batch.partition, reason, commands)
        elif isinstance(fact.outcome, Refused):
            self._forget([delivery])
            self._retract(self._partitions[fact.batch.partition], [delivery])
            reason = f"{fact.batch} was refused: {fact.outcome.reason}"
            self._halt(fact.batch.partition, reason, commands)
        elif self._revoking or self._partitions[fact.batch.partition].halt_reason:
            self._give_up(fact.batch.partition)

    def _dead_letters_written(self, batch: Batch, commands: list[Command]) -> None:
        delivery = self._deliveries.get(batch)
        if delivery is not None:
            delivery.dead_letters_pending = False
            self._advance(delivery, commands)

    def _receipt_written(self, fact: ReceiptWritten) -> None:
        delivery = self._deliveries.get(fact.batch)
        if delivery is not None:
            self._partitions[fact.batch.partition].offsets.receipt_found(fact.offset)
            self._settle(delivery)

    def _not_written(self, fact: DeadLettersNotWritten | ReceiptNotWritten, now: float) -> None:
        delivery = self._deliveries.get(fact.batch)
        if delivery is not None:
            delivery.write_attempts += 1
            due = now + self._limits.backoff_seconds(delivery.write_attempts, fact.jitter)
            heapq.heappush(self._rewrites, (due, next(self._sequence), delivery))

    def _committed(self, commands: list[Command]) -> None:
        assert self._committing is not None, "a commit ends once"
        committing, self._committing = self._committing, None
        self._commit_failures = 0
        for name, (position, intended) in committing.items():
            self._partitions[name].committed = position
            for delivery in intended:
                if delivery.batch not in self._deliveries:
                    continue
                delivery.recorded = True
                if delivery.items_pending:
                    self._dispatcher.add(delivery)
                else:
                    self._advance(delivery, commands)
            if self._revoking or self._partitions[name].halt_reason:
                self._give_up(name)

    def _commit_failed(self, fact: CommitFailed, now: float) -> None:
        assert self._committing is not None, "a commit ends once"
        committing, self._committing = self._committing, None
        for name, (_, intended) in committing.items():
            part = self._partitions[name]
            self._uncommitted[name] = None
            part.unintended.extendleft(reversed(intended))
            self._unintended_count += len(intended)
            if self._revoking or part.halt_reason:
                self._give_up(name)
        if fact.fenced:
            # Whoever has the partitions by now knows what was intended, and settles it.
            self._fenced = True
            self._revocation_started()
        self._commit_failures += 1
        self._commit_due = now + self._limits.backoff_seconds(self._commit_failures, fact.jitter)

    def _revocation_started(self) -> None:
        """Finish what may have been applied; the rest is quicker read again than sent."""
        self._revoking = True
        for name in self._partitions:
            self._discard(name)
            self._give_up(name)

    def _revoked(self) -> None:
        self._partitions.clear()
        self._open.clear()
        self._dispatcher.clear()
        self._deliveries.clear()
        self._rewrites.clear()
        self._buffered_bytes = 0
        self._paused.clear()
        self._uncommitted.clear()
        self._committing = None
        self._fenced = False
        self._unintended_count = 0
        self._commit_due = self._intents_due = 0.0
        self._commit_failures = 0

    def _drain(self, commands: list[Command]) -> None:
        self._draining = True
        self._cut_all(commands)

    def _tick(self, now: float, commands: list[Command]) -> None:
        while self._open and next(iter(self._open.values())) <= now:
            self._cut_oldest(commands)
        while self._rewrites and self._rewrites[0][0] <= now:
            delivery = heapq.heappop(self._rewrites)[2]
            if delivery.batch in self._deliveries:
                self._write(delivery, commands)

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
            span = Span(batch.first_offset, batch.next_offset)
            inherited = part.offsets.track(span)
            part.batches_bytes += batch.buffered_bytes
            delivery = Delivery(
                batch,
                span,
                recorded=inherited,
                items_pending=batch.items_count > 0,
                dead_letters_pending=bool(batch.dead_letters),
            )
            self._deliveries[batch] = delivery
            if inherited:
                self._take_inherited(part, delivery, commands)
                continue
            part.unintended.append(delivery)
            self._unintended_count += 1
            self._uncommitted[batch.partition] = None
            if delivery.dead_letters_pending:
                self._write(delivery, commands)

    def _take_inherited(
        self, part: _Partition, delivery: Delivery, commands: list[Command]
    ) -> None:
        """Pass what has a receipt; of the rest nobody knows whether it was sent."""
        span = delivery.span
        assert span.intended_at is not None
        delivery.in_doubt_since = span.intended_at - self._wall_offset
        receipt_offset = part.receipted.get((span.first_offset, span.next_offset))
        if receipt_offset is not None:
            part.offsets.receipt_found(receipt_offset)
            self._settle(delivery)
            return
        if delivery.dead_letters_pending:
            self._write(delivery, commands)
        if delivery.items_pending:
            self._dispatcher.add(delivery)

    def _send(self, delivery: Delivery, now: float, commands: list[Command]) -> None:
        """Send, or halt where a key that PacSpace may have forgotten would protect nothing."""
        since = delivery.in_doubt_since
        if since is None or now - since <= self._limits.idempotency_window_seconds:
            commands.append(SendBatch(delivery.batch, delivery.attempts))
            return
        self._dispatcher.forget(delivery)
        self._forget([delivery])
        reason = self._perhaps_forgotten(str(delivery.batch))
        self._halt(delivery.batch.partition, reason, commands)

    def _write(self, delivery: Delivery, commands: list[Command]) -> None:
        """Write the dead letters, or the receipt when everything else is done."""
        if delivery.dead_letters_pending:
            commands.append(WriteDeadLetters(delivery.batch))
        else:
            commands.append(WriteReceipt(delivery.batch, delivery.acknowledged, delivery.attempts))

    def _advance(self, delivery: Delivery, commands: list[Command]) -> None:
        if not delivery.done:
            return
        if not self._limits.receipts:
            self._settle(delivery)
        elif delivery.recorded:
            self._write(delivery, commands)

    def _settle(self, delivery: Delivery) -> None:
        batch = delivery.batch
        del self._deliveries[batch]
        part = self._partitions[batch.partition]
        part.batches_bytes -= batch.buffered_bytes
        self._buffered_bytes -= batch.buffered_bytes
        if part.offsets.settle(delivery.span):
            self._uncommitted[batch.partition] = None

    def _give_up(self, name: TopicPartition) -> None:
        """Forget what no attempt can have written."""
        part = self._partitions[name]
        unsent = [each for each in part.unintended if each.batch in self._deliveries]
        self._unintended_count -= len(part.unintended)
        part.unintended.clear()
        unsent += self._dispatcher.forget_unsent(name)
        self._forget(unsent)
        self._retract(part, unsent)

    def _retract(self, part: _Partition, given_up: Iterable[Delivery]) -> None:
        """Intend no more what certainly was not applied, so that nobody takes it for a doubt."""
        if part.offsets.retract({each.span for each in given_up if not each.in_doubt}):
            self._uncommitted[part.builder.partition] = None

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
        self._give_up(name)
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
            gathering = frozenset(
                name for name in self._paused if self._partitions[name].builder.frozen
            )
            if gathering and not self._deliveries:  # nor can they be cut before their boundary
                commands.append(ResumePartitions(gathering))
                self._paused -= gathering

    def _commit(self, now: float, commands: list[Command]) -> None:
        """Record positions and intents together, in one request at a time.

        A worker with enough to send does so at intervals; one that runs short, at once.
        """
        if self._committing is not None or not self._uncommitted:
            return
        if now < self._next_commit():
            return
        wall_seconds = int(now + self._wall_offset)
        self._committing = {}
        offsets: dict[TopicPartition, Commit] = {}
        for name in self._uncommitted:
            part = self._partitions[name]
            intended = self._intend(part, wall_seconds)
            position = part.offsets.position
            offsets[name] = Commit(position, encode(position, part.offsets.ledger()))
            self._committing[name] = (position, intended)
        self._uncommitted.clear()
        self._commit_due = now + self._limits.commit_interval_seconds
        self._intents_due = now + _INTENTS_SPACING_SECONDS
        commands.append(CommitOffsets(offsets))

    def _next_commit(self) -> float:
        """When the next commit may begin; one that fails is made again after its backoff."""
        if self._commit_failures:
            return self._commit_due
        if self._revoking or self._draining:
            return 0.0
        if self._unintended_count and self._dispatcher.runs_short:
            return min(self._commit_due, self._intents_due)
        return self._commit_due

    def _intend(self, part: _Partition, wall_seconds: int) -> list[Delivery]:
        """Take the batches that the next commit records, as many as its metadata has room for."""
        intended: list[Delivery] = []
        room = INTENTS_MAX - part.offsets.intended_count
        while part.unintended:
            span = part.unintended[0].span
            if span.intended_at is None:  # those of a commit that failed have their room already
                if room <= 0:
                    break
                room -= 1
                span.intended_at = wall_seconds
            intended.append(part.unintended.popleft())
            self._unintended_count -= 1
        return intended
