"""What the runs amount to: medians, ratios, the table, and the sentences that belong below it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from tests.benchmark.contenders import CONTENDERS, INGESTER, ITEMS_MAX, PLAIN, VARIANTS
from tests.benchmark.measure import Capacity, Run
from tests.benchmark.pace import Pace
from tests.benchmark.workload import Workload, varied

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
    "MB/s",
    "CPU s per million",
    "memory MiB",
    "cores",
)
ONE_WORKER = "one worker"
PACE_COLUMNS = ("part", "p50 ms", "p99 ms", "p99.9 ms")


@dataclass(frozen=True)
class Circumstances:
    """Where and when the runs took place, and on what."""

    started_at: datetime
    machine: str
    kafka: str


@dataclass(frozen=True)
class Summary:
    """The runs of one contender at one latency; medians, unless the name says otherwise."""

    contender: str
    latency_ms: float
    workload: Workload
    runs: int
    events_per_second: float
    events_per_second_min: float
    events_per_second_max: float
    steady_events_per_second: float
    climb_seconds: float
    endpoint_latency_seconds: float
    cpu_seconds_per_million: float
    resident_bytes_max: int
    requests: int
    requests_repeated_max: int
    wall_seconds: float
    own_cores: float
    endpoint_busy: float
    endpoint_busy_max: float
    rest_cores: float

    @property
    def events(self) -> int:
        return self.workload.events

    @property
    def megabytes_per_second(self) -> float:
        """Of the records' values."""
        return self.events_per_second * self.workload.value_bytes_mean / 1e6


@dataclass(frozen=True)
class Comparison:
    """One contender over another, with the same work at the same latency."""

    name: str
    other: str
    latency_ms: float
    events_per_second: float
    """How many times as many."""
    cpu_seconds_per_million: float | None
    """Which part of it; None where their runs differ in length: starting up weighs more in one."""


def summarize(runs: Sequence[Run]) -> list[Summary]:
    """Put together what belongs together, in the order of the first run of each."""
    groups: dict[tuple[float, str, Workload], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.latency_ms, run.contender, run.workload), []).append(run)
    return [_summary(group) for group in groups.values()]


def _summary(runs: Sequence[Run]) -> Summary:
    speeds = [run.events_per_second for run in runs]
    busy = [run.endpoint_busy for run in runs]
    return Summary(
        contender=runs[0].contender,
        latency_ms=runs[0].latency_ms,
        workload=runs[0].workload,
        runs=len(runs),
        events_per_second=median(speeds),
        events_per_second_min=min(speeds),
        events_per_second_max=max(speeds),
        steady_events_per_second=median(run.steady_events_per_second for run in runs),
        climb_seconds=median(run.climb_seconds for run in runs),
        endpoint_latency_seconds=median(run.endpoint_latency_seconds for run in runs),
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


def compare(summaries: Sequence[Summary]) -> list[Comparison]:
    """Hold the ingester against the plain loop, variants against it, and workers against one."""
    found = {(each.contender, each.latency_ms, _kind(each.workload)): each for each in summaries}
    against = {INGESTER.name: PLAIN.name, **{each.name: INGESTER.name for each in VARIANTS}}
    comparisons = []
    for (name, latency_ms, kind), ours in found.items():
        label = _label(ours, summaries)
        other = found.get((against.get(name, ""), latency_ms, kind))
        if other is not None:
            comparisons.append(_comparison(label, ours, other.contender, other))
        one = found.get((name, latency_ms, replace(kind, workers=1)))
        if one is not None and one is not ours:
            comparisons.append(_comparison(label, ours, ONE_WORKER, one))
    return comparisons


def _comparison(name: str, ours: Summary, other_name: str, other: Summary) -> Comparison:
    cpu = ours.cpu_seconds_per_million / other.cpu_seconds_per_million
    return Comparison(
        name=name,
        other=other_name,
        latency_ms=ours.latency_ms,
        events_per_second=ours.events_per_second / other.events_per_second,
        cpu_seconds_per_million=cpu if ours.events == other.events else None,
    )


def _kind(workload: Workload) -> Workload:
    """The same, whatever the number of events."""
    return replace(workload, events=1)


def _label(summary: Summary, summaries: Iterable[Summary]) -> str:
    properties = summary.workload.named(varied(_kind(each.workload) for each in summaries))
    return f"{summary.contender}, {properties}" if properties else summary.contender


def rows(summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """The table's cells, under COLUMNS."""
    return [
        (
            f"{each.latency_ms:g} ms",
            _label(each, summaries),
            f"{each.events:,}",
            f"{each.events_per_second:,.0f}",
            f"{each.events_per_second_min / 1000:.1f}k-{each.events_per_second_max / 1000:.1f}k",
            f"{each.megabytes_per_second:.0f}",
            f"{each.cpu_seconds_per_million:.2f}",
            f"{each.resident_bytes_max / 1024**2:.0f}",
            f"{each.own_cores:.1f}/{each.endpoint_busy:.1f}/{each.rest_cores:.1f}",
        )
        for each in summaries
    ]


def markdown(columns: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """The same table for a page."""
    rule = ["---:" if column else "---" for column in columns]
    lines = [columns, ["---", *rule[1:]], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sentences(
    summaries: Sequence[Summary], capacities: Sequence[Capacity], circumstances: Circumstances
) -> list[str]:
    """What a reader has to know to believe the table, the ratios first."""
    return [
        *_ratios(compare(summaries)),
        *_ceilings(summaries, capacities),
        _endpoint(summaries, capacities[0]),
        f"Medians of {max(each.runs for each in summaries)}. {_METHOD}",
        *_together(summaries),
        *_shorter(summaries),
        *_repeated(summaries),
        _circumstances(summaries, circumstances),
    ]


def _ratios(comparisons: Iterable[Comparison]) -> Iterable[str]:
    for each in comparisons:
        digits = 1 if each.other == PLAIN.name else 2  # a promise costs some per cent
        sentence = (
            f"{each.name} / {each.other} at {each.latency_ms:g} ms:"
            f" {each.events_per_second:.{digits}f} times the events a second"
        )
        if each.cpu_seconds_per_million is not None:
            part = 1 / each.cpu_seconds_per_million
            sentence += f", 1/{part:.{digits}f} of the CPU per event"
        yield sentence + "."


def _ceilings(summaries: Sequence[Summary], capacities: Iterable[Capacity]) -> Iterable[str]:
    possible = {each.latency_ms: each.items_per_second for each in capacities}
    for each in summaries:
        for contender in CONTENDERS:
            if each.contender == contender.name and each.latency_ms:
                workers = each.workload.workers
                in_flight = contender.requests_in_flight_max * workers
                permitted = contender.events_permitted(each.latency_ms / 1000) * workers
                allowed = contender.events_permitted(each.endpoint_latency_seconds) * workers
                steady = each.steady_events_per_second
                sentence = (
                    f"{_label(each, summaries)} at {each.latency_ms:g} ms:"
                    f" {in_flight} in flight, {ITEMS_MAX} items each, permit"
                    f" {permitted:,.0f} events/s; it reached"
                    f" {each.events_per_second / permitted:.0%} of that,"
                    f" {steady / permitted:.0%} in the second half of the run, nearly so much after"
                    f" {each.climb_seconds:.1f} s."
                    f" In fact the endpoint took {each.endpoint_latency_seconds * 1000:.1f} ms, and"
                    f" with that they permit {allowed:,.0f}:"
                    f" {each.events_per_second / allowed:.0%}, and {steady / allowed:.0%}."
                )
                if contender is INGESTER and workers == 1 and each.latency_ms in possible:
                    bare = possible[each.latency_ms]
                    sentence += (
                        f" The same bodies over as many bare connections, without Kafka:"
                        f" {bare:,.0f} items/s, {bare / permitted:.0%}."
                    )
                yield sentence


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


def _circumstances(summaries: Sequence[Summary], known: Circumstances) -> str:
    kinds = [each.workload for each in summaries]
    return (
        f"Events of {_listed(each.value_bytes_mean for each in kinds)} bytes,"
        f" {_listed(each.accounts for each in kinds)} accounts,"
        f" {_listed(each.partitions for each in kinds)} partitions; {known.kafka};"
        f" {known.machine}; {known.started_at:%Y-%m-%d %H:%M} UTC."
    )


def _listed(numbers: Iterable[int]) -> str:
    return " or ".join(f"{number:,}" for number in dict.fromkeys(numbers))


def _together(summaries: Iterable[Summary]) -> Iterable[str]:
    several = [each.workload.workers for each in summaries if each.workload.workers > 1]
    if several:
        yield (
            f"{_listed(several)} workers are one group, and none reads before each has its share of"
            " the partitions. CPU and cores are of all of them together, memory is of the one with"
            " the most."
        )


def _shorter(summaries: Sequence[Summary]) -> Iterable[str]:
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


def pace_rows(pace: Pace) -> list[tuple[str, ...]]:
    """The cells of the latency table, under PACE_COLUMNS."""
    return [
        (
            each.part,
            *(
                f"{seconds * 1000:.1f}"
                for seconds in (each.p50_seconds, each.p99_seconds, each.p999_seconds)
            ),
        )
        for each in pace.delays
    ]


def pace_sentence(pace: Pace) -> str:
    """What a reader has to know to believe the latency table."""
    return (
        f"{pace.events:,} events at {pace.events_per_second:,.0f} a second, milliseconds an event"
        " spent in each part, from the broker's timestamp on; the endpoint answers at once, and the"
        " rest is at its default. Quantiles of parts do not add up."
    )


def show(
    console: Console,
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    below: Iterable[str],
) -> None:
    """Print a table and what belongs below it: on a terminal, or as Markdown elsewhere."""
    if console.is_terminal:
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        for number, column in enumerate(columns):
            figures_are_wider = max(len(line[number]) for line in cells) >= len(column)
            justify: Literal["left", "right"] = "right" if number and column else "left"
            table.add_column(column, justify=justify, no_wrap=figures_are_wider)
        for line in cells:
            table.add_row(*line)
        console.print(table)
        for sentence in below:
            console.print(sentence, highlight=False)
    else:
        console.file.write(markdown(columns, cells) + "\n\n")
        console.file.write("".join(f"- {each}\n" for each in below) + "\n")


def as_data(
    runs: Sequence[Run],
    capacities: Sequence[Capacity],
    pace: Pace | None,
    circumstances: Circumstances,
) -> object:
    """Everything, for a file: each run, and what was made of them."""
    summaries = summarize(runs)
    return {
        "circumstances": asdict(circumstances),
        "capacities": [asdict(each) for each in capacities],
        "pace": asdict(pace) if pace else None,
        "runs": [
            {
                **asdict(run),
                "events": run.events,
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
