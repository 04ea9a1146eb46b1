"""The shell around Kafka's consumer: records in, offsets committed.

It translates the client's exceptions into facts or into errors an operator can act on, and leaves
no option of the client at its default where the default is wrong for billing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import aiokafka
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import errors as kafka_errors
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.structs import OffsetAndMetadata

from ingester.core.messages import Commit, ReadFailed, Start
from ingester.core.record import Record, TopicPartition
from ingester.errors import ConfigurationError, IngesterError, RefusedError, UnavailableError
from ingester.kafka_admin import client_options
from ingester.settings import KafkaSettings, Settings

_POLL_SECONDS: Final = 0.2  # how long a poll waits for records; bounds how late a stop is noticed
_POLL_RECORDS_MAX: Final = 200  # 0.3 ms of decoding: with 2,000, answers waited behind it
_FETCH_WAIT_SECONDS: Final = 0.1  # a fetch of an idle topic returns empty after this
_HEARTBEATS_PER_SESSION: Final = 3
_CLOSE_SECONDS_MAX: Final = 3.0  # for saying goodbye to brokers that may be gone

_UNREADABLE: Final = (UnicodeDecodeError, kafka_errors.CorruptRecordException)
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

    async def look_up(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, Start]: ...

    def partitions_assigned(self, starts: Mapping[TopicPartition, Start]) -> None: ...

    def rebalance_failed(self, error: Exception) -> None: ...


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one poll brought; both may be empty."""

    records: Mapping[TopicPartition, Sequence[Record]]
    failed: Sequence[ReadFailed] = ()


@dataclass(frozen=True, slots=True)
class CommitProblem:
    """Why a commit failed; `fenced` when the group goes on without this member."""

    reason: str
    fenced: bool = False


class UsageConsumer:
    """This worker's membership in the consumer group."""

    def __init__(self, settings: Settings, listener: RebalanceListener) -> None:
        session_timeout_ms = int(settings.session_timeout_seconds * 1000)
        self._consumer = AIOKafkaConsumer(
            **client_options(settings),
            group_id=settings.group_id,
            group_instance_id=settings.group_instance_id,
            # A group without offsets starts at the beginning (see `look_up`); offsets that the log
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
        self._session_timeout_seconds = settings.session_timeout_seconds
        self._membership: tuple[int, str] | None = None
        # Generation and member id of the assignment: written when it is given, compared by each
        # commit.
        self._next_offsets: dict[TopicPartition, int] = {}
        # What the worker has of each partition: set by the assignment, moved on by each poll.
        self._contact = 0.0
        # When the last request was sent that the coordinator answered: written by heartbeats,
        # commits and assignments, read before each attempt.

    async def start(self) -> None:
        """Connect and join the group in the background; UnavailableError when no broker answers."""
        try:
            await self._consumer.start()
        except kafka_errors.KafkaError as error:
            await self._consumer.stop()
            raise translate(error, "Kafka") from error
        self._watch_membership()
        self._watch_polls()
        listener = _Listener(self._listener, self._joined, self._begin_at)
        self._consumer.subscribe(self._topics, listener=listener)

    def _watch_membership(self) -> None:
        """See to it that commits are fenced, and note each time the coordinator knew this member.

        aiokafka keeps the time of the last good heartbeat in a local variable. And once the
        coordinator does not know the member any more, it commits without a generation, which a
        broker accepts from anybody as long as the group is empty: offsets could go back.
        """
        coordinator = self._coordinator
        heartbeat, commit = coordinator._do_heartbeat, coordinator._do_commit_offsets  # noqa: SLF001

        async def noted() -> bool:
            sent = time.monotonic()
            success: bool = await heartbeat()
            if success:
                self._contact = sent
            return success

        async def fenced(assignment: object, offsets: object) -> None:
            task = asyncio.current_task()
            assert task is not None, "the client shields a task of its own from our timeout"
            task.add_done_callback(heard)
            if self._membership != (coordinator.generation, coordinator.member_id):
                raise kafka_errors.CommitFailedError("the group goes on without this member")
            await commit(assignment, offsets)

        coordinator._do_heartbeat = noted  # noqa: SLF001 -- as said
        coordinator._do_commit_offsets = fenced  # noqa: SLF001 -- as said

    def _watch_polls(self) -> None:
        """See to it that a worker that has stopped polling leaves the group, whatever it polled.

        aiokafka counts polls in and out, but not out what raises: after that the consumer counts
        as polling for good.
        """
        polls: Any = self._consumer._subscription  # noqa: SLF001 -- no other way to its count

        @contextmanager
        def counted() -> Iterator[None]:
            polls._fetch_count += 1  # noqa: SLF001 -- as said
            try:
                yield
            finally:
                polls._fetch_count -= 1  # noqa: SLF001 -- as said
                polls._last_fetch_ended = time.monotonic()  # noqa: SLF001 -- as said

        polls.fetch_context = counted

    @property
    def _coordinator(self) -> Any:
        return self._consumer._coordinator  # noqa: SLF001 -- there is no other way to its generation

    @property
    def is_member(self) -> bool:
        """Whether the coordinator cannot have given the partitions to somebody else by now."""
        return time.monotonic() - self._contact < self._session_timeout_seconds

    async def poll(self) -> Fetched:
        """Wait a moment for records of the partitions that are not paused.

        RefusedError and UnavailableError mean that the group cannot go on with this member.
        """
        try:
            records = await self._consumer.getmany(timeout_ms=int(_POLL_SECONDS * 1000))
        except kafka_errors.NoOffsetForPartitionError:
            return Fetched({})  # asked before it was looked up where to begin
        except kafka_errors.OffsetOutOfRangeError as error:
            return Fetched({}, [_position_lost(*each) for each in error.args[0].items()])
        except _UNREADABLE:
            return await self._poll_one_by_one()
        except kafka_errors.KafkaError as error:
            raise translate(error, "Kafka") from error
        # Its partitions are tuples equal to ours, its records have what `Record` asks for.
        return self._handed_over(cast("Mapping[TopicPartition, Sequence[Record]]", records))

    async def _poll_one_by_one(self) -> Fetched:
        """Find the partitions whose next records the client cannot read, and read the others.

        A broker takes header names that are no UTF-8; the client does not, and what it had read of
        other partitions in the same call is gone: each goes back to what was handed over.
        """
        records: dict[TopicPartition, Sequence[Record]] = {}
        failed: list[ReadFailed] = []
        for name, next_offset in self._next_offsets.items():
            self._consumer.seek(aiokafka.TopicPartition(*name), next_offset)
        for name, next_offset in list(self._next_offsets.items()):
            try:
                fetched = await self._consumer.getmany(
                    aiokafka.TopicPartition(*name), timeout_ms=int(_POLL_SECONDS * 1000)
                )
            except _UNREADABLE as error:
                reason = f"a record at or after offset {next_offset} cannot be read: {error}"
                failed.append(ReadFailed(name, reason))
            except kafka_errors.KafkaError:
                break  # the next poll meets it again; what was read until now must not be lost
            else:
                records |= cast("Mapping[TopicPartition, Sequence[Record]]", fetched)
        return self._handed_over(records, failed)

    def _handed_over(
        self, records: Mapping[TopicPartition, Sequence[Record]], failed: Sequence[ReadFailed] = ()
    ) -> Fetched:
        for name, fetched in records.items():
            self._next_offsets[TopicPartition(*name)] = fetched[-1].offset + 1
        return Fetched(records, failed)

    async def commit(self, offsets: Mapping[TopicPartition, Commit]) -> CommitProblem | None:
        """Commit; return None, or why it failed. Fenced by the generation of the assignment."""
        request = {
            aiokafka.TopicPartition(*name): OffsetAndMetadata(commit.next_offset, commit.metadata)
            for name, commit in offsets.items()
        }
        sent = time.monotonic()
        try:
            async with asyncio.timeout(self._session_timeout_seconds):
                await self._consumer.commit(request)
        except TimeoutError:
            return CommitProblem(f"no answer within {self._session_timeout_seconds:g} s")
        except kafka_errors.CommitFailedError:
            reason = "the group has gone on without this worker, which is about to join it again"
            return CommitProblem(reason, fenced=True)
        except (kafka_errors.KafkaError, kafka_errors.IllegalStateError) as error:
            return CommitProblem(_sentence(error))
        self._contact = max(self._contact, sent)
        return None

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Fetch no more of these; partitions that have gone are passed over."""
        self._consumer.pause(*self._still_assigned(partitions))

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Fetch these again; partitions that have gone are passed over."""
        self._consumer.resume(*self._still_assigned(partitions))

    async def stop(self) -> None:
        """Leave the group without a commit, and disconnect."""
        await closed(self._consumer.stop())

    async def beginnings(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        """The first offsets that the logs still hold; UnavailableError when nobody says."""
        asked = [aiokafka.TopicPartition(*each) for each in partitions]
        try:
            found = await self._consumer.beginning_offsets(asked) if asked else {}
        except kafka_errors.KafkaError as error:
            raise translate(error, "Kafka") from error
        return {TopicPartition(*name): offset for name, offset in found.items()}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Fetch this partition from here on."""
        self._next_offsets[partition] = offset
        self._consumer.seek(aiokafka.TopicPartition(*partition), offset)

    def _joined(self) -> None:
        """Remain a member while it is looked up where to begin, however long that takes.

        aiokafka would send heartbeats from the end of it on. What they find out, that the group
        goes on without this member, must not pass for the membership that came with the assignment.
        """
        self._contact = max(self._contact, time.monotonic())
        self._membership = (self._coordinator.generation, self._coordinator.member_id)
        self._coordinator._start_heartbeat_task()  # noqa: SLF001 -- as said

    def _begin_at(self, starts: Mapping[TopicPartition, Start]) -> None:
        self._next_offsets.clear()
        for name, start in starts.items():
            self.seek(name, start.offset)

    def _still_assigned(self, partitions: Iterable[TopicPartition]) -> list[Any]:
        # pause and resume of the client insist on its own class of partition.
        mine = set(partitions)
        return [each for each in self._consumer.assignment() if each in mine]


def _position_lost(name: tuple[str, int], offset: int) -> ReadFailed:
    partition = TopicPartition(*name)
    return ReadFailed(
        partition,
        f"the log of {partition} does not hold offset {offset} any more or yet: retention overtook"
        " the committed offset, or the topic was made anew",
    )


class _Listener(ConsumerRebalanceListener):
    """aiokafka logs and swallows what a listener raises: a failure has to be reported."""

    def __init__(
        self,
        listener: RebalanceListener,
        joined: Callable[[], None],
        begin_at: Callable[[Mapping[TopicPartition, Start]], None],
    ) -> None:
        self._listener = listener
        self._joined = joined
        self._begin_at = begin_at

    async def on_partitions_revoked(self, revoked: object) -> None:
        del revoked  # always everything: the client knows only eager rebalancing
        try:
            await self._listener.partitions_revoked()
        except Exception as error:  # noqa: BLE001 -- see the class
            self._listener.rebalance_failed(error)

    async def on_partitions_assigned(self, assigned: Sequence[tuple[str, int]]) -> None:
        self._joined()
        partitions = sorted(TopicPartition(*each) for each in assigned)
        try:
            starts = await self._listener.look_up(partitions)
        except kafka_errors.KafkaError as error:
            self._listener.rebalance_failed(translate(error, "Kafka"))
            return
        except Exception as error:  # noqa: BLE001 -- see the class
            self._listener.rebalance_failed(error)
            return
        # Records may have been fetched meanwhile, and were passed over because nobody had these
        # partitions. Nothing may come between going back to the start and having them.
        self._begin_at(starts)
        self._listener.partitions_assigned(starts)


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
            f"{what} refused: {_sentence(error)}. Check the INGESTER_KAFKA_SASL_* settings and the"
            " permissions of that user (`ingester check` tries them one by one)."
        )
    return UnavailableError(
        f"{what} cannot be used: {_sentence(error)}. `ingester check` says why."
    )


def _sentence(error: Exception) -> str:
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
            fetched = await reader.getmany(*left, timeout_ms=int(_POLL_SECONDS * 1000))
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


async def beginning_offsets(
    settings: KafkaSettings, partitions: Iterable[TopicPartition]
) -> Mapping[TopicPartition, int]:
    """The first offset that the log of each partition still holds."""
    asked = [aiokafka.TopicPartition(*each) for each in partitions]
    if not asked:
        return {}
    async with _reader(settings) as reader:
        found = await reader.beginning_offsets(asked)
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
        fetch_max_wait_ms=int(_FETCH_WAIT_SECONDS * 1000),
    )


@asynccontextmanager
async def _reader(settings: KafkaSettings) -> AsyncIterator[AIOKafkaConsumer]:
    reader = group_less_consumer(settings)
    try:
        await reader.start()
        yield reader
    except kafka_errors.KafkaError as error:
        raise translate(error, "Kafka") from error
    finally:
        await closed(reader.stop())
