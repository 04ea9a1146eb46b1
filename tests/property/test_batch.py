"""Batches against a naive cutter, however the log is split over fetches."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from ingester.core.batch import Batch, BatchBuilder, BatchLimits
from ingester.core.event import event_decoder
from ingester.core.refusals import halves
from tests.support.records import PARTITION, Entry, make_logs

DECODE = event_decoder("refuse")
BATCH_LIMITS = st.builds(
    BatchLimits,
    items_max=st.integers(1, 8),
    body_bytes_max=st.integers(80, 600),
    linger_seconds=st.just(1.0),
)
Range = tuple[int, int, bytes, int, int, list[int]]


def log_of(limits: BatchLimits, seed: int, count: int) -> Sequence[Entry]:
    logs = make_logs(Random(seed), 1, count, limits)
    return logs[PARTITION]


def cut_in_fetches(
    limits: BatchLimits,
    log: Sequence[Entry],
    sizes: Sequence[int],
    cut_bytes_max: int = sys.maxsize,
) -> list[Batch]:
    """Return all batches of the log, fetched in pieces of these sizes, the rest at once."""
    builder = BatchBuilder(PARTITION, 1, limits, DECODE)
    records = [entry.record for entry in log]
    batches = []
    position = 0
    for size in [*sizes, len(records)]:
        batches += builder.extend(records[position : position + size], cut_bytes_max)
        position += size
    return [*batches, builder.cut()] if builder.may_be_cut else batches


def described(batch: Batch) -> Range:
    letters = [letter.record.offset for letter in batch.dead_letters]
    return (
        batch.first_offset,
        batch.next_offset,
        batch.body,
        batch.items_count,
        batch.bits,
        letters,
    )


def naively_cut(
    limits: BatchLimits, log: Sequence[Entry], cut_bytes_max: int = sys.maxsize
) -> list[Range]:
    """Cut before what does not fit, and after what fills: the rule, without sums kept."""
    ranges: list[list[Entry]] = [[]]
    for entry in log:
        joined = body_of([*ranges[-1], entry])
        fits = entry.item is None or len(joined) <= min(limits.body_bytes_max, cut_bytes_max)
        if not fits and ranges[-1]:
            ranges.append([])
        ranges[-1].append(entry)
        if len(ranges[-1]) == limits.items_max:
            ranges.append([])
    return [
        (
            entries[0].record.offset,
            entries[-1].record.offset + 1,
            body_of(entries),
            sum(entry.item is not None for entry in entries),
            sum(json.loads(entry.item)["bits"] for entry in entries if entry.item is not None),
            [entry.record.offset for entry in entries if entry.item is None],
        )
        for entries in ranges
        if entries
    ]


def body_of(entries: Sequence[Entry]) -> bytes:
    items = [entry.item for entry in entries if entry.item is not None]
    return b'{"items":[' + b",".join(items) + b"]}"


@given(BATCH_LIMITS, st.integers(0, 2**32), st.integers(1, 60), st.lists(st.integers(0, 9)))
def test_batches_are_those_of_the_rule_however_the_log_is_fetched(
    limits: BatchLimits, seed: int, count: int, sizes: list[int]
) -> None:
    """Boundaries, bytes and sums depend on records and limits alone, at every size of fetch."""
    log = log_of(limits, seed, count)

    assert naively_cut(limits, log) == [described(b) for b in cut_in_fetches(limits, log, sizes)]


@given(
    BATCH_LIMITS,
    st.integers(0, 2**32),
    st.integers(1, 60),
    st.lists(st.integers(0, 9)),
    st.integers(1, 600),
)
def test_an_endpoint_that_takes_less_gets_less(
    limits: BatchLimits, seed: int, count: int, sizes: list[int], cut_bytes_max: int
) -> None:
    """Batches are cut by the smaller limit, and no item becomes a dead letter for its sake."""
    log = log_of(limits, seed, count)
    batches = cut_in_fetches(limits, log, sizes, cut_bytes_max)

    assert naively_cut(limits, log, cut_bytes_max) == [described(batch) for batch in batches]


@given(BATCH_LIMITS, st.integers(0, 2**32), st.integers(1, 60), st.data())
def test_halves_of_any_batch_are_the_whole(
    limits: BatchLimits, seed: int, count: int, data: st.DataObject
) -> None:
    """The same items in the same order, each half's own range, key and dead letters, to the last.

    Formed by anybody from what the log has of the range.
    """
    log = log_of(limits, seed, count)
    batches = [b for b in cut_in_fetches(limits, log, []) if b.items_count > 1]
    if not batches:
        return
    batch = data.draw(st.sampled_from(batches))
    records = [
        entry.record
        for entry in log
        if batch.first_offset <= entry.record.offset < batch.next_offset
    ]
    builder = BatchBuilder(PARTITION, 1, limits, DECODE)
    assert described(builder.form(records)) == described(batch)

    one, other = (builder.form(part) for part in halves(batch, records))

    assert (one.first_offset, other.next_offset) == batch.range
    assert one.next_offset <= other.first_offset
    assert other.items_count - one.items_count in (0, 1)
    assert one.items_count + other.items_count == batch.items_count
    assert one.body[:-2] + b"," + other.body[len(b'{"items":[') :] == batch.body
    assert one.dead_letters + other.dead_letters == batch.dead_letters
    assert one.bits + other.bits == batch.bits
    assert one.buffered_bytes + other.buffered_bytes == batch.buffered_bytes
    assert len({batch.idempotency_key, one.idempotency_key, other.idempotency_key}) == 3


@given(BATCH_LIMITS, st.integers(0, 2**32), st.integers(1, 60))
def test_no_body_is_beyond_its_limit_and_each_is_json(
    limits: BatchLimits, seed: int, count: int
) -> None:
    """Every body keeps to the limit and holds as many items as the batch says."""
    for batch in cut_in_fetches(limits, log_of(limits, seed, count), []):
        assert len(batch.body) <= limits.body_bytes_max
        assert batch.items_count == len(json.loads(batch.body)["items"])


@given(BATCH_LIMITS, st.integers(0, 2**32), st.integers(1, 60), st.lists(st.integers(0, 9)))
def test_the_buffer_is_empty_when_all_is_cut(
    limits: BatchLimits, seed: int, count: int, sizes: list[int]
) -> None:
    """What the batches count for is what was counted for their records, no more and no less."""
    log = log_of(limits, seed, count)
    one_by_one = cut_in_fetches(limits, log, [1] * count)
    in_pieces = cut_in_fetches(limits, log, sizes)
    values_bytes = sum(len(entry.record.value or b"") for entry in log)

    assert sum(b.buffered_bytes for b in one_by_one) == sum(b.buffered_bytes for b in in_pieces)
    assert sum(b.buffered_bytes for b in in_pieces) >= values_bytes
