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
from ingester.core.receipt import Note, decode_note, encode_receipt
from ingester.core.record import TopicPartition
from ingester.core.start import start_of
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
        topic, partition = self.partition_for(batch.partition)
        try:
            written = await (
                await self._writer.send(topic, value, str(batch.partition).encode(), partition)
            )
        except IngesterError as error:
            return str(error)
        return written.offset

    async def starts(
        self, commits: Mapping[TopicPartition, Commit], beginnings: Mapping[TopicPartition, int]
    ) -> Mapping[TopicPartition, Start]:
        """Say for each partition where it begins, by its commit, its log's beginning and notes."""
        tails: dict[TopicPartition, int] = {}
        new = []
        for name, commit in commits.items():
            ledger = decode(commit.next_offset, commit.metadata)
            overtaken = commit.next_offset < beginnings[name]
            if isinstance(ledger, Ledger) and (ledger.intents or overtaken):
                tails[self.partition_for(name)] = ledger.receipts_offset
            elif ledger is None:
                new.append(self.partition_for(name))
                if overtaken:
                    tails[self.partition_for(name)] = 0
        ends = await end_offsets(self._settings, new)
        notes: dict[TopicPartition, list[tuple[int, Note]]] = {name: [] for name in commits}
        async for _, record in read_to_end(self._settings, tails):
            note = decode_note(record.value)
            if note is not None:
                source = TopicPartition(note.topic, note.partition)
                notes.setdefault(source, []).append((record.offset, note))
        return {
            name: start_of(
                name,
                commit,
                log_begins=beginnings[name],
                receipts_end=ends.get(self.partition_for(name), 0),
                notes=notes[name],
            )
            for name, commit in commits.items()
        }

    def partition_for(self, source: TopicPartition) -> TopicPartition:
        """Where the notes about a source's partition are."""
        topic = self._settings.receipts_topic_for(source.topic)
        return TopicPartition(topic, source.partition)


def without_receipts(
    commits: Mapping[TopicPartition, Commit], beginnings: Mapping[TopicPartition, int]
) -> Mapping[TopicPartition, Start]:
    """Where each partition begins when nobody writes receipts."""
    return {
        name: start_of(name, commit, log_begins=beginnings[name], receipts_end=0, notes=())
        for name, commit in commits.items()
    }
