"""Kafka as a test sees it from outside: topics, records, offsets. No code of the ingester's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError, for_code
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata, RecordMetadata

from tests.support.waiting import PAUSE_SECONDS, eventually_async

READ_SECONDS_MAX = 60.0
COORDINATOR_SECONDS_MAX = 30.0


async def create_topic(
    bootstrap_servers: str,
    name: str,
    partitions: int = 1,
    config: Mapping[str, str] | None = None,
) -> None:
    """Create a topic with the broker's default replication; every partition then has a leader.

    Unless its config says otherwise it keeps everything: tests write records of years ago, which
    a broker of a week's retention deletes when it looks next, be it a moment after they came.
    """
    async with admin(bootstrap_servers) as client:
        # The empty assignments are what makes aiokafka let the broker choose the replication.
        new = NewTopic(
            name,
            partitions,
            -1,
            replica_assignments={},
            topic_configs={"retention.ms": "-1", **(config or {})},
        )
        answer = await client.create_topics([new])
        for topic, code, *reason in answer.topic_errors:
            if code:
                raise for_code(code)(f"{topic}: {reason}")

        async def is_led() -> bool:
            (topic,) = await client.describe_topics([name])
            leaders = [partition["leader"] for partition in topic["partitions"]]
            return len(leaders) == partitions and min(leaders) >= 0

        await eventually_async(is_led)


async def delete_topics(bootstrap_servers: str, names: Sequence[str]) -> None:
    """Delete topics; one that is gone already is no error."""
    async with admin(bootstrap_servers) as client:
        await client.delete_topics(list(names))


async def produce(
    bootstrap_servers: str,
    topic: str,
    values: Iterable[bytes | Mapping[str, Any] | None],
    *,
    partition: int | None = None,
    key: bytes | None = None,
    headers: Sequence[tuple[str, bytes]] | None = None,
    timestamp_ms: int | None = None,
) -> list[RecordMetadata]:
    """Write records and return where each one is, in order, once all replicas have them.

    A mapping is written as JSON, None as a tombstone. Without a partition or a key, records are
    spread over the partitions.
    """
    async with AIOKafkaProducer(
        bootstrap_servers=bootstrap_servers, acks="all", enable_idempotence=True, linger_ms=5
    ) as producer:
        written = [
            await producer.send(
                topic,
                json.dumps(value).encode() if isinstance(value, Mapping) else value,
                key=key,
                partition=partition,
                headers=headers,
                timestamp_ms=timestamp_ms,
            )
            for value in values
        ]
        return list(await asyncio.gather(*written))


async def end_offsets(bootstrap_servers: str, topic: str) -> dict[int, int]:
    """The next offset of every partition; the open transaction of a writer is not counted."""
    async with _reader(bootstrap_servers) as consumer:
        return {
            where.partition: offset
            for where, offset in (await _ends(bootstrap_servers, consumer, topic)).items()
        }


async def read_all(bootstrap_servers: str, topic: str) -> list[ConsumerRecord]:
    """Every committed record up to where the topic ends now, partition by partition."""
    async with _reader(bootstrap_servers) as consumer, asyncio.timeout(READ_SECONDS_MAX):
        ends = await _ends(bootstrap_servers, consumer, topic)
        consumer.assign(list(ends))
        await consumer.seek_to_beginning()
        records: list[ConsumerRecord] = []
        while waiting := [end for end in ends if await consumer.position(end) < ends[end]]:
            fetched = await consumer.getmany(*waiting, timeout_ms=100)
            records += [record for batch in fetched.values() for record in batch]
        records.sort(key=lambda record: (record.partition, record.offset))
        return [
            record
            for record in records
            if record.offset < ends[TopicPartition(topic, record.partition)]
        ]


async def committed_offsets(
    bootstrap_servers: str, group: str
) -> dict[TopicPartition, OffsetAndMetadata]:
    """What a group has committed, with the metadata; empty for a group that never did."""
    async with admin(bootstrap_servers) as client, asyncio.timeout(COORDINATOR_SECONDS_MAX):
        while True:
            try:
                return await client.list_consumer_group_offsets(group)
            except (GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError):
                # The first question about any group makes the offsets topic.
                await asyncio.sleep(PAUSE_SECONDS)


@asynccontextmanager
async def admin(bootstrap_servers: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client until the end of the block."""
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        await client.start()
        yield client
    finally:
        await client.close()


def _reader(bootstrap_servers: str) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        bootstrap_servers=bootstrap_servers,
        group_id=None,
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="none",
    )


async def _ends(
    bootstrap_servers: str, consumer: AIOKafkaConsumer, topic: str
) -> dict[TopicPartition, int]:
    partitions = await _partitions(bootstrap_servers, topic)
    return await consumer.end_offsets([TopicPartition(topic, number) for number in partitions])


async def _partitions(bootstrap_servers: str, topic: str) -> list[int]:
    async with admin(bootstrap_servers) as client:
        (described,) = await client.describe_topics([topic])
    partitions = [partition["partition"] for partition in described["partitions"]]
    assert partitions, f"topic {topic} does not exist"
    return partitions
