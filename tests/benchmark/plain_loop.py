"""What a competent engineer writes in an afternoon: the measure that the worker is held against.

Reads JSON from Kafka, posts it in batches of 100, commits after each poll. It sends one request at
a time, checks nothing but the status, and ends at the first failure.
"""

from __future__ import annotations

import asyncio
import json
import os

import httpx
from aiokafka import AIOKafkaConsumer

ITEMS_MAX = 100


async def main() -> None:
    consumer = AIOKafkaConsumer(
        os.environ["INGESTER_TOPIC"],
        bootstrap_servers=os.environ["INGESTER_KAFKA_BOOTSTRAP_SERVERS"],
        group_id=os.environ["INGESTER_GROUP_ID"],
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    async with (
        consumer,
        httpx.AsyncClient(
            base_url=os.environ["INGESTER_PACSPACE_URL"],
            headers={"X-Api-Key": os.environ["PACSPACE_API_KEY"]},
        ) as client,
    ):
        while True:
            polled = await consumer.getmany(timeout_ms=1000, max_records=ITEMS_MAX)
            for records in polled.values():
                for first in range(0, len(records), ITEMS_MAX):
                    batch = records[first : first + ITEMS_MAX]
                    items = [json.loads(record.value) for record in batch]
                    response = await client.post("/api/v1/writes", json={"items": items})
                    response.raise_for_status()
            if polled:
                await consumer.commit()


if __name__ == "__main__":
    asyncio.run(main())
