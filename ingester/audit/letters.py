"""Reads the dead letters of a group's topics: each once, in the order in which they lie there.

What was redriven is known from the receipts of the dead-letter topic, which is then a source of
its own. Nothing is written or committed, and what comes meanwhile is left for the next time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from ingester.audit.books import Extents, extents, notes
from ingester.core.deadletter import Origin, origin_of
from ingester.core.intent import Range
from ingester.core.letters import Choice, Letter, SourceOffsets, peeked
from ingester.core.ranges import intersected, merged
from ingester.core.receipt import Receipt
from ingester.core.record import Record, TopicPartition
from ingester.errors import UnavailableError, UsageError
from ingester.kafka.range import RangeReader, stream
from ingester.progress import bar_beside_output
from ingester.settings import LedgerSettings

FOREIGN: Final = ""  # in place of a source topic: records that no version of this program wrote


class Letters:
    """The dead letters of all topics of the settings, as of `open`."""

    def __init__(self, settings: LedgerSettings, logs: Extents) -> None:
        self._settings = settings
        self.logs = logs
        self.left_out: Counter[str] = Counter()
        """By source topic: letters of topics that are not of the settings. Filled by `read`."""
        self.redrives: Counter[TopicPartition] = Counter()
        """Batches that redrives have sent, by partition of the dead-letter topic."""
        self._redriven = SourceOffsets()
        # Source records of which a letter was redriven; filled by `open`.

    @classmethod
    async def open(cls, settings: LedgerSettings) -> Letters:
        """Find the topics and what was redriven; UnavailableError where a topic is missing."""
        topics = dead_letter_topics(settings)
        logs = await extents(settings, topics)
        for topic in topics:
            if not any(name.topic == topic for name in logs):
                raise UnavailableError(
                    f"there is no topic {topic}, where dead letters would be: a worker makes it at"
                    " its start. Are INGESTER_TOPIC and INGESTER_DEAD_LETTER_TOPIC right?"
                )
        letters = cls(settings, logs)
        await letters._find_redriven()
        return letters

    async def read(self, choice: Choice) -> AsyncGenerator[Letter]:
        """Yield the letters that are wanted; whoever may not take all of them closes it."""
        seen = SourceOffsets()
        async with aclosing(self._read(self.logs)) as found:
            async for place, record, origin in found:
                if origin is None or origin.partition.topic not in self._settings.topics:
                    self.left_out[origin.partition.topic if origin else FOREIGN] += 1
                    continue
                is_new = seen.add(origin.partition, origin.offset)
                letter = self._letter(place, record, origin, repeats=not is_new)
                if choice.wants(letter):
                    yield letter

    async def at(self, place: TopicPartition, offset: int) -> Letter:
        """Return the letter at a place in a dead-letter topic; UsageError where there is none."""
        if place not in self.logs:
            raise UsageError(f"{place.topic} has no partition {place.partition}")
        begins, ends = self.logs[place]
        records: Sequence[Record] = ()
        if begins <= offset < ends:
            reader = RangeReader(self._settings)
            try:
                records = await reader.read(place, offset, offset + 1)
            finally:
                await reader.stop()
        if not records:
            raise UsageError(
                f"{place} holds no record at offset {offset}: it has [{begins},{ends})"
            )
        origin = origin_of(records[0].headers)
        if origin is None:
            raise UsageError(f"the record at {place}:{offset} is no dead letter of this program")
        return self._letter(place, records[0], origin, repeats=False)

    def _letter(
        self, place: TopicPartition, record: Record, origin: Origin, *, repeats: bool
    ) -> Letter:
        account, key = peeked(record.value)
        redriven = self._redriven.holds(origin.partition, origin.offset)
        return Letter(place, record, origin, account, key, redriven, repeats)

    async def _find_redriven(self) -> None:
        """Look at the letters that receipts cover: another of the same record is done as well."""
        topics = dead_letter_topics(self._settings)
        places = await extents(self._settings, map(self._settings.receipts_topic_for, topics))
        covered: dict[TopicPartition, list[Range]] = {name: [] for name in self.logs}
        async for entry in notes(self._settings, places, topics):
            note = entry.note
            if isinstance(note, Receipt) and note.items and entry.source in covered:
                covered[entry.source].append(note.range)
                self.redrives[entry.source] += 1
        for name, ranges in covered.items():
            held = intersected(merged(ranges), [self.logs[name]])
            if not held:
                continue
            extent = {name: (held[0][0], held[-1][1])}
            async for _, record, origin in self._read(extent):
                while held[0][1] <= record.offset:
                    held.pop(0)
                if origin is not None and held[0][0] <= record.offset:
                    self._redriven.add(origin.partition, origin.offset)

    async def _read(
        self, logs: Extents
    ) -> AsyncGenerator[tuple[TopicPartition, Record, Origin | None]]:
        offsets_count = sum(end - begin for begin, end in logs.values())
        with bar_beside_output("dead letters read", offsets_count) as advance:
            for name, range_ in logs.items():  # one after the other: which is the first is certain
                async with aclosing(stream(self._settings, {name: range_})) as lists:
                    async for _, records in lists:
                        for record in records:
                            yield name, record, origin_of(record.headers)
                        advance(len(records))


async def opened(settings: LedgerSettings, choice: Choice) -> Letters:
    """Return the letters; UsageError where those that are asked for are of other topics."""
    for source in choice.sources:
        if source.topic not in settings.topics:
            raise UsageError(
                f"--source {source.topic} is none of INGESTER_TOPIC ({', '.join(settings.topics)})"
            )
    return await Letters.open(settings)


def dead_letter_topics(settings: LedgerSettings) -> Sequence[str]:
    """The dead-letter topics of all source topics, each once."""
    return list(dict.fromkeys(map(settings.dead_letter_topic_for, settings.topics)))


def left_out(counts: Mapping[str, int]) -> str | None:
    """Say what was passed over because it is of none of the topics, if something was."""
    if not counts:
        return None
    parts = [
        f"{count} of {topic}" if topic else f"{count} that no version of this program wrote"
        for topic, count in counts.items()
    ]
    return f"left out, because INGESTER_TOPIC does not name their source: {', '.join(parts)}"
