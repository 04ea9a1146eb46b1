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
from ingester.audit.redrives import Redrives
from ingester.audit.settlements import Settlements
from ingester.core.deadletter import Origin, origin_of
from ingester.core.intent import Range
from ingester.core.letters import Choice, Letter, SourceOffsets, peeked
from ingester.core.messages import Commit
from ingester.core.ranges import intersected, length
from ingester.core.record import Record, TopicPartition
from ingester.errors import UnavailableError, UsageError
from ingester.kafka.admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.kafka.range import RangeReader, stream
from ingester.progress import bar_beside_output
from ingester.settings import LedgerSettings
from ingester.tables import harmless

FOREIGN: Final = ""  # in place of a source topic: records that no version of this program wrote


class Letters:
    """The dead letters of all topics of the settings, as of `open`."""

    def __init__(self, settings: LedgerSettings, logs: Extents, settlements: Settlements) -> None:
        self._settings = settings
        self.logs = logs
        self.left_out: Counter[str] = Counter()
        """By source topic: letters of topics that are not of the settings. Filled by `read`."""
        self.unreadable: set[tuple[TopicPartition, Range]] = set()
        """Ranges of the dead-letter topics that nobody can read."""
        self.settlements = settlements
        self.redrives = Redrives()
        self.mistaken: dict[TopicPartition, int] = {}
        """By partition: letters at offsets of which receipts mean other ones. Filled by `open`."""
        self.repeated = SourceOffsets()
        """Source records that have several letters. Filled by `open`."""
        self.redriven = SourceOffsets()
        """Source records of which a letter was redriven. Filled by `open`."""

    @classmethod
    async def open(cls, settings: LedgerSettings, *, to_send: bool = False) -> Letters:
        """Find the topics and what was redriven; UnavailableError where a topic is missing.

        Only of what is `to_send` it is looked up who has still to settle it.
        """
        topics = dead_letter_topics(settings)
        logs = await extents(settings, topics)
        for topic in topics:
            if not any(name.topic == topic for name in logs):
                raise UnavailableError(
                    f"there is no topic {topic}, where dead letters would be: a worker makes it at"
                    " its start. Are INGESTER_TOPIC and INGESTER_DEAD_LETTER_TOPIC right?"
                )
        commits: Mapping[TopicPartition, Commit] = {}
        sources: Extents = {}
        if to_send:  # before the receipts are read: what is committed by now has one
            admin = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)
            commits = await admin.committed_offsets(settings.group_id)
            sources = await extents(settings, settings.topics)
        letters = cls(settings, logs, Settlements(commits, sources))
        await letters._read_receipts()
        await letters._look_through()
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
        redriven = self.redriven.holds(origin.partition, origin.offset)
        return Letter(
            place,
            record,
            origin,
            account,
            key,
            redriven=redriven or self.settlements.is_forced(origin),
            repeats=repeats,
            settled=self.settlements.is_counted(origin),
        )

    async def _read_receipts(self) -> None:
        sources, topics = self._settings.topics, dead_letter_topics(self._settings)
        every = [*sources, *topics]
        places = await extents(self._settings, map(self._settings.receipts_topic_for, every))
        async for entry in notes(self._settings, places, every):
            if entry.note.topic in sources:
                self.settlements.note(entry.source, entry.note)
            elif entry.source in self.logs:
                self.redrives.note(entry.source, entry.note)

    async def _look_through(self) -> None:
        """Look at all letters, and again at those that were sent: all of a record are done then."""
        seen = SourceOffsets()
        logs = await extents(self._settings, dead_letter_topics(self._settings))
        async for place, record, origin in self._read(self.logs):
            self.redrives.record(place, record)
            if origin is not None:
                if not seen.add(origin.partition, origin.offset):
                    self.repeated.add(origin.partition, origin.offset)
                self.settlements.letter(origin)
        for name, log in self.logs.items():
            sent, mistaken = self.redrives.sent(name, logs[name])
            if others := length(intersected(mistaken, [log])):
                self.mistaken[name] = others
            held = intersected(sent, [log])
            if not held:
                continue
            extent = {name: (held[0][0], held[-1][1])}
            async for _, record, origin in self._read(extent):
                while held[0][1] <= record.offset:
                    held.pop(0)
                if origin is not None and held[0][0] <= record.offset:
                    self.redriven.add(origin.partition, origin.offset)
        for origin_partition, offset in self.redrives.repeated():
            self.redriven.add(origin_partition, offset)

    async def _read(
        self, logs: Extents
    ) -> AsyncGenerator[tuple[TopicPartition, Record, Origin | None]]:
        offsets_count = sum(end - begin for begin, end in logs.values())
        with bar_beside_output("dead letters read", offsets_count) as advance:
            for name, range_ in logs.items():  # one after the other: which is the first is certain
                passed: list[tuple[TopicPartition, Range]] = []
                async with aclosing(stream(self._settings, {name: range_}, passed)) as lists:
                    async for _, records in lists:
                        for record in records:
                            yield name, record, origin_of(record.headers)
                        advance(len(records))
                self.unreadable.update(passed)


async def opened(settings: LedgerSettings, choice: Choice, *, to_send: bool = False) -> Letters:
    """Return the letters; UsageError where those that are asked for are of other topics."""
    for source in choice.sources:
        if source.topic not in settings.topics:
            raise UsageError(
                f"--source {source.topic} is none of INGESTER_TOPIC ({', '.join(settings.topics)})"
            )
    return await Letters.open(settings, to_send=to_send)


def dead_letter_topics(settings: LedgerSettings) -> Sequence[str]:
    """The dead-letter topics of all source topics, each once."""
    return list(dict.fromkeys(map(settings.dead_letter_topic_for, settings.topics)))


def left_out(counts: Mapping[str, int]) -> str | None:
    """Say what was passed over because it is of none of the topics, if something was."""
    if not counts:
        return None
    parts = [
        f"{count} of {harmless(topic)}"
        if topic
        else f"{count} that no version of this program wrote"
        for topic, count in counts.items()
    ]
    return f"left out, because INGESTER_TOPIC does not name their source: {', '.join(parts)}"


def unreadable(letters: Letters) -> str | None:
    """Say what could not be read, if something could not."""
    if not letters.unreadable:
        return None
    parts = [f"{name}[{at},{end})" for name, (at, end) in sorted(letters.unreadable)]
    return f"left out, because nobody can read these offsets: {', '.join(parts)}"


def made_anew(letters: Letters) -> str | None:
    """Say where receipts of redrives mean other letters than those that are there, if they do."""
    if not letters.mistaken:
        return None
    parts = [f"{count} of {name}" for name, count in letters.mistaken.items()]
    return (
        "receipts say of letters at the same offsets that a redrive has sent them, and these are"
        f" others: the topic was made anew. They count as not sent: {', '.join(parts)}"
    )
