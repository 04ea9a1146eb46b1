"""Facts in, commands out: one scenario for each promise."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ingester.core.batch import BatchLimits
from ingester.core.delivery import Blocked, Deferred, InDoubt, Refused, Throttled
from ingester.core.event import event_decoder
from ingester.core.messages import (
    AttemptEnded,
    Command,
    CommitOffsets,
    DrainRequested,
    HaltPartition,
    OffsetsCommitted,
    PartitionsAssigned,
    PausePartitions,
    ReadFailed,
    ResumePartitions,
    SendBatch,
    Start,
    Tick,
    WriteDeadLetters,
)
from ingester.core.pipeline import Pipeline
from ingester.core.record import TopicPartition
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
    ledger_of,
    receipt_of,
)

DEFERRED = Deferred("connection refused")
IN_DOUBT = InDoubt("HTTP 500", 500)
CONFLICT = Refused("HTTP 409: no", 409, "conflict", is_api=True)


def offsets_of(command: Command) -> dict[TopicPartition, int]:
    assert isinstance(command, CommitOffsets)
    return {name: commit.next_offset for name, commit in command.offsets.items()}


def with_values(*values: bytes | None, first_offset: int = 0) -> list[LogRecord]:
    """Valid records, except where a value is given in place of b""."""
    records = usage_records(len(values), first_offset)
    return [
        record if value == b"" else replace(record, value=value)
        for record, value in zip(records, values, strict=True)
    ]


# -- the usual way ------------------------------------------------------------------------------


def test_records_become_a_request_and_its_acknowledgement_a_commit() -> None:
    """Nothing is committed before the acknowledgement, and nothing is left after the commit."""
    scenario = Scenario()
    (command,) = scenario.fetch(usage_records(2))
    assert isinstance(command, SendBatch)
    assert command.attempt == 1
    assert not scenario.pipeline.drained

    assert scenario.answer(command.batch) == []
    assert not scenario.pipeline.drained
    assert scenario.offset() == 2
    assert scenario.pipeline.drained
    assert scenario.pipeline.buffered_bytes == 0
    assert scenario.pipeline.wake_at() is None
    assert scenario.pipeline.partitions[P0].committed == 2


def test_the_linger_cuts_a_batch_that_does_not_fill() -> None:
    """It runs from the batch's first record, whatever comes later."""
    scenario = Scenario(limits=replace(LIMITS, batch=BatchLimits(9, 10_000, 5.0)))
    scenario.fetch(usage_records(1))
    scenario.now += 4.0
    assert scenario.fetch(usage_records(1, first_offset=1)) == []
    assert scenario.pipeline.wake_at() == 1005.0

    (command,) = scenario.wake()

    assert isinstance(command, SendBatch)
    assert command.batch.items_count == 2


def test_each_partition_lingers_for_itself() -> None:
    """The oldest open batch is the next to be cut, and a batch that fills starts a new linger."""
    scenario = Scenario(P0, P1)
    scenario.fetch({P0: usage_records(1)})
    scenario.now = 1001.0
    scenario.fetch({P1: usage_records(1)})
    scenario.now = 1002.0
    scenario.fetch({P0: usage_records(2, first_offset=1)})
    assert scenario.pipeline.wake_at() == 1006.0
    (cut,) = scenario.wake()
    assert isinstance(cut, SendBatch)
    assert cut.batch.partition == P1

    assert scenario.pipeline.wake_at() == 1007.0


def test_without_a_linger_the_next_tick_sends() -> None:
    """What one fetch brought goes together, and does not wait for more."""
    limits = replace(LIMITS, batch=BatchLimits(9, 10_000, 0.0))
    scenario = Scenario(limits=limits)
    assert scenario.raw(scenario.fetched(usage_records(3))) == []
    assert scenario.pipeline.wake_at() == scenario.now

    (command,) = scenario.fact(Tick())

    assert isinstance(command, SendBatch)
    assert command.batch.items_count == 3


def test_an_empty_fetch_changes_nothing() -> None:
    """Nor does a fetch of a partition that is not ours."""
    scenario = Scenario()

    assert scenario.fetch({}) == []
    assert scenario.fetch({P0: []}) == []
    assert scenario.fetch({P1: usage_records(2)}) == []
    assert scenario.pipeline.wake_at() is None
    assert scenario.pipeline.drained


# -- commits ------------------------------------------------------------------------------------


def test_a_commit_waits_for_the_slowest_batch() -> None:
    """Batches that are acknowledged out of order are committed together with the first."""
    scenario = Scenario()
    first, second, third = scenario.sent(usage_records(6))
    assert scenario.answer(third) == []
    assert scenario.answer(second) == []

    assert scenario.answer(first) == []
    assert scenario.offset() == 6


def test_offsets_between_records_are_passed() -> None:
    """Markers and aborted records leave gaps, within and between batches."""
    scenario = Scenario()
    records = [LogRecord(offset, usage_records(1)[0].value) for offset in (3, 7, 20, 21)]
    first, second = scenario.sent(records)
    assert second.range == (20, 22)
    scenario.answer(second)

    assert scenario.answer(first) == []
    assert scenario.offset() == 22


def test_one_commit_at_a_time_and_none_too_soon() -> None:
    """What settles meanwhile goes with the next commit, after the interval."""
    scenario = Scenario(P0, P1)
    first, second = scenario.sent(usage_records(4))
    (other,) = scenario.sent(usage_records(2), P1)
    assert scenario.raw(AttemptEnded(first, ACKNOWLEDGED, 0.5)) == []
    (commit,) = scenario.wake_raw()
    assert offsets_of(commit) == {P0: 2}
    begun = scenario.now
    assert scenario.raw(AttemptEnded(second, ACKNOWLEDGED, 0.5)) == []
    assert scenario.raw(AttemptEnded(other, ACKNOWLEDGED, 0.5)) == []
    scenario.now += 0.2
    assert scenario.pipeline.wake_at() is None
    assert scenario.raw(OffsetsCommitted()) == []
    assert scenario.pipeline.wake_at() == begun + 1.0

    (commit,) = scenario.wake_raw()

    assert offsets_of(commit) == {P0: 4, P1: 2}


def test_a_commit_that_failed_is_made_again_with_what_is_newer() -> None:
    """After a backoff that grows, and without losing an offset."""
    scenario = Scenario()
    first, second = scenario.sent(usage_records(4))
    scenario.answer(first)
    (commit,) = scenario.wake_raw()
    assert offsets_of(commit) == {P0: 2}
    scenario.answer(second)
    for wait in (0.15, 0.25):
        assert scenario.commit_failed() == []
        assert scenario.pipeline.wake_at() == pytest.approx(scenario.now + wait)
        (commit,) = scenario.wake_raw()
        assert offsets_of(commit) == {P0: 4}
    scenario.through([commit])

    assert scenario.pipeline.drained


# -- retries ------------------------------------------------------------------------------------


def test_a_retry_carries_the_same_bytes_under_the_same_key() -> None:
    """It is the same batch, one attempt older."""
    scenario = Scenario()
    (batch,) = scenario.sent(usage_records(2))
    assert scenario.answer(batch, IN_DOUBT) == []

    assert scenario.wake() == [SendBatch(batch, 2)]


def test_blocked_is_reported_while_single_probes_go_on() -> None:
    """Nothing is dropped, and when a probe succeeds all goes on."""
    scenario = Scenario()
    first, second = scenario.sent(usage_records(4))
    blocked = Blocked("HTTP 401", 401)
    scenario.answer(first, blocked)
    scenario.answer(second, blocked)
    assert scenario.pipeline.blocked == blocked
    (probe,) = scenario.wake()
    assert isinstance(probe, SendBatch)

    commands = scenario.answer(probe.batch)

    assert scenario.pipeline.blocked is None
    assert [each.batch for each in commands if isinstance(each, SendBatch)] == [second]


# -- dead letters -------------------------------------------------------------------------------


def test_dead_letters_are_committed_only_when_they_are_written() -> None:
    """A batch of rejected records sends no request and waits for the broker."""
    scenario = Scenario()
    (command,) = scenario.fetch(with_values(None, b"{"))
    assert isinstance(command, WriteDeadLetters)
    assert [letter.rejection.code for letter in command.batch.dead_letters] == [
        "tombstone",
        "invalid_json",
    ]

    assert scenario.written(command.batch) == []
    assert scenario.offset() == 2


@pytest.mark.parametrize("letters_first", [True, False], ids=["letters first", "items first"])
def test_a_mixed_batch_is_settled_by_both(letters_first: bool) -> None:
    """Acknowledged items alone commit nothing, nor do written dead letters alone."""
    scenario = Scenario()
    write, send = scenario.fetch(with_values(b"", None))
    assert isinstance(write, WriteDeadLetters)
    assert isinstance(send, SendBatch)
    assert send.batch is write.batch
    steps = [scenario.written, scenario.answer]
    first, second = steps if letters_first else steps[::-1]
    assert first(send.batch) == []

    assert second(send.batch) == []
    assert scenario.offset() == 2


def test_dead_letters_that_were_not_written_are_written_again() -> None:
    """After a backoff, and nothing is committed past them meanwhile."""
    scenario = Scenario()
    write, send = scenario.fetch([*with_values(None, None), *usage_records(2, first_offset=2)])
    assert isinstance(write, WriteDeadLetters)
    assert isinstance(send, SendBatch)
    assert scenario.answer(send.batch) == []
    for wait in (0.15, 0.25, 0.45):
        assert scenario.not_written(write.batch) == []
        assert scenario.pipeline.wake_at() == pytest.approx(scenario.now + wait)
        assert scenario.wake() == [write]

    assert scenario.written(write.batch) == []
    assert scenario.offset() == 4


# -- halts --------------------------------------------------------------------------------------


def test_a_conflict_halts_its_partition_and_no_other() -> None:
    """It is paused and reported with the batch's name; what is unsent is forgotten."""
    limits = replace(LIMITS, requests_in_flight_max=1)
    scenario = Scenario(P0, P1, limits=limits)
    (batch,) = scenario.sent(usage_records(5))
    scenario.fetch({P1: usage_records(2)})
    reason = "usage:0[0,2) is in doubt (the key was used before with another body): HTTP 409: no"

    pause, halt, send = scenario.answer(batch, CONFLICT)

    assert (pause, halt) == (PausePartitions(frozenset({P0})), HaltPartition(P0, reason))
    assert isinstance(send, SendBatch)
    assert send.batch.partition == P1
    assert scenario.pipeline.partitions[P0].halt_reason == reason
    assert scenario.pipeline.partitions[P0].buffered_bytes == 0
    assert scenario.fetch({P0: usage_records(2, first_offset=5)}) == []
    assert scenario.answer(send.batch) == []
    assert scenario.offset(P1) == 2


def test_nothing_is_committed_past_a_conflict_which_stays_intended() -> None:
    """Something was applied under its key: that is for somebody to judge, not for the next."""
    scenario = Scenario()
    before, conflict, after = scenario.sent(usage_records(6))
    scenario.answer(conflict, CONFLICT)
    assert scenario.answer(after) == []

    assert scenario.answer(before) == []
    scenario.rest()
    assert scenario.committed[P0] == (2, ledger_of((2, 4), (4, 6)))
    assert scenario.pipeline.drained


def test_a_halted_partition_resolves_its_doubts() -> None:
    """What may have been applied goes on until it has an answer; what was deferred does not."""
    scenario = Scenario()
    conflict, doubtful, deferred = scenario.sent(usage_records(6))
    scenario.answer(doubtful, IN_DOUBT)
    scenario.answer(conflict, CONFLICT)
    assert scenario.answer(deferred, DEFERRED) == []
    assert not scenario.pipeline.drained

    assert scenario.wake() == [SendBatch(doubtful, 2)]
    assert scenario.answer(doubtful) == []
    scenario.rest()
    assert scenario.pipeline.drained
    assert scenario.pipeline.buffered_bytes == 0


def test_a_second_conflict_is_not_a_second_halt() -> None:
    """One reason is enough to act on; both batches stay intended."""
    scenario = Scenario()
    first, second = scenario.sent(usage_records(4))
    scenario.answer(first, CONFLICT)

    assert scenario.answer(second, CONFLICT) == []
    scenario.rest()
    assert scenario.committed[P0] == (0, ledger_of((0, 2), (2, 4)))


def test_a_partition_that_cannot_be_read_halts() -> None:
    """With the reason that came with the fact, and no other partition with it."""
    scenario = Scenario(P0, P1)

    pause, halt = scenario.fact(ReadFailed(P1, "offset 77 is gone"))

    assert pause == PausePartitions(frozenset({P1}))
    assert halt == HaltPartition(P1, "offset 77 is gone")
    assert scenario.fact(ReadFailed(P2, "offset 7 is gone")) == []


# -- memory -------------------------------------------------------------------------------------


def test_partitions_pause_past_the_bound_and_resume_below_half() -> None:
    """The heavy one pauses, the light one goes on; both bounds are in bytes."""
    size = len(usage_records(1)[0].value or b"")
    limits = replace(LIMITS, buffer_bytes_max=10 * size)
    scenario = Scenario(P0, P1, limits=limits)
    light = scenario.sent(usage_records(2), P1)
    commands = scenario.fetch({P0: usage_records(8)})
    assert PausePartitions(frozenset({P0})) in commands
    assert not any(isinstance(each, PausePartitions) for each in scenario.fetch({P1: []}))

    batches = [*batches_sent(commands), *light]
    resumed: list[bool] = []
    for batch in batches:  # grows while it is answered
        commands = scenario.answer(batch)
        batches += batches_sent(commands)
        resumed.append(ResumePartitions(frozenset({P0})) in commands)

    assert resumed == [False, False, True, False, False]


def test_a_halted_partition_is_not_resumed() -> None:
    """Not with the others, when there is room again."""
    limits = replace(LIMITS, buffer_bytes_max=200)
    scenario = Scenario(limits=limits)
    batches = scenario.sent(usage_records(8))
    commands = scenario.answer(batches[0], CONFLICT)
    for batch in batches[1:]:
        commands += scenario.answer(batch)

    assert not any(isinstance(each, ResumePartitions) for each in commands)
    assert scenario.pipeline.buffered_bytes == 0


def test_tombstones_that_cannot_be_written_fill_the_buffer() -> None:
    """A topic without values pauses as well, or it would fill the memory."""
    scenario = Scenario(limits=replace(LIMITS, buffer_bytes_max=10_000))
    commands: list[Command] = []
    for number in range(100):
        commands += scenario.fetch(with_values(None, None, first_offset=2 * number))

    assert commands.count(PausePartitions(frozenset({P0}))) == 1


def test_open_batches_are_cut_when_only_they_could_make_room() -> None:
    """Paused and with nothing under way, to wait for a linger would be a stall."""
    limits = replace(LIMITS, batch=BatchLimits(100, 10_000, 3600.0), buffer_bytes_max=300)
    scenario = Scenario(limits=limits)
    pause, send = scenario.fetch(usage_records(8))

    assert isinstance(pause, PausePartitions)
    assert isinstance(send, SendBatch)
    assert ResumePartitions(frozenset({P0})) in scenario.answer(send.batch)


# -- revocations --------------------------------------------------------------------------------


def test_a_revocation_forgets_what_was_not_sent() -> None:
    """Ready and open batches are quicker read again; fetches are not taken any more."""
    limits = replace(LIMITS, requests_in_flight_max=1)
    scenario = Scenario(limits=limits)
    (batch,) = scenario.sent(usage_records(5))
    assert scenario.revocation_started() == []
    assert not scenario.pipeline.drained
    assert not scenario.pipeline.assigned
    assert scenario.fetch(usage_records(4, first_offset=5)) == []

    assert scenario.answer(batch) == []
    assert scenario.offset() == 2
    assert scenario.pipeline.drained
    assert scenario.pipeline.buffered_bytes == 0


def test_a_revocation_finishes_what_is_in_doubt() -> None:
    """Such a batch is tried again, one that certainly was not applied is not."""
    scenario = Scenario()
    doubtful, deferred, throttled = scenario.sent(usage_records(6))
    scenario.revocation_started()
    scenario.answer(deferred, DEFERRED)
    scenario.answer(doubtful, IN_DOUBT)
    scenario.answer(throttled, Throttled("HTTP 429", 429, 3.0))
    assert not scenario.pipeline.drained

    commands: list[Command] = []
    while not commands:
        commands = scenario.wake()

    assert commands == [SendBatch(doubtful, 2)]
    assert scenario.answer(doubtful) == []
    assert scenario.offset() == 2


def test_a_revocation_commits_at_once_and_backs_off_only_after_a_failure() -> None:
    """There is no time for the interval, nor for hammering a coordinator that refuses."""
    scenario = Scenario()
    first, second = scenario.sent(usage_records(4))
    assert scenario.answer(first) == []
    assert scenario.offset() == 2
    scenario.revocation_started()
    (commit,) = scenario.raw(AttemptEnded(second, ACKNOWLEDGED, 0.5))
    assert offsets_of(commit) == {P0: 4}
    assert scenario.commit_failed() == []
    assert scenario.now + 0.15 == pytest.approx(scenario.pipeline.wake_at())

    (commit,) = scenario.wake_raw()

    assert offsets_of(commit) == {P0: 4}


def test_facts_of_a_former_assignment_are_nobodys() -> None:
    """An answer, a write or its failure that comes late settles nothing of the new owner's."""
    scenario = Scenario()
    write, send = scenario.fetch(with_values(b"", None))
    assert isinstance(write, WriteDeadLetters)
    assert isinstance(send, SendBatch)
    scenario.revocation_started()
    assert scenario.revoked() == []
    assert scenario.pipeline.drained
    assert (scenario.pipeline.in_flight, scenario.pipeline.buffered_bytes) == (0, 0)
    scenario.assign(P0)
    again = scenario.fetch(with_values(b"", None))

    for outcome in (ACKNOWLEDGED, IN_DOUBT, REFUSED, Blocked("HTTP 401", 401)):
        assert scenario.answer(send.batch, outcome) == []
    assert scenario.not_written(write.batch) == []
    assert scenario.written(write.batch) == []
    assert scenario.pipeline.in_flight == 1
    assert scenario.pipeline.blocked is None
    assert len(again) == 2


def test_the_next_owner_sends_the_same_request_under_the_same_key() -> None:
    """Read again from the committed offset, the records give the same batch, attempt 1."""
    scenario = Scenario()
    (batch,) = scenario.sent(usage_records(2))
    scenario.answer(batch, IN_DOUBT)
    scenario.revocation_started()
    scenario.revoked()
    scenario.assign(P0)

    (command,) = scenario.fetch(usage_records(2))

    assert isinstance(command, SendBatch)
    assert command.attempt == 1
    assert command.batch is not batch
    assert (command.batch.body, command.batch.idempotency_key) == (
        batch.body,
        batch.idempotency_key,
    )


def test_dead_letters_of_a_forgotten_batch_are_left_to_the_next_owner() -> None:
    """A write that failed is not made again for a batch that is read again anyway."""
    scenario = Scenario()
    write, send = scenario.fetch(with_values(b"", None))
    assert isinstance(write, WriteDeadLetters)
    assert isinstance(send, SendBatch)
    scenario.not_written(write.batch)
    scenario.answer(send.batch, DEFERRED)
    scenario.revocation_started()
    assert scenario.pipeline.drained

    assert scenario.wake() == []


def test_a_halt_ends_with_the_assignment() -> None:
    """The next owner tries again, and halts again if nothing was resolved."""
    scenario = Scenario()
    (batch,) = scenario.sent(usage_records(2))
    scenario.answer(batch, CONFLICT)
    scenario.revocation_started()
    scenario.revoked()
    scenario.assign(P0)

    assert scenario.pipeline.partitions[P0].halt_reason is None
    assert len(scenario.sent(usage_records(2))) == 1


def test_an_assignment_without_a_revocation_is_a_bug() -> None:
    """Only eager rebalancing is known: whatever else happens must not be taken for it."""
    scenario = Scenario()

    with pytest.raises(AssertionError):
        scenario.begin({P1: Start(0, NOTHING, {})})


def test_what_a_receipt_settles_is_committed_before_it_is_said_to_be() -> None:
    """A status names the offset that the group has, not the one at which the partition begins."""
    scenario = Scenario()
    scenario.sent(usage_records(2))
    scenario.revoked()
    start = scenario.start(P0, receipt_of((0, 2)))

    (commit,) = scenario.raw(PartitionsAssigned({P0: start}, WALL_SECONDS))

    assert offsets_of(commit) == {P0: 2}
    assert scenario.pipeline.partitions[P0].committed == 0
    scenario.raw(OffsetsCommitted())
    assert scenario.pipeline.partitions[P0].committed == 2


def test_an_empty_share_is_an_assignment() -> None:
    """A worker without partitions is in the group, and has nothing to wait for."""
    pipeline = Pipeline(LIMITS, event_decoder("refuse"))
    assert not pipeline.assigned
    pipeline.handle(PartitionsAssigned({}, 0.0), 0.0)

    assert pipeline.assigned
    assert pipeline.drained
    assert pipeline.wake_at() is None


# -- drains -------------------------------------------------------------------------------------


def test_a_drain_sends_what_is_open_and_takes_no_more() -> None:
    """Everything that has been read is settled and committed at once."""
    scenario = Scenario()
    first, *_ = scenario.sent(usage_records(3))
    (command,) = scenario.drain()
    assert isinstance(command, SendBatch)
    assert scenario.fetch(usage_records(4, first_offset=3)) == []
    assert scenario.answer(first) == []
    assert scenario.committed[P0][0] == 2
    assert scenario.answer(command.batch) == []

    assert scenario.committed[P0][0] == 3
    assert scenario.pipeline.drained
    assert scenario.pipeline.wake_at() is None


def test_a_drain_that_turns_into_a_revocation_begins_nothing_more() -> None:
    """What is in flight is finished; what was only intended is left to nobody."""
    scenario = Scenario(limits=replace(LIMITS, requests_in_flight_max=1))
    (batch,) = scenario.sent(usage_records(6))
    assert scenario.drain() == []
    assert not scenario.pipeline.drained
    scenario.revocation_started()
    assert not scenario.pipeline.drained
    assert scenario.answer(batch) == []
    scenario.rest()

    assert scenario.pipeline.drained
    assert scenario.committed[P0] == (2, ledger_of())


def test_a_drain_of_nothing_is_over_at_once() -> None:
    """Before any assignment, too."""
    pipeline = Pipeline(LIMITS, event_decoder("refuse"))

    assert pipeline.handle(DrainRequested(), 0.0) == []
    assert pipeline.drained


def test_a_drain_does_not_wait_for_a_halted_partition() -> None:
    """What it forgot is read again by whoever comes after the operator."""
    scenario = Scenario()
    (batch,) = scenario.sent(usage_records(3))
    scenario.answer(batch, CONFLICT)
    scenario.drain()

    assert scenario.pipeline.drained


def test_a_drain_waits_for_dead_letters() -> None:
    """They are written again until the deadline, which is the shell's."""
    scenario = Scenario()
    scenario.fetch(with_values(None))
    (write,) = scenario.drain()
    assert isinstance(write, WriteDeadLetters)
    scenario.not_written(write.batch)
    assert not scenario.pipeline.drained
    assert scenario.wake() == [write]
    scenario.written(write.batch)
    assert scenario.offset() == 1

    assert scenario.pipeline.drained


def test_a_drain_while_blocked_goes_on_with_probes() -> None:
    """It ends when the endpoint recovers, and is not taken for done before."""
    scenario = Scenario()
    (batch,) = scenario.sent(usage_records(2))
    scenario.drain()
    scenario.answer(batch, Blocked("HTTP 402", 402))
    assert not scenario.pipeline.drained
    assert scenario.wake() == [SendBatch(batch, 2)]
    scenario.answer(batch)
    assert scenario.offset() == 2

    assert scenario.pipeline.drained
