"""Committed offsets as a worker, or anybody else, may have left them behind."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as ClientPartition
from aiokafka.structs import OffsetAndMetadata

from ingester.core.batch import BatchBuilder, BatchLimits
from ingester.core.event import event_decoder
from ingester.core.intent import Intent, Ledger, encode
from ingester.core.record import TopicPartition
from tests.support.kafka import read_all

_LIMITS = BatchLimits(sys.maxsize, body_bytes_max=2**20, linger_seconds=0)


async def plant(
    servers: str, group: str, topic: str, next_offset: int, metadata: str, *, partition: int = 0
) -> None:
    """Commit an offset with metadata for a group that has no members."""
    where = ClientPartition(topic, partition)
    async with AIOKafkaConsumer(
        bootstrap_servers=servers, group_id=group, enable_auto_commit=False
    ) as consumer:
        consumer.assign([where])
        await consumer.commit({where: OffsetAndMetadata(next_offset, metadata)})


async def plant_intents(
    servers: str,
    group: str,
    topic: str,
    next_offset: int,
    ranges: Sequence[tuple[int, int]],
    *,
    age_seconds: int = 0,
) -> None:
    """Commit an offset with these ranges of partition 0 intended, as the log's records form them.

    A range that the log does not hold is intended with a digest of nothing.
    """
    intended_at = int(time.time()) - age_seconds
    intents = [Intent(*each, intended_at, await _digest(servers, topic, each)) for each in ranges]
    await plant(servers, group, topic, next_offset, encode(next_offset, Ledger(0, intents)))


async def _digest(servers: str, topic: str, range_: tuple[int, int]) -> int:
    records = [
        record
        for record in await read_all(servers, topic)
        if record.partition == 0 and range_[0] <= record.offset < range_[1]
    ]
    if len(records) < range_[1] - range_[0]:
        return 0
    builder = BatchBuilder(TopicPartition(topic, 0), 0, _LIMITS, event_decoder("refuse"))
    return builder.form(records).intent_digest
