"""Which dead letters are chosen, and how records are told from those seen before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingester.core.deadletter import Origin
from ingester.core.letters import (
    BOUNDLESS,
    Choice,
    Letter,
    Source,
    SourceOffsets,
    Span,
    moment_of,
    peeked,
)
from ingester.core.record import TopicPartition
from tests.support.records import LogRecord

MOMENT = datetime(2025, 6, 10, 14, 30, tzinfo=UTC)
USAGE = TopicPartition("usage", 3)


def letter(**changed: object) -> Letter:
    origin = Origin(USAGE, 7, "refused", "no", 422, b"{}", MOMENT.isoformat())
    place = TopicPartition("usage.dead-letters", 0)
    record = LogRecord(1, b"{}", timestamp=int(MOMENT.timestamp() * 1000))
    return Letter(place, record, origin, "acme", "k", False, False)._replace(**changed)


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (Choice(), True),
        (Choice(codes=["refused", "tombstone"]), True),
        (Choice(codes=["tombstone"]), False),
        (Choice(accounts=["acme"]), True),
        (Choice(accounts=["other"]), False),
        (Choice(keys=["k"], accounts=["other"]), False),
        (Choice(statuses=[400, 422]), True),
        (Choice(statuses=[400]), False),
        (Choice(sources=[Source("usage", None)]), True),
        (Choice(sources=[Source("usage", 2), Source("usage", 3)]), True),
        (Choice(sources=[Source("usage", 2)]), False),
        (Choice(record_time=Span(MOMENT, None)), True),
        (Choice(record_time=Span(None, MOMENT)), False),
        (Choice(dead_lettered=Span(MOMENT, MOMENT + timedelta(seconds=1))), True),
        (Choice(dead_lettered=Span(MOMENT + timedelta(seconds=1), None)), False),
        (Choice(redriven=True), False),
        (Choice(redriven=False), True),
    ],
    ids=str,
)
def test_a_choice_wants_what_has_all_that_it_names(choice: Choice, wanted: bool) -> None:
    """Each filter that is given has to hold; a span holds its begin, and not its end."""
    assert choice.wants(letter()) is wanted


@pytest.mark.parametrize("said", [None, "", "yesterday", "2025-06-10T14:30:00"])
def test_a_time_that_is_not_known_is_in_no_span(said: str | None) -> None:
    """What does not say when it was written is found only where the time does not matter."""
    unknown = letter(origin=letter().origin._replace(dead_lettered_at=said))

    assert unknown.dead_lettered_at is None
    assert Choice().wants(unknown)
    assert not Choice(dead_lettered=Span(None, MOMENT)).wants(unknown)
    assert BOUNDLESS.holds(None)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, (None, None)),
        (b"", (None, None)),
        (b"[]", (None, None)),
        (b'{"key":"k","accountId":"a","bits":"1"}', ("a", "k")),
        (b'{"key":1,"accountId":["a"]}', (None, None)),
        (b'{"accountId":"a","x":' + b"[" * 500 + b"]" * 500 + b"}", ("a", None)),
        (b'{"accountId":"a"', (None, None)),
        (b'{"accountId":"\xff"}', (None, None)),
        (b"[" * 100_000, (None, None)),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_whose_a_letter_is(value: bytes | None, found: tuple[str | None, str | None]) -> None:
    """Account and key are what an object has of them as strings, whatever else is wrong with it."""
    assert peeked(value) == found


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2**40) | st.integers(0, 10_000))))
def test_a_record_is_new_once(positions: list[tuple[int, int]]) -> None:
    """The set of source offsets answers as a set of pairs does."""
    seen: set[tuple[int, int]] = set()
    offsets = SourceOffsets()
    for number, offset in positions:
        name = TopicPartition("usage", number)
        assert offsets.holds(name, offset) is ((number, offset) in seen)
        assert offsets.add(name, offset) is ((number, offset) not in seen)
        seen.add((number, offset))
    assert all(offsets.holds(TopicPartition("usage", number), at) for number, at in seen)


@pytest.mark.parametrize(("timestamp", "year"), [(-1, None), (0, 1970), (2**62, None)])
def test_a_timestamp_may_be_none(timestamp: int, year: int | None) -> None:
    """A record may have no time, or one beyond the calendar."""
    moment = moment_of(timestamp)
    assert (moment and moment.year) == year
