"""Lists of records beside what the client itself makes of the same log, on a real broker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from ingester.kafka.reading import UnreadableRecordError, read_in_lists
from ingester.local_kafka import LocalKafka
from tests.conftest import TopicFactory
from tests.support.kafka import end_offsets
from tests.support.unreadable import produce_unreadable
from tests.support.waiting import eventually_async

COMPACTED_SECONDS_MAX = 120.0  # a broker's cleaner looks every 15 seconds, unless it is told else
Content = tuple[int, int, bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]


def content(record: Any) -> Content:
    return record.offset, record.timestamp, record.key, record.value, list(record.headers)


@asynccontextmanager
async def consumer_of(
    kafka: LocalKafka, topic: str, offset: int
) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers,
        isolation_level="read_committed",
        auto_offset_reset="none",
        max_poll_records=1,
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        consumer.seek(TopicPartition(topic, 0), offset)
        yield consumer
    finally:
        await consumer.stop()


async def read_by_client(kafka: LocalKafka, topic: str, offset: int = 0) -> list[Content]:
    """What the client's own iterators say."""
    found: list[Content] = []
    (end,) = (await end_offsets(kafka.bootstrap_servers, topic)).values()
    async with consumer_of(kafka, topic, offset) as consumer:
        while await consumer.position(TopicPartition(topic, 0)) < end:
            for records in (await consumer.getmany(timeout_ms=100, max_records=500)).values():
                found += map(content, records)
    return found


async def read_in_lists_of(
    kafka: LocalKafka, topic: str, records_max: int, offset: int = 0
) -> list[list[Content]]:
    """What our lists say, up to the end of the log."""
    found: list[list[Content]] = []
    (end,) = (await end_offsets(kafka.bootstrap_servers, topic)).values()
    async with consumer_of(kafka, topic, offset) as consumer:
        read_in_lists(consumer, records_max)
        while await consumer.position(TopicPartition(topic, 0)) < end:
            for (records,) in (await consumer.getmany(timeout_ms=100)).values():
                found.append(list(map(content, records)))
    return found


async def write(
    producer: AIOKafkaProducer, topic: str, numbers: Sequence[int], *, key: bytes | None = None
) -> None:
    sent = [
        await producer.send(
            topic,
            b'{"number":%d}' % number,
            key=key or b"key-%d" % number,
            partition=0,
            headers=[("trace", b"\x00"), ("lang", None)] if number % 3 else [],
        )
        for number in numbers
    ]
    for each in sent:
        await each


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("records_max", [1, 7, 500])
async def test_lists_hold_what_was_committed_and_nothing_else(
    kafka: LocalKafka, topic: TopicFactory, records_max: int, compression: str | None
) -> None:
    """Aborted transactions, markers and open ends are passed over as the client passes them."""
    name = await topic()
    async with (
        AIOKafkaProducer(
            bootstrap_servers=kafka.bootstrap_servers,
            compression_type=compression,
            enable_idempotence=True,
        ) as plain,
        AIOKafkaProducer(
            bootstrap_servers=kafka.bootstrap_servers,
            compression_type=compression,
            transactional_id=f"{name}-writer",
        ) as writer,
    ):
        await write(plain, name, range(20))
        await writer.begin_transaction()
        await write(writer, name, range(20, 30))
        await write(plain, name, range(30, 40))
        await writer.abort_transaction()
        async with writer.transaction():
            await write(writer, name, range(40, 50))
        await write(plain, name, range(50, 61))

    lists = await read_in_lists_of(kafka, name, records_max)
    read = [each for records in lists for each in records]

    assert await read_by_client(kafka, name) == read
    numbers = [*range(20), *range(30, 61)]
    assert [b'{"number":%d}' % number for number in numbers] == [each[3] for each in read]
    assert max(map(len, lists)) <= records_max


@pytest.mark.parametrize("offset", [0, 1, 19, 20, 33, 60])
async def test_lists_begin_at_the_position(
    kafka: LocalKafka, topic: TopicFactory, offset: int
) -> None:
    """A fetch from the middle of a record batch brings all of it, and nothing below is read."""
    name = await topic()
    async with AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers, linger_ms=50
    ) as producer:
        await write(producer, name, range(20))
        sent = [await producer.send(name, b"%d" % number, partition=0) for number in range(20, 61)]
        for each in sent:
            await each

    read = [each for records in await read_in_lists_of(kafka, name, 8, offset) for each in records]

    assert list(range(offset, 61)) == [each[0] for each in read]
    assert await read_by_client(kafka, name, offset) == read


async def test_gaps_of_a_compacted_log_are_passed(kafka: LocalKafka, topic: TopicFactory) -> None:
    """What compaction has taken out of record batches, their ends too, stops nothing."""
    name = await topic(
        config={
            "cleanup.policy": "compact",
            "min.cleanable.dirty.ratio": "0.01",
            "max.compaction.lag.ms": "1",
            "segment.ms": "50",
        }
    )
    async with AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers, linger_ms=20
    ) as producer:

        async def compacted() -> list[Content] | None:
            # Segments are rolled by writes, and only those before the last are compacted.
            await write(producer, name, range(30), key=b"same")
            read = await read_by_client(kafka, name)
            whole = list(range(read[0][0], read[-1][0] + 1))
            return read if whole != [each[0] for each in read] else None

        await write(producer, name, range(30))
        await write(producer, name, range(30), key=b"same")
        expected = await eventually_async(compacted, COMPACTED_SECONDS_MAX)

    read = [each for records in await read_in_lists_of(kafka, name, 500) for each in records]

    assert expected is not None
    assert await read_by_client(kafka, name) == read


async def test_what_precedes_an_unreadable_record_is_read_first(
    kafka: LocalKafka, topic: TopicFactory
) -> None:
    """A header name that is no UTF-8, which brokers take, costs no record before it."""
    name = await topic()
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        await write(producer, name, range(5))
    values = [b"%d" % number for number in range(5, 10)]
    await produce_unreadable(kafka.bootstrap_servers, name, values, 3)

    async with consumer_of(kafka, name, 0) as consumer:
        read_in_lists(consumer, 500)
        offsets: list[int] = []
        failures = []
        while len(failures) < 2:  # and each time it is tried again
            try:
                for (records,) in (await consumer.getmany(timeout_ms=100)).values():
                    offsets += [record.offset for record in records]
            except UnreadableRecordError as error:
                failures.append(error)

    assert list(range(8)) == offsets
    assert (name, 0) == failures[0].partition
    assert (8, 10) == (failures[0].offset, failures[0].next_offset)
    assert "the record at or after offset 8 cannot be read" in str(failures[0])
    assert str(failures[0]) == str(failures[1])
