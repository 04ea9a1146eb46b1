"""Which runs there are, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.benchmark.contenders import CONTENDERS, Contender

SLOW_SHARE = 10
"""One request at a time over 20 ms would take the plain loop four minutes for a million events."""


@dataclass(frozen=True)
class Step:
    """One run to come."""

    contender: Contender
    latency_ms: float
    events: int
    round: int


def steps(
    *, events: int, rounds: int, latencies_ms: Sequence[float], only: str | None = None
) -> Iterator[Step]:
    """Yield the runs, the contenders in turn, so that a busy minute hits both."""
    for latency_ms in latencies_ms:
        for number in range(1, rounds + 1):
            for contender in CONTENDERS:
                if only in {None, contender.name}:
                    yield Step(
                        contender, latency_ms, _events(contender, latency_ms, events), number
                    )


def _events(contender: Contender, latency_ms: float, events: int) -> int:
    """A share of the events where one request at a time makes the latency the measure."""
    one_by_one = contender.requests_in_flight_max == 1
    return max(1, events // SLOW_SHARE) if latency_ms and one_by_one else events


def parse_latencies(text: str) -> tuple[float, ...]:
    """Read `0,20`; ValueError says which part is no latency."""
    latencies = []
    for part in text.split(","):
        try:
            latency = float(part)
        except ValueError:
            latency = -1.0
        if not 0 <= latency <= 10_000:
            raise ValueError(f"{part!r} is not a latency from 0 to 10,000 milliseconds")
        latencies.append(latency)
    return tuple(dict.fromkeys(latencies))
