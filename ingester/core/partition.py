"""What the core knows of one assigned partition; made by an assignment, gone with its end.

It begins with what its former owners left: what they intended is formed as it was, and by what is
known of it sent, sent again, or only written down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import Self

import msgspec

from ingester.core.batch import Batch, BatchBuilder
from ingester.core.coverage import Coverage
from ingester.core.deadletter import DeadLetterWindow
from ingester.core.dispatch import Delivery
from ingester.core.event import Decode
from ingester.core.intent import Range
from ingester.core.messages import Limits, Start
from ingester.core.offsets import OffsetTracker, Span
from ingester.core.record import Record, TopicPartition


class PartitionState(msgspec.Struct, frozen=True):
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


class Partition(msgspec.Struct, eq=False):
    """One assignment of one partition."""

    builder: BatchBuilder
    coverage: Coverage
    offsets: OffsetTracker
    rejections: DeadLetterWindow
    """What the records of the cut batches were."""
    refusals: DeadLetterWindow
    """What PacSpace took and refused of the items that it was sent."""
    quiet_at: float
    """When no attempt of a former owner can arrive any more."""
    acknowledged: Collection[Range]
    """Inherited ranges whose items PacSpace has, as somebody found."""
    committed: int
    """What the group has: as the assignment found it, then as the last successful commit said."""
    resent: Collection[Range]
    """Inherited ranges that somebody decided to have sent again."""
    unintended: deque[Delivery] = msgspec.field(default_factory=deque)
    """Cut and in no commit yet, in offset order; emptied by commits."""
    batches_bytes: int = 0
    """Bytes of all batches that are cut and not settled."""
    halt_reason: str | None = None
    """Set once, by whatever stopped the partition; ends with the assignment."""
    ends: bool = False
    """Set by most halts: what is not in doubt is given up, rather than sent."""

    @classmethod
    def begin(
        cls,
        name: TopicPartition,
        epoch: int,
        start: Start,
        *,
        limits: Limits,
        decode: Decode,
        namespace: str,
        now: float,
    ) -> Self:
        """Begin where `start` says; what is settled of the intents is passed."""
        intents = start.ledger.intents
        part = cls(
            BatchBuilder(
                name,
                epoch,
                limits.batch,
                decode,
                namespace,
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
        return part

    @property
    def name(self) -> TopicPartition:
        return self.builder.partition

    def extend(self, records: Sequence[Record], cut_bytes_max: int) -> list[Batch]:
        """Take records in offset order; return the batches that are full, or end at a proof."""
        if not self.coverage:
            return self.builder.extend(records, cut_bytes_max)
        batches: list[Batch] = []
        *ended, last = self.coverage.sift(records)
        for run in ended:
            batches += self.builder.extend(run, cut_bytes_max)
            if self.builder.may_be_cut:
                batches.append(self.builder.cut())
        return batches + self.builder.extend(last, cut_bytes_max)

    def deliver(self, batch: Batch, now: float, wall_offset: float) -> Delivery:
        """Return the delivery of what was cut; `wall_offset` makes `now` seconds since the epoch.

        It is `recorded` where its intent is, and may be sent then.
        """
        inherited = self.offsets.inherited.get(batch.range)
        acknowledged = batch.range in self.acknowledged
        delivery = Delivery(
            batch,
            inherited or Span(batch.first_offset, batch.next_offset, batch.intent_digest),
            recorded=inherited is not None,
            items_pending=batch.items_count > 0 and not acknowledged,
            dead_letters_pending=bool(batch.dead_letters),
            letters=batch.dead_letters,
            in_doubt_since=now if acknowledged else None,
        )
        if inherited is None:
            self.offsets.track(delivery.span)
        elif delivery.items_pending:
            self._deliver_again(delivery, now, wall_offset)
        return delivery

    def _deliver_again(self, delivery: Delivery, now: float, wall_offset: float) -> None:
        """Nobody knows whether it was sent; by a decision it is once, and intended anew."""
        span = delivery.span
        assert span.intended_at is not None, "what is inherited was intended"
        delivery.quiet_at = self.quiet_at
        if span.range in self.resent:
            delivery.in_doubt_since = now
            delivery.recorded = False
            span.intended_at = max(span.intended_at + 1, int(now + wall_offset))
        else:
            delivery.in_doubt_since = span.intended_at - wall_offset

    def state(self, write_refused: str | None) -> PartitionState:
        """Say where it stands; why a topic refuses what is its own, is known elsewhere."""
        return PartitionState(
            self.committed,
            self.offsets.receipts_offset,
            self.offsets.unsettled_count,
            self.buffered_bytes,
            self.halt_reason,
            write_refused,
        )

    @property
    def buffered_bytes(self) -> int:
        return self.batches_bytes + self.builder.buffered_bytes
