"""What crowds, crashes and slowness do, played from outside: S6 to S10.

The command as it is installed, a real Kafka, and an HTTP server that was written against the API's
documentation alone. Each test is one scenario, which its claim names. Where no answer is lost the
server ignores Idempotency-Keys, so that whatever is sent again without need is counted twice.
"""

from __future__ import annotations

import asyncio
import math
import random
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import TopicFactory
from tests.support import ledger_fixtures
from tests.support.ledger_server import LedgerServer, Reaction, Write
from tests.support.waiting import eventually
from tests.support.workers import Group, Worker, totals, usage

GroupOf = Callable[..., Group]
ledger = pytest.fixture(ledger_fixtures.ledger)
group_of = pytest.fixture(ledger_fixtures.group_of)


def slow(seconds: float) -> Callable[[Write], Any]:
    async def react(_: Write) -> Reaction:
        return Reaction(delay_seconds=seconds)

    return react


async def test_s6_killed_at_random_moments(
    group_of: GroupOf, topic: TopicFactory, ledger: LedgerServer
) -> None:
    """S6: after a dozen kill -9 at random moments, of two workers, totals are exact.

    One comes back under its name and at once, the other as a stranger, whom the group lets in when
    the session of the dead one has ended: kills fall into starts and rebalances, too. None cuts
    batches as the one before it did.
    """
    lot = random.Random(6)
    ledger.react = slow(0.2)
    group = group_of(await topic(8))
    events = usage(8000)
    await group.produce(events)
    identities = ({"group_instance_id": "known"}, {})

    def start(index: int) -> Worker:
        return group.start(
            items_max=str(lot.randint(7, 13)),
            requests_in_flight_max="4",
            session_timeout_seconds="2",
            **identities[index],
        )

    workers = [start(0), start(1)]
    eventually(lambda: ledger.items_count > 200)
    for _ in range(12):
        await asyncio.sleep(lot.uniform(0.0, 1.5))
        victim = lot.randrange(2)
        workers[victim].process.kill()
        assert sum((await group.committed()).values()) <= ledger.items_count
        workers[victim] = start(victim)
    unsettled = len(events) - ledger.items_count
    ledger.react = None

    await group.settled()

    assert ledger.sums() == totals(events)
    assert unsettled > 0
    # Some kills came between a write and its commit, or they would have proved nothing.
    assert len(ledger.writes) > len(ledger.counted)


async def test_s7_members_join_and_leave(
    group_of: GroupOf, topic: TopicFactory, ledger: LedgerServer
) -> None:
    """S7: however members come and go, in the midst of rebalances too, totals are exact."""
    lot = random.Random(7)
    ledger.honours_keys = False
    ledger.react = slow(0.1)
    group = group_of(await topic(8))
    events = usage(10_000)
    await group.produce(events)
    settings = {
        "items_max": "10",
        "requests_in_flight_max": "4",
        # What is in memory takes two seconds; whoever leaves has sixteen to settle it.
        "body_bytes_max": "16 KiB",
        "buffer_bytes_max": "64 KiB",
        "session_timeout_seconds": "20",
    }
    workers = [group.start(**settings)]
    eventually(lambda: ledger.items_count > 200)
    leavers: list[Worker] = []
    for change in ("join", "join", "leave", "join", "leave", "leave", "join", "join", "leave"):
        if change == "join":
            workers.append(group.start(**settings))
        else:
            leavers.append(workers.pop(lot.randrange(len(workers))))
            leavers[-1].process.terminate()
        seen = ledger.items_count
        if lot.random() < 0.5:
            await asyncio.sleep(lot.uniform(0.0, 1.5))
        else:
            eventually(lambda seen=seen: ledger.items_count > seen + 200)
    unsettled = len(events) - ledger.items_count
    ledger.react = None

    await group.settled()

    assert ledger.sums() == totals(events)
    assert unsettled > 0
    for leaver in leavers:  # one may have been asked to leave before it had begun to listen
        codes = (0,) if leaver.events("worker.started") else (143, -signal.SIGTERM)
        assert leaver.process.wait() in codes
    assert [worker.process.exit_code for worker in workers] == [None] * len(workers)


async def test_s8_requests_that_outlast_the_poll_interval(
    group_of: GroupOf, topic: TopicFactory, ledger: LedgerServer
) -> None:
    """S8: requests that take or hang for thrice the poll interval move no partition."""
    ends_seconds = math.inf

    async def hang_for_a_while(write: Write) -> Reaction | None:
        nonlocal ends_seconds
        ends_seconds = min(ends_seconds, write.arrived_seconds + 7)
        if write.arrived_seconds > ends_seconds:
            return None
        return Reaction(delay_seconds=4) if len(ledger.writes) % 2 else Reaction(end="hang")

    ledger.react = hang_for_a_while
    group = group_of(await topic(4))
    settings = {
        "poll_interval_seconds_max": "1.5",
        "request_timeout_seconds": "5",
        "connect_timeout_seconds": "2",
        "requests_in_flight_max": "4",
        "items_max": "20",
        "body_bytes_max": "16 KiB",
        "buffer_bytes_max": "64 KiB",
    }
    workers = [group.start(**settings) for _ in range(2)]
    eventually(lambda: [len(worker.assigned()) for worker in workers] == [2, 2])
    rebalances = [len(worker.events("partitions.assigned")) for worker in workers]
    events = usage(4000)
    await group.produce(events)

    await group.settled()

    assert [len(worker.events("partitions.assigned")) for worker in workers] == rebalances
    assert ledger.sums() == totals(events)
    assert any(worker.events("batch.in_doubt") for worker in workers)
    assert all(worker.events("commit.retried") == [] for worker in workers)


async def test_s9_one_account_with_most_of_the_traffic(
    group_of: GroupOf, topic: TopicFactory, ledger: LedgerServer
) -> None:
    """S9: the tenth of the events that is not the heavy account's goes beside it, not behind it."""
    ledger.honours_keys = False
    ledger.react = slow(0.02)
    group = group_of(await topic(4))
    events = usage(10_000, keys=50)
    for number, event in enumerate(events):
        if number % 10:
            event["key"] = event["accountId"] = "heavy"
    await group.produce(events)
    group.start(items_max="20", requests_in_flight_max="4")

    await group.settled()

    assert ledger.sums() == totals(events)
    items = [item for write in ledger.counted for item in write.items]
    early = sum(item["key"] != "heavy" for item in items[: len(items) // 2])
    assert 400 < early < 600


async def test_s9_one_partition_with_most_of_the_traffic(
    group_of: GroupOf, topic: TopicFactory, ledger: LedgerServer
) -> None:
    """S9: light partitions are settled while a heavy one that came before them still waits."""
    ledger.honours_keys = False
    ledger.react = slow(0.1)
    group = group_of(await topic(8))
    heavy, light = usage(9000), usage(1000, first=50_000)
    for event in heavy:
        event["key"] = event["accountId"] = "heavy"
    await group.produce(heavy, partition=0)
    group.start(items_max="20", requests_in_flight_max="4")
    eventually(lambda: ledger.items_count >= 500)

    def heavy_settled() -> int:
        return ledger.sums()["heavy"]["items"]

    for partition in range(1, 8):
        await group.produce(light[partition - 1 :: 7], partition=partition)
    before = heavy_settled()
    eventually(lambda: ledger.items_count - heavy_settled() == len(light))
    meanwhile, waiting = heavy_settled() - before, len(heavy) - heavy_settled()
    ledger.react = None

    await group.settled()

    assert ledger.sums() == totals(heavy + light)
    # One turn in eight is a hundred and fifty; behind the heavy one they would wait for all of it.
    assert meanwhile < 1500
    assert waiting > 1500


async def test_s10_a_slow_spell(
    group_of: GroupOf, topic: TopicFactory, ledger: LedgerServer
) -> None:
    """S10: four seconds after a spell of twentyfold latency it is as fast as before."""
    usual_seconds, slow_seconds = 0.1, 2.0
    spell_begins, spell_ends, over = 4.0, 12.0, 18.0

    async def slow_spell(write: Write) -> Reaction | None:
        since = write.arrived_seconds - ledger.writes[0].arrived_seconds
        if since > over:
            return None
        return Reaction(
            delay_seconds=slow_seconds if spell_begins <= since < spell_ends else usual_seconds
        )

    def settled_per_second(begin: float, end: float) -> float:
        began_seconds = ledger.writes[0].arrived_seconds
        items = sum(
            len(write.items)
            for write in ledger.counted
            if begin <= (write.answered_seconds or 0) - began_seconds < end
        )
        return items / (end - begin)

    ledger.honours_keys = False
    ledger.react = slow_spell
    group = group_of(await topic(4))
    events = usage(10_000)
    await group.produce(events)
    group.start(items_max="10", requests_in_flight_max="8")

    await group.settled()

    assert ledger.sums() == totals(events)
    before = settled_per_second(spell_begins - 2, spell_begins)
    during = settled_per_second(spell_begins + slow_seconds, spell_ends)
    after = settled_per_second(over - 2, over)
    assert during < 0.2 * before
    assert after > 0.6 * before
