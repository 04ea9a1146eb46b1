"""What the core knows of one assigned partition; made by an assignment, gone with its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from ingester.core.batch import Batch, BatchBuilder
from ingester.core.coverage import Coverage
from ingester.core.deadletter import DeadLetterWindow
from ingester.core.dispatch import Delivery
from ingester.core.intent import Range
from ingester.core.offsets import OffsetTracker
from ingester.core.record import Record, TopicPartition


@dataclass(slots=True, eq=False)
class Partition:
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
    unintended: deque[Delivery] = field(default_factory=deque)
    """Cut and in no commit yet, in offset order; emptied by commits."""
    batches_bytes: int = 0
    """Bytes of all batches that are cut and not settled."""
    halt_reason: str | None = None
    """Set once, by whatever stopped the partition; ends with the assignment."""
    ends: bool = False
    """Set by most halts: what is not in doubt is given up, rather than sent."""

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

    @property
    def buffered_bytes(self) -> int:
        return self.batches_bytes + self.builder.buffered_bytes
