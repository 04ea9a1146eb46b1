"""How a replay's plan and its end read on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ingester.backfill.plan import USD_PER_DELTA, Counts, Plan
from ingester.core.ranges import length
from ingester.core.receipt import Receipt
from ingester.tables import Table

_ACCOUNTS_SHOWN_MAX: Final = 10


class Summary(msgspec.Struct, rename="camel"):
    """What the receipts of a replay add up to."""

    name: str
    topic: str
    forced: bool
    batches: int = 0
    items: int = 0
    dead_letters: int = 0
    bits: int = 0
    were_in_doubt: int = 0
    """Batches of which PacSpace may have had an attempt before the acknowledged one, under the same
    key: one without an answer, or one of a run that was killed when it had recorded that it would
    send it. Nobody knows then whether it had."""

    def add(self, receipt: Receipt) -> None:
        """Count one receipt."""
        self.batches += 1
        self.items += receipt.items
        self.dead_letters += receipt.dead_letters
        self.bits += receipt.bits
        self.were_in_doubt += receipt.in_doubt


def plan_lines(plan: Plan, plan_file: Path | None) -> Iterator[str]:
    """Return what is to be sent, and what is not, in words and a table."""
    if not plan.partitions:
        yield f"Nothing to send of {plan.topic}: no plan is written."
    else:
        yield f"Replay {plan.name} of {plan.topic}: {plan.offsets_count:,} offsets to send"
        yield from Table(("PARTITION", "FROM", "TO", "RANGES", "OFFSETS")).lines(
            [
                (
                    f"{plan.topic}:{number}",
                    str(ranges[0][0]),
                    str(ranges[-1][1]),
                    str(len(ranges)),
                    f"{length(ranges):,}",
                )
                for number, ranges in sorted(plan.partitions.items())
            ],
        )
    if plan.receipted:
        yield (
            f"{plan.receipted:,} offsets have receipts, and are counted AGAIN: --force"
            if plan.forced
            else f"{plan.receipted:,} offsets have receipts, and are passed"
        )
    if plan.skipped:
        yield f"{plan.skipped:,} offsets were skipped by decision or are in doubt, and are passed"
    left = length(plan.left_to_worker.values())
    if left:
        yield (
            f"{left:,} offsets are beyond those that {plan.group_id} has committed, and left to"
            " its workers"
        )
    if plan.counts is not None:
        yield from _counted(plan.counts)
    if plan_file is not None and plan.partitions:
        yield f"To carry it out, or to continue it: ingester replay --plan {plan_file}"


def _counted(counts: Counts) -> Iterator[str]:
    low, high = (counts.items * price for price in USD_PER_DELTA)
    yield (
        f"{counts.records:,} records: {counts.items:,} events with {counts.bits:,} bits, and"
        f" {counts.dead_letters:,} for the dead-letter topic"
    )
    yield f"{counts.items:,} deltas, at PacSpace's prices {low:,.2f} to {high:,.2f} USD"
    accounts = sorted(counts.items_by_account.items(), key=lambda each: each[1], reverse=True)
    largest = accounts[:_ACCOUNTS_SHOWN_MAX]
    if largest:
        yield from Table(("ACCOUNT", "EVENTS", "BITS")).lines(
            [
                (account, f"{items:,}", f"{counts.bits_by_account[account]:,}")
                for account, items in largest
            ],
        )
        more = len(counts.items_by_account) - len(largest)
        if more:
            yield f"and {more:,} accounts more: --json has all"


def summary_lines(summary: Summary) -> Iterator[str]:
    """Return what was settled."""
    yield (
        f"Replay {summary.name} of {summary.topic} has ended: {summary.batches:,} batches with"
        f" {summary.items:,} items and {summary.bits:,} bits acknowledged,"
        f" {summary.dead_letters:,} dead letters"
    )
    if summary.were_in_doubt:
        yield (
            f"{summary.were_in_doubt:,} batches may have reached PacSpace before they were"
            " acknowledged: each was sent under the same key every time"
        )
    if summary.forced:
        yield "What had receipts before was counted again, as --force says"
