"""What an account has used in a period, by key."""

from __future__ import annotations

from ingester.core.event import UsageEvent
from ingester.core.record import TopicPartition
from ingester.core.statement import Occasion, Settlement, Settlements, Statement

ONE, TWO = TopicPartition("usage", 0), TopicPartition("usage", 1)


def test_a_period_begins_and_does_not_end_in_itself() -> None:
    """Its last moment belongs to the next one."""
    statement = Statement("acme", 1000, 2000)

    moments = [999, 1000, 1999, 2000]
    assert [statement.covers(each) for each in moments] == [False, True, True, False]


def test_receipts_are_found_by_offset_whatever_their_order() -> None:
    """An offset between two of them, before the first or behind the last has none."""
    settlements = Settlements()
    for first_offset in (20, 0, 40):
        settlements.add(Settlement(first_offset, first_offset + 10, first_offset))
    settlements.sort()

    found = [settlements.of(offset) for offset in (-1, 0, 9, 10, 25, 39, 40, 50)]

    assert [each and each.settled_at_ms for each in found] == [None, 0, 0, None, 20, None, 40, None]
    assert Settlements().of(0) is None


def test_a_receipt_that_does_not_say_when_settles_all_the_same() -> None:
    """A line has the times of the others, and none where nobody says one."""
    settlements = Settlements()
    settlements.add(Settlement(0, 10, None))
    settlements.sort()
    timeless = settlements.of(5)
    assert timeless == Settlement(0, 10, None)
    statement = Statement("acme", 0, 10)
    for key, settlement in (("a", timeless), ("b", timeless), ("b", Settlement(10, 20, 7))):
        statement.add(UsageEvent(key, "acme", 3), Occasion(1, ONE, 5), settlement)

    times = [
        (each.first_settled_at_ms, each.last_settled_at_ms) for each in statement.lines.values()
    ]
    assert times == [(None, None), (7, 7)]


def test_lines_add_up_and_name_first_and_last() -> None:
    """Each key by itself; a batch counts once for each key that it holds."""
    statement = Statement("acme", 0, 10_000)
    early, late = Settlement(0, 10, 500), Settlement(10, 20, 900)
    for key, bits, occasion, settlement in [
        ("a", 5, Occasion(30, ONE, 1), early),
        ("a", 7, Occasion(10, ONE, 2), early),
        ("b", -1, Occasion(40, ONE, 3), early),
        ("a", 1, Occasion(50, ONE, 12), late),
        ("a", 2, Occasion(20, TWO, 0), early),
    ]:
        statement.add(UsageEvent(key, "acme", bits), occasion, settlement, dead=False)

    line = statement.lines["a"]
    assert (line.events, line.bits, line.batches) == (4, 15, 3)
    assert (str(line.first), str(line.last)) == ("usage:0:2", "usage:0:12")
    assert (line.first_settled_at_ms, line.last_settled_at_ms) == (500, 900)
    assert (statement.totals.events, statement.totals.bits) == (5, 14)


def test_what_is_not_settled_is_in_no_line() -> None:
    """Neither what waits for its receipt nor what was refused."""
    statement = Statement("acme", 0, 10)
    event = UsageEvent("a", "acme", 3)
    statement.add(event, Occasion(1, ONE, 1), None, dead=False)
    statement.add(event, Occasion(1, ONE, 2), Settlement(0, 10, 1), dead=True)

    assert statement.lines == {}
    assert (statement.waiting.events, statement.waiting.bits) == (1, 3)
    assert (statement.refused.events, statement.refused.bits) == (1, 3)


def test_batches_are_told_apart_by_what_they_were_sent_from() -> None:
    """The same range of a topic and of its dead letters are two of them."""
    statement = Statement("acme", 0, 10)
    event, letters = UsageEvent("a", "acme", 3), TopicPartition("usage.dead-letters", 0)
    for sent_from in (None, letters, letters):
        statement.add(event, Occasion(1, ONE, 1), Settlement(0, 10, 1), sent_from=sent_from)

    assert (statement.lines["a"].events, statement.lines["a"].batches) == (3, 2)
