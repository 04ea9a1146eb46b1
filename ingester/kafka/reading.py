"""Takes what the Kafka client has fetched in lists, straight from its reader of record batches.

The client hands records out one at a time, through three generators and as a named tuple each: a
million take 1.0 CPU seconds that way, and 0.3 this way. What is a record (checksums, aborted
transactions, control batches, offsets below the position) is decided as the client decides it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException, KafkaError

from ingester.core.record import Record, TopicPartition

_UNREADABLE: Final = (UnicodeDecodeError, KafkaError)


class UnreadableRecordError(Exception):
    """The client cannot read the records of a partition from an offset on.

    From `next_offset` on it may again: record batches are read as a whole.
    """

    def __init__(
        self, partition: TopicPartition, offset: int, next_offset: int, cause: Exception
    ) -> None:
        super().__init__(f"the record at or after offset {offset} cannot be read: {cause}")
        self.partition = partition
        self.offset = offset
        self.next_offset = next_offset


def read_in_lists(consumer: AIOKafkaConsumer, records_max: int) -> None:
    """Let `getmany` return lists of records, of at most `records_max` each, in place of records.

    Called once, after the consumer's start. What precedes an unreadable record is returned first;
    then comes UnreadableRecordError, and only for its own partition as long as `getmany` is asked
    for one list at a time.
    """
    fetcher: Any = consumer._fetcher
    fetch = fetcher._proc_fetch_request  # the one place where it is put

    async def fetched(assignment: object, node_id: int, request: object) -> bool:
        has_records: bool = await fetch(assignment, node_id, request)
        for result in fetcher._records.values():
            if type(result) is FetchResult:
                _replace_iterator(result, records_max)
        return has_records

    fetcher._proc_fetch_request = fetched


def _replace_iterator(result: Any, records_max: int) -> None:
    unread = result._partition_records
    if type(unread) is PartitionRecords:
        unread._records_iterator = None  # it refers to `unread`: a cycle of 1 MiB
        result._partition_records = _RecordLists(unread, records_max)


class _RecordLists:
    """Stands in a `FetchResult` where the client has its iterator over records."""

    def __init__(self, unread: Any, records_max: int) -> None:
        self._unread = unread
        self._lists = _lists(unread, records_max)

    @property
    def next_fetch_offset(self) -> int:
        """The position once the last list is taken."""
        offset: int = self._unread.next_fetch_offset
        return offset

    def __iter__(self) -> Iterator[list[Record]]:
        return self

    def __next__(self) -> list[Record]:
        return next(self._lists)


def _lists(unread: Any, records_max: int) -> Iterator[list[Record]]:
    """Yield lists of `records_max` records, the last one shorter, and move the position along."""
    batches = _Batches(unread)
    records = chain.from_iterable(batches)
    failure: Exception | None = None
    while failure is None:
        taken: list[Record] = []
        try:
            taken.extend(islice(records, records_max))
        except _UNREADABLE as error:  # what precedes it is in the list
            failure = error
        if taken:
            unread.next_fetch_offset = max(unread.next_fetch_offset, taken[-1].offset + 1)
            yield taken
        elif failure is None:
            return
    raise UnreadableRecordError(
        TopicPartition(*unread._tp),
        unread.next_fetch_offset,
        max(unread.next_fetch_offset + 1, batches.next_offset),
        failure,
    ) from failure


class _Batches:
    """The records of each batch; past its end, whatever it held, the position follows."""

    def __init__(self, unread: Any) -> None:
        self._unread = unread
        self.next_offset = 0  # behind the batch that was looked into last

    def __iter__(self) -> Iterator[Iterable[Record]]:
        unread = self._unread
        fetch_offset = unread.next_fetch_offset
        fetched = unread._records
        while fetched.has_next():
            batch = fetched.next_batch()
            self.next_offset = batch.next_offset
            if _holds_records(unread, batch):
                records: Iterable[Record] = batch  # can be asked for its iterator once
                if unread.next_fetch_offset == fetch_offset:  # a fetch begins with a whole batch
                    records = (record for record in records if record.offset >= fetch_offset)
                yield records
            unread.next_fetch_offset = batch.next_offset


def _holds_records(unread: Any, batch: Any) -> bool:
    """Whether a batch has records for us: it is sound, committed, and no marker."""
    if not batch.validate_crc():
        raise CorruptRecordException("its checksum is wrong")
    if batch.producer_id is not None:
        aborted = unread._aborted_producers
        unread._consume_aborted_up_to(batch.base_offset)
        if batch.is_control_batch and unread._contains_abort_marker(batch):
            aborted.discard(batch.producer_id)
        if batch.is_transactional and batch.producer_id in aborted:
            return False
    return not batch.is_control_batch
