"""What the core knows of one assigned partition; made by an assignment, gone with its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from ingester.core.batch import BatchBuilder
from ingester.core.deadletter import DeadLetterWindow
from ingester.core.dispatch import Delivery
from ingester.core.intent import Range
from ingester.core.offsets import OffsetTracker
from ingester.core.record import TopicPartition


@dataclass(slots=True, eq=False)
class Partition:
    """One assignment of one partition."""

    builder: BatchBuilder
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

    @property
    def buffered_bytes(self) -> int:
        return self.batches_bytes + self.builder.buffered_bytes
