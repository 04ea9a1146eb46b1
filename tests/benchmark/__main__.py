"""The benchmark's command line: loads the topics, takes the runs in turn, reports."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

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
from tests.benchmark.measure import Capacity, Run, RunFailedError, measure_capacity, measure_run
from tests.benchmark.pace import Pace, measure_pace
from tests.benchmark.plan import Step, parse_latencies, steps
from tests.benchmark.report import (
    COLUMNS,
    PACE_COLUMNS,
    Circumstances,
    as_data,
    describe_machine,
    pace_rows,
    pace_sentence,
    rows,
    sentences,
    show,
    summarize,
)
from tests.benchmark.workload import (
    Workload,
    parse_accounts,
    parse_partitions,
    parse_value_bytes,
    parse_workers,
    workloads,
)
from tests.support.kafka import delete_topics

T = TypeVar("T")

_EXIT_RUN_FAILED = 1
_BLAST_EVENTS = 100_000
_BLAST_ROUNDS = 20  # about two seconds without latency
_BLAST_ROUNDS_SLOW = 3  # about two seconds at 20 ms

_err = Console(stderr=True, highlight=False)


class Only(StrEnum):
    """One contender alone."""

    INGESTER = INGESTER.name
    PLAIN = PLAIN.name


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    steps: Sequence[Step]
    latencies_ms: Sequence[float]
    pace_seconds: float


def main(
    *,
    events: Annotated[int, typer.Option(min=1, help="Events of a run.")] = 1_000_000,
    partitions: Annotated[
        str, typer.Option(metavar="N,...", help="Partitions of the topic; each is measured.")
    ] = "8",
    accounts: Annotated[
        str, typer.Option(metavar="N,...", help="Accounts that have events; each is measured.")
    ] = "10000",
    value_bytes: Annotated[
        str, typer.Option(metavar="N,...", help="Length of each value; a mixture if unset.")
    ] = "",
    workers: Annotated[
        str, typer.Option(metavar="N,...", help="Workers that share the topic; each is measured.")
    ] = "1",
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each, for the medians.")] = 3,
    latency_ms: Annotated[
        str, typer.Option(metavar="MS,...", help="How long the endpoint takes to answer.")
    ] = "0,20",
    only: Annotated[Only | None, typer.Option(help="Measure one of the two.")] = None,
    variants: Annotated[
        bool, typer.Option(help="Measure the ingester without receipts or intents, too.")
    ] = True,
    pace_seconds: Annotated[
        float, typer.Option(min=0, help="How long to measure latency at 1,000 events/s.")
    ] = 20.0,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the figures go; .bench/<date>.json if unset."),
    ] = None,
) -> None:
    """Measure the worker beside a plain aiokafka+httpx loop, on a real Kafka on this machine.

    The tables are Markdown where standard output is no terminal. Exit code 1: a run lost, doubled
    or never finished something, and its figures mean nothing.
    """
    latencies_ms = _parsed(parse_latencies, latency_ms, "--latency-ms")
    kinds = list(
        workloads(
            events,
            _parsed(parse_partitions, partitions, "--partitions"),
            _parsed(parse_accounts, accounts, "--accounts"),
            _parsed(parse_value_bytes, value_bytes, "--value-bytes"),
            _parsed(parse_workers, workers, "--workers"),
        )
    )
    if any(each.workers > each.partitions for each in kinds):
        raise typer.BadParameter(
            "more workers than partitions: some would have nothing to do", param_hint="--workers"
        )
    # Right after a topic is made, aiokafka warns of each request that it has to repeat.
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    planned = steps(
        workloads=kinds,
        rounds=rounds,
        latencies_ms=latencies_ms,
        only=only,
        variants=variants,
    )
    plan = Plan(list(planned), latencies_ms, pace_seconds)
    try:
        with local_kafka(_say) as kafka, Keeper() as keeper:
            uvloop.run(_bench(plan, kafka, keeper, json))
    except RunFailedError as error:
        _err.print(f"benchmark: {error}", markup=False)
        sys.exit(_EXIT_RUN_FAILED)
    except IngesterError as error:
        _err.print(f"benchmark: {error}", markup=False)
        sys.exit(error.exit_code)


def _parsed(parse: Callable[[str], T], text: str, option: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


async def _bench(plan: Plan, kafka: LocalKafka, keeper: Keeper, file: Path | None) -> None:
    circumstances = Circumstances(
        started_at=datetime.now(UTC), machine=describe_machine(), kafka=kafka.how
    )
    servers = kafka.bootstrap_servers
    topics: dict[Workload, LoadedTopic] = {}
    try:
        for workload in {replace(step.workload, workers=1): None for step in plan.steps}:
            with _progress(f"writing {workload.events:,} events", workload.events) as advance:
                topics[workload] = await load_topic(servers, workload, advance)
        capacities = [await _capacity(keeper, each) for each in plan.latencies_ms]
        runs: list[Run] = []
        for number, step in enumerate(plan.steps, 1):
            topic = topics[replace(step.workload, workers=1)]
            topic = replace(topic, workload=step.workload)
            run = await measure_run(step.contender, topic, step.latency_ms, servers, keeper)
            runs.append(run)
            _say(
                f"run {number} of {len(plan.steps)}: {step.contender.name} at"
                f" {step.latency_ms:g} ms: {run.events_per_second:,.0f} events/s,"
                f" {run.cpu_seconds_per_million:.2f} CPU s per million"
            )
        pace = None
        if plan.pace_seconds:
            _say(f"latency at a steady pace, for {plan.pace_seconds:g} s")
            pace = await measure_pace(servers, keeper, plan.pace_seconds)
    finally:
        names = [topic.name for topic in topics.values()]
        await delete_topics(servers, [*names, *(f"{name}.dead-letters" for name in names)])
    _report(runs, capacities, pace, circumstances)
    file = file or Path(".bench") / f"{circumstances.started_at:%Y-%m-%dT%H-%M-%SZ}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    encoded = msgspec.json.encode(as_data(runs, capacities, pace, circumstances))
    file.write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")
    _say(f"the figures of every run are in {file}")


async def _capacity(keeper: Keeper, latency_ms: float) -> Capacity:
    rounds = _BLAST_ROUNDS_SLOW if latency_ms else _BLAST_ROUNDS
    load = blast.prepare(list(generate(_BLAST_EVENTS)), ITEMS_MAX, rounds)
    capacity = await measure_capacity(keeper, load, latency_ms, INGESTER.requests_in_flight_max)
    _say(f"the endpoint alone takes {capacity.items_per_second:,.0f} items/s at {latency_ms:g} ms")
    return capacity


def _report(
    runs: Sequence[Run],
    capacities: Sequence[Capacity],
    pace: Pace | None,
    circumstances: Circumstances,
) -> None:
    console = Console()
    summaries = summarize(runs)
    show(console, COLUMNS, rows(summaries), sentences(summaries, capacities, circumstances))
    if pace is not None:
        show(console, PACE_COLUMNS, pace_rows(pace), [pace_sentence(pace)])


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
