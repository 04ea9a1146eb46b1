"""Sets of offsets against Python's own sets."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from ingester.core.intent import Range
from ingester.core.ranges import Ruler, intersected, length, merged, subtracted

RANGES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8)


def offsets(ranges: Iterable[Range]) -> set[int]:
    return {offset for each in ranges for offset in range(*each)}


def is_canonical(ranges: list[Range]) -> bool:
    ends = [each for pair in ranges for each in pair]
    return ends == sorted(set(ends))


@given(RANGES)
def test_a_union_holds_what_its_ranges_hold(ranges: list[Range]) -> None:
    """In ascending ranges between which something is missing."""
    union = merged(ranges)

    assert offsets(union) == offsets(ranges)
    assert is_canonical(union)
    assert length(union) == len(offsets(ranges))


@given(RANGES, RANGES)
def test_a_difference_holds_what_is_in_the_one_alone(
    ranges: list[Range], others: list[Range]
) -> None:
    """And an intersection what is in both; each in the same form again."""
    one, other = merged(ranges), merged(others)
    difference, intersection = subtracted(one, other), intersected(one, other)

    assert offsets(difference) == offsets(one) - offsets(other)
    assert offsets(intersection) == offsets(one) & offsets(other)
    assert is_canonical(difference)
    assert is_canonical(intersection)


@given(RANGES, st.integers(-5, 35))
def test_a_ruler_counts_what_is_below_an_offset(ranges: list[Range], offset: int) -> None:
    """Within a range, between two, before the first and behind the last; of nothing nothing."""
    union = merged(ranges)

    assert Ruler(union).below(offset) == len({each for each in offsets(union) if each < offset})
