"""How a replay's plan and its end read on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ingester.backfill.plan import USD_PER_DELTA, Counts, Plan
from ingester.core.ranges import intersected, length
from ingester.core.receipt import Receipt
from ingester.tables import Table, counted

_ACCOUNTS_SHOWN_MAX: Final = 10


class Summary(msgspec.Struct, rename="camel"):
    """What the receipts of a replay add up to."""

    name: str
    topic: str
    forced: bool
    ended_at: str | None = None
    """ISO 8601, UTC; None as long as it has not ended."""
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
        yield (
            f"Replay {plan.name} of {plan.topic}: {counted(plan.offsets_count, 'offset')} to send"
        )
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
        have, are = ("has a receipt", "is") if plan.receipted == 1 else ("have receipts", "are")
        fate = "counted AGAIN: --force" if plan.forced else "passed"
        yield f"{counted(plan.receipted, 'offset')} {have}, and {are} {fate}"
    if plan.skipped:
        was, is_ = ("was", "is") if plan.skipped == 1 else ("were", "are")
        yield (
            f"{counted(plan.skipped, 'offset')} {was} skipped by decision or {is_} in doubt, and"
            f" {is_} passed"
        )
    left = length(plan.left_to_worker.values())
    if left:
        yield (
            f"{counted(left, 'offset')} {'is' if left == 1 else 'are'} beyond those that"
            f" {plan.group_id} has committed, and left to its workers"
        )
    yield from _below_committed(plan)
    if plan.counts is not None and plan.partitions:
        yield from _counted(plan.counts)
    if plan_file is not None and plan.partitions:
        yield f"To carry it out, or to continue it: ingester replay --plan {plan_file}"


def _below_committed(plan: Plan) -> Iterator[str]:
    """Say what is below the group's offsets without a receipt, be it sent or not."""
    if plan.below_committed:
        sent = sum(
            length(intersected(ranges, [(0, plan.committed[number])]))
            for number, ranges in plan.partitions.items()
            if plan.committed.get(number)
        )
        if sent:
            yield f"{_without_receipt(sent)}, and sent nevertheless: --below-committed"
        return
    for number, ranges in sorted(plan.unaccounted.items()):
        yield (f"{_without_receipt(length(ranges), f' of {plan.topic}:{number}')}, and left out")
    if plan.unaccounted:
        yield (
            "Workers with INGESTER_RECEIPTS=off may have settled what has no receipt. Compare first"
            " (`ingester reconcile --from-topic`); to send it nevertheless: --below-committed"
            " --reason TEXT"
        )


def _without_receipt(count: int, place: str = "") -> str:
    are = "is" if count == 1 else "are"
    return f"{counted(count, 'offset')}{place} {are} below the committed offset without a receipt"


def _counted(counts: Counts) -> Iterator[str]:
    low, high = (counts.items * price for price in USD_PER_DELTA)
    yield (
        f"{counted(counts.records, 'record')}: {counted(counts.items, 'event')} with"
        f" {counted(counts.bits, 'bit')}, and {counts.dead_letters:,} for the dead-letter topic"
    )
    cheapest, dearest = USD_PER_DELTA
    yield (
        f"{counted(counts.items, 'delta')}, as PacSpace calls an event that it counts: at"
        f" {cheapest:.3f} to {dearest:.3f} USD each, by plan, {low:,.2f} to {high:,.2f} USD"
    )
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
            yield f"and {counted(more, 'account')} more: --json has all"


def summary_lines(summary: Summary, *, ended_before: bool = False) -> Iterator[str]:
    """Return what was settled, be it that it had ended before this run, which sent nothing."""
    yield (
        f"Nothing left to send: the replay {summary.name} of {summary.topic} ended at"
        f" {summary.ended_at}. It had"
        if ended_before
        else f"Replay {summary.name} of {summary.topic} has ended:"
    ) + (
        f" {counted(summary.batches, 'batch', 'batches')} with {counted(summary.items, 'item')} and"
        f" {counted(summary.bits, 'bit')} acknowledged,"
        f" {counted(summary.dead_letters, 'dead letter')}"
    )
    if summary.were_in_doubt:
        were = "it was" if summary.were_in_doubt == 1 else "they were"
        yield (
            f"{counted(summary.were_in_doubt, 'batch', 'batches')} may have reached PacSpace before"
            f" {were} acknowledged: each was sent under the same key every time"
        )
    if summary.forced:
        then = " then" if ended_before else ""
        yield f"What had receipts before was counted again{then}, as --force says"
