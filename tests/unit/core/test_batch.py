"""When a batch is cut, and what is in it."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from ingester.core.batch import Batch, BatchBuilder, BatchLimits
from ingester.core.event import event_decoder
from ingester.core.record import TopicPartition
from tests.support.records import PARTITION, LogRecord, event_json, usage_records

EMPTY_BODY = b'{"items":[]}'


def builder(
    *, items_max: int = 100, body_bytes_max: int = 2**20, partition: TopicPartition = PARTITION
) -> BatchBuilder:
    limits = BatchLimits(items_max, body_bytes_max, linger_seconds=1.0)
    return BatchBuilder(partition, 3, limits, event_decoder("refuse"))


def item_of(item_bytes: int, offset: int = 0) -> LogRecord:
    """A record whose item takes exactly so many bytes."""
    filling = item_bytes - len(event_json(key=""))
    return LogRecord(offset, event_json(key="k" * filling))


def ranges(batches: list[Batch]) -> list[tuple[int, int]]:
    return [batch.range for batch in batches]


def test_a_batch_covers_its_records_and_says_so() -> None:
    """Range, items, sum and body are those of the records, in the order of the log."""
    building = builder()
    building.extend(usage_records(3, first_offset=7))

    batch = building.cut()

    assert (7, 10, 3, 8 + 9 + 10) == (
        batch.first_offset,
        batch.next_offset,
        batch.items_count,
        batch.bits,
    )
    assert [8, 9, 10] == [item["bits"] for item in json.loads(batch.body)["items"]]
    assert (PARTITION, 3, ()) == (batch.partition, batch.epoch, batch.dead_letters)
    assert str(batch) == "usage:0[7,10)"


def test_items_fill_a_batch() -> None:
    """Every `items_max` records are a batch, the rest stays open."""
    building = builder(items_max=3)

    assert ranges(building.extend(usage_records(8))) == [(0, 3), (3, 6)]
    assert building.may_be_cut
    assert ranges([building.cut()]) == [(6, 8)]


def test_batches_of_one_item_hold_one_record_each() -> None:
    """With `items_max` 1 nothing waits, and a rejected record is a batch without items."""
    building = builder(items_max=1)
    first, second = usage_records(2)

    batches = building.extend([first, replace(second, value=b"{")])

    assert ranges(batches) == [(0, 1), (1, 2)]
    assert [batch.items_count for batch in batches] == [1, 0]
    assert [len(batch.dead_letters) for batch in batches] == [0, 1]
    assert not building.may_be_cut


@pytest.mark.parametrize(("over", "items"), [(0, 1), (1, 0)], ids=["at the limit", "one above"])
def test_a_single_item_may_fill_the_body_to_the_last_byte(over: int, items: int) -> None:
    """An item fits as long as the request with it does not exceed `body_bytes_max`."""
    building = builder(body_bytes_max=500)
    building.extend([item_of(500 - len(EMPTY_BODY) + over)])

    batch = building.cut()

    assert items == batch.items_count
    assert len(batch.body) == (500 if items else len(EMPTY_BODY))
    assert 1 - items == len(batch.dead_letters)


@pytest.mark.parametrize(("over", "cut"), [(0, []), (1, [(0, 1)])], ids=["fits", "does not"])
def test_two_items_may_fill_the_body_to_the_last_byte(over: int, cut: list[object]) -> None:
    """The comma between them counts, the one that is not there does not."""
    building = builder(body_bytes_max=500)
    second_bytes = 500 - len(EMPTY_BODY) - 200 - 1 + over

    assert ranges(building.extend([item_of(200), item_of(second_bytes, 1)])) == cut
    assert len(building.cut().body) == (500 if over == 0 else len(EMPTY_BODY) + second_bytes)


def test_an_item_that_fits_no_request_is_a_dead_letter() -> None:
    """The detail says its size and the setting; the value stays as it is."""
    building = builder(body_bytes_max=500)
    record = item_of(2**20)
    building.extend([record])

    (letter,) = building.cut().dead_letters

    assert record is letter.record
    assert letter.rejection.code == "item_too_large"
    assert letter.rejection.detail == (
        "the item takes 1048576 bytes and does not fit a request of 500 bytes"
        " (INGESTER_BODY_BYTES_MAX)"
    )


def test_an_endpoint_that_takes_less_is_sent_less() -> None:
    """The smaller limit cuts; what alone is beyond it goes alone, and may yet be refused."""
    building = builder(body_bytes_max=500)
    records = [item_of(100, 0), item_of(100, 1), item_of(300, 2), item_of(50, 3)]

    assert ranges(building.extend(records, 220)) == [(0, 2), (2, 3)]
    assert ranges([building.cut()]) == [(3, 4)]


def test_an_item_beyond_the_endpoints_limit_is_sent_all_the_same() -> None:
    """It is no dead letter for that, and the first of its batch."""
    building = builder(body_bytes_max=500)

    assert building.extend([item_of(400)], 300) == []
    (batch,) = building.extend([item_of(400, 1)], 300)
    assert (batch.items_count, len(batch.dead_letters)) == (1, 0)


@pytest.mark.parametrize(
    "value",
    [None, b"", b"{", b'{"bits":1.5}', event_json(key="k" * 600)],
    ids=lambda v: repr(v)[:20],
)
def test_a_rejected_record_changes_nothing_for_its_neighbours(value: bytes | None) -> None:
    """The same items are in the same request as without it; it alone is a dead letter."""
    records = usage_records(5)
    with_bad = [*records[:2], LogRecord(2, value), *records[3:]]
    without = [*records[:2], *records[3:]]
    first, second = builder(body_bytes_max=500), builder(body_bytes_max=500)

    assert first.extend(with_bad) == []
    assert second.extend(without) == []
    one, other = first.cut(), second.cut()

    assert (one.body, one.bits, one.items_count) == (other.body, other.bits, other.items_count)
    assert [letter.record for letter in one.dead_letters] == [with_bad[2]]
    assert one.idempotency_key == other.idempotency_key


def test_a_range_may_begin_and_end_with_rejected_records() -> None:
    """They belong to the range, so that it is committed only when they are written."""
    building = builder()
    (good,) = usage_records(1, first_offset=5)
    building.extend([LogRecord(3, None), good, LogRecord(9, b"?")])

    batch = building.cut()

    assert (3, 10, 1) == (batch.first_offset, batch.next_offset, batch.items_count)
    assert [3, 9] == [letter.record.offset for letter in batch.dead_letters]


def test_no_records_make_no_batch() -> None:
    """An empty fetch opens nothing, and there is nothing to cut."""
    building = builder()

    assert building.extend([]) == []
    assert not building.may_be_cut
    with pytest.raises(AssertionError):
        building.cut()


def test_bits_are_summed_beyond_64_bits() -> None:
    """The sum of a batch may exceed what each item may hold."""
    building = builder()
    building.extend([LogRecord(offset, event_json(2**63 - 1)) for offset in range(3)])

    assert 3 * (2**63 - 1) == building.cut().bits


def test_a_cut_leaves_nothing_behind() -> None:
    """What comes next is a batch of its own."""
    building = builder()
    building.extend([*usage_records(2), LogRecord(2, b"?")])
    building.cut()
    assert not building.may_be_cut
    assert building.buffered_bytes == 0

    building.extend(usage_records(1, first_offset=3))
    batch = building.cut()

    assert (3, 4, 1, 4) == (batch.first_offset, batch.next_offset, batch.items_count, batch.bits)
    assert batch.dead_letters == ()


def test_what_is_discarded_is_read_again() -> None:
    """After a discard the same records make the same batch as before."""
    building = builder()
    building.extend(usage_records(3))
    building.discard()
    assert not building.may_be_cut
    building.extend(usage_records(3))
    again = building.cut()
    building.extend(usage_records(3))

    assert again.body == building.cut().body


def test_values_count_for_the_buffer() -> None:
    """The open batch counts the values as they came, the cut one what the open one did."""
    building = builder()
    records = usage_records(4)
    building.extend(records)

    values_bytes = sum(len(record.value or b"") for record in records)
    assert values_bytes == building.buffered_bytes
    assert values_bytes == building.cut().buffered_bytes


def test_a_dead_letter_counts_with_all_that_it_keeps() -> None:
    """Tombstones with large keys or headers fill the buffer as values do; none is for nothing."""
    building = builder()
    building.extend(
        [LogRecord(0, None, key=b"k" * 1000, headers=[("trace", b"x" * 500), ("n", None)])]
    )
    with_all = building.buffered_bytes
    building.discard()
    building.extend([LogRecord(0, None)])

    assert building.buffered_bytes > 0
    assert 1000 + len("trace") + 500 + len("n") == with_all - building.buffered_bytes


def test_records_are_formed_as_one_batch_whatever_the_limits_are() -> None:
    """More items than fill one, and a body beyond what the endpoint takes."""
    records = [*usage_records(5), LogRecord(7, None)]
    batch = builder(items_max=2).form(records)

    assert (batch.first_offset, batch.next_offset, batch.items_count) == (0, 8, 5)
    assert [letter.record.offset for letter in batch.dead_letters] == [7]


def test_forming_in_the_midst_of_another_batch_is_a_bug() -> None:
    """Its records would be in both."""
    building = builder()
    building.extend(usage_records(1))

    with pytest.raises(AssertionError):
        building.form(usage_records(1, first_offset=1))


def test_an_intent_keeps_the_beginning_of_the_bodys_digest() -> None:
    """Pinned: another would take what every former version left in doubt for another body."""
    batch = builder().form(usage_records(3))

    assert batch.body_digest.hex() == "61a5da0199dc4c9673b9fa7ddb59ec923ce976d1"
    assert f"{batch.intent_digest:08x}" == batch.body_digest.hex()[:8]


# -- the key ------------------------------------------------------------------------------------


def key_of(records: list[LogRecord], partition: TopicPartition = PARTITION) -> str:
    building = builder(partition=partition)
    building.extend(records)
    return building.cut().idempotency_key


def test_the_key_is_the_same_for_the_same_range_on_any_worker() -> None:
    """It is pinned: another key for a batch in doubt would count it twice after an upgrade."""
    assert key_of(usage_records(3)) == "ingester-a02e9f821e13c5bb25cd28041b26dc32c5a0030b"


@pytest.mark.parametrize(
    "other",
    [
        lambda: key_of(usage_records(4)),
        lambda: key_of(usage_records(3, first_offset=1)),
        lambda: key_of(usage_records(3), TopicPartition("usage", 1)),
        lambda: key_of(usage_records(3), TopicPartition("usage2", 0)),
        lambda: key_of([replace(each, timestamp=0) for each in usage_records(3)]),
    ],
    ids=["longer", "later", "partition", "topic", "topic made anew"],
)
def test_the_key_is_another_for_another_range(other: object) -> None:
    """Range, partition, topic and the topic's own life are all in it."""
    assert callable(other)
    assert key_of(usage_records(3)) != other()
