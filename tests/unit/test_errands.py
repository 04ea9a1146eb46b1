"""What errands that are cancelled leave behind for the next assignment of their partitions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from ingester.config import load
from ingester.core.batch import BatchBuilder, BatchLimits
from ingester.core.event import event_decoder
from ingester.core.messages import Fact, ReceiptWritten, WriteReceipt
from ingester.core.record import TopicPartition
from ingester.settings import Settings
from ingester.worker.errands import Errands
from tests.support.records import PARTITION, usage_records

REQUIRED = {
    "INGESTER_KAFKA_BOOTSTRAP_SERVERS": "localhost:9092",
    "INGESTER_TOPIC": "usage",
    "INGESTER_PACSPACE_URL": "https://pacspace.example",
    "PACSPACE_API_KEY": "pk_test_public.secret",
}


class _Books:
    """Takes every receipt at once."""

    async def write(
        self, source: TopicPartition, receipts: Sequence[WriteReceipt]
    ) -> Sequence[int]:
        del source
        return range(len(receipts))


async def test_receipts_are_written_after_a_cancellation_at_their_departure() -> None:
    """A task that is cancelled before its first step never comes to its own end."""
    facts: asyncio.Queue[Fact] = asyncio.Queue()
    errands = Errands(
        load(Settings, environ=REQUIRED, config_file=None).settings,
        cast("Any", None),  # nothing goes wrong here that would have to be told
        cast("Any", None),
        cast("Any", None),
        cast("Any", _Books()),
        handle=facts.put_nowait,
        failed=lambda error: facts.put_nowait(cast("Any", error)),
        keeps_letters=False,
    )
    builder = BatchBuilder(PARTITION, 1, BatchLimits(1, 2**20, 0.0), event_decoder("refuse"))
    receipt = WriteReceipt(builder.form(usage_records(1)), None, 1)
    errands.begin(receipt)
    before = asyncio.all_tasks()
    while asyncio.all_tasks() == before:  # noqa: ASYNC110 -- the very turn of the loop matters
        await asyncio.sleep(0)
    errands.cancel()
    await asyncio.sleep(0)
    assert facts.empty()

    errands.begin(receipt)
    assert await asyncio.wait_for(facts.get(), 5.0) == ReceiptWritten(receipt.batch, 0)
