"""What became of every event after the faults: Kafka, the receipts and PacSpace side by side.

Judged from outside alone. What the topic holds is what counts: an event that a producer wrote twice
is two events, and one that it gave up may be there all the same.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.support.kafka import committed_offsets, end_offsets, read_all
from tests.support.workers import Event, Worker, totals
from tests.torture.failover_stage import PARTITIONS, Mark, Stage

_SHOWN_MAX = 5


@dataclass(frozen=True, slots=True)
class Silence:
    """How long after a mark the partition that had to wait longest heard nothing."""

    mark: Mark
    producer_seconds: float
    """Without an acknowledgement by the brokers."""
    settled_seconds: float
    """Without an acknowledgement by PacSpace."""
    everywhere_seconds: float
    """Without an acknowledgement by PacSpace of any partition."""


@dataclass(slots=True)
class Verdict:
    """What one scenario came to; without problems every promise was kept."""

    scenario: str
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What breaks no promise and should not be: errors logged that ask nobody for anything."""
    silences: list[Silence] = field(default_factory=list)
    events: int = 0
    doubled_by_producer: int = 0
    given_up_by_producer: int = 0
    batches: int = 0
    replayed: int = 0
    receipts_doubled: int = 0
    rebalances: int = 0
    retries: Counter[str] = field(default_factory=Counter)

    def lines(self) -> Iterator[str]:
        """The figures and the problems, for people."""
        yield (
            f"{self.scenario}: {'FAILED' if self.problems else 'kept'}; {self.events} events in"
            f" {self.batches} batches, {self.replayed} answered twice, {self.rebalances}"
            f" assignments, {self.receipts_doubled} second receipts; the producer doubled"
            f" {self.doubled_by_producer} and gave up {self.given_up_by_producer}"
        )
        yield f"  retries: {', '.join(f'{n} {name}' for name, n in self.retries.items()) or 'none'}"
        for each in self.silences:
            yield (
                f"  {each.mark.what}: settled again after {each.settled_seconds:.1f} s in every"
                f" partition, {each.everywhere_seconds:.1f} s in the first"
                f" (the producer waited {each.producer_seconds:.1f} s)"
            )
        yield from (f"  remark: {remark}" for remark in self.remarks)
        yield from (f"  PROBLEM: {problem}" for problem in self.problems)


async def judge(stage: Stage, verdict: Verdict, ended_at: float) -> None:
    """Fill in the verdict once the load has ended and everything had time to be settled."""
    _judge_workers(stage, verdict)
    records = await read_all(stage.group.servers, stage.topic)
    events = [json.loads(record.value) for record in records]
    numbers = Counter(event["metadata"]["number"] for event in events)
    verdict.events = len(events)
    verdict.doubled_by_producer = numbers.total() - len(numbers)
    verdict.given_up_by_producer = stage.load.failed
    unwritten = stage.load.acknowledged - numbers.keys()
    if unwritten:
        verdict.problems.append(f"the brokers lost what they acknowledged: {_some(unwritten)}")
    _judge_totals(stage, verdict, events)
    await _judge_offsets(stage, verdict)
    verdict.silences = list(_silences(stage, ended_at))


def _judge_workers(stage: Stage, verdict: Verdict) -> None:
    for worker in stage.workers:
        if worker.process.exit_code is not None:
            verdict.problems.append(
                f"worker {worker.process.pid} ended with {worker.process.exit_code}:"
                f" {worker.process.log()[-800:]}"
            )
    for worker in stage.workers + stage.killed:
        if "\nTraceback" in worker.process.log():
            verdict.problems.append(f"worker {worker.process.pid} printed a traceback")
        said = Counter(each["event"] for each in _logged(worker))
        verdict.rebalances += said["partitions.assigned"]
        verdict.retries += Counter(
            {name: said[name] for name in said if name.endswith((".retried", ".in_doubt"))}
        )
        verdict.problems += [
            f"{each['partition']} halted: {each['reason']}"
            for each in worker.events("partition.halted")
        ]
        verdict.remarks += [
            f"worker {worker.process.pid} logged an error: {each['event']}"
            for each in _logged(worker)
            if each["level"] == "error"
        ]


def _judge_totals(stage: Stage, verdict: Verdict, events: Iterable[Event]) -> None:
    report = stage.simulator.report()
    verdict.batches, verdict.replayed = report["batches"], report["replayed"]
    expected, actual = totals(events), report["keys"]
    wrong = {
        key: f"{actual.get(key)} instead of {expected.get(key)}"
        for key in sorted(expected.keys() | actual.keys())
        if expected.get(key) != actual.get(key)
    }
    if wrong:
        verdict.problems.append(f"PacSpace's totals of {len(wrong)} keys differ: {_some(wrong)}")
    if report["conflicts"]:
        verdict.problems.append(f"{report['conflicts']} keys were sent with another body")


async def _judge_offsets(stage: Stage, verdict: Verdict) -> None:
    servers = stage.group.servers
    ends = await end_offsets(servers, stage.topic)
    committed = {
        where.partition: stored.offset
        for where, stored in (await committed_offsets(servers, stage.group.name)).items()
    }
    if committed != ends:
        verdict.problems.append(f"committed are {committed}, the topic ends at {ends}")
    if letters := await read_all(servers, f"{stage.topic}.dead-letters"):
        verdict.problems.append(f"{len(letters)} dead letters of events that are valid")
    records = await read_all(servers, stage.receipts_topic)
    receipts = [json.loads(record.value) for record in records]
    distinct = {
        (each["partition"], each["firstOffset"], each["nextOffset"], each["idempotencyKey"]): each
        for each in receipts
    }
    verdict.receipts_doubled = len(receipts) - len(distinct)
    verdict.problems += _uncovered(distinct.values(), ends)
    applied = stage.simulator.report(batch_ids=True)["batch_ids"].keys()
    receipted = Counter(each["batchId"].removeprefix("batch_") for each in distinct.values())
    if applied != receipted.keys() or receipted.total() != len(receipted):
        verdict.problems.append(
            f"batches without a receipt: {_some(applied - receipted.keys())}; receipts without a"
            f" batch: {_some(receipted.keys() - applied)}; {len(applied)} batches, "
            f"{receipted.total()} receipts"
        )
    bits: Counter[str] = Counter()
    for each in distinct.values():
        bits.update(each["bitsByKey"])
    actual = {key: total["bits"] for key, total in stage.simulator.report()["keys"].items()}
    if dict(bits) != actual:
        verdict.problems.append("the receipts' bits by key differ from PacSpace's")


def _uncovered(receipts: Iterable[dict[str, Any]], ends: dict[int, int]) -> Iterator[str]:
    """Where the ranges of a partition's receipts do not follow each other without gap."""
    ranges = defaultdict(list)
    for each in receipts:
        ranges[each["partition"]].append((each["firstOffset"], each["nextOffset"]))
    for partition, end in ends.items():
        at = 0
        for first_offset, next_offset in sorted(ranges[partition]):
            if first_offset != at:
                yield f"receipts of partition {partition}: {first_offset} follows on {at}"
            at = next_offset
        if at != end:
            yield f"receipts of partition {partition} end at {at}, the topic at {end}"


def _silences(stage: Stage, ended_at: float) -> Iterator[Silence]:
    settled: list[list[float]] = [[] for _ in range(PARTITIONS)]
    for worker in stage.workers + stage.killed:
        for each in worker.events("batch.acknowledged"):
            partition = int(each["partition"].rpartition(":")[2])
            settled[partition].append(datetime.fromisoformat(each["timestamp"]).timestamp())
    everywhere = list(itertools.chain(*settled))
    untils = [*(mark.at for mark in stage.marks[1:]), ended_at]
    for mark, until in zip(stage.marks, untils, strict=True):
        yield Silence(
            mark,
            max(_longest_gap(each, mark.at, until) for each in stage.load.acknowledged_at),
            max(_longest_gap(each, mark.at, until) for each in settled),
            _longest_gap(everywhere, mark.at, until),
        )


def _longest_gap(times: Iterable[float], since: float, until: float) -> float:
    within = [since, *sorted(each for each in times if since < each < until), until]
    return max(later - earlier for earlier, later in itertools.pairwise(within))


def _logged(worker: Worker) -> Iterator[dict[str, Any]]:
    for line in worker.process.log().splitlines(keepends=True):
        if line[0] == "{" and line[-1] == "\n":
            yield json.loads(line)


def _some(what: Iterable[object] | Sequence[object]) -> str:
    if isinstance(what, dict):
        what = [f"{key}: {value}" for key, value in what.items()]
    shown = sorted(map(str, what))
    more = f" and {len(shown) - _SHOWN_MAX} more" if len(shown) > _SHOWN_MAX else ""
    return f"{', '.join(shown[:_SHOWN_MAX]) or 'none'}{more}"
