"""Which offset may be committed, and what is said of the ranges above it."""

from __future__ import annotations

import pytest

from ingester.core.intent import Intent, Ledger, Range
from ingester.core.offsets import OffsetTracker, Span

DIGEST = 0xDEADBEEF


def intents(*ranges: Range, at: int = 50) -> list[Intent]:
    return [Intent(*each, at, DIGEST) for each in ranges]


def intended(tracker: OffsetTracker, *ranges: Range) -> list[Span]:
    """Track spans and let a commit record them."""
    spans = tracked(tracker, *ranges)
    for span in spans:
        span.intended_at = 50
    return spans


def tracked(tracker: OffsetTracker, *ranges: tuple[int, int]) -> list[Span]:
    spans = [Span(*each, DIGEST) for each in ranges]
    for span in spans:
        tracker.track(span)
    return spans


def test_nothing_is_passed_before_anything_is_settled() -> None:
    """A tracked span says nothing yet."""
    tracker = OffsetTracker(0)
    tracked(tracker, (0, 5))

    assert tracker.position == 0
    assert tracker.unsettled_count == 1


def test_a_span_settled_early_waits_for_those_before_it() -> None:
    """The second of three is passed together with the first, the third stays."""
    tracker = OffsetTracker(0)
    first, second, _ = tracked(tracker, (0, 10), (10, 20), (20, 30))
    assert not tracker.settle(second)
    assert tracker.position == 0
    assert tracker.settle(first)

    assert tracker.position == 20
    assert tracker.unsettled_count == 1


def test_gaps_between_spans_are_no_records() -> None:
    """Markers and aborted records take offsets that nobody settles."""
    tracker = OffsetTracker(0)
    for span in tracked(tracker, (3, 4), (9, 10)):
        tracker.settle(span)

    assert tracker.position == 10
    assert tracker.unsettled_count == 0


def test_what_holds_no_records_is_passed_when_all_is_settled() -> None:
    """Neither before that, nor back."""
    tracker = OffsetTracker(0)
    (span,) = tracked(tracker, (0, 5))
    assert not tracker.pass_to(7)
    tracker.settle(span)
    assert tracker.position == 5

    assert tracker.pass_to(7)
    assert not tracker.pass_to(7)
    assert not tracker.pass_to(6)
    assert tracker.position == 7
    tracked(tracker, (7, 8))


@pytest.mark.parametrize("span", [(4, 8), (0, 3), (5, 5), (6, 5)], ids=repr)
def test_spans_that_overlap_or_hold_nothing_are_a_bug(span: tuple[int, int]) -> None:
    """Whatever would make order meaningless stops the worker."""
    tracker = OffsetTracker(0)
    tracked(tracker, (0, 5))

    with pytest.raises(AssertionError):
        tracker.track(Span(*span, DIGEST))


def test_settling_twice_is_a_bug() -> None:
    """A batch that is acknowledged twice is counted twice somewhere."""
    tracker = OffsetTracker(0)
    _, second = tracked(tracker, (0, 5), (5, 6))
    tracker.settle(second)

    with pytest.raises(AssertionError):
        tracker.settle(second)


def test_settling_what_was_passed_is_a_bug() -> None:
    """A span below the position cannot be settled."""
    tracker = OffsetTracker(5)

    with pytest.raises(AssertionError):
        tracker.settle(Span(0, 5, DIGEST))


# -- what is intended ---------------------------------------------------------------------------


def test_what_is_inherited_is_said_until_it_is_passed() -> None:
    """A commit before its records were even fetched must not forget it."""
    inherited = intents((3, 5), (5, 9), (9, 10), at=100)
    tracker = OffsetTracker(3, 7, inherited)
    assert tracker.ledger() == Ledger(7, inherited)
    tracker.settle(tracker.inherited[3, 5])

    assert tracker.position == 5
    assert tracker.ledger() == Ledger(7, inherited[1:])
    assert tracker.intended_count == 2


def test_what_is_inherited_and_settled_out_of_order_is_said_still() -> None:
    """Its receipt is somewhere, but the offset has not passed it."""
    inherited = intents((3, 5), (5, 9), at=100)
    tracker = OffsetTracker(3, 7, inherited)
    assert not tracker.settle(tracker.inherited[5, 9])

    assert tracker.ledger() == Ledger(7, inherited)
    assert tracker.settle(tracker.inherited[3, 5])
    assert tracker.position == 9


def test_what_comes_after_the_inherited_is_tracked_behind_it() -> None:
    """Whoever cuts an inherited range otherwise gives the records another key: that is a bug."""
    tracker = OffsetTracker(3, 0, intents((3, 5), at=100))
    with pytest.raises(AssertionError):
        tracker.track(Span(3, 6, DIGEST))
    with pytest.raises(AssertionError):
        tracker.track(Span(4, 6, DIGEST))
    tracked(tracker, (5, 6))

    assert tracker.unsettled_count == 2


def test_a_span_is_said_when_it_is_intended() -> None:
    """In order, and until it is passed."""
    tracker = OffsetTracker(0)
    first, second, _ = tracked(tracker, (0, 2), (2, 4), (4, 6))
    first.intended_at = second.intended_at = 50
    assert tracker.ledger() == Ledger(0, intents((0, 2), (2, 4)))
    tracker.settle(second)
    assert tracker.ledger() == Ledger(0, intents((0, 2), (2, 4)))
    tracker.settle(first)

    assert tracker.ledger() == Ledger(0, [])


def test_receipts_are_looked_for_from_where_the_first_unsettled_span_was_tracked() -> None:
    """However late its own comes, and whichever offsets the others' have, 0 included."""
    tracker = OffsetTracker(0)
    first, second = tracked(tracker, (0, 2), (2, 4))
    tracker.receipt_found(0)
    tracker.settle(second)
    (third,) = tracked(tracker, (4, 6))
    tracker.receipt_found(5)
    assert tracker.ledger().receipts_offset == 0
    tracker.settle(first)
    assert tracker.ledger().receipts_offset == 1
    tracker.settle(third)

    assert tracker.ledger().receipts_offset == 6


def test_a_receipt_of_which_no_offset_is_told_leaves_them_where_they_are_looked_for() -> None:
    """As -1, of what a broker has had before: too far back it is found all the same."""
    tracker = OffsetTracker(0, 3)
    tracker.receipt_found(-1)
    (span,) = tracked(tracker, (0, 2))

    assert span.receipts_offset == tracker.ledger().receipts_offset == 3

    new = OffsetTracker(0)
    new.receipt_found(-1)
    assert new.ledger().receipts_offset == 0


def test_what_was_never_sent_is_retracted_from_the_end() -> None:
    """What lies before something that was sent stays, or the next owner could not form that."""
    tracker = OffsetTracker(0)
    spans = intended(tracker, (0, 2), (2, 4), (4, 6))
    tracked(tracker, (6, 8))
    assert not tracker.retract({spans[1]})
    assert tracker.ledger().intents == intents((0, 2), (2, 4), (4, 6))

    assert tracker.retract({spans[2]})
    assert tracker.ledger().intents == intents((0, 2))


# -- splits -------------------------------------------------------------------------------------


def test_halves_take_the_place_of_what_was_split() -> None:
    """The next commit says them instead, in order and with a moment of their own."""
    tracker = OffsetTracker(0)
    _, split, _ = intended(tracker, (0, 2), (2, 8), (8, 9))
    halves = (Span(2, 5, 7), Span(6, 8, 8))  # 5 is a gap
    tracker.split(split, halves, 60)

    assert tracker.ledger().intents == [
        *intents((0, 2)),
        Intent(2, 5, 60, 7),
        Intent(6, 8, 60, 8),
        *intents((8, 9)),
    ]
    assert tracker.intended_count == tracker.unsettled_count == 4


def test_the_position_passes_halves_one_by_one() -> None:
    """Not what was split before both are settled, in whichever order."""
    tracker = OffsetTracker(0)
    first, _ = intended(tracker, (0, 4), (4, 5))
    halves = (Span(0, 2, 7), Span(2, 4, 8))
    tracker.split(first, halves, 60)
    assert tracker.is_next(halves[0])
    assert not tracker.settle(halves[1])
    assert tracker.position == 0

    assert tracker.settle(halves[0])
    assert tracker.position == 4


def test_a_half_is_split_again() -> None:
    """Down to what cannot be split."""
    tracker = OffsetTracker(0)
    (whole,) = intended(tracker, (0, 4))
    halves = (Span(0, 2, 7), Span(2, 4, 8))
    tracker.split(whole, halves, 60)
    tracker.split(halves[0], (Span(0, 1, 9), Span(1, 2, 10)), 61)

    assert [each.range for each in tracker.ledger().intents] == [(0, 1), (1, 2), (2, 4)]


def test_what_is_inherited_can_be_split() -> None:
    """Also behind what is settled before it."""
    tracker = OffsetTracker(0, 3, intents((0, 2), (2, 4)))
    tracker.settle(tracker.inherited[0, 2])
    tracker.split(tracker.inherited[2, 4], (Span(2, 3, 7), Span(3, 4, 8)), 60)

    assert tracker.position == 2
    assert tracker.ledger() == Ledger(3, [Intent(2, 3, 60, 7), Intent(3, 4, 60, 8)])


def test_receipts_of_halves_are_looked_for_where_those_of_the_whole_were() -> None:
    """However far the receipts have come since."""
    tracker = OffsetTracker(0)
    (whole,) = intended(tracker, (0, 4))
    tracker.receipt_found(9)
    halves = (Span(0, 2, 7), Span(2, 4, 8))
    tracker.split(whole, halves, 60)
    assert tracker.ledger().receipts_offset == 0
    tracker.settle(halves[0])
    assert tracker.ledger().receipts_offset == 0
    tracker.settle(halves[1])

    assert tracker.ledger().receipts_offset == 10


def test_halves_that_were_never_sent_are_retracted() -> None:
    """What was split is not said again: it was refused."""
    tracker = OffsetTracker(0)
    _, whole = intended(tracker, (0, 2), (2, 4))
    halves = (Span(2, 3, 7), Span(3, 4, 8))
    tracker.split(whole, halves, 60)

    assert tracker.retract(set(halves))
    assert tracker.ledger().intents == intents((0, 2))


def test_to_split_what_was_never_intended_is_a_bug() -> None:
    """Nobody can have refused it."""
    tracker = OffsetTracker(0)
    (span,) = tracked(tracker, (0, 4))

    with pytest.raises(AssertionError):
        tracker.split(span, (Span(0, 2, 7), Span(2, 4, 8)), 60)
