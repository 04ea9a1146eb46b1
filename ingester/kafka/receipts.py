"""The shell around the receipts topic, and what former owners of a partition left there.

A receipt goes to the partition of its source's number, so that one partition's tail is all that its
next owner has to read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from msgspec.structs import replace

from ingester.core.intent import Unreadable, decode
from ingester.core.messages import Commit, Start, WriteReceipt
from ingester.core.receipt import (
    Note,
    Receipt,
    Replay,
    Resolution,
    decode_note,
    encode_note,
    encode_receipt,
)
from ingester.core.record import TopicPartition
from ingester.core.replaying import Replaying
from ingester.core.start import is_given_up, start_of
from ingester.errors import IngesterError
from ingester.kafka.admin import KafkaAdmin
from ingester.kafka.client import end_offsets
from ingester.kafka.range import read_to_end
from ingester.kafka.writing import RecordWriter, WriteProblem
from ingester.settings import LedgerSettings

_NO_SUMS: Final[Mapping[str, int]] = {}


class Receipts:
    """Writes notes, and reads those about batches that were intended and not committed."""

    def __init__(self, settings: LedgerSettings, replay: Replaying | None = None) -> None:
        self._settings = settings
        self._replay = replay
        self._writer: RecordWriter | None = None  # made by `start`: who only reads needs none
        self._read_up_to: dict[TopicPartition, int] = {}
        # By the source's partition: written by `starts`, read to tell new decisions from old.

    async def ensure_topics(self, admin: KafkaAdmin, partitions: Mapping[str, int]) -> None:
        """See to a partition for each of the sources', of which there are so many."""
        needed = self.topics_for(partitions)
        for name in await admin.lacking(needed):
            await admin.ensure_kept_topic(name, needed[name])

    def topics_for(self, partitions: Mapping[str, int]) -> Mapping[str, int]:
        """The receipts topics of sources with so many partitions each, and how many these need."""
        needed: dict[str, int] = {}
        for topic, partitions_count in partitions.items():
            name = self._settings.receipts_topic_for(topic)
            needed[name] = max(partitions_count, needed.get(name, 0))
        return needed

    async def start(self) -> None:
        """Connect; UnavailableError when no broker answers."""
        self._writer = RecordWriter(self._settings, compress=False)
        await self._writer.start()

    async def stop(self) -> None:
        """Give what is under way a moment, and disconnect."""
        if self._writer is not None:
            await self._writer.stop()

    async def write(
        self, source: TopicPartition, receipts: Sequence[WriteReceipt]
    ) -> Sequence[int | WriteProblem]:
        """Append receipts of one partition; say of each its offset, or why no broker has it."""
        assert self._writer is not None, "nothing is written before the start"
        settled_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        values = [
            encode_receipt(
                receipt.batch,
                receipt.outcome,
                receipt.attempts,
                settled_at,
                in_doubt=receipt.in_doubt,
                replay=self._replay.name if self._replay else None,
                forced=self._replay is not None and self._replay.forced,
            )
            for receipt in receipts
        ]
        topic, partition = self.partition_for(source)
        try:
            return await self._writer.write_all(topic, partition, str(source).encode(), values)
        except IngesterError as error:
            problem = WriteProblem.of(error)
        if problem.refused and len(receipts) > 1:  # one of them, perhaps, and not the others
            return [
                outcome for receipt in receipts for outcome in await self.write(source, [receipt])
            ]
        return [problem] * len(receipts)

    async def write_note(self, note: Resolution | Replay) -> int:
        """Append a note of a person's; return its offset. RefusedError without the permission."""
        return await self._append(TopicPartition(note.topic, note.partition), encode_note(note))

    async def _append(self, source: TopicPartition, value: bytes) -> int:
        assert self._writer is not None, "nothing is written before the start"
        topic, partition = self.partition_for(source)
        written = await self._writer.write(topic, value, str(source).encode(), partition)
        return written.offset

    async def starts(
        self, commits: Mapping[TopicPartition, Commit], beginnings: Mapping[TopicPartition, int]
    ) -> Mapping[TopicPartition, Start]:
        """Say where each partition begins, by its log's beginning, its commit if any, and notes."""
        ends = await end_offsets(self._settings, set(map(self.partition_for, beginnings)))
        # A replay's claim precedes all that its committed offsets know of the receipts.
        notes = await self.notes({} if self._replay else commits, beginnings)
        self._read_up_to |= {
            name: max([ends[self.partition_for(name)], *(offset + 1 for offset, _ in notes[name])])
            for name in beginnings
        }
        start = self._replay.start_of if self._replay else start_of
        starts = {
            name: start(
                name,
                commits.get(name),
                log_begins=log_begins,
                receipts_end=ends[self.partition_for(name)],
                notes=notes[name],
            )
            for name, log_begins in beginnings.items()
        }
        if self._replay is None:
            return starts
        given_up = f"somebody has given up what the replay {self._replay.name} had claimed of it"
        return {
            name: replace(each, halt_reason=given_up)
            if is_given_up(self._replay.name, [note for _, note in notes[name]])
            else each
            for name, each in starts.items()
        }

    def read_up_to(self, source: TopicPartition) -> int:
        """Up to where the notes about a partition are in the last of its `starts`."""
        return self._read_up_to.get(source, 0)

    async def notes(
        self, commits: Mapping[TopicPartition, Commit], beginnings: Mapping[TopicPartition, int]
    ) -> Mapping[TopicPartition, Sequence[tuple[int, Note]]]:
        """Return those that concern what is above each committed offset, with their offsets.

        `bits_by_key` of receipts is left empty.
        """
        tails: dict[TopicPartition, int] = {}
        for name in beginnings:
            commit = commits.get(name)
            ledger = decode(commit.next_offset, commit.metadata) if commit else None
            if isinstance(ledger, Unreadable):
                continue
            begins = ledger.receipts_offset if ledger else 0
            place = self.partition_for(name)  # which may be that of a namesake's notes, too
            tails[place] = min(begins, tails.get(place, begins))
        notes: dict[TopicPartition, list[tuple[int, Note]]] = {name: [] for name in beginnings}
        async for _, record in read_to_end(self._settings, tails):
            note = decode_note(record.value)
            if isinstance(note, Receipt):  # a whole topic of them may be wanted, without the sums
                note = replace(note, bits_by_key=_NO_SUMS)
            if note is not None:
                source = TopicPartition(note.topic, note.partition)
                notes.setdefault(source, []).append((record.offset, note))
        return notes

    def partition_for(self, source: TopicPartition) -> TopicPartition:
        """Where the notes about a source's partition are."""
        topic = self._settings.receipts_topic_for(source.topic)
        return TopicPartition(topic, source.partition)


def without_receipts(
    commits: Mapping[TopicPartition, Commit], beginnings: Mapping[TopicPartition, int]
) -> Mapping[TopicPartition, Start]:
    """Where each partition begins when nobody writes receipts."""
    return {
        name: start_of(name, commits.get(name), log_begins=begins, receipts_end=0, notes=())
        for name, begins in beginnings.items()
    }
