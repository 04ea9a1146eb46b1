"""Two workers under one id: the first says so and ends, the second goes on."""

from __future__ import annotations

from collections.abc import Callable

from tests.conftest import TopicFactory
from tests.support.simulator import Simulator
from tests.support.waiting import eventually
from tests.support.workers import Group, totals, usage

GroupOf = Callable[..., Group]


async def test_a_worker_whose_place_is_taken_ends_and_says_by_whom(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """It does not come back to evict the other, which has all the partitions."""
    group = group_of(await topic(2))
    first = group.start(group_instance_id="the-only-one")
    eventually(first.assigned)
    await group.produce(usage(20), partition=0)
    await group.settled()

    second = group.start(group_instance_id="the-only-one")

    assert first.process.wait() == 78
    assert "both have INGESTER_GROUP_INSTANCE_ID=the-only-one" in first.process.log()
    eventually(second.assigned)
    await group.produce(usage(20, first=100), partition=1)
    await group.settled()
    assert second.process.exit_code is None
    assert simulator.report()["keys"] == totals(usage(20) + usage(20, first=100))


async def test_a_worker_that_was_away_for_too_long_comes_back(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """Its session ended, and nobody else has its id."""
    group = group_of(await topic())
    worker = group.start(group_instance_id="the-only-one")
    eventually(worker.assigned)
    worker.process.pause()
    other = group.start(group_instance_id="another")
    eventually(other.assigned, 30)
    worker.process.resume()

    eventually(lambda: len(worker.events("partitions.assigned")) >= 2, 60)

    await group.produce(usage(20), partition=0)
    await group.settled()
    assert worker.process.exit_code is None
    assert simulator.report()["keys"] == totals(usage(20))
