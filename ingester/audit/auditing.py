"""Reads the books of a group and its logs, and lets the core judge them; changes nothing.

The group is looked at first, the receipts then and the dead letters after them: what is committed
has its receipts by then, and what is receipted its dead letters.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ingester.audit.books import Entry, Extents, dead_letters, extents, notes
from ingester.audit.doubts import DoubtSettings, Standing
from ingester.core.audit import DeadOffsets, Finding, PartitionAudit
from ingester.core.disputes import Disputes
from ingester.core.event import Decode, event_decoder
from ingester.core.intent import Range
from ingester.core.letters import SourceOffsets
from ingester.core.ranges import holds, intersected, merged, subtracted
from ingester.core.receipt import Note, Receipt, Replay
from ingester.core.record import Record, TopicPartition
from ingester.errors import UnavailableError
from ingester.kafka.range import RangeReader, ranges_of, stream
from ingester.progress import bar


@dataclass(slots=True)
class Audit:
    """What the books say, all of it read once."""

    partitions: Mapping[TopicPartition, PartitionAudit]
    """Of all topics, for a balance knows no partitions, and of their dead letters' topics."""
    scope: Sequence[TopicPartition]
    """Those whose coverage is judged."""
    committed: Mapping[TopicPartition, int]
    logs: Extents
    books: Extents
    """As far as receipts were read."""
    bits: dict[str, int] = field(default_factory=dict)
    """By key, over all topics: what receipts say that PacSpace has."""
    keys_in_scope: set[str] = field(default_factory=set)
    bits_again: dict[str, int] = field(default_factory=dict)
    """By key, over all topics: what of these replays have counted again by force."""
    gap_bits: dict[str, int] = field(default_factory=dict)
    """By key: what records hold that nothing covers, of the partitions in scope."""
    log_bits: dict[str, int] | None = None
    """By key, over all topics: what the log says, where it was read."""
    items: Counter[TopicPartition] = field(default_factory=Counter)
    """What receipts count whose ranges the log has from their beginning on."""
    foreign: Counter[TopicPartition] = field(default_factory=Counter)
    """Records of the receipts topics that are no notes."""

    @property
    def open_replays(self) -> Sequence[Replay]:
        """Of all partitions: the claims of those that have not ended."""
        return [each for one in self.partitions.values() for each in one.open_replays.values()]

    @property
    def findings(self) -> Sequence[Finding]:
        """In the order of partitions and offsets."""
        found = [each for name in self.scope for each in self.partitions[name].findings]
        return sorted(found, key=lambda each: (each.partition, each.range, each.kind))


class Auditor:
    """Reads for one audit; `keys` restricts the sums, None is all of them.

    `watch` is shown each note, whose records it is about, and dead letters are records, too.
    """

    def __init__(
        self,
        settings: DoubtSettings,
        scope: Collection[TopicPartition] | None,
        keys: Collection[str] | None,
        watch: Callable[[TopicPartition, Note], None] = lambda _, __: None,
    ) -> None:
        self._settings = settings
        self._scope = scope
        self._keys = keys
        self._watch = watch
        self._letter_topics = set(map(settings.dead_letter_topic_for, settings.topics))
        self._sources = {*settings.topics, *self._letter_topics}
        self._foreign_letters = SourceOffsets()
        # Of other topics than the settings': another deployment's. Filled and read by `audit`.

    async def audit(self, found: Sequence[Standing], *, from_topic: bool) -> Audit:
        """Read everything; `found` is where the group stood before."""
        settings = self._settings
        books = await self._open_books()
        logs = await extents(settings, self._sources)
        letters, complete = await self._dead_offsets()
        names = [
            name
            for name in logs
            if (name.topic in settings.topics if self._scope is None else name in self._scope)
        ]
        audit = Audit(
            {name: PartitionAudit(name, letters[name], complete, logs[name]) for name in logs},
            names,
            {each.name: each.commit.next_offset for each in found},
            logs,
            books,
            log_bits={} if from_topic else None,
        )
        boundaries = await self._read_notes(audit)
        await self._settle_disputes(audit)
        await self._tell_letters(audit)
        await self._find_gaps(audit)
        await self._compare_records(audit)
        if audit.log_bits is not None:
            await self._read_logs(audit, audit.log_bits, boundaries)
        return audit

    async def catch_up(self, audit: Audit) -> Sequence[Receipt]:
        """Read the receipts that came since, of batches that had none; they are not audited.

        Replays that began, or ended, are taken note of.
        """
        books = await extents(self._settings, {name.topic for name in audit.books})
        since = {
            name: (audit.books[name][1] if name in audit.books else begins, ends)
            for name, (begins, ends) in books.items()
        }
        found: list[Receipt] = []
        async for entry in notes(self._settings, since, self._sources):
            note = entry.note
            partition = audit.partitions.get(entry.source)
            if isinstance(note, Replay) and partition is not None:
                partition.add(entry.at, note)
            if not isinstance(note, Receipt) or self._is_foreign(entry):
                continue
            if partition is None or partition.cover(note):
                found.append(note)
        audit.books = books
        return found

    async def _open_books(self) -> Extents:
        settings = self._settings
        topics = {settings.receipts_topic_for(topic): topic for topic in settings.topics}
        books = await extents(settings, map(settings.receipts_topic_for, self._sources))
        for topic, source in topics.items():
            if not any(name.topic == topic for name in books):
                raise UnavailableError(
                    f"there is no topic {topic}, where the receipts of {source} would be: no worker"
                    " has settled anything, or INGESTER_RECEIPTS_TOPIC is another one."
                )
        return books

    async def _dead_offsets(self) -> tuple[Mapping[TopicPartition, DeadOffsets], bool]:
        """Collect where dead letters came from, and whether all there ever were are there."""
        settings = self._settings
        opened = await extents(settings, self._letter_topics)
        offsets: defaultdict[TopicPartition, array[int]] = defaultdict(lambda: array("q"))
        async for place, record, origin in dead_letters(settings, opened, None):
            if origin.partition.topic in settings.topics:
                offsets[origin.partition].append(origin.offset)
            else:
                self._foreign_letters.add(place, record.offset)
        complete = not any(begins for begins, _ in opened.values())
        found = {name: DeadOffsets(each) for name, each in offsets.items()}
        return defaultdict(DeadOffsets, found), complete

    async def _read_notes(self, audit: Audit) -> Mapping[TopicPartition, int]:
        """Take all notes; return up to where receipts go that the log has not whole."""
        boundaries: dict[TopicPartition, int] = {}
        async for entry in notes(self._settings, audit.books, self._sources, foreign=audit.foreign):
            partition = audit.partitions.get(entry.source)
            note = entry.note
            if self._is_foreign(entry):
                continue
            if partition is not None:
                self._watch(entry.source, note)
            if partition is not None and not partition.add(entry.at, note):
                continue
            if not isinstance(note, Receipt):
                continue
            self._count(audit, entry.source, note)
            begins = audit.logs.get(entry.source, (0, 0))[0]
            cut = note.first_offset < begins
            if cut and not note.forced:
                boundaries[entry.source] = max(boundaries.get(entry.source, 0), note.next_offset)
            redriven = entry.source.topic in self._letter_topics
            if audit.log_bits is not None and not note.forced and (cut or redriven):
                self._add(audit.log_bits, note.bits_by_key)
        return boundaries

    def _is_foreign(self, entry: Entry) -> bool:
        """Whether it is about dead letters of another deployment, on the same topic.

        What a redrive has sent begins with a letter of its own.
        """
        return self._foreign_letters.holds(entry.source, entry.note.first_offset)

    async def _settle_disputes(self, audit: Audit) -> None:
        """Read receipts that cover the same ground a second time, all beside each other."""
        disputes = {
            name: Disputes(each) for name, each in audit.partitions.items() if each.disputed
        }
        settings = self._settings
        topics = {settings.receipts_topic_for(name.topic) for name in disputes}
        again = {place: each for place, each in audit.books.items() if place.topic in topics}
        async for entry in notes(settings, again, self._sources):
            if entry.source in disputes and not self._is_foreign(entry):
                disputes[entry.source].add(entry.at, entry.note)
        for name, dispute in disputes.items():
            for receipt in dispute.judge():
                self._count(audit, name, receipt)

    def _count(self, audit: Audit, source: TopicPartition, receipt: Receipt) -> None:
        self._add(audit.bits, receipt.bits_by_key)
        if receipt.forced:
            self._add(audit.bits_again, receipt.bits_by_key)
        elif source in audit.logs and audit.logs[source][0] <= receipt.first_offset:
            audit.items[source] += receipt.items
        if self._scope is not None and source in self._scope:
            audit.keys_in_scope.update(receipt.bits_by_key)

    def _add(self, sums: dict[str, int], more: Mapping[str, int]) -> None:
        for key, bits in more.items():
            if self._keys is None or key in self._keys:
                sums[key] = sums.get(key, 0) + bits

    async def _tell_letters(self, audit: Audit) -> None:
        """Count the events of receipts whose dead letters are gone in part."""
        decode = event_decoder(self._settings.unknown_members)
        for name, partition in audit.partitions.items():
            if not partition.letters_gone or name.topic in self._letter_topics:
                continue
            gone = sorted(partition.letters_gone)
            counts = dict.fromkeys(gone, 0)
            ground = intersected(merged(gone), [audit.logs[name]])
            async for records in ranges_of(self._settings, name, ground):
                for record in records:
                    offset = record.offset
                    if partition.dead_letters.within(offset, offset + 1):
                        continue
                    range_ = gone[bisect_right(gone, (offset, 2**63)) - 1]
                    counts[range_] += isinstance(decode(record.value), tuple)
            for range_, count in counts.items():
                partition.tell(range_, count)

    async def _find_gaps(self, audit: Audit) -> None:
        """Look into the log where no note says anything: there may be no record there."""
        decode = event_decoder(self._settings.unknown_members)
        for name in audit.scope:
            partition = audit.partitions[name]
            begins = audit.logs[name][0]
            ground = partition.judge_ground(audit.committed.get(name, begins))
            gaps: dict[Range, tuple[int, int, int]] = {}
            unreadable: list[tuple[TopicPartition, Range]] = []
            async for records in ranges_of(self._settings, name, ground, unreadable):
                for key, bits in _events(decode, _chosen(records, ground, partition.dead_letters)):
                    self._add(audit.gap_bits, {key: bits})
                for record in records:
                    range_ = ground[bisect_right(ground, (record.offset, 2**63)) - 1]
                    first_offset, _, count = gaps.get(range_, (record.offset, 0, 0))
                    gaps[range_] = (first_offset, record.offset + 1, count + 1)
            for first_offset, next_offset, count in gaps.values():
                partition.found_gap((first_offset, next_offset), count)
            for range_ in intersected(ground, merged(each for _, each in unreadable)):
                partition.found_unreadable(range_)

    async def _compare_records(self, audit: Audit) -> None:
        """See whether the log holds the records that the outermost receipts of it are of."""
        reader = RangeReader(self._settings)
        try:
            for name in audit.scope:
                partition = audit.partitions[name]
                for receipt in partition.outermost:
                    first_offset, next_offset = receipt.range
                    first = await reader.read(name, first_offset, first_offset + 1)
                    last = await reader.read(name, next_offset - 1, next_offset)
                    if first and last:
                        partition.compare_records(receipt, first[0], last[0])
        finally:
            await reader.stop()

    async def _read_logs(
        self, audit: Audit, sums: dict[str, int], boundaries: Mapping[TopicPartition, int]
    ) -> None:
        """Add up the events of the logs, of all that is settled or should be."""
        decode = event_decoder(self._settings.unknown_members)
        wanted: dict[TopicPartition, list[Range]] = {}
        for name, partition in audit.partitions.items():
            if name.topic in self._letter_topics:
                continue
            begins = audit.logs[name][0]
            covered = partition.covered.ranges
            settled = merged([(begins, audit.committed.get(name, begins)), *covered])
            skipped = merged(each.range for each in partition.skipped)
            beyond = [(max(begins, boundaries.get(name, 0)), audit.logs[name][1])]
            gone = [*partition.letters_gone, *partition.dead_whole]
            beside = merged([*subtracted(skipped, covered), *gone])
            wanted[name] = subtracted(intersected(settled, beyond), beside)
            for receipt in partition.letters_gone.values():
                if begins <= receipt.first_offset:
                    self._add(sums, receipt.bits_by_key)
        ranges = {name: (each[0][0], each[-1][1]) for name, each in wanted.items() if each}
        counts: Counter[TopicPartition] = Counter()
        with bar("records read", sum(end - at for at, end in ranges.values())) as advance:
            async for name, records in stream(self._settings, ranges):
                dead = audit.partitions[name].dead_letters
                for event_key, bits in _events(decode, _chosen(records, wanted[name], dead)):
                    counts[name] += 1
                    self._add(sums, {event_key: bits})
                advance(len(records))
        for name, each in wanted.items():
            audit.partitions[name].compare_items(each, audit.items[name], counts[name])


def _chosen(
    records: Sequence[Record], wanted: Sequence[Range], dead: DeadOffsets
) -> Sequence[Record]:
    """Leave out what is not wanted, and dead letters; mostly there are neither."""
    if not records:
        return records
    extent = (records[0].offset, records[-1].offset + 1)
    inside = intersected([extent], wanted)
    letters = set(dead.within(*extent))
    if inside == [extent] and not letters:
        return records
    return [
        record
        for record in records
        if record.offset not in letters and holds(inside, record.offset)
    ]


def _events(decode: Decode, records: Sequence[Record]) -> Iterable[tuple[str, int]]:
    values = [record.value for record in records]
    decoded = decode.all_of(values) if values else None
    if decoded is not None:
        yield from ((event.key, event.bits) for event in decoded.events)
        return
    for value in values:
        found = decode(value)
        if isinstance(found, tuple):
            yield found[0].key, found[0].bits
