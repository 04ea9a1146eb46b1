"""Chooses what a replay sends: a part of a topic, less what is settled and what others settle."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ingester.arguments import who
from ingester.audit.doubts import replay_group_id
from ingester.backfill.beside_letters import redriven
from ingester.backfill.plan import Counts, Plan
from ingester.core.event import Decode, Rejection, UsageEvent, event_decoder
from ingester.core.intent import Range, Unreadable, decode
from ingester.core.messages import Commit
from ingester.core.ranges import intersected, length, merged, subtracted
from ingester.core.receipt import Note, Receipt, Replay, Resolution
from ingester.core.record import Record, TopicPartition
from ingester.core.start import is_to_be_judged
from ingester.errors import UsageError
from ingester.kafka.admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.kafka.client import beginning_offsets, end_offsets, offsets_since
from ingester.kafka.range import not_empty, stream
from ingester.kafka.receipts import Receipts
from ingester.progress import bar
from ingester.settings import KafkaSettings, Settings


@dataclass(frozen=True, slots=True)
class Scope:
    """What somebody asked for; None is no bound."""

    topic: str
    name: str
    reason: str
    partition: int | None = None
    offsets: Range | None = None
    begin: datetime | None = None
    end: datetime | None = None
    account: str | None = None
    key: str | None = None
    forced: bool = False
    below_committed: bool = False
    """Whether what is below the group's offsets without a receipt is to be sent as well."""

    @property
    def looks_into_records(self) -> bool:
        return self.account is not None or self.key is not None

    def wants(self, event: UsageEvent) -> bool:
        """Whether an event is of the account and the key."""
        return self.account in {None, event.accountId} and self.key in {None, event.key}


class Selection:
    """Looks at Kafka once, and says what is to be sent."""

    def __init__(self, settings: Settings, scope: Scope) -> None:
        self._settings = settings
        self._scope = scope
        self._admin = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)
        self._decode: Decode = event_decoder(settings.unknown_members)

    async def plan(self, *, count: bool) -> Plan:
        """Decide; where records are to be counted, or filtered, read them all.

        UnavailableError when Kafka is away, UsageError where what was asked for cannot be.
        """
        scope, settings = self._scope, self._settings
        asked = await self._bounds()
        stored = await self._admin.committed_offsets(settings.group_id)
        kept = await self._kept_by_worker(asked, stored)
        notes = await self._notes(asked)
        self._check_group(asked, stored, notes)
        await self._check_name(notes)
        passed = {} if scope.forced else await redriven(settings, scope.topic, asked)
        unsettled: dict[TopicPartition, list[Range]] = {}
        receipted = skipped = 0
        for name, bounds in asked.items():
            scoped = subtracted([bounds], [kept[name]] if name in kept else [])
            known = merged([*_receipted(notes[name]), *passed.get(name, ())])
            settled = intersected(scoped, known)
            others = _left_out(notes[name], stored.get(name))
            left_out = intersected(subtracted(scoped, settled), others)
            receipted += length(settled)
            skipped += length(left_out)
            unsettled[name] = subtracted(
                scoped, left_out if scope.forced else merged([*settled, *left_out])
            )
        unaccounted: dict[TopicPartition, list[Range]] = {}
        if not (scope.forced or scope.below_committed):
            for name, each in unsettled.items():
                below = intersected(each, _below(stored.get(name)))
                unaccounted[name] = [*await not_empty(settings, name, below)]
                unsettled[name] = subtracted(each, below)
        chosen: Mapping[TopicPartition, list[Range]] = {
            name: [*await not_empty(settings, name, each)] for name, each in unsettled.items()
        }
        counts = None
        if count or scope.looks_into_records:
            chosen, counts = await self._looked_into(chosen)
        return Plan(
            name=scope.name,
            topic=scope.topic,
            group_id=settings.group_id,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            by=who(),
            reason=scope.reason,
            forced=scope.forced,
            partitions={name.partition: each for name, each in chosen.items() if each},
            receipted=receipted,
            skipped=skipped,
            left_to_worker={name.partition: each for name, each in kept.items()},
            committed={
                name.partition: stored[name].next_offset for name in asked if name in stored
            },
            unaccounted={name.partition: each for name, each in unaccounted.items() if each},
            below_committed=scope.below_committed,
            counts=counts,
        )

    async def _bounds(self) -> Mapping[TopicPartition, Range]:
        """The part of each partition's log that was asked for; those with nothing are left out."""
        scope, settings = self._scope, self._settings
        count = (await self._admin.partition_counts([scope.topic]))[scope.topic]
        if not count:
            raise self._admin.missing_topic(scope.topic, named_by="TOPIC")
        if scope.partition is not None and scope.partition >= count:
            raise UsageError(
                f"{scope.topic} has the partitions 0 to {count - 1}, and not {scope.partition}"
            )
        numbers = range(count) if scope.partition is None else [scope.partition]
        names = [TopicPartition(scope.topic, number) for number in numbers]
        begins, ends = await beginning_offsets(settings, names), await end_offsets(settings, names)
        bounds = {name: (begins[name], ends[name]) for name in names}
        if scope.offsets is not None:
            bounds = {name: _held(name, scope.offsets, each) for name, each in bounds.items()}
        firsts = await self._since(scope.begin, names)
        nexts = await self._since(scope.end, names)
        bounded = {
            name: (max(begin, firsts.get(name, begin)), min(end, nexts.get(name, end)))
            for name, (begin, end) in bounds.items()
        }
        return {name: each for name, each in bounded.items() if each[0] < each[1]}

    async def _notes(
        self, asked: Iterable[TopicPartition]
    ) -> Mapping[TopicPartition, Sequence[tuple[int, Note]]]:
        """What the receipts topic says; of a topic that no worker has read there may be none."""
        scope, settings = self._scope, self._settings
        topic = settings.receipts_topic_for(scope.topic)
        count = (await self._admin.partition_counts([topic]))[topic]
        there = [name for name in asked if name.partition < count]
        found = await Receipts(settings).notes({}, dict.fromkeys(there, 0))
        return {name: found.get(name, ()) for name in asked}

    def _check_group(
        self,
        asked: Iterable[TopicPartition],
        stored: Mapping[TopicPartition, Commit],
        notes: Mapping[TopicPartition, Sequence[tuple[int, Note]]],
    ) -> None:
        """UsageError where another group than this one has settled something of what is asked."""
        for name in asked:
            if name not in stored and is_to_be_judged(notes[name]):
                raise UsageError(
                    f"the group {self._settings.group_id} has no committed offset of {name}, and"
                    " receipts show that some of it was settled by workers: they may be at work in"
                    " another group, and would send what is replayed as well. Correct"
                    " INGESTER_GROUP_ID; or, if the group has lost its offsets: ingester resolve"
                    f" {name}:OFFSET --as resend (`ingester resolve {name}` says where)"
                )

    async def _check_name(self, notes: Mapping[TopicPartition, Sequence[tuple[int, Note]]]) -> None:
        """UsageError where another replay had the name: its receipts would pass for this one's."""
        name = self._scope.name
        used = any(
            (isinstance(note, Replay) and note.name == name)
            or (isinstance(note, Receipt) and note.replay == name)
            for noted in notes.values()
            for _, note in noted
        )
        group = replay_group_id(self._settings.group_id, name)
        if used or await self._admin.committed_offsets(group):
            raise UsageError(
                f"a replay had the name {name} before: choose another --name, or continue that one"
                " (ingester replay --plan FILE)"
            )

    async def _since(
        self, moment: datetime | None, names: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        if moment is None:
            return {}
        milliseconds = int(moment.timestamp() * 1000)
        return await offsets_since(self._settings, dict.fromkeys(names, milliseconds))

    async def _kept_by_worker(
        self, asked: Mapping[TopicPartition, Range], stored: Mapping[TopicPartition, Commit]
    ) -> Mapping[TopicPartition, Range]:
        """What of it a group that has members will come to: what is beyond its offsets."""
        if not await self._admin.members_count(self._settings.group_id):
            return {}
        kept = {}
        for name, (begin, end) in asked.items():
            committed = stored[name].next_offset if name in stored else begin
            if committed < end:
                kept[name] = (max(begin, committed), end)
        return kept

    async def _looked_into(
        self, chosen: Mapping[TopicPartition, list[Range]]
    ) -> tuple[Mapping[TopicPartition, list[Range]], Counts]:
        """Read all of it; return the part that is wanted, and what is in that."""
        counts = Counts()
        found: dict[TopicPartition, list[Range]] = {name: [] for name in chosen}
        extents = {name: (each[0][0], each[-1][1]) for name, each in chosen.items() if each}
        with bar("reading", length(extents.values())) as advance:
            async for name, records in stream(self._settings, extents):
                self._count(_within(records, chosen[name]), counts, found[name])
                advance(len(records))
        return (found if self._scope.looks_into_records else chosen), counts

    def _count(self, records: Sequence[Record], counts: Counts, found: list[Range]) -> None:
        scope = self._scope
        for record in records:
            decoded = self._decode(record.value)
            if isinstance(decoded, Rejection):
                if not scope.looks_into_records:
                    counts.records += 1
                    counts.dead_letters += 1
                continue
            event, _ = decoded
            if not scope.wants(event):
                continue
            counts.add(event)
            if scope.looks_into_records:
                _append(found, record.offset)


def _within(records: Sequence[Record], ranges: Sequence[Range]) -> Sequence[Record]:
    """Return the records in one of ascending ranges."""
    firsts = [first_offset for first_offset, _ in ranges]
    return [
        record
        for record in records
        if (index := bisect_right(firsts, record.offset)) and record.offset < ranges[index - 1][1]
    ]


def _append(ranges: list[Range], offset: int) -> None:
    """Add an offset beyond all others."""
    if ranges and ranges[-1][1] == offset:
        ranges[-1] = (ranges[-1][0], offset + 1)
    else:
        ranges.append((offset, offset + 1))


def _held(name: TopicPartition, asked: Range, log: Range) -> Range:
    """Return a range that was asked for; UsageError where the log does not hold all of it."""
    if asked[0] < log[0]:
        raise UsageError(
            f"the log of {name} begins at offset {log[0]}: retention has taken what is before."
            f" Replay from there: {log[0]}-{max(asked[1], log[0])}"
        )
    if asked[1] > log[1]:
        raise UsageError(f"the log of {name} ends before offset {log[1]}: nothing is beyond yet")
    return asked


def _below(commit: Commit | None) -> list[Range]:
    """What a group has committed past."""
    return merged([(0, commit.next_offset)]) if commit else []


async def unaccounted(
    settings: KafkaSettings,
    name: TopicPartition,
    selected: Sequence[Range],
    notes: Sequence[Note],
    committed: Range,
) -> Sequence[Range]:
    """Return what of a selection is between two committed offsets, and has no receipt.

    UnavailableError when the log cannot be read now.
    """
    receipts = merged(note.range for note in notes if isinstance(note, Receipt))
    left = subtracted(intersected(selected, merged([committed])), receipts)
    return await not_empty(settings, name, left)


def _receipted(notes: Sequence[tuple[int, Note]]) -> list[Range]:
    return merged(note.range for _, note in notes if isinstance(note, Receipt))


def _left_out(notes: Sequence[tuple[int, Note]], commit: Commit | None) -> list[Range]:
    """What somebody decided to skip, and what the group may have in flight."""
    skipped = [
        note.range
        for _, note in notes
        if isinstance(note, Resolution) and note.decision == "skipped"
    ]
    return merged([*skipped, *intended(commit)])


def intended(commit: Commit | None) -> list[Range]:
    """Return what a group may have in flight above an offset; UsageError if that is not known."""
    ledger = decode(commit.next_offset, commit.metadata) if commit else None
    if isinstance(ledger, Unreadable):
        raise UsageError(
            f"what the group has in doubt is not known: the metadata of its committed offsets"
            f" cannot be read, since {ledger.reason}. Let the version that wrote it settle it first"
        )
    return merged(each.range for each in ledger.intents) if ledger else []
