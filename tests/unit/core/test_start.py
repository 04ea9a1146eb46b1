"""Where a partition begins, by its commit, its log and the notes about it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ingester.core.intent import Ledger, Range, encode
from ingester.core.messages import Commit, Start
from ingester.core.receipt import Note
from ingester.core.start import start_of
from tests.support.scenario import (
    P0,
    WALL_SECONDS,
    ledger_of,
    ranges_of,
    receipt_of,
    resolution_of,
)


def start(
    *notes: Note,
    offset: int = 0,
    left: Sequence[Range] = (),
    metadata: str | None = None,
    log_begins: int = 0,
) -> Start:
    """Where a partition begins of which these ranges were left; notes from offset 50 on."""
    if metadata is None:
        metadata = encode(offset, ledger_of(*left, receipts_offset=40))
    commit = Commit(offset, metadata)
    numbered = list(enumerate(notes, start=50))
    return start_of(P0, commit, log_begins=log_begins, receipts_end=99, notes=numbered)


def test_without_anything_left_it_begins_at_the_committed_offset() -> None:
    """There is nothing to send again and nothing to commit."""
    assert start(offset=7) == Start(
        7, Ledger(40, []), {}, acknowledged=frozenset(), resent=frozenset()
    )


def test_a_partition_without_a_ledger_has_its_receipts_to_come() -> None:
    """Nobody has sent anything of it: none of the receipts that are there is its own."""
    assert start(offset=7, metadata="").ledger == Ledger(99, [])


def test_what_was_left_is_in_doubt() -> None:
    """All of it, as the ledger says it."""
    begun = start(left=[(0, 2), (3, 5)])

    assert begun.offset == 0
    assert begun.ledger == ledger_of((0, 2), (3, 5), receipts_offset=40)
    assert (begun.settled, begun.committed, begun.halt_reason) == ({}, None, None)


# -- receipts -----------------------------------------------------------------------------------


def test_it_begins_behind_what_has_receipts() -> None:
    """The group's offset follows; gaps between the ranges hold nothing."""
    begun = start(receipt_of((3, 5)), receipt_of((0, 2)), left=[(0, 2), (3, 5), (5, 6)])

    assert (begun.offset, begun.committed) == (5, 0)
    assert ranges_of(begun.ledger) == [(5, 6)]
    assert begun.settled == {}


def test_what_has_a_receipt_behind_a_doubt_is_settled() -> None:
    """With the place of its last receipt, above which those of new batches are."""
    notes = [receipt_of((2, 4)), receipt_of((2, 4)), receipt_of((6, 8))]
    begun = start(*notes, left=[(0, 2), (2, 4), (4, 6), (6, 8)])

    assert (begun.offset, begun.committed) == (0, None)
    assert ranges_of(begun.ledger) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert begun.settled == {(2, 4): 51, (6, 8): 52}


@pytest.mark.parametrize("range_", [(0, 3), (1, 2), (0, 1), (2, 4)], ids=repr)
def test_a_receipt_of_another_range_settles_nothing(range_: Range) -> None:
    """Of one that overlaps, or of what was split since: other records were acknowledged."""
    begun = start(receipt_of(range_), left=[(0, 2)])

    assert (begun.offset, begun.settled) == (0, {})
    assert ranges_of(begun.ledger) == [(0, 2)]


def test_receipts_of_what_is_committed_say_nothing() -> None:
    """They are of a time before the committed offset."""
    assert start(receipt_of((0, 2)), receipt_of((5, 7)), offset=7) == start(offset=7)


@pytest.mark.parametrize("metadata", [None, "", "connect-1"])
def test_what_has_receipts_and_was_not_intended_is_not_read_for_new(metadata: str | None) -> None:
    """Whoever settled it, beside the group or before its offset was moved back."""
    begun = start(receipt_of((6, 8)), receipt_of((9, 12)), offset=7, metadata=metadata)

    assert [each[:2] for each in begun.proofs] == [(6, 8), (9, 12)]
    assert (begun.offset, begun.settled, begun.halt_reason) == (7, {}, None)


def test_of_what_is_intended_only_its_own_receipt_counts() -> None:
    """The rest of it was acknowledged by nobody."""
    assert start(receipt_of((1, 3)), receipt_of((3, 5)), left=[(2, 4), (4, 6)]).proofs == ()


# -- decisions ----------------------------------------------------------------------------------


def test_what_somebody_found_acknowledged_is_still_to_be_read() -> None:
    """For its dead letters, which nobody has written perhaps."""
    begun = start(resolution_of((0, 2), "acknowledged"), left=[(0, 2), (2, 4)])

    assert (begun.offset, begun.committed) == (0, None)
    assert begun.acknowledged == {(0, 2)}
    assert begun.settled == {}


def test_what_is_to_be_sent_again_is_named() -> None:
    """The others are still in doubt."""
    begun = start(resolution_of((2, 4), "resend"), left=[(0, 2), (2, 4)])

    assert begun.resent == {(2, 4)}
    assert begun.acknowledged == frozenset()


@pytest.mark.parametrize("intended_at", [None, WALL_SECONDS - 1, WALL_SECONDS + 1], ids=repr)
def test_what_is_to_be_sent_again_is_so_for_one_attempt(intended_at: int | None) -> None:
    """Whoever sends it intends it anew: the decision was about the attempt before."""
    decision = resolution_of((0, 2), "resend", intended_at=intended_at)

    assert start(decision, left=[(0, 2)]).resent == frozenset()


@pytest.mark.parametrize("intended_at", [None, WALL_SECONDS - 1, WALL_SECONDS], ids=repr)
def test_what_somebody_found_acknowledged_stays_so(intended_at: int | None) -> None:
    """Whichever attempt it was that PacSpace has counted, another would count it twice."""
    decision = resolution_of((0, 2), "acknowledged", intended_at=intended_at)

    assert start(decision, left=[(0, 2)]).acknowledged == {(0, 2)}


@pytest.mark.parametrize("decision", ["acknowledged", "resend"])
def test_the_last_decision_counts(decision: str) -> None:
    """Whoever corrects himself before a worker has looked is heard."""
    first = resolution_of((0, 2), "resend" if decision == "acknowledged" else "acknowledged")
    begun = start(
        first,
        resolution_of((0, 2), decision),
        left=[(0, 2)],
    )

    assert (begun.acknowledged == {(0, 2)}) == (decision == "acknowledged")
    assert (begun.resent == {(0, 2)}) == (decision == "resend")


def test_a_receipt_outweighs_every_decision() -> None:
    """What PacSpace has acknowledged is not sent again, whoever wants it."""
    notes = [receipt_of((0, 2)), resolution_of((0, 2), "resend")]

    assert start(*notes, left=[(0, 2), (2, 4)]).offset == 2


def test_what_is_skipped_is_passed() -> None:
    """At the committed offset, also where nothing is in doubt: retention took it."""
    begun = start(resolution_of((0, 9), "skipped"), log_begins=9)

    assert (begun.offset, begun.committed, begun.halt_reason) == (9, 0, None)


def test_skipped_ranges_join() -> None:
    """With each other, and with what has receipts."""
    notes = [resolution_of((0, 2), "skipped"), receipt_of((2, 4)), resolution_of((4, 6), "skipped")]

    assert start(*notes, left=[(0, 2), (2, 4), (4, 6), (6, 8)]).offset == 6


def test_what_is_skipped_behind_a_doubt_waits_for_it() -> None:
    """It is settled, and not sent; the offset does not pass what is before it."""
    begun = start(resolution_of((2, 4), "skipped"), left=[(0, 2), (2, 4)])

    assert (begun.offset, begun.committed) == (0, None)
    assert begun.settled == {(2, 4): 50}


def test_what_was_skipped_before_the_committed_offset_changes_nothing() -> None:
    """Decisions stay in the topic; the offset never goes back for one."""
    begun = start(resolution_of((0, 2), "skipped"), offset=7, left=[(7, 9)])

    assert (begun.offset, begun.committed) == (7, None)
    assert ranges_of(begun.ledger) == [(7, 9)]


def test_a_skip_ends_the_doubt_about_what_is_in_it() -> None:
    """Whoever skips it says that nobody will know; the next begins behind it."""
    begun = start(resolution_of((0, 4), "skipped"), left=[(0, 2), (2, 4), (4, 6)], log_begins=3)

    assert (begun.offset, begun.halt_reason) == (4, None)
    assert ranges_of(begun.ledger) == [(4, 6)]


def test_a_skip_into_the_middle_of_a_doubt_stops_before_it() -> None:
    """Of a batch that may have been counted, the rest is not settled as a batch of its own."""
    begun = start(resolution_of((0, 3), "skipped"), left=[(0, 2), (2, 4), (4, 6)])

    assert (begun.offset, begun.halt_reason) == (2, None)
    assert ranges_of(begun.ledger) == [(2, 4), (4, 6)]


def test_where_the_log_has_lost_a_part_of_that_doubt_somebody_is_asked_again() -> None:
    """By a command that can pass it as a whole."""
    begun = start(resolution_of((0, 3), "skipped"), left=[(0, 2), (2, 4), (4, 6)], log_begins=3)

    assert begun.halt_reason is not None
    assert "ingester resolve usage:0:2 --as skipped" in begun.halt_reason


@pytest.mark.parametrize("log_begins", [0, 3])
def test_the_doubt_that_a_skip_cuts_into_is_skipped_as_a_whole(log_begins: int) -> None:
    """By a decision of its own; the next begins behind it."""
    notes = [resolution_of((0, 3), "skipped"), resolution_of((2, 4), "skipped")]
    begun = start(*notes, left=[(0, 2), (2, 4), (4, 6)], log_begins=log_begins)

    assert (begun.offset, begun.halt_reason) == (4, None)
    assert ranges_of(begun.ledger) == [(4, 6)]


@pytest.mark.parametrize("end", [2, 4, 9])
def test_a_skip_that_ends_between_doubts_cuts_none(end: int) -> None:
    """At the end of one, in a gap behind it, or behind all."""
    begun = start(resolution_of((0, end), "skipped"), left=[(0, 2), (5, 7)])

    assert (begun.offset, begun.halt_reason) == (end, None)
    assert ranges_of(begun.ledger) == ([] if end == 9 else [(5, 7)])


# -- what stops it ------------------------------------------------------------------------------


def test_metadata_of_ours_that_cannot_be_read_halts() -> None:
    """What was in doubt is not known, and so nothing may be sent; it says what can be done."""
    begun = start(offset=7, metadata="pacspace9:AAA=")

    assert begun.offset == 7
    assert begun.halt_reason is not None
    assert "the committed offset 7" in begun.halt_reason
    assert "another version of this program wrote it" in begun.halt_reason


def test_metadata_of_somebody_else_is_named_and_replaced() -> None:
    """It stops nothing: no intent of ours can be in it."""
    begun = start(offset=7, metadata="connect-1")

    assert begun.foreign_metadata == "connect-1"
    assert begun.halt_reason is None
    assert begun.ledger == Ledger(99, [])


def test_our_own_metadata_is_not_foreign() -> None:
    """Nor is none."""
    assert start(left=[(0, 2)]).foreign_metadata == ""
    assert start(metadata="").foreign_metadata == ""


@pytest.mark.parametrize(("log_begins", "lost"), [(6, False), (7, False), (8, True)])
def test_a_log_that_begins_beyond_halts(log_begins: int, lost: bool) -> None:
    """Records are missing that nobody has settled; it says how to go on without them."""
    begun = start(offset=7, log_begins=log_begins)

    assert (begun.halt_reason is not None) == lost
    if begun.halt_reason:
        assert "the log of usage:0 begins at offset 8, and 7 is the next" in begun.halt_reason
        assert "ingester resolve usage:0:7 --as skipped" in begun.halt_reason


def test_what_is_settled_may_be_missing() -> None:
    """Receipts or a decision cover it: retention took nothing that is still to be sent."""
    assert start(receipt_of((0, 2)), left=[(0, 2)], log_begins=2).halt_reason is None
    assert start(resolution_of((0, 5), "skipped"), log_begins=5).halt_reason is None
    assert start(resolution_of((0, 4), "skipped"), log_begins=5).halt_reason is not None


# -- a group without an offset ------------------------------------------------------------------


def start_anew(*notes: Note, log_begins: int = 0) -> Start:
    """Where a partition begins of which the group has no offset."""
    numbered = list(enumerate(notes))
    return start_of(P0, None, log_begins=log_begins, receipts_end=len(notes), notes=numbered)


def test_a_group_without_an_offset_begins_where_the_log_does() -> None:
    """Nothing of the partition was ever settled."""
    assert start_anew(log_begins=7) == Start(
        7, Ledger(0, []), {}, acknowledged=frozenset(), resent=frozenset()
    )


def test_a_group_that_has_lost_its_offset_waits_for_somebody() -> None:
    """What was in doubt is lost with it; what has receipts would be counted twice."""
    begun = start_anew(receipt_of((0, 2)), receipt_of((2, 9)), log_begins=1)

    assert begun.halt_reason is not None
    assert "no committed offset for usage:0" in begun.halt_reason
    assert "up to offset 9 were settled" in begun.halt_reason
    assert "the log begins" not in begun.halt_reason
    assert "INGESTER_GROUP_ID" in begun.halt_reason
    assert "ingester resolve usage:0:1 --as resend" in begun.halt_reason


def test_only_receipts_say_what_was_settled() -> None:
    """A decision about what was never sent, and a replay's claim, reach beyond that."""
    decision = resolution_of((40, 41), "resend", intended_at=None, unaccounted=True)
    begun = start_anew(receipt_of((0, 2)), decision, receipt_of((2, 9)))

    assert begun.halt_reason is not None
    assert "up to offset 9 were settled" in begun.halt_reason


def test_it_says_what_the_log_has_lost_meanwhile() -> None:
    """Between the last receipt and the beginning of the log there may have been records."""
    begun = start_anew(receipt_of((0, 2)), log_begins=5)

    assert begun.halt_reason is not None
    assert "the log begins at offset 5 by now" in begun.halt_reason


def test_by_a_decision_it_goes_on_without_what_has_receipts() -> None:
    """A decision of the time before the receipts, or about a batch, is not that one."""
    decision = resolution_of((0, 1), "resend", intended_at=None, unaccounted=True)
    about_a_batch = resolution_of((0, 2), "resend")
    about_dead_letters = resolution_of((2, 3), "resend", intended_at=None)
    begun = start_anew(receipt_of((0, 2)), decision)

    assert begun.halt_reason is None
    assert [each[:2] for each in begun.proofs] == [(0, 2)]
    assert start_anew(decision, receipt_of((0, 2))).halt_reason is not None
    for other in (about_a_batch, about_dead_letters):
        still = start_anew(receipt_of((0, 2)), other)
        assert still.halt_reason is not None
        assert still.unaccounted
