"""Reads a range of a partition once more, beside the consumer that has passed it.

For batches that PacSpace refuses, whose records nobody kept: keeping all for the sake of a few
would take several times the memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, cast

import aiokafka
from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka_errors

from ingester.core.record import Record, TopicPartition
from ingester.errors import UnavailableError
from ingester.kafka import POLL_SECONDS, closed, group_less_consumer, translate
from ingester.settings import KafkaSettings

_READ_SECONDS_MAX: Final = 30.0


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

        Fewer records than were there once mean that the log has lost some.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(_READ_SECONDS_MAX):
                    return await self._read(partition, first_offset, next_offset)
            except TimeoutError as error:
                await self.stop()
                raise UnavailableError(
                    f"{partition}[{first_offset},{next_offset}) could not be read again within"
                    f" {_READ_SECONDS_MAX:g} s."
                ) from error
            except UnicodeDecodeError as error:
                await self.stop()
                raise UnavailableError(
                    f"{partition}[{first_offset},{next_offset}) cannot be read again: near it is a"
                    f" record that the client cannot read ({error})."
                ) from error
            except kafka_errors.KafkaError as error:
                await self.stop()
                raise translate(error, "Kafka") from error

    async def stop(self) -> None:
        """Disconnect; the next read connects again."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await closed(consumer.stop())

    async def _read(
        self, partition: TopicPartition, first_offset: int, next_offset: int
    ) -> Sequence[Record]:
        if self._consumer is None:
            consumer = group_less_consumer(self._settings)
            self._consumer = consumer
            await consumer.start()
        name = aiokafka.TopicPartition(*partition)
        self._consumer.assign([name])
        self._consumer.seek(name, first_offset)
        found: list[Record] = []
        while await self._consumer.position(name) < next_offset:
            fetched = await self._consumer.getmany(name, timeout_ms=int(POLL_SECONDS * 1000))
            found += cast("Sequence[Record]", fetched.get(name, ()))
        return [record for record in found if record.offset < next_offset]
