"""The shell around the consumer group: membership, what it gives to read, and commits.

It leaves no option of the client at its default where the default is wrong for billing, and fences
what the client does not fence. Failures of single partitions are facts, those of the group are
errors that an operator can act on.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import aiokafka
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import errors as kafka_errors
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.structs import OffsetAndMetadata

from ingester.core.messages import Commit, ReadFailed, Start
from ingester.core.record import Record, TopicPartition
from ingester.errors import ConfigurationError, IngesterError
from ingester.kafka.admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.kafka.client import (
    FETCH_WAIT_SECONDS,
    POLL_SECONDS,
    closed,
    heard,
    offsets_by,
    sentence,
    translate,
)
from ingester.kafka.connection import client_options
from ingester.kafka.fetching import fetch_where_sought, look_when_due
from ingester.kafka.reading import UnreadableRecordError, read_in_lists
from ingester.settings import Settings

_POLL_RECORDS_MAX: Final = 500  # 0.5 ms of work, for which answers wait
_HEARTBEATS_PER_SESSION: Final = 3
_MEMBER_ID_SUFFIX: Final = "-[A-Za-z0-9_-]{22,36}"  # a UUID as one coordinator or the other writes


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
            max_poll_records=1,  # list, see kafka_reading
            fetch_max_wait_ms=int(FETCH_WAIT_SECONDS * 1000),
            fetch_min_bytes=1,
            fetch_max_bytes=settings.fetch_bytes_max,
            max_partition_fetch_bytes=settings.partition_fetch_bytes_max,
        )
        self._admin = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)
        self._group_id = settings.group_id
        self._instance_id = settings.group_instance_id
        self._topics = settings.topics
        self._listener = listener
        self._session_timeout_seconds = settings.session_timeout_seconds
        self._membership: tuple[int, str] | None = None
        # Generation and member id of the assignment: written by it, compared by each commit.
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
        read_in_lists(self._consumer, _POLL_RECORDS_MAX)
        fetch_where_sought(self._consumer)
        look_when_due(self._consumer)
        self._watch_membership()
        self._watch_polls()
        listener = _Listener(self._listener, self._place_taken, self._joined, self._begin_at)
        self._consumer.subscribe(self._topics, listener=listener)

    def _watch_membership(self) -> None:
        """See to it that commits are fenced, and note each time the coordinator knew this member.

        aiokafka keeps the time of the last good heartbeat in a local variable. And once the
        coordinator does not know the member any more, it commits without a generation, which a
        broker accepts from anybody as long as the group is empty: offsets could go back.
        """
        coordinator = self._coordinator
        heartbeat, commit = coordinator._do_heartbeat, coordinator._do_commit_offsets

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

        coordinator._do_heartbeat = noted
        coordinator._do_commit_offsets = fenced

    def _watch_polls(self) -> None:
        """See to it that a worker that has stopped polling leaves the group, whatever it polled.

        aiokafka counts polls in and out, but not out what raises: after that the consumer counts
        as polling for good.
        """
        polls: Any = self._consumer._subscription  # no other way to its count

        @contextmanager
        def counted() -> Iterator[None]:
            polls._fetch_count += 1
            try:
                yield
            finally:
                polls._fetch_count -= 1
                polls._last_fetch_ended = time.monotonic()

        polls.fetch_context = counted

    @property
    def _coordinator(self) -> Any:
        return self._consumer._coordinator  # there is no other way to its generation

    @property
    def is_member(self) -> bool:
        """Whether the coordinator cannot have given the partitions to somebody else by now."""
        return time.monotonic() - self._contact < self._session_timeout_seconds

    async def poll(self) -> Fetched:
        """Wait a moment for records of the partitions that are not paused.

        RefusedError and UnavailableError mean that the group cannot go on with this member.
        """
        try:
            fetched: Any = await self._consumer.getmany(timeout_ms=int(POLL_SECONDS * 1000))
        except kafka_errors.OffsetOutOfRangeError as error:
            return Fetched({}, [_position_lost(*each) for each in error.args[0].items()])
        except UnreadableRecordError as error:
            return Fetched({}, [_unreadable(error)])
        except kafka_errors.KafkaError as error:
            raise translate(error, "Kafka") from error
        return Fetched({TopicPartition(*name): records for name, (records,) in fetched.items()})

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
            return CommitProblem(sentence(error))
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
        return await offsets_by(self._consumer.beginning_offsets, partitions)

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Where the logs end now; UnavailableError when nobody says."""
        return await offsets_by(self._consumer.end_offsets, partitions)

    def position(self, partition: TopicPartition) -> int | None:
        """What is to be handed over next; None while that is not known."""
        subscription = self._consumer._subscription.subscription  # `position` waits
        assignment = subscription.assignment
        if assignment is None or partition not in assignment.tps:
            return None
        state = assignment.state_value(aiokafka.TopicPartition(*partition))
        return state.position if state.has_valid_position else None

    def positions(self) -> Mapping[TopicPartition, int]:
        """What is to be handed over next of each partition of which that is known."""
        names = (TopicPartition(*each) for each in self._consumer.assignment())
        positions = {name: self.position(name) for name in names}
        return {name: each for name, each in positions.items() if each is not None}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Fetch this partition from here on."""
        self._consumer.seek(aiokafka.TopicPartition(*partition), offset)

    async def _place_taken(self) -> ConfigurationError | None:
        """Say so where another member has come under this one's id, which must not be joined again.

        The coordinator then does not know this member any more, as after a session that was too
        long; the client asks in a version that tells no more. But of static members the id begins
        with the one that they were given.
        """
        is_forgotten = self._membership is not None and not self._coordinator.member_id
        if self._instance_id is None or not is_forgotten:
            return None
        try:
            hosts = await self._admin.member_hosts(self._group_id)
        except IngesterError:
            return None  # nor can it be joined now; the next session that ends asks again
        pattern = re.compile(re.escape(self._instance_id) + _MEMBER_ID_SUFFIX)
        host = next((hosts[each] for each in hosts if pattern.fullmatch(each)), None)
        if host is None:
            return None
        return ConfigurationError(
            f"another member of the group {self._group_id}, at {host}, has taken this worker's"
            f" place: both have INGESTER_GROUP_INSTANCE_ID={self._instance_id}. Give each worker an"
            " id of its own. Nothing is lost."
        )

    def _joined(self) -> None:
        """Remain a member while it is looked up where to begin, however long that takes.

        aiokafka would send heartbeats from the end of it on. What they find out, that the group
        goes on without this member, must not pass for the membership that came with the assignment.
        """
        self._contact = max(self._contact, time.monotonic())
        self._membership = (self._coordinator.generation, self._coordinator.member_id)
        self._coordinator._start_heartbeat_task()

    def _begin_at(self, starts: Mapping[TopicPartition, Start]) -> None:
        for name, start in starts.items():
            self.seek(name, start.offset)

    def _still_assigned(self, partitions: Iterable[TopicPartition]) -> list[Any]:
        # pause and resume of the client insist on its own class of partition.
        mine = set(partitions)
        return [each for each in self._consumer.assignment() if each in mine]


def _unreadable(error: UnreadableRecordError) -> ReadFailed:
    return ReadFailed(
        error.partition,
        f"{error}. To go on without it, and without what follows it in its record batch:"
        f" ingester resolve {error.partition}:{error.offset} --as skipped --reason ...",
    )


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
        place_taken: Callable[[], Awaitable[ConfigurationError | None]],
        joined: Callable[[], None],
        begin_at: Callable[[Mapping[TopicPartition, Start]], None],
    ) -> None:
        self._listener = listener
        self._place_taken = place_taken
        self._joined = joined
        self._begin_at = begin_at

    async def on_partitions_revoked(self, revoked: object) -> None:
        del revoked  # always everything: the client knows only eager rebalancing
        try:
            await self._listener.partitions_revoked()
            taken = await self._place_taken()
        except Exception as error:  # noqa: BLE001 -- see the class
            self._listener.rebalance_failed(error)
            return
        if taken is not None:
            self._listener.rebalance_failed(taken)
            await asyncio.Event().wait()  # until it is closed: to join would evict the other

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
