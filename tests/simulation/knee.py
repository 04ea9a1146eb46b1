"""An endpoint with a knee, and a worker that always has something to send, in virtual time.

`python -m tests.simulation.knee` compares the adaptive limit with every fixed one.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from random import Random
from typing import Literal, Protocol

from ingester.core.concurrency import Concurrency

Outcome = Literal["good", "refused", "failed"]
FIXED_LIMITS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_REFUSAL_SECONDS = 0.002  # an answer that says no takes no work
_RETRY_AFTER_SECONDS = 1.0
_BACKOFF_SECONDS_MIN, _BACKOFF_SECONDS_MAX = 0.1, 30.0  # the worker's defaults


class Limit(Protocol):
    """What the worker asks and tells."""

    limit: int

    def answered(self, now: float, latency_seconds: float, in_flight: int) -> None: ...
    def failed(self, now: float, latency_seconds: float, in_flight: int) -> None: ...
    def refused(self, now: float, latency_seconds: float, in_flight: int) -> None: ...


@dataclass(slots=True)
class Fixed:
    """The same number of requests whatever the answers are."""

    limit: int

    def answered(self, now: float, latency_seconds: float, in_flight: int) -> None: ...
    def failed(self, now: float, latency_seconds: float, in_flight: int) -> None: ...
    def refused(self, now: float, latency_seconds: float, in_flight: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Scenario:
    """What the endpoint is like, for how long, and what may be expected of the limit there."""

    name: str
    service_seconds: float | Callable[[float], float]
    """How long a request takes that does not wait, at a time."""
    seconds: float = 20.0
    limit_max: int = 32
    knee: int | Callable[[float], int] = 1_000_000
    """How many requests are served at once; the others wait for their turn."""
    beyond: Literal["queues", "collapses", "refuses"] = "queues"
    """Collapses: each takes longer by as much as there are more than the knee. Refuses: 429."""
    jitter: float = 0.0
    """Sigma of the lognormal factor, of mean 1, on the service time."""
    requests_per_second: float | None = None
    """More are refused; a tenth of a second may come at once."""
    down: tuple[float, float] = (0.0, 0.0)
    """When every request fails."""
    failing: float = 0.0
    """The share of requests that fail anyway."""
    worker_seconds: float = 0.0002
    """CPU that the worker takes for a request: half to send it, half to take its answer."""
    stalls_per_second: float = 0.0
    """How often the worker's CPU is taken away, for 1 to 30 ms."""
    limit_expected_max: int | None = None
    """What the limit's mean stays below in the second half."""

    @property
    def is_noisy(self) -> bool:
        """Whether seeds make a difference."""
        outage = self.down[0] < self.down[1]
        return bool(self.jitter or self.stalls_per_second or self.failing or outage)


@dataclass(slots=True)
class Run:
    """What came of it."""

    good_at: list[float] = field(default_factory=list)
    limits: list[tuple[float, int]] = field(default_factory=list)
    """When the limit became what."""
    refused_count: int = 0

    def per_second(self, since: float, until: float) -> float:
        return sum(since <= at < until for at in self.good_at) / (until - since)

    def limit_mean(self, since: float, until: float) -> float:
        """The mean over time."""
        ends = [at for at, _ in self.limits[1:]] + [until]
        total = sum(
            limit * max(0.0, min(end, until) - max(begin, since))
            for (begin, limit), end in zip(self.limits, ends, strict=True)
        )
        return total / (until - since)

    def limit_highest(self, since: float, until: float) -> int:
        return max(limit for at, limit in self.limits if since <= at < until)


class _Endpoint:
    """Serves in the order of arrival; how long it takes is settled when a request arrives."""

    def __init__(self, scenario: Scenario, random: Random) -> None:
        self._scenario = scenario
        self._random = random
        self._free_at: list[float] = []  # a heap: when those that serve are free again
        self._tokens = (scenario.requests_per_second or 0.0) / 10
        self._tokens_at = 0.0

    def arrive(self, now: float, in_flight: int) -> tuple[float, Outcome]:
        """Return when the answer leaves, and what it says."""
        scenario = self._scenario
        service = scenario.service_seconds
        seconds = service(now) if callable(service) else service
        if scenario.jitter:
            seconds *= self._random.lognormvariate(-(scenario.jitter**2) / 2, scenario.jitter)
        if scenario.down[0] <= now < scenario.down[1] or self._random.random() < scenario.failing:
            return now + seconds, "failed"
        knee = scenario.knee(now) if callable(scenario.knee) else scenario.knee
        refuses = scenario.beyond == "refuses" and in_flight > knee
        if refuses or not self._take_token(now):
            return now + _REFUSAL_SECONDS, "refused"
        if scenario.beyond == "collapses":
            seconds *= max(1.0, in_flight / knee)
        while self._free_at and self._free_at[0] <= now:
            heapq.heappop(self._free_at)
        # With as many at work as the knee, this one begins when enough of them have ended.
        begin = now
        if len(self._free_at) >= knee:
            begin = sorted(self._free_at)[len(self._free_at) - knee]
        heapq.heappush(self._free_at, begin + seconds)
        return begin + seconds, "good"

    def _take_token(self, now: float) -> bool:
        rate = self._scenario.requests_per_second
        if rate is None:
            return True
        self._tokens = min(rate / 10, self._tokens + (now - self._tokens_at) * rate)
        self._tokens_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class _Worker:
    """Sends as `Dispatcher` does: holds after refusals, then one alone; backoff after failures."""

    def __init__(self, scenario: Scenario, limit: Limit, random: Random) -> None:
        self._scenario = scenario
        self._limit = limit
        self._random = random
        self._endpoint = _Endpoint(scenario, random)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._sequence = count()
        self._busy_until = 0.0
        self._in_flight = 0
        self._held_until = 0.0
        self._alone = False
        self._failures_in_row = 0
        self._retries_at: list[float] = []
        self.run = Run(limits=[(0.0, limit.limit)])

    def live(self) -> Run:
        scenario = self._scenario
        if scenario.stalls_per_second:
            self._later(0.0, self._stalled)
        self._later(0.0, self._start)
        while self._events:
            now, _, happens = heapq.heappop(self._events)
            if now >= scenario.seconds:
                break
            happens(now)
            if self._limit.limit != self.run.limits[-1][1]:
                self.run.limits.append((now, self._limit.limit))
        return self.run

    def _later(self, at: float, happens: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._sequence), happens))

    def _work(self, now: float) -> float:
        """Take the CPU for half a request and return when it is done."""
        self._busy_until = max(now, self._busy_until) + self._scenario.worker_seconds / 2
        return self._busy_until

    def _stalled(self, now: float) -> None:
        self._busy_until = max(now, self._busy_until) + self._random.uniform(0.001, 0.03)
        self._later(now + self._random.expovariate(self._scenario.stalls_per_second), self._stalled)

    def _start(self, now: float) -> None:
        if now < self._held_until:
            return
        limit = min(self._limit.limit, self._scenario.limit_max - self._waiting(now))
        while self._in_flight < (1 if self._alone else limit):
            self._in_flight += 1
            sent_at = self._work(now)
            answered_at, outcome = self._endpoint.arrive(sent_at, self._in_flight)

            def arrived(at: float, outcome: Outcome = outcome, started: float = now) -> None:
                self._later(self._work(at), lambda now: self._ended(now, started, outcome))

            self._later(answered_at, arrived)

    def _waiting(self, now: float) -> int:
        """Count those that wait for another attempt as open while nothing succeeds."""
        while self._retries_at and self._retries_at[0] <= now:
            heapq.heappop(self._retries_at)
        outage = self._failures_in_row >= max(2, self._scenario.limit_max)
        return len(self._retries_at) if outage else 0

    def _ended(self, now: float, started: float, outcome: Outcome) -> None:
        latency_seconds, in_flight = now - started, self._in_flight
        self._in_flight -= 1
        if outcome == "good":
            self.run.good_at.append(now)
            self._failures_in_row = 0
            self._retries_at.clear()
            self._alone = self._alone and now < self._held_until
            self._limit.answered(now, latency_seconds, in_flight)
        elif outcome == "refused":
            self.run.refused_count += 1
            self._alone = True
            self._held_until = max(self._held_until, now + _RETRY_AFTER_SECONDS)
            self._later(self._held_until, self._start)
            self._limit.refused(now, latency_seconds, in_flight)
        else:
            self._failures_in_row += 1
            ceiling = min(_BACKOFF_SECONDS_MAX, 0.1 * 2.0 ** min(self._failures_in_row, 32))
            due = now + self._random.uniform(_BACKOFF_SECONDS_MIN, ceiling)
            heapq.heappush(self._retries_at, due)
            self._later(due, self._start)
            self._limit.failed(now, latency_seconds, in_flight)
        self._start(now)


def live(scenario: Scenario, limit: Limit, seed: int = 0) -> Run:
    """Let a worker with this limit send to this endpoint."""
    return _Worker(scenario, limit, Random(seed)).live()


@cache
def adaptive(scenario: Scenario, seed: int = 0) -> Run:
    return live(scenario, Concurrency(scenario.limit_max), seed)


@cache
def fixed_counts(scenario: Scenario, seed: int = 0) -> dict[int, int]:
    """Return how many requests were answered with each fixed limit, the knee among them."""
    limits = {limit for limit in FIXED_LIMITS if limit <= scenario.limit_max}
    if isinstance(scenario.knee, int):
        limits.add(min(scenario.knee, scenario.limit_max))
    return {limit: len(live(scenario, Fixed(limit), seed).good_at) for limit in sorted(limits)}


SCENARIOS = (
    Scenario("0 ms, busy machine", 0.001, worker_seconds=0.0005, stalls_per_second=10),
    Scenario("0 ms, jittery", 0.003, jitter=1.0, worker_seconds=0.0005, stalls_per_second=20),
    Scenario("20 ms", 0.02),
    Scenario("20 ms, busy machine", 0.02, stalls_per_second=10),
    Scenario("100 ms", 0.1),
    Scenario("20 ms lognormal", 0.02, jitter=1.0),
    Scenario("100 ms lognormal", 0.1, seconds=60.0, jitter=1.0),
    Scenario("20 ms, 1 % fails", 0.02, failing=0.01),
    Scenario("queues at 8", 0.02, knee=8, limit_expected_max=16),
    Scenario("queues at 8, jittery", 0.02, knee=8, jitter=0.5, limit_expected_max=20),
    Scenario("queues at 100", 0.1, seconds=60.0, knee=100, limit_max=256, limit_expected_max=200),
    Scenario("collapses at 8", 0.02, knee=8, beyond="collapses", limit_expected_max=12),
    Scenario(
        "collapses at 8, 100 ms",
        0.1,
        seconds=60.0,
        knee=8,
        beyond="collapses",
        limit_expected_max=12,
    ),
    Scenario(
        "collapses at 8, jittery",
        0.02,
        knee=8,
        beyond="collapses",
        jitter=0.5,
        limit_expected_max=16,
    ),
    Scenario(
        "collapses at 100",
        0.1,
        seconds=60.0,
        knee=100,
        beyond="collapses",
        limit_max=256,
        limit_expected_max=150,
    ),
    Scenario("refuses at 8", 0.02, seconds=120.0, knee=8, beyond="refuses", limit_expected_max=8),
    Scenario(
        "refuses at 100",
        0.1,
        seconds=300.0,
        knee=100,
        beyond="refuses",
        limit_max=256,
        limit_expected_max=100,
    ),
    Scenario("500 a second", 0.02, seconds=120.0, requests_per_second=500, limit_expected_max=12),
    Scenario("20 to 200 ms", lambda now: 0.02 if now < 10 else 0.2, seconds=60.0),
    Scenario("200 to 20 ms", lambda now: 0.2 if now < 10 else 0.02, seconds=20.0),
    Scenario("half a minute of 5 s", lambda now: 5.0 if 10 <= now < 40 else 0.02, seconds=55.0),
    Scenario(
        "collapses at 8 after 10 s",
        0.02,
        seconds=40.0,
        knee=lambda now: 100 if now < 10 else 8,
        beyond="collapses",
        limit_expected_max=12,
    ),
    Scenario("an hour of outage", 0.02, seconds=3640.0, down=(5.0, 3605.0)),
)


def main() -> int:
    columns = "  ".join(f"{limit:>6}" for limit in FIXED_LIMITS)
    print(
        f"{'good answers per second':28}{columns}    best  adaptive  share  limit  highest  refused"
    )
    for scenario in SCENARIOS:
        fixed = fixed_counts(scenario)
        run = adaptive(scenario)
        rates = "  ".join(
            f"{fixed[limit] / scenario.seconds:6.0f}" if limit in fixed else " " * 6
            for limit in FIXED_LIMITS
        )
        half, end = scenario.seconds / 2, scenario.seconds
        print(
            f"{scenario.name:28}{rates}  {max(fixed.values()) / end:6.0f}"
            f"  {len(run.good_at) / end:8.0f}"
            f"  {len(run.good_at) / max(fixed.values()):5.0%}  {run.limit_mean(half, end):5.1f}"
            f"  {run.limit_highest(0.0, end):7}  {run.refused_count:7}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
