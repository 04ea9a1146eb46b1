"""Records on their way to a real broker that refuses some of them."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import pytest
from aiokafka.admin import NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from ingester.core.deadletter import DeadLetter
from ingester.core.event import Rejection
from ingester.core.record import TopicPartition
from ingester.errors import UnavailableError
from ingester.kafka.writing import RecordTooLargeError, RecordWriter
from ingester.local_kafka import LocalKafka
from ingester.settings import KafkaSettings
from tests.conftest import TopicFactory
from tests.support.kafka import admin, end_offsets, read_all
from tests.support.waiting import eventually_async

SMALL = b"small"
LARGE = os.urandom(30_000)
LIMIT = {"max.message.bytes": "20000"}  # above what the client puts together
SOURCE = TopicPartition("usage", 3)


class Consumed(NamedTuple):
    """A record as the client hands it over."""

    value: bytes
    topic: str = "usage"
    partition: int = 0
    offset: int = 41
    timestamp: int = -1
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


@pytest.fixture
async def writer(kafka: LocalKafka) -> AsyncIterator[RecordWriter]:
    settings = KafkaSettings(kafka_bootstrap_servers=(kafka.bootstrap_servers,), topic=("usage",))
    made = RecordWriter(settings, compress=False)
    await made.start()
    yield made
    await made.stop()


async def test_what_follows_a_failed_write_is_written(
    writer: RecordWriter, topic: TopicFactory
) -> None:
    """Though the broker now expects another sequence number than the client has."""
    name = await topic(config=LIMIT)
    first = await (await writer.send(name, SMALL, None, 0))
    with pytest.raises(UnavailableError, match="MessageSizeTooLarge"):
        await (await writer.send(name, LARGE, None, 0))

    second = await (await writer.send(name, SMALL, None, 0))

    assert [first.offset, second.offset] == [0, 1]


async def test_a_partition_that_was_added_is_written_to(
    writer: RecordWriter, topic: TopicFactory, kafka: LocalKafka
) -> None:
    """The client asks for what it has not heard of, before it says that it is not there."""
    name = await topic()
    await writer.write(name, SMALL, None, 0)
    with pytest.raises(UnavailableError, match="it has no partition 1 yet"):
        await writer.write(name, SMALL, None, 1)
    async with admin(kafka.bootstrap_servers) as client:
        await client.create_partitions({name: NewPartitions(2)})

    async def is_there() -> bool:
        return len(await end_offsets(kafka.bootstrap_servers, name)) == 2

    await eventually_async(is_there)

    written = await writer.write(name, SMALL, None, 1)

    assert written.partition == (name, 1)


async def test_dead_letters_that_follow_a_failed_one_are_written(
    writer: RecordWriter, topic: TopicFactory
) -> None:
    """The topic takes them as soon as it can; until then it is said why it did not."""
    name = await topic(config=LIMIT)
    small, large = (
        DeadLetter(Consumed(value), Rejection("invalid_json", "no")) for value in (SMALL, LARGE)
    )
    assert await writer.write_dead_letters(name, SOURCE, [small]) is None
    problem = await writer.write_dead_letters(name, SOURCE, [small, large])
    assert problem is not None
    assert problem.refused
    assert f"topic {name} does not take a record of its size" in problem.reason
    assert "raise its max.message.bytes" in problem.reason

    assert await writer.write_dead_letters(name, SOURCE, [small]) is None


async def test_what_is_under_way_elsewhere_is_written_once(
    writer: RecordWriter, topic: TopicFactory, kafka: LocalKafka
) -> None:
    """A producer that is replaced ends what it has: acknowledged is what is in the topic."""
    name = await topic(2, config=LIMIT)
    values = [b"%d" % number for number in range(1000)]
    futures = []
    for number, value in enumerate(values):
        futures.append(await writer.send(name, value, None, 1))
        if number == 500:
            failing = await writer.send(name, LARGE, None, 0)
            await asyncio.wait({failing})
            futures += [await writer.send(name, SMALL, None, 0)]
    written = await asyncio.gather(*futures)
    assert isinstance(failing.exception(), UnavailableError)

    found = await read_all(kafka.bootstrap_servers, name)

    assert Counter(each.value for each in found) == Counter([*values, SMALL])
    assert [each.offset for each in written if each.partition.partition == 1] == list(range(1000))


async def test_many_at_once_are_written_in_their_order(
    writer: RecordWriter, topic: TopicFactory, kafka: LocalKafka
) -> None:
    """Each once, whatever the client holds in a batch; their offsets are told."""
    name = await topic(2)
    values = [b"%d," % number * 2_000 for number in range(100)]  # some 900 KiB
    first, second = await asyncio.gather(
        writer.write_all(name, 1, b"source", values), writer.write_all(name, 1, b"source", [SMALL])
    )

    found = await read_all(kafka.bootstrap_servers, name)

    by_offset = {each.offset: each.value for each in found if each.partition == 1}
    assert [by_offset[offset] for offset in first] == values
    assert list(first) == sorted(first)
    assert by_offset[second[0]] == SMALL
    assert len(found) == 101
    assert {each.key for each in found} == {b"source"}


async def test_many_at_once_are_refused_together(writer: RecordWriter, topic: TopicFactory) -> None:
    """And those that follow are written."""
    name = await topic(config=LIMIT)
    with pytest.raises(RecordTooLargeError, match=r"raise its max\.message\.bytes"):
        await writer.write_all(name, 0, b"source", [SMALL, LARGE])

    assert await writer.write_all(name, 0, b"source", [SMALL, SMALL]) == [0, 1]


async def test_writes_to_where_they_fail_take_turns(
    writer: RecordWriter, topic: TopicFactory, kafka: LocalKafka
) -> None:
    """However many wait, few are tried; as soon as one succeeds all the others follow."""
    name = await topic(config=LIMIT)
    failed = await writer.send(name, LARGE, None, 0)
    await asyncio.wait({failed})
    started = time.monotonic()

    async def write() -> None:
        await (await writer.send(name, LARGE, None, 0))

    waiting = {asyncio.create_task(write()) for _ in range(100)}
    try:

        async def several_have_failed() -> bool:
            return sum(each.done() for each in waiting) == 2

        await eventually_async(several_have_failed)
        assert time.monotonic() - started > 0.5 + 1
        for each in [each for each in waiting if each.done()]:
            assert isinstance(each.exception(), UnavailableError)
            waiting.discard(each)
        async with admin(kafka.bootstrap_servers) as client:
            resource = ConfigResource(
                ConfigResourceType.TOPIC, name, configs={"max.message.bytes": "1000000"}
            )
            await client.alter_configs([resource])
        async with asyncio.timeout(30):
            await asyncio.gather(*waiting)
    finally:
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
