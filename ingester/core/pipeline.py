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
from dataclasses import dataclass
from itertools import count
from typing import assert_never

from ingester.core.batch import Batch, BatchBuilder
from ingester.core.committer import Committer
from ingester.core.coverage import Coverage, Proof
from ingester.core.deadletter import DeadLetterWindow
from ingester.core.deliveries import Deliveries
from ingester.core.delivery import Acknowledged, Blocked, InDoubt, Refused
from ingester.core.dispatch import Delivery, Dispatcher, Hold
from ingester.core.event import Decode
from ingester.core.messages import (
    AttemptEnded,
    Command,
    CommitFailed,
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
    ReadFailed,
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
from ingester.core.offsets import OffsetTracker, Span
from ingester.core.partition import Partition
from ingester.core.record import TopicPartition
from ingester.core.refusals import BodyLimit, Refusals

_LISTED_MAX = 5  # ranges in a sentence; `ingester resolve` shows all of them


@dataclass(frozen=True, slots=True)
class PartitionState:
    """Where one assigned partition stands."""

    committed: int
    """The next offset that the group has; where it begins, as long as it has none."""
    receipts_offset: int
    """No note about anything above it lies before this, in the receipts' partition."""
    unsettled_batches: int
    buffered_bytes: int
    halt_reason: str | None
    write_refused: str | None
    """Why a topic takes nothing of it until somebody changes something; it is tried again."""


class Pipeline:
    """Owns every partition assigned to this worker; called once for each fact, never at once."""

    def __init__(self, limits: Limits, decode: Decode, namespace: str = "") -> None:
        self._limits = limits
        self._decode = decode
        self._namespace = namespace  # of the keys, for what is to be counted once more
        self._epoch = 0
        self._partitions: dict[TopicPartition, Partition] = {}
        self._open: OrderedDict[TopicPartition, float] = OrderedDict()
        # When the linger of each open batch ends. The linger is one for all: oldest first.
        self._dispatcher = Dispatcher(limits)
        self._committer = Committer(limits)
        self._body_limit = BodyLimit(limits.batch.body_bytes_max)
        self._deliveries = Deliveries(self._partitions)
        self._refusals = Refusals(limits, decode, namespace, self._deliveries, self._committer)
        self._rewrites: list[tuple[float, int, Delivery]] = []
        # Those with something to be written or read again that failed: a heap by due time.
        self._sequence = count()  # breaks ties in the heap
        self._open_bytes = 0  # of all open batches
        self._paused: set[TopicPartition] = set()
        self._wall_offset = 0.0  # what to add to `now` for seconds since the epoch
        self._fenced = False  # from a commit that says so to the end of the assignment
        self._revoking = False  # from the start of a revocation to the next assignment
        self._draining = False  # from the request on, for good

    # -- what the shell asks ------------------------------------------------------------------

    @property
    def drained(self) -> bool:
        """Whether waiting longer would settle or commit nothing more."""
        if self._fenced:  # a receipt that is still written spares the next owner a doubt
            unreceipted = any(each.recorded and not each.items_pending for each in self._deliveries)
            return not self._dispatcher.in_flight and not unreceipted
        return not self._open and not self._deliveries and self._committer.idle

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
        return self._deliveries.bytes + self._open_bytes

    @property
    def blocked(self) -> Blocked | None:
        """Why PacSpace refuses everything, if it does; single probes go on."""
        return self._dispatcher.blocked

    @property
    def hold(self) -> Hold | None:
        """Until when nothing is sent to PacSpace, and why; it may have passed."""
        return self._dispatcher.hold

    @property
    def partitions(self) -> Mapping[TopicPartition, PartitionState]:
        """Where each assigned partition stands, for status pages."""
        refused = {
            each.batch.partition: each.write_refused
            for each in self._deliveries
            if each.write_refused is not None
        }
        return {
            name: PartitionState(
                part.committed,
                part.offsets.receipts_offset,
                part.offsets.unsettled_count,
                part.buffered_bytes,
                part.halt_reason,
                refused.get(name),
            )
            for name, part in self._partitions.items()
        }

    def may_be_reopened(self, name: TopicPartition) -> bool:
        """Whether a partition is halted, and nothing of it is under way any more."""
        part = self._partitions.get(name)
        if part is None or not part.halt_reason or self._revoking or self._draining:
            return False
        at_rest = all(each.batch.partition != name for each in self._deliveries)
        return at_rest and not self._committer.concerns(part)

    def wake_at(self) -> float | None:
        """Return when a `Tick` is next needed, or None when only a fact can change anything."""
        if self._fenced:
            return self._rewrites[0][0] if self._rewrites else None
        times = [self._dispatcher.wake_at(), self._next_commit()]
        if self._open:
            times.append(next(iter(self._open.values())))
        if self._rewrites:
            times.append(self._rewrites[0][0])
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
            case RangeRead():
                self._range_read(fact, commands)
            case OffsetsCommitted():
                self._committed(commands)
            case CommitFailed():
                self._commit_failed(fact, now)
            case DeadLettersWritten():
                self._dead_letters_written(fact.batch, commands)
            case ReceiptWritten():
                self._receipt_written(fact)
            case DeadLettersNotWritten() | ReceiptNotWritten() | RangeNotRead():
                self._not_done(fact, now)
            case PositionsReached():
                self._positions_reached(fact)
            case ReadFailed():
                self._read_failed(fact, now, commands)
            case PartitionsAssigned():
                self._assigned(fact, now, commands)
            case PartitionReopened():
                self._reopened(fact, now, commands)
            case RevocationStarted():
                self._revocation_started()
            case PartitionsRevoked():
                self._revoked()
            case DrainRequested():
                self._draining = True
                self._cut_all(now, commands)
            case Tick():
                self._tick(now, commands)
            case _:
                assert_never(fact)
        if self._refusals.waiting:
            self._replace_refused(now, commands)
        if not self._fenced:
            for delivery in self._dispatcher.start(now):
                self._send(delivery, now, commands)
        self._resume(now, commands)  # after whatever makes room, before the commit of what it cuts
        if not self._fenced:
            self._commit(now, commands)
        return commands

    def _assigned(self, fact: PartitionsAssigned, now: float, commands: list[Command]) -> None:
        assert not self._partitions, "an assignment follows the revocation of everything"
        self._epoch += 1
        self._revoking = False
        self._wall_offset = fact.wall_seconds - now
        for name, start in fact.partitions.items():
            self._begin(name, start, now, commands)

    def _reopened(self, fact: PartitionReopened, now: float, commands: list[Command]) -> None:
        if not self.may_be_reopened(fact.partition):
            return
        self._epoch += 1  # what is still to come of the time before is nobody's
        self._wall_offset = fact.wall_seconds - now
        commands.append(ResumePartitions(frozenset({fact.partition})))
        self._begin(fact.partition, fact.start, now, commands)

    def _begin(
        self, name: TopicPartition, start: Start, now: float, commands: list[Command]
    ) -> None:
        intents = start.ledger.intents
        limits = self._limits
        part = self._partitions[name] = Partition(
            BatchBuilder(
                name,
                self._epoch,
                limits.batch,
                self._decode,
                self._namespace,
                frozen=deque(intents),
                passed=start.settled.keys(),
            ),
            Coverage(name, start.proofs),
            OffsetTracker(
                start.offset,
                start.ledger.receipts_offset,
                intents,
                settled=[(each.next_offset, each.receipt_offset) for each in start.proofs],
            ),
            DeadLetterWindow(limits.dead_letters),
            DeadLetterWindow(limits.dead_letters),
            quiet_at=now + limits.session_timeout_seconds + limits.request_timeout_seconds,
            acknowledged=start.acknowledged,
            committed=start.offset if start.committed is None else start.committed,
            resent=start.resent,
        )
        for range_, receipt_offset in start.settled.items():
            part.offsets.receipt_found(receipt_offset)
            part.offsets.settle(part.offsets.inherited[range_])
        reason = start.halt_reason or self._not_to_be_sent_again(start, now + self._wall_offset)
        if reason is not None:
            self._halt(name, reason, commands)
        elif start.committed is not None:
            self._committer.changed(part)

    def _not_to_be_sent_again(self, start: Start, wall_seconds: float) -> str | None:
        """Say why what a former owner left in doubt has to be judged by somebody, if it has."""
        in_doubt = [
            each
            for each in start.ledger.intents
            if not any(
                each.range in ranges for ranges in (start.settled, start.acknowledged, start.resent)
            )
        ]
        if not in_doubt:
            return None
        ranges = ", ".join(map(str, in_doubt[:_LISTED_MAX]))
        if len(in_doubt) > _LISTED_MAX:
            ranges += f" and {len(in_doubt) - _LISTED_MAX} more"
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
        cut_bytes_max = self._body_limit.bytes_max(now)
        for name, records in fact.records.items():
            part = self._partitions.get(name)
            if part is None or part.halt_reason or not records:
                continue
            before = part.builder.buffered_bytes
            batches = part.extend(records, cut_bytes_max)
            self._open_bytes += part.builder.buffered_bytes - before
            if batches:
                self._open.pop(name, None)
                self._take(part, batches, now, commands)
            if part.builder.may_be_cut:
                self._open.setdefault(name, now + self._limits.batch.linger_seconds)
            if part.builder.lost is not None:
                lost = part.builder.lost
                reason = (
                    f"in doubt: {lost} was sent by a former"
                    " owner, and cannot be formed again as it was: the log does not hold all of its"
                    " records any more, or INGESTER_UNKNOWN_MEMBERS or INGESTER_BODY_BYTES_MAX"
                    " were changed. To go on without it:"
                    f" ingester resolve {name}:{lost.first_offset} --as skipped"
                )
                self._halt(name, reason, commands)
            if part.coverage.mistaken is not None:
                self._halt(name, _of_others(name, part.coverage.mistaken), commands)
        self._pause(fact.records, commands)

    def _positions_reached(self, fact: PositionsReached) -> None:
        """Where all is settled, let the committed offset follow past markers and gaps."""
        if self._revoking or self._draining:  # what is fetched meanwhile is passed over
            return
        for name, position in fact.positions.items():
            part = self._partitions.get(name)
            if part is None or part.halt_reason or name in self._open:
                continue
            if part.coverage.is_undecided:
                continue
            if part.offsets.pass_to(position):
                self._committer.changed(part)

    def _read_failed(self, fact: ReadFailed, now: float, commands: list[Command]) -> None:
        """Halt behind what was read: that is settled, and the committed offset says where it is."""
        name = fact.partition
        part = self._partitions.get(name)
        if part is None or part.halt_reason:
            return
        if name in self._open:
            self._cut(name, now, commands)
        self._halt(name, fact.reason, commands, ends=False)
        self._committer.changed(part)  # be it still where it begins: a decision needs a place

    def _attempt_ended(self, fact: AttemptEnded, now: float, commands: list[Command]) -> None:
        delivery = self._deliveries.of(fact.batch)
        if delivery is None:
            return
        self._dispatcher.ended(delivery, fact, now)
        if isinstance(fact.outcome, Acknowledged):
            delivery.items_pending = False
            delivery.acknowledged = fact.outcome
            part = self._partitions[fact.batch.partition]
            part.refusals.add(now, fact.batch.items_count, 0)
            self._advance(delivery, commands)
        elif isinstance(fact.outcome, InDoubt) and self._limits.in_doubt == "halt":
            reason = (
                f"{fact.batch} is in doubt, and INGESTER_IN_DOUBT is halt: {fact.outcome.reason}"
            )
            self._dispatcher.forget(delivery)
            self._deliveries.forget([delivery])
            self._halt(fact.batch.partition, reason, commands)
        elif isinstance(fact.outcome, Refused):
            self._attempt_refused(delivery, fact.outcome, now, commands)
        elif self._revoking or self._partitions[fact.batch.partition].ends:
            self._give_up(fact.batch.partition)

    def _attempt_refused(
        self, delivery: Delivery, refused: Refused, now: float, commands: list[Command]
    ) -> None:
        """Take a refusal for the last word, or for none where that may count something twice."""
        batch = delivery.batch
        part = self._partitions[batch.partition]
        doubtful = delivery.in_doubt and not refused.is_api
        if refused.meaning == "conflict" or doubtful:
            # It stays intended: something was, or may have been, applied under its key.
            self._deliveries.forget([delivery])
            detail = (
                "after an attempt whose end is not known, and not by PacSpace itself"
                if doubtful
                else "the key was used before with another body"
            )
            self._halt(part.name, f"{batch} is in doubt ({detail}): {refused.reason}", commands)
            return
        if now < delivery.quiet_at:
            self._dispatcher.put_off(delivery, delivery.quiet_at)
            return
        delivery.in_doubt_since = None  # a key is looked up before a body is judged
        delivery.refused = refused
        self._refusals.add(part, delivery)
        if self._revoking or part.ends:
            self._give_up(part.name)
            return
        if refused.meaning == "too_large" and batch.items_count > 1:
            self._body_limit.refused(len(batch.body), now)
        if not delivery.records and not delivery.dead_letters_pending:
            self._work_on(delivery, commands)

    def _range_read(self, fact: RangeRead, commands: list[Command]) -> None:
        delivery = self._deliveries.of(fact.batch)
        if delivery is None:
            return
        if self._refusals.read(delivery, fact.records):
            return
        reason = (
            f"{fact.batch} was refused, and the log does not hold all of its records any more, or"
            " they cannot be read, so that the one at fault cannot be found"
        )
        self._halt(fact.batch.partition, reason, commands)

    def _dead_letters_written(self, batch: Batch, commands: list[Command]) -> None:
        delivery = self._deliveries.of(batch)
        if delivery is not None:
            delivery.dead_letters_pending = False
            delivery.write_refused = None
            if delivery.refused is not None:
                self._work_on(delivery, commands)
            else:
                self._advance(delivery, commands)

    def _receipt_written(self, fact: ReceiptWritten) -> None:
        delivery = self._deliveries.of(fact.batch)
        if delivery is not None:
            self._partitions[fact.batch.partition].offsets.receipt_found(fact.offset)
            self._settle(delivery)

    def _not_done(
        self, fact: DeadLettersNotWritten | ReceiptNotWritten | RangeNotRead, now: float
    ) -> None:
        delivery = self._deliveries.of(fact.batch)
        if delivery is not None:
            delivery.topic_attempts += 1
            delivery.write_refused = None if isinstance(fact, RangeNotRead) else fact.refused
            due = now + self._limits.backoff_seconds(delivery.topic_attempts, fact.jitter)
            heapq.heappush(self._rewrites, (due, next(self._sequence), delivery))

    def _committed(self, commands: list[Command]) -> None:
        for part, intended in self._committer.succeeded():
            for delivery in intended:
                if delivery not in self._deliveries:
                    continue
                delivery.recorded = True
                if delivery.items_pending:
                    self._dispatcher.add(delivery)
                else:
                    self._advance(delivery, commands)
            if self._revoking or part.ends:
                self._give_up(part.name)

    def _commit_failed(self, fact: CommitFailed, now: float) -> None:
        for part in self._committer.failed(now, fact.jitter):
            if self._revoking or part.ends:
                self._give_up(part.name)
        if fact.fenced:
            # Whoever has the partitions by now knows what was intended, and settles it.
            self._fenced = True
            self._revocation_started()

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
        self._committer.clear()
        self._deliveries.clear()
        self._rewrites.clear()
        self._refusals.clear()
        self._open_bytes = 0
        self._paused.clear()
        self._fenced = False

    def _tick(self, now: float, commands: list[Command]) -> None:
        while self._open and next(iter(self._open.values())) <= now:
            self._cut(next(iter(self._open)), now, commands)
        while self._rewrites and self._rewrites[0][0] <= now:
            delivery = heapq.heappop(self._rewrites)[2]
            if delivery in self._deliveries:
                self._work_on(delivery, commands)

    # -- steps --------------------------------------------------------------------------------

    def _cut_all(self, now: float, commands: list[Command]) -> None:
        while self._open:
            self._cut(next(iter(self._open)), now, commands)

    def _cut(self, name: TopicPartition, now: float, commands: list[Command]) -> None:
        del self._open[name]
        part = self._partitions[name]
        self._open_bytes -= part.builder.buffered_bytes
        self._take(part, [part.builder.cut()], now, commands)

    def _discard(self, name: TopicPartition) -> None:
        """Forget the open batch of a partition."""
        builder = self._partitions[name].builder
        self._open.pop(name, None)
        self._open_bytes -= builder.buffered_bytes
        builder.discard()

    def _take(
        self, part: Partition, batches: list[Batch], now: float, commands: list[Command]
    ) -> None:
        """Take what was cut; what passes the dead-letter limit is the last, so that it goes on."""
        for batch in batches:
            self._take_one(part, batch, now, commands)
            letters = batch.dead_letters
            too_many = part.rejections.add(now, batch.items_count + len(letters), len(letters))
            if too_many:
                last = letters[-1].rejection.detail
                self._halt(part.name, f"{too_many}; the last one: {last}", commands, ends=False)
                return

    def _take_one(self, part: Partition, batch: Batch, now: float, commands: list[Command]) -> None:
        letters = batch.dead_letters
        range_ = (batch.first_offset, batch.next_offset)
        span = part.offsets.inherited.get(range_)
        delivery = Delivery(
            batch,
            span or Span(batch.first_offset, batch.next_offset, batch.intent_digest),
            recorded=span is not None,
            items_pending=batch.items_count > 0 and range_ not in part.acknowledged,
            dead_letters_pending=bool(letters),
            letters=letters,
            in_doubt_since=now if range_ in part.acknowledged else None,
        )
        self._deliveries.add(delivery)
        if span is None:
            part.offsets.track(delivery.span)
            self._committer.intend(part, delivery)
        if letters:
            self._work_on(delivery, commands)
        if span is not None and delivery.items_pending:
            self._send_again(part, delivery, now)
        elif span is not None:
            self._advance(delivery, commands)

    def _send_again(self, part: Partition, delivery: Delivery, now: float) -> None:
        """Send what nobody knows whether it was sent; by a decision, once and intended anew."""
        span = delivery.span
        assert span.intended_at is not None, "what is inherited was intended"
        delivery.quiet_at = part.quiet_at
        if (span.first_offset, span.next_offset) in part.resent:
            delivery.in_doubt_since = now
            delivery.recorded = False
            span.intended_at = max(span.intended_at + 1, int(now + self._wall_offset))
            self._committer.intend(part, delivery)
        else:
            delivery.in_doubt_since = span.intended_at - self._wall_offset
            self._dispatcher.add(delivery)

    def _send(self, delivery: Delivery, now: float, commands: list[Command]) -> None:
        """Send, or halt where a key that PacSpace may have forgotten would protect nothing."""
        since = delivery.in_doubt_since
        if since is None or now - since <= self._limits.idempotency_window_seconds:
            commands.append(SendBatch(delivery.batch, delivery.attempts))
            return
        self._dispatcher.forget(delivery)
        self._deliveries.forget([delivery])
        reason = self._perhaps_forgotten(str(delivery.batch))
        self._halt(delivery.batch.partition, reason, commands)

    def _work_on(self, delivery: Delivery, commands: list[Command]) -> None:
        """Do what is next in the topics: dead letters, a look at what was refused, the receipt."""
        if delivery.dead_letters_pending:
            commands.append(WriteDeadLetters(delivery.batch, delivery.letters))
        elif delivery.refused is not None:
            commands.append(ReadRange(delivery.batch))
        else:
            commands.append(
                WriteReceipt(
                    delivery.batch,
                    delivery.acknowledged,
                    delivery.attempts,
                    in_doubt=delivery.in_doubt,
                )
            )

    def _advance(self, delivery: Delivery, commands: list[Command]) -> None:
        if not delivery.done:
            return
        if not self._limits.receipts:
            self._settle(delivery)
        elif delivery.recorded:
            self._work_on(delivery, commands)

    def _settle(self, delivery: Delivery) -> None:
        part = self._partitions[delivery.batch.partition]
        self._deliveries.forget([delivery])
        if part.offsets.settle(delivery.span):
            self._committer.changed(part)

    def _replace_refused(self, now: float, commands: list[Command]) -> None:
        for each in self._refusals.replace(now, int(now + self._wall_offset)):
            if isinstance(each, Delivery):
                self._work_on(each, commands)
            else:
                part, too_many = each
                self._halt(part.name, too_many, commands)

    def _give_up(self, name: TopicPartition) -> None:
        """Forget what no attempt can have written."""
        part = self._partitions[name]
        given_up = (
            *self._committer.give_up(part),
            *self._dispatcher.forget_unsent(name),
            *self._refusals.give_up(part),
        )
        unsent = [each for each in given_up if each in self._deliveries]
        self._deliveries.forget(unsent)
        self._retract(part, unsent)

    def _retract(self, part: Partition, given_up: Iterable[Delivery]) -> None:
        """Intend no more what certainly was not applied, so that nobody takes it for a doubt."""
        if part.offsets.retract({each.span for each in given_up if not each.in_doubt}):
            self._committer.changed(part)

    def _halt(
        self, name: TopicPartition, reason: str, commands: list[Command], *, ends: bool = True
    ) -> None:
        """Take no more of a partition; unless it `ends`, what is cut is still settled."""
        part = self._partitions.get(name)
        if part is None:
            return
        self._discard(name)
        if ends and not part.ends:
            part.ends = True
            self._give_up(name)
        if part.halt_reason:
            return
        part.halt_reason = reason
        self._paused.discard(name)  # it stays paused, and must not be resumed
        commands.append(PausePartitions(frozenset({name})))
        commands.append(HaltPartition(name, reason))

    def _pause(self, names: Iterable[TopicPartition], commands: list[Command]) -> None:
        """Past the bound, stop the partitions that hold more than their share of it.

        Those below their share go on, so that a heavy partition does not starve the light ones;
        together they stay below twice the bound, plus one fetch each.
        """
        bound = self._limits.buffer_bytes_max
        if self.buffered_bytes < bound:
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

    def _resume(self, now: float, commands: list[Command]) -> None:
        """Below half of the bound go on with all; half, so that pausing does not flutter."""
        if self._paused and self.buffered_bytes <= self._limits.buffer_bytes_max // 2:
            commands.append(ResumePartitions(frozenset(self._paused)))
            self._paused.clear()
        if self._paused and not self._deliveries:
            self._cut_all(now, commands)  # nothing else makes room: their linger would be a stall
            gathering = frozenset(
                name for name in self._paused if self._partitions[name].builder.frozen
            )
            if gathering and not self._deliveries:  # nor can they be cut before their boundary
                commands.append(ResumePartitions(gathering))
                self._paused -= gathering

    def _commit(self, now: float, commands: list[Command]) -> None:
        due = self._next_commit()
        if due is not None and now >= due:
            commands.append(self._committer.begin(now, int(now + self._wall_offset)))

    def _next_commit(self) -> float | None:
        return self._committer.next_at(
            runs_short=self._dispatcher.runs_short, hurried=self._revoking or self._draining
        )


def _of_others(name: TopicPartition, proof: Proof) -> str:
    return (
        f"the receipts say that {name}{proof} is settled, and the log holds other records there"
        " than those that were: the topic was made anew. Give it another receipts topic"
        " (INGESTER_RECEIPTS_TOPIC), or delete the old one once nobody needs it"
    )
