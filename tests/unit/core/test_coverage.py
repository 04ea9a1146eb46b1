"""What receipts prove settled, left out of what is read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ingester.core.batch import idempotency_key
from ingester.core.coverage import Coverage, Proof
from ingester.core.messages import HaltPartition, Start
from tests.support.records import PARTITION, LogRecord, usage_records
from tests.support.scenario import P0, Scenario, batches_sent, ledger_of

LOG = usage_records(20)


def proof_of(first_offset: int, next_offset: int, receipt_offset: int = 0) -> Proof:
    """What a receipt of these records says."""
    key = idempotency_key(PARTITION, LOG[first_offset], LOG[next_offset - 1])
    return Proof(first_offset, next_offset, key, receipt_offset)


def offsets(runs: Sequence[Sequence[LogRecord]]) -> list[list[int]]:
    return [[record.offset for record in run] for run in runs]


def test_what_is_covered_is_left_out() -> None:
    """In the middle and at the end; a batch may not go on behind it."""
    coverage = Coverage(PARTITION, [proof_of(18, 20), proof_of(3, 17)])

    assert offsets(coverage.sift(LOG)) == [[0, 1, 2], [17], []]
    assert not coverage


def test_neighbours_leave_nothing_between() -> None:
    """Nor does a receipt that was written twice."""
    coverage = Coverage(PARTITION, [proof_of(0, 2), proof_of(2, 4), proof_of(2, 4, 7)])

    assert [each for each in offsets(coverage.sift(LOG[:6])) if each] == [[4, 5]]


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_fetch_may_end_anywhere(cut: int) -> None:
    """Also within what is covered, whose rest is left out of the next."""
    coverage = Coverage(PARTITION, [proof_of(5, 9), proof_of(12, 20)])
    runs = [*coverage.sift(LOG[:cut]), *coverage.sift(LOG[cut:])]

    assert [each for run in offsets(runs) for each in run] == [0, 1, 2, 3, 4, 9, 10, 11]
    assert coverage.mistaken is None
    assert not coverage


@pytest.mark.parametrize("cut", [0, 6, 9, 20])
def test_other_records_at_the_same_offsets_are_not_what_was_settled(cut: int) -> None:
    """A topic made anew begins at the same offsets: nothing of it may be passed for settled."""
    anew = [LogRecord(each.offset, each.value, each.timestamp + 1) for each in LOG]
    coverage = Coverage(PARTITION, [proof_of(5, 9)])
    runs = [*coverage.sift(anew[:cut]), *coverage.sift(anew[cut:])]

    assert coverage.mistaken == proof_of(5, 9)
    assert {each for run in offsets(runs) for each in run} <= {0, 1, 2, 3, 4, *range(9, 20)}


@pytest.mark.parametrize("lost", [5, 8], ids=["the first", "the last"])
def test_what_the_log_has_lost_cannot_be_compared(lost: int) -> None:
    """By compaction or retention; the rest is settled all the same."""
    left = [each for each in LOG if each.offset != lost]
    coverage = Coverage(PARTITION, [proof_of(5, 9)])

    assert offsets(coverage.sift(left)) == [[0, 1, 2, 3, 4], list(range(9, 20))]
    assert coverage.mistaken is None


def test_a_proof_of_which_nothing_is_left_is_passed() -> None:
    """What is beyond it is read as ever."""
    coverage = Coverage(PARTITION, [proof_of(5, 9)])

    assert offsets(coverage.sift([*LOG[:5], *LOG[9:]])) == [[0, 1, 2, 3, 4], list(range(9, 20))]
    assert not coverage


# -- in the pipeline ----------------------------------------------------------------------------


def begin(scenario: Scenario, *proofs: Proof) -> None:
    scenario.revoked()
    scenario.begin({P0: Start(0, ledger_of(receipts_offset=40), {}, proofs=proofs)})


def test_a_worker_sends_what_is_not_covered() -> None:
    """A batch ends where a proof begins, and the offset passes what is proved."""
    scenario = Scenario()
    begin(scenario, proof_of(2, 5), proof_of(6, 9))
    sent = scenario.sent(LOG[:11])
    for batch in sent:
        scenario.answer(batch)

    scenario.rest()

    assert [each.range for each in sent] == [(0, 2), (5, 6), (9, 11)]
    assert scenario.offset() == 11


def test_the_next_owner_is_told_of_the_receipts_as_long_as_it_needs_them() -> None:
    """They lie far before those of new batches, which move on; the position counts, not what is
    read."""
    scenario = Scenario()
    begin(scenario, proof_of(2, 5, receipt_offset=31), proof_of(8, 10, receipt_offset=30))
    first, second, third, fourth = scenario.sent(LOG[:12])
    noted = []
    for batch in (second, third, first, fourth):
        scenario.answer(batch)
        scenario.rest()
        noted.append((scenario.offset(), scenario.committed[P0][1].receipts_offset))

    assert noted == [(0, 30), (0, 30), (8, 30), (12, 40)]


def test_a_worker_halts_at_records_that_are_others() -> None:
    """It says how to go on, and sends nothing of the topic that may be another."""
    scenario = Scenario()
    begin(scenario, Proof(0, 3, "ingester-other", 0))
    commands = scenario.fetch(LOG[:11])
    (halted,) = [each for each in commands if isinstance(each, HaltPartition)]

    assert batches_sent(commands) == []
    assert "usage:0[0,3) is settled" in halted.reason
    assert "INGESTER_RECEIPTS_TOPIC" in halted.reason


def test_what_is_passed_unseen_is_decided_from_the_start() -> None:
    """A replay passes all behind its end: nothing of that is compared, so nothing waits for it."""
    coverage = Coverage(PARTITION, [Proof(10, 2**63 - 1, "", 0)])

    coverage.sift(LOG)

    assert not coverage.is_undecided


def test_a_proof_whose_last_records_are_lost_ends_with_the_position() -> None:
    """Compaction took them, and nothing follows: the committed offset may not wait for ever."""
    coverage = Coverage(PARTITION, [proof_of(5, 9)])
    coverage.sift(LOG[:7])
    coverage.reached(8)
    assert coverage.is_undecided

    coverage.reached(9)

    assert not coverage
    assert not coverage.is_undecided
    assert coverage.mistaken is None
