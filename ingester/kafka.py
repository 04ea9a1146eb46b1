"""The shell around Kafka's data path: records in, offsets committed, records and dead letters out.

The only module beside kafka_admin that imports aiokafka. It translates the client's exceptions
into facts or into errors an operator can act on, and leaves no option of the client at its default
where the default is wrong for billing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import aiokafka
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener
from aiokafka import errors as kafka_errors
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.structs import OffsetAndMetadata

from ingester.core.batch import DeadLetter
from ingester.core.messages import PositionLost
from ingester.core.record import Record, TopicPartition
from ingester.errors import IngesterError, RefusedError, UnavailableError
from ingester.kafka_admin import client_options
from ingester.settings import KafkaSettings, Settings

_POLL_SECONDS: Final = 0.2  # how long a poll waits for records; bounds how late a stop is noticed
_POLL_RECORDS_MAX: Final = 200  # 0.3 ms of decoding: with 2,000, answers waited behind it
_FETCH_WAIT_SECONDS: Final = 0.1  # a fetch of an idle topic returns empty after this
_HEARTBEATS_PER_SESSION: Final = 3
_PRODUCER_LINGER_SECONDS: Final = 0.005
_CLOSE_SECONDS_MAX: Final = 3.0  # for saying goodbye to brokers that may be gone
_RECORD_BYTES_MAX: Final = 16 * 1024 * 1024  # as the dead-letter topic's own limit

_REFUSALS: Final = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.SaslAuthenticationFailed,
    kafka_errors.AuthenticationFailedError,
)


class RebalanceListener(Protocol):
    """What the worker does around a rebalance; Kafka waits for both."""

    async def partitions_revoked(self) -> None: ...

    def partitions_assigned(self, partitions: Sequence[TopicPartition]) -> None: ...

    def rebalance_failed(self, error: Exception) -> None: ...


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one poll brought; both may be empty."""

    records: Mapping[TopicPartition, Sequence[Record]]
    lost: Sequence[PositionLost] = ()


class UsageConsumer:
    """This worker's membership in the consumer group."""

    def __init__(self, settings: Settings, listener: RebalanceListener) -> None:
        session_timeout_ms = int(settings.session_timeout_seconds * 1000)
        self._consumer = AIOKafkaConsumer(
            **client_options(settings),
            group_id=settings.group_id,
            group_instance_id=settings.group_instance_id,
            # A group without offsets starts at the beginning (see `_seek`); offsets that the log
            # has lost stop the partition. Neither is ever reset silently.
            auto_offset_reset="none",
            enable_auto_commit=False,
            isolation_level="read_committed",
            check_crcs=True,
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
            session_timeout_ms=session_timeout_ms,
            heartbeat_interval_ms=session_timeout_ms // _HEARTBEATS_PER_SESSION,
            rebalance_timeout_ms=session_timeout_ms,  # the drain ends before
            max_poll_interval_ms=int(settings.poll_interval_seconds_max * 1000),
            max_poll_records=_POLL_RECORDS_MAX,
            fetch_max_wait_ms=int(_FETCH_WAIT_SECONDS * 1000),
            fetch_min_bytes=1,
            fetch_max_bytes=settings.fetch_bytes_max,
            max_partition_fetch_bytes=settings.partition_fetch_bytes_max,
        )
        self._topics = settings.topics
        self._listener = listener
        self._commit_timeout_seconds = settings.session_timeout_seconds

    async def start(self) -> None:
        """Connect and join the group in the background; UnavailableError when no broker answers."""
        try:
            await self._consumer.start()
        except kafka_errors.KafkaError as error:
            await self._consumer.stop()
            raise translate(error, "Kafka") from error
        listener = _Listener(self._listener, self._seek)
        self._consumer.subscribe(self._topics, listener=listener)

    async def poll(self) -> Fetched:
        """Wait a moment for records of the partitions that are not paused.

        RefusedError and UnavailableError mean that the group cannot go on with this member.
        """
        try:
            records = await self._consumer.getmany(timeout_ms=int(_POLL_SECONDS * 1000))
        except kafka_errors.NoOffsetForPartitionError:
            return Fetched({})  # asked before `_seek` was through, which says where to begin
        except kafka_errors.OffsetOutOfRangeError as error:
            offsets: Mapping[TopicPartition, int] = error.args[0]
            lost = [PositionLost(TopicPartition(*name), offsets[name]) for name in offsets]
            return Fetched({}, lost)
        except kafka_errors.KafkaError as error:
            raise translate(error, "Kafka") from error
        # Its partitions are tuples equal to ours, its records have what `Record` asks for.
        return Fetched(cast("Mapping[TopicPartition, Sequence[Record]]", records))

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> str | None:
        """Commit next offsets; return None, or why it failed. Fenced by the group's generation."""
        request = {
            aiokafka.TopicPartition(*name): OffsetAndMetadata(next_offset, "")
            for name, next_offset in offsets.items()
        }
        try:
            async with asyncio.timeout(self._commit_timeout_seconds):
                await self._consumer.commit(request)
        except TimeoutError:
            return f"no answer within {self._commit_timeout_seconds:g} s"
        except kafka_errors.CommitFailedError:
            return "the group has gone on without this worker, which is about to join it again"
        except (kafka_errors.KafkaError, kafka_errors.IllegalStateError) as error:
            return _sentence(error)
        return None

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Fetch no more of these; partitions that have gone are passed over."""
        self._consumer.pause(*self._still_assigned(partitions))

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Fetch these again; partitions that have gone are passed over."""
        self._consumer.resume(*self._still_assigned(partitions))

    async def stop(self) -> None:
        """Leave the group without a commit, and disconnect."""
        await _closed(self._consumer.stop())

    async def _seek(self, partitions: Sequence[TopicPartition]) -> Callable[[], None]:
        """Look up where each partition begins; what is returned goes there, without a wait.

        Where nothing is committed, that is the beginning of the log.
        """
        starts: dict[Any, int] = {}
        asked = [aiokafka.TopicPartition(*each) for each in partitions]
        for partition in asked:
            committed = await self._consumer.committed(partition)
            if committed is not None:
                starts[partition] = committed
        new = [partition for partition in asked if partition not in starts]
        if new:
            starts |= await self._consumer.beginning_offsets(new)

        def go() -> None:
            for partition, offset in starts.items():
                self._consumer.seek(partition, offset)

        return go

    def _still_assigned(self, partitions: Iterable[TopicPartition]) -> list[Any]:
        # pause and resume of the client insist on its own class of partition.
        mine = set(partitions)
        return [each for each in self._consumer.assignment() if each in mine]


class _Listener(ConsumerRebalanceListener):
    """aiokafka logs and swallows what a listener raises: a failure has to be reported."""

    def __init__(
        self,
        listener: RebalanceListener,
        seek: Callable[[Sequence[TopicPartition]], Awaitable[Callable[[], None]]],
    ) -> None:
        self._listener = listener
        self._seek = seek

    async def on_partitions_revoked(self, revoked: object) -> None:
        del revoked  # always everything: the client knows only eager rebalancing
        try:
            await self._listener.partitions_revoked()
        except Exception as error:  # noqa: BLE001 -- see the class
            self._listener.rebalance_failed(error)

    async def on_partitions_assigned(self, assigned: Sequence[tuple[str, int]]) -> None:
        partitions = sorted(TopicPartition(*each) for each in assigned)
        try:
            go = await self._seek(partitions)
        except kafka_errors.KafkaError as error:
            self._listener.rebalance_failed(translate(error, "Kafka"))
            return
        except Exception as error:  # noqa: BLE001 -- see the class
            self._listener.rebalance_failed(error)
            return
        # Records may have been fetched meanwhile, and were passed over because nobody had these
        # partitions. Nothing may come between going back to the start and having them.
        go()
        self._listener.partitions_assigned(partitions)


@dataclass(frozen=True, slots=True)
class Written:
    """Where the broker put a record."""

    partition: TopicPartition
    offset: int


class RecordWriter:
    """Writes records that are acknowledged by all in-sync replicas, each exactly once."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._producer = AIOKafkaProducer(
            **client_options(settings),
            acks="all",
            enable_idempotence=True,
            linger_ms=int(_PRODUCER_LINGER_SECONDS * 1000),
            max_request_size=_RECORD_BYTES_MAX,
            compression_type="gzip",
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
        await _closed(self._producer.stop())

    async def send(
        self, topic: str, value: bytes | None, key: bytes | None
    ) -> asyncio.Future[Written]:
        """Queue one record; the future ends when the broker has it, or with an IngesterError."""
        try:
            future = await self._producer.send(topic, value=value, key=key)
        except kafka_errors.KafkaError as error:
            raise translate(error, f"topic {topic}") from error
        return asyncio.ensure_future(_written(future, topic))

    async def write_dead_letters(self, topic: str, letters: Sequence[DeadLetter]) -> str | None:
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
                        headers=_dead_letter_headers(letter),
                    )
                )
        except kafka_errors.KafkaError as error:
            return _sentence(error)
        finally:
            results = await asyncio.gather(*futures, return_exceptions=True)
        return next((_sentence(each) for each in results if isinstance(each, Exception)), None)


def _dead_letter_headers(letter: DeadLetter) -> list[tuple[str, bytes | None]]:
    """The record's own headers, then why it is here and where it came from."""
    record, rejection = letter.record, letter.rejection
    source: Any = record  # a consumed record knows its topic and partition, the core does not ask
    return [
        *record.headers,
        ("ingester-error-code", rejection.code.encode()),
        ("ingester-error-detail", rejection.detail.encode()),
        ("ingester-source-topic", source.topic.encode()),
        ("ingester-source-partition", str(source.partition).encode()),
        ("ingester-source-offset", str(record.offset).encode()),
    ]


async def _closed(closing: Coroutine[Any, Any, None]) -> None:
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
    """Say a Kafka client's error in words of ours: refused credentials, or try again later."""
    if isinstance(error, _REFUSALS):
        return RefusedError(
            f"{what} refused: {_sentence(error)}. Check the INGESTER_KAFKA_SASL_* settings and the"
            " permissions of that user (`ingester check` tries them one by one)."
        )
    return UnavailableError(
        f"{what} cannot be used: {_sentence(error)}. `ingester check` says why."
    )


def _sentence(error: Exception) -> str:
    name, text = type(error).__name__, str(error)
    return text if text.startswith(name) else f"{name}: {text}"
