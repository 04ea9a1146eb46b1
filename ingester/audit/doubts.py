"""What a group has in doubt, as anybody outside of it sees it in Kafka; changes nothing.

In doubt is a batch whose intent is recorded and that has no receipt. Whether a worker has halted
its partition, or is just sending it, is not to be seen here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ingester.core.batch import Batch, BatchBuilder, BatchLimits
from ingester.core.intent import Intent, Ledger, Range, Unreadable, decode
from ingester.core.mapping import NO_CORRECTION, Correction, corrected_decoder, correction_of
from ingester.core.messages import Commit, Start
from ingester.core.ranges import length, merged, subtracted
from ingester.core.receipt import Note, Replay, Resolution
from ingester.core.record import TopicPartition
from ingester.core.replaying import Replaying
from ingester.core.start import is_to_go_on, start_of
from ingester.kafka.admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.kafka.client import beginning_offsets, end_offsets
from ingester.kafka.range import RangeReader
from ingester.kafka.receipts import Receipts
from ingester.settings import EventSettings, KafkaSettings, LedgerSettings


def replay_group_id(group_id: str, replay: str) -> str:
    """Name the group of a replay that runs beside another group."""
    return f"{group_id}.replay.{replay}"


class DoubtSettings(LedgerSettings, EventSettings):
    """Where the group keeps what is in doubt, and what its events are."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a partition's committed offset, its log and its notes say together."""

    name: TopicPartition
    commit: Commit
    log_begins: int
    log_ends: int
    start: Start
    """Where a worker would begin now."""
    notes: Sequence[Note]
    """Those about what is above the committed offset, oldest first."""
    owner: str | None
    """The host of the worker that has the partition, if one has."""
    has_committed: bool
    """Or else the group has no offset, and would begin where the log does."""
    claim: Replay | None = None
    """What a replay has claimed of it, where the group is that replay's."""
    unreadable_records: Range | None = None
    """What nobody can read of the log, where it is the next to be settled; see `looked_into`."""

    @property
    def namespace(self) -> str:
        """Part of the keys of its batches, see `Replaying.namespace`."""
        return self.claim.name if self.claim and self.claim.forced else ""

    @property
    def correction(self) -> Correction:
        """What a redrive makes of the records."""
        claim = self.claim
        return correction_of(claim.sets, claim.removes) if claim else NO_CORRECTION

    @property
    def unreadable(self) -> str | None:
        """Why it is not known what is in doubt, if it is not."""
        ledger = decode(self.commit.next_offset, self.commit.metadata)
        return self.start.halt_reason if isinstance(ledger, Unreadable) else None

    @property
    def has_ledger(self) -> bool:
        """Whether the committed offset says what was in doubt, be it nothing."""
        return isinstance(decode(self.commit.next_offset, self.commit.metadata), Ledger)

    @property
    def in_doubt(self) -> Sequence[Intent]:
        """In offset order, those included about which a decision was not acted upon yet."""
        return [each for each in self.start.ledger.intents if each.range not in self.start.settled]

    def doubts_at(self, offset: int | None) -> Sequence[Intent]:
        """Return what is in doubt at an offset; all of it for None."""
        return [
            each
            for each in self.in_doubt
            if offset is None or each.first_offset <= offset < each.next_offset
        ]

    @property
    def gap(self) -> Range | None:
        """What cannot be settled because the log has lost it, the rest of its batches included."""
        if self.unreadable or self.start.offset >= self.log_begins:
            return None
        begun = [each for each in self.start.ledger.intents if each.first_offset < self.log_begins]
        ends = (each.next_offset for each in begun)
        return self.start.offset, max([self.log_begins, *ends])

    def decision_on(self, intent: Intent) -> Resolution | None:
        """Return what was last decided about a batch in doubt."""
        decisions = [each for each in self.notes if isinstance(each, Resolution)]
        concerning = (each for each in reversed(decisions) if each.range == intent.range)
        return next(concerning, None)

    @property
    def unsettled(self) -> Sequence[Range]:
        """What of the log is the group's to settle, and has no receipt, be it a replay's.

        What is above the committed offset, less what is known beside it. Of a replay that has ended
        or was given up there is none, nor of what it has not claimed.
        """
        if self.claim is not None and self.claim.name not in {each.name for each in self.claims}:
            return ()
        above = merged([(max(self.commit.next_offset, self.log_begins), self.log_ends)])
        known = ((each.first_offset, each.next_offset) for each in self.start.proofs)
        return subtracted(above, merged(known))

    @property
    def claims(self) -> Sequence[Replay]:
        """What replays have claimed that neither ended nor were given up."""
        found: dict[str, Replay] = {}
        for note in self.notes:
            if is_to_go_on(note):
                found.clear()
            elif isinstance(note, Replay):
                found.pop(note.name, None)
                if note.state == "started":
                    found[note.name] = note
        return list(found.values())

    @property
    def offsets_behind(self) -> int:
        """How many offsets from the next one to be settled on have no receipt."""
        return length(subtracted(self.unsettled, [(0, self.start.offset)]))

    @property
    def missing_offsets(self) -> int:
        """How many of the gap are not in the log and not settled; they need not be records."""
        known = {*self.start.settled, *self.start.acknowledged}
        offsets = sum(
            max(0, min(each.next_offset, self.log_begins) - each.first_offset)
            for each in self.start.ledger.intents
            if each.range in known
        )
        return max(0, self.log_begins - self.start.offset - offsets)

    def note_on(self, offset: int) -> Note | None:
        """Return the newest note whose range covers an offset."""
        covering = (note for note in self.notes if note.first_offset <= offset < note.next_offset)
        return max(covering, key=self.notes.index, default=None)


async def standings(
    settings: LedgerSettings, topics: Sequence[str], partition: int | None = None
) -> Sequence[Standing]:
    """Look at the partitions of which the group has, or had, something; or at one of them.

    UnavailableError for a missing topic; RefusedError where the login may not see what it needs.
    """
    found = await all_standings(settings, topics, partition)
    return [each for each in found if each.has_committed or each.start.halt_reason]


async def all_standings(
    settings: LedgerSettings, topics: Sequence[str], partition: int | None = None
) -> Sequence[Standing]:
    """Look at all partitions, or at one of them.

    UnavailableError for a missing topic; RefusedError where the login may not see what it needs.
    """
    admin = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)
    receipts = Receipts(settings)
    counts = await _partition_counts(admin, settings, topics)
    stored = await admin.committed_offsets(settings.group_id)
    names = [
        TopicPartition(topic, number)
        for topic in sorted(topics)
        for number in range(counts[topic])
        if partition in {None, number}
    ]
    begins = await beginning_offsets(settings, names)
    ends = await end_offsets(settings, names)
    with_notes = {
        name: log_begins
        for name, log_begins in begins.items()
        if settings.receipts == "on"
        and name.partition < counts[settings.receipts_topic_for(name.topic)]
    }
    # A replay's claim precedes all that its committed offsets know of the receipts.
    of_replay = replay_group_id("", "") in settings.group_id
    notes = await receipts.notes({} if of_replay else stored, with_notes)
    claims = _own_claims(settings.group_id, notes) if of_replay else {}
    owners = await admin.owners(settings.group_id)
    start = _replaying(claims).start_of if claims else start_of
    starts = {
        name: start(
            name,
            stored.get(name),
            log_begins=begins[name],
            receipts_end=0,
            notes=notes.get(name, ()),
        )
        for name in names
    }
    firsts = {**begins} | {name: claim.first_offset for name, claim in claims.items()}
    return [
        Standing(
            name,
            stored.get(name, Commit(firsts[name], "")),
            begins[name],
            ends[name],
            starts[name],
            [note for _, note in notes.get(name, ())],
            owners.get(name),
            name in stored,
            claims.get(name),
        )
        for name in names
    ]


def _own_claims(
    group_id: str, notes: Mapping[TopicPartition, Sequence[tuple[int, Note]]]
) -> Mapping[TopicPartition, Replay]:
    """What the replay has claimed whose group this is; nothing where it is none's."""
    return {
        name: note
        for name, noted in notes.items()
        for _, note in noted
        if isinstance(note, Replay) and group_id.endswith(replay_group_id("", note.name))
    }


def _replaying(claims: Mapping[TopicPartition, Replay]) -> Replaying:
    """Return what is known of a replay without its plan: all of its claims, as if it sent that."""
    claim = next(iter(claims.values()))
    selected = {name: [each.range] for name, each in claims.items()}
    return Replaying(claim.name, selected, forced=claim.forced)


def halts_of(found: Sequence[Standing]) -> Sequence[str]:
    """Say which partitions no worker goes on with, and why."""
    return [f"{each.name}: {each.start.halt_reason}" for each in found if each.start.halt_reason]


async def looked_into(settings: KafkaSettings, standing: Standing) -> Standing:
    """Read on where it goes on, if nothing else holds the partition up, to see if that is possible.

    UnavailableError when the log cannot be read now.
    """
    if standing.unreadable or standing.gap or standing.in_doubt:
        return standing
    reader = RangeReader(settings)
    try:
        found = await reader.unreadable(standing.name, standing.start.offset)
    finally:
        await reader.stop()
    return replace(standing, unreadable_records=found)


async def _partition_counts(
    admin: KafkaAdmin, settings: LedgerSettings, topics: Sequence[str]
) -> Mapping[str, int]:
    """How many partitions each topic and its receipts topic have; 0 where there is none yet."""
    receipts_topics = [settings.receipts_topic_for(topic) for topic in topics]
    asked = list(dict.fromkeys([*topics, *receipts_topics]))
    counts = await admin.partition_counts(asked)
    for topic in topics:
        if not counts[topic]:
            raise admin.missing_topic(topic)
    return counts


async def formed(settings: DoubtSettings, standing: Standing) -> Mapping[Range, Batch]:
    """Form again what is in doubt; left out is what the log or the settings do not give any more.

    UnavailableError when the log cannot be read now.
    """
    limits = BatchLimits(sys.maxsize, settings.body_bytes_max, linger_seconds=0)
    decode_event = corrected_decoder(settings.unknown_members, standing.correction)
    reader = RangeReader(settings)
    batches = {}
    try:
        for intent in standing.in_doubt:
            if intent.first_offset < standing.log_begins or intent.next_offset > standing.log_ends:
                continue
            records = await reader.read(standing.name, *intent.range)
            if records:
                builder = BatchBuilder(standing.name, 0, limits, decode_event, standing.namespace)
                batch = builder.form(records)
                if batch.intent_digest == intent.digest:
                    batches[intent.range] = batch
    finally:
        await reader.stop()
    return batches
