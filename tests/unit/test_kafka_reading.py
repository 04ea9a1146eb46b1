"""Records from bytes as a broker sends them."""

from __future__ import annotations

import pytest
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

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
