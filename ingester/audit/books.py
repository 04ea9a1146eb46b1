"""The books: what receipts and dead letters say of a group's sources, as far as it is written now.

Whoever audits opens them first and reads then: what is written meanwhile is left for the next time.
Everything is streamed, in the order of each partition; nothing is kept, written or committed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from typing import NamedTuple

import msgspec

from ingester.core.deadletter import Origin, origin_of
from ingester.core.intent import Range
from ingester.core.receipt import Note, decode_note
from ingester.core.record import Record, TopicPartition
from ingester.kafka.admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.kafka.client import beginning_offsets, end_offsets
from ingester.kafka.range import stream
from ingester.progress import bar
from ingester.settings import KafkaSettings, LedgerSettings

Extents = Mapping[TopicPartition, Range]
"""By partition, `[first_offset, next_offset)` of what is to be read, or was there to be."""


class Entry(NamedTuple):
    """A note, and where it is."""

    place: TopicPartition
    offset: int
    note: Note

    @property
    def at(self) -> tuple[int, int]:
        """Partition and offset in the receipts topic."""
        return self.place.partition, self.offset

    @property
    def source(self) -> TopicPartition:
        """Whose records it is about."""
        return TopicPartition(self.note.topic, self.note.partition)


class LetterEntry(NamedTuple):
    """A dead letter, where it is and where it came from."""

    place: TopicPartition
    record: Record
    origin: Origin


async def extents(settings: LedgerSettings, topics: Iterable[str]) -> Extents:
    """Where the partitions of topics begin and end now; none of a topic that does not exist.

    RefusedError for one that the login may not see.
    """
    asked = list(dict.fromkeys(topics))
    admin = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)
    counts = await admin.partition_counts(asked)
    names = [TopicPartition(topic, number) for topic in asked for number in range(counts[topic])]
    begins = await beginning_offsets(settings, names)
    ends = await end_offsets(settings, names)
    return {name: (begins[name], ends[name]) for name in names}


async def notes(
    settings: KafkaSettings,
    extents: Extents,
    sources: Collection[str],
    *,
    containing: str = "",
    foreign: Counter[TopicPartition] | None = None,
) -> AsyncIterator[Entry]:
    """Read receipts topics; only what is about these source topics, whatever else is there.

    `containing` is a text that the notes wanted hold somewhere: most need not be decoded then.
    Records that are no notes are counted as `foreign`.
    """
    text = msgspec.json.encode(containing)[1:-1]
    async for place, record in _records(settings, extents, "receipts read"):
        if text not in (record.value or b""):
            continue
        note = decode_note(record.value)
        if note is None and foreign is not None:
            foreign[place] += 1
        if note is not None and note.topic in sources:
            yield Entry(place, record.offset, note)


async def dead_letters(
    settings: KafkaSettings, extents: Extents, sources: Collection[str] | None
) -> AsyncIterator[LetterEntry]:
    """Read dead-letter topics; only what came from these source topics, some of it repeatedly.

    None is all of them.
    """
    async for place, record in _records(settings, extents, "dead letters read"):
        origin = origin_of(record.headers)
        if origin is not None and (sources is None or origin.partition.topic in sources):
            yield LetterEntry(place, record, origin)


async def _records(
    settings: KafkaSettings, extents: Extents, what: str
) -> AsyncIterator[tuple[TopicPartition, Record]]:
    with bar(what, sum(end - at for at, end in extents.values())) as advance:
        async for place, records in stream(settings, extents):
            for record in records:
                yield place, record
            advance(len(records))
