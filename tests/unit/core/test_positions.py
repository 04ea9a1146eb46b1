"""Markers, aborted records and gaps behind the last record: the committed offset follows."""

from __future__ import annotations

import dataclasses

from ingester.core.messages import CommitOffsets, PositionsReached, ReadFailed, SendBatch
from tests.support.records import usage_records
from tests.support.scenario import LIMITS, P0, P1, Scenario


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
    scenario.fact(ReadFailed(P0, "gone"))
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
    scenario = Scenario(limits=dataclasses.replace(LIMITS, commit_interval_seconds=5.0))
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
