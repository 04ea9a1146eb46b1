"""What becomes of a batch that PacSpace refuses: scenarios for each branch of the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random

import pytest
from msgspec.structs import replace

from ingester.core.batch import Batch, BatchLimits
from ingester.core.deadletter import DeadLetterLimit
from ingester.core.delivery import Deferred, InDoubt, Refused
from ingester.core.event import Rejection
from ingester.core.intent import INTENTS_MAX, Range, encode
from ingester.core.messages import (
    AttemptEnded,
    Command,
    Commit,
    CommitOffsets,
    Limits,
    OffsetsCommitted,
    PartitionReopened,
    PausePartitions,
    RangeRead,
    ReadRange,
    ResumePartitions,
    RevocationStarted,
    SendBatch,
    WriteDeadLetters,
    WriteReceipt,
)
from tests.support.lives import Life, World, first
from tests.support.records import LogRecord, event_json, usage_records
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
    resolution_of,
)

EIGHT = replace(LIMITS, batch=BatchLimits(8, 10_000, 5.0))
RECEIPTS = replace(EIGHT, receipts=True)
ONE = replace(LIMITS, batch=BatchLimits(1, 10_000, 5.0))
LOG = usage_records(64)
IN_DOUBT = InDoubt("HTTP 500", 500)
TIMED_OUT = InDoubt("no answer within 30 s", None, timed_out=True)
DEFERRED = Deferred("connection refused")
PROXY = Refused("HTTP 400: <html>", 400, "invalid", is_api=False, body=b"<html>")
TOO_LARGE = Refused("HTTP 413: too large", 413, "too_large", is_api=False)
CONFLICT = Refused("HTTP 409: no", 409, "conflict", is_api=True)
QUIET_SECONDS = LIMITS.session_timeout_seconds + LIMITS.request_timeout_seconds


def names(batches: Sequence[Batch]) -> list[Range]:
    return [batch.range for batch in batches]


def halved(
    scenario: Scenario, batch: Batch, log: Sequence[LogRecord] = LOG, outcome: Refused = REFUSED
) -> list[Batch]:
    """Refuse a batch; return the halves that are sent in its place."""
    scenario.now += 0.01  # the moment between two commits
    commands = scenario.answer(batch, outcome)
    if commands == [ReadRange(batch)]:
        commands = scenario.read(batch, log)
    return batches_sent(commands)


def settled(scenario: Scenario, records: Sequence[LogRecord]) -> list[Batch]:
    """Fetch records, acknowledge all that is sent for them, and let their linger end."""
    sent = scenario.sent(records)
    answered = 0
    while scenario.pipeline.wake_at() is not None or answered < len(sent):
        if answered < len(sent):
            sent += batches_sent(scenario.answer(sent[answered]))
            answered += 1
        else:
            sent += batches_sent(scenario.wake())
    return sent


def letter_of(commands: Sequence[Command]) -> WriteDeadLetters:
    (write,) = commands
    assert isinstance(write, WriteDeadLetters)
    return write


def inheriting(*ranges: Range, limits: Limits = EIGHT) -> Scenario:
    """A worker to which these ranges of the log were left."""
    scenario = Scenario(P1, limits=limits)
    scenario.revocation_started()
    scenario.revoked()
    offset = ranges[0][0]
    scenario.store(CommitOffsets({P0: Commit(offset, encode(offset, ledger_of(*ranges)))}))
    assert scenario.assign(P0) == []
    return scenario


# -- halves -------------------------------------------------------------------------------------


def test_a_refused_batch_is_read_again_and_halved() -> None:
    """Its records were not kept; each half has its own range, body and key."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    assert scenario.answer(batch, REFUSED) == [ReadRange(batch)]
    scenario.now += 0.01
    one, other = batches_sent(scenario.read(batch, LOG))

    assert names([one, other]) == [(0, 4), (4, 8)]
    assert [item["bits"] for item in json.loads(other.body)["items"]] == [5, 6, 7, 8]
    assert len({each.idempotency_key for each in (batch, one, other)}) == 3


def test_no_half_is_sent_before_a_commit_has_put_both_in_the_place_of_the_whole() -> None:
    """Or a successor would send the whole, of which a half was counted."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    scenario.answer(batch, REFUSED)
    scenario.now += 0.01
    (commit,) = scenario.raw(RangeRead(batch, LOG[:8]))
    assert isinstance(commit, CommitOffsets)
    scenario.store(commit)
    assert scenario.committed[P0] == (
        0,
        ledger_of((0, 4), (4, 8), intended_at=scenario.committed[P0][1].intents[0].intended_at),
    )

    assert names(batches_sent(scenario.raw(OffsetsCommitted()))) == [(0, 4), (4, 8)]


def test_halves_whose_commit_failed_are_not_sent() -> None:
    """They are recorded again first, after its backoff; the whole goes never more."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    scenario.answer(batch, REFUSED)
    scenario.now += 0.01
    scenario.raw(RangeRead(batch, LOG[:8]))
    for _ in range(3):
        assert scenario.commit_failed() == []
        (commit,) = scenario.wake_raw()

    assert names(batches_sent(scenario.through([commit]))) == [(0, 4), (4, 8)]


def test_halves_go_ahead_of_what_was_cut_before() -> None:
    """The partition is not committed past them."""
    limits = replace(LIMITS, requests_in_flight_max=1)
    scenario = Scenario(limits=limits)
    (batch,) = scenario.sent(LOG[:6])
    scenario.now += 0.01
    (read, other) = scenario.answer(batch, REFUSED)
    assert read == ReadRange(batch)
    assert isinstance(other, SendBatch)
    assert scenario.read(batch, LOG) == []

    sent = []
    for _ in range(3):
        (other,) = scenario.answer(other.batch)
        assert isinstance(other, SendBatch)
        sent += names([other.batch])
    assert sent == [(0, 1), (1, 2), (4, 6)]


@pytest.mark.parametrize("bad", [(0,), (3,), (7,), (0, 7), (2, 3, 4), tuple(range(8))], ids=repr)
def test_refused_items_alone_become_dead_letters(bad: tuple[int, ...]) -> None:
    """The others are counted once; each split asks twice at most for every bad item and level."""
    world = World(LOG[:8], EIGHT, refused=bad)
    Life(world).run()

    world.check()
    assert sorted(letter.record.offset for letter in world.letters) == list(bad)
    assert set(world.counted) == set(range(8)) - set(bad)
    assert len(world.requests) <= 1 + 2 * 3 * len(bad)
    assert len(set(world.requests)) == len(world.requests)


def test_a_refused_item_goes_with_pacspaces_answer() -> None:
    """Status and body as they came; the offset waits for it, and its receipt says what it was."""
    scenario = Scenario(limits=replace(RECEIPTS, batch=BatchLimits(2, 10_000, 5.0)))
    (batch,) = scenario.sent(LOG[:2])
    one, other = halved(scenario, batch)
    answered = Refused("HTTP 422: no account", 422, "invalid", is_api=True, body=b'{"message":""}')
    write = letter_of(scenario.answer(one, answered))

    (letter,) = write.letters
    assert letter.record == LOG[0]
    assert letter.rejection == Rejection("refused", "HTTP 422: no account")
    assert (letter.http_status, letter.http_body) == (422, b'{"message":""}')
    assert scenario.answer(other) == [WriteReceipt(other, ACKNOWLEDGED, 1)]
    scenario.receipted(other, 1)
    (receipt,) = scenario.written(write.batch)
    assert receipt == WriteReceipt(write.batch, None, 1)
    assert (write.batch.items_count, len(write.batch.dead_letters)) == (0, 1)
    scenario.rest()
    assert scenario.committed[P0][0] == 0
    scenario.receipted(write.batch, 2)
    assert scenario.offset() == 2
    assert scenario.pipeline.buffered_bytes == 0


def test_a_batch_of_one_item_is_not_split() -> None:
    """It is read once, and becomes the dead letter."""
    scenario = Scenario(limits=ONE)
    (batch,) = scenario.sent(LOG[:1])
    assert scenario.answer(batch, REFUSED) == [ReadRange(batch)]
    write = letter_of(scenario.read(batch, LOG))
    assert scenario.written(write.batch) == []

    assert scenario.offset() == 1


def test_a_refused_item_that_cannot_be_written_is_written_again() -> None:
    """After a backoff that grows; nothing is committed past it meanwhile."""
    scenario = Scenario(limits=ONE)
    (batch,) = scenario.sent(LOG[:1])
    scenario.answer(batch, REFUSED)
    write = letter_of(scenario.read(batch, LOG))
    for wait in (0.15, 0.25, 0.45):
        assert scenario.not_written(write.batch) == []
        assert scenario.pipeline.wake_at() == pytest.approx(scenario.now + wait)
        assert scenario.wake() == [write]
    assert scenario.committed[P0][0] == 0


def test_the_buffer_holds_what_was_split_until_it_is_settled() -> None:
    """No more and no less than its records take."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    before = scenario.pipeline.buffered_bytes
    one, other = halved(scenario, batch)
    assert scenario.pipeline.buffered_bytes == before
    scenario.answer(one)
    assert scenario.pipeline.buffered_bytes == other.buffered_bytes
    quarters = halved(scenario, other)
    assert scenario.pipeline.buffered_bytes == other.buffered_bytes
    for each in quarters:
        scenario.answer(each)

    assert scenario.pipeline.buffered_bytes == 0
    assert scenario.offset() == 8


# -- with dead letters of its own ---------------------------------------------------------------


@pytest.mark.parametrize("refused_first", [True, False], ids=["refused first", "written first"])
def test_a_batch_with_dead_letters_is_split_when_they_are_written(refused_first: bool) -> None:
    """Its halves do not write them again, and their receipts count them."""
    log = [*LOG[:2], LogRecord(2, None), *LOG[3:5], LogRecord(5, b"{")]
    limits = replace(RECEIPTS, batch=BatchLimits(6, 10_000, 5.0))
    scenario = Scenario(limits=limits)
    write, send = scenario.fetch(log)
    assert isinstance(write, WriteDeadLetters)
    assert isinstance(send, SendBatch)
    if refused_first:
        assert scenario.answer(send.batch, REFUSED) == []
        assert scenario.not_written(write.batch) == []
        assert scenario.wake() == [write]
        assert scenario.written(write.batch) == [ReadRange(send.batch)]
    else:
        assert scenario.written(write.batch) == []
        assert scenario.answer(send.batch, REFUSED) == [ReadRange(send.batch)]
    one, other = batches_sent(scenario.read(send.batch, log))

    assert names([one, other]) == [(0, 3), (3, 6)]
    assert [len(each.dead_letters) for each in (one, other)] == [1, 1]
    for offset, each in enumerate((one, other)):
        assert scenario.answer(each) == [WriteReceipt(each, ACKNOWLEDGED, 1)]
        scenario.receipted(each, offset)
    assert scenario.offset() == 6


def test_a_refused_item_beside_dead_letters_is_written_without_them() -> None:
    """They are in the dead-letter topic already, and in the receipt's count."""
    log = [LogRecord(0, None), LOG[1]]
    scenario = Scenario(limits=replace(LIMITS, receipts=True))
    write, send = scenario.fetch(log)
    assert isinstance(write, WriteDeadLetters)
    assert isinstance(send, SendBatch)
    scenario.written(write.batch)
    scenario.answer(send.batch, REFUSED)
    write = letter_of(scenario.read(send.batch, log))

    assert [letter.record.offset for letter in write.letters] == [1]
    assert [letter.record.offset for letter in write.batch.dead_letters] == [0, 1]
    assert scenario.written(write.batch) == [WriteReceipt(write.batch, None, 1)]


# -- whether a refusal is believed --------------------------------------------------------------


@pytest.mark.parametrize("outcome", [REFUSED, PROXY, TOO_LARGE], ids=["api", "proxy", "too large"])
@pytest.mark.parametrize("before", [None, DEFERRED], ids=["at once", "after a deferral"])
def test_a_first_refusal_is_believed(outcome: Refused, before: Deferred | None) -> None:
    """Whoever refuses: no attempt before can have been applied."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    if before is not None:
        scenario.answer(batch, before)
        assert batches_sent(scenario.wake()) == [batch]

    assert scenario.answer(batch, outcome) == [ReadRange(batch)]


def test_after_a_doubt_pacspace_itself_is_believed() -> None:
    """It looks the key up before it judges the body: what it refuses, it has not."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    scenario.answer(batch, IN_DOUBT)
    assert scenario.wake() == [SendBatch(batch, 2)]

    assert names(halved(scenario, batch)) == [(0, 4), (4, 8)]


@pytest.mark.parametrize("outcome", [PROXY, TOO_LARGE], ids=["proxy", "too large"])
def test_after_a_doubt_nobody_else_is_believed(outcome: Refused) -> None:
    """A proxy knows no keys: the partition halts, and the batch stays intended."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    scenario.answer(batch, IN_DOUBT)
    scenario.wake()
    (reason,) = halts(scenario.answer(batch, outcome))

    assert reason == (
        "usage:0[0,8) is in doubt (after an attempt whose end is not known, and not by PacSpace"
        f" itself): {outcome.reason}"
    )
    scenario.rest()
    assert scenario.intended() == [(0, 8)]
    assert scenario.pipeline.drained


@pytest.mark.parametrize("before", [None, DEFERRED, IN_DOUBT], ids=repr)
def test_a_conflict_is_never_split(before: Deferred | InDoubt | None) -> None:
    """Something was applied under its key: it stays intended, and the partition halts."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    if before is not None:
        scenario.answer(batch, before)
        scenario.wake()
    commands = scenario.answer(batch, CONFLICT)

    assert len(halts(commands)) == 1
    assert not any(isinstance(each, ReadRange) for each in commands)
    scenario.rest()
    assert scenario.intended() == [(0, 8)]


def test_a_conflict_of_a_half_leaves_the_half_alone_in_doubt() -> None:
    """The other is settled, and what was split is nobody's any more."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    one, other = halved(scenario, batch)
    assert len(halts(scenario.answer(other, CONFLICT))) == 1
    scenario.answer(one)
    scenario.rest()

    assert scenario.committed[P0][0] == 4
    assert scenario.intended() == [(4, 8)]


# -- not before it is quiet ---------------------------------------------------------------------


def test_what_was_left_is_not_split_before_former_owners_are_quiet() -> None:
    """An attempt of theirs may still arrive: it is sent again then, and only then believed."""
    scenario = inheriting((0, 8))
    begun = scenario.now
    (batch,) = scenario.sent(LOG[:8])
    assert scenario.answer(batch, REFUSED) == []
    assert not scenario.pipeline.drained
    assert scenario.wake() == [SendBatch(batch, 2)]
    assert scenario.now == begun + QUIET_SECONDS

    assert scenario.answer(batch, REFUSED) == [ReadRange(batch)]


def test_what_was_left_may_be_acknowledged_meanwhile() -> None:
    """Because the attempt did arrive."""
    scenario = inheriting((0, 8))
    (batch,) = scenario.sent(LOG[:8])
    scenario.answer(batch, REFUSED)
    assert scenario.wake() == [SendBatch(batch, 2)]
    scenario.answer(batch)

    assert scenario.offset() == 8


def test_what_was_left_long_ago_is_split_at_once() -> None:
    """The time runs from the assignment."""
    scenario = inheriting((0, 8))
    scenario.now += QUIET_SECONDS
    (batch,) = scenario.sent(LOG[:8])

    assert scenario.answer(batch, REFUSED) == [ReadRange(batch)]


def test_an_own_attempt_that_timed_out_may_still_arrive() -> None:
    """For as long again as a request may take, from when its answer was given up."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    scenario.answer(batch, TIMED_OUT)
    quiet_at = scenario.now + LIMITS.request_timeout_seconds
    assert scenario.wake() == [SendBatch(batch, 2)]
    assert scenario.answer(batch, REFUSED) == []
    assert scenario.wake() == [SendBatch(batch, 3)]
    assert scenario.now == quiet_at

    assert scenario.answer(batch, REFUSED) == [ReadRange(batch)]


def test_halves_of_what_was_left_have_nothing_to_wait_for() -> None:
    """No owner before has ever sent them."""
    scenario = inheriting((0, 8))
    scenario.now += QUIET_SECONDS
    (batch,) = scenario.sent(LOG[:8])
    one, _ = halved(scenario, batch)

    assert names(halved(scenario, one)) == [(0, 2), (2, 4)]


def test_what_is_put_off_stays_intended_when_it_is_revoked() -> None:
    """Its refusal was not the last word; the revocation does not make it one."""
    scenario = inheriting((0, 8))
    (batch,) = scenario.sent(LOG[:8])
    scenario.answer(batch, REFUSED)
    scenario.revocation_started()
    assert not scenario.pipeline.drained
    scenario.revoked()

    assert scenario.committed[P0] == (0, ledger_of((0, 8)))


def test_a_conflict_or_a_proxy_is_not_waited_with() -> None:
    """They halt at once, quiet or not."""
    for outcome in (CONFLICT, PROXY):
        scenario = inheriting((0, 8))
        (batch,) = scenario.sent(LOG[:8])
        assert len(halts(scenario.answer(batch, outcome))) == 1


# -- the records --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found",
    [
        [],
        LOG[1:8],
        LOG[:7],
        [*LOG[:3], *LOG[4:8]],
        [*LOG[:7], replace(LOG[7], value=event_json(99))],
    ],
    ids=["none", "without the first", "without the last", "without one", "another one"],
)
def test_a_range_that_lost_records_halts(found: list[LogRecord]) -> None:
    """Who is at fault cannot be found; it was not applied, so nothing of it is in doubt."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    scenario.answer(batch, REFUSED)
    commands = scenario.fact(RangeRead(batch, found))

    (reason,) = halts(commands)
    assert reason.startswith("usage:0[0,8) was refused, and the log does not hold all")
    scenario.rest()
    assert scenario.committed[P0] == (0, ledger_of())
    assert (scenario.pipeline.buffered_bytes, scenario.pipeline.drained) == (0, True)


def test_a_range_that_cannot_be_read_is_read_again() -> None:
    """After a backoff that grows, for as long as it takes."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    assert scenario.answer(batch, REFUSED) == [ReadRange(batch)]
    for wait in (0.15, 0.25, 0.45):
        assert scenario.not_read(batch) == []
        assert scenario.pipeline.wake_at() == pytest.approx(scenario.now + wait)
        assert not scenario.pipeline.drained
        assert scenario.wake() == [ReadRange(batch)]

    assert names(batches_sent(scenario.read(batch, LOG))) == [(0, 4), (4, 8)]


def test_records_of_a_former_assignment_are_nobodys() -> None:
    """Nor does a read that failed make another one."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    scenario.answer(batch, REFUSED)
    scenario.revocation_started()
    scenario.revoked()
    scenario.assign(P0)

    assert scenario.read(batch, LOG) == []
    assert scenario.not_read(batch) == []
    assert scenario.pipeline.wake_at() is None
    assert len(scenario.sent(LOG[:8])) == 1


# -- revocations and drains ---------------------------------------------------------------------


@pytest.mark.parametrize("step", ["in flight", "to be read", "read", "halves in flight"])
def test_a_revocation_gives_up_what_is_refused(step: str) -> None:
    """It was not applied: nothing of it is in doubt for the next owner, at any step."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    halves: list[Batch] = []
    if step != "in flight":
        scenario.answer(batch, REFUSED)
    if step == "read":
        scenario.raw(RangeRead(batch, LOG[:8]))
        scenario.commit_failed()
    elif step == "halves in flight":
        scenario.now += 0.01
        halves = batches_sent(scenario.read(batch, LOG))
    scenario.revocation_started()
    for each in halves or [batch]:
        assert scenario.answer(each, REFUSED) == []

    scenario.rest()
    assert scenario.pipeline.drained
    assert scenario.pipeline.buffered_bytes == 0
    assert scenario.committed[P0] == (0, ledger_of())


def test_a_believed_refusal_ends_the_doubt() -> None:
    """What PacSpace refused after an attempt in doubt is left to nobody as a doubt."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    scenario.answer(batch, IN_DOUBT)
    scenario.wake()
    assert scenario.answer(batch, REFUSED) == [ReadRange(batch)]
    scenario.revocation_started()

    assert scenario.committed[P0] == (0, ledger_of())
    assert scenario.pipeline.drained


def test_a_revocation_amid_the_commit_of_halves_sends_none_of_them() -> None:
    """Another commit takes them back."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    scenario.answer(batch, REFUSED)
    scenario.now += 0.01
    (commit,) = scenario.raw(RangeRead(batch, LOG[:8]))
    assert isinstance(commit, CommitOffsets)
    assert scenario.raw(RevocationStarted()) == []
    scenario.store(commit)
    assert scenario.intended() == [(0, 4), (4, 8)]
    (retraction,) = scenario.raw(OffsetsCommitted())
    assert scenario.through([retraction]) == []

    assert scenario.committed[P0] == (0, ledger_of())
    assert scenario.pipeline.drained


def test_a_revocation_leaves_the_half_that_is_in_doubt() -> None:
    """And the one before it, which has to be formed as it was; the one behind it is free."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    one, other = halved(scenario, batch)
    quarters = halved(scenario, one)
    scenario.revocation_started()
    scenario.answer(quarters[0], REFUSED)
    scenario.answer(quarters[1], IN_DOUBT)
    scenario.answer(other, REFUSED)
    scenario.revoked()

    assert scenario.intended() == [(0, 2), (2, 4)]


def test_a_drain_ends_what_was_begun() -> None:
    """Down to the dead letter; commits do not wait for their interval."""
    scenario = Scenario(limits=EIGHT)
    scenario.fetch(LOG[:2])
    (batch,) = batches_sent(scenario.drain())
    assert scenario.answer(batch, REFUSED) == [ReadRange(batch)]
    one, other = batches_sent(scenario.read(batch, LOG))
    write = letter_of(scenario.answer(one, REFUSED))
    assert not scenario.pipeline.drained
    scenario.written(write.batch)
    assert scenario.answer(other) == []

    assert scenario.committed[P0][0] == 2
    assert scenario.pipeline.drained


def test_a_drain_that_takes_too_long_leaves_what_is_refused() -> None:
    """Then nothing more is begun, and a bisection is not ended."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    one, other = halved(scenario, batch)
    scenario.drain()
    quarters = batches_sent(scenario.answer(one, REFUSED))
    scenario.revocation_started()
    assert scenario.answer(quarters[0], REFUSED) == []
    assert scenario.answer(quarters[1]) == []
    assert scenario.answer(other) == []

    scenario.rest()
    assert scenario.pipeline.drained
    assert scenario.intended() == [(0, 2), (2, 4), (4, 8)]


@pytest.mark.parametrize("step", ["to be read", "read", "halves in flight"])
def test_a_halt_gives_up_what_is_refused(step: str) -> None:
    """What comes of it later is nobody's; nothing of it is in doubt."""
    scenario = Scenario(limits=EIGHT)
    doubtful, batch = scenario.sent(LOG[:16])
    scenario.answer(batch, REFUSED)
    halves: list[Batch] = []
    if step == "read":
        scenario.raw(RangeRead(batch, LOG[8:16]))
        scenario.commit_failed()
    elif step == "halves in flight":
        scenario.now += 0.01
        halves = batches_sent(scenario.read(batch, LOG))
    assert len(halts(scenario.answer(doubtful, CONFLICT))) == 1
    for each in halves:
        assert scenario.answer(each, REFUSED) == []
    assert scenario.read(batch, LOG) == []

    scenario.rest()
    assert scenario.pipeline.drained
    assert scenario.committed[P0] == (0, ledger_of((0, 8)))


def test_with_halt_a_half_in_doubt_halts() -> None:
    """It alone stays in doubt, with what is before it."""
    scenario = Scenario(limits=replace(EIGHT, in_doubt="halt"))
    (batch,) = scenario.sent(LOG[:8])
    one, other = halved(scenario, batch)
    assert len(halts(scenario.answer(one, IN_DOUBT))) == 1
    assert scenario.answer(other, REFUSED) == []
    scenario.rest()

    assert scenario.intended() == [(0, 4)]


# -- a full ledger ------------------------------------------------------------------------------


def test_in_a_full_ledger_only_the_first_is_split() -> None:
    """The others wait until something is passed, and have their turn then."""
    scenario = Scenario()
    log = usage_records(200)
    lowest, second, third, fourth = scenario.sent(log)
    assert len(scenario.intended()) == 80
    scenario.now += 0.01
    scenario.answer(second, REFUSED)
    assert scenario.read(second, log) == []
    scenario.answer(lowest, REFUSED)
    assert scenario.read(lowest, log) == []
    (one,) = batches_sent(scenario.answer(third))
    (other,) = batches_sent(scenario.answer(fourth))
    assert names([one, other]) == [(0, 1), (1, 2)]
    assert scenario.intended()[:3] == [(0, 1), (1, 2), (2, 4)]
    assert len(scenario.intended()) == 81
    scenario.answer(one)
    scenario.answer(other)
    scenario.wake()

    assert scenario.committed[P0][0] == 2
    assert scenario.intended()[:3] == [(2, 3), (3, 4), (4, 6)]


@pytest.mark.parametrize(
    "pick", [first, lambda count: count - 1, Random(7).randrange], ids=["first", "last", "any"]
)
def test_when_everything_is_refused_the_ledger_never_overflows(pick: Callable[[int], int]) -> None:
    """Eighty batches to be taken apart, in whichever order; the whole topic is dead letters."""
    limits = replace(
        LIMITS,
        batch=BatchLimits(4, 10_000, 5.0),
        requests_in_flight_max=200,
        dead_letters=DeadLetterLimit(0, 1.0, 60.0),
    )
    log = usage_records(400)
    world = World(log, limits, refused=range(400))
    Life(world, pick).run()  # which looks at the size of each commit

    world.check()
    assert len(world.letters) == 400
    assert len(set(world.requests)) == len(world.requests)


def test_a_large_batch_is_taken_apart_in_a_full_ledger() -> None:
    """The last of its items refused: a level deeper each time, and never beyond the metadata."""
    limits = replace(LIMITS, batch=BatchLimits(1000, 10**6, 5.0), requests_in_flight_max=200)
    world = World(usage_records(1000), limits, refused=[0, 500, 999])
    former = Life(world)
    while len(world.requests) < 1:
        former.step()
    world.log = usage_records(1000 + 3 * INTENTS_MAX)
    world.limits = replace(limits, batch=BatchLimits(1, 10**6, 5.0))
    Life(world).run()

    world.check()
    assert sorted(letter.record.offset for letter in world.letters) == [0, 500, 999]


# -- too large ----------------------------------------------------------------------------------


def test_a_body_that_is_too_large_teaches_the_cut() -> None:
    """The batch is split all the same; those cut from then on are at most half as large."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    one, other = halved(scenario, batch, outcome=TOO_LARGE)
    sent = settled(scenario, LOG[8:32])

    assert names([one, other]) == [(0, 4), (4, 8)]
    assert [each.items_count for each in sent] == [3] * 8
    assert max(len(each.body) for each in sent) <= len(batch.body) // 2


def test_what_was_learned_is_tried_again_later() -> None:
    """After a minute without another refusal, batches fill as before."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    for each in halved(scenario, batch, outcome=TOO_LARGE):
        scenario.answer(each)
    learned_at = scenario.now
    scenario.now = learned_at + 59.9
    assert [each.items_count for each in settled(scenario, LOG[8:16])] == [3, 3, 2]
    scenario.now = learned_at + 62.0

    assert [each.items_count for each in settled(scenario, LOG[16:32])] == [7, 7, 2]


@pytest.mark.parametrize(
    ("count", "outcome"), [(8, REFUSED), (1, TOO_LARGE)], ids=["invalid", "single"]
)
def test_nothing_is_learned_from_other_refusals(count: int, outcome: Refused) -> None:
    """Nor from an item that alone is too large: smaller cuts would not help it."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = batches_sent(scenario.fetch(LOG[:count])) or batches_sent(scenario.wake())
    scenario.answer(batch, outcome)

    assert [each.items_count for each in scenario.sent(LOG[8:16])] == [8]


def test_an_item_that_is_too_large_alone_is_a_dead_letter() -> None:
    """With the 413 that says so."""
    scenario = Scenario(limits=ONE)
    (batch,) = scenario.sent(LOG[:1])
    scenario.answer(batch, TOO_LARGE)
    (letter,) = letter_of(scenario.read(batch, LOG)).letters

    assert (letter.rejection.code, letter.http_status) == ("refused", 413)


def test_an_item_beyond_what_was_learned_is_sent() -> None:
    """Whether the endpoint takes it, it alone can say."""
    limits = replace(LIMITS, batch=BatchLimits(2, 10_000, 5.0))
    scenario = Scenario(limits=limits)
    (batch,) = scenario.sent(LOG[:2])
    halved(scenario, batch, outcome=TOO_LARGE)
    large = [LogRecord(offset, event_json(1, key="k" * 500)) for offset in (2, 3)]

    assert names(scenario.sent(large)) == [(2, 3)]
    assert names(batches_sent(scenario.drain())) == [(3, 4)]


# -- too many dead letters ----------------------------------------------------------------------

FEW = DeadLetterLimit(count_max=2, share_max=0.5, window_seconds=60.0)


def tombstones(count: int, first_offset: int = 0) -> list[LogRecord]:
    return [LogRecord(offset, None) for offset in range(first_offset, first_offset + count)]


def test_a_run_of_bad_records_halts_behind_the_batch_that_passes_the_limit() -> None:
    """That one is still written; the rest stays in the log, and the buffer is empty."""
    scenario = Scenario(P0, P1, limits=replace(LIMITS, dead_letters=FEW))
    one, other, pause, halt = scenario.fetch(tombstones(7))
    assert isinstance(one, WriteDeadLetters)
    assert isinstance(other, WriteDeadLetters)
    assert names([one.batch, other.batch]) == [(0, 2), (2, 4)]
    assert pause == PausePartitions(frozenset({P0}))

    (reason,) = halts([halt])
    assert reason.startswith("4 of 4 records within 60 s are dead letters (INGESTER_DEAD_LETTERS_")
    assert "the last one: the record has no value (a tombstone)" in reason
    assert scenario.fetch(tombstones(2, 4)) == []
    for each in (one, other):
        assert scenario.written(each.batch) == []
    assert scenario.pipeline.buffered_bytes == 0
    assert scenario.fetch({P1: tombstones(2)}) != []
    assert scenario.pipeline.partitions[P1].halt_reason is None


def test_nothing_is_committed_past_dead_letters_that_are_not_written() -> None:
    """Those that pass the limit as little as any; once they are, whoever is next begins behind."""
    limits = replace(LIMITS, dead_letters=FEW)
    scenario = Scenario(limits=limits)
    write = letter_of(scenario.fetch(tombstones(2)))
    scenario.written(write.batch)
    write, *halt = scenario.fetch(tombstones(4, first_offset=2))
    assert isinstance(write, WriteDeadLetters)
    assert len(halts(halt)) == 1
    scenario.rest()
    assert scenario.committed[P0] == (2, ledger_of((2, 4), log=tombstones(4)))
    assert not scenario.pipeline.drained
    scenario.written(write.batch)

    scenario.rest()
    assert scenario.committed[P0] == (4, ledger_of())
    assert scenario.pipeline.drained


def test_what_was_cut_before_too_many_dead_letters_is_settled() -> None:
    """Sent for the first time, though its intent is recorded only now, and again as usual."""
    limits = replace(RECEIPTS, batch=BatchLimits(2, 10_000, 5.0), dead_letters=FEW)
    scenario = Scenario(limits=limits)
    commands = scenario.raw(scenario.fetched([*LOG[:2], *tombstones(6, 2)]))
    assert len(halts(commands)) == 1
    (batch,) = batches_sent(scenario.through(commands))
    scenario.answer(batch, DEFERRED)
    assert scenario.wake() == [SendBatch(batch, 2)]
    assert scenario.answer(batch) == [WriteReceipt(batch, ACKNOWLEDGED, 2)]
    scenario.receipted(batch)

    assert scenario.offset() == 2
    assert scenario.intended() == [(2, 4), (4, 6)]


def test_a_worse_halt_ends_what_too_many_dead_letters_have_left() -> None:
    """Nothing is begun behind a conflict; the partition is halted once, for the first reason."""
    limits = replace(LIMITS, dead_letters=FEW, requests_in_flight_max=1)
    scenario = Scenario(limits=limits)
    commands = scenario.fetch([*LOG[:4], *tombstones(6, 4)])
    (reason,) = halts(commands)
    (batch,) = batches_sent(commands)
    commands = scenario.answer(batch, CONFLICT)

    assert halts(commands) == batches_sent(commands) == []
    assert scenario.pipeline.partitions[P0].halt_reason == reason
    scenario.rest()
    assert scenario.pipeline.in_flight == 0
    assert scenario.intended()[0] == (0, 2)


def test_each_restart_makes_progress_through_too_many_dead_letters() -> None:
    """Nine with a limit of five: six of the first worker, three of its successor, each once."""
    limit = DeadLetterLimit(count_max=5, share_max=0.5, window_seconds=60.0)
    world = World(tombstones(9), replace(LIMITS, dead_letters=limit, receipts=True))
    one = Life(world)
    one.run()
    assert len(one.halts) == 1
    assert (world.commit.next_offset, len(world.letters)) == (6, 6)
    other = Life(world)
    other.run()

    assert other.halts == []
    world.check()
    assert [letter.record.offset for letter in world.letters] == list(range(9))


def test_each_decision_makes_progress_through_too_many_dead_letters() -> None:
    """The worker that halted goes on where it halted, with a new window."""
    limit = DeadLetterLimit(count_max=5, share_max=0.5, window_seconds=60.0)
    scenario = Scenario(limits=replace(LIMITS, dead_letters=limit))
    commands = scenario.fetch(tombstones(9))
    assert len(halts(commands)) == 1
    for each in commands:
        if isinstance(each, WriteDeadLetters):
            assert not scenario.pipeline.may_be_reopened(P0)
            scenario.written(each.batch)
    assert scenario.offset() == 6
    decision = resolution_of((6, 7), "resend", intended_at=None)
    start = scenario.start(P0, decision)
    assert scenario.fact(PartitionReopened(P0, start, WALL_SECONDS)) == [
        ResumePartitions(frozenset({P0}))
    ]
    scenario.written(letter_of(scenario.fetch(tombstones(3, 6))).batch)
    scenario.written(letter_of(scenario.drain()).batch)

    assert scenario.offset() == 9
    assert scenario.pipeline.partitions[P0].halt_reason is None


def test_too_many_dead_letters_in_what_was_left_end_no_doubt() -> None:
    """Its items may have been applied: they are sent again as they were, now or by the next."""
    log = [*tombstones(5), *usage_records(1, first_offset=5)]
    former = Scenario(limits=replace(EIGHT, batch=BatchLimits(6, 10_000, 5.0)))
    former.fetch(log)
    scenario = Scenario(P1, limits=replace(EIGHT, dead_letters=FEW))
    scenario.revocation_started()
    scenario.revoked()
    scenario.store(CommitOffsets(former.stored))
    scenario.assign(P0)
    commands = scenario.fetch(log)
    assert len(halts(commands)) == 1
    scenario.rest()
    assert scenario.intended() == [(0, 6)]

    (batch,) = batches_sent(commands)
    scenario.written(batch)
    scenario.answer(batch)
    assert scenario.offset() == 6


def test_a_good_batch_after_bad_ones_does_not_halt() -> None:
    """Though older good ones leave the window, by which the share grows."""
    scenario = Scenario(limits=replace(LIMITS, dead_letters=FEW))
    begun = scenario.now
    settled(scenario, LOG[:10])
    scenario.now = begun + 30.0
    scenario.fetch([*tombstones(1, 10), *usage_records(1, 11), *tombstones(2, 12)])
    scenario.now = begun + 61.0

    assert len(scenario.sent(usage_records(2, 14))) == 1
    assert scenario.pipeline.partitions[P0].halt_reason is None


def test_a_run_of_refused_items_halts_behind_the_one_that_passes_the_limit() -> None:
    """With PacSpace's words; what is refused is not in doubt, and read again by whoever is next."""
    limits = replace(ONE, dead_letters=FEW)
    scenario = Scenario(limits=limits)
    batches = scenario.sent(LOG[:4])
    commands: list[Command] = []
    for batch in batches:
        scenario.answer(batch, REFUSED)
        commands += scenario.read(batch, LOG)

    written = [each for each in commands if isinstance(each, WriteDeadLetters)]
    assert names([each.batch for each in written]) == [(0, 1), (1, 2), (2, 3)]
    (reason,) = halts(commands)
    assert reason.startswith("3 of 3 records within 60 s are dead letters")
    assert "the last one: HTTP 400: no" in reason
    for each in written:
        scenario.written(each.batch)
    scenario.rest()
    assert scenario.committed[P0] == (3, ledger_of())
    assert scenario.pipeline.drained
    assert scenario.pipeline.buffered_bytes == 0


def test_nothing_is_begun_behind_too_many_refused_items() -> None:
    """What is in flight by then is finished, and what was intended beyond is left to nobody."""
    few = replace(FEW, share_max=0.0)
    limits = replace(ONE, dead_letters=few, requests_in_flight_max=3)
    scenario = Scenario(limits=limits)
    sent = scenario.sent(LOG[:12])
    commands: list[Command] = []
    while not halts(commands):
        batch = sent.pop(0)
        sent += batches_sent(scenario.answer(batch, REFUSED))
        commands += scenario.read(batch, LOG)
    assert names(sent) == [(3, 4), (4, 5), (5, 6)]
    for each in commands:
        if isinstance(each, WriteDeadLetters):
            scenario.written(each.batch)
    scenario.answer(sent[0], DEFERRED)
    for batch in sent[1:]:
        assert scenario.answer(batch) == []

    scenario.rest()
    assert scenario.committed[P0] == (3, ledger_of((3, 4), (4, 5), (5, 6)))
    assert scenario.pipeline.drained


@pytest.mark.parametrize("items_max", [1, 8])
@pytest.mark.parametrize("seed", range(10))
def test_each_restart_makes_progress_through_too_many_refused_items(
    items_max: int, seed: int
) -> None:
    """Nine with a limit of five, alone or in batches: what was written is not written again."""
    limit = DeadLetterLimit(count_max=5, share_max=0.5, window_seconds=60.0)
    batch = BatchLimits(items_max, 10_000, 5.0)
    limits = replace(RECEIPTS, batch=batch, dead_letters=limit)
    world = World(LOG[:9], limits, refused=range(9))
    lives = [Life(world, Random(seed).randrange)]
    lives[0].run()
    assert len(lives[0].halts) == 1
    assert len(world.letters) == 6
    while lives[-1].halts:
        lives.append(Life(world, Random(seed + len(lives)).randrange))
        lives[-1].run()

    assert len(lives) == 2
    world.check()
    assert sorted(letter.record.offset for letter in world.letters) == list(range(9))


def test_refused_items_of_one_partition_halt_no_other() -> None:
    """Each has a window of its own, and a new one with each assignment."""
    limits = replace(ONE, dead_letters=FEW)
    scenario = Scenario(P0, P1, limits=limits)
    for _ in range(2):
        for name in (P0, P1):
            (batch, other) = scenario.sent(LOG[:2], name)
            for each in (batch, other):
                scenario.answer(each, REFUSED)
                assert halts(scenario.read(each, LOG)) == []
        scenario.revocation_started()
        scenario.revoked()
        scenario.assign(P0, P1)


def test_an_answer_of_a_batch_of_a_former_life_refuses_nothing() -> None:
    """It is about a batch that somebody else has by now."""
    scenario = Scenario(limits=EIGHT)
    (batch,) = scenario.sent(LOG[:8])
    scenario.revocation_started()
    scenario.revoked()
    scenario.assign(P0)

    assert scenario.raw(AttemptEnded(batch, REFUSED, 0.5)) == []
