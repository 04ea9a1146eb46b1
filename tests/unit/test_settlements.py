"""Which records of dead letters are counted all the same, and which may still be."""

from __future__ import annotations

from typing import Literal

import pytest

from ingester.audit.settlements import Settlements
from ingester.core.deadletter import Origin
from ingester.core.messages import Commit
from ingester.core.receipt import Note, Receipt, Replay, Resolution
from ingester.core.record import TopicPartition

USAGE = TopicPartition("usage", 0)


def receipt(first_offset: int, next_offset: int, dead_letters: int, forced: bool = False) -> Note:
    items = next_offset - first_offset - dead_letters
    return Receipt(
        *USAGE, first_offset, next_offset, "key", "batch", 202, items, dead_letters, 0, {}, "", 1,
        False, "2025-06-10T14:30:00.000+00:00", "august" if forced else None, forced,
    )  # fmt: skip


def replay(state: Literal["started", "ended"], *, forced: bool = False) -> Note:
    return Replay(*USAGE, 0, 10, "july", state, "ann", "why", "then", forced)


def resend() -> Note:
    return Resolution(*USAGE, 0, 0, "resend", "ann", "why", "then", unaccounted=True)


def letter(offset: int, status: int | None = None) -> Origin:
    return Origin(USAGE, offset, "code", "detail", status, b"", None)


def settlements(*notes: Note, committed: int = 100) -> Settlements:
    found = Settlements({USAGE: Commit(committed, "")}, {USAGE: (0, 100)})
    for note in notes:
        found.note(USAGE, note)
    return found


@pytest.mark.parametrize(
    ("letters", "dead_letters", "counted"),
    [
        ([letter(1, 422)], 0, [True]),
        ([letter(1), letter(2)], 2, [False, False]),
        ([letter(1), letter(1), letter(2)], 2, [False, False, False]),
        ([letter(1), letter(2, 422)], 1, [False, True]),
        ([letter(1), letter(2)], 1, [True, True]),
        ([letter(1), letter(2, 422)], 10, [False, False]),
    ],
)
def test_a_receipt_tells_items_from_dead_letters(
    letters: list[Origin], dead_letters: int, counted: list[bool]
) -> None:
    """What was refused is alone in its receipt; of more letters than it says none is sure."""
    found = settlements(receipt(0, 10, dead_letters))
    for each in letters:
        found.letter(each)

    assert [found.is_counted(each) for each in letters] == counted
    assert not any(found.is_forced(each) for each in letters)


def test_what_a_forced_replay_has_counted_is_told_apart() -> None:
    """It is counted by that, and not by the receipt of its dead letter."""
    found = settlements(receipt(3, 4, 1), receipt(3, 4, 0, forced=True))

    assert (found.is_counted(letter(3, 422)), found.is_forced(letter(3, 422))) == (False, True)


@pytest.mark.parametrize(
    ("notes", "committed", "reason"),
    [
        ([], 4, None),
        ([], 3, "a worker still settles it"),
        ([receipt(0, 10, 1)], 0, None),
        ([receipt(0, 10, 0, forced=True)], 0, "a worker still settles it"),
        ([replay("started")], 4, "the replay july has not ended"),
        ([receipt(0, 10, 1), replay("started")], 4, None),
        ([receipt(0, 10, 1), replay("started", forced=True)], 4, "the replay july has not ended"),
        ([replay("started"), replay("ended")], 4, None),
        ([replay("started"), resend()], 4, None),
    ],
)
def test_whoever_has_still_to_settle_a_record_is_named(
    notes: list[Note], committed: int, reason: str | None
) -> None:
    """A worker beyond its committed offset, and a replay until it has ended or was given up."""
    found = settlements(*notes, committed=committed).settled_by(letter(3))

    assert (found or "").startswith(reason or "")
    assert (found is None) == (reason is None)
