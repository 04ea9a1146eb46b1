"""What is said of a replay and of its receipts."""

from __future__ import annotations

import json

import pytest

from ingester.audit.books import Entry
from ingester.backfill.plan import Counts, Plan
from ingester.backfill.replay_report import Summary, plan_lines, summary_lines
from ingester.commands.explain_report import receipt_lines
from ingester.core.receipt import Receipt, decode_note
from ingester.core.record import TopicPartition
from tests.support.bookkeeping import receipt

BOOK = TopicPartition("usage.receipts", 0)


@pytest.mark.parametrize(("in_doubt", "batches"), [(True, 1), (False, 0)])
def test_a_batch_that_was_only_intended_is_not_said_to_be_sent_twice(
    in_doubt: bool, batches: int
) -> None:
    """A run that was killed may have sent it or not: nobody knows, and that is what is said."""
    note = decode_note(json.dumps(receipt("usage", 0, 5, {"a": 1}, inDoubt=in_doubt)).encode())
    assert isinstance(note, Receipt)
    summary = Summary("july", "usage", forced=False)
    summary.add(note)

    said = "\n".join([*summary_lines(summary), *receipt_lines(Entry(BOOK, 7, note))])

    assert summary.were_in_doubt == batches
    assert "more than once" not in said
    assert ("may have reached PacSpace before" in said) == in_doubt
    assert ("attempts         1; PacSpace may have had it before" in said) == in_doubt


def plan(ranges: list[tuple[int, int]], counts: Counts | None = None) -> Plan:
    """A plan of partition 0, which holds one offset more that has a receipt."""
    partitions = {0: ranges} if ranges else {}
    return Plan("july", "usage", "g", "", "me", "", False, partitions, 1, 0, {}, counts=counts)


def test_deltas_and_their_price_are_explained_where_there_are_any() -> None:
    """One of each is in the singular; where nothing is to be sent there is nothing to pay."""
    counts = Counts(records=1, items=1, bits=7, items_by_account={"a": 1}, bits_by_account={"a": 7})

    said = [*plan_lines(plan([(5, 6)], counts), None)]
    nothing = [*plan_lines(plan([], Counts()), None)]

    assert said[0] == "Replay july of usage: 1 offset to send"
    assert "1 offset has a receipt, and is passed" in said
    assert "1 record: 1 event with 7 bits, and 0 for the dead-letter topic" in said
    assert (
        "1 delta, as PacSpace calls an event that it counts: at 0.008 to 0.020 USD each, by plan,"
        " 0.01 to 0.02 USD"
    ) in said
    assert nothing == [
        "Nothing to send of usage: no plan is written.",
        "1 offset has a receipt, and is passed",
    ]
