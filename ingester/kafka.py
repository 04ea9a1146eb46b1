"""The shell around Kafka's records: written with the brokers' word for it, read without a group.

It translates the client's exceptions into errors an operator can act on, and leaves no option of
the client at its default where the default is wrong for billing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import aiokafka
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import errors as kafka_errors

from ingester.core.batch import DeadLetter
from ingester.core.record import Record, TopicPartition
from ingester.errors import ConfigurationError, IngesterError, RefusedError, UnavailableError
from ingester.kafka_admin import client_options
from ingester.settings import KafkaSettings

POLL_SECONDS: Final = 0.2  # how long a poll waits for records; bounds how late a stop is noticed
FETCH_WAIT_SECONDS: Final = 0.1  # a fetch of an idle topic returns empty after this
_PRODUCER_LINGER_SECONDS: Final = 0.005
_CLOSE_SECONDS_MAX: Final = 3.0  # for saying goodbye to brokers that may be gone
_RECORD_BATCH_BYTES_MAX: Final = 256 * 1024  # 16 KiB hold 5 receipts, and the sixth has to wait
_RECORD_BYTES_MAX: Final = 16 * 1024 * 1024  # as the dead-letter topic's own limit

_REFUSALS: Final = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.SaslAuthenticationFailed,
    kafka_errors.AuthenticationFailedError,
)


@dataclass(frozen=True, slots=True)
class Written:
    """Where the broker put a record."""

    partition: TopicPartition
    offset: int


class RecordWriter:
    """Writes records that are acknowledged by all in-sync replicas, each exactly once.

    Compression is worth its time for records that may be too large for the topic without.
    """

    def __init__(self, settings: KafkaSettings, *, compress: bool) -> None:
        self._producer = AIOKafkaProducer(
            **client_options(settings),
            acks="all",
            enable_idempotence=True,
            linger_ms=int(_PRODUCER_LINGER_SECONDS * 1000),
            max_request_size=_RECORD_BYTES_MAX,
            max_batch_size=_RECORD_BATCH_BYTES_MAX,
            compression_type="gzip" if compress else None,
        )

    async def start(self) -> None:
        """Connect; UnavailableError when no broker answers."""
        try:
            await self._producer.start()
        except kafka_errors.KafkaError as error:
            await self._producer.stop()
            raise translate(error, "Kafka") from error

    async def stop(self) -> None:
        """Give what is under way a moment, and disconnect."""
        await closed(self._producer.stop())

    async def write(
        self, topic: str, value: bytes | None, key: bytes | None, partition: int | None = None
    ) -> Written:
        """Write one record and wait until the broker has it; an IngesterError when it has not.

        Without `partition` the key decides.
        """
        return await _written(await self._queue(topic, value, key, partition), topic)

    async def send(
        self, topic: str, value: bytes | None, key: bytes | None, partition: int | None = None
    ) -> asyncio.Future[Written]:
        """Queue one record as `write` does; the future ends when the broker has it or has not."""
        return asyncio.ensure_future(
            _written(await self._queue(topic, value, key, partition), topic)
        )

    async def _queue(
        self, topic: str, value: bytes | None, key: bytes | None, partition: int | None
    ) -> asyncio.Future[Any]:
        try:
            future: asyncio.Future[Any] = await self._producer.send(
                topic, value=value, key=key, partition=partition
            )
        except kafka_errors.KafkaError as error:
            raise translate(error, f"topic {topic}") from error
        return future

    async def write_dead_letters(
        self, topic: str, source: TopicPartition, letters: Sequence[DeadLetter]
    ) -> str | None:
        """Write all of them; return None when the broker has every one, or why it has not."""
        futures = []
        try:
            for letter in letters:
                record = letter.record
                # The client refuses a record that has neither key nor value.
                both_null = record.key is None and record.value is None
                futures.append(
                    await self._producer.send(
                        topic,
                        value=b"" if both_null else record.value,
                        key=record.key,
                        timestamp_ms=record.timestamp if record.timestamp >= 0 else None,
                        headers=_dead_letter_headers(source, letter),
                    )
                )
        except kafka_errors.KafkaError as error:
            return sentence(error)
        finally:
            results = await asyncio.gather(*futures, return_exceptions=True)
        return next((sentence(each) for each in results if isinstance(each, Exception)), None)


def _dead_letter_headers(
    source: TopicPartition, letter: DeadLetter
) -> list[tuple[str, bytes | None]]:
    """The record's own headers, then why it is here and where it came from."""
    record, rejection = letter.record, letter.rejection
    return [
        *record.headers,
        ("ingester-error-code", rejection.code.encode()),
        ("ingester-error-detail", rejection.detail.encode()),
        ("ingester-source-topic", source.topic.encode()),
        ("ingester-source-partition", str(source.partition).encode()),
        ("ingester-source-offset", str(record.offset).encode()),
    ]


async def closed(closing: Coroutine[Any, Any, None]) -> None:
    """Wait until a client is closed, in bounded time and whatever comes of it.

    Without its brokers it waits for their answers, and the consumer lets the cancellation of its
    own fetches escape.
    """
    task = asyncio.ensure_future(closing)
    await asyncio.wait({task}, timeout=_CLOSE_SECONDS_MAX)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _written(future: asyncio.Future[Any], topic: str) -> Written:
    try:
        metadata = await future
    except kafka_errors.KafkaError as error:
        raise translate(error, f"topic {topic}") from error
    return Written(TopicPartition(metadata.topic, metadata.partition), metadata.offset)


def translate(error: kafka_errors.KafkaError, what: str) -> IngesterError:
    """Say a Kafka client's error in words of ours, by what is to be done about it."""
    if isinstance(error, kafka_errors.InvalidSessionTimeoutError):
        return ConfigurationError(
            "INGESTER_SESSION_TIMEOUT_SECONDS is outside of what the brokers allow"
            " (group.min.session.timeout.ms, 6 s unless changed, to group.max.session.timeout.ms)."
        )
    if isinstance(error, _REFUSALS):
        return RefusedError(
            f"{what} refused: {sentence(error)}. Check the INGESTER_KAFKA_SASL_* settings and the"
            " permissions of that user (`ingester check` tries them one by one)."
        )
    return UnavailableError(f"{what} cannot be used: {sentence(error)}. `ingester check` says why.")


def sentence(error: Exception) -> str:
    name, text = type(error).__name__, str(error)
    return text if text.startswith(name) else f"{name}: {text}"


async def read_to_end(
    settings: KafkaSettings, starts: Mapping[TopicPartition, int]
) -> AsyncIterator[tuple[TopicPartition, Record]]:
    """Yield the records of each partition from an offset up to what is its end now."""
    if not starts:
        return
    asked = [aiokafka.TopicPartition(*each) for each in starts]
    async with _reader(settings) as reader:
        reader.assign(asked)
        ends = await reader.end_offsets(asked)
        for name in asked:
            reader.seek(name, starts[TopicPartition(*name)])
        left = [name for name in asked if starts[TopicPartition(*name)] < ends[name]]
        while left:
            fetched = await reader.getmany(*left, timeout_ms=int(POLL_SECONDS * 1000))
            for name, records in fetched.items():
                for record in records:
                    yield TopicPartition(*name), cast("Record", record)
            left = [name for name in left if await reader.position(name) < ends[name]]


async def end_offsets(
    settings: KafkaSettings, partitions: Iterable[TopicPartition]
) -> Mapping[TopicPartition, int]:
    """Where each partition ends now."""
    asked = [aiokafka.TopicPartition(*each) for each in partitions]
    if not asked:
        return {}
    async with _reader(settings) as reader:
        found = await reader.end_offsets(asked)
    return {TopicPartition(*name): offset for name, offset in found.items()}


@asynccontextmanager
async def _reader(settings: KafkaSettings) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer without a group."""
    reader = AIOKafkaConsumer(
        **client_options(settings),
        group_id=None,
        auto_offset_reset="earliest",  # what was cut off meanwhile cannot be read
        enable_auto_commit=False,
        isolation_level="read_committed",
        check_crcs=True,
        fetch_max_wait_ms=int(FETCH_WAIT_SECONDS * 1000),
    )
    try:
        await reader.start()
        yield reader
    except kafka_errors.KafkaError as error:
        raise translate(error, "Kafka") from error
    finally:
        await closed(reader.stop())
