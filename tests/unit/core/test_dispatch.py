"""Which batch is sent when."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ingester.core.batch import Batch, BatchBuilder, BatchLimits
from ingester.core.deadletter import DeadLetterLimit
from ingester.core.delivery import (
    Acknowledged,
    Blocked,
    Deferred,
    InDoubt,
    Outcome,
    Refused,
    Throttled,
)
from ingester.core.dispatch import Delivery, Dispatcher
from ingester.core.event import event_decoder
from ingester.core.messages import AttemptEnded, Limits
from ingester.core.offsets import Span
from ingester.core.record import TopicPartition
from tests.support.records import usage_records

ACKNOWLEDGED = Acknowledged("batch_1", 202)
DEFERRED = Deferred("connection refused")
IN_DOUBT = InDoubt("HTTP 500", 500)
BLOCKED = Blocked("HTTP 401", 401)
THROTTLED = Throttled("HTTP 429", 429, 10.0)
BACKOFF_MIN, BACKOFF_MAX = 0.1, 30.0


def dispatcher(requests_in_flight_max: int = 4) -> Dispatcher:
    return Dispatcher(
        Limits(
            batch=BatchLimits(1, 1000, 1.0),
            requests_in_flight_max=requests_in_flight_max,
            buffer_bytes_max=10_000,
            backoff_seconds_min=BACKOFF_MIN,
            backoff_seconds_max=BACKOFF_MAX,
            commit_interval_seconds=0.1,
            idempotency_window_seconds=3600.0,
            request_timeout_seconds=30.0,
            session_timeout_seconds=10.0,
            dead_letters=DeadLetterLimit(1000, 0.5, 60.0),
            in_doubt="retry",
            receipts=True,
        )
    )


def batches_of(count: int, partition: int = 0) -> list[Batch]:
    name = TopicPartition("usage", partition)
    limits = BatchLimits(1, 1000, 1.0)
    return BatchBuilder(name, 1, limits, event_decoder("refuse")).extend(usage_records(count))


def add(to: Dispatcher, count: int, partition: int = 0) -> list[Delivery]:
    deliveries = [
        Delivery(batch, Span(batch.first_offset, batch.next_offset, batch.intent_digest))
        for batch in batches_of(count, partition)
    ]
    for delivery in deliveries:
        to.add(delivery)
    return deliveries


def started(by: Dispatcher, now: float) -> list[Delivery]:
    return list(by.start(now))


def end(
    by: Dispatcher, delivery: Delivery, outcome: Outcome, now: float, jitter: float = 0.0
) -> None:
    by.ended(delivery, AttemptEnded(delivery.batch, outcome, jitter), now)


def end_all(by: Dispatcher, deliveries: Sequence[Delivery], outcome: Outcome, now: float) -> None:
    for delivery in deliveries:
        end(by, delivery, outcome, now)


def test_no_more_requests_are_in_flight_than_allowed() -> None:
    """The rest waits for an answer, not for a time."""
    dispatching = dispatcher(2)
    first, second, third = add(dispatching, 3)

    assert started(dispatching, 0.0) == [first, second]
    assert started(dispatching, 99.0) == []
    assert dispatching.wake_at() is None
    end(dispatching, first, ACKNOWLEDGED, 99.0)
    assert started(dispatching, 99.0) == [third]
    assert dispatching.in_flight == 2


def test_partitions_take_turns() -> None:
    """A partition with many batches does not starve the one with few."""
    dispatching = dispatcher(4)
    many = add(dispatching, 3, partition=0)
    few = add(dispatching, 1, partition=1)

    assert started(dispatching, 0.0) == [many[0], few[0], many[1], many[2]]


def test_a_failed_attempt_is_made_again_after_its_backoff() -> None:
    """Not before it, at it, and counted."""
    dispatching = dispatcher()
    (delivery,) = add(dispatching, 1)
    started(dispatching, 0.0)
    end(dispatching, delivery, DEFERRED, 5.0, jitter=0.5)

    due = dispatching.wake_at()
    assert due == pytest.approx(5.15)
    assert due is not None
    assert started(dispatching, due - 0.001) == []
    assert started(dispatching, due) == [delivery]
    assert delivery.attempts == 2
    assert dispatching.wake_at() is None


def test_backoffs_grow_from_attempt_to_attempt() -> None:
    """An endpoint that is down is asked ever less often."""
    dispatching = dispatcher()
    (delivery,) = add(dispatching, 1)
    now, waits = 0.0, []
    for _ in range(12):
        started(dispatching, now)
        end(dispatching, delivery, IN_DOUBT, now, jitter=0.999999)
        due = dispatching.wake_at()
        assert due is not None
        waits.append(round(due - now, 1))
        now = due

    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0, 30.0]


def test_an_endpoint_that_is_down_sees_no_more_than_may_be_open() -> None:
    """Batches in backoff keep their slots, so that the others are not tried in vain."""
    dispatching = dispatcher(2)
    first = add(dispatching, 10)[:2]
    assert started(dispatching, 0.0) == first
    end_all(dispatching, first, DEFERRED, 0.0)

    assert started(dispatching, 0.05) == []
    assert started(dispatching, 0.1) == first


def test_an_endpoint_that_is_down_sees_no_more_of_many_partitions() -> None:
    """A success before, and a few failing batches of each, do not let through any more."""
    dispatching = dispatcher(4)
    add(dispatching, 1)
    end_all(dispatching, started(dispatching, 0.0), ACKNOWLEDGED, 0.0)
    for partition in range(20):
        add(dispatching, 1, partition)
    attempts = 0
    while several := started(dispatching, 0.0):
        end_all(dispatching, several, DEFERRED, 0.0)
        attempts += len(several)

    assert attempts == 4
    assert len(started(dispatching, 100.0)) == 4


def test_a_success_after_an_outage_ends_the_backoffs() -> None:
    """What failed with everything else is tried at once when something succeeds again."""
    dispatching = dispatcher(2)
    first, second = add(dispatching, 2)
    started(dispatching, 0.0)
    for now in (0.0, 100.0):
        end_all(dispatching, [first, second], DEFERRED, now)
        assert len(started(dispatching, now + 50)) == 2
    end(dispatching, first, DEFERRED, 200.0, jitter=0.999)
    end(dispatching, second, ACKNOWLEDGED, 200.0)

    assert started(dispatching, 200.0) == [first]


def test_a_batch_that_fails_alone_stays_backed_off() -> None:
    """The successes of others say nothing about it."""
    dispatching = dispatcher(4)
    (bad,) = add(dispatching, 1)
    now = 0.0
    for _ in range(4):
        add(dispatching, 6)
        under_way = started(dispatching, now)
        assert bad in under_way
        end(dispatching, bad, IN_DOUBT, now, jitter=0.5)
        while good := [each for each in under_way if each is not bad]:
            now += 0.01
            end_all(dispatching, good, ACKNOWLEDGED, now)
            under_way = started(dispatching, now)
            assert bad not in under_way
        now += 10.0


@pytest.mark.parametrize("outcome", [DEFERRED, IN_DOUBT], ids=["deferred", "in doubt"])
def test_an_end_of_an_outage_does_not_undercut_retry_after(outcome: Outcome) -> None:
    """A batch that the endpoint wants later is sent later, whatever succeeds meanwhile."""
    dispatching = dispatcher(3)
    slow, other, third = add(dispatching, 3)
    started(dispatching, 0.0)
    end(dispatching, slow, InDoubt("HTTP 202", 202, 60.0), 0.0)
    for now in (0.0, 10.0):
        end(dispatching, other, outcome, now)
        assert started(dispatching, now + 5.0) == [other]
    end(dispatching, other, outcome, 20.0, jitter=0.999)
    end(dispatching, third, ACKNOWLEDGED, 20.0)

    assert started(dispatching, 20.0) == [other]
    assert started(dispatching, 59.9) == []
    assert started(dispatching, 60.0) == [slow]


@pytest.mark.parametrize(
    ("outcome", "seconds"),
    [
        (THROTTLED, 10.0),
        (Throttled("HTTP 429", 429, 0.0), BACKOFF_MIN),
        (Throttled("HTTP 429", 429, None), BACKOFF_MIN),
        (BLOCKED, BACKOFF_MIN),
    ],
    ids=["Retry-After", "Retry-After 0", "no Retry-After", "blocked"],
)
def test_a_hold_stops_everything(outcome: Outcome, seconds: float) -> None:
    """Neither the batch nor any other goes before the hold ends; a wait of nothing is no wait."""
    dispatching = dispatcher(2)
    deliveries = add(dispatching, 5)
    started(dispatching, 0.0)
    end(dispatching, deliveries[0], outcome, 1.0)
    end(dispatching, deliveries[1], ACKNOWLEDGED, 1.0)

    until = dispatching.wake_at()
    assert until is not None
    assert until >= 1.0 + seconds
    assert started(dispatching, until - 0.001) == []
    assert started(dispatching, until) == [deliveries[0]]


@pytest.mark.parametrize(
    ("outcome", "then"), [(BLOCKED, 4), (THROTTLED, 3)], ids=["blocked", "throttled"]
)
def test_after_a_hold_one_request_goes_alone(outcome: Outcome, then: int) -> None:
    """Until it succeeds; then as many may go as before, or fewer if there were too many."""
    dispatching = dispatcher(4)
    deliveries = add(dispatching, 8)
    end_all(dispatching, started(dispatching, 0.0), outcome, 49.0)

    (probe,) = started(dispatching, 60.0)
    assert started(dispatching, 61.0) == []
    assert dispatching.wake_at() is None
    end(dispatching, probe, ACKNOWLEDGED, 61.0)
    assert len(started(dispatching, 61.0)) == then
    assert probe in deliveries


def test_the_end_of_a_hold_does_not_wait_for_a_longer_backoff() -> None:
    """Whatever can start first says when to wake."""
    dispatching = dispatcher()
    backed_off, held = add(dispatching, 2)
    started(dispatching, 0.0)
    end(dispatching, backed_off, InDoubt("HTTP 202: pending", 202, 50.0), 0.0)
    end(dispatching, held, THROTTLED, 0.0)

    due = dispatching.wake_at()
    assert due is not None
    assert due < 50.0
    assert started(dispatching, due) == [held]


def test_requests_from_before_the_hold_keep_the_probe_waiting() -> None:
    """While answers are still to come nothing more is sent, however long they take."""
    dispatching = dispatcher(4)
    add(dispatching, 8)
    first, *others = started(dispatching, 0.0)
    end(dispatching, first, BLOCKED, 0.0)

    assert started(dispatching, 100.0) == []
    assert dispatching.wake_at() is None
    end_all(dispatching, others[:2], BLOCKED, 100.0)
    assert started(dispatching, 200.0) == []
    end(dispatching, others[2], DEFERRED, 200.0)
    assert len(started(dispatching, 300.0)) == 1


def test_an_outage_after_a_hold_sees_no_more_than_may_be_open() -> None:
    """Probes that end in a backoff keep their slots, too."""
    dispatching = dispatcher(3)
    add(dispatching, 20)
    end_all(dispatching, started(dispatching, 0.0), THROTTLED, 0.0)
    probes = 0
    while probe := started(dispatching, 20.0):
        (each,) = probe
        end(dispatching, each, DEFERRED, 20.0)
        probes += 1

    assert probes == 3


def test_holds_grow_until_a_success() -> None:
    """Each probe that is refused doubles the wait; requests that were open together count once."""
    dispatching = dispatcher(4)
    add(dispatching, 8)
    now, waits = 0.0, []
    under_way = started(dispatching, now)
    for _ in range(5):
        end_all(dispatching, under_way[:-1], BLOCKED, now)
        end(dispatching, under_way[-1], BLOCKED, now, jitter=0.999999)
        until = dispatching.wake_at()
        assert until is not None
        waits.append(round(until - now, 1))
        now = until
        under_way = started(dispatching, now)

    assert waits == [3.2, 6.4, 12.8, 25.6, 30.0]


def test_blocked_is_said_until_a_probe_succeeds() -> None:
    """An answer from before the hold does not lift it; one after it does."""
    dispatching = dispatcher(2)
    first, second, _ = add(dispatching, 3)
    started(dispatching, 0.0)
    end(dispatching, first, BLOCKED, 0.0, jitter=0.5)
    end(dispatching, second, ACKNOWLEDGED, 0.0)
    assert dispatching.blocked == BLOCKED

    (probe,) = started(dispatching, 100.0)
    end(dispatching, probe, ACKNOWLEDGED, 100.0)

    assert dispatching.blocked is None


def test_a_longer_wait_extends_the_hold_and_a_shorter_one_does_not_end_it() -> None:
    """The latest moment that any answer named counts."""
    dispatching = dispatcher(3)
    add(dispatching, 3)
    one, two, three = started(dispatching, 0.0)
    end(dispatching, one, Throttled("", 429, 50.0), 0.0)
    end(dispatching, two, Throttled("", 429, 5.0), 0.0)
    end(dispatching, three, Throttled("", 429, 90.0), 0.0)

    assert started(dispatching, 89.9) == []
    assert len(started(dispatching, 91.0)) == 1


def test_a_refused_batch_is_gone() -> None:
    """It frees its slot and is not tried again."""
    dispatching = dispatcher(1)
    first, second = add(dispatching, 2)
    started(dispatching, 0.0)
    end(dispatching, first, Refused("HTTP 400", 400, "invalid", is_api=True), 0.0)

    assert started(dispatching, 0.0) == [second]
    end(dispatching, second, ACKNOWLEDGED, 0.0)
    assert dispatching.in_flight == 0
    assert started(dispatching, 1e9) == []


def test_what_may_have_been_written_is_not_forgotten() -> None:
    """Ready, deferred and held batches of the partition go; those in doubt and others' stay."""
    dispatching = dispatcher(4)
    deferred, doubtful, held, ready = add(dispatching, 4)
    (other,) = add(dispatching, 1, partition=1)
    in_flight = started(dispatching, 0.0)
    assert in_flight == [deferred, other, doubtful, held]
    end(dispatching, deferred, DEFERRED, 0.0)
    end(dispatching, doubtful, IN_DOUBT, 0.0)
    end(dispatching, held, THROTTLED, 0.0)

    forgotten = dispatching.forget_unsent(TopicPartition("usage", 0))

    assert {id(each) for each in forgotten} == {id(each) for each in (deferred, held, ready)}
    end(dispatching, other, ACKNOWLEDGED, 0.0)
    assert started(dispatching, 100.0) == [doubtful]
    end(dispatching, doubtful, ACKNOWLEDGED, 100.0)
    assert dispatching.in_flight == 0
    assert started(dispatching, 1e9) == []


def test_what_is_forgotten_fails_no_more() -> None:
    """A partition that begins again has turns, however many of it failed before."""
    dispatching = dispatcher(4)
    add(dispatching, 4)
    end_all(dispatching, started(dispatching, 0.0), DEFERRED, 0.0)
    assert len(dispatching.forget_unsent(TopicPartition("usage", 0))) == 4
    anew = add(dispatching, 1)

    assert started(dispatching, 0.0) == anew


def test_doubt_outlasts_later_refusals() -> None:
    """A batch that was in doubt once is not forgotten because a later attempt was throttled."""
    dispatching = dispatcher()
    (delivery,) = add(dispatching, 1)
    started(dispatching, 0.0)
    end(dispatching, delivery, IN_DOUBT, 0.0)
    started(dispatching, 1.0)
    end(dispatching, delivery, THROTTLED, 1.0)

    assert dispatching.forget_unsent(TopicPartition("usage", 0)) == []
    assert started(dispatching, 100.0) == [delivery]


def test_after_clearing_nothing_is_left_but_the_hold() -> None:
    """Another assignment begins with what is known of the endpoint."""
    dispatching = dispatcher(2)
    add(dispatching, 5)
    first, _ = started(dispatching, 0.0)
    end(dispatching, first, THROTTLED, 0.0)
    dispatching.clear()
    assert dispatching.in_flight == 0
    assert dispatching.wake_at() is None

    add(dispatching, 5)
    assert started(dispatching, 9.9) == []
    assert len(started(dispatching, 20.0)) == 1


def test_a_service_that_asks_for_a_wait_gets_it_from_everybody() -> None:
    """A 503 with Retry-After holds batches that were never tried, until its time."""
    dispatching = dispatcher(2)
    first, second = add(dispatching, 2)
    assert started(dispatching, 0.0) == [first, second]
    end(dispatching, second, ACKNOWLEDGED, 0.0)
    end(dispatching, first, InDoubt("503", 503, 7.0), 0.0)
    (third,) = add(dispatching, 1)

    assert started(dispatching, 6.999) == []
    assert started(dispatching, 9.0) == [first]
    end(dispatching, first, ACKNOWLEDGED, 9.0)
    assert started(dispatching, 9.0) == [third]


def test_a_pending_batch_keeps_no_other_waiting() -> None:
    """A 202 that asks for a wait is about one key alone."""
    dispatching = dispatcher(2)
    first, second = add(dispatching, 2)
    assert started(dispatching, 0.0) == [first, second]
    end(dispatching, first, InDoubt("pending", 202, 7.0), 0.0)
    end(dispatching, second, ACKNOWLEDGED, 0.0)
    (third,) = add(dispatching, 1)

    assert started(dispatching, 1.0) == [third]


def test_a_partition_that_keeps_failing_stops_no_other() -> None:
    """Its batches wait without holding slots, it starts no new ones, and it comes back."""
    dispatching = dispatcher(4)
    bad = add(dispatching, 6, partition=0)
    add(dispatching, 40, partition=1)
    settled = 0
    for step in range(40):
        now = step * 0.01
        for delivery in started(dispatching, now):
            is_bad = delivery in bad
            end(dispatching, delivery, IN_DOUBT if is_bad else ACKNOWLEDGED, now, jitter=0.5)
            settled += not is_bad

    assert settled == 40
    assert [delivery.attempts > 0 for delivery in bad] == [True, True, False, False, False, False]
    for _ in bad:
        now += 100.0
        for each in started(dispatching, now):
            end(dispatching, each, ACKNOWLEDGED, now)
    assert all(delivery.attempts > 0 for delivery in bad)


def test_it_runs_short_of_what_has_turns() -> None:
    """Batches of a partition that has none do not count, and count again when it has."""
    dispatching = dispatcher(2)
    add(dispatching, 5)
    failing = started(dispatching, 0.0)
    assert not dispatching.runs_short
    end_all(dispatching, failing, IN_DOUBT, 0.0)
    assert dispatching.runs_short

    end_all(dispatching, started(dispatching, 10.0), ACKNOWLEDGED, 10.0)
    assert not dispatching.runs_short


def test_a_batch_that_is_let_go_twice_was_failing_once() -> None:
    """Afterwards as few that fail park its partition as before."""
    dispatching = dispatcher(4)
    (twice,) = add(dispatching, 1)
    for now, outcome in ((0.0, IN_DOUBT), (10.0, Refused("no", 400, "invalid", is_api=True))):
        assert started(dispatching, now) == [twice]
        end(dispatching, twice, outcome, now)
    dispatching.put_off(twice, 20.0)
    assert started(dispatching, 20.0) == [twice]
    end(dispatching, twice, ACKNOWLEDGED, 20.0)

    failing = add(dispatching, 2)
    assert started(dispatching, 20.0) == failing
    end_all(dispatching, failing, IN_DOUBT, 20.0)
    add(dispatching, 1)
    assert started(dispatching, 20.0) == []


def test_one_request_at_a_time_is_not_lost_to_one_bad_batch() -> None:
    """Even with a single slot a batch that fails lets those of others pass."""
    dispatching = dispatcher(1)
    (bad,) = add(dispatching, 1, partition=0)
    good = add(dispatching, 3, partition=1)
    (first,) = started(dispatching, 0.0)
    assert first is bad
    end(dispatching, bad, InDoubt("HTTP 500", 500), 0.0, jitter=0.9)

    for each in good:
        assert started(dispatching, 0.01) == [each]
        end(dispatching, each, ACKNOWLEDGED, 0.01)
    assert started(dispatching, 0.01) == []
    assert started(dispatching, 0.3) == [bad]


# -- what was refused ---------------------------------------------------------------------------


def test_what_was_split_goes_ahead_of_its_partition() -> None:
    """It cannot be committed past it; and halves keep their order."""
    dispatching = dispatcher(2)
    add(dispatching, 4)
    first, second = (Delivery(each.batch, each.span) for each in add(dispatcher(), 2))
    for half in (first, second):
        half.records = usage_records(1)
        dispatching.add(half)

    assert started(dispatching, 0.0) == [first, second]


def test_what_is_put_off_is_tried_at_its_time() -> None:
    """Not before it, though others succeed after an outage; meanwhile it is not forgotten."""
    dispatching = dispatcher(2)
    first, second = add(dispatching, 2)
    started(dispatching, 0.0)
    end(dispatching, first, IN_DOUBT, 0.0)
    assert started(dispatching, 1.0) == [first]
    end(dispatching, first, Refused("HTTP 400", 400, "invalid", is_api=True), 1.0)
    dispatching.put_off(first, 50.0)
    for now in (1.0, 11.0, 21.0):
        end(dispatching, second, DEFERRED, now)
        assert started(dispatching, now + 5.0) == [second]
    end(dispatching, second, ACKNOWLEDGED, 26.0)
    assert dispatching.forget_unsent(first.batch.partition) == []

    assert started(dispatching, 49.9) == []
    assert dispatching.wake_at() == 50.0
    assert started(dispatching, 50.0) == [first]


@pytest.mark.parametrize("timed_out", [True, False])
def test_only_an_attempt_that_timed_out_may_still_arrive(timed_out: bool) -> None:
    """For as long again as a request may take; an answer, even a wrong one, has arrived."""
    dispatching = dispatcher()
    (delivery,) = add(dispatching, 1)
    started(dispatching, 0.0)
    end(dispatching, delivery, InDoubt("no answer", None, timed_out=timed_out), 7.0)

    assert delivery.quiet_at == (37.0 if timed_out else 0.0)


def test_a_time_out_does_not_shorten_what_former_owners_need() -> None:
    """The later of both counts."""
    dispatching = dispatcher()
    (delivery,) = add(dispatching, 1)
    delivery.quiet_at = 1000.0
    started(dispatching, 0.0)
    end(dispatching, delivery, InDoubt("no answer", None, timed_out=True), 7.0)

    assert delivery.quiet_at == 1000.0
