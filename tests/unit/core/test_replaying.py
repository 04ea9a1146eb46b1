"""Where a replay begins, and what others make of it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from ingester.core.batch import idempotency_key
from ingester.core.intent import Range, encode
from ingester.core.messages import Commit, Start
from ingester.core.receipt import Note, Receipt, Replay
from ingester.core.replaying import Replaying
from ingester.core.start import start_of
from tests.support.records import usage_records
from tests.support.scenario import (
    P0,
    Scenario,
    batches_sent,
    ledger_of,
    ranges_of,
    receipt_of,
    resolution_of,
)

LOG = usage_records(30)


def claim(range_: Range, name: str = "june", state: str = "started") -> Replay:
    return Replay(*P0, *range_, name, state, "ann", "late events", "2025-06-10T14:30:00+00:00")  # type: ignore[arg-type]


def receipt(range_: Range, replay: str | None = None, *, forced: bool = False) -> Receipt:
    """What is left of a batch of the log."""
    first, next_offset = range_
    namespace = replay if forced and replay else ""
    key = idempotency_key(P0, LOG[first], LOG[next_offset - 1], namespace)
    return msgspec.structs.replace(
        receipt_of(range_), idempotency_key=key, replay=replay, forced=forced
    )


def begin(
    selected: Sequence[Range],
    *notes: Note,
    commit: Commit | None = None,
    log_begins: int = 0,
    forced: bool = False,
) -> Start:
    return Replaying("june", {P0: selected}, forced).start_of(
        P0,
        commit,
        log_begins=log_begins,
        receipts_end=99,
        notes=list(enumerate(notes)),
    )


def sent(start: Start, *, namespace: str = "") -> list[Range]:
    """Which batches a replay sends that begins so, and reads the whole log."""
    scenario = Scenario(namespace=namespace)
    scenario.revoked()
    scenario.begin({P0: start})
    batches = batches_sent(scenario.fetch(LOG[start.offset :]))
    for batch in batches:
        scenario.answer(batch)
        first, last = LOG[batch.first_offset], LOG[batch.next_offset - 1]
        assert batch.idempotency_key == idempotency_key(P0, first, last, namespace)
    return [each.range for each in batches]


def test_what_is_not_selected_is_not_sent() -> None:
    """Before, between and behind; the offset begins at the first that is."""
    begun = begin([(3, 5), (10, 13)])

    assert begun.offset == 3
    assert sent(begun) == [(3, 5), (10, 12), (12, 13)]


def test_without_a_selection_nothing_is_sent() -> None:
    """The partition is the group's all the same."""
    assert sent(begin([], log_begins=2)) == []


def test_what_has_receipts_since_is_passed() -> None:
    """Of a worker or of whichever replay: a second run sends nothing."""
    by_a_worker, by_another = receipt((0, 4)), receipt((4, 6), "may")

    assert sent(begin([(0, 8)], by_a_worker, by_another)) == [(6, 8)]
    assert sent(begin([(0, 8)], receipt((0, 8), "june"))) == []


def test_what_is_forced_is_counted_once_more_under_keys_of_its_own() -> None:
    """Only its own receipts keep it from that; those it left behind prove nothing less."""
    old, own = receipt((0, 4)), receipt((2, 4), "june", forced=True)

    assert sent(begin([(0, 4)], old, forced=True), namespace="june") == [(0, 2), (2, 4)]
    assert sent(begin([(0, 4)], old, own, forced=True), namespace="june") == [(0, 2)]
    assert sent(begin([(0, 6)], own)) == [(0, 2), (4, 6)]


def test_it_goes_on_where_it_was_killed() -> None:
    """What it had intended is sent again as it was, whatever else has receipts by now."""
    commit = Commit(2, encode(2, ledger_of((2, 4), (8, 9))))
    begun = begin([(0, 4), (8, 12)], receipt((10, 12)), commit=commit)

    assert begun.offset == 2
    assert ranges_of(begun.ledger) == [(2, 4), (8, 9)]
    assert sent(begun) == [(2, 4), (8, 9), (9, 10)]


def test_it_halts_where_retention_took_what_was_selected() -> None:
    """Nobody has settled that, and nobody will."""
    assert begin([(3, 5)], log_begins=4).halt_reason is not None
    assert begin([(3, 5)], log_begins=3).halt_reason is None


# -- claims ---------------------------------------------------------------------------------------


def test_of_two_replays_the_first_has_it() -> None:
    """The other has to wait for its end; one that was continued is no other."""
    mine, other = claim((0, 10)), claim((5, 9), "may")

    assert "the replay may has usage:0[5,9)" in (begin([(0, 10)], other, mine).halt_reason or "")
    assert begin([(0, 10)], mine, other).halt_reason is None
    assert begin([(0, 10)], other, mine, claim((5, 9), "may", "ended")).halt_reason is None
    assert begin([(0, 5)], other, mine).halt_reason is None


def worker_start(*notes: Note, commit: Commit | None) -> Start:
    return start_of(P0, commit, log_begins=0, receipts_end=99, notes=list(enumerate(notes)))


@pytest.mark.parametrize("commit", [None, Commit(4, encode(4, ledger_of()))], ids=repr)
def test_a_worker_leaves_to_a_replay_what_is_beyond_its_offset(commit: Commit | None) -> None:
    """Until that has ended, or somebody gives it up; then it passes what has receipts."""
    begun = claim((0, 10))
    done = (begun, receipt((4, 10), "june"), claim((0, 10), state="ended"))
    waiting = worker_start(begun, commit=commit).halt_reason or ""

    assert "the replay june has usage:0[0,10)" in waiting
    assert "ingester resolve usage:0:" in waiting
    assert worker_start(*done, commit=commit).halt_reason is None
    assert [each[:2] for each in worker_start(*done, commit=commit).proofs] == [(4, 10)]
    given_up = resolution_of((4, 5), "resend", intended_at=None, unaccounted=True)
    assert worker_start(begun, given_up, commit=commit).halt_reason is None


def test_a_worker_does_not_care_for_a_replay_below_its_offset() -> None:
    """It never comes back there."""
    commit = Commit(10, encode(10, ledger_of()))

    assert worker_start(claim((0, 10)), commit=commit).halt_reason is None
