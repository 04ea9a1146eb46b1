"""The promises of the whole core, in worlds where brokers, workers and the endpoint all fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ingester.core.delivery import Deferred, InDoubt, Refused
from ingester.core.messages import (
    AttemptEnded,
    CommitFailed,
    HaltPartition,
    PartitionReopened,
    PartitionsAssigned,
    PausePartitions,
    RangeNotRead,
    ReceiptNotWritten,
    WriteDeadLetters,
)
from tests.simulation.planted import BUGS
from tests.simulation.runs import fingerprint, run, run_all
from tests.simulation.world import World

SEEDS = 2000  # some ten seconds; `make simulate` runs as many as you have time for
PLANTED_SEEDS_MAX = 1000


@pytest.mark.timeout(600)
def test_no_world_breaks_a_promise() -> None:
    """Nothing is lost or counted twice, all is explained, bounded and settled in the end."""
    found = [failure for _, failures in run_all(0, SEEDS) for failure in failures]

    assert not found, f"{found[0]}\n\nseeds: {[failure.seed for failure in found]}"


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    """Within so many seeds as each run of the tests takes anyway."""
    with BUGS[bug]():
        found = next((each for each in map(run, range(PLANTED_SEEDS_MAX)) if each), None)

    assert found is not None
    misplaced = ("AttributeError", "NameError", "TypeError")
    assert not any(each in found.promise for each in misplaced), found.promise


def test_a_finding_can_be_read() -> None:
    """It names the seed and the promise, and shows the last facts and commands before it."""
    with BUGS["sends although the commit failed"]():
        failure = next(each for each in map(run, range(PLANTED_SEEDS_MAX)) if each)
    text = str(failure)

    assert text.startswith(f"seed {failure.seed}: usage:")
    assert "is sent before it is recorded" in text
    assert "CommitFailed" in text
    assert "SendBatch usage:" in failure.lines[-1]


def test_a_seed_is_one_run() -> None:
    """In another process, with other hashes, every fact and command comes at the same moment."""
    here = [fingerprint(seed) for seed in range(12)]
    script = "from tests.simulation.runs import fingerprint\n"
    script += "print(*(fingerprint(seed) for seed in range(12)))"
    root = Path(__file__).parents[2]
    there = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        env=os.environ | {"PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert here == there.stdout.split()


def test_the_worlds_are_unkind_enough() -> None:
    """A promise that is never put to the test is not kept: each of these happens often."""
    counted: Counter[str] = Counter()
    for seed in range(300):
        world = World(seed)
        world.live()
        counted["double"] += world.oracle.doubles
        for _, _, step in world.trace:
            match step:
                case PartitionsAssigned(starts, _):
                    for start in starts.values():
                        counted["inherited"] += len(start.ledger.intents)
                        counted["settled"] += len(start.settled)
                case AttemptEnded(_, InDoubt(), _):
                    counted["in doubt"] += 1
                case AttemptEnded(_, Deferred("not in touch with the group"), _):
                    counted["zombie"] += 1
                case AttemptEnded(_, Refused(), _):
                    counted["refused"] += 1
                case (
                    CommitFailed()
                    | ReceiptNotWritten()
                    | RangeNotRead()
                    | PausePartitions()
                    | HaltPartition()
                    | PartitionReopened()
                ):
                    counted[type(step).__name__] += 1
                case WriteDeadLetters(batch, letters) if len(letters) < len(batch.dead_letters):
                    counted["refused item"] += 1
                case str():
                    counted[step] += 1

    assert min(counted.values()) >= 20, counted
    assert len(counted) == 16, counted
