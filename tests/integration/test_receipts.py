"""Receipts that are written together, on a real broker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ingester.core.batch import BatchBuilder, BatchLimits
from ingester.core.event import event_decoder
from ingester.core.messages import WriteReceipt
from ingester.core.receipt import Receipt, decode_note
from ingester.core.record import TopicPartition
from ingester.kafka.receipts import Receipts
from ingester.kafka.writing import WriteProblem
from ingester.local_kafka import LocalKafka
from ingester.settings import LedgerSettings
from tests.conftest import TopicFactory
from tests.support.kafka import read_all
from tests.support.records import LogRecord, event_json
from tests.support.scenario import ACKNOWLEDGED

SOURCE = TopicPartition("usage", 0)


def receipt(offset: int, *, key: str = "k") -> WriteReceipt:
    """A receipt of one event, which is as large as its key is long."""
    limits = BatchLimits(10, 2**20, 0.0)
    builder = BatchBuilder(SOURCE, 1, limits, event_decoder("refuse"))
    return WriteReceipt(builder.form([LogRecord(offset, event_json(key=key))]), ACKNOWLEDGED, 1)


@pytest.fixture
async def receipts(kafka: LocalKafka, topic: TopicFactory) -> AsyncIterator[Receipts]:
    name = await topic(config={"max.message.bytes": "20000"})
    made = Receipts(
        LedgerSettings(
            kafka_bootstrap_servers=(kafka.bootstrap_servers,),
            topic=(SOURCE.topic,),
            receipts_topic=name,
        )
    )
    await made.start()
    yield made
    await made.stop()


async def test_one_that_is_too_large_keeps_none_of_the_others(
    receipts: Receipts, kafka: LocalKafka
) -> None:
    """It alone is refused, with what to do about it; the offsets of the others are told."""
    asked = [receipt(0), receipt(1, key="k" * 30_000), receipt(2)]

    first, refused, last = await receipts.write(SOURCE, asked)

    assert isinstance(refused, WriteProblem)
    assert refused.refused
    assert "max.message.bytes" in refused.reason
    topic, _ = receipts.partition_for(SOURCE)
    found = {
        each.offset: decode_note(each.value)
        for each in await read_all(kafka.bootstrap_servers, topic)
    }
    for offset, note_offset in ((0, first), (2, last)):
        assert isinstance(note_offset, int)
        note = found[note_offset]
        assert isinstance(note, Receipt)
        assert note.first_offset == offset
    assert len(found) == 2
