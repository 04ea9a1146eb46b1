"""The benchmark's command line: loads the topics, takes the runs in turn, reports."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from ingester.errors import IngesterError
from ingester.local_kafka import Keeper, LocalKafka, local_kafka
from tests.benchmark import blast
from tests.benchmark.contenders import INGESTER, ITEMS_MAX, PLAIN
from tests.benchmark.events import generate
from tests.benchmark.loading import LoadedTopic, load_topic
from tests.benchmark.measure import Run, RunFailedError, measure_capacity, measure_run
from tests.benchmark.plan import Step, parse_latencies, steps
from tests.benchmark.report import Circumstances, as_data, describe_machine, show, summarize
from tests.support.kafka import delete_topics

_EXIT_RUN_FAILED = 1
_BLAST_EVENTS = 100_000
_BLAST_ROUNDS = 20  # about two seconds

_err = Console(stderr=True, highlight=False)


class Only(StrEnum):
    """One contender alone."""

    INGESTER = INGESTER.name
    PLAIN = PLAIN.name


def main(
    *,
    events: Annotated[int, typer.Option(min=1, help="Events of a run.")] = 1_000_000,
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of the topic.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each, for the medians.")] = 3,
    latency_ms: Annotated[
        str, typer.Option(metavar="MS,...", help="How long the endpoint takes to answer.")
    ] = "0,20",
    only: Annotated[Only | None, typer.Option(help="Measure one of the two.")] = None,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the figures go; .bench/<date>.json if unset."),
    ] = None,
) -> None:
    """Measure the worker beside a plain aiokafka+httpx loop, on a real Kafka on this machine.

    The table is Markdown where standard output is no terminal. Exit code 1: a run lost, doubled or
    never finished something, and its figures mean nothing.
    """
    try:
        latencies_ms = parse_latencies(latency_ms)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--latency-ms") from error
    # Right after a topic is made, aiokafka warns of each request that it has to repeat.
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    plan = list(steps(events=events, rounds=rounds, latencies_ms=latencies_ms, only=only))
    try:
        with local_kafka(_say) as kafka, Keeper() as keeper:
            uvloop.run(_bench(plan, partitions, kafka, keeper, json))
    except RunFailedError as error:
        _err.print(f"benchmark: {error}", markup=False)
        sys.exit(_EXIT_RUN_FAILED)
    except IngesterError as error:
        _err.print(f"benchmark: {error}", markup=False)
        sys.exit(error.exit_code)


async def _bench(
    plan: list[Step], partitions: int, kafka: LocalKafka, keeper: Keeper, file: Path | None
) -> None:
    circumstances = Circumstances(
        started_at=datetime.now(UTC),
        machine=describe_machine(),
        kafka=kafka.how,
        partitions=partitions,
    )
    servers = kafka.bootstrap_servers
    topics: dict[int, LoadedTopic] = {}
    try:
        for count in sorted({step.events for step in plan}, reverse=True):
            with _progress(f"writing {count:,} events", count) as advance:
                topics[count] = await load_topic(servers, count, partitions, advance)
        load = blast.prepare(list(generate(_BLAST_EVENTS)), ITEMS_MAX, _BLAST_ROUNDS)
        capacity = await measure_capacity(keeper, load, INGESTER.requests_in_flight_max)
        _say(f"the endpoint alone takes {capacity.items_per_second:,.0f} items/s")
        runs: list[Run] = []
        for number, step in enumerate(plan, 1):
            run = await measure_run(
                step.contender, topics[step.events], step.latency_ms, servers, keeper
            )
            runs.append(run)
            _say(
                f"run {number} of {len(plan)}: {step.contender.name} at {step.latency_ms:g} ms:"
                f" {run.events_per_second:,.0f} events/s,"
                f" {run.cpu_seconds_per_million:.1f} CPU s per million"
            )
    finally:
        names = [topic.name for topic in topics.values()]
        await delete_topics(servers, [*names, *(f"{name}.dead-letters" for name in names)])
    show(Console(), summarize(runs), capacity, circumstances)
    file = file or Path(".bench") / f"{circumstances.started_at:%Y-%m-%dT%H-%M-%SZ}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    encoded = msgspec.json.encode(as_data(runs, capacity, circumstances))
    file.write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")
    _say(f"the figures of every run are in {file}")


def _say(sentence: str) -> None:
    _err.print(f"==> {sentence}", markup=False, soft_wrap=True)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line elsewhere; yields what takes the steps."""
    if not _err.is_terminal:
        _say(what)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=_err, disable=not _err.is_terminal) as progress:
        task = progress.add_task(f"==> {what}", total=total)
        yield lambda steps_count: progress.advance(task, steps_count)


if __name__ == "__main__":
    typer.run(main)
