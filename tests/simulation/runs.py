"""Runs worlds by their seeds, on all cores, and keeps what went wrong as somebody can read it."""

from __future__ import annotations

import hashlib
import os
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from tests.simulation.oracle import BrokenPromiseError
from tests.simulation.trace import lines
from tests.simulation.world import World

_CHUNK_SEEDS = 50
_LINES_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Failure:
    """The seed is the bug report; the rest spares a reader the first run."""

    seed: int
    promise: str
    plan: str
    lines: Sequence[str]

    def __str__(self) -> str:
        shown = "\n".join(self.lines[-_LINES_SHOWN:])
        return f"seed {self.seed}: {self.promise}\n\n{self.plan}\n\n{shown}"


def run(seed: int) -> Failure | None:
    """Live one world; return what was broken, an assertion of the core's or an error included."""
    world = World(seed)
    try:
        world.live()
    except BrokenPromiseError as broken:
        promise = str(broken)
    except Exception:  # noqa: BLE001 -- whatever the core raises is a finding of this seed
        promise = traceback.format_exc()
    else:
        return None
    return Failure(seed, promise, str(world.plan), lines(world.trace))


def fingerprint(seed: int) -> str:
    """A digest of everything that happened in a world."""
    world = World(seed)
    world.live()
    return hashlib.sha256("\n".join(lines(world.trace)).encode()).hexdigest()


def run_all(first_seed: int, seeds: int) -> Iterator[tuple[int, list[Failure]]]:
    """Yield, chunk by chunk as they end, how many seeds have been run and what they broke."""
    end = first_seed + seeds
    chunks = [
        range(start, min(start + _CHUNK_SEEDS, end))
        for start in range(first_seed, end, _CHUNK_SEEDS)
    ]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for chunk, failures in zip(chunks, pool.map(_run_chunk, chunks), strict=True):
            yield len(chunk), failures


def _run_chunk(seeds: range) -> list[Failure]:
    return [failure for failure in map(run, seeds) if failure is not None]
