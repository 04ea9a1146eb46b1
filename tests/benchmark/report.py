"""What the runs amount to: medians, ratios, the table, and the sentences that belong below it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

from tests.benchmark.contenders import INGESTER, ITEMS_MAX, PLAIN
from tests.benchmark.events import ACCOUNTS, VALUE_BYTES_MEAN
from tests.benchmark.measure import Capacity, Run

ENDPOINT_BUSY_MAX = 0.5
"""Beyond this the endpoint may be what a run waits for, and the report says so."""

_METHOD = (
    "The clock runs from the first request that the endpoint saw to the last that it acknowledged."
    " CPU is the process's user and system time from its start, imports included, to its last"
    " commit; nothing is subtracted. Memory is the most that was ever resident. Cores are CPU"
    " seconds a second: of the process, of the endpoint, of all else, the broker included. Totals,"
    " bits and committed offsets were exact in every run."
)

COLUMNS = (
    "at",
    "",
    "events",
    "events/s",
    "from-to",
    "CPU s per million",
    "memory MiB",
    "cores",
)


@dataclass(frozen=True)
class Circumstances:
    """Where and when the runs took place, and on what."""

    started_at: datetime
    machine: str
    kafka: str
    partitions: int


@dataclass(frozen=True)
class Summary:
    """The runs of one contender at one latency; medians, unless the name says otherwise."""

    contender: str
    latency_ms: float
    events: int
    runs: int
    events_per_second: float
    events_per_second_min: float
    events_per_second_max: float
    cpu_seconds_per_million: float
    resident_bytes_max: int
    requests: int
    requests_repeated_max: int
    wall_seconds: float
    own_cores: float
    endpoint_busy: float
    endpoint_busy_max: float
    rest_cores: float


@dataclass(frozen=True)
class Comparison:
    """The ingester over the plain loop at one latency."""

    latency_ms: float
    events_per_second: float
    """How many times as many."""
    cpu_seconds_per_million: float | None
    """Which part of it; None where their runs differ in length: starting up weighs more in one."""


def summarize(runs: Sequence[Run]) -> list[Summary]:
    """Put together what belongs together, in the order of the first run of each."""
    groups: dict[tuple[float, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.latency_ms, run.contender), []).append(run)
    return [_summary(group) for group in groups.values()]


def _summary(runs: Sequence[Run]) -> Summary:
    speeds = [run.events_per_second for run in runs]
    busy = [run.endpoint_busy for run in runs]
    return Summary(
        contender=runs[0].contender,
        latency_ms=runs[0].latency_ms,
        events=runs[0].events,
        runs=len(runs),
        events_per_second=median(speeds),
        events_per_second_min=min(speeds),
        events_per_second_max=max(speeds),
        cpu_seconds_per_million=median(run.cpu_seconds_per_million for run in runs),
        resident_bytes_max=max(run.resident_bytes_max for run in runs),
        requests=round(median(run.requests for run in runs)),
        requests_repeated_max=max(run.requests_repeated for run in runs),
        wall_seconds=median(run.wall_seconds for run in runs),
        own_cores=median(run.cpu_seconds / run.wall_seconds for run in runs),
        endpoint_busy=median(busy),
        endpoint_busy_max=max(busy),
        rest_cores=median(run.rest_cores for run in runs),
    )


def compare(summaries: Iterable[Summary]) -> list[Comparison]:
    """Hold the ingester against the plain loop, at each latency where both ran."""
    found = {(each.latency_ms, each.contender): each for each in summaries}
    comparisons = []
    for (latency_ms, name), ours in found.items():
        plain = found.get((latency_ms, PLAIN.name))
        if name != INGESTER.name or plain is None:
            continue
        cpu = ours.cpu_seconds_per_million / plain.cpu_seconds_per_million
        comparisons.append(
            Comparison(
                latency_ms=latency_ms,
                events_per_second=ours.events_per_second / plain.events_per_second,
                cpu_seconds_per_million=cpu if ours.events == plain.events else None,
            )
        )
    return comparisons


def rows(summaries: Iterable[Summary]) -> list[tuple[str, ...]]:
    """The table's cells, under COLUMNS."""
    return [
        (
            f"{each.latency_ms:g} ms",
            each.contender,
            f"{each.events:,}",
            f"{each.events_per_second:,.0f}",
            f"{each.events_per_second_min / 1000:.1f}k-{each.events_per_second_max / 1000:.1f}k",
            f"{each.cpu_seconds_per_million:.1f}",
            f"{each.resident_bytes_max / 1024**2:.0f}",
            f"{each.own_cores:.1f}/{each.endpoint_busy:.1f}/{each.rest_cores:.1f}",
        )
        for each in summaries
    ]


def markdown(cells: Iterable[Sequence[str]]) -> str:
    """The same table for a page."""
    lines = [COLUMNS, ("---", "---", *["---:"] * (len(COLUMNS) - 2)), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sentences(
    summaries: Sequence[Summary], capacity: Capacity, circumstances: Circumstances
) -> list[str]:
    """What a reader has to know to believe the table, the ratios first."""
    return [
        *_ratios(compare(summaries)),
        *_ceilings(summaries),
        _endpoint(summaries, capacity),
        f"Medians of {max(each.runs for each in summaries)}. {_METHOD}",
        *_shorter(summaries),
        *_repeated(summaries),
        _circumstances(circumstances),
    ]


def _ratios(comparisons: Iterable[Comparison]) -> Iterable[str]:
    for each in comparisons:
        sentence = (
            f"ingester / plain at {each.latency_ms:g} ms:"
            f" {each.events_per_second:.1f} times the events a second"
        )
        if each.cpu_seconds_per_million is not None:
            sentence += f", 1/{1 / each.cpu_seconds_per_million:.1f} of the CPU per event"
        yield sentence + "."


def _ceilings(summaries: Iterable[Summary]) -> Iterable[str]:
    for each in summaries:
        for contender in (PLAIN, INGESTER):
            if each.contender == contender.name and each.latency_ms:
                permitted = contender.events_permitted(each.latency_ms / 1000)
                yield (
                    f"{contender.name} at {each.latency_ms:g} ms:"
                    f" {contender.requests_in_flight_max} in flight, {ITEMS_MAX} items each, permit"
                    f" {permitted:,.0f} events/s; it reached"
                    f" {each.events_per_second / permitted:.0%} of that."
                )


def _endpoint(summaries: Sequence[Summary], capacity: Capacity) -> str:
    busiest = max(each.endpoint_busy_max for each in summaries)
    fastest = max(each.events_per_second_max for each in summaries)
    sentence = (
        f"The endpoint took {capacity.items_per_second:,.0f} items/s of the same bodies over"
        f" {capacity.connections} connections without Kafka,"
        f" {capacity.items_per_second / fastest:.1f} times the fastest run; in the runs it was busy"
        f" for at most {busiest:.0%} of the time"
    )
    if busiest > ENDPOINT_BUSY_MAX:
        return sentence + ": it may have been what they waited for."
    return sentence + ", so that they did not wait for it."


def _circumstances(known: Circumstances) -> str:
    return (
        f"Events of {VALUE_BYTES_MEAN} bytes, {ACCOUNTS:,} accounts, {known.partitions} partitions;"
        f" {known.kafka}; {known.machine}; {known.started_at:%Y-%m-%d %H:%M} UTC."
    )


def _shorter(summaries: Iterable[Summary]) -> Iterable[str]:
    longest = max(each.events for each in summaries)
    if any(each.events < longest for each in summaries):
        yield (
            "Where one request at a time makes the latency the measure, the plain loop is given"
            " fewer events: its speed is not changed by that, its CPU per million is raised by"
            " starting up."
        )


def _repeated(summaries: Iterable[Summary]) -> Iterable[str]:
    for each in summaries:
        if each.requests_repeated_max:
            yield (
                f"{each.contender} at {each.latency_ms:g} ms sent up to"
                f" {each.requests_repeated_max} requests again; they were counted once."
            )


def show(
    console: Console, summaries: Sequence[Summary], capacity: Capacity, circumstances: Circumstances
) -> None:
    """Print a table on a terminal, Markdown elsewhere."""
    cells = rows(summaries)
    below = sentences(summaries, capacity, circumstances)
    if console.is_terminal:
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        for number, column in enumerate(COLUMNS):
            figures_are_wider = max(len(line[number]) for line in cells) >= len(column)
            table.add_column(
                column, justify="left" if number < 2 else "right", no_wrap=figures_are_wider
            )
        for line in cells:
            table.add_row(*line)
        console.print(table)
        for sentence in below:
            console.print(sentence, highlight=False)
    else:
        console.file.write(markdown(cells) + "\n\n" + "\n".join(f"- {each}" for each in below))
        console.file.write("\n")


def as_data(runs: Sequence[Run], capacity: Capacity, circumstances: Circumstances) -> object:
    """Everything, for a file: each run, and what was made of them."""
    summaries = summarize(runs)
    return {
        "circumstances": asdict(circumstances),
        "capacity": asdict(capacity),
        "runs": [
            {
                **asdict(run),
                "events_per_second": run.events_per_second,
                "cpu_seconds_per_million": run.cpu_seconds_per_million,
            }
            for run in runs
        ],
        "summaries": [asdict(each) for each in summaries],
        "comparisons": [asdict(each) for each in compare(summaries)],
    }


def describe_machine() -> str:
    """The processor, how many cores of it, the operating system, the Python."""
    processor = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        names = [
            line.partition(":")[2].strip()
            for line in described.read_text().splitlines()
            if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{processor}, {os.cpu_count()} cores, {platform.system()}, {python}"
