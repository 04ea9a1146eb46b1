"""Gathers what is known about one offset: from its partition's receipts, the log, the group.

Looks at one partition of the receipts alone, and first at what was written after the record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ingester.audit.books import Entry, LetterEntry, dead_letters, extents, notes
from ingester.audit.doubts import DoubtSettings, Standing, formed, standings
from ingester.core.batch import Batch, idempotency_key
from ingester.core.event import event_decoder
from ingester.core.fate import Evidence, Fate, Place, covering, evidence, fate_of
from ingester.core.intent import Range
from ingester.core.receipt import Receipt, Replay, Resolution
from ingester.core.record import Record, TopicPartition
from ingester.errors import UsageError
from ingester.kafka.client import end_offsets, offsets_since
from ingester.kafka.range import RangeReader

_SKEW_MS: Final = 3_600_000  # producers' clocks may be ahead of the workers' by so much


@dataclass(frozen=True, slots=True)
class Account:
    """Everything that is known about one offset."""

    name: TopicPartition
    place: Place
    fate: Fate
    evidence: Evidence
    entries: Sequence[Entry]
    """The notes that cover it, each with where it is."""
    mistaken: Sequence[Entry]
    """Receipts of other records that were at its offset."""
    letters: Sequence[LetterEntry]
    letters_gone: int
    """How many dead letters of its batch are deleted: it may have been one of them."""
    redrives: Sequence[Entry]
    """Receipts of those letters."""
    redrive_claims: Mapping[str, Replay]
    """By name, how redrives of those letters began: with which corrections, and why."""
    record: Record | None
    standing: Standing | None
    """What the group has in doubt there; None where it has committed nothing."""
    batch: Batch | None
    """The batch in doubt that it is in, as far as it can be formed."""


async def account_of(settings: DoubtSettings, name: TopicPartition, offset: int) -> Account:
    """Find out about one offset; UsageError for a partition that does not exist.

    The group is looked at first: what it has committed by then has its receipts.
    """
    found = await standings(settings, [name.topic], name.partition)
    standing = next(iter(found), None)
    logs = await extents(settings, [name.topic])
    if name not in logs:
        raise UsageError(
            f"{name.topic} has no partition {name.partition}; it has 0 to {len(logs) - 1}"
        )
    begins, ends = logs[name]
    record = await _record_at(settings, name, offset) if begins <= offset < ends else None
    noted = await _entries_on(settings, name, offset, record)
    mistaken = [each for each in noted if await _is_of_others(settings, each, logs[name], record)]
    entries = [each for each in noted if each not in mistaken]
    of_batch: Sequence[LetterEntry] = ()
    receipt = next((each.note for each in entries if isinstance(each.note, Receipt)), None)
    if offset < ends and not _is_without_dead_letters(entries):
        range_ = receipt.range if receipt else (offset, offset + 1)
        of_batch = await _letters_of(settings, name, range_)
    letters = [each for each in of_batch if each.origin.offset == offset]
    left = len({each.origin.offset for each in of_batch})
    committed = standing.commit.next_offset if standing else None
    place = Place(offset, committed, begins, ends, record is not None)
    intent = next(iter(standing.doubts_at(offset)), None) if standing else None
    decode = event_decoder(settings.unknown_members)
    said = evidence(
        [entry.note for entry in entries],
        dead_letters=len(letters),
        intent=intent,
        is_event=record is None or isinstance(decode(record.value), tuple),
    )
    fate = fate_of(place, said)
    redrives, redrive_claims = await _redrives_of(settings, letters)
    batches = await formed(settings, standing) if standing and fate == "in_doubt" else {}
    return Account(
        name=name,
        place=place,
        fate=fate,
        evidence=said,
        entries=entries,
        mistaken=mistaken,
        letters=letters,
        letters_gone=max(0, receipt.dead_letters - left) if receipt else 0,
        redrives=redrives,
        redrive_claims=redrive_claims,
        record=record,
        standing=standing,
        batch=batches.get(intent.range) if intent else None,
    )


async def _record_at(settings: DoubtSettings, name: TopicPartition, offset: int) -> Record | None:
    reader = RangeReader(settings)
    try:
        return next(iter(await reader.read(name, offset, offset + 1)), None)
    finally:
        await reader.stop()


async def _is_of_others(
    settings: DoubtSettings, entry: Entry, log: Range, record: Record | None
) -> bool:
    """Whether a receipt means other records than the log holds now, or more of them."""
    note, name = entry.note, entry.source
    if not isinstance(note, Receipt) or record is None or note.first_offset < log[0]:
        return False
    if log[1] < note.next_offset:
        ends = await end_offsets(settings, [name])
        if ends[name] < note.next_offset:
            return True
    first = await _record_at(settings, name, note.first_offset)
    last = await _record_at(settings, name, note.next_offset - 1)
    if first is None or last is None:
        return False
    return idempotency_key(name, first, last, note.namespace) != note.idempotency_key


async def _entries_on(
    settings: DoubtSettings, name: TopicPartition, offset: int, record: Record | None
) -> Sequence[Entry]:
    """Read the receipts since the record was made, and those before only if these say nothing."""
    topic = settings.receipts_topic_for(name.topic)
    book = TopicPartition(topic, name.partition)
    opened = (await extents(settings, [topic])).get(book)
    if opened is None or settings.receipts == "off":
        return ()
    begins, ends = opened
    since = begins
    if record is not None:
        moments = {book: record.timestamp - _SKEW_MS}
        since = min(ends, max(begins, (await offsets_since(settings, moments))[book]))
    later = await _covering(settings, book, (since, ends), name, offset)
    if any(isinstance(each.note, Receipt | Resolution) for each in later):
        return later
    return [*await _covering(settings, book, (begins, since), name, offset), *later]


async def _covering(
    settings: DoubtSettings,
    book: TopicPartition,
    range_: tuple[int, int],
    name: TopicPartition,
    offset: int,
) -> Sequence[Entry]:
    return [
        entry
        async for entry in notes(settings, {book: range_}, {name.topic})
        if entry.source == name and covering(offset, [entry.note])
    ]


def _is_without_dead_letters(entries: Sequence[Entry]) -> bool:
    """Whether it is settled in a batch that had none: few have, and to look for one takes long."""
    receipts = [entry.note for entry in entries if isinstance(entry.note, Receipt)]
    return bool(receipts) and not any(each.dead_letters for each in receipts)


async def _letters_of(
    settings: DoubtSettings, name: TopicPartition, range_: Range
) -> Sequence[LetterEntry]:
    opened = await extents(settings, [settings.dead_letter_topic_for(name.topic)])
    return [
        letter
        async for letter in dead_letters(settings, opened, {name.topic})
        if letter.origin.partition == name and range_[0] <= letter.origin.offset < range_[1]
    ]


async def _redrives_of(
    settings: DoubtSettings, letters: Sequence[LetterEntry]
) -> tuple[Sequence[Entry], Mapping[str, Replay]]:
    """Return the receipts of dead letters that were sent, and how their redrives began."""
    places = {(letter.place, letter.record.offset) for letter in letters}
    topics = {place.topic for place, _ in places}
    opened = await extents(settings, map(settings.receipts_topic_for, topics))
    receipts: list[Entry] = []
    claims: dict[str, Replay] = {}
    async for entry in notes(settings, opened, topics):
        note = entry.note
        if not any(entry.source == place and covering(at, [note]) for place, at in places):
            continue
        if isinstance(note, Receipt) and note.items:
            receipts.append(entry)
        elif isinstance(note, Replay):
            claims[note.name] = note
    return receipts, claims


async def origin_of_letter(
    settings: DoubtSettings, name: TopicPartition, offset: int
) -> tuple[TopicPartition, int]:
    """Return which record a dead letter is of; UsageError where there is none."""
    opened = (await extents(settings, [name.topic])).get(name, (0, 0))
    wanted = {name: (max(offset, opened[0]), min(offset + 1, opened[1]))}
    async for letter in dead_letters(settings, wanted, set(settings.topics)):
        return letter.origin.partition, letter.origin.offset
    raise UsageError(
        f"there is no dead letter of {', '.join(settings.topics)} at {name}:{offset}: {name} has"
        f" the offsets [{opened[0]},{opened[1]})"
    )
