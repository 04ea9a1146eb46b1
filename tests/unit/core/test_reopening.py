"""What a decision about a halted partition brings about, while the worker runs."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ingester.core.delivery import InDoubt, Refused
from ingester.core.messages import (
    AttemptEnded,
    Command,
    CommitOffsets,
    DrainRequested,
    Limits,
    OffsetsCommitted,
    PartitionReopened,
    PausePartitions,
    ReadFailed,
    ReceiptWritten,
    ResumePartitions,
    SendBatch,
    Start,
    WriteDeadLetters,
    WriteReceipt,
)
from ingester.core.receipt import Note
from tests.support.records import LogRecord, usage_records
from tests.support.scenario import (
    ACKNOWLEDGED,
    LIMITS,
    NOTHING,
    P0,
    P1,
    P2,
    REFUSED,
    WALL_SECONDS,
    Scenario,
    batches_sent,
    halts,
    receipt_of,
    resolution_of,
)

RECEIPTS = replace(LIMITS, receipts=True)
HALT = replace(RECEIPTS, in_doubt="halt")
IN_DOUBT = InDoubt("HTTP 500", 500)
CONFLICT = Refused("HTTP 409: no", 409, "conflict", is_api=True)
LOG = [*usage_records(3), LogRecord(3, None), *usage_records(4, first_offset=4)]
RESUME = ResumePartitions(frozenset({P0}))


def halted(limits: Limits = HALT) -> Scenario:
    """A worker that halted a partition with [2,4) in doubt and [4,6), [6,8) acknowledged."""
    scenario = Scenario(P0, P1, limits=limits)
    commands = scenario.fetch({P0: LOG})
    first, doubtful, *others = batches_sent(commands)
    scenario.answer(first)
    scenario.receipted(first, 0)
    scenario.answer(doubtful, IN_DOUBT if limits.in_doubt == "halt" else CONFLICT)
    for each in commands:
        if isinstance(each, WriteDeadLetters):
            scenario.written(each.batch)
    for offset, each in enumerate(others, start=1):
        scenario.answer(each)
        scenario.receipted(each, offset)
    scenario.rest()
    assert scenario.pipeline.partitions[P0].halt_reason is not None
    assert scenario.intended() == [(2, 4), (4, 6), (6, 8)]
    return scenario


def notes_with(*notes: Note) -> list[Note]:
    return [receipt_of((0, 2)), receipt_of((4, 6)), receipt_of((6, 8)), *notes]


def reopened(scenario: Scenario, *notes: Note) -> list[Command]:
    """Let the worker hear what the notes say by now."""
    start = scenario.start(P0, *notes_with(*notes))
    return scenario.fact(PartitionReopened(P0, start, WALL_SECONDS + scenario.now))


# -- decisions ----------------------------------------------------------------------------------


def test_what_is_to_be_sent_again_is_sent_under_its_key() -> None:
    """Though the policy is to halt; what has receipts beyond it is passed."""
    scenario = halted()
    before = scenario.pipeline.partitions[P0].committed
    assert reopened(scenario, resolution_of((2, 4), "resend")) == [RESUME]
    assert scenario.pipeline.partitions[P0].halt_reason is None
    write, send = scenario.fetch({P0: LOG[before:]})
    assert isinstance(write, WriteDeadLetters)
    assert isinstance(send, SendBatch)

    assert str(send.batch) == "usage:0[2,4)"
    scenario.written(send.batch)
    assert scenario.answer(send.batch) == [WriteReceipt(send.batch, ACKNOWLEDGED, 1, in_doubt=True)]
    scenario.receipted(send.batch, 9)
    assert scenario.offset() == 8


def test_what_is_intended_afterwards_has_the_time_of_then() -> None:
    """By a clock that may have been set since the assignment."""
    scenario = halted()
    start = scenario.start(P0, *notes_with(resolution_of((2, 4), "acknowledged")))
    scenario.fact(PartitionReopened(P0, start, WALL_SECONDS + 50_000))
    scenario.fetch({P0: [*LOG[2:], *usage_records(2, first_offset=8)]})

    *_, last = scenario.committed[P0][1].intents
    assert last.range == (8, 10)
    assert 0 <= last.intended_at - (WALL_SECONDS + 50_000) < 10


def test_what_is_to_be_sent_again_is_intended_anew_before_it_is_sent() -> None:
    """At a later time, also by a clock that stepped back, so that the decision is used up by it."""
    scenario = halted()
    start = scenario.start(P0, *notes_with(resolution_of((2, 4), "resend")))
    scenario.fact(PartitionReopened(P0, start, WALL_SECONDS - 500))
    scenario.now += 0.01  # the moment between two commits
    write, commit = scenario.raw(scenario.fetched(LOG[2:]))
    assert isinstance(write, WriteDeadLetters)
    assert isinstance(commit, CommitOffsets)
    scenario.store(commit)
    (again, *others) = scenario.committed[P0][1].intents

    assert (again.range, again.intended_at) == ((2, 4), WALL_SECONDS + 1)
    assert [each.intended_at for each in others] == [WALL_SECONDS, WALL_SECONDS]
    assert [str(batch) for batch in batches_sent(scenario.raw(OffsetsCommitted()))] == [
        "usage:0[2,4)"
    ]


def test_what_is_to_be_sent_again_waits_for_a_commit_that_succeeds() -> None:
    """The successor of one that failed, whether the coordinator has stored it or not."""
    scenario = halted()
    reopened(scenario, resolution_of((2, 4), "resend"))
    scenario.now += 0.01  # the moment between two commits
    commands = scenario.raw(scenario.fetched(LOG[2:]))
    assert batches_sent(commands + scenario.commit_failed()) == []
    (commit,) = scenario.wake_raw()

    assert len(batches_sent(scenario.through([commit]))) == 1


def test_what_is_sent_again_and_stays_in_doubt_halts_again() -> None:
    """The decision was about the doubt before, and is not heard twice; a new one is."""
    scenario = halted()
    decision = resolution_of((2, 4), "resend")
    reopened(scenario, decision)
    write, send = scenario.fetch({P0: LOG[2:]})
    assert isinstance(write, WriteDeadLetters)
    assert isinstance(send, SendBatch)
    scenario.written(send.batch)
    assert len(halts(scenario.answer(send.batch, IN_DOUBT))) == 1
    scenario.rest()
    assert scenario.intended() == [(2, 4), (4, 6), (6, 8)]
    assert len(halts(reopened(scenario, decision))) == 1

    moment = scenario.committed[P0][1].intents[0].intended_at
    another = resolution_of((2, 4), "resend", intended_at=moment)
    assert reopened(scenario, decision, another) == [RESUME]
    assert len(batches_sent(scenario.fetch({P0: LOG[2:]}))) == 1


def test_what_cannot_be_formed_again_is_skipped_as_a_whole() -> None:
    """The halt names the decision; what follows is settled."""
    scenario = halted(RECEIPTS)
    assert reopened(scenario, resolution_of((2, 4), "resend")) == [RESUME]
    without = [each for each in LOG[2:] if each.offset != 2]
    (reason,) = halts(scenario.fetch({P0: without}))
    assert "[2,4) was sent by a former owner, and cannot be formed again" in reason
    assert "ingester resolve usage:0:2 --as skipped" in reason
    assert reopened(scenario, resolution_of((2, 4), "skipped")) == [RESUME]

    assert scenario.offset() == 8
    assert len(scenario.sent(usage_records(2, first_offset=8))) == 1


def test_what_pacspace_has_is_not_sent_but_its_dead_letters_are_written() -> None:
    """They may not have been; then its receipt, without an acknowledgement that nobody saw."""
    scenario = halted()
    assert reopened(scenario, resolution_of((2, 4), "acknowledged")) == [RESUME]
    (write,) = scenario.fetch({P0: LOG[2:]})
    assert isinstance(write, WriteDeadLetters)
    assert [letter.record.offset for letter in write.letters] == [3]
    assert scenario.written(write.batch) == [WriteReceipt(write.batch, None, 0, in_doubt=True)]
    scenario.receipted(write.batch, 9)

    assert scenario.offset() == 8
    assert scenario.pipeline.buffered_bytes == 0


def test_what_pacspace_has_without_dead_letters_has_its_receipt_at_once() -> None:
    """Nothing else is left to do."""
    scenario = Scenario(limits=HALT)
    (batch,) = scenario.sent(LOG[:2])
    scenario.answer(batch, IN_DOUBT)
    start = scenario.start(P0, resolution_of((0, 2), "acknowledged"))
    scenario.fact(PartitionReopened(P0, start, WALL_SECONDS))
    (receipt,) = scenario.fetch(LOG[:2])
    assert isinstance(receipt, WriteReceipt)
    assert receipt.outcome is None
    scenario.receipted(receipt.batch)

    assert scenario.offset() == 2


def test_what_is_skipped_is_passed_at_once() -> None:
    """With all behind it that has receipts; the group's offset follows."""
    scenario = halted()
    assert reopened(scenario, resolution_of((2, 4), "skipped")) == [RESUME]

    assert scenario.offset() == 8
    assert len(scenario.sent(usage_records(2, first_offset=8))) == 1


def test_a_decision_about_something_else_halts_again() -> None:
    """With the reason; what is in doubt stays in the ledger."""
    scenario = halted()
    resume, pause, halt = reopened(scenario, resolution_of((0, 2), "resend"))
    assert (resume, pause) == (RESUME, PausePartitions(frozenset({P0})))

    assert halts([halt]) == ["in doubt, and INGESTER_IN_DOUBT is halt: [2,4)"]
    assert scenario.fetch({P0: LOG[2:]}) == []


def test_a_log_that_has_lost_it_halts_again() -> None:
    """Whatever halts a start, halts it here."""
    scenario = halted()
    start = replace(scenario.start(), halt_reason="the log begins at offset 9")
    commands = scenario.fact(PartitionReopened(P0, start, WALL_SECONDS))

    assert halts(commands) == ["the log begins at offset 9"]


def test_a_conflict_can_be_sent_again() -> None:
    """Somebody has set PacSpace right; until former attempts are quiet, no refusal is believed."""
    scenario = halted(RECEIPTS)
    reopened(scenario, resolution_of((2, 4), "resend"))
    begun = scenario.now
    write, send = scenario.fetch({P0: LOG[2:]})
    assert isinstance(write, WriteDeadLetters)
    assert isinstance(send, SendBatch)
    scenario.written(send.batch)
    assert scenario.answer(send.batch, REFUSED) == []
    commands: list[Command] = []
    while not commands:
        commands = scenario.wake()

    assert commands == [SendBatch(send.batch, 2)]
    assert scenario.now == begun + LIMITS.session_timeout_seconds + LIMITS.request_timeout_seconds


# -- what may be reopened -----------------------------------------------------------------------


def test_a_halted_partition_at_rest_may_be_reopened() -> None:
    """One that is well may not, nor one of somebody else."""
    scenario = halted()

    assert scenario.pipeline.may_be_reopened(P0)
    assert not scenario.pipeline.may_be_reopened(P1)
    assert not scenario.pipeline.may_be_reopened(P2)


def test_a_partition_with_something_under_way_may_not_be_reopened_yet() -> None:
    """First its other batches are settled, and what that changes is committed."""
    scenario = Scenario(limits=RECEIPTS)
    conflict, under_way = scenario.sent(usage_records(4))
    scenario.answer(conflict, CONFLICT)
    assert not scenario.pipeline.may_be_reopened(P0)
    scenario.answer(under_way)
    assert not scenario.pipeline.may_be_reopened(P0)
    scenario.receipted(under_way)
    scenario.rest()

    assert scenario.pipeline.may_be_reopened(P0)


def test_a_partition_whose_commit_is_under_way_may_not_be_reopened_yet() -> None:
    """What begins would be said beside what ends."""
    scenario = Scenario(limits=LIMITS)
    before, conflict = scenario.sent(usage_records(4))
    scenario.answer(before)
    scenario.answer(conflict, CONFLICT)
    assert not scenario.pipeline.may_be_reopened(P0)
    (commit,) = scenario.wake_raw()
    scenario.store(commit)
    assert not scenario.pipeline.may_be_reopened(P0)
    scenario.raw(OffsetsCommitted())

    assert scenario.pipeline.may_be_reopened(P0)


@pytest.mark.parametrize("ending", ["revocation", "drain"])
def test_nothing_is_reopened_at_the_end(ending: str) -> None:
    """The next owner reads the decision at its start."""
    scenario = halted()
    if ending == "drain":
        scenario.fact(DrainRequested())
    else:
        scenario.revocation_started()
    assert not scenario.pipeline.may_be_reopened(P0)

    assert reopened(scenario, resolution_of((2, 4), "resend")) == []
    assert scenario.pipeline.partitions[P0].halt_reason is not None


def test_a_partition_that_is_well_is_not_begun_anew() -> None:
    """A decision that comes twice would forget what is in flight."""
    scenario = Scenario(limits=RECEIPTS)
    (batch,) = scenario.sent(usage_records(2))
    assert scenario.fact(PartitionReopened(P0, Start(0, NOTHING, {}), WALL_SECONDS)) == []
    assert scenario.fact(PartitionReopened(P2, Start(0, NOTHING, {}), WALL_SECONDS)) == []

    assert scenario.answer(batch) == [WriteReceipt(batch, ACKNOWLEDGED, 1)]


def test_what_comes_of_the_time_before_is_nobodys() -> None:
    """The same range is another batch from now on."""
    scenario = Scenario(limits=HALT)
    (before,) = scenario.sent(usage_records(2))
    scenario.answer(before, IN_DOUBT)
    start = scenario.start(P0, resolution_of((0, 2), "resend"))
    scenario.fact(PartitionReopened(P0, start, WALL_SECONDS))
    (again,) = scenario.sent(usage_records(2))
    assert again.idempotency_key == before.idempotency_key

    assert scenario.raw(AttemptEnded(before, ACKNOWLEDGED, 0.5)) == []
    assert scenario.raw(ReceiptWritten(before, 3)) == []
    assert scenario.pipeline.in_flight == 1
    assert scenario.answer(again) == [WriteReceipt(again, ACKNOWLEDGED, 1, in_doubt=True)]


def test_the_others_go_on_meanwhile() -> None:
    """What they have in flight, open or paused is theirs."""
    scenario = halted()
    (other,) = scenario.sent(usage_records(3), P1)
    reopened(scenario, resolution_of((2, 4), "skipped"))
    assert scenario.answer(other) == [WriteReceipt(other, ACKNOWLEDGED, 1)]
    scenario.receipted(other)
    (last,) = batches_sent(scenario.drain())

    assert str(last) == "usage:1[2,3)"


def test_a_partition_that_could_not_be_read_is_read_again() -> None:
    """From the committed offset, when somebody says that it can be by now."""
    scenario = Scenario()
    scenario.fact(ReadFailed(P0, "a record at or after offset 0 cannot be read"))
    start = scenario.start(P0, resolution_of((0, 1), "resend"))
    assert scenario.fact(PartitionReopened(P0, start, WALL_SECONDS)) == [RESUME]

    assert len(scenario.sent(usage_records(2))) == 1
