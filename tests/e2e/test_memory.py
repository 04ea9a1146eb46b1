"""A backlog larger than the buffer, while PacSpace takes nothing: bounded, patient, complete."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import pytest

from tests.conftest import TopicFactory
from tests.support.kafka import produce
from tests.support.simulator import Simulator
from tests.support.waiting import eventually
from tests.support.workers import Group, totals, usage

GroupOf = Callable[..., Group]
MIB = 1024 * 1024
BUFFER_BYTES_MAX = 4 * MIB
POLL_INTERVAL_SECONDS_MAX = 3
FAULTS = {
    "hang": {"match": {"method": "POST"}, "effect": {"kind": "hang"}},
    "blocked": {"match": {"method": "POST"}, "effect": {"kind": "answer", "status": 402}},
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_memory_is_bounded_and_the_group_kept_while_pacspace_takes_nothing(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, fault: str
) -> None:
    """Past the poll interval it holds twice the bound at most, and it loses no partition."""
    group = group_of(await topic(4))
    events = usage(25_000)
    padding = "x" * 2000
    await produce(
        group.servers,
        group.topics[0],
        [{**event, "metadata": {"padding": padding}} for event in events],
    )
    simulator.add_faults(FAULTS[fault])
    worker = group.start(
        buffer_bytes_max=str(BUFFER_BYTES_MAX),
        fetch_bytes_max=str(MIB),
        partition_fetch_bytes_max=str(MIB // 4),
        poll_interval_seconds_max=str(POLL_INTERVAL_SECONDS_MAX),
        session_timeout_seconds="3",
        request_timeout_seconds="2",
        connect_timeout_seconds="1",
    )
    eventually(worker.ready)
    idle_bytes = psutil.Process(worker.process.pid).memory_info().rss
    eventually(lambda: worker.status()["bufferedBytes"] >= BUFFER_BYTES_MAX)
    full_seconds = time.monotonic()

    def held_longer_than_the_poll_interval() -> bool:
        assert worker.status()["bufferedBytes"] < 2 * BUFFER_BYTES_MAX
        grown_bytes = psutil.Process(worker.process.pid).memory_info().rss - idle_bytes
        assert grown_bytes < 8 * BUFFER_BYTES_MAX, f"{grown_bytes / MIB:.0f} MiB more"
        return time.monotonic() > full_seconds + 2 * POLL_INTERVAL_SECONDS_MAX

    eventually(held_longer_than_the_poll_interval)
    assert await group.committed() == {}

    simulator.clear_faults()
    await group.settled()
    assert simulator.report()["keys"] == totals(events)
    assert len(worker.events("partitions.assigned")) == 1
    assert worker.events("partitions.revoked") == []
