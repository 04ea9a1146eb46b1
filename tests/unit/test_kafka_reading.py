"""Records from bytes as a broker sends them."""

from __future__ import annotations

from typing import Any, cast

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from ingester.core.record import TopicPartition as Partition
from ingester.kafka.range import _list_of
from ingester.kafka.reading import UnreadableRecordError, _RecordLists


def record_batch(count: int) -> bytearray:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=0,
        batch_size=10_000,
    )
    for number in range(count):
        builder.append(number, timestamp=1_000, key=None, value=b"%d" % number, headers=[])
    return builder.build()


def test_a_wrong_checksum_is_found_before_a_record_is_read() -> None:
    """Bytes that changed on their way become no records; those of sound batches do."""
    sound, changed = record_batch(3), record_batch(2)
    changed[:8] = (3).to_bytes(8)  # its base offset, which the checksum does not cover
    changed[-1] ^= 1
    partition = TopicPartition("usage", 0)
    fetched = MemoryRecords(bytes(sound + changed))
    lists = _RecordLists(
        PartitionRecords(partition, fetched, None, 0, None, None, True, READ_COMMITTED), 500
    )

    assert [0, 1, 2] == [record.offset for record in next(lists)]
    with pytest.raises(
        UnreadableRecordError, match=r"after offset 3 cannot be read: .*checksum"
    ) as raised:
        next(lists)
    assert (3, 5) == (raised.value.offset, raised.value.next_offset)
    assert 3 == lists.next_fetch_offset


class BadLog:
    """A consumer before a record that cannot be read."""

    def __init__(self, cause: Exception) -> None:
        self.at = 3
        self._cause = cause

    async def position(self, _: TopicPartition) -> int:
        return self.at

    async def getmany(self, *_: TopicPartition, **__: Any) -> Any:
        raise UnreadableRecordError(Partition("r", 0), 3, 5, self._cause) from self._cause

    def seek(self, _: TopicPartition, offset: int) -> None:
        self.at = offset


async def test_among_receipts_only_what_nobody_here_wrote_is_passed() -> None:
    """A damaged record may be a receipt, without which its batch would be taken for unsent."""
    foreign = BadLog(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"))
    damaged = BadLog(CorruptRecordException("its checksum is wrong"))
    names = [TopicPartition("r", 0)]

    await _list_of(cast("AIOKafkaConsumer", foreign), names, pass_damaged=False)
    assert 5 == foreign.at
    with pytest.raises(CorruptRecordException):
        await _list_of(cast("AIOKafkaConsumer", damaged), names, pass_damaged=False)
    await _list_of(cast("AIOKafkaConsumer", damaged), names)
    assert 5 == damaged.at
