"""Knows which offset of one partition may be committed, and what is intended above it.

Spans are tracked in the order of the log and settled in any order. Offsets between two spans hold
no records (compaction, transaction markers, aborted records), so order alone decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

import msgspec

from ingester.core.intent import Intent, Ledger, Range


class Span(msgspec.Struct, eq=False):
    """The range `[first_offset, next_offset)` of one batch, from its cut until it is passed."""

    first_offset: int
    next_offset: int
    digest: int
    intended_at: int | None = None
    """Seconds since the epoch; set by the commit that first records it, None before."""
    receipts_offset: int = 0
    """Its receipt, if it has one, lies nowhere below; set when it is tracked."""
    settled: bool = False
    not_applied: bool = False
    """Set when its batch was given up, and no attempt at it can have been applied."""

    @property
    def range(self) -> Range:
        return (self.first_offset, self.next_offset)


class OffsetTracker:
    """`track` each span once in order, `settle` it once; `position` only ever grows.

    Intended are first the inherited spans, then a beginning of the others: never one after a gap.
    """

    def __init__(
        self,
        position: int,
        receipts_offset: int = 0,
        inherited: Iterable[Intent] = (),
        settled: Iterable[tuple[int, int]] = (),
    ) -> None:
        self.position = position  # the offset that may be committed: everything below is settled
        self._receipts_offset = receipts_offset  # the receipts' partition reaches at least so far
        self._spans: deque[Span] = deque()  # those above the position, ascending
        for each in inherited:
            self._append(
                Span(
                    each.first_offset,
                    each.next_offset,
                    each.digest,
                    intended_at=each.intended_at,
                    receipts_offset=receipts_offset,
                )
            )
        self.inherited = {each.range: each for each in self._spans}
        # What former owners intended; they alone are settled before they are read.
        self._settled: list[tuple[int, int]] = []
        # Ends of what is settled beyond, descending, and the first of the receipts of it and of
        # all that ends behind it: whoever begins below has to read from there.
        for next_offset, receipt_offset in sorted(settled, reverse=True):
            lowest = self._settled[-1][1] if self._settled else receipt_offset
            self._settled.append((next_offset, min(lowest, receipt_offset)))

    def track(self, span: Span) -> None:
        """Add a span, which follows all that are tracked."""
        span.receipts_offset = self._receipts_offset
        self._append(span)

    def _append(self, span: Span) -> None:
        above = self._spans[-1].next_offset if self._spans else self.position
        assert span.first_offset >= above, "spans must not overlap"
        assert span.next_offset > span.first_offset, "a span holds at least one record"
        self._spans.append(span)

    def receipt_found(self, offset: int) -> None:
        """Take note of how far the receipts reach; spans tracked from now on have theirs above."""
        self._receipts_offset = max(self._receipts_offset, offset + 1)

    def settle(self, span: Span) -> bool:
        """Mark a span as acknowledged or dead-lettered; return whether the position moved."""
        assert not span.settled, "a span is settled once"
        assert span.first_offset >= self.position, "a span that was passed is not settled again"
        span.settled = True
        before = self.position
        while self._spans and self._spans[0].settled:
            self.position = self._spans.popleft().next_offset
        return self.position != before

    def pass_to(self, next_offset: int) -> bool:
        """Pass what holds no records, if nothing is unsettled; return whether the position moved.

        Every record below `next_offset` has to be tracked, or have been.
        """
        if self._spans or next_offset <= self.position:
            return False
        self.position = next_offset
        return True

    def split(self, span: Span, halves: tuple[Span, Span], intended_at: int) -> None:
        """Intend two halves in place of an intended span, from the next commit on."""
        assert span.intended_at is not None, "what was never intended was never refused"
        for half in halves:
            half.intended_at = intended_at
            half.receipts_offset = span.receipts_offset
        index = self._spans.index(span)
        del self._spans[index]
        self._spans.insert(index, halves[1])
        self._spans.insert(index, halves[0])

    def retract(self, spans: Collection[Span]) -> bool:
        """Intend no more what was not applied; return whether the next commit has less to say.

        Only from the end: what is intended behind them has to be formed behind them again.
        """
        for span in spans:
            span.not_applied = True
        retracted = False
        for span in reversed(self._spans):
            if span.intended_at is not None:
                if not span.not_applied:
                    break
                span.intended_at = None
                retracted = True
        return retracted

    def is_next(self, span: Span) -> bool:
        """Whether the position waits for this span before all others."""
        return bool(self._spans) and self._spans[0] is span

    @property
    def unsettled_count(self) -> int:
        """Spans that a commit has to wait for, those settled out of order included."""
        return len(self._spans)

    @property
    def intended_count(self) -> int:
        """Spans that the next commit has to record."""
        return sum(span.intended_at is not None for span in self._spans)

    @property
    def receipts_offset(self) -> int:
        """No note about anything above the position lies before it, in the receipts' partition."""
        # In the order of the spans the lower bounds of their receipts ascend.
        lowest = self._spans[0].receipts_offset if self._spans else self._receipts_offset
        settled = self._first_receipt_of_what_is_settled()
        return lowest if settled is None else min(lowest, settled)

    def _first_receipt_of_what_is_settled(self) -> int | None:
        while self._settled and self._settled[-1][0] <= self.position:
            self._settled.pop()
        return self._settled[-1][1] if self._settled else None

    def ledger(self) -> Ledger:
        """What a commit of the position has to say of all that is above it."""
        intents = [
            Intent(span.first_offset, span.next_offset, span.intended_at, span.digest)
            for span in self._spans
            if span.intended_at is not None
        ]
        return Ledger(self.receipts_offset, intents)
