"""What is recorded before a batch is sent, and what the next owner makes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from ingester.core.batch import Batch, BatchBuilder, BatchLimits
from ingester.core.delivery import Deferred, InDoubt, Refused, Throttled
from ingester.core.event import event_decoder
from ingester.core.intent import INTENTS_MAX, METADATA_BYTES_MAX, Intent, Ledger, Range, encode
from ingester.core.messages import (
    AttemptEnded,
    Command,
    Commit,
    CommitOffsets,
    Limits,
    OffsetsCommitted,
    PausePartitions,
    ReadRange,
    ReceiptNotWritten,
    ReceiptWritten,
    ResumePartitions,
    RevocationStarted,
    SendBatch,
    Start,
    Tick,
    WriteDeadLetters,
    WriteReceipt,
)
from tests.support.records import PARTITION, LogRecord, digest_of, usage_records
from tests.support.scenario import (
    ACKNOWLEDGED,
    LIMITS,
    P0,
    P1,
    REFUSED,
    WALL_SECONDS,
    Scenario,
    batches_sent,
    halts,
    ledger_of,
    receipt_of,
    resolution_of,
)

RECEIPTS = replace(LIMITS, receipts=True)
HALT = replace(LIMITS, in_doubt="halt")
IN_DOUBT = InDoubt("HTTP 500", 500)
DEFERRED = Deferred("connection refused")
SPLITS_RESERVE = 20  # of the intents: only splits take the last of them


def unassigned(limits: Limits = LIMITS) -> Scenario:
    """A worker that has lost what it had."""
    scenario = Scenario(P1, limits=limits)
    scenario.revocation_started()
    scenario.revoked()
    return scenario


def inheriting(
    *ranges: Range,
    receipted: Sequence[Range] = (),
    limits: Limits = LIMITS,
    log: Sequence[LogRecord] | None = None,
    intended_at: int = WALL_SECONDS,
) -> Scenario:
    """A worker to which these ranges of this log were left."""
    scenario = unassigned(limits)
    offset = ranges[0][0]
    ledger = ledger_of(*ranges, log=log, intended_at=intended_at)
    scenario.store(CommitOffsets({P0: Commit(offset, encode(offset, ledger))}))
    notes = [receipt_of(each) for each in receipted]
    assert scenario.through(scenario.assign(P0, notes=notes)) == []
    return scenario


def formed(batches: Sequence[Batch]) -> list[tuple[str, bytes, str]]:
    return [(str(batch), batch.body, batch.idempotency_key) for batch in batches]


# -- before the first attempt -------------------------------------------------------------------


def test_nothing_is_sent_before_the_commit_that_records_it_succeeded() -> None:
    """The commit names each range above the unchanged offset; its success sends."""
    scenario = Scenario()
    (commit,) = scenario.raw(scenario.fetched(usage_records(4)))
    assert isinstance(commit, CommitOffsets)
    scenario.store(commit)
    assert scenario.committed == {P0: (0, ledger_of((0, 2), (2, 4)))}
    scenario.now += 100.0
    assert scenario.raw(Tick()) == []

    assert [batch.body.count(b"key") for batch in batches_sent(scenario.raw(OffsetsCommitted()))]


def test_a_commit_whose_answer_was_lost_is_made_again_before_anything_is_sent() -> None:
    """With the same ranges, whether or not the coordinator has them already."""
    scenario = Scenario()
    scenario.raw(scenario.fetched(usage_records(2)))
    assert scenario.commit_failed() == []
    scenario.raw(scenario.fetched(usage_records(2, first_offset=2)))
    (again,) = scenario.wake_raw()

    assert [str(batch) for batch in batches_sent(scenario.through([again]))] == [
        "usage:0[0,2)",
        "usage:0[2,4)",
    ]
    assert scenario.intended() == [(0, 2), (2, 4)]


def test_intents_of_the_next_batches_travel_with_the_commit_of_the_previous() -> None:
    """A worker with enough to send makes one commit an interval, for both."""
    limits = replace(LIMITS, requests_in_flight_max=2)
    scenario = Scenario(limits=limits)
    first, second = scenario.sent(usage_records(12))
    assert scenario.intended() == [(2 * n, 2 * n + 2) for n in range(6)]
    scenario.raw(scenario.fetched(usage_records(2, first_offset=12)))
    scenario.raw(AttemptEnded(first, ACKNOWLEDGED, 0.5))
    scenario.raw(AttemptEnded(second, ACKNOWLEDGED, 0.5))
    assert scenario.pipeline.wake_at() == 1001.0

    scenario.wake()

    assert scenario.committed[P0][0] == 4
    assert scenario.intended() == [(2 * n, 2 * n + 2) for n in range(2, 7)]


def test_no_more_is_intended_than_the_metadata_has_room_for() -> None:
    """Less what splits may need; the rest waits for offsets that are passed, and has its turn."""
    limits = replace(LIMITS, batch=BatchLimits(1, 1000, 5.0), requests_in_flight_max=8)
    scenario = Scenario(limits=limits)
    sent = scenario.sent(usage_records(INTENTS_MAX + 30))
    assert len(scenario.intended()) == INTENTS_MAX - SPLITS_RESERVE
    for position, batch in enumerate(sent):  # grows while it is answered
        sent += batches_sent(scenario.answer(batch))
        if scenario.pipeline.wake_at() is not None and position % 8 == 7:
            sent += batches_sent(scenario.wake())

    assert [batch.first_offset for batch in sent] == list(range(INTENTS_MAX + 30))
    assert scenario.offset() == INTENTS_MAX + 30


def test_a_full_ledger_whose_commit_failed_is_recorded_all_the_same() -> None:
    """Its batches have their room already; to look for more would be a stall."""
    limits = replace(LIMITS, batch=BatchLimits(1, 1000, 5.0), requests_in_flight_max=3)
    scenario = Scenario(limits=limits)
    (commit,) = scenario.raw(scenario.fetched(usage_records(INTENTS_MAX + 5)))
    assert isinstance(commit, CommitOffsets)
    assert len(commit.offsets[P0].metadata) <= METADATA_BYTES_MAX
    scenario.commit_failed()

    assert len(batches_sent(scenario.wake())) == limits.requests_in_flight_max


# -- the next owner -----------------------------------------------------------------------------


@pytest.mark.parametrize("fetched", [1, 2, 3, 100])
@pytest.mark.parametrize("items_max", [1, 2, 50])
def test_the_next_owner_forms_the_same_bytes_under_the_same_keys(
    fetched: int, items_max: int
) -> None:
    """Whatever its own limits and fetches are; what follows is cut by its own."""
    records = [*usage_records(4), LogRecord(4, None), *usage_records(4, first_offset=7)]
    former = Scenario(limits=replace(LIMITS, batch=BatchLimits(3, 10_000, 5.0)))
    before = former.sent(records)
    assert former.intended() == [(0, 3), (3, 8), (8, 11)]
    limits = replace(LIMITS, batch=BatchLimits(items_max, 10_000, 5.0))
    scenario = inheriting((0, 3), (3, 8), (8, 11), limits=limits, log=records)

    after: list[Batch] = []
    for position in range(0, len(records), fetched):
        after += scenario.sent(records[position : position + fetched])

    assert formed(before) == formed(after)
    (beyond, *_) = scenario.sent(usage_records(50, first_offset=11))
    assert beyond.items_count == items_max


def test_what_was_left_is_sent_without_waiting_for_a_commit() -> None:
    """It is recorded already, and stays so while more is read."""
    scenario = inheriting((0, 2), (2, 4))
    (send,) = scenario.raw(scenario.fetched(usage_records(2)))

    assert isinstance(send, SendBatch)
    assert str(send.batch) == "usage:0[0,2)"


def test_a_commit_says_what_was_left_and_is_not_even_read_yet() -> None:
    """Or a second crash would leave the third owner without it."""
    scenario = inheriting((0, 2), (2, 4), (4, 6))
    (batch,) = scenario.sent(usage_records(3))
    scenario.answer(batch)
    scenario.rest()

    assert scenario.committed[P0] == (2, ledger_of((2, 4), (4, 6)))


def test_a_frozen_batch_does_not_linger() -> None:
    """Half of it is never cut: not by time, nor by a drain."""
    scenario = inheriting((0, 3))
    scenario.raw(scenario.fetched(usage_records(2)))
    assert scenario.pipeline.wake_at() is None
    assert scenario.drain() == []

    assert scenario.pipeline.drained


def test_what_has_a_receipt_is_not_sent_again() -> None:
    """It is passed, without a request, a dead letter or a second receipt; the others are sent."""
    scenario = inheriting((0, 2), (2, 4), (4, 6), receipted=[(2, 4)], limits=RECEIPTS)
    first, third = scenario.sent([*usage_records(3), LogRecord(3, None), *usage_records(2, 4)])
    assert (str(first), str(third)) == ("usage:0[0,2)", "usage:0[4,6)")
    assert scenario.pipeline.buffered_bytes == first.buffered_bytes + third.buffered_bytes
    for offset, batch in enumerate((first, third)):
        scenario.answer(batch)
        scenario.receipted(batch, 20 + offset)

    assert scenario.offset() == 6
    assert scenario.pipeline.buffered_bytes == 0


@pytest.mark.parametrize("receipted", [(0, 3), (1, 2), (0, 1)], ids=repr)
def test_a_receipt_of_another_range_settles_nothing(receipted: Range) -> None:
    """Where it begins and where it ends both count."""
    scenario = inheriting((0, 2), receipted=[receipted], limits=RECEIPTS)

    assert len(scenario.sent(usage_records(2))) == 1


def test_receipts_without_a_committed_offset_halt() -> None:
    """Something was settled, and what was in doubt beyond it is not known any more."""
    scenario = unassigned(RECEIPTS)
    (reason,) = halts(scenario.assign(P0, notes=[receipt_of((0, 2))]))

    assert "no committed offset" in reason
    assert scenario.sent(usage_records(2)) == []


@pytest.mark.parametrize(
    "offsets", [[0, 1, 3], [1, 2, 3], [3, 4], [7]], ids=["last", "first", "all", "both ranges"]
)
def test_a_range_that_partly_vanished_halts(offsets: list[int]) -> None:
    """Without all of its records there is no telling what was sent."""
    scenario = inheriting((0, 3), (3, 5))
    commands = scenario.fetch([LogRecord(n, usage_records(1)[0].value) for n in offsets])

    assert batches_sent(commands) == []
    (reason,) = halts(commands)
    assert "[0,3) was sent by a former owner, and cannot be formed again as it was" in reason
    assert scenario.pipeline.buffered_bytes == 0
    scenario.rest()
    assert scenario.committed[P0] == (0, ledger_of((0, 3), (3, 5)))


@pytest.mark.parametrize("vanished", [0, 2], ids=["first", "last"])
def test_a_range_that_lost_a_dead_letter_at_its_edge_halts(vanished: int) -> None:
    """The items are all there and make the same body, but it would go under another key."""
    log = usage_records(5)
    log[vanished] = replace(log[vanished], value=None)
    scenario = inheriting((0, 3), log=log)
    commands = scenario.fetch([record for record in log if record.offset != vanished])

    assert batches_sent(commands) == []
    assert len(halts(commands)) == 1


@pytest.mark.parametrize("fetched", [1, 2])
def test_a_range_that_makes_another_body_halts(fetched: int) -> None:
    """A setting that changed what is sent would give the key another body."""
    scenario = inheriting((0, 2), (2, 4))
    others = [usage_records(1)[0], replace(usage_records(2)[1], value=b"{")]
    commands: list[Command] = []
    for position in range(0, 2, fetched):
        commands += scenario.fetch(others[position : position + fetched])

    assert batches_sent(commands) == []
    (reason,) = halts(commands)
    assert "INGESTER_UNKNOWN_MEMBERS or INGESTER_BODY_BYTES_MAX were changed" in reason


def test_a_builder_that_gathers_what_was_left_is_not_kept_waiting() -> None:
    """A paused partition goes on when nothing else can make room."""
    size = len(usage_records(1)[0].value or b"")
    limits = replace(LIMITS, buffer_bytes_max=2 * size)
    scenario = inheriting((0, 8), limits=limits)
    commands = scenario.raw(scenario.fetched(usage_records(4)))
    names = frozenset({P0})
    assert commands == [PausePartitions(names), ResumePartitions(names)]

    commands = scenario.raw(scenario.fetched(usage_records(4, first_offset=4)))

    assert [str(batch) for batch in batches_sent(commands)] == ["usage:0[0,8)"]
    assert PausePartitions(names) in commands
    assert ResumePartitions(names) not in commands


# -- zero-item batches --------------------------------------------------------------------------


def test_a_batch_without_items_has_its_receipt_only_after_it_was_recorded() -> None:
    """Or the next owner might cut the range otherwise, and receipt it twice."""
    scenario = Scenario(limits=RECEIPTS)
    write, commit = scenario.raw(scenario.fetched([LogRecord(offset, None) for offset in range(2)]))
    assert isinstance(write, WriteDeadLetters)
    assert scenario.written(write.batch) == []
    scenario.store(commit)

    assert scenario.raw(OffsetsCommitted()) == [WriteReceipt(write.batch, None, 0)]
    assert scenario.intended() == [(0, 2)]
    assert scenario.receipted(write.batch) == []
    assert scenario.offset() == 2


def test_a_batch_without_items_that_was_left_is_written_again() -> None:
    """Its dead letters, then its receipt."""
    log = [LogRecord(offset, None) for offset in range(2)]
    scenario = inheriting((0, 2), limits=RECEIPTS, log=log)
    (write,) = scenario.raw(scenario.fetched(log))
    assert isinstance(write, WriteDeadLetters)

    assert scenario.written(write.batch) == [WriteReceipt(write.batch, None, 0)]


# -- receipts -----------------------------------------------------------------------------------


def test_the_offset_waits_for_the_receipt() -> None:
    """Acknowledged is not settled: first the broker has what explains it."""
    scenario = Scenario(limits=RECEIPTS)
    (batch,) = scenario.sent(usage_records(2))
    assert scenario.answer(batch, DEFERRED) == []
    assert scenario.wake() == [SendBatch(batch, 2)]
    assert scenario.answer(batch) == [WriteReceipt(batch, ACKNOWLEDGED, 2)]
    scenario.rest()
    assert scenario.committed[P0] == (0, ledger_of((0, 2)))
    scenario.receipted(batch, 17)

    assert scenario.offset() == 2
    assert scenario.committed[P0][1] == Ledger(18, [])


def test_a_receipt_that_was_not_written_is_written_again() -> None:
    """After a backoff that grows; a drain waits for it."""
    scenario = Scenario(limits=RECEIPTS)
    (batch,) = scenario.sent(usage_records(2))
    (write,) = scenario.answer(batch)
    for wait in (0.15, 0.25, 0.45):
        before = scenario.now
        assert scenario.not_receipted(batch) == []
        assert not scenario.pipeline.drained
        commands: list[Command] = []
        while not commands:
            commands = scenario.wake()
        assert commands == [write]
        assert scenario.now == pytest.approx(before + wait)
    scenario.receipted(batch)

    assert scenario.offset() == 2


def test_a_receipt_follows_the_dead_letters_of_its_batch() -> None:
    """It says that nothing is left to do."""
    scenario = Scenario(limits=RECEIPTS)
    write, send = scenario.fetch([*usage_records(1), LogRecord(1, None)])
    assert isinstance(write, WriteDeadLetters)
    assert isinstance(send, SendBatch)
    assert scenario.answer(send.batch) == []

    assert scenario.written(send.batch) == [WriteReceipt(send.batch, ACKNOWLEDGED, 1)]


def test_the_ledger_points_below_every_receipt_that_may_be_missed() -> None:
    """Also below that of a batch whose receipt is appended though its answer is to come."""
    scenario = Scenario(limits=RECEIPTS)
    first, second, third = scenario.sent(usage_records(6))
    for batch in (first, second, third):
        scenario.answer(batch)
    scenario.receipted(third, 1)  # the second has offset 0, and nobody heard of it
    scenario.receipted(first, 2)
    scenario.rest()

    assert scenario.committed[P0][0] == 2
    assert scenario.committed[P0][1].receipts_offset == 0
    assert scenario.intended() == [(2, 4), (4, 6)]


def test_without_receipts_the_acknowledgement_settles() -> None:
    """And no receipt is asked for."""
    scenario = Scenario()
    (batch,) = scenario.sent(usage_records(2))

    assert scenario.answer(batch) == []
    assert scenario.offset() == 2


def test_a_receipt_says_whether_an_earlier_attempt_may_have_been_applied() -> None:
    """Be it a former owner's; one that certainly was not applied is no doubt."""
    scenario = Scenario(limits=RECEIPTS)
    sure, deferred, doubtful, timed_out = scenario.sent(usage_records(8))
    scenario.answer(deferred, DEFERRED)
    scenario.answer(doubtful, IN_DOUBT)
    scenario.answer(timed_out, InDoubt("no answer within 30 s", None, timed_out=True))
    again: list[Command] = []
    while len(batches_sent(again)) < 3:
        again += scenario.wake()
    former = inheriting((0, 2), limits=RECEIPTS)
    (inherited,) = former.sent(usage_records(2))

    assert scenario.answer(sure) == [WriteReceipt(sure, ACKNOWLEDGED, 1, in_doubt=False)]
    assert scenario.answer(deferred) == [WriteReceipt(deferred, ACKNOWLEDGED, 2, in_doubt=False)]
    for each in (doubtful, timed_out):
        assert scenario.answer(each) == [WriteReceipt(each, ACKNOWLEDGED, 2, in_doubt=True)]
    assert former.answer(inherited) == [WriteReceipt(inherited, ACKNOWLEDGED, 1, in_doubt=True)]


def test_a_refused_item_has_a_receipt_without_a_doubt() -> None:
    """A refusal that was believed says that nothing was applied before it, either."""
    limits = replace(RECEIPTS, batch=BatchLimits(1, 10_000, 5.0))
    scenario = Scenario(limits=limits)
    log = usage_records(1)
    (batch,) = scenario.sent(log)
    scenario.answer(batch, IN_DOUBT)
    assert scenario.wake() == [SendBatch(batch, 2)]
    assert scenario.answer(batch, REFUSED) == [ReadRange(batch)]
    (write,) = scenario.read(batch, log)
    assert isinstance(write, WriteDeadLetters)

    assert scenario.written(write.batch) == [WriteReceipt(write.batch, None, 2, in_doubt=False)]


# -- fenced -------------------------------------------------------------------------------------


def fenced(limits: Limits = RECEIPTS) -> tuple[Scenario, Batch, Batch]:
    """A worker whose commit was fenced while two batches were in flight."""
    scenario = Scenario(limits=limits)
    first, *others = scenario.sent(usage_records(6))
    scenario.answer(first)
    scenario.receipted(first)
    (commit,) = scenario.wake_raw()
    assert isinstance(commit, CommitOffsets)
    assert scenario.commit_failed(fenced=True) == []
    one, other = others
    return scenario, one, other


def test_a_fenced_worker_waits_for_the_receipts_of_what_is_acknowledged() -> None:
    """They spare the next owner a doubt; one that fails is written again. No commit follows."""
    scenario, one, other = fenced()
    (write,) = scenario.raw(AttemptEnded(one, ACKNOWLEDGED, 0.5))
    assert scenario.raw(AttemptEnded(other, IN_DOUBT, 0.5)) == []
    assert scenario.pipeline.in_flight == 0
    assert write == WriteReceipt(one, ACKNOWLEDGED, 1)
    assert not scenario.pipeline.drained
    for wait in (0.15, 0.25):
        before = scenario.now
        assert scenario.raw(ReceiptNotWritten(one, 0.5)) == []
        assert not scenario.pipeline.drained
        assert scenario.wake_raw() == [write]
        assert scenario.now == pytest.approx(before + wait)
    assert scenario.raw(ReceiptWritten(one, 7)) == []

    assert scenario.pipeline.drained
    assert scenario.pipeline.wake_at() is None


def test_a_fenced_worker_waits_for_what_is_in_flight_and_for_nothing_else() -> None:
    """What stays in doubt is the next owner's: it is not tried again."""
    scenario, one, other = fenced()
    assert not scenario.pipeline.drained
    assert scenario.raw(AttemptEnded(one, IN_DOUBT, 0.5)) == []
    assert not scenario.pipeline.drained
    assert scenario.raw(AttemptEnded(other, DEFERRED, 0.5)) == []

    assert scenario.pipeline.drained
    assert scenario.pipeline.wake_at() is None


def test_a_fenced_worker_has_no_receipts_to_wait_for_where_there_are_none() -> None:
    """Then the acknowledgement itself ends it."""
    scenario = Scenario()
    first, other = scenario.sent(usage_records(4))
    scenario.answer(first)
    scenario.wake_raw()
    scenario.commit_failed(fenced=True)
    assert scenario.raw(AttemptEnded(other, ACKNOWLEDGED, 0.5)) == []

    assert scenario.pipeline.drained
    assert scenario.pipeline.wake_at() is None


# -- in doubt -----------------------------------------------------------------------------------


def test_with_halt_an_attempt_in_doubt_is_the_last() -> None:
    """The partition halts, and the batch stays in the ledger for who resolves it."""
    scenario = Scenario(limits=HALT)
    first, second, third = scenario.sent(usage_records(6))
    scenario.answer(first)
    commands = scenario.answer(second, IN_DOUBT)
    assert halts(commands) == ["usage:0[2,4) is in doubt, and INGESTER_IN_DOUBT is halt: HTTP 500"]
    assert scenario.answer(third) == []
    scenario.rest()

    assert scenario.pipeline.drained
    assert scenario.committed[P0] == (2, ledger_of((2, 4), (4, 6)))


def test_with_halt_what_was_left_in_doubt_halts_at_once() -> None:
    """Nothing of the partition is sent; the others go on."""
    scenario = unassigned(HALT)
    commands = scenario.begin({P0: Start(0, ledger_of((0, 2)), {}), P1: Start(0, ledger_of(), {})})
    assert halts(commands) == ["in doubt, and INGESTER_IN_DOUBT is halt: [0,2)"]
    sent = batches_sent(scenario.fetch({P0: usage_records(2), P1: usage_records(2)}))

    assert [batch.partition for batch in sent] == [P1]


def test_with_halt_a_receipt_resolves_the_doubt() -> None:
    """What is receipted was acknowledged, whoever committed it or not."""
    limits = replace(HALT, receipts=True)
    scenario = inheriting((0, 2), receipted=[(0, 2)], limits=limits)

    assert scenario.offset() == 2
    assert scenario.pipeline.partitions[P0].halt_reason is None


def test_what_was_never_sent_is_left_to_nobody() -> None:
    """A rebalance takes the intents back of which no attempt was made, or certainly none arrived.

    With halt, they would stop the next owner for nothing.
    """
    limits = replace(HALT, requests_in_flight_max=3)
    scenario = Scenario(limits=limits)
    first, deferred, throttled = scenario.sent(usage_records(12))
    assert len(scenario.intended()) == 6
    scenario.revocation_started()
    scenario.answer(throttled, Throttled("HTTP 429", 429, 5.0))
    scenario.answer(deferred, DEFERRED)
    scenario.answer(first)
    scenario.rest()

    assert scenario.pipeline.drained
    assert scenario.committed[P0] == (2, ledger_of())


def test_a_refused_batch_is_left_to_nobody() -> None:
    """It was not applied: the next owner has no doubt about it."""
    scenario = Scenario(limits=HALT)
    (batch,) = scenario.sent(usage_records(2))
    scenario.answer(batch, REFUSED)
    scenario.revocation_started()

    assert scenario.committed[P0] == (0, ledger_of())
    assert scenario.pipeline.drained


def test_a_batch_in_doubt_that_somebody_else_refuses_stays_in_the_ledger() -> None:
    """A proxy that refuses knows nothing of the attempt before, which may have been applied."""
    scenario = Scenario()
    (batch,) = scenario.sent(usage_records(2))
    scenario.answer(batch, IN_DOUBT)
    assert scenario.wake() == [SendBatch(batch, 2)]
    scenario.answer(batch, Refused("HTTP 400: no", 400, "invalid", is_api=False))
    scenario.rest()

    assert scenario.committed[P0] == (0, ledger_of((0, 2)))


def test_a_revocation_amid_an_intent_commit_sends_nothing_of_it() -> None:
    """When it succeeds, another takes the intents back."""
    scenario = Scenario(limits=HALT)
    (commit,) = scenario.raw(scenario.fetched(usage_records(4)))
    assert isinstance(commit, CommitOffsets)
    assert scenario.raw(RevocationStarted()) == []
    assert not scenario.pipeline.drained
    scenario.store(commit)
    (retraction,) = scenario.raw(OffsetsCommitted())
    scenario.through([retraction])

    assert scenario.committed[P0] == (0, ledger_of())
    assert scenario.pipeline.drained
    assert scenario.pipeline.buffered_bytes == 0


def test_a_revocation_amid_an_intent_commit_that_fails_takes_it_back() -> None:
    """By the next commit already: the coordinator may have stored it all the same."""
    scenario = Scenario(limits=HALT)
    (commit,) = scenario.raw(scenario.fetched(usage_records(4)))
    assert isinstance(commit, CommitOffsets)
    scenario.store(commit)
    scenario.raw(RevocationStarted())
    assert scenario.commit_failed() == []
    (again,) = scenario.wake_raw()
    assert isinstance(again, CommitOffsets)
    scenario.store(again)

    assert scenario.committed[P0] == (0, ledger_of())
    scenario.raw(OffsetsCommitted())
    assert scenario.pipeline.drained


def test_what_was_left_in_doubt_stays_in_the_ledger_when_it_is_revoked_unsent() -> None:
    """This owner never sent it; a former one may have."""
    limits = replace(LIMITS, requests_in_flight_max=1)
    scenario = inheriting((0, 2), (2, 4), (4, 6), limits=limits)
    (first,) = scenario.sent(usage_records(6))
    scenario.revocation_started()
    scenario.answer(first)
    scenario.rest()

    assert scenario.committed[P0] == (2, ledger_of((2, 4), (4, 6)))


# -- for how long -------------------------------------------------------------------------------


@pytest.mark.parametrize(("over", "halted"), [(0, 0), (1, 1)], ids=["at the window", "beyond"])
def test_what_was_left_in_doubt_for_too_long_halts(over: int, halted: int) -> None:
    """PacSpace may have forgotten the key by now: sent again, it would count twice."""
    scenario = unassigned()
    start = Start(0, ledger_of((0, 2), intended_at=WALL_SECONDS - 86_400 - over), {})
    commands = scenario.begin({P0: start})

    assert len(halts(commands)) == halted
    assert len(scenario.sent(usage_records(2))) == 1 - halted


def test_a_receipt_has_no_window() -> None:
    """What is settled needs no key any more."""
    scenario = inheriting((0, 2), receipted=[(0, 2)], limits=RECEIPTS, intended_at=5)

    assert scenario.offset() == 2
    assert scenario.pipeline.partitions[P0].halt_reason is None


@pytest.mark.parametrize("decided", [False, True], ids=["doubted", "decided"])
def test_what_is_to_be_sent_again_has_a_window_from_then_on(decided: bool) -> None:
    """Whoever decides to send it again has asked; after a new doubt, the window begins anew."""
    limits = replace(LIMITS, idempotency_window_seconds=1000.0)
    scenario = unassigned(limits)
    commit = Commit(0, encode(0, ledger_of((0, 2), intended_at=5)))
    scenario.store(CommitOffsets({P0: commit}))
    notes = [resolution_of((0, 2), "resend", intended_at=5)] if decided else []
    assert len(halts(scenario.assign(P0, notes=notes))) == 1 - decided
    sent = scenario.sent(usage_records(2))
    assert len(sent) == decided
    for batch in sent:
        scenario.answer(batch, IN_DOUBT)
        assert scenario.wake() == [SendBatch(batch, 2)]
        scenario.now += 1000.0
        scenario.answer(batch, IN_DOUBT)
        assert len(halts(scenario.wake())) == 1


def test_what_stays_in_doubt_for_too_long_halts() -> None:
    """One owner may wait as long as many: from the first doubt on, the time runs."""
    limits = replace(LIMITS, idempotency_window_seconds=1000.0)
    scenario = Scenario(limits=limits)
    (batch,) = scenario.sent(usage_records(2))
    scenario.now += 5000.0  # an attempt that certainly did not arrive begins no doubt
    scenario.answer(batch, DEFERRED)
    assert scenario.wake() == [SendBatch(batch, 2)]
    begun = scenario.now
    commands: list[Command] = []
    while not halts(commands):
        if commands:
            scenario.answer(batch, IN_DOUBT)
        commands = scenario.wake() if commands else [SendBatch(batch, 2)]

    (reason,) = halts(commands)
    assert "in doubt for longer than 1000 s" in reason
    assert "usage:0[0,2)" in reason
    assert 1000.0 < scenario.now - begun < 1031.0
    scenario.rest()
    assert scenario.intended() == [(0, 2)]
    assert scenario.pipeline.in_flight == 0


def test_the_room_of_a_batch_that_is_given_up_is_used_at_once() -> None:
    """Or partitions that were paused for it would wait for ever: nothing else is under way."""
    limits = replace(LIMITS, idempotency_window_seconds=10.0, buffer_bytes_max=100)
    scenario = Scenario(P0, P1, limits=limits)
    (doubtful,) = scenario.sent(usage_records(2))
    (other,) = scenario.sent(usage_records(2), P1)
    scenario.answer(doubtful, IN_DOUBT)
    assert scenario.answer(other) == []
    assert scenario.wake() == [SendBatch(doubtful, 2)]
    scenario.rest()
    scenario.answer(doubtful, IN_DOUBT)
    scenario.now += 100.0

    commands = scenario.raw(Tick())

    assert len(halts(commands)) == 1
    assert commands[-1] == ResumePartitions(frozenset({P1}))
    assert scenario.pipeline.wake_at() is None


# -- the builder --------------------------------------------------------------------------------


def test_what_was_intended_is_formed_by_its_boundaries_alone() -> None:
    """A range larger than the limits of today is one batch, and they count from its end on."""
    limits = BatchLimits(2, 150, 1.0)
    frozen = deque([Intent(0, 5, 0, digest_of(usage_records(5)))])
    builder = BatchBuilder(PARTITION, 1, limits, event_decoder("refuse"), frozen=frozen)
    batches = builder.extend(usage_records(9))

    assert [str(batch) for batch in batches] == ["usage:0[0,5)", "usage:0[5,7)", "usage:0[7,9)"]
    assert len(batches[0].body) > 150
