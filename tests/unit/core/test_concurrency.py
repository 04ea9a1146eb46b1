"""How many requests may be open, answer by answer."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingester.core.concurrency import Concurrency

START = 4
ROUND_TRIP = 0.1


class Clock:
    """Answers a full set of requests per round trip; latency is what the limit makes of it."""

    def __init__(self, concurrency: Concurrency) -> None:
        self.concurrency = concurrency
        self.now = 1000.0
        self.limits: list[int] = []

    def round_trips(
        self, count: int, latency: Callable[[int], float] = lambda _: ROUND_TRIP, idle: int = 0
    ) -> None:
        """Let so many pass; `idle` requests fewer than the limit are open."""
        for _ in range(count):
            in_flight = max(1, self.concurrency.limit - idle)
            seconds = latency(self.concurrency.limit)
            self.now += seconds
            for _ in range(in_flight):
                self.concurrency.answered(self.now, seconds, in_flight)
            self.limits.append(self.concurrency.limit)


@pytest.fixture
def clock() -> Clock:
    return Clock(Concurrency(32))


def test_it_doubles_until_the_maximum(clock: Clock) -> None:
    """Each step is twice the one before, and takes few round trips."""
    clock.round_trips(12)

    assert list(dict.fromkeys(clock.limits)) == [4, 8, 16, 32]


@pytest.mark.parametrize("limit_max", [1, 2, 3, 5, 33])
def test_it_reaches_any_maximum_and_never_passes_it(limit_max: int) -> None:
    """Also one that is below where it starts, or between two steps."""
    clock = Clock(Concurrency(limit_max))
    clock.round_trips(200)

    assert max(clock.limits) == limit_max
    assert clock.limits.count(limit_max) >= 150


def test_at_the_maximum_it_stays_for_a_while(clock: Clock) -> None:
    """Eight rounds of full length, of two round trips here, before fewer are tried."""
    while clock.concurrency.limit < 32:
        clock.round_trips(1)
    clock.limits.clear()
    clock.round_trips(15)

    assert set(clock.limits) == {32}


def test_it_does_not_grow_while_there_is_less_to_send(clock: Clock) -> None:
    """That two of three requests are answered quickly does not say that a fourth would be."""
    clock.round_trips(100, idle=1)

    assert clock.limits == [START] * 100


def test_it_does_not_shrink_while_there_is_less_to_send(clock: Clock) -> None:
    """Latency that rises while few are open has other reasons; at most one trial is left open."""
    clock.round_trips(12)
    clock.round_trips(200, lambda _: 20 * ROUND_TRIP, idle=20)

    assert clock.concurrency.limit >= 24


def test_more_that_bring_no_more_answers_are_given_back(clock: Clock) -> None:
    """Where latency grows with the limit from 8 on, it settles near 8."""
    clock.round_trips(400, lambda limit: ROUND_TRIP * max(1.0, limit / 8))

    assert max(clock.limits[200:]) <= 10
    assert min(clock.limits[200:]) >= 6


def test_a_rise_that_fewer_do_not_cure_is_accepted(clock: Clock) -> None:
    """Fewer are tried at once, and returned from when latency is the same with them."""
    clock.round_trips(12)
    clock.limits.clear()
    clock.round_trips(20, lambda _: 5 * ROUND_TRIP)

    assert set(clock.limits) == {24, 32}
    assert clock.concurrency.limit == 32


def test_a_rise_is_looked_into_again_soon(clock: Clock) -> None:
    """However rare trials had become, after a rise they begin as frequent as ever."""
    clock.round_trips(1000)
    clock.limits.clear()
    clock.round_trips(30, lambda _: 5 * ROUND_TRIP)

    descents = [after < before for before, after in itertools.pairwise(clock.limits)]
    assert sum(descents) >= 4


def test_a_rise_that_fewer_cure_is_not(clock: Clock) -> None:
    """An endpoint that has become smaller gets less, step by step."""
    clock.round_trips(12)
    clock.round_trips(60, lambda limit: ROUND_TRIP * max(1.0, limit / 4))

    assert clock.concurrency.limit <= 8


def test_a_rise_that_is_no_jump_is_followed(clock: Clock) -> None:
    """Fewer are compared with what latency has become meanwhile, not with what it once was."""
    clock.round_trips(100)
    clock.round_trips(400, lambda limit: 1.8 * ROUND_TRIP * limit / 32)

    assert clock.concurrency.limit <= 8


def test_a_rise_is_looked_into_at_once(clock: Clock) -> None:
    """However rare trials have become, one follows within seconds when latency has doubled."""
    clock.round_trips(1000)
    clock.limits.clear()
    clock.round_trips(20, lambda limit: ROUND_TRIP * max(1.0, limit / 4))

    assert clock.concurrency.limit < 32


def test_chance_makes_no_descent(clock: Clock) -> None:
    """Where the latency of whole rounds goes up and down, a good one does not settle for fewer."""
    random = Random(7)
    clock.round_trips(12)
    clock.limits.clear()
    clock.round_trips(20_000, lambda _: ROUND_TRIP * random.uniform(0.6, 1.4))

    assert clock.limits.count(32) >= 0.8 * len(clock.limits)


def test_a_round_lasts_until_it_is_precise(clock: Clock) -> None:
    """Answers of very different latency are counted for longer before anything is tried."""

    def round_trips_until_a_trial(spread: float) -> int:
        clock.concurrency.held(clock.now)
        for count in range(100):
            if clock.concurrency.limit != START:
                return count
            clock.now += 1.0
            for latency in (1.0 - spread, 1.0 - spread, 1.0 + spread, 1.0 + spread):
                clock.concurrency.answered(clock.now, latency / 2, START)
        raise AssertionError("nothing was tried")

    assert round_trips_until_a_trial(0.0) < round_trips_until_a_trial(0.9)


def test_more_that_fail_more_are_given_back(clock: Clock) -> None:
    """Where what is beyond 8 fails as quickly as the rest succeeds, it settles near 8."""
    for _ in range(2000):
        clock.now += ROUND_TRIP
        limit = clock.concurrency.limit
        for index in range(limit):
            take = clock.concurrency.answered if index < 8 else clock.concurrency.failed
            take(clock.now, ROUND_TRIP, limit)
        clock.limits.append(limit)

    assert max(clock.limits[1000:]) <= 10
    assert min(clock.limits[1000:]) >= 6


def test_latency_that_may_be_its_own_is_borne(clock: Clock) -> None:
    """A worker short of CPU sees latency grow with the limit; up to 30 ms it keeps its requests."""
    clock.round_trips(1000, lambda limit: 0.0009 * limit)

    assert max(clock.limits) == 32
    assert clock.concurrency.limit >= 24


def test_a_refusal_begins_anew_below_what_was_refused(clock: Clock) -> None:
    """From a few up to nine tenths of it, and no further for a while."""
    clock.round_trips(12)
    clock.concurrency.refused(clock.now, 0.01, 32)
    assert clock.concurrency.limit == START
    clock.limits.clear()
    clock.round_trips(90)
    assert max(clock.limits) == 28

    clock.round_trips(200)
    assert clock.concurrency.limit == 32


def test_a_refused_trial_falls_back_to_what_was_good(clock: Clock) -> None:
    """That is known, so nothing has to be guessed."""
    clock.round_trips(5)
    assert clock.concurrency.limit == 16
    clock.concurrency.refused(clock.now + 0.01, 0.005, 12)
    clock.limits.clear()
    clock.round_trips(80)

    assert max(clock.limits) == 8


def test_requests_that_were_open_together_are_refused_once(clock: Clock) -> None:
    """Thirty-two answers of the same moment do not count as thirty-two refusals."""
    clock.round_trips(12)
    for in_flight in range(32, 0, -1):
        clock.concurrency.refused(clock.now, 0.01, in_flight)
    clock.limits.clear()
    clock.round_trips(90)

    assert max(clock.limits) == 28


def test_a_request_refused_alone_teaches_nothing(clock: Clock) -> None:
    """The probes of an hour of refusals leave the limit free to grow to its maximum."""
    for _ in range(100):
        clock.now += 30.0
        clock.concurrency.refused(clock.now, 0.01, 1)
    clock.round_trips(12)

    assert clock.concurrency.limit == 32


def test_patience_doubles_and_is_lost_again(clock: Clock) -> None:
    """A limit that is refused again and again is visited ever less, until long nothing was."""

    def wait_seconds() -> float:
        clock.concurrency.refused(clock.now, 0.01, 32)
        began = clock.now
        while clock.concurrency.limit < 32:
            clock.round_trips(1)
        return clock.now - began

    clock.round_trips(12)
    waits = [wait_seconds() for _ in range(6)]
    assert waits[0] < 25.0
    assert 40.0 < waits[2] < 70.0
    assert all(110.0 < wait < 150.0 for wait in waits[4:])

    clock.round_trips(7000)
    while clock.concurrency.limit < 32:
        clock.round_trips(1)
    assert wait_seconds() < 25.0


def test_an_outage_begins_anew(clock: Clock) -> None:
    """As many failures in a row as requests may be open, and the next to succeed go in few."""
    clock.round_trips(12)
    for _ in range(31):
        clock.concurrency.failed(clock.now, 0.01, 32)
    assert clock.concurrency.limit == 32
    clock.concurrency.failed(clock.now, 0.01, 32)
    assert clock.concurrency.limit == START

    clock.round_trips(12)
    assert clock.concurrency.limit == 32


def test_failures_between_successes_are_no_outage(clock: Clock) -> None:
    """A tenth of all requests may fail for ever, at any limit."""
    clock.round_trips(12)
    for index in range(5000):
        clock.now += 0.003
        take = clock.concurrency.failed if index % 10 == 0 else clock.concurrency.answered
        take(clock.now, ROUND_TRIP, clock.concurrency.limit)
        assert clock.concurrency.limit >= 24


def test_a_hold_begins_anew_and_teaches_nothing(clock: Clock) -> None:
    """A key that was revoked says nothing about load: afterwards the maximum is soon reached."""
    clock.round_trips(12)
    clock.concurrency.held(clock.now)
    assert clock.concurrency.limit == START

    clock.round_trips(12)
    assert clock.concurrency.limit == 32


def test_answers_from_before_a_change_do_not_count(clock: Clock) -> None:
    """What was sent before an outage may be answered after it, and moves nothing."""
    clock.round_trips(12)
    clock.concurrency.held(clock.now)
    for _ in range(1000):
        clock.now += 0.01
        clock.concurrency.answered(clock.now, clock.now - 1000.0, 32)

    assert clock.concurrency.limit == START


def test_failures_from_before_a_change_do_not_count(clock: Clock) -> None:
    """As many of them as there are answers do not spoil a single doubling."""
    while clock.concurrency.limit == START:
        clock.round_trips(1)
    for _ in range(8):
        clock.now += ROUND_TRIP
        for _ in range(clock.concurrency.limit):
            clock.concurrency.answered(clock.now, ROUND_TRIP, clock.concurrency.limit)
            clock.concurrency.failed(clock.now, clock.now - 1000.0, clock.concurrency.limit)

    assert clock.concurrency.limit == 32


@given(
    limit_max=st.integers(1, 64),
    facts=st.lists(
        st.tuples(
            st.sampled_from(["answered", "answered", "answered", "failed", "refused", "held"]),
            st.floats(0.0, 2.0),
            st.floats(0.0, 40.0),
            st.integers(1, 64),
            st.integers(1, 200),
        )
    ),
)
def test_it_stays_within_its_bounds(
    limit_max: int, facts: list[tuple[str, float, float, int, int]]
) -> None:
    """Whatever it is told, in whatever order, one request may be open and never too many."""
    concurrency = Concurrency(limit_max)
    now = 0.0
    for name, wait, latency, in_flight, times in facts:
        for _ in range(times):
            now += wait
            if name == "held":
                concurrency.held(now)
            else:
                getattr(concurrency, name)(now, latency, in_flight)
            assert 1 <= concurrency.limit <= limit_max


def test_it_keeps_nothing_per_answer(clock: Clock) -> None:
    """After a hundred thousand answers it takes as much memory as after a thousand."""
    clock.round_trips(100)
    clock.limits.clear()
    tracemalloc.start()
    try:
        for _ in range(3000):
            clock.round_trips(1)
            clock.limits.clear()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert grown < 5000
