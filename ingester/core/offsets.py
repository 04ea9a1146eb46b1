"""Knows which offset of one partition may be committed: all below it is settled.

Spans are tracked in the order of the log and settled in any order. Offsets between two spans hold
no records (compaction, transaction markers, aborted records), so order alone decides.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class OffsetTracker:
    """`track` each span once in order, `settle` it once; `committable` only ever grows."""

    _tracked: deque[int] = field(default_factory=deque)
    """next_offset of each span not yet passed by `committable`, ascending."""
    _settled: set[int] = field(default_factory=set)
    """next_offset of settled spans behind one that is not; emptied as `committable` passes them."""
    _last: int = -1
    committable: int | None = None
    """The offset that may be committed; None while nothing is settled."""

    def track(self, first_offset: int, next_offset: int) -> None:
        """Add the span `[first_offset, next_offset)`, which follows all that are tracked."""
        assert first_offset >= self._last, "spans must not overlap"
        assert next_offset > first_offset, "a span holds at least one record"
        self._last = next_offset
        self._tracked.append(next_offset)

    def settle(self, next_offset: int) -> None:
        """Mark the span that ends at `next_offset` as acknowledged or dead-lettered."""
        assert self._tracked, "what is settled is tracked before"
        assert next_offset >= self._tracked[0], "a span that was passed is not settled again"
        assert next_offset not in self._settled, "a span is settled once"
        self._settled.add(next_offset)
        while self._tracked and self._tracked[0] in self._settled:
            self.committable = self._tracked.popleft()
            self._settled.remove(self.committable)

    @property
    def unsettled_count(self) -> int:
        """Spans that a commit has to wait for, those settled out of order included."""
        return len(self._tracked)
