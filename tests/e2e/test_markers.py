"""What is no record, and takes offsets all the same: the lag behind it ends."""

from __future__ import annotations

import json
from collections.abc import Callable

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete

from tests.conftest import TopicFactory
from tests.support.kafka import admin, end_offsets
from tests.support.simulator import Simulator
from tests.support.waiting import eventually
from tests.support.workers import Event, Group, totals, usage

GroupOf = Callable[..., Group]


async def transact(servers: str, topic: str, events: list[Event], *, commit: bool) -> None:
    """Write events in one transaction, and commit or abort it."""
    async with AIOKafkaProducer(
        bootstrap_servers=servers, transactional_id=f"{topic}-writer"
    ) as writer:
        await writer.begin_transaction()
        for event in events:
            await writer.send_and_wait(topic, json.dumps(event).encode(), partition=0)
        await (writer.commit_transaction() if commit else writer.abort_transaction())


async def test_the_lag_behind_a_transaction_ends(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """A marker at the end of an idle partition is committed, and so is an aborted tail."""
    group = group_of(await topic())
    name = group.topics[0]
    events = usage(20)
    group.start()
    await transact(group.servers, name, events, commit=True)
    assert await end_offsets(group.servers, name) == {0: 21}
    await group.settled()

    await transact(group.servers, name, usage(5, first=500), commit=False)

    assert await end_offsets(group.servers, name) == {0: 27}
    await group.settled()
    assert simulator.report()["keys"] == totals(events)


async def test_retention_of_a_marker_halts_nothing(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """A worker that starts after the whole log has gone begins at its end."""
    group = group_of(await topic())
    name = group.topics[0]
    first = group.start()
    await transact(group.servers, name, usage(20), commit=True)
    await group.settled()
    first.process.terminate()
    assert first.process.wait() == 0
    async with admin(group.servers) as client:
        await client.delete_records({TopicPartition(name, 0): RecordsToDelete(21)})

    second = group.start()
    eventually(second.assigned)
    await transact(group.servers, name, usage(5, first=500), commit=True)

    await group.settled()
    assert second.events("partition.halted") == []
    assert simulator.report()["keys"] == totals([*usage(20), *usage(5, first=500)])
