"""How a redrive reads: what would be sent, what would be refused still, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ingester.backfill.plan import Plan, described
from ingester.backfill.redrive_plan import Chosen
from ingester.backfill.replay_report import Summary
from ingester.core.ranges import length
from ingester.tables import Table, counted, harmless

_DETAIL_SHOWN_MAX = 100


def lines(chosen: Chosen) -> Iterator[str]:
    """What is to be sent, and what is not, for people."""
    count = sum(each.items for each in chosen.counts.values())
    bits = sum(each.bits for each in chosen.counts.values())
    yield f"{counted(count, 'dead letter')} to send, with {counted(bits, 'bit')}"
    yield from Table(("LETTER", "SOURCE", "ACCOUNT", "KEY", "BITS")).lines(
        [
            (
                f"{letter.place}:{letter.record.offset}",
                f"{letter.origin.partition}:{letter.origin.offset}",
                harmless(event.accountId),
                harmless(event.key),
                str(event.bits),
            )
            for letter, event in chosen.shown
        ]
    )
    if count > len(chosen.shown):
        yield f"and {count - len(chosen.shown):,} more"
    if chosen.refused:
        yield f"{chosen.refused.total():,} would be refused still, and stay dead letters:"
        yield from Table(("LETTERS", "CODE", "DETAIL")).lines(
            [
                (str(letters), refusal.code, harmless(refusal.detail, _DETAIL_SHOWN_MAX))
                for refusal, letters in chosen.refused.most_common()
            ]
        )
    if chosen.passed:
        yield f"{chosen.passed.total():,} are passed, because PacSpace has them or may get them:"
        yield from Table(("LETTERS", "REASON")).lines(
            [(str(letters), harmless(reason)) for reason, letters in chosen.passed.most_common()]
        )
    if chosen.repeats:
        yield f"{chosen.repeats:,} repeat an earlier letter of the same record, and are passed"


def continuing(files: Mapping[str, Path]) -> Iterator[str]:
    """Where the plans are, for whoever is interrupted."""
    for path in files.values():
        yield f"To carry it out, or to continue it: ingester replay --plan {path}"


def summary_lines(summary: Summary) -> Iterator[str]:
    """What was settled, for people."""
    yield (
        f"Redrive {summary.name} of {summary.topic} has ended:"
        f" {counted(summary.items, 'item')} with {counted(summary.bits, 'bit')} acknowledged"
    )
    if summary.dead_letters:
        fate = (
            ("was", "stays a dead letter")
            if summary.dead_letters == 1
            else ("were", "stay dead letters")
        )
        yield (
            f"{summary.dead_letters:,} {fate[0]} refused by PacSpace again, and {fate[1]}: what it"
            " answered is in the log (letters.kept)"
        )


def document(
    chosen: Chosen, plans: Sequence[Plan], summaries: Sequence[Summary]
) -> dict[str, object]:
    """The same for programs."""
    return {
        "letters": sum(length(ranges) for ranges in chosen.ranges.values()),
        "refused": [
            {"code": refusal.code, "detail": refusal.detail, "letters": letters}
            for refusal, letters in chosen.refused.most_common()
        ],
        "passed": [
            {"reason": reason, "letters": letters}
            for reason, letters in chosen.passed.most_common()
        ],
        "repeats": chosen.repeats,
        "plans": [described(each) for each in plans],
        "sent": summaries,
    }
