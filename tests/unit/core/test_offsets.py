"""Which offset may be committed."""

from __future__ import annotations

import pytest

from ingester.core.offsets import OffsetTracker


def test_nothing_is_committable_before_anything_is_settled() -> None:
    """A tracked span says nothing yet."""
    tracker = OffsetTracker()
    tracker.track(0, 5)

    assert tracker.committable is None
    assert tracker.unsettled_count == 1


def test_a_span_settled_early_waits_for_those_before_it() -> None:
    """The second of three is passed together with the first, the third stays."""
    tracker = OffsetTracker()
    for first_offset in (0, 10, 20):
        tracker.track(first_offset, first_offset + 10)
    tracker.settle(20)
    assert tracker.committable is None
    tracker.settle(10)

    assert tracker.committable == 20
    assert tracker.unsettled_count == 1


def test_gaps_between_spans_are_no_records() -> None:
    """Markers and aborted records take offsets that nobody settles."""
    tracker = OffsetTracker()
    tracker.track(3, 4)
    tracker.track(9, 10)
    tracker.settle(4)
    tracker.settle(10)

    assert tracker.committable == 10
    assert tracker.unsettled_count == 0


@pytest.mark.parametrize("span", [(4, 8), (0, 3), (5, 5), (6, 5)], ids=repr)
def test_spans_that_overlap_or_hold_nothing_are_a_bug(span: tuple[int, int]) -> None:
    """Whatever would make order meaningless stops the worker."""
    tracker = OffsetTracker()
    tracker.track(0, 5)

    with pytest.raises(AssertionError):
        tracker.track(*span)


def test_settling_twice_is_a_bug() -> None:
    """A batch that is acknowledged twice is counted twice somewhere."""
    tracker = OffsetTracker()
    tracker.track(0, 5)
    tracker.track(5, 6)
    tracker.settle(6)

    with pytest.raises(AssertionError):
        tracker.settle(6)


def test_settling_what_is_not_tracked_is_a_bug() -> None:
    """A span that has been passed, or never was, cannot be settled."""
    tracker = OffsetTracker()
    tracker.track(0, 5)
    tracker.settle(5)

    with pytest.raises(AssertionError):
        tracker.settle(5)
