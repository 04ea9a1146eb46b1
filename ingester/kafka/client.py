"""What the shells around Kafka share: errors in our words, and reading without a group.

It translates the client's exceptions into errors an operator can act on, and leaves no option of
the client at its default where the default is wrong for billing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import aiokafka
from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka_errors

from ingester.core.record import TopicPartition
from ingester.errors import ConfigurationError, IngesterError, RefusedError, UnavailableError
from ingester.kafka.connection import client_options
from ingester.kafka.reading import UnreadableRecordError, read_in_lists
from ingester.settings import KafkaSettings

POLL_SECONDS: Final = 0.2  # how long a poll waits for records; bounds how late a stop is noticed
FETCH_WAIT_SECONDS: Final = 0.1  # a fetch of an idle topic returns empty after this
_LOOKED_AT_MAX: Final = 500  # records at a time
_CLOSE_SECONDS_MAX: Final = 3.0  # for saying goodbye to brokers that may be gone

_REFUSALS: Final = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.SaslAuthenticationFailed,
    kafka_errors.AuthenticationFailedError,
)


def heard(task: asyncio.Task[Any]) -> None:
    """Take note of how a task ended, which whoever waited for it may not have lived to see."""
    if not task.cancelled():
        task.exception()


async def closed(closing: Awaitable[None]) -> None:
    """Wait until a client is closed, in bounded time and whatever comes of it.

    Without its brokers it waits for their answers, and the consumer lets the cancellation of its
    own fetches escape.
    """
    task = asyncio.ensure_future(closing)
    await asyncio.wait({task}, timeout=_CLOSE_SECONDS_MAX)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


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


async def end_offsets(
    settings: KafkaSettings, partitions: Iterable[TopicPartition]
) -> Mapping[TopicPartition, int]:
    """Where each partition ends now."""
    asked = list(partitions)
    if not asked:
        return {}
    async with _reader(settings, asked) as reader:
        return await offsets_by(reader.end_offsets, asked)


async def beginning_offsets(
    settings: KafkaSettings, partitions: Iterable[TopicPartition]
) -> Mapping[TopicPartition, int]:
    """The first offset that the log of each partition still holds."""
    asked = list(partitions)
    if not asked:
        return {}
    async with _reader(settings, asked) as reader:
        return await offsets_by(reader.beginning_offsets, asked)


async def offsets_since(
    settings: KafkaSettings, moments: Mapping[TopicPartition, int]
) -> Mapping[TopicPartition, int]:
    """The first offset of each partition whose record is of a moment or later, or else its end.

    Moments are milliseconds since the epoch. What follows may be older all the same.
    """
    if not moments:
        return {}
    asked = {aiokafka.TopicPartition(*name): max(0, moments[name]) for name in moments}
    async with _reader(settings, moments) as reader:
        read_in_lists(reader, _LOOKED_AT_MAX)
        found = await reader.offsets_for_times(asked)
        begins = await reader.beginning_offsets(list(asked))
        ends = await reader.end_offsets(list(asked))
        offsets = {name: there.offset if there else ends[name] for name, there in found.items()}
        for name, there in found.items():
            # Where the first such record is lost to retention, brokers find none behind it.
            if there is None and 0 < begins[name] < ends[name]:
                span = (begins[name], ends[name])
                offsets[name] = await _first_since(reader, name, span, asked[name])
    return {TopicPartition(*name): offset for name, offset in offsets.items()}


async def _first_since(
    reader: AIOKafkaConsumer, name: aiokafka.TopicPartition, span: tuple[int, int], moment: int
) -> int:
    """Look for a record of a moment or later, one by one; the reader reads in lists."""
    reader.assign([name])
    reader.seek(name, span[0])
    while await reader.position(name) < span[1]:
        try:
            fetched: Any = await reader.getmany(
                name, timeout_ms=int(POLL_SECONDS * 1000), max_records=1
            )
        except UnreadableRecordError as error:
            reader.seek(name, error.next_offset)
            continue
        for records in fetched.get(name, ()):
            for record in records:
                if record.timestamp >= moment:
                    return int(record.offset)
    return span[1]


async def offsets_by(
    look_up: Callable[[Any], Awaitable[Mapping[Any, int]]], partitions: Iterable[TopicPartition]
) -> Mapping[TopicPartition, int]:
    """Ask a client's own look-up, in our words; UnavailableError when nobody answers."""
    asked = [aiokafka.TopicPartition(*each) for each in partitions]
    try:
        found = await look_up(asked) if asked else {}
    except kafka_errors.KafkaError as error:
        raise translate(error, "Kafka") from error
    return {TopicPartition(*name): offset for name, offset in found.items()}


def group_less_consumer(settings: KafkaSettings) -> AIOKafkaConsumer:
    """Return a consumer that belongs to no group; it has to be started and stopped."""
    return AIOKafkaConsumer(
        **client_options(settings),
        group_id=None,
        auto_offset_reset="earliest",  # what was cut off meanwhile cannot be read
        enable_auto_commit=False,
        isolation_level="read_committed",
        check_crcs=True,
        fetch_max_wait_ms=int(FETCH_WAIT_SECONDS * 1000),
    )


async def start_to_ask(consumer: AIOKafkaConsumer, partitions: Iterable[tuple[str, int]]) -> None:
    """Start a consumer without a group that is about to be asked about partitions.

    Of a topic that it has not been told of the client notices so when asked, and waits for 0.1 s.
    """
    await consumer.start()
    topics = {topic for topic, _ in partitions}
    consumer._client.set_topics(topics)  # noqa: SLF001 -- its own methods begin to fetch as well


@asynccontextmanager
async def _reader(
    settings: KafkaSettings, partitions: Iterable[TopicPartition]
) -> AsyncIterator[AIOKafkaConsumer]:
    reader = group_less_consumer(settings)
    try:
        await start_to_ask(reader, partitions)
        yield reader
    except kafka_errors.KafkaError as error:
        raise translate(error, "Kafka") from error
    finally:
        await closed(reader.stop())
