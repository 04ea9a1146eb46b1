"""How what is in doubt is told: lines for people, a document for programs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from ingester.audit.doubts import Standing
from ingester.core.batch import Batch
from ingester.core.intent import Intent, Range
from ingester.core.receipt import Decision, Note, Receipt, Resolution
from ingester.core.record import TopicPartition
from ingester.tables import Table, counted, sentence

_HEADINGS: Final = (
    "PARTITION", "RANGE", "SINCE", "AGE", "ITEMS", "BITS", "KEY", "DECIDED", "WORKER",
)  # fmt: skip
_KEYS_SHOWN_MAX: Final = 20
_KEYS_LISTED_MAX: Final = 3  # of each batch, where several are shown
_BATCHES_LISTED_MAX: Final = 20
_NAMES_LISTED_MAX: Final = 20
_METADATA_SHOWN_MAX: Final = 100  # characters of somebody else's text


def table(
    standings: Sequence[Standing],
    batches: Mapping[TopicPartition, Mapping[Range, Batch]],
    now: float,
    offset: int | None = None,
) -> Iterator[str]:
    """One aligned line for each batch in doubt, below a line of headings; none for none."""
    rows = [
        (
            str(standing.name),
            shown(intent.range),
            datetime.fromtimestamp(intent.intended_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            str(timedelta(seconds=max(0, int(now - intent.intended_at)))),
            *_facts(batches.get(standing.name, {}).get(intent.range)),
            found.decision if (found := standing.decision_on(intent)) else "-",
            standing.owner or "-",
        )
        for standing in standings
        for intent in standing.doubts_at(offset)
    ]
    yield from Table(_HEADINGS).lines(rows)


def _facts(batch: Batch | None) -> tuple[str, str, str]:
    if batch is None:
        return "?", "?", "cannot be formed"
    return str(batch.items_count), str(batch.bits), batch.idempotency_key


def remarks(standing: Standing) -> Iterator[str]:
    """What is wrong with a partition beside what is in doubt."""
    if standing.unreadable:
        yield f"{standing.name}: {sentence(standing.unreadable)}"
    if standing.start.foreign_metadata:
        yield f"{standing.name}: {foreign(standing)}"
    if standing.start.halt_reason and not standing.unreadable:
        yield f"{standing.name}: {standing.start.halt_reason}"
    if standing.unreadable_records:
        yield (
            f"{standing.name}{shown(standing.unreadable_records)} cannot be read. To go on without:"
            f" {command(standing.name, standing.unreadable_records[0], 'skipped')}"
        )


def foreign(standing: Standing) -> str:
    metadata = standing.commit.metadata[:_METADATA_SHOWN_MAX]
    return (
        f"the metadata of the committed offset {standing.commit.next_offset} is somebody else's"
        f" ({metadata!r}), so that nothing is known to be in doubt; the next commit of a worker"
        " replaces it."
    )


def details(
    standings: Sequence[Standing],
    batches: Mapping[TopicPartition, Mapping[Range, Batch]],
    offset: int | None = None,
) -> Iterator[str]:
    """What to compare with PacSpace, and the commands by which a halted partition goes on."""
    doubts = [(each, intent) for each in standings for intent in each.doubts_at(offset)]
    if any(standing.owner for standing, _ in doubts):
        yield (
            "What has a worker may simply be in flight: decide only where that worker has halted"
            " the partition (partition.halted in its log, `halted` of its /status)."
        )
    keys_max = _KEYS_LISTED_MAX if offset is None else _KEYS_SHOWN_MAX
    for standing, intent in doubts[:_BATCHES_LISTED_MAX]:
        batch = batches.get(standing.name, {}).get(intent.range)
        yield from _contents(standing, intent, batch, keys_max)
    if len(doubts) > _BATCHES_LISTED_MAX:
        yield (
            f"What the other {len(doubts) - _BATCHES_LISTED_MAX} hold: `ingester resolve"
            " TOPIC:PARTITION:OFFSET`, or --json."
        )


def _contents(
    standing: Standing, intent: Intent, batch: Batch | None, keys_max: int
) -> Iterator[str]:
    name = f"{standing.name}{intent}"
    decisions = commands_about(standing, intent, batch)
    if batch is None:
        yield (
            f"{name} cannot be formed: the log does not hold all of its records any more, or"
            " INGESTER_UNKNOWN_MEMBERS or INGESTER_BODY_BYTES_MAX differ from those it was formed"
            " by."
        )
        yield from (f"  set them back; or, if records are gone: {each}" for each in decisions)
        return
    yield f"{name} holds, to be compared with the balances:"
    by_key = sorted(batch.bits_by_key.items())
    for key, bits in by_key[:keys_max]:
        yield f"  {bits} for {key}: {shlex.join(['ingester', 'balance', key])}"
    if len(by_key) > keys_max:
        yield f"  and {counted(len(by_key) - keys_max, 'key')} more (--json has all)"
    if batch.dead_letters:
        are = "is no usage event" if len(batch.dead_letters) == 1 else "are no usage events"
        yield f"  {counted(len(batch.dead_letters), 'record')} that {are}"
    if decisions:
        acknowledged, resend = decisions
        yield f"  counted by PacSpace: {acknowledged}"
        yield f"  not counted: {resend}"


def commands_about(standing: Standing, intent: Intent, batch: Batch | None) -> Sequence[str]:
    """What lets a halted partition pass a batch in doubt; none while the log lacks what precedes.

    Of a batch that can be formed the first is for one that PacSpace has counted, the second for one
    that it has not.
    """
    if standing.gap:
        return ()
    decisions: Sequence[Decision] = ("skipped",) if batch is None else ("acknowledged", "resend")
    return [command(standing.name, intent.first_offset, each) for each in decisions]


def command(name: TopicPartition, offset: int, decision: Decision) -> str:
    """The command by which somebody decides."""
    return f"ingester resolve {name}:{offset} --as {decision} --reason ..."


def commands(standing: Standing, batches: Mapping[Range, Batch]) -> Sequence[str]:
    """What lets the partition go on where it has halted, whatever the reason."""
    if standing.unreadable:
        return ()
    if standing.gap:
        return (command(standing.name, standing.gap[0], "skipped"),)
    if standing.in_doubt:
        return [
            each
            for intent in standing.in_doubt
            for each in commands_about(standing, intent, batches.get(intent.range))
        ]
    if standing.unreadable_records:
        return (command(standing.name, standing.unreadable_records[0], "skipped"),)
    if standing.start.halt_reason or standing.owner:
        return (command(standing.name, standing.start.offset, "resend"),)
    return ()


def nothing_in_doubt(standing: Standing, offset: int | None) -> Iterator[str]:
    """What there is to say of a partition, or an offset, that was asked for and is not in doubt."""
    if offset is not None:
        yield nothing_at(standing, offset)
    if standing.start.halt_reason or standing.unreadable_records or standing.in_doubt:
        return
    yield (
        f"Nothing is in doubt in {standing.name}; {standing.start.offset} is the next offset to be"
        f" settled, the log ends at {standing.log_ends}."
    )
    if standing.owner is None:
        yield "No worker has it. The next one begins there, whatever made an earlier one halt."
        return
    yield (
        f"Only its worker, at {standing.owner}, knows whether it has halted it (too many dead"
        " letters, a record that cannot be read): `halted` of its /status, partition.halted in its"
        " log. If so, mend the cause, and let it go on:"
    )
    yield f"  {command(standing.name, standing.start.offset, 'resend')}"


def behind(standings: Sequence[Standing]) -> Iterator[str]:
    """Name the partitions that stand or lag without anything in doubt: one may have halted."""
    lagging = [
        each
        for each in standings
        if each.offsets_behind and not (each.in_doubt or each.start.halt_reason)
    ]
    if not lagging:
        return
    named = ", ".join(
        f"{each.name} ({each.start.offset} of {each.log_ends}, "
        f"{f'worker at {each.owner}' if each.owner else 'no worker'})"
        for each in lagging[:_NAMES_LISTED_MAX]
    )
    more = len(lagging) - _NAMES_LISTED_MAX
    yield (
        f"Behind, with nothing in doubt: {named}{f' and {more} more' if more > 0 else ''}. Only its"
        " worker knows whether it has halted one (too many dead letters, a record that cannot be"
        " read): `halted` of its /status, partition.halted in its log. `ingester resolve"
        " TOPIC:PARTITION` says what lets it go on."
    )


def document(
    standing: Standing, batches: Mapping[Range, Batch], now: float, offset: int | None
) -> dict[str, object]:
    gap = standing.gap
    return {
        "topic": standing.name.topic,
        "partition": standing.name.partition,
        "committedOffset": standing.commit.next_offset,
        "nextOffset": standing.start.offset,
        "logBegins": standing.log_begins,
        "logEnds": standing.log_ends,
        "worker": standing.owner,
        "unreadable": standing.unreadable,
        "foreignMetadata": standing.start.foreign_metadata or None,
        "gap": gap
        and {
            "firstOffset": gap[0],
            "nextOffset": gap[1],
            "missingOffsets": standing.missing_offsets,
        },
        "inDoubt": [
            {
                "firstOffset": intent.first_offset,
                "nextOffset": intent.next_offset,
                "intendedAt": datetime.fromtimestamp(intent.intended_at, UTC).isoformat(),
                "ageSeconds": max(0, int(now - intent.intended_at)),
                "decision": standing.decision_on(intent),
                "batch": _batch_document(batches.get(intent.range)),
            }
            for intent in standing.doubts_at(offset)
        ],
        "commandsIfHalted": commands(standing, batches),
    }


def _batch_document(batch: Batch | None) -> dict[str, object] | None:
    if batch is None:
        return None
    return {
        "idempotencyKey": batch.idempotency_key,
        "items": batch.items_count,
        "bits": batch.bits,
        "bitsByKey": batch.bits_by_key,
        "deadLetters": len(batch.dead_letters),
    }


def nothing_at(standing: Standing, offset: int) -> str:
    """Say why there is no doubt at an offset, and where there is."""
    name = standing.name
    if offset < standing.commit.next_offset:
        return f"{name}:{offset} is settled: the committed offset is {standing.commit.next_offset}."
    match standing.note_on(offset):
        case Receipt(batch_id=None) as receipt:
            return f"{_range_of(receipt)} is settled: it went to the dead letters as a whole."
        case Receipt() as receipt:
            return (
                f"{_range_of(receipt)} is settled: PacSpace acknowledged it as {receipt.batch_id},"
                f" says its receipt of {receipt.settled_at}."
            )
        case Resolution(decision="skipped") as resolution:
            return f"{decided(resolution)} That stands: the next commit is behind it."
    if standing.start.foreign_metadata:
        return f"{name}: {foreign(standing)}"
    if standing.in_doubt:
        ranges = ", ".join(shown(each.range) for each in standing.in_doubt)
        return f"Nothing is in doubt at {name}:{offset}; in doubt in {name}: {ranges}."
    return (
        f"Nothing is in doubt in {name}; {standing.start.offset} is the next offset to be settled."
    )


def decided(resolution: Resolution) -> str:
    """Say who decided what about which range, and why."""
    return (
        f"{_range_of(resolution)} is decided: {resolution.decision}, by {resolution.by} at"
        f" {resolution.decided_at} ({resolution.reason})."
    )


def shown(range_: Range) -> str:
    """A range as it is written everywhere."""
    return f"[{range_[0]},{range_[1]})"


def _range_of(note: Note) -> str:
    return f"{note.topic}:{note.partition}{shown(note.range)}"
