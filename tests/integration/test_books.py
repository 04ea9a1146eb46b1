"""Receipts and dead letters read as streams, on a real broker."""

from __future__ import annotations

from aiokafka import TopicPartition as ClientPartition
from aiokafka.admin import RecordsToDelete

from ingester.audit.books import dead_letters, extents, notes
from ingester.core.deadletter import Origin
from ingester.core.record import TopicPartition
from ingester.kafka.client import offsets_since
from ingester.kafka.range import stream
from ingester.local_kafka import LocalKafka
from ingester.settings import LedgerSettings
from tests.conftest import TopicFactory
from tests.support.bookkeeping import dead_letter_headers, receipt
from tests.support.kafka import admin, produce
from tests.support.unreadable import produce_unreadable


def settings(kafka: LocalKafka, topic: str) -> LedgerSettings:
    return LedgerSettings.model_validate(
        {"kafka_bootstrap_servers": kafka.bootstrap_servers, "topic": topic}
    )


async def test_notes_are_read_as_far_as_they_are_written(
    kafka: LocalKafka, topic: TopicFactory
) -> None:
    """Of a shared receipts topic only one source's notes, in order, and none written later."""
    name, servers = await topic(), kafka.bootstrap_servers
    books = await topic(2, name=f"{name}.receipts")
    written = [receipt(name, first, first + 10, {"k": 1}) for first in (0, 10, 20)]
    others = [{"some": "thing"}, b"\xff", b"", receipt("other", 0, 10, {"k": 1})]
    await produce(servers, books, [*written[:2], *others, written[2]], partition=0)
    await produce(servers, books, [receipt(name, 0, 5, {}, partition=1)], partition=1)
    opened = await extents(settings(kafka, name), [books, "nowhere"])
    await produce(servers, books, [receipt(name, 30, 40, {"k": 1})], partition=0)

    found = [each async for each in notes(settings(kafka, name), opened, {name})]

    assert opened == {TopicPartition(books, 0): (0, 7), TopicPartition(books, 1): (0, 1)}
    by_partition = sorted(found, key=lambda each: each.source)
    assert [
        (each.source.partition, each.offset, each.note.first_offset) for each in by_partition
    ] == [
        (0, 0, 0),
        (0, 1, 10),
        (0, 6, 20),
        (1, 0, 0),
    ]


async def test_dead_letters_say_where_they_came_from(
    kafka: LocalKafka, topic: TopicFactory
) -> None:
    """A foreign record and another topic's are passed over; a repetition is not."""
    name, servers = await topic(), kafka.bootstrap_servers
    books = await topic(name=f"{name}.dead-letters")
    headers = [
        dead_letter_headers(name, 3, 17),
        [("ingester-source-topic", name.encode())],
        dead_letter_headers("other", 3, 17),
        dead_letter_headers(name, 3, 18, "refused", http_status="400", http_body="no"),
        dead_letter_headers(name, 3, 17),
    ]
    for each in headers:
        await produce(servers, books, [b"?"], headers=each)
    opened = await extents(settings(kafka, name), [books])

    found = [each async for each in dead_letters(settings(kafka, name), opened, {name})]

    detail = "the value is not JSON"
    assert [(each.record.offset, each.origin) for each in found] == [
        (0, Origin(TopicPartition(name, 3), 17, "invalid_json", detail, None, b"", None)),
        (3, Origin(TopicPartition(name, 3), 18, "refused", detail, 400, b"no", None)),
        (4, Origin(TopicPartition(name, 3), 17, "invalid_json", detail, None, b"", None)),
    ]


async def test_ranges_are_streamed_past_what_cannot_be_read(
    kafka: LocalKafka, topic: TopicFactory
) -> None:
    """Each partition's range and nothing beside it, without what stands behind a bad record."""
    name, servers = await topic(2), kafka.bootstrap_servers
    await produce(servers, name, [b"%d" % number for number in range(1200)], partition=0)
    await produce(servers, name, [b"a"], partition=1)
    await produce_unreadable(servers, name, [b"b", b"c", b"d"], 1, partition=1)
    await produce(servers, name, [b"e", b"f"], partition=1)

    found: dict[int, list[bytes | None]] = {0: [], 1: []}
    asked = {TopicPartition(name, 0): (100, 1100), TopicPartition(name, 1): (0, 5)}
    async for place, records in stream(settings(kafka, name), asked):
        found[place.partition] += [record.value for record in records]

    assert found == {0: [b"%d" % number for number in range(100, 1100)], 1: [b"a", b"b", b"e"]}


async def test_times_are_found_in_a_log_that_has_lost_its_beginning(
    kafka: LocalKafka, topic: TopicFactory
) -> None:
    """The first of a moment or later, even where brokers find nothing."""
    name, servers = await topic(), kafka.bootstrap_servers
    for number in range(6):
        await produce(servers, name, [b"x"], partition=0, timestamp_ms=1000 * (number + 1))
    where = TopicPartition(name, 0)

    async def since(*moments: int) -> list[int]:
        return [
            (await offsets_since(settings(kafka, name), {where: each}))[where] for each in moments
        ]

    assert await since(0, 1000, 1001, 5000, 9000) == [0, 0, 1, 4, 6]
    async with admin(servers) as client:
        deleted = {ClientPartition(name, 0): RecordsToDelete(before_offset=3)}
        await client.delete_records(deleted)
    assert await since(0, 1000, 4000, 4001, 5000, 9000) == [3, 3, 3, 4, 4, 6]


async def test_times_are_found_behind_what_cannot_be_read(
    kafka: LocalKafka, topic: TopicFactory
) -> None:
    """Where brokers find nothing, and a record that nobody can read is in between."""
    name, servers = await topic(), kafka.bootstrap_servers
    await produce(servers, name, [b"x"], partition=0, timestamp_ms=1000)
    await produce_unreadable(servers, name, [b"x"], 0)
    await produce(servers, name, [b"x"], partition=0, timestamp_ms=3000)
    async with admin(servers) as client:
        deleted = {ClientPartition(name, 0): RecordsToDelete(before_offset=1)}
        await client.delete_records(deleted)
    where = TopicPartition(name, 0)

    assert (await offsets_since(settings(kafka, name), {where: 1000}))[where] == 2
