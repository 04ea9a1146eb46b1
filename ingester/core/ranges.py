"""Sets of offsets as ascending ranges `[first_offset, next_offset)` that do not touch."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

from ingester.core.intent import Range

_BEYOND = 2**63  # no offset is as high


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Return the union of ranges in any order; empty ones vanish."""
    union: list[Range] = []
    for first_offset, next_offset in sorted(ranges):
        if next_offset <= first_offset:
            continue
        if union and first_offset <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], next_offset))
        else:
            union.append((first_offset, next_offset))
    return union


def subtracted(ranges: Sequence[Range], others: Sequence[Range]) -> list[Range]:
    """Return what is in `ranges` and not in `others`; both are sets as this module's."""
    left: list[Range] = []
    position = 0
    for first_offset, next_offset in ranges:
        while position < len(others) and others[position][1] <= first_offset:
            position += 1
        at = first_offset
        index = position
        while index < len(others) and others[index][0] < next_offset:
            if at < others[index][0]:
                left.append((at, others[index][0]))
            at = others[index][1]
            index += 1
        if at < next_offset:
            left.append((at, next_offset))
    return left


def intersected(ranges: Sequence[Range], others: Sequence[Range]) -> list[Range]:
    """Return what is in both of two sets."""
    return subtracted(ranges, subtracted(ranges, others))


def holds(ranges: Sequence[Range], offset: int) -> bool:
    """Whether an offset is in a set."""
    position = bisect_right(ranges, (offset, _BEYOND)) - 1
    return position >= 0 and offset < ranges[position][1]


def touches(ranges: Sequence[Range], range_: Range) -> bool:
    """Whether a range has an offset of a set."""
    position = bisect_right(ranges, (range_[0], _BEYOND))
    before = position > 0 and range_[0] < ranges[position - 1][1]
    return before or (position < len(ranges) and ranges[position][0] < range_[1])


def length(ranges: Iterable[Range]) -> int:
    """How many offsets a set holds."""
    return sum(map(_length, ranges))


def _length(range_: Range) -> int:
    return range_[1] - range_[0]


class Ruler:
    """Counts the offsets of a set below another, again and again: a plan may have a million ranges.

    To intersect a set of 300,000 ranges takes 0.14 seconds, and to look here a microsecond.
    """

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._firsts = array("q", (first_offset for first_offset, _ in ranges))
        self._nexts = array("q", (next_offset for _, next_offset in ranges))
        self._counts = array("q", accumulate(map(_length, ranges)))  # below the end of each range

    def below(self, offset: int) -> int:
        """How many offsets of the set are below one."""
        position = bisect_right(self._firsts, offset) - 1
        if position < 0:
            return 0
        return self._counts[position] - max(0, self._nexts[position] - offset)
