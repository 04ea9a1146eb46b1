"""Whether a balance agrees, waits or differs, and where to look."""

from __future__ import annotations

import pytest

from ingester.core.agreement import Agreement, KeyResult, KeyTrail, Slack, agreement_of
from ingester.core.record import TopicPartition
from tests.unit.core.test_audit import NAME, receipt


@pytest.mark.parametrize(
    ("balance", "verified", "slack", "agreement"),
    [
        (100, True, Slack(), "agreed"),
        (100, False, Slack(), "pending"),
        (None, False, Slack(), "unknown_key"),
        (101, True, Slack(), "mismatch"),
        (101, False, Slack(), "pending"),
        (110, True, Slack().widened(10), "pending"),
        (105, True, Slack().widened(10), "pending"),
        (111, True, Slack().widened(10), "mismatch"),
        (99, True, Slack().widened(10), "mismatch"),
        (95, True, Slack().widened(10).widened(-5), "pending"),
        (94, True, Slack().widened(10).widened(-5), "mismatch"),
    ],
)
def test_a_balance_agrees_waits_or_differs(
    balance: int | None, verified: bool, slack: Slack, agreement: Agreement
) -> None:
    """What is under way explains a difference that it equals, or that lies within it."""
    assert agreement_of(100, balance, verified=verified, slack=slack) == agreement


def test_a_trail_leads_to_what_may_be_the_reason() -> None:
    """First and last offset of each partition, and the receipts that hold as much."""
    trail = KeyTrail("k", difference=7)
    trail.add(receipt(10, 20, bits_by_key={"k": 7}, in_doubt=True))
    trail.add(receipt(0, 10, bits_by_key={"k": 8}))
    trail.add(receipt(0, 5, bits_by_key={"k": -7}, partition=3))

    assert trail.extents == {NAME: (0, 20), TopicPartition("usage", 3): (0, 5)}
    assert [(each.partition.partition, each.range) for each in trail.suspects] == [
        (0, (10, 20)),
        (3, (0, 5)),
    ]
    assert "may have been applied before" in trail.suspects[0].reason
    assert trail.suspects[1].reason.endswith("as PacSpace lacks")


@pytest.mark.parametrize(
    ("log", "status"), [(None, "agreed"), (100, "agreed"), (99, "mismatch"), (0, "mismatch")]
)
def test_the_log_has_to_agree_where_it_was_read(log: int | None, status: Agreement) -> None:
    """Receipts and balance may agree on what Kafka does not say."""
    assert KeyResult("k", "a", 100, log, 100, verified=True).status == status
