"""A partition that is behind and does not move is reported, whatever the reason."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from tests.conftest import TopicFactory
from tests.support.simulator import Simulator
from tests.support.waiting import eventually
from tests.support.workers import Group, Worker, totals, usage

GroupOf = Callable[..., Group]


def stalled_partitions(worker: Worker) -> float:
    """The gauge, as Prometheus would read it."""
    text = httpx.get(f"http://{worker.address}/metrics").raise_for_status().text
    name = "ingester_partitions_stalled "
    (line,) = (line for line in text.splitlines() if line.startswith(name))
    return float(line.removeprefix(name))


async def test_a_partition_that_does_not_move_is_reported_once(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """And again when it moves; one that is settled or empty does not stall."""
    group = group_of(await topic(3))
    settled, events = usage(5), usage(20, first=5)
    await group.produce(settled, partition=1)
    worker = group.start(stall_seconds="2")
    await group.settled()
    simulator.add_faults({"match": {"method": "POST"}, "effect": {"kind": "answer", "status": 500}})
    await group.produce(events, partition=0)

    (stalled,) = eventually(lambda: worker.events("partition.stalled"), 60)
    assert stalled["level"] == "error"
    assert stalled["partition"] == f"{group.topics[0]}:0"
    assert stalled["seconds"] >= 2
    assert stalled_partitions(worker) == 1

    simulator.clear_faults()
    eventually(lambda: worker.events("partition.moved"), 60)
    await group.settled()
    assert simulator.report()["keys"] == totals(settled + events)
    assert len(worker.events("partition.stalled")) == 1
    eventually(lambda: stalled_partitions(worker) == 0, 60)
