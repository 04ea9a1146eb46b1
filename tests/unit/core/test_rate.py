"""How many requests a second may start."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingester.core.rate import Rate


def starts(rate: Rate, since: float, until: float) -> list[float]:
    """Start whatever may start, as early as it may."""
    times = []
    now = since
    while (now := max(now, rate.start_at)) < until:
        rate.take(now)
        times.append(now)
    return times


@given(
    requests_per_second=st.floats(0.01, 5000.0),
    begin=st.floats(0.0, 1e7),
    waits=st.lists(st.one_of(st.just(0.0), st.floats(0.0, 0.1), st.floats(0.0, 100.0))),
)
def test_no_window_has_more_than_the_rate_and_one_burst(
    requests_per_second: float, begin: float, waits: list[float]
) -> None:
    """Whatever the pauses between them, between any two starts there are at most so many."""
    rate = Rate(requests_per_second)
    burst = max(1.0, requests_per_second * 0.1)
    now = begin
    times = []
    for wait in waits:
        now = max(now + wait, rate.start_at)
        rate.take(now)
        times.append(now)

    for first, early in enumerate(times):
        for last, late in enumerate(times[first:], first):
            count = last - first + 1
            assert count <= (late - early) * requests_per_second + burst + 1e-4  # rounding of 1e7 s


@given(requests_per_second=st.floats(1.0, 1000.0), begin=st.floats(0.0, 1e6))
def test_all_that_is_allowed_can_start(requests_per_second: float, begin: float) -> None:
    """One that always has something to send loses less than one request in ten seconds."""
    count = len(starts(Rate(requests_per_second), begin, begin + 10.0))

    assert requests_per_second * 10.0 - 1 <= count


def test_a_week_has_as_many_as_it_should() -> None:
    """The errors of a million additions do not add up: the millionth start is where it belongs."""
    rate = Rate(3.0)
    now = 1e6 / 7
    for _ in range(1_000_000):
        rate.take(now)
        now = max(now, rate.start_at)

    assert abs(now - (1e6 / 7 + 1_000_000 / 3.0)) < 1e-8


def test_a_pause_saves_up_a_tenth_of_a_second() -> None:
    """After an hour of nothing a hundred requests a second may begin with ten, not with 360,000."""
    rate = Rate(100.0)
    rate.take(0.0)

    assert len(starts(rate, 3600.0, 3600.0001)) == 10


def test_a_slow_rate_starts_one_at_a_time() -> None:
    """Below ten a second nothing is saved up, and the next start is known to the moment."""
    rate = Rate(0.5)

    assert starts(rate, 100.0, 107.0) == [100.0, 102.0, 104.0, 106.0]
    assert rate.start_at == 108.0


def test_a_request_before_its_time_is_a_bug() -> None:
    """`start_at` is a promise to the endpoint, not advice."""
    rate = Rate(1.0)
    rate.take(5.0)

    with pytest.raises(AssertionError):
        rate.take(5.9)


def test_without_a_rate_everything_may_start() -> None:
    """Any number at the same moment, at any time."""
    rate = Rate(None)
    for _ in range(10_000):
        rate.take(7.0)

    assert rate.start_at <= 7.0
