"""A record that no client here can read: nothing of what surrounds it is lost with it."""

from __future__ import annotations

import json
from collections.abc import Callable

from ingester.core.record import TopicPartition
from ingester.kafka.range import RangeReader
from ingester.local_kafka import LocalKafka
from ingester.settings import KafkaSettings
from tests.conftest import TopicFactory
from tests.support.kafka import produce
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.unreadable import produce_unreadable
from tests.support.waiting import eventually
from tests.support.workers import Group, totals, usage

GroupOf = Callable[..., Group]


async def test_what_cannot_be_read_is_passed_by_a_decision(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, ingesters: Ingesters
) -> None:
    """What precedes it is settled at once, what follows its record batch once somebody says so."""
    group = group_of(await topic())
    (name,) = group.topics
    events = usage(15)
    await group.produce(events[:5], partition=0)
    inside = [json.dumps(event).encode() for event in events[5:10]]
    await produce_unreadable(group.servers, name, inside, 3)
    await group.produce(events[10:], partition=0)
    worker = group.start(linger_seconds="30")
    (halt,) = eventually(lambda: worker.events("partition.halted"))
    assert f"ingester resolve {name}:0:8 --as skipped" in halt["reason"]
    await group.commits({0: 8})
    assert simulator.report()["keys"] == totals(events[:8])

    why = ("--as", "skipped", "--reason", "header names are no UTF-8")
    shown = ingesters.run("resolve", f"{name}:0", settings=group.settings()).stdout
    assert f"{name}:0[8,10) cannot be read. To go on without: ingester resolve {name}:0:8" in shown
    refused = ingesters.run("resolve", f"{name}:0:12", *why, settings=group.settings())
    decided = ingesters.run("resolve", f"{name}:0:8", *why, settings=group.settings())

    assert refused.returncode == 64
    assert decided.returncode == 0, decided.stderr
    assert f"{name}:0[8,10) is passed without being settled" in decided.stdout
    await group.commits({0: 15})
    assert simulator.report()["keys"] == totals(events[:8] + events[10:])


async def test_the_first_record_of_all_can_be_passed(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, ingesters: Ingesters
) -> None:
    """A group that has settled nothing yet has committed where it stands."""
    group = group_of(await topic())
    (name,) = group.topics
    await produce_unreadable(group.servers, name, [b"{}"], 0)
    await group.produce(usage(5), partition=0)
    worker = group.start()
    eventually(lambda: worker.events("partition.halted"))

    def decided() -> bool:
        ended = ingesters.run(
            "resolve",
            f"{name}:0:0",
            *("--as", "skipped", "--reason", "header names are no UTF-8"),
            settings=group.settings(),
        )
        return ended.returncode == 0

    eventually(decided)

    await group.settled()
    assert simulator.report()["keys"] == totals(usage(5))


async def test_a_range_beside_the_unreadable_is_read_again(
    kafka: LocalKafka, topic: TopicFactory
) -> None:
    """Of a range that holds it, what precedes it is."""
    name = await topic()
    await produce(kafka.bootstrap_servers, name, usage(5), partition=0)
    await produce_unreadable(kafka.bootstrap_servers, name, [b"5", b"6", b"7"], 1)
    await produce(kafka.bootstrap_servers, name, usage(5), partition=0)
    settings = KafkaSettings(kafka_bootstrap_servers=(kafka.bootstrap_servers,), topic=(name,))
    reader = RangeReader(settings)
    partition = TopicPartition(name, 0)

    async def offsets(first_offset: int, next_offset: int) -> list[int]:
        read = await reader.read(partition, first_offset, next_offset)
        return [record.offset for record in read]

    try:
        assert await offsets(2, 6) == [2, 3, 4, 5]
        assert await offsets(4, 10) == [4, 5]
        assert await offsets(8, 13) == [8, 9, 10, 11, 12]
        assert await reader.unreadable(partition, 5) is None
        assert await reader.unreadable(partition, 6) == (6, 8)
        assert await reader.unreadable(partition, 13) is None
    finally:
        await reader.stop()


async def test_foreign_records_among_the_receipts_stop_nobody(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, ingesters: Ingesters
) -> None:
    """One that nests without end and one that cannot be read are left aside, by all who read on."""
    group = group_of(await topic())
    (name,) = group.topics
    first = group.start()
    await group.produce(usage(10), partition=0)
    await group.settled()
    first.process.terminate()
    assert first.process.wait() == 0
    nested = b'{"kind":"receipt","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    await produce(group.servers, f"{name}.receipts", [nested], partition=0)
    for other in ("receipts", "dead-letters"):
        await produce_unreadable(group.servers, f"{name}.{other}", [b"{}", b"{}"], 0)

    verbs = (["reconcile"], ["status"], ["explain", f"{name}:0:3"], ["resolve"], ["dlq", "list"])
    ended = [ingesters.run(*verb, settings=group.settings()) for verb in verbs]
    assert [each.returncode for each in ended] == [0] * len(verbs), ended

    group.start()
    await group.produce(usage(10, first=10), partition=0)
    await group.settled()
    assert simulator.report()["keys"] == totals(usage(20))
