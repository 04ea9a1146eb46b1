"""Puts the events on a topic, fast: record batches are built here and sent whole."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder

from tests.benchmark.events import generate
from tests.benchmark.workload import Workload
from tests.support.kafka import create_topic, end_offsets

RECORD_BATCH_BYTES = 64 * 1024
"""About 350 records: what a busy producer makes with a linger of some milliseconds."""


@dataclass(frozen=True)
class LoadedTopic:
    """A topic that holds the first events of the sequence, and what they add up to."""

    name: str
    workload: Workload
    bits: int
    next_offsets: dict[int, int]


async def load_topic(
    bootstrap_servers: str, workload: Workload, on_progress: Callable[[int], None]
) -> LoadedTopic:
    """Create a topic and fill it; `on_progress` is told the events of each batch that went out.

    An account's events are in one partition, in order, uncompressed.
    """
    name = f"benchmark-{uuid.uuid4().hex[:8]}"
    await create_topic(bootstrap_servers, name, workload.partitions)
    counts = dict.fromkeys(range(workload.partitions), 0)
    bits = 0
    async with AIOKafkaProducer(
        bootstrap_servers=bootstrap_servers,
        acks="all",
        enable_idempotence=True,
        max_batch_size=RECORD_BATCH_BYTES,
    ) as producer:
        open_batches: dict[int, BatchBuilder] = {}
        sent: list[asyncio.Future[object]] = []

        async def send(partition: int) -> None:
            batch = open_batches.pop(partition)
            on_progress(batch.record_count())
            sent.append(await producer.send_batch(batch, name, partition=partition))

        for event in generate(
            workload.events, accounts=workload.accounts, value_bytes=workload.value_bytes
        ):
            partition = event.account % workload.partitions
            key = b"acct_%06d" % event.account
            batch = open_batches.get(partition)
            if batch is None or batch.append(timestamp=None, key=key, value=event.value) is None:
                if batch is not None:
                    await send(partition)
                batch = open_batches[partition] = producer.create_batch()
                batch.append(timestamp=None, key=key, value=event.value)
            counts[partition] += 1
            bits += event.bits
        for partition in list(open_batches):
            await send(partition)
        await asyncio.gather(*sent)
    found = await end_offsets(bootstrap_servers, name)
    assert found == counts, f"the topic ends at {found}, written were {counts}"
    return LoadedTopic(name, workload, bits, counts)
