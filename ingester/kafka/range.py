"""Reads ranges of partitions once more, beside the consumer that has passed them.

For batches that PacSpace refuses, whose records nobody kept: keeping all for the sake of a few
would take several times the memory. For a look at what that consumer cannot read; and for whoever
audits what it has read.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import aiokafka
from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka_errors

from ingester.core.intent import Range
from ingester.core.ranges import holds
from ingester.core.record import Record, TopicPartition
from ingester.errors import UnavailableError
from ingester.kafka.client import (
    POLL_SECONDS,
    closed,
    group_less_consumer,
    start_to_ask,
    translate,
)
from ingester.kafka.reading import UnreadableRecordError, read_in_lists
from ingester.settings import KafkaSettings

_READ_SECONDS_MAX: Final = 30.0
_READ_RECORDS_MAX: Final = 500
_BEYOND: Final = 2**63  # no offset is as high
_NEAR_OFFSETS: Final = 20_000  # to read on over so many takes less time than to connect anew


async def stream(
    settings: KafkaSettings,
    extents: Mapping[TopicPartition, Range],
    unreadable: list[tuple[TopicPartition, Range]] | None = None,
) -> AsyncGenerator[tuple[TopicPartition, Sequence[Record]]]:
    """Yield what the log has of one range of each partition, in lists, in the order of each.

    Records that cannot be read are left out, and those of their record batch behind them; which
    they were is added to `unreadable`, which may go beyond the range.
    Whoever may not take all of it closes it. UnavailableError when Kafka does not answer for long.
    """
    ranges = {aiokafka.TopicPartition(*name): (at, end) for name, (at, end) in extents.items()}
    if not any(at < end for at, end in ranges.values()):
        return
    async with (
        _lists_reader(settings, extents) as consumer,
        aclosing(_lists(consumer, ranges, unreadable)) as lists,
    ):
        async for each in lists:
            yield each


async def read_to_end(
    settings: KafkaSettings, starts: Mapping[TopicPartition, int]
) -> AsyncIterator[tuple[TopicPartition, Record]]:
    """Yield the records of each partition from an offset up to what is its end now.

    One with a header name that is no UTF-8 is left out, as is its record batch behind it: nothing
    that a worker wrote is there. UnavailableError for one that is damaged, which may be a worker's.
    """
    if not starts:
        return
    asked = {aiokafka.TopicPartition(*name): at for name, at in starts.items()}
    async with _lists_reader(settings, starts) as consumer:
        ends = await consumer.end_offsets(list(asked))
        ranges = {name: (at, ends[name]) for name, at in asked.items()}
        async with aclosing(_lists(consumer, ranges, pass_damaged=False)) as lists:
            async for place, records in lists:
                for record in records:
                    yield place, record


@asynccontextmanager
async def _lists_reader(
    settings: KafkaSettings, names: Iterable[TopicPartition]
) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = group_less_consumer(settings)
    try:
        await start_to_ask(consumer, names)
        read_in_lists(consumer, _READ_RECORDS_MAX)
        yield consumer
    except TimeoutError as error:
        raise _silent(names) from error
    except kafka_errors.KafkaError as error:
        raise translate(error, "Kafka") from error
    finally:
        await closed(consumer.stop())


async def _lists(
    consumer: AIOKafkaConsumer,
    ranges: Mapping[aiokafka.TopicPartition, Range],
    unreadable: list[tuple[TopicPartition, Range]] | None = None,
    *,
    pass_damaged: bool = True,
) -> AsyncGenerator[tuple[TopicPartition, Sequence[Record]]]:
    ends = {name: end for name, (at, end) in ranges.items() if at < end}
    consumer.assign(list(ends))
    for name in ends:
        consumer.seek(name, ranges[name][0])
    left = list(ends)
    while left:
        async with asyncio.timeout(_READ_SECONDS_MAX):
            name, records = await _list_of(consumer, left, unreadable, pass_damaged=pass_damaged)
        end = ends[name]
        if records and records[-1].offset >= end:
            records = [record for record in records if record.offset < end]
        if records:
            yield TopicPartition(*name), records
        left = [each for each in left if await consumer.position(each) < ends[each]]
        consumer.pause(*(each for each in ends if each not in left))


async def ranges_of(
    settings: KafkaSettings,
    partition: TopicPartition,
    ranges: Sequence[Range],
    unreadable: list[tuple[TopicPartition, Range]] | None = None,
) -> AsyncIterator[Sequence[Record]]:
    """Yield what the log has of ascending ranges; what lies near is read in one go.

    The rest is as of `stream`.
    """
    near: list[list[Range]] = []
    for range_ in ranges:
        if near and range_[0] - near[-1][-1][1] < _NEAR_OFFSETS:
            near[-1].append(range_)
        else:
            near.append([range_])
    for several in near:
        extent = (several[0][0], several[-1][1])
        async for _, records in stream(settings, {partition: extent}, unreadable):
            yield [record for record in records if holds(several, record.offset)]


async def not_empty(
    settings: KafkaSettings, partition: TopicPartition, ranges: Sequence[Range]
) -> Sequence[Range]:
    """Return those of ascending ranges of which the log has a record.

    Others hold transaction markers, aborted records, and what was compacted. Of a long range no
    more than the first record is looked for. The rest is as of `stream`.
    """
    short = [each for each in ranges if each[1] - each[0] <= _NEAR_OFFSETS]
    found: list[Range] = []
    async for records in ranges_of(settings, partition, short):
        for record in records:
            if not found or found[-1][1] <= record.offset:
                found.append(short[bisect_right(short, (record.offset, _BEYOND)) - 1])
    found += [
        each
        for each in ranges
        if each[1] - each[0] > _NEAR_OFFSETS and await first_records(settings, {partition: [each]})
    ]
    return sorted(found)


async def first_records(
    settings: KafkaSettings, ranges: Mapping[TopicPartition, Sequence[Range]]
) -> Mapping[TopicPartition, Record]:
    """The first record in ascending ranges, as far as it can be read; left out where there is none.

    UnavailableError when Kafka does not answer for long.
    """
    left = {aiokafka.TopicPartition(*name): deque(each) for name, each in ranges.items() if each}
    found: dict[TopicPartition, Record] = {}
    if not left:
        return found
    consumer = group_less_consumer(settings)
    try:
        await start_to_ask(consumer, ranges)
        read_in_lists(consumer, 1)
        consumer.assign(list(left))
        for name, wanted in left.items():
            consumer.seek(name, wanted[0][0])
        while left:
            async with asyncio.timeout(_READ_SECONDS_MAX):
                name, records = await _list_of(consumer, list(left))
            at = records[0].offset if records else await consumer.position(name)
            wanted = left[name]
            while wanted and wanted[0][1] <= at:
                wanted.popleft()
            if not wanted:
                del left[name]
            elif at < wanted[0][0]:
                consumer.seek(name, wanted[0][0])
            elif records:
                found[TopicPartition(*name)] = records[0]
                del left[name]
    except TimeoutError as error:
        raise _silent(ranges) from error
    except kafka_errors.KafkaError as error:
        raise translate(error, "Kafka") from error
    finally:
        await closed(consumer.stop())
    return found


async def _list_of(
    consumer: AIOKafkaConsumer,
    names: Sequence[aiokafka.TopicPartition],
    unreadable: list[tuple[TopicPartition, Range]] | None = None,
    *,
    pass_damaged: bool = True,
) -> tuple[aiokafka.TopicPartition, Sequence[Record]]:
    """Return the next records of one of these; none where the position moved without any."""
    before = {name: await consumer.position(name) for name in names}
    while True:
        try:
            fetched: Any = await consumer.getmany(
                *names, timeout_ms=int(POLL_SECONDS * 1000), max_records=1
            )
        except UnreadableRecordError as error:
            if isinstance(error.__cause__, kafka_errors.KafkaError) and not pass_damaged:
                raise error.__cause__ from error
            name = aiokafka.TopicPartition(*error.partition)
            if unreadable is not None:
                unreadable.append((error.partition, (error.offset, error.next_offset)))
            consumer.seek(name, error.next_offset)
            return name, ()
        for name, lists in fetched.items():
            return name, [record for records in lists for record in records]
        for name in names:
            if await consumer.position(name) > before[name]:
                return name, ()


def _silent(names: Iterable[TopicPartition]) -> UnavailableError:
    asked = ", ".join(map(str, names))
    return UnavailableError(
        f"Kafka gave nothing of {asked} for {_READ_SECONDS_MAX:g} s. `ingester check` says why."
    )


class RangeReader:
    """One connection, made by the first read and used by one read at a time."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._consumer: AIOKafkaConsumer | None = None
        self._lock = asyncio.Lock()

    async def read(
        self, partition: TopicPartition, first_offset: int, next_offset: int
    ) -> Sequence[Record]:
        """Return what the log has of `[first_offset, next_offset)`; UnavailableError to try again.

        Fewer records than were there once mean that the log has lost some, or that they cannot be
        read any more; those before them are returned.
        """
        found: list[Record] = []
        async with self._reading(partition, first_offset) as (consumer, name):
            try:
                while await consumer.position(name) < next_offset:
                    found += await _next(consumer, name)
            except UnreadableRecordError:
                pass
        return [record for record in found if record.offset < next_offset]

    async def unreadable(self, partition: TopicPartition, first_offset: int) -> Range | None:
        """Return what has to be passed if no record from an offset on is read before one cannot be.

        UnavailableError to try again.
        """
        async with self._reading(partition, first_offset) as (consumer, name):
            ends = await consumer.end_offsets([name])
            try:
                while await consumer.position(name) < ends[name]:
                    if await _next(consumer, name):
                        return None
            except UnreadableRecordError as error:
                return first_offset, min(error.next_offset, ends[name])
        return None

    async def stop(self) -> None:
        """Disconnect; the next read connects again."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await closed(consumer.stop())

    @asynccontextmanager
    async def _reading(
        self, partition: TopicPartition, first_offset: int
    ) -> AsyncIterator[tuple[AIOKafkaConsumer, aiokafka.TopicPartition]]:
        """Stand at an offset, alone and for a bounded time; UnavailableError to try again."""
        async with self._lock:
            try:
                async with asyncio.timeout(_READ_SECONDS_MAX):
                    consumer = self._consumer or await self._connect()
                    name = aiokafka.TopicPartition(*partition)
                    consumer.assign([name])
                    consumer.seek(name, first_offset)
                    yield consumer, name
            except TimeoutError as error:
                await self.stop()
                raise UnavailableError(
                    f"{partition} could not be read again from offset {first_offset} on within"
                    f" {_READ_SECONDS_MAX:g} s."
                ) from error
            except kafka_errors.KafkaError as error:
                await self.stop()
                raise translate(error, "Kafka") from error

    async def _connect(self) -> AIOKafkaConsumer:
        self._consumer = consumer = group_less_consumer(self._settings)
        await consumer.start()
        read_in_lists(consumer, _READ_RECORDS_MAX)
        return consumer


async def _next(consumer: AIOKafkaConsumer, name: aiokafka.TopicPartition) -> Sequence[Record]:
    """Return the next records, none after a while; UnreadableRecordError when they cannot be."""
    fetched: Any = await consumer.getmany(name, timeout_ms=int(POLL_SECONDS * 1000), max_records=1)
    return [record for records in fetched.get(name, ()) for record in records]
