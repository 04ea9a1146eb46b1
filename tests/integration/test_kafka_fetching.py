"""How often the client looks through all partitions, on a real broker."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from ingester.kafka.fetching import look_when_due
from ingester.local_kafka import LocalKafka
from tests.conftest import TopicFactory
from tests.support.kafka import produce

PARTITIONS = 40
_TURNS = 5  # of the loop, in which the client looks if it was told to


async def test_partitions_are_looked_through_by_requests(
    kafka: LocalKafka, topic: TopicFactory
) -> None:
    """And not by partitions: forty that come together and are read one by one take a few looks."""
    name = await topic(PARTITIONS)
    for partition in range(PARTITIONS):
        await produce(kafka.bootstrap_servers, name, [b"{}"], partition=partition)
    looks, requests = 0, 0
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, max_poll_records=1)
    await consumer.start()
    try:
        fetcher: Any = consumer._fetcher
        look, fetch = fetcher._get_actions_per_node, fetcher._proc_fetch_request

        def counted(assignment: object) -> Any:
            nonlocal looks
            looks += 1
            return look(assignment)

        async def fetched(*asked: object) -> Any:
            nonlocal requests
            requests += 1
            return await fetch(*asked)

        fetcher._get_actions_per_node, fetcher._proc_fetch_request = counted, fetched
        look_when_due(consumer)
        partitions = [TopicPartition(name, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, 0)
        read = set()
        for _ in partitions:
            read.add((await consumer.getone()).partition)
            for _ in range(_TURNS):
                await asyncio.sleep(0)
    finally:
        await consumer.stop()

    assert set(range(PARTITIONS)) == read
    assert looks <= 2 * requests + 10
