"""How what is in doubt is told: lines for people, a document for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from ingester.core.batch import Batch
from ingester.core.intent import Range
from ingester.core.receipt import Note, Receipt, Resolution
from ingester.core.record import TopicPartition
from ingester.doubts import Standing

_KEYS_SHOWN_MAX: Final = 20
_METADATA_SHOWN_MAX: Final = 100  # characters of somebody else's text


def table(
    standings: Sequence[Standing],
    batches: Mapping[TopicPartition, Mapping[Range, Batch]],
    now: float,
    offset: int | None = None,
) -> Iterator[str]:
    """One aligned line for each batch in doubt, below a line of headings; none for none."""
    rows: list[tuple[str, ...]] = [
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
    if not rows:
        return
    rows.insert(
        0, ("PARTITION", "RANGE", "SINCE", "AGE", "ITEMS", "BITS", "KEY", "DECIDED", "WORKER")
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _facts(batch: Batch | None) -> tuple[str, str, str]:
    if batch is None:
        return "?", "?", "cannot be formed"
    return str(batch.items_count), str(batch.bits), batch.idempotency_key


def remarks(standing: Standing) -> Iterator[str]:
    """What is wrong with a partition beside what is in doubt."""
    if standing.unreadable:
        yield f"{standing.name}: {standing.unreadable}."
    if standing.start.foreign_metadata:
        yield f"{standing.name}: {foreign(standing)}"
    if standing.gap:
        yield f"{standing.name}: {standing.start.halt_reason}"


def foreign(standing: Standing) -> str:
    metadata = standing.commit.metadata[:_METADATA_SHOWN_MAX]
    return (
        f"the metadata of the committed offset {standing.commit.next_offset} is somebody else's"
        f" ({metadata!r}), so that nothing is known to be in doubt; the next commit of a worker"
        " replaces it."
    )


def details(standing: Standing, batches: Mapping[Range, Batch], offset: int) -> Iterator[str]:
    """What to compare with PacSpace, and what to do then."""
    for intent in standing.doubts_at(offset):
        batch = batches.get(intent.range)
        if batch is None:
            yield (
                "The log does not hold all of its records any more, or INGESTER_UNKNOWN_MEMBERS or"
                " INGESTER_BODY_BYTES_MAX differ from those it was formed by."
            )
            continue
        yield "It holds:"
        by_key = sorted(batch.bits_by_key.items())
        yield from (f"  {bits} for {key}" for key, bits in by_key[:_KEYS_SHOWN_MAX])
        if len(by_key) > _KEYS_SHOWN_MAX:
            yield f"  and {len(by_key) - _KEYS_SHOWN_MAX} keys more (--json has all)"
        if batch.dead_letters:
            yield f"  {len(batch.dead_letters)} records that are no usage events"
    if not standing.doubts_at(offset):
        yield nothing_at(standing, offset)


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
            return decided(resolution)
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
    return f"{note.topic}:{note.partition}{shown((note.first_offset, note.next_offset))}"
