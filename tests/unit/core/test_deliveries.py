"""Which batches somebody still wants to know about, and how much they hold."""

from __future__ import annotations

import pytest

from ingester.core.batch import BatchBuilder, BatchLimits
from ingester.core.coverage import Coverage
from ingester.core.deadletter import DeadLetterWindow
from ingester.core.deliveries import Deliveries
from ingester.core.dispatch import Delivery
from ingester.core.event import event_decoder
from ingester.core.offsets import OffsetTracker, Span
from ingester.core.partition import Partition
from ingester.core.record import TopicPartition
from tests.support.records import usage_records
from tests.support.scenario import LIMITS, P0, P1


def partition(name: TopicPartition) -> Partition:
    return Partition(
        BatchBuilder(name, 1, BatchLimits(2, 1000, 1.0), event_decoder("refuse")),
        Coverage(name, ()),
        OffsetTracker(0),
        DeadLetterWindow(LIMITS.dead_letters),
        DeadLetterWindow(LIMITS.dead_letters),
        quiet_at=0.0,
        acknowledged=(),
        committed=0,
        resent=(),
    )


def delivery(part: Partition) -> Delivery:
    batch = part.builder.form(usage_records(2))
    return Delivery(batch, Span(0, 2, batch.intent_digest))


def test_a_batch_is_known_from_its_cut_until_it_is_forgotten() -> None:
    """By itself: the same range formed again is another one."""
    part = partition(P0)
    deliveries = Deliveries({P0: part})
    one, other = delivery(part), delivery(part)
    assert not deliveries
    deliveries.add(one)

    assert deliveries.of(one.batch) is one
    assert deliveries.of(other.batch) is None
    assert (one in deliveries, other in deliveries) == (True, False)
    assert list(deliveries) == [one]
    deliveries.forget([one])
    assert deliveries.of(one.batch) is None
    assert not deliveries


def test_bytes_are_those_of_all_and_of_each_partition() -> None:
    """They are given back when a batch is forgotten, settled or not."""
    parts = {P0: partition(P0), P1: partition(P1)}
    deliveries = Deliveries(parts)
    one, other = delivery(parts[P0]), delivery(parts[P1])
    deliveries.add(one)
    deliveries.add(other)
    size = one.batch.buffered_bytes
    assert (deliveries.bytes, parts[P0].batches_bytes, parts[P1].batches_bytes) == (
        2 * size,
        size,
        size,
    )
    deliveries.forget([one])

    assert (deliveries.bytes, parts[P0].batches_bytes, parts[P1].batches_bytes) == (size, 0, size)
    deliveries.clear()
    assert (deliveries.bytes, len(deliveries)) == (0, 0)


def test_to_forget_what_is_not_known_is_a_bug() -> None:
    """Its bytes would be given back twice."""
    part = partition(P0)
    deliveries = Deliveries({P0: part})

    with pytest.raises(KeyError):
        deliveries.forget([delivery(part)])
