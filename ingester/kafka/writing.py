"""The shell around Kafka's producer: records and dead letters out, acknowledged by all replicas.

aiokafka's idempotent producer uses up sequence numbers for what it gives up, and the broker then
refuses all that follows in that partition. So a producer that failed to write anything is replaced.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors

from ingester.core.deadletter import DeadLetter
from ingester.core.record import TopicPartition
from ingester.errors import IngesterError, RefusedError, UnavailableError
from ingester.kafka.client import closed, heard, sentence, translate
from ingester.kafka.connection import REQUEST_TIMEOUT_SECONDS, client_options
from ingester.settings import KafkaSettings

_LINGER_SECONDS: Final = 0.005
_RECORD_BATCH_BYTES_MAX: Final = 256 * 1024  # 16 KiB hold 5 receipts, and the sixth has to wait
_RECORD_BYTES_MAX: Final = 16 * 1024 * 1024  # as the dead-letter topic's own limit
_TOO_LARGE: Final = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
_PAUSE_SECONDS_MIN: Final = 0.5  # before the first write to where one has failed
_PAUSE_SECONDS_MAX: Final = 5.0  # so much later than its partition a writer recovers at most


class Written(msgspec.Struct, frozen=True):
    """Where the broker put a record.

    Its offset may be too low, or -1: a broker does not tell it for what it finds that it has had.
    """

    partition: TopicPartition
    offset: int


class WriteProblem(msgspec.Struct, frozen=True):
    """Why something is not written."""

    reason: str
    refused: bool
    """Whether trying again is of no use before somebody changes something."""

    @classmethod
    def of(cls, error: IngesterError) -> WriteProblem:
        return cls(str(error), refused=isinstance(error, RefusedError | RecordTooLargeError))


class RecordTooLargeError(UnavailableError):
    """The topic takes no record of that size."""


class RecordWriter:
    """Writes records that are acknowledged by all in-sync replicas, each of them exactly once.

    What failed may have been written all the same. Where a write failed, those that follow take
    turns, however many they are, until one succeeds.
    Compression is worth its time for records that may be too large for the topic without.
    """

    def __init__(self, settings: KafkaSettings, *, compress: bool) -> None:
        self._options = client_options(settings) | {
            "acks": "all",
            "enable_idempotence": True,
            "linger_ms": int(_LINGER_SECONDS * 1000),
            "max_request_size": _RECORD_BYTES_MAX,
            "max_batch_size": _RECORD_BATCH_BYTES_MAX,
            "compression_type": "gzip" if compress else None,
        }
        self._producer: AIOKafkaProducer | None = None
        # Made when it is asked for, used until it fails to write.
        self._starting: asyncio.Task[AIOKafkaProducer] | None = None
        # What makes it; awaited by all who ask meanwhile.
        self._closing: set[asyncio.Task[None]] = set()
        # Producers that failed, ending what else they have under way: each has a record that no
        # broker has decided upon, and removes itself after the last.
        self._troubles: dict[_Place, _Trouble] = {}
        # Where the last write failed; removed by the next one that succeeds there.
        self._stopped = False

    async def start(self) -> None:
        """Connect; UnavailableError when no broker answers."""
        try:
            await self._another_producer()
        except kafka_errors.KafkaError as error:
            raise translate(error, "Kafka") from error

    async def stop(self) -> None:
        """Give what is under way a moment, and disconnect."""
        self._stopped = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait({self._starting})
        self._retire(self._producer)
        await asyncio.gather(*map(closed, self._closing))

    async def write(
        self, topic: str, value: bytes | None, key: bytes | None, partition: int | None = None
    ) -> Written:
        """Write one record and wait until the broker has it; an IngesterError when it has not.

        Without `partition` the key decides.
        """
        place = _Place(topic, partition)
        await self._turn(place)
        return await self._written(*await self._queue(place, _record(place, value=value, key=key)))

    async def write_all(
        self, topic: str, partition: int, key: bytes, values: Sequence[bytes]
    ) -> Sequence[int]:
        """Write records of one key one behind the other, as `write` does; return their offsets.

        Together they take the client much less than one after the other.
        """
        place = _Place(topic, partition)
        await self._turn(place)
        left = deque(values)

        async def put(producer: AIOKafkaProducer) -> asyncio.Future[Any]:
            batch = producer.create_batch()
            while left and batch.append(timestamp=None, key=key, value=left[0]) is not None:
                left.popleft()
            batch.close()
            future: asyncio.Future[Any] = await producer.send_batch(
                batch, topic, partition=partition
            )
            return future

        offsets: list[int] = []
        while left:
            before = len(left)
            written = await self._written(*await self._queue(place, put))
            # A broker that finds that it has had them does not tell where.
            offsets += [
                written.offset + number if written.offset >= 0 else -1
                for number in range(before - len(left))
            ]
        return offsets

    async def send(
        self, topic: str, value: bytes | None, key: bytes | None, partition: int | None = None
    ) -> asyncio.Future[Written]:
        """Queue one record as `write` does; the future ends when the broker has it or has not."""
        place = _Place(topic, partition)
        await self._turn(place)
        queued = await self._queue(place, _record(place, value=value, key=key))
        return asyncio.ensure_future(self._written(*queued))

    async def write_dead_letters(
        self, topic: str, source: TopicPartition, letters: Sequence[DeadLetter]
    ) -> WriteProblem | None:
        """Write all of them; return None when the broker has every one, or why it has not."""
        place = _Place(topic, None)
        await self._turn(place)
        written: list[asyncio.Future[Written]] = []
        try:
            for letter in letters:
                record = letter.record
                # The client refuses a record that has neither key nor value.
                both_null = record.key is None and record.value is None
                put = _record(
                    place,
                    value=b"" if both_null else record.value,
                    key=record.key,
                    timestamp_ms=record.timestamp if record.timestamp >= 0 else None,
                    headers=_dead_letter_headers(source, letter),
                )
                queued = await self._queue(place, put)
                written.append(asyncio.ensure_future(self._written(*queued)))
            await asyncio.gather(*written)
        except IngesterError as error:
            return WriteProblem.of(error)
        finally:
            await asyncio.gather(*written, return_exceptions=True)
        return None

    async def _turn(self, place: _Place) -> None:
        if place in self._troubles:
            await self._troubles[place].turn()

    async def _queue(
        self, place: _Place, put: _Put
    ) -> tuple[asyncio.Future[Any], AIOKafkaProducer, _Place]:
        producer = self._producer
        try:
            if producer is None:
                producer = await self._another_producer()
            await _know(producer, place)
            future = await put(producer)
        except kafka_errors.KafkaError as error:
            # What the client itself finds too large is not queued, and in nobody's way.
            if not isinstance(error, kafka_errors.MessageSizeTooLargeError):
                self._failed(producer, place)
            raise _translated(error, place) from error
        return future, producer, place

    async def _written(
        self, future: asyncio.Future[Any], producer: AIOKafkaProducer, place: _Place
    ) -> Written:
        try:
            metadata = await future
        except kafka_errors.KafkaError as error:
            self._failed(producer, place)
            raise _translated(error, place) from error
        if place in self._troubles:
            self._troubles.pop(place).end()
        return Written(TopicPartition(metadata.topic, metadata.partition), metadata.offset)

    def _failed(self, producer: AIOKafkaProducer | None, place: _Place) -> None:
        self._troubles.setdefault(place, _Trouble())
        if producer is self._producer:
            self._retire(producer)

    def _retire(self, producer: AIOKafkaProducer | None) -> None:
        self._producer = None
        if producer is not None:
            task = asyncio.create_task(producer.stop())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _another_producer(self) -> AIOKafkaProducer:
        if self._stopped:
            raise kafka_errors.ProducerClosed
        if self._starting is None:
            self._starting = asyncio.create_task(self._start_producer())
            self._starting.add_done_callback(heard)
        return await asyncio.shield(self._starting)

    async def _start_producer(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(**self._options)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
                await producer.start()
            self._producer = producer
        except TimeoutError as error:
            raise kafka_errors.KafkaTimeoutError from error
        finally:
            if self._producer is None:
                await closed(producer.stop())
            self._starting = None
        return producer


_Put = Callable[[AIOKafkaProducer], Awaitable[asyncio.Future[Any]]]
"""Hands something to a producer; the future ends when the broker has it or has not."""


def _record(place: _Place, **record: Any) -> _Put:
    return lambda producer: producer.send(place.topic, partition=place.partition, **record)


async def _know(producer: AIOKafkaProducer, place: _Place) -> None:
    """See to it that the client has heard of a partition, which may have been added lately."""
    if place.partition is None or place.partition in await producer.partitions_for(place.topic):
        return
    await producer.client.force_metadata_update()
    if place.partition not in await producer.partitions_for(place.topic):
        raise UnavailableError(
            f"topic {place.topic} cannot be used: it has no partition {place.partition} yet."
        )


class _Place(NamedTuple):
    """Where writes succeed or fail together; without a partition those that a key decides."""

    topic: str
    partition: int | None


class _Trouble:
    """The queue before a place where writes fail."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._over = asyncio.Event()
        self._pause_seconds = _PAUSE_SECONDS_MIN

    async def turn(self) -> None:
        """Wait for those that came before, and then a while unless the trouble is over."""
        async with self._lock:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause_seconds):
                    await self._over.wait()
            self._pause_seconds = min(2 * self._pause_seconds, _PAUSE_SECONDS_MAX)

    def end(self) -> None:
        """Let all through."""
        self._over.set()


def _translated(error: kafka_errors.KafkaError, place: _Place) -> IngesterError:
    if not isinstance(error, _TOO_LARGE):
        return translate(error, f"topic {place.topic}")
    return RecordTooLargeError(
        f"topic {place.topic} does not take a record of its size ({sentence(error)}): raise its"
        f" max.message.bytes, at most to {_RECORD_BYTES_MAX}."
    )


def _dead_letter_headers(
    source: TopicPartition, letter: DeadLetter
) -> list[tuple[str, bytes | None]]:
    """The record's own headers, then why it is here and where it came from."""
    record, rejection = letter.record, letter.rejection
    headers = [
        *record.headers,
        ("ingester-error-code", rejection.code.encode()),
        ("ingester-error-detail", rejection.detail.encode()),
        ("ingester-source-topic", source.topic.encode()),
        ("ingester-source-partition", str(source.partition).encode()),
        ("ingester-source-offset", str(record.offset).encode()),
        (
            "ingester-dead-lettered-at",
            datetime.now(UTC).isoformat(timespec="milliseconds").encode(),
        ),
    ]
    if letter.http_status is not None:
        headers.append(("ingester-http-status", str(letter.http_status).encode()))
        headers.append(("ingester-http-body", letter.http_body))
    return headers
