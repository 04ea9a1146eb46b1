"""What the notes about a partition prove, and what about them is odd."""

from __future__ import annotations

from time import process_time
from typing import Any

import pytest

from ingester.core.audit import DeadOffsets, PartitionAudit
from ingester.core.batch import idempotency_key
from ingester.core.disputes import Disputes
from ingester.core.intent import Range
from ingester.core.receipt import Note, Receipt, Replay, Resolution
from ingester.core.record import TopicPartition
from tests.support.records import LogRecord

NAME = TopicPartition("usage", 0)


def receipt(first_offset: int, next_offset: int, **changed: Any) -> Receipt:
    facts: dict[str, Any] = {
        "topic": "usage",
        "partition": 0,
        "first_offset": first_offset,
        "next_offset": next_offset,
        "idempotency_key": f"key-{first_offset}-{next_offset}",
        "batch_id": f"batch-{first_offset}",
        "http_status": 202,
        "items": next_offset - first_offset,
        "dead_letters": 0,
        "bits": 7,
        "bits_by_key": {"k": 7},
        "body_digest": "",
        "attempts": 1,
        "in_doubt": False,
        "settled_at": "",
    }
    return Receipt(**(facts | changed))


def skipped(first_offset: int, next_offset: int) -> Resolution:
    return Resolution("usage", 0, first_offset, next_offset, "skipped", "ann", "why", "then")


def audited(
    notes: list[Note],
    dead: tuple[int, ...] = (),
    *,
    complete: bool = True,
    log: Range = (0, 1000),
) -> tuple[PartitionAudit, int]:
    """An audit that has taken all notes and judged disputes, and how many receipts' bits count.

    What is disputed is read in another order than it was first.
    """
    audit = PartitionAudit(NAME, DeadOffsets(dead), complete, log)
    places = [((0, number), note) for number, note in enumerate(notes)]
    counted = sum(audit.add(*each) for each in places)
    disputes = Disputes(audit)
    for each in places[::-1]:
        disputes.add(*each)
    return audit, counted + len(disputes.judge())


def said(audit: PartitionAudit) -> list[tuple[str, Range]]:
    return [(each.kind, each.range) for each in audit.findings]


def test_what_is_receipted_once_is_accounted_for() -> None:
    """Receipts in any order, with dead letters as many as they say, leave no open ground."""
    notes: list[Note] = [receipt(20, 30), receipt(0, 20, dead_letters=2), receipt(30, 40)]

    audit, counted = audited(notes, dead=(3, 5))

    assert audit.judge_ground(committed=40) == []
    assert (audit.findings, counted) == ([], 3)


def test_open_ground_is_looked_into_where_the_log_has_it() -> None:
    """What was before the log's beginning cannot be told; what is not committed is no gap."""
    audit, _ = audited(
        [receipt(0, 10), receipt(20, 30), receipt(50, 60), receipt(90, 99)], log=(35, 100)
    )

    assert audit.judge_ground(committed=80) == [(35, 50), (60, 80)]
    assert said(audit) == [("lost", (10, 20)), ("lost", (30, 35))]


def test_what_was_before_the_first_receipt_and_the_log_is_nobodys() -> None:
    """A group that began with a log that had lost its beginning has no gap there."""
    audit, _ = audited([receipt(50, 60)], log=(40, 60))

    assert audit.judge_ground(committed=60) == [(40, 50)]
    assert audit.findings == []


def test_what_was_skipped_is_no_open_ground() -> None:
    """A decision covers its range, and is told."""
    audit, _ = audited([receipt(0, 10), skipped(10, 25), receipt(25, 30)])

    assert audit.judge_ground(committed=30) == []
    assert said(audit) == [("skipped", (10, 25))]


def test_a_repeated_receipt_counts_once() -> None:
    """The same range, key and batch id, or one of them none: one batch."""
    for again in (receipt(0, 10), receipt(0, 10, batch_id=None)):
        audit, counted = audited([receipt(0, 10), receipt(10, 20), again])

        assert (said(audit), counted) == ([("repeated", (0, 10))], 2)


def test_two_batch_ids_are_two_answers() -> None:
    """The same range and key, acknowledged as two batches: its bits count once, and it is named."""
    audit, counted = audited([receipt(0, 10), receipt(0, 10, batch_id="other")])

    assert (said(audit), counted) == ([("counted_twice", (0, 10))], 1)
    assert "batch-0 and as other" in audit.findings[0].detail


@pytest.mark.parametrize("turned", [False, True])
def test_overlaps_are_named_whatever_their_order(turned: bool) -> None:
    """Bits of both count, for both have a receipt; a third that touches neither is left alone."""
    notes: list[Note] = [receipt(0, 10), receipt(5, 15), receipt(15, 20)]

    audit, counted = audited(notes[::-1] if turned else notes)

    assert (said(audit), counted) == ([("overlap", (5, 10))], 3)


def test_the_same_range_under_two_keys_overlaps() -> None:
    """A topic that was made anew, or two that share their receipts by mistake."""
    audit, counted = audited([receipt(0, 10), receipt(0, 10, idempotency_key="other")])

    assert (said(audit), counted) == ([("overlap", (0, 10))], 2)


def test_what_was_forced_counts_beside_the_rest() -> None:
    """Once for each replay, however many receipts a crash has left of it; and covers nothing."""
    forced = receipt(0, 10, replay="again", forced=True)
    other = receipt(0, 10, replay="and again", forced=True)

    audit, counted = audited([receipt(0, 10), forced, other, forced])

    assert (said(audit), counted) == ([], 3)
    assert audited([receipt(0, 10, forced=True)])[0].judge_ground(10) == [(0, 10)]


@pytest.mark.parametrize(
    ("counted", "dead", "complete", "kinds"),
    [
        (1, (3,), True, []),
        (0, (3,), True, ["dead_letters_differ"]),
        (2, (3,), True, ["dead_letters_differ"]),
        (2, (3,), False, []),
        (0, (3,), False, ["dead_letters_differ"]),
        (0, (10,), True, []),
    ],
)
def test_dead_letters_are_as_many_as_the_receipt_counts(
    counted: int, dead: tuple[int, ...], complete: bool, kinds: list[str]
) -> None:
    """Fewer may be retention's doing, where the dead-letter topic has lost its beginning."""
    audit, _ = audited([receipt(0, 10, dead_letters=counted)], dead, complete=complete)

    assert [kind for kind, _ in said(audit)] == kinds


def test_a_dead_letter_needs_a_receipt_below_the_committed_offset() -> None:
    """Above it its batch is still to be settled; what was skipped by decision is no fault."""
    audit, _ = audited([receipt(0, 10, dead_letters=1), skipped(20, 30)], (5, 12, 13, 25, 45))

    audit.judge_ground(committed=40)

    assert said(audit)[1:] == [("dead_letter_without_receipt", (12, 14))]


def test_replays_are_open_until_they_end() -> None:
    """Their groups are looked into for what is in doubt."""
    started = Replay("usage", 0, 0, 10, "july", "started", "ann", "why", "then")
    ended = Replay("usage", 0, 0, 10, "july", "ended", "ann", "why", "then")

    assert list(audited([started])[0].open_replays) == ["july"]
    assert list(audited([started, ended])[0].open_replays) == []


def test_what_the_log_does_not_reach_is_named() -> None:
    """Committed, or receipted: the topic is another one, or was cut short."""
    audit, _ = audited([receipt(0, 40)], log=(0, 30))

    assert audit.judge_ground(committed=60) == []
    assert said(audit) == [("beyond_end", (30, 60))]


def test_a_receipt_is_of_the_records_that_its_key_names() -> None:
    """Others at the same offsets are named; what the log has in part tells nothing."""
    first, last, other = (
        LogRecord(offset, None, moment) for offset, moment in ((0, 5), (9, 7), (9, 8))
    )
    named = idempotency_key(NAME, first, last)
    audit, _ = audited([receipt(10, 20), receipt(0, 10, idempotency_key=named), receipt(20, 40)])

    own, _ = audit.outermost
    audit.compare_records(own, first, last)
    audit.compare_records(own, first, first)
    assert said(audit) == []
    audit.compare_records(own, first, other)

    assert [each.range for each in audit.outermost] == [(0, 10), (20, 40)]
    assert said(audit) == [("other_records", (0, 10))]


def test_bits_that_contradict_themselves_are_named() -> None:
    """A receipt whose sum is not that of its keys was changed by somebody."""
    audit, _ = audited([receipt(0, 10, bits=8)])

    assert said(audit) == [("receipt_differs", (0, 10))]


def test_many_repeated_receipts_take_little_time() -> None:
    """Each is compared with what it may touch alone: to look at all of it took minutes."""
    notes: list[Note] = [receipt(20 * number, 20 * number + 10) for number in range(10_000)]
    began = process_time()

    audit, counted = audited(notes * 2, log=(0, 200_000))

    assert (counted, len(audit.findings)) == (10_000, 10_000)
    assert process_time() - began < 5


def test_which_letters_are_gone_is_told_where_it_can_be() -> None:
    """By the number of events that are left: as many as items, or it is said that it cannot be."""
    notes: list[Note] = [
        receipt(0, 10, items=8, dead_letters=2),
        receipt(10, 20, items=8, dead_letters=2),
        receipt(20, 21, items=0, dead_letters=1),
    ]
    audit, _ = audited(notes, dead=(3,), complete=False)

    audit.tell((0, 10), events=8)
    audit.tell((10, 20), events=9)

    assert said(audit) == [("letters_gone", (10, 20))]
    assert (list(audit.letters_gone), audit.dead_whole) == ([(10, 20)], [(20, 21)])
