"""Lives many worlds: `python -m tests.simulation --seeds N --seed K`; exit code 1 on a finding."""

from __future__ import annotations

import argparse
import sys
import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.simulation.runs import run, run_all

_SHOWN_MAX = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many worlds")
    parser.add_argument("--seed", type=int, default=0, help="the first; with --seeds 1 the only")
    options = parser.parse_args()
    if options.seeds == 1:
        failure = run(options.seed)
        print(failure or f"seed {options.seed}: every promise was kept")
        return 1 if failure else 0
    return _run_many(options.seed, options.seeds)


def _run_many(first_seed: int, seeds: int) -> int:
    started = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]:.0f} seeds/s"),
        TimeRemainingColumn(),
    )
    failures = []
    done = 0
    with Progress(*columns, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("simulating", total=seeds, speed=0.0)
        for count, found in run_all(first_seed, seeds):
            done += count
            failures += found
            speed = done / (time.monotonic() - started)
            progress.update(task, completed=done, speed=speed)
    for failure in failures[:_SHOWN_MAX]:
        print(f"{failure}\n")
    speed = seeds / (time.monotonic() - started)
    print(f"{seeds} seeds from {first_seed}, {speed:.0f} seeds/s: {len(failures)} broke a promise")
    if failures:
        print("again: make simulate SEEDS=1 SEED=" + str(failures[0].seed))
        print("seeds: " + " ".join(str(failure.seed) for failure in failures[:50]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
