"""Which offset may be committed and what is intended above it, against lists of everything."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ingester.core.intent import Intent
from ingester.core.offsets import OffsetTracker, Span


class Tracking(RuleBasedStateMachine):
    """The model keeps every span for ever, and every receipt of a range that was ever begun."""

    @initialize(
        position=st.integers(0, 2**63),
        receipts_offset=st.integers(0, 2**40),
        inherited=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), max_size=4),
    )
    def begin(self, position: int, receipts_offset: int, inherited: list[tuple[int, int]]) -> None:
        self.start = self.end = position
        self.inherited: list[Intent] = []
        at = position
        for gap, length in inherited:
            self.inherited.append(Intent(at + gap, at + gap + length, 7))
            at += gap + length
        self.tracker = OffsetTracker(position, receipts_offset, self.inherited)
        self.spans: list[Span] = []
        self.settled: set[Span] = set()
        self.sent: set[Span] = set()
        self.receipts: list[tuple[Span, int]] = []
        self.receipts_end = receipts_offset

    def passed(self) -> int:
        """How many spans from the beginning are settled."""
        return next(
            (count for count, span in enumerate(self.spans) if span not in self.settled),
            len(self.spans),
        )

    @rule(gap=st.integers(0, 3), length=st.integers(1, 5))
    def track(self, gap: int, length: int) -> None:
        number = len(self.spans)
        if number < len(self.inherited):
            intent = self.inherited[number]
            span = Span(intent.first_offset, intent.next_offset)
            assert self.tracker.track(span)
            self.sent.add(span)
        else:
            span = Span(self.end + gap, self.end + gap + length)
            assert not self.tracker.track(span)
        self.spans.append(span)
        self.end = span.next_offset

    @rule()
    def intend(self) -> None:
        fresh = [span for span in self.spans[self.passed() :] if span.intended_at is None]
        if fresh:
            fresh[0].intended_at = 50

    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        intended = [span for span in self.spans if span.intended_at and not span.not_applied]
        if intended:
            self.sent.add(data.draw(st.sampled_from(intended)))

    @rule(data=st.data(), told=st.booleans())
    def write_a_receipt(self, data: st.DataObject, told: bool) -> None:
        """The broker has it; the worker may not hear of it."""
        open_ = [span for span in self.sent if span not in self.settled]
        if open_:
            span = data.draw(st.sampled_from(sorted(open_, key=lambda each: each.first_offset)))
            self.receipts.append((span, self.receipts_end))
            if told:
                self.tracker.receipt_found(self.receipts_end)
                self.settle(span)
            self.receipts_end += 1

    def settle(self, span: Span) -> None:
        before = self.passed()
        self.settled.add(span)
        assert (self.passed() > before) == self.tracker.settle(span)

    @precondition(lambda self: any(not span.not_applied for span in self.spans))
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        unsent = [
            span
            for span in self.spans[self.passed() :]
            if span not in self.sent and span not in self.settled
        ]
        if unsent:
            self.tracker.retract(set(data.draw(st.lists(st.sampled_from(unsent)))))

    @invariant()
    def position_is_the_end_of_the_longest_settled_beginning(self) -> None:
        passed = self.passed()
        expected = self.spans[passed - 1].next_offset if passed else self.start
        assert expected == self.tracker.position
        assert len(self.spans) - passed == self.tracker.unsettled_count

    @invariant()
    def all_that_may_have_been_sent_is_in_the_ledger(self) -> None:
        """With every range before it, in order, and none that was passed."""
        ledger = self.tracker.ledger()
        said = [(each.first_offset, each.next_offset) for each in ledger.intents]
        unformed = [
            (each.first_offset, each.next_offset) for each in self.inherited[len(self.spans) :]
        ]
        above = [(span.first_offset, span.next_offset) for span in self.spans[self.passed() :]]
        assert (above + unformed)[: len(said)] == said or said[-len(unformed) :] == unformed
        sent = {
            (span.first_offset, span.next_offset)
            for span in self.spans[self.passed() :]
            if span in self.sent
        }
        assert sent | set(unformed) <= set(said)
        assert len(said) == self.tracker.intended_count

    @invariant()
    def no_receipt_of_what_is_intended_is_missed(self) -> None:
        ledger = self.tracker.ledger()
        above = set(self.spans[self.passed() :])
        assert all(
            offset >= ledger.receipts_offset for span, offset in self.receipts if span in above
        )


TestTracking = Tracking.TestCase
TestTracking.settings = settings(max_examples=200, stateful_step_count=40)
