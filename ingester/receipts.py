"""The shell around the receipts topic, and what former owners of a partition left there.

A receipt goes to the partition of its source's number, so that one partition's tail is all that its
next owner has to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from ingester.core.intent import Ledger, decode
from ingester.core.messages import Commit, Start, WriteReceipt
from ingester.core.receipt import decode_receipt, encode_receipt
from ingester.core.record import TopicPartition
from ingester.errors import IngesterError
from ingester.kafka import RecordWriter, end_offsets, read_to_end
from ingester.kafka_admin import KafkaAdmin
from ingester.settings import Settings

# A receipt is what an invoice is explained by: it never expires.
_TOPIC_CONFIG: Final[Mapping[str, str]] = {"cleanup.policy": "delete", "retention.ms": "-1"}


class Receipts:
    """Writes receipts, and reads those of batches that were intended and not committed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._writer = RecordWriter(settings, compress=False)

    async def ensure_topics(
        self, admin: KafkaAdmin, partitions: Mapping[str, int]
    ) -> tuple[str, ...]:
        """See to a partition for each of the sources'; return the topics that were created."""
        needed: dict[str, int] = {}
        for topic, partitions_count in partitions.items():
            name = self._settings.receipts_topic_for(topic)
            needed[name] = max(partitions_count, needed.get(name, 0))
        created = [
            name
            for name, partitions_count in needed.items()
            if await admin.ensure_topic(name, partitions_count, _TOPIC_CONFIG) == "created"
        ]
        return tuple(created)

    async def start(self) -> None:
        """Connect; UnavailableError when no broker answers."""
        await self._writer.start()

    async def stop(self) -> None:
        """Give what is under way a moment, and disconnect."""
        await self._writer.stop()

    async def write(self, receipt: WriteReceipt) -> int | str:
        """Append a receipt; return its offset, or why the broker does not have it."""
        batch = receipt.batch
        settled_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        value = encode_receipt(batch, receipt.outcome, receipt.attempts, settled_at)
        topic, partition = self._partition_for(batch.partition)
        try:
            written = await self._writer.write(
                topic, value, str(batch.partition).encode(), partition
            )
        except IngesterError as error:
            return str(error)
        return written.offset

    async def starts(
        self, commits: Mapping[TopicPartition, Commit]
    ) -> Mapping[TopicPartition, Start]:
        """Say for each partition where it begins, and what has a receipt above that."""
        ledgers = {
            name: decode(commit.next_offset, commit.metadata) for name, commit in commits.items()
        }
        unknown = [name for name, ledger in ledgers.items() if ledger is None]
        ends = await end_offsets(self._settings, map(self._partition_for, unknown))
        tails: dict[TopicPartition, int] = {}
        for name, ledger in ledgers.items():
            if ledger is not None and ledger.intents:
                tails[self._partition_for(name)] = ledger.receipts_offset
        receipted: dict[TopicPartition, dict[tuple[int, int], int]] = {}
        async for _, record in read_to_end(self._settings, tails):
            receipt = decode_receipt(record.value)
            if receipt is not None:
                source = TopicPartition(receipt.topic, receipt.partition)
                range_ = (receipt.first_offset, receipt.next_offset)
                receipted.setdefault(source, {})[range_] = record.offset
        return {
            name: Start(
                commits[name].next_offset,
                ledger or Ledger(ends[self._partition_for(name)], ()),
                receipted.get(name, {}),
            )
            for name, ledger in ledgers.items()
        }

    def _partition_for(self, source: TopicPartition) -> TopicPartition:
        topic = self._settings.receipts_topic_for(source.topic)
        return TopicPartition(topic, source.partition)


def without_receipts(
    commits: Mapping[TopicPartition, Commit],
) -> Mapping[TopicPartition, Start]:
    """Where each partition begins when nobody writes receipts."""
    return {
        name: Start(
            commit.next_offset, decode(commit.next_offset, commit.metadata) or Ledger(0, ()), {}
        )
        for name, commit in commits.items()
    }
