"""What is next and no record for us: markers, which are passed, and what cannot be read."""

from __future__ import annotations

from msgspec.structs import replace

from ingester.core.batch import idempotency_key
from ingester.core.coverage import Proof
from ingester.core.messages import (
    CommitOffsets,
    HaltPartition,
    PausePartitions,
    PositionsReached,
    ReadFailed,
    SendBatch,
    Start,
)
from tests.support.records import usage_records
from tests.support.scenario import LIMITS, NOTHING, P0, P1, Scenario, halts, ledger_of

UNREADABLE = ReadFailed(P0, "the record at offset 3 cannot be read")


def reach(scenario: Scenario, offset: int) -> None:
    assert scenario.fact(PositionsReached({P0: offset})) == []


def test_a_marker_is_passed_once_all_before_it_is_settled() -> None:
    """Not while the batch before it is in flight, and then by the next look."""
    scenario = Scenario()
    (batch,) = scenario.sent(usage_records(2))
    reach(scenario, 3)
    scenario.answer(batch)
    assert scenario.offset() == 2

    reach(scenario, 3)

    assert scenario.offset() == 3
    assert scenario.pipeline.drained
    assert scenario.pipeline.partitions[P0].committed == 3


def test_a_position_that_is_committed_is_not_committed_again() -> None:
    """An idle worker looks again and again, and has nothing to say."""
    scenario = Scenario()
    reach(scenario, 3)
    assert scenario.offset() == 3
    scenario.now += 10.0

    assert scenario.raw(PositionsReached({P0: 3})) == []
    assert scenario.pipeline.wake_at() is None


def test_what_waits_for_its_linger_is_not_passed() -> None:
    """Its record is read, and neither tracked nor settled."""
    scenario = Scenario()
    scenario.fetch(usage_records(1))
    reach(scenario, 2)
    assert scenario.pipeline.partitions[P0].committed == 0

    (command,) = scenario.wake()
    assert isinstance(command, SendBatch)
    scenario.answer(command.batch)

    assert scenario.offset() == 1


def test_what_a_halt_has_passed_over_is_not_committed() -> None:
    """A halted partition takes no records, however far they are read."""
    scenario = Scenario()
    scenario.fact(UNREADABLE)
    scenario.fetch(usage_records(2))
    reach(scenario, 2)

    assert scenario.pipeline.partitions[P0].committed == 0
    assert scenario.pipeline.drained


def test_what_a_drain_has_passed_over_is_not_committed() -> None:
    """Nor that which is read once nothing more is begun."""
    for stop in (Scenario.drain, Scenario.revocation_started):
        scenario = Scenario()
        stop(scenario)
        scenario.fetch(usage_records(2))
        reach(scenario, 2)

        assert scenario.pipeline.drained
        assert scenario.stored == {}


def test_positions_of_partitions_that_are_gone_are_nobodys() -> None:
    """A look may come late."""
    scenario = Scenario()

    assert scenario.raw(PositionsReached({P1: 5})) == []


def test_a_marker_travels_with_the_next_commit() -> None:
    """It is in no hurry: where others are committed at intervals, so is it."""
    scenario = Scenario(limits=replace(LIMITS, commit_interval_seconds=5.0))
    (batch,) = scenario.sent(usage_records(2))
    begun = scenario.now
    scenario.answer(batch)
    reach(scenario, 3)
    assert scenario.committed[P0][0] == 0

    commands = scenario.wake_raw()

    assert scenario.now > begun + 4.0
    (commit,) = commands
    assert isinstance(commit, CommitOffsets)
    assert commit.offsets[P0].next_offset == 3


def test_what_precedes_the_unreadable_is_settled() -> None:
    """The open batch is cut at once, and the committed offset says where the partition stands."""
    scenario = Scenario()
    (first,) = scenario.sent(usage_records(2))
    scenario.fetch(usage_records(1, first_offset=2))

    pause, halt, command = scenario.fact(UNREADABLE)
    assert isinstance(pause, PausePartitions)
    assert isinstance(halt, HaltPartition)
    assert isinstance(command, SendBatch)
    for batch in (command.batch, first):
        scenario.answer(batch)

    assert scenario.offset() == 3
    assert scenario.pipeline.may_be_reopened(P0)


def test_a_partition_that_begins_with_the_unreadable_has_a_commit() -> None:
    """Whoever decides looks at what the group has."""
    scenario = Scenario()
    scenario.fact(UNREADABLE)

    assert scenario.offset() == 0
    assert scenario.pipeline.may_be_reopened(P0)


def test_what_is_in_doubt_and_not_whole_is_not_cut() -> None:
    """Its boundary is its former owner's."""
    scenario = Scenario()
    scenario.revoked()
    scenario.begin({P0: Start(0, ledger_of((0, 4)), {})})
    scenario.fetch(usage_records(3))

    assert halts(scenario.fact(UNREADABLE)) == [UNREADABLE.reason]

    scenario.rest()
    assert scenario.intended() == [(0, 4)]


def test_what_a_receipt_covers_is_passed_once_it_is_known_to_be_it() -> None:
    """Until all of it is read, it may be another topic's of the same name."""
    scenario = Scenario()
    scenario.revoked()
    log = usage_records(3)
    key = idempotency_key(P0, log[0], log[-1])
    scenario.begin({P0: Start(0, NOTHING, {}, proofs=[Proof(0, 3, key, 0)])})
    scenario.fetch(log[:2])
    reach(scenario, 2)
    assert scenario.stored == {}

    scenario.fetch(log[2:])
    reach(scenario, 3)

    assert scenario.offset() == 3
