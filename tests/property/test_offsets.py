"""Which offset may be committed, against a list of what is settled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingester.core.offsets import OffsetTracker


@st.composite
def settlements(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[int]]:
    """Spans with gaps between them, and an order to settle some of them in."""
    spans = []
    offset = draw(st.integers(0, 2**63))
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=20)):
        spans.append((offset + gap, offset + gap + length))
        offset += gap + length
    order = draw(st.permutations([next_offset for _, next_offset in spans]))
    return spans, order[: draw(st.integers(0, len(order)))]


@given(settlements())
def test_committable_is_the_end_of_the_longest_settled_beginning(
    scenario: tuple[list[tuple[int, int]], list[int]],
) -> None:
    """After each span, however spans are ordered, exactly what precedes it all is committable."""
    spans, order = scenario
    tracker = OffsetTracker()
    for first_offset, next_offset in spans:
        tracker.track(first_offset, next_offset)
    settled: set[int] = set()
    for next_offset in order:
        tracker.settle(next_offset)
        settled.add(next_offset)

        expected = None
        passed = 0
        for _, end in spans:
            if end not in settled:
                break
            expected = end
            passed += 1
        assert expected == tracker.committable
        assert len(spans) - passed == tracker.unsettled_count


@given(settlements(), st.data())
def test_spans_may_be_tracked_while_others_are_settled(
    scenario: tuple[list[tuple[int, int]], list[int]], data: st.DataObject
) -> None:
    """A span that arrives late waits its turn, and the result is that of tracking all first."""
    spans, order = scenario
    late, early = OffsetTracker(), OffsetTracker()
    for span in spans:
        early.track(*span)
    pending = list(order)
    tracked: set[int] = set()
    for span in spans:
        late.track(*span)
        tracked.add(span[1])
        if data.draw(st.booleans()):
            for each in [each for each in pending if each in tracked]:
                late.settle(each)
                pending.remove(each)
    for each in pending:
        late.settle(each)
    for each in order:
        early.settle(each)

    assert early.committable == late.committable
    assert early.unsettled_count == late.unsettled_count
