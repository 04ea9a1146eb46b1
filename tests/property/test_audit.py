"""Coverage by ranges is what sets of offsets say, whatever order the notes come in."""

from __future__ import annotations

from operator import itemgetter

from hypothesis import given
from hypothesis import strategies as st

from ingester.core.audit import Cover, DeadOffsets, PartitionAudit
from ingester.core.disputes import Disputes
from ingester.core.intent import Range
from ingester.core.ranges import holds, merged
from ingester.core.record import TopicPartition
from tests.unit.core.test_audit import receipt

RANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 15)).map(lambda each: (each[0], sum(each))),
    max_size=12,
)


@given(RANGES)
def test_a_cover_is_the_union_and_knows_what_it_has_had(ranges: list[Range]) -> None:
    """Added one by one, in any order."""
    cover, had = Cover(), set[int]()
    for range_ in ranges:
        offsets = set(range(*range_))
        assert cover.add(*range_) == bool(offsets & had)
        had |= offsets

    assert cover.ranges == merged(ranges)
    assert {offset for offset in range(80) if holds(cover.ranges, offset)} == had


@given(RANGES, st.integers(0, 70), st.integers(0, 70))
def test_open_ground_is_what_nothing_covers(
    ranges: list[Range], committed: int, log_begins: int
) -> None:
    """Below the committed offset and in the log; nothing else is looked into."""
    audit = PartitionAudit(TopicPartition("usage", 0), DeadOffsets(), log=(log_begins, 80))
    for number, range_ in enumerate(ranges):
        audit.add((0, number), receipt(*range_))

    open_ground = audit.judge_ground(committed)

    had = {offset for range_ in ranges for offset in range(*range_)}
    expected = {offset for offset in range(log_begins, committed) if offset not in had}
    assert {offset for offset in range(80) if holds(open_ground, offset)} == expected


@given(RANGES)
def test_each_offset_that_two_receipts_have_is_in_an_overlap(ranges: list[Range]) -> None:
    """And no offset that one alone has; the bits of each different receipt count once."""
    audit = PartitionAudit(TopicPartition("usage", 0), DeadOffsets())
    notes = [receipt(*range_) for range_ in ranges]
    places = [((number % 2, number), note) for number, note in enumerate(notes)]
    counted = sum(audit.add(*each) for each in places)
    disputes = Disputes(audit)
    for each in sorted(places, key=itemgetter(0)):
        disputes.add(*each)
    counted += len(disputes.judge())

    different = set(ranges)
    named = merged(each.range for each in audit.findings if each.kind == "overlap")
    for offset in range(80):
        receipts = sum(range_[0] <= offset < range_[1] for range_ in different)
        assert holds(named, offset) == (receipts > 1)
    assert counted == len(different)
