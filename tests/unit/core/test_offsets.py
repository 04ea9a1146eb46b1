"""Which offset may be committed, and what is said of the ranges above it."""

from __future__ import annotations

import pytest

from ingester.core.intent import Intent, Ledger
from ingester.core.offsets import OffsetTracker, Span


def tracked(tracker: OffsetTracker, *ranges: tuple[int, int]) -> list[Span]:
    spans = [Span(*each) for each in ranges]
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


@pytest.mark.parametrize("span", [(4, 8), (0, 3), (5, 5), (6, 5)], ids=repr)
def test_spans_that_overlap_or_hold_nothing_are_a_bug(span: tuple[int, int]) -> None:
    """Whatever would make order meaningless stops the worker."""
    tracker = OffsetTracker(0)
    tracked(tracker, (0, 5))

    with pytest.raises(AssertionError):
        tracker.track(Span(*span))


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
        tracker.settle(Span(0, 5))


# -- what is intended ---------------------------------------------------------------------------


def test_what_is_inherited_is_said_until_it_is_passed() -> None:
    """A commit before its records were even fetched must not forget it."""
    intents = [Intent(3, 5, 100), Intent(5, 9, 101), Intent(9, 10, 102)]
    tracker = OffsetTracker(3, 7, intents)
    assert tracker.ledger() == Ledger(7, intents)
    (first,) = tracked(tracker, (3, 5))
    assert tracker.ledger() == Ledger(7, intents)
    tracker.settle(first)

    assert tracker.ledger() == Ledger(7, intents[1:])
    assert tracker.intended_count == 2


def test_another_range_than_the_inherited_one_is_a_bug() -> None:
    """Whoever cuts otherwise gives the records another key."""
    tracker = OffsetTracker(3, 0, [Intent(3, 5, 100)])

    with pytest.raises(AssertionError):
        tracker.track(Span(3, 6))


def test_a_span_is_said_when_it_is_intended() -> None:
    """In order, and until it is passed."""
    tracker = OffsetTracker(0)
    first, second, _ = tracked(tracker, (0, 2), (2, 4), (4, 6))
    first.intended_at = second.intended_at = 50
    assert tracker.ledger() == Ledger(0, [Intent(0, 2, 50), Intent(2, 4, 50)])
    tracker.settle(second)
    assert tracker.ledger() == Ledger(0, [Intent(0, 2, 50), Intent(2, 4, 50)])
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


def test_what_was_never_sent_is_retracted_from_the_end() -> None:
    """What lies before something that was sent stays, or the next owner could not form that."""
    tracker = OffsetTracker(0)
    spans = tracked(tracker, (0, 2), (2, 4), (4, 6), (6, 8))
    for span in spans[:3]:
        span.intended_at = 50
    assert not tracker.retract({spans[1]})
    assert tracker.ledger().intents == [Intent(0, 2, 50), Intent(2, 4, 50), Intent(4, 6, 50)]

    assert tracker.retract({spans[2]})
    assert tracker.ledger().intents == [Intent(0, 2, 50)]
