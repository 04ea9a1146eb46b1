"""Events in, totals and offsets out: what a worker does while everything else behaves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete

from tests.conftest import TopicFactory
from tests.support.kafka import admin, produce
from tests.support.simulator import Simulator
from tests.support.waiting import eventually
from tests.support.wire import Wire
from tests.support.workers import Group, totals, usage

GroupOf = Callable[..., Group]


async def test_settles_several_topics_exactly(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """Each key holds exactly its events' sum and number, and every offset is committed."""
    group = group_of(await topic(4), await topic(2))
    events, others = usage(1500), usage(700, first=5000)
    await group.produce(events)
    await produce(group.servers, group.topics[1], others)
    group.start()

    await group.settled()

    report = simulator.report()
    assert report["keys"] == totals(events + others)
    assert set(report["requests"]) == {"202"}
    assert await group.dead_letters(group.topics[0]) == []
    assert await group.dead_letters(group.topics[1]) == []


async def test_cuts_batches_by_items(group_of: GroupOf, topic: TopicFactory, wire: Wire) -> None:
    """A backlog goes in batches of exactly INGESTER_ITEMS_MAX in offset order, and the rest."""
    group = group_of(await topic(), wire=wire)
    events = usage(250)
    await group.produce(events, partition=0)
    group.start(linger_seconds="1")

    await group.settled()

    bodies = sorted(
        (json.loads(write.body)["items"] for write in wire.writes),
        key=lambda items: items[0]["metadata"]["number"],
    )
    assert bodies == [events[:100], events[100:200], events[200:]]


async def test_cuts_batches_by_bytes(
    group_of: GroupOf, topic: TopicFactory, wire: Wire, simulator: Simulator
) -> None:
    """No body is larger than INGESTER_BODY_BYTES_MAX, and none could have held one item more."""
    group = group_of(await topic(), wire=wire)
    events = [{**event, "metadata": {"text": "x" * 900}} for event in usage(40)]
    await group.produce(events, partition=0)
    group.start(linger_seconds="1", body_bytes_max="4096")

    await group.settled()

    assert [len(json.loads(write.body)["items"]) for write in wire.writes] == [4] * 10
    assert max(len(write.body) for write in wire.writes) <= 4096
    assert simulator.report()["keys"] == totals(events)


async def test_a_few_events_wait_for_the_linger_and_no_longer(
    group_of: GroupOf, topic: TopicFactory, wire: Wire
) -> None:
    """Events that fill no batch leave together when the linger has passed."""
    group = group_of(await topic(), wire=wire)
    worker = group.start(linger_seconds="1")
    eventually(worker.ready)
    produced_seconds = time.monotonic()
    await group.produce(usage(3), partition=0)
    acknowledged_seconds = time.monotonic()

    await group.settled()

    (write,) = wire.writes
    assert len(json.loads(write.body)["items"]) == 3
    assert write.arrived_seconds >= produced_seconds + 1
    assert write.arrived_seconds < acknowledged_seconds + 3


async def test_commits_nothing_past_an_unsettled_batch(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """Later batches of a partition are sent while one hangs, and none is committed before it."""
    simulator.add_faults({"match": {"key": "hole"}, "effect": {"kind": "hang"}})
    group = group_of(await topic())
    events = usage(500)
    events[250]["key"] = "hole"
    await group.produce(events, partition=0)
    group.start(linger_seconds="1", request_timeout_seconds="0.5", connect_timeout_seconds="0.4")

    eventually(lambda: simulator.report()["items"] == 400)
    eventually(lambda: simulator.report()["requests"].get("hung", 0) >= 3)
    await group.commits({0: 200})
    hung = simulator.report()["requests"]["hung"]
    eventually(lambda: simulator.report()["requests"]["hung"] >= hung + 2)
    assert await group.committed() == {0: 200}

    simulator.clear_faults()
    await group.settled()
    assert simulator.report()["keys"] == totals(events)


async def test_a_worker_that_takes_over_begins_where_the_last_one_committed(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """Workers one after another settle each event once, and the offsets are one history."""
    group = group_of(await topic(2))
    for first in (0, 100, 200):
        await group.produce(usage(100, first=first))
        worker = group.start()
        await group.settled()
        worker.process.terminate()
        assert worker.process.wait() == 0

    assert simulator.report()["keys"] == totals(usage(300))


async def test_bills_nothing_of_an_aborted_transaction(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """Committed transactions are settled, aborted ones never, and their gaps are passed."""
    group = group_of(await topic())
    kept = usage(30) + usage(30, first=60)
    async with AIOKafkaProducer(
        bootstrap_servers=group.servers, transactional_id=group.name
    ) as producer:
        for first, committed in ((0, True), (30, False), (60, True)):
            await producer.begin_transaction()
            for event in usage(30, first=first):
                await producer.send(group.topics[0], json.dumps(event).encode(), partition=0)
            await (producer.commit_transaction() if committed else producer.abort_transaction())
    group.start()

    # Each transaction ends with a marker of its own offset, the last of them behind the last event.
    await group.commits({0: 92})
    assert simulator.report()["keys"] == totals(kept)


async def test_waits_for_an_open_transaction(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """Events of a transaction count when it is committed, not before."""
    group = group_of(await topic())
    worker = group.start()
    async with AIOKafkaProducer(
        bootstrap_servers=group.servers, transactional_id=group.name
    ) as producer:
        await group.produce(usage(5), partition=0)
        await producer.begin_transaction()
        for event in usage(5, first=5):
            await producer.send(group.topics[0], json.dumps(event).encode(), partition=0)
        await producer.flush()
        await group.produce(usage(5, first=10), partition=0)
        await group.commits({0: 5})
        assert simulator.report()["keys"] == totals(usage(5))
        await producer.commit_transaction()

    await group.commits({0: 15})
    assert simulator.report()["keys"] == totals(usage(15))
    assert worker.events("partition.halted") == []


async def test_stops_a_partition_whose_committed_offset_the_log_has_lost(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """Retention past the committed offset halts that partition, aloud, and is never skipped."""
    group = group_of(await topic(2))
    await group.produce(usage(20), partition=0)
    await group.produce(usage(20, first=20), partition=1)
    worker = group.start()
    await group.settled()
    worker.process.terminate()
    assert worker.process.wait() == 0
    await group.produce(usage(50, first=100), partition=0)
    await group.produce(usage(50, first=200), partition=1)
    async with admin(group.servers) as client:
        lost = TopicPartition(group.topics[0], 0)
        await client.delete_records({lost: RecordsToDelete(before_offset=45)})

    worker = group.start()

    (halt,) = eventually(lambda: worker.events("partition.halted"))
    assert halt["partition"] == f"{group.topics[0]}:0"
    assert halt["level"] == "error"
    assert "20 is the next to be settled: retention overtook" in halt["reason"]
    await group.commits({0: 20, 1: 70})
    assert simulator.report()["keys"] == totals(usage(40) + usage(50, first=200))
    halted = worker.status()["partitions"]
    assert halted[f"{group.topics[0]}:0"]["halted"] == halt["reason"]
    assert halted[f"{group.topics[0]}:1"]["halted"] is None


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_log_lines_hold_no_secret_and_no_values(
    group_of: GroupOf, topic: TopicFactory, log_format: str
) -> None:
    """Neither the API key nor what is in the records shows up in the most talkative log."""
    group = group_of(await topic())
    events = [{**event, "metadata": {"note": "PRIVATE"}} for event in usage(5)]
    await group.produce([*events, {"key": "PRIVATE", "accountId": "PRIVATE", "bits": "1"}])
    worker = group.start(log_format=log_format)

    await group.settled()

    worker.process.terminate()
    assert worker.process.wait() == 0
    assert "batch.acknowledged" in worker.process.log()
    assert "dead_letters.written" in worker.process.log()
    assert "PRIVATE" not in worker.process.log()
    assert "pk_test" not in worker.process.log()
