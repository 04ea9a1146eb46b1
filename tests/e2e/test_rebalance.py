"""Several workers share the partitions of a topic, and come and go while events keep coming."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.conftest import TopicFactory
from tests.support.simulator import Simulator
from tests.support.waiting import eventually, eventually_async
from tests.support.workers import Event, Group, Worker, totals, usage

GroupOf = Callable[..., Group]
PARTITIONS = 8
BURST = 50


class Load:
    """Events that keep coming; `sent` are those that the broker has."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self.sent: list[Event] = []

    async def produce(self) -> None:
        """Put bursts on the topic until cancelled; a burst is never half written."""
        while True:
            burst = usage(BURST, keys=40, first=len(self.sent))
            await asyncio.shield(self._produce(burst))
            await asyncio.sleep(0.02)

    async def _produce(self, burst: list[Event]) -> None:
        await self._group.produce(burst)
        self.sent += burst

    async def goes_on(self, simulator: Simulator) -> None:
        """Wait until events that are not sent yet are settled."""
        seen = simulator.report(keys=False)["items"]

        async def more() -> bool:
            return simulator.report(keys=False)["items"] >= seen + 4 * BURST

        await eventually_async(more, 60)


@asynccontextmanager
async def load_on(group: Group) -> AsyncIterator[Load]:
    load = Load(group)
    task = asyncio.create_task(load.produce())
    try:
        yield load
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def share(workers: list[Worker], topic: str) -> None:
    """Wait until the workers have all partitions between them, each at least one and none twice."""

    async def shared() -> bool:
        assert [worker.process.exit_code for worker in workers] == [None] * len(workers)
        given = [worker.assigned() for worker in workers]
        together = sorted(partition for each in given for partition in each)
        return all(given) and together == [f"{topic}:{number}" for number in range(PARTITIONS)]

    await eventually_async(shared, 60)


async def test_workers_come_and_go_under_load(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """Three share eight partitions, one leaves, one joins, and totals stay exact throughout."""
    group = group_of(await topic(PARTITIONS))
    name = group.topics[0]
    async with load_on(group) as load:
        workers = [group.start() for _ in range(3)]
        await share(workers, name)
        await load.goes_on(simulator)

        leaving = workers.pop(0)
        leaving.process.terminate()
        await share(workers, name)
        await load.goes_on(simulator)

        workers.append(group.start())
        await share(workers, name)
        await load.goes_on(simulator)
    assert leaving.process.wait() == 0

    await group.settled()

    assert simulator.report()["keys"] == totals(load.sent)
    for worker in (leaving, *workers):
        assert worker.events("batch.acknowledged")
        revocations = worker.events("partitions.revoked")
        assert all(each["drained"] for each in revocations)


async def test_a_killed_worker_loses_and_doubles_nothing(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """After kill -9 the others take its partitions over, and every event is counted once."""
    simulator.add_faults({"match": {"method": "POST"}, "latency_seconds": 0.05})
    group = group_of(await topic(PARTITIONS))
    name = group.topics[0]
    async with load_on(group) as load:
        workers = [group.start(session_timeout_seconds="3") for _ in range(3)]
        await share(workers, name)
        await load.goes_on(simulator)

        workers.pop(0).process.kill()
        await share(workers, name)
        await load.goes_on(simulator)

    await group.settled()

    assert simulator.report()["keys"] == totals(load.sent)


async def test_a_rebalance_waits_for_requests_in_flight(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """Partitions change hands only after slow requests are answered and committed."""
    simulator.add_faults({"match": {"method": "POST"}, "latency_seconds": 1.0})
    group = group_of(await topic(PARTITIONS))
    events = usage(8000)
    await group.produce(events)
    first = group.start(requests_in_flight_max="4")
    eventually(lambda: simulator.report(keys=False)["items"] >= 100)

    second = group.start(requests_in_flight_max="4")
    await share([first, second], group.topics[0])

    simulator.clear_faults()
    await group.settled()
    report = simulator.report()
    assert report["keys"] == totals(events)
    assert report["replayed"] == 0
    assert [each["drained"] for each in first.events("partitions.revoked")] == [True]


async def test_a_paused_worker_cannot_commit_over_its_successor(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """A worker that comes back after the group has given it up is fenced, and joins again."""
    simulator.add_faults({"match": {"method": "POST", "count": 1}, "latency_seconds": 1.0})
    group = group_of(await topic())
    events = usage(400)
    await group.produce(events[:100], partition=0)
    settings = {"session_timeout_seconds": "2", "linger_seconds": "0.5"}
    paused = group.start(**settings)
    eventually(paused.ready)
    eventually(lambda: paused.status()["requestsInFlight"] == 1)
    paused.process.pause()
    successor = group.start(**settings)
    eventually(successor.ready)
    await group.produce(events[100:], partition=0)
    await group.settled()

    paused.process.resume()

    eventually(lambda: paused.events("commit.retried"))
    assert "the group has gone on without" in paused.events("commit.retried")[0]["reason"]
    eventually(lambda: len(paused.events("partitions.assigned")) == 2)
    assert await group.committed() == {0: 400}
    assert simulator.report()["keys"] == totals(events)


async def test_a_static_member_keeps_its_share_over_a_restart(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """With INGESTER_GROUP_INSTANCE_ID a worker is back at once, and its partitions never moved."""
    group = group_of(await topic(PARTITIONS))
    settings = {"session_timeout_seconds": "20"}  # a member asks for news thrice in that time
    other = group.start(group_instance_id="other", **settings)
    worker = group.start(group_instance_id="restarted", **settings)
    await share([worker, other], group.topics[0])
    had, kept, seen = worker.assigned(), other.assigned(), len(other.events("partitions.assigned"))
    worker.process.terminate()
    assert worker.process.wait() == 0
    await group.produce(usage(200))

    again = group.start(group_instance_id="restarted", **settings)

    eventually(lambda: again.assigned() == had)
    assert other.assigned() == kept
    assert len(other.events("partitions.assigned")) == seen
    await group.settled()
    assert simulator.report()["keys"] == totals(usage(200))
