"""Knows which offset of one partition may be committed, and what is intended above it.

Spans are tracked in the order of the log and settled in any order. Offsets between two spans hold
no records (compaction, transaction markers, aborted records), so order alone decides.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ingester.core.intent import Intent, Ledger


@dataclass(slots=True, eq=False)
class Span:
    """The range `[first_offset, next_offset)` of one batch, from its cut until it is passed."""

    first_offset: int
    next_offset: int
    intended_at: int | None = None
    """Seconds since the epoch; set by the commit that first records it, None before."""
    receipt_offset: int | None = None
    """Where its receipt is in the receipts topic's partition; None before it is written."""
    settled: bool = False


@dataclass(slots=True)
class OffsetTracker:
    """`track` each span once in order, `settle` it once; `position` only ever grows."""

    position: int
    """The offset that may be committed: everything below is settled."""
    receipts_offset: int = 0
    """Below it lie only receipts of spans below the position."""
    _spans: deque[Span] = field(default_factory=deque)
    """Those above the position, ascending."""

    def track(self, span: Span) -> None:
        """Add a span, which follows all that are tracked."""
        above = self._spans[-1].next_offset if self._spans else self.position
        assert span.first_offset >= above, "spans must not overlap"
        assert span.next_offset > span.first_offset, "a span holds at least one record"
        self._spans.append(span)

    def settle(self, span: Span) -> bool:
        """Mark a span as acknowledged or dead-lettered; return whether the position moved."""
        assert not span.settled, "a span is settled once"
        assert span.first_offset >= self.position, "a span that was passed is not settled again"
        span.settled = True
        before = self.position
        while self._spans and self._spans[0].settled:
            passed = self._spans.popleft()
            self.position = passed.next_offset
            if passed.receipt_offset is not None:
                self.receipts_offset = max(self.receipts_offset, passed.receipt_offset + 1)
        return self.position != before

    @property
    def unsettled_count(self) -> int:
        """Spans that a commit has to wait for, those settled out of order included."""
        return len(self._spans)

    def ledger(self) -> Ledger:
        """What a commit of the position has to say of the spans above it.

        Spans are intended in their order, so the first that is not ends the list.
        """
        intents: list[Intent] = []
        receipts_offset: int | None = None
        for span in self._spans:
            if span.intended_at is None:
                break
            intents.append(Intent(span.first_offset, span.next_offset, span.intended_at))
            if span.receipt_offset is not None:
                receipts_offset = min(span.receipt_offset, receipts_offset or span.receipt_offset)
        if receipts_offset is None:
            receipts_offset = self.receipts_offset
        return Ledger(receipts_offset, intents)

    @property
    def intended_count(self) -> int:
        """Spans that the next commit has to record."""
        return len(self.ledger().intents)
