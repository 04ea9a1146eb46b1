"""What is said of a replay and of its receipts."""

from __future__ import annotations

import json

import pytest

from ingester.audit.books import Entry
from ingester.backfill.replay_report import Summary, summary_lines
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
