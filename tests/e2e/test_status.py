"""What a worker says of itself while it runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import TopicFactory
from tests.support.simulator import Simulator
from tests.support.waiting import eventually
from tests.support.workers import Group, Worker, totals, usage

GroupOf = Callable[..., Group]
HELD_SECONDS = 5
METRICS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")


def metrics_of(worker: Worker) -> str:
    return httpx.get(f"http://{worker.address}/metrics").raise_for_status().text


def held_seconds(worker: Worker) -> float:
    """The gauge, as Prometheus would read it."""
    (line,) = (
        line
        for line in metrics_of(worker).splitlines()
        if line.startswith("ingester_held_seconds ")
    )
    return float(line.split()[1])


@pytest.mark.parametrize("status", [429, 503])
async def test_says_until_when_nothing_is_sent_and_why(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, status: int
) -> None:
    """While PacSpace wants no requests, its answer and the time are shown; afterwards neither."""
    simulator.add_faults(
        {
            "match": {"method": "POST", "count": 1},
            "effect": {"kind": "answer", "status": status, "retry_after": HELD_SECONDS},
        }
    )
    group = group_of(await topic())
    worker = group.start()
    eventually(worker.ready)
    before = worker.status()
    assert (before["heldUntil"], before["heldFor"], held_seconds(worker)) == (None, None, 0)
    events = usage(10)

    await group.produce(events, partition=0)

    held = eventually(lambda: (told := worker.status())["heldFor"] and told)
    assert f"HTTP {status}" in held["heldFor"]
    left = datetime.fromisoformat(held["heldUntil"]) - datetime.now(UTC)
    assert 0 < left.total_seconds() < 2 * HELD_SECONDS
    assert 0 < held_seconds(worker) < 2 * HELD_SECONDS
    await group.settled()
    after = worker.status()
    assert (after["heldUntil"], after["heldFor"], held_seconds(worker)) == (None, None, 0)
    assert simulator.report()["keys"] == totals(events)


async def test_knows_the_committed_offsets_from_the_assignment_on(
    group_of: GroupOf, topic: TopicFactory
) -> None:
    """A worker that has committed nothing yet shows what the group had before it."""
    group = group_of(await topic())
    await group.produce(usage(20), partition=0)
    first = group.start()
    await group.settled()
    first.process.terminate()
    assert first.process.wait() == 0

    worker = group.start()

    eventually(worker.ready)
    assert worker.status()["partitions"][f"{group.topics[0]}:0"]["committedOffset"] == 20
    assert worker.events("offsets.committed") == []


async def test_the_documented_metrics_are_those_of_a_worker(
    group_of: GroupOf, topic: TopicFactory
) -> None:
    """docs/metrics.md has each metric with its type, labels and meaning, and no other."""
    group = group_of(await topic())
    worker = group.start()
    await group.produce([*usage(3), {"key": "not an event"}])
    await group.settled()
    text = metrics_of(worker)
    printed = {
        sample_name: (family.type, frozenset(sample.labels) - {"le"}, family.documentation)
        for family in text_string_to_metric_families(text)
        if not family.name.endswith("_created")
        for sample in family.samples
        for sample_name in [family.name + ("_total" if family.type == "counter" else "")]
        if not sample.name.endswith("_created")
    }

    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| (.*) \|$", METRICS, re.MULTILINE)

    assert printed == {
        name: (kind, frozenset(re.findall(r"`(\w+)`", labels)), meaning)
        for name, kind, labels, meaning in rows
    }
