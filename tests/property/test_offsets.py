"""Which offset may be committed and what is intended above it, against lists of everything."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ingester.core.intent import Intent, Range
from ingester.core.offsets import OffsetTracker, Span


@dataclass(eq=False)
class Piece:
    """What the model knows of one span; a split replaces it by two."""

    span: Span
    intended: bool = False
    """Whether the next commit has to say it."""
    sent: bool = False
    """Whether it may have been applied."""
    settled: bool = False
    given_up: bool = False

    @property
    def range(self) -> Range:
        return self.span.range


class Tracking(RuleBasedStateMachine):
    """The model keeps every piece for ever, and every receipt of a range that was ever begun."""

    @initialize(
        position=st.integers(0, 2**62),
        receipts_offset=st.integers(0, 2**40),
        inherited=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), max_size=4),
        settled=st.sets(st.integers(0, 3)),
    )
    def begin(
        self,
        position: int,
        receipts_offset: int,
        inherited: list[tuple[int, int]],
        settled: set[int],
    ) -> None:
        self.start = self.end = self.reached = position
        intents: list[Intent] = []
        for number, (gap, length) in enumerate(inherited):
            first = self.end + gap
            self.end = first + length
            intents.append(Intent(first, self.end, 7, number))
        self.tracker = OffsetTracker(position, receipts_offset, intents)
        assert list(self.tracker.inherited) == [each.range for each in intents]
        self.pieces = [
            Piece(self.tracker.inherited[each.range], intended=True, sent=True) for each in intents
        ]
        self.receipts: list[tuple[Range, int]] = []
        self.receipts_end = receipts_offset
        for number, piece in enumerate(self.pieces):
            if number in settled:
                self.receipts.append((piece.range, self.receipts_end))
                self.tracker.receipt_found(self.receipts_end)
                self.receipts_end += 1
                self.settle(piece)

    def passed(self) -> int:
        """How many pieces from the beginning are settled."""
        return next(
            (number for number, piece in enumerate(self.pieces) if not piece.settled),
            len(self.pieces),
        )

    def above(self) -> list[Piece]:
        return self.pieces[self.passed() :]

    def settle(self, piece: Piece) -> None:
        before = self.passed()
        piece.settled = True
        assert (self.passed() > before) == self.tracker.settle(piece.span)

    @rule(gap=st.integers(0, 3), length=st.integers(1, 9))
    def track(self, gap: int, length: int) -> None:
        span = Span(self.end + gap, self.end + gap + length, 99)
        self.end = span.next_offset
        self.tracker.track(span)
        self.pieces.append(Piece(span))

    @rule(gap=st.integers(0, 3))
    def pass_to(self, gap: int) -> None:
        """Behind the last record are markers; they are passed once all before them is settled."""
        self.end += gap
        before = self.tracker.position
        if not self.above():
            self.reached = self.end
        assert (before < self.end and not self.above()) == self.tracker.pass_to(self.end)

    @rule()
    def intend(self) -> None:
        """A commit takes the next that was never in one."""
        fresh = [piece for piece in self.above() if not piece.intended]
        if fresh and not any(piece.given_up for piece in self.pieces):
            fresh[0].span.intended_at = 50
            fresh[0].intended = True

    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        intended = [piece for piece in self.above() if piece.intended and not piece.given_up]
        if intended:
            data.draw(st.sampled_from(intended)).sent = True

    @rule(data=st.data(), divisor=st.integers(1, 8))
    def split(self, data: st.DataObject, divisor: int) -> None:
        """Refused as a whole: nothing of it was applied, and nothing of its halves is sent yet."""
        whole = [
            piece
            for piece in self.above()
            if piece.sent and not piece.settled and piece.range[1] - piece.range[0] > 1
        ]
        if not whole:
            return
        piece = data.draw(st.sampled_from(whole))
        first, end = piece.range
        middle = first + max(1, (end - first) // (divisor + 1))
        halves = (Span(first, middle, 1), Span(middle, end, 2))
        self.tracker.split(piece.span, halves, 60)
        number = self.pieces.index(piece)
        self.pieces[number : number + 1] = [Piece(half, intended=True) for half in halves]

    @rule(data=st.data(), told=st.booleans())
    def write_a_receipt(self, data: st.DataObject, told: bool) -> None:
        """The broker has it; the worker may not hear of it."""
        open_ = [piece for piece in self.pieces if piece.sent and not piece.settled]
        if open_:
            piece = data.draw(st.sampled_from(open_))
            self.receipts.append((piece.range, self.receipts_end))
            if told:
                self.tracker.receipt_found(self.receipts_end)
                self.settle(piece)
            self.receipts_end += 1

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """Some that were never sent: those of them that end the ledger are said no more."""
        unsent = [piece for piece in self.above() if not piece.sent and not piece.settled]
        if not unsent:
            return
        for piece in data.draw(st.lists(st.sampled_from(unsent), max_size=3)):
            piece.given_up = True
        expected = False
        for piece in reversed(self.above()):
            if piece.intended and not piece.given_up:
                break
            expected |= piece.intended
            piece.intended = False
        assert expected == self.tracker.retract(
            {piece.span for piece in self.pieces if piece.given_up}
        )

    @invariant()
    def position_is_the_end_of_the_longest_settled_beginning(self) -> None:
        passed = self.passed()
        expected = self.pieces[passed - 1].range[1] if passed else self.start
        assert max(expected, self.reached) == self.tracker.position
        assert len(self.pieces) - passed == self.tracker.unsettled_count

    @invariant()
    def the_ledger_is_what_is_intended_above_the_position(self) -> None:
        """In order, without overlaps, with all that may have been applied; none after a gap."""
        intents = self.tracker.ledger().intents
        intended = [piece for piece in self.above() if piece.intended]
        assert [piece.range for piece in intended] == [each.range for each in intents]
        assert [piece.span.digest for piece in intended] == [each.digest for each in intents]
        assert all(piece.intended for piece in self.above() if piece.sent and not piece.settled)
        assert intended == self.above()[: len(intended)]
        assert len(intended) == self.tracker.intended_count
        assert all(
            one.next_offset <= other.first_offset for one, other in itertools.pairwise(intents)
        )

    @invariant()
    def only_the_first_unsettled_is_next(self) -> None:
        found = [piece for piece in self.pieces if self.tracker.is_next(piece.span)]
        assert self.above()[:1] == found

    @invariant()
    def no_receipt_of_what_is_intended_is_missed(self) -> None:
        ledger = self.tracker.ledger()
        above = {piece.range for piece in self.above()}
        assert all(
            offset >= ledger.receipts_offset for range_, offset in self.receipts if range_ in above
        )


TestTracking = Tracking.TestCase
TestTracking.settings = settings(max_examples=200, stateful_step_count=40)
