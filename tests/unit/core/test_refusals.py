"""How a refused batch is divided, what a refused item becomes, and which size is learned."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ingester.core.batch import Batch, BatchBuilder, BatchLimits
from ingester.core.delivery import Refused
from ingester.core.event import Rejection, event_decoder
from ingester.core.refusals import BodyLimit, halves, without_item
from tests.support.records import PARTITION, LogRecord, usage_records

REFUSED = Refused("HTTP 422: no such account", 422, "invalid", is_api=True, body=b'{"message":1}')


def formed(records: Sequence[LogRecord]) -> Batch:
    limits = BatchLimits(100, 10_000, 1.0)
    return BatchBuilder(PARTITION, 1, limits, event_decoder("refuse")).form(records)


def log_of(pattern: str) -> list[LogRecord]:
    """A record for each letter, from offset 10 on: an item, a tombstone or a gap."""
    records = usage_records(len(pattern), first_offset=10)
    return [
        LogRecord(record.offset, None) if letter == "t" else record
        for record, letter in zip(records, pattern, strict=True)
        if letter != "."
    ]


@pytest.mark.parametrize(
    ("pattern", "first", "second"),
    [
        ("ii", [10], [11]),
        ("iii", [10], [11, 12]),
        ("iiii", [10, 11], [12, 13]),
        ("i.i", [10], [12]),
        ("itti", [10, 11, 12], [13]),
        ("tiit", [10, 11], [12, 13]),
        ("tti.t.it", [10, 11, 12, 14], [16, 17]),
    ],
)
def test_a_batch_is_divided_between_the_items_in_its_middle(
    pattern: str, first: list[int], second: list[int]
) -> None:
    """Dead letters and gaps count for nothing; each half has items, and no record is in neither."""
    records = log_of(pattern)
    parts = halves(formed(records), records)

    assert [[record.offset for record in part] for part in parts] == [first, second]


@pytest.mark.parametrize("pattern", ["i", "tit", "tt"])
def test_to_divide_what_has_no_two_items_is_a_bug(pattern: str) -> None:
    """Halves without items would be refused by nobody, and a single one for ever."""
    records = log_of(pattern)

    with pytest.raises(AssertionError):
        halves(formed(records), records)


@pytest.mark.parametrize(
    ("pattern", "refused", "letters"),
    [("i", 10, [10]), ("titt", 11, [10, 11, 12, 13]), ("t.i", 12, [10, 12]), ("it", 10, [10, 11])],
)
def test_a_refused_item_becomes_a_dead_letter_of_its_batch(
    pattern: str, refused: int, letters: list[int]
) -> None:
    """In the order of the log, with PacSpace's answer; what is left has no items."""
    records = log_of(pattern)
    whole = formed(records)
    batch, letter = without_item(whole, records, REFUSED)

    assert letter.record.offset == refused
    assert letter.rejection == Rejection("refused", "HTTP 422: no such account")
    assert (letter.http_status, letter.http_body) == (422, b'{"message":1}')
    assert [each.record.offset for each in batch.dead_letters] == letters
    assert (batch.items_count, batch.bits, batch.bits_by_key) == (0, 0, {})


def test_a_batch_without_its_item_keeps_its_name() -> None:
    """Range, key and digest: whoever forms the range again finds in its receipt what was sent."""
    records = log_of("tit")
    whole = formed(records)
    batch, _ = without_item(whole, records, REFUSED)

    assert batch is not whole
    assert str(batch) == str(whole)
    assert batch.idempotency_key == whole.idempotency_key
    assert batch.body_digest == whole.body_digest
    assert batch.buffered_bytes == whole.buffered_bytes


# -- the size that the endpoint takes -----------------------------------------------------------


def test_until_something_is_too_large_the_setting_counts() -> None:
    """Whatever the time is."""
    limit = BodyLimit(1000)

    assert [limit.bytes_max(now) for now in (0.0, 1e9)] == [1000, 1000]


def test_half_of_what_was_too_much_is_tried() -> None:
    """The least of what was learned; larger ones that were under way change nothing."""
    limit = BodyLimit(1000)
    for refused, expected in ((900, 450), (1000, 450), (450, 225), (900, 225), (1, 1)):
        limit.refused(refused, 5.0)
        assert limit.bytes_max(5.0) == expected


def test_what_was_learned_is_forgotten_by_and_by() -> None:
    """Twice as much every minute without a refusal, up to the setting."""
    limit = BodyLimit(1000)
    limit.refused(400, 0.0)
    seen = [limit.bytes_max(now) for now in (59.9, 60.0, 119.9, 120.0, 180.0, 99_999.0)]

    assert seen == [200, 400, 400, 800, 1000, 1000]


def test_a_refusal_begins_the_time_anew() -> None:
    """Also one that teaches nothing."""
    limit = BodyLimit(1000)
    limit.refused(400, 0.0)
    limit.refused(800, 50.0)

    assert [limit.bytes_max(now) for now in (60.0, 109.9, 110.0)] == [200, 200, 400]
