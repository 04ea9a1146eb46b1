"""Which runs there are, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tests.benchmark.contenders import CONTENDERS, VARIANTS, Contender
from tests.benchmark.workload import Workload

SLOW_SHARE = 20
"""One request at a time over 20 ms would take the plain loop four minutes for a million events."""


@dataclass(frozen=True)
class Step:
    """One run to come."""

    contender: Contender
    workload: Workload
    latency_ms: float
    round: int


def steps(
    *,
    workloads: Sequence[Workload],
    rounds: int,
    latencies_ms: Sequence[float],
    only: str | None = None,
    variants: bool = False,
) -> Iterator[Step]:
    """Yield the runs, whatever is compared in turn, so that a busy minute hits all of it."""
    contenders = [each for each in CONTENDERS if only in {None, each.name}]
    if variants:
        contenders += VARIANTS
    for latency_ms in latencies_ms:
        for number in range(1, rounds + 1):
            for workload in workloads:
                for contender in contenders:
                    share = _share(contender, latency_ms, workload)
                    yield Step(contender, share, latency_ms, number)


def _share(contender: Contender, latency_ms: float, workload: Workload) -> Workload:
    """Fewer events where one request at a time makes the latency the measure."""
    one_by_one = contender.requests_in_flight_max == 1
    if not (latency_ms and one_by_one):
        return workload
    return replace(workload, events=max(1, workload.events // SLOW_SHARE))


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
