"""A group without its offsets: what has receipts is not counted again, whatever became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import NewTopic

from tests.conftest import TopicFactory
from tests.support.kafka import admin
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.waiting import eventually, eventually_async
from tests.support.workers import Group, Worker, totals, usage

GroupOf = Callable[..., Group]
PARTITIONS = 2


@pytest.fixture
async def settled(group_of: GroupOf, topic: TopicFactory) -> Group:
    """A group that has settled 700 events, whose last worker has left."""
    group = group_of(await topic(PARTITIONS))
    await group.produce(usage(700))
    worker = group.start()
    await group.settled()
    stop(worker)
    return group


def stop(worker: Worker, exit_code: int = 0) -> None:
    worker.process.terminate()
    assert worker.process.wait() == exit_code


def halts_of(worker: Worker) -> Iterable[dict[str, Any]]:
    """The lines about all partitions, as soon as they are there."""
    found: list[dict[str, Any]] = []

    def all_halted() -> bool:
        found[:] = worker.events("partition.halted")
        return len(found) == PARTITIONS

    eventually(all_halted)
    return found


def go_on(ingesters: Ingesters, group: Group) -> None:
    for number in range(PARTITIONS):
        target = f"{group.topics[0]}:{number}:0"
        arguments = ["resolve", target, "--as", "resend", "--reason", "another group"]
        ended = ingesters.run(*arguments, settings=group.settings())
        assert ended.returncode == 0, ended.stdout + ended.stderr


async def test_a_group_by_another_name_counts_nothing_twice(
    settled: Group, ingesters: Ingesters, simulator: Simulator
) -> None:
    """It asks before it begins; then it sends what is new, and passes what has receipts."""
    before = simulator.report()
    settled.name += "-renamed"
    worker = settled.start()
    reasons = [halt["reason"] for halt in halts_of(worker)]
    assert all("no committed offset" in reason for reason in reasons), reasons
    assert simulator.report() == before

    go_on(ingesters, settled)
    await settled.produce(usage(300, first=700))

    await settled.settled()
    assert simulator.report()["keys"] == totals(usage(1000))
    assert simulator.report()["replayed"] == 0
    stop(worker)
    worker = settled.start()
    await settled.produce(usage(50, first=1000))
    await settled.settled()
    assert simulator.report()["keys"] == totals(usage(1050))
    assert worker.events("partition.halted") == []


async def test_offsets_that_somebody_sets_back_count_nothing_twice(
    settled: Group, simulator: Simulator
) -> None:
    """What has receipts is passed; to count it again is another command's business."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settled.servers, group_id=settled.name, enable_auto_commit=False
    )
    await consumer.start()
    names = [TopicPartition(settled.topics[0], number) for number in range(PARTITIONS)]
    consumer.assign(names)
    await consumer.commit(dict.fromkeys(names, (17, "")))
    await consumer.stop()
    settled.start()
    await settled.produce(usage(50, first=700))

    await settled.settled()
    assert simulator.report()["keys"] == totals(usage(750))
    assert simulator.report()["replayed"] == 0


async def test_a_topic_made_anew_is_not_taken_for_the_one_that_was_settled(
    settled: Group, ingesters: Ingesters, simulator: Simulator
) -> None:
    """Receipts of its namesake settle none of its records: it halts, and nothing is passed."""
    before = simulator.report()
    async with admin(settled.servers) as client:
        await client.delete_topics([settled.topics[0]])
    await remake(settled)
    await settled.produce(usage(700, first=5000))
    settled.name += "-anew"
    worker = settled.start()
    halts_of(worker)

    go_on(ingesters, settled)

    def made_anew() -> list[dict[str, Any]]:
        halts = worker.events("partition.halted")
        return [halt for halt in halts if "made anew" in halt["reason"]]

    eventually(lambda: len(made_anew()) == PARTITIONS)
    assert simulator.report() == before
    assert await settled.committed() == {}


async def remake(group: Group) -> None:
    """Create the first topic again, as soon as its deletion is done."""

    async def made() -> bool:
        async with admin(group.servers) as client:
            answer = await client.create_topics([NewTopic(group.topics[0], PARTITIONS, 1)])
        (error,) = [code for _, code, *_ in answer.topic_errors]
        return error == 0

    await eventually_async(made, 30.0)
