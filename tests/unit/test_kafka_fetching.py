"""When the client looks for what to fetch, by what its brokers are doing."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, cast

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import BrokerMetadata, TopicPartition

from ingester.kafka.fetching import look_when_due


class Unread:
    """Records of a partition; others of its broker wait for them so long."""

    def __init__(self, backoff_seconds: float) -> None:
        self._backoff_seconds = backoff_seconds

    def calculate_backoff(self) -> float:
        return self._backoff_seconds


class Client:
    """A consumer and all that is behind it, with one partition for each broker."""

    def __init__(self, in_flight: Collection[int], unread: Mapping[int, float]) -> None:
        self._fetcher = self._client = self.cluster = self
        self._in_flight = set(in_flight)
        self._records = {
            TopicPartition("usage", broker): Unread(seconds) for broker, seconds in unread.items()
        }
        self._wait_consume_future: asyncio.Future[None] = asyncio.Future()

    def brokers(self) -> set[BrokerMetadata]:
        return {BrokerMetadata(broker, "localhost", 9092, None) for broker in (0, 1)}

    def _select_read_replica(self, partition: TopicPartition) -> int:
        return partition.partition

    def _notify(self, future: asyncio.Future[None]) -> None:
        future.set_result(None)


@pytest.mark.parametrize(
    ("in_flight", "unread", "looks"),
    [
        ((), {}, True),
        ((0,), {}, True),
        ((0, 1), {}, False),
        ((), {0: 0.1}, True),
        ((), {0: 0.1, 1: 0.1}, False),
        ((0,), {1: 0.1}, False),
        ((0,), {1: 0.0}, True),
        ((0,), {0: 0.0}, True),
    ],
)
async def test_it_looks_when_a_broker_may_be_asked(
    in_flight: Collection[int], unread: Mapping[int, float], looks: bool
) -> None:
    """One without a request, and without records that are to be read before others of it."""
    client = Client(in_flight, unread)
    look_when_due(cast("AIOKafkaConsumer", client))

    client._notify(client._wait_consume_future)

    assert looks == client._wait_consume_future.done()


async def test_who_waits_for_records_hears_of_them() -> None:
    """Whatever the brokers are doing."""
    client: Any = Client((0, 1), {})
    look_when_due(client)
    waiter: asyncio.Future[None] = asyncio.Future()

    client._notify(waiter)

    assert waiter.done()
