"""The torture's command line: plays the rounds, one after the other, and reports."""

from __future__ import annotations

import asyncio
import json as json_
import logging
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ingester.errors import IngesterError
from ingester.local_kafka import Keeper
from ingester.local_kafka.jvm import jvm_cluster
from tests.torture.outcome import Outcome
from tests.torture.report import as_data, as_markdown
from tests.torture.schedule import Act, schedule
from tests.torture.stage import Stage

_EXIT_VIOLATED = 1
_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count

_err = Console(stderr=True, highlight=False)


def main(
    *,
    kills: Annotated[int, typer.Option(min=1, help="Named kills, and as many random ones.")] = 200,
    seed: Annotated[int, typer.Option(help="Where the random decisions begin.")] = 0,
    only: Annotated[
        str, typer.Option(metavar="PREFIX", help="Play the rounds whose names begin so.")
    ] = "",
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the figures go; .torture/<date>/ if unset."),
    ] = None,
) -> None:
    """Kill real workers at every step of the protocol and at random, and look for a wrong bit.

    The tables on standard output are Markdown. Exit code 1: something was lost, doubled or stuck;
    the logs of that round are kept. A round's decisions come from the seed and its name alone.
    """
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it warns of what is done to it
    folder = Path(".torture") / f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}"
    acts = [act for act in schedule(kills, seed) if act.name.startswith(only)]
    if not acts:
        raise typer.BadParameter(f"no round's name begins with {only}", param_hint="--only")
    outcomes: list[Outcome] = []
    try:
        asyncio.run(_play(acts, seed, folder.absolute(), outcomes))
    except KeyboardInterrupt:
        _say("interrupted: this is what there is so far")
    except IngesterError as error:
        _err.print(f"torture: {error}", markup=False)
        sys.exit(error.exit_code)
    print(as_markdown(outcomes))
    file = json or folder / "torture.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    data = as_data(outcomes, seed=seed, kills=kills)
    file.write_text(json_.dumps(data, indent=2) + "\n", encoding="utf-8")
    _say(f"the figures of every round are in {file}")
    with suppress(OSError):  # kept are logs and figures
        folder.rmdir()
    if any(outcome.violations for outcome in outcomes):
        _say(f"something is wrong, see above; the logs of those rounds are in {folder}")
        sys.exit(_EXIT_VIOLATED)
    if len(outcomes) < len(acts):
        sys.exit(_EXIT_INTERRUPTED)


async def _play(acts: list[Act], seed: int, folder: Path, outcomes: list[Outcome]) -> None:
    """Play all acts; `outcomes` grows by each."""
    total = sum(act.kills for act in acts)
    done = 0
    started = time.monotonic()
    with jvm_cluster(_say, 1, proxied=True) as cluster, Keeper() as keeper:
        async with Stage(cluster, keeper, folder).running() as stage:
            for act in acts:
                outcome = await act.play(stage, seed)
                outcomes.append(outcome)
                done += act.kills
                _say(
                    f"{time.monotonic() - started:5.0f} s, {done} of {total} kills: {act.name}:"
                    f" {outcome.kills} kills, {outcome.events:,} events,"
                    f" {outcome.requests:,} requests, {len(outcome.violations)} violations"
                )
                for violation in outcome.violations:
                    _say(f"VIOLATION: {violation}")


def _say(sentence: str) -> None:
    _err.print(f"==> {sentence}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
