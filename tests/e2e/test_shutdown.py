"""How a worker ends: asked once, asked twice, asked early, or killed."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable

import pytest

from tests.conftest import TopicFactory
from tests.support.simulator import Simulator
from tests.support.waiting import eventually
from tests.support.workers import Group, totals, usage

GroupOf = Callable[..., Group]
SLOW = {"match": {"method": "POST"}, "latency_seconds": 0.1}
HANGING = {"match": {"method": "POST"}, "effect": {"kind": "hang"}}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_under_load_settles_what_was_read_and_nothing_twice(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, number: signal.Signals
) -> None:
    """It drains, commits exactly what PacSpace acknowledged, and the next worker does the rest."""
    simulator.add_faults(SLOW)
    group = group_of(await topic(4))
    events = usage(20_000)
    await group.produce(events)
    worker = group.start(
        requests_in_flight_max="8", body_bytes_max="64 KiB", buffer_bytes_max="128 KiB"
    )
    eventually(lambda: simulator.report(keys=False)["items"] >= 2000)

    worker.process.signal(number)

    assert worker.process.wait() == 0
    settled = simulator.report(keys=False)["items"]
    assert 2000 <= settled < len(events)
    assert sum((await group.committed()).values()) == settled
    assert worker.events("drain.started")[0]["signal"] == number.name
    assert worker.events("worker.stopped")[0]["drained"] is True

    simulator.clear_faults()
    group.start()
    await group.settled()
    report = simulator.report()
    assert report["keys"] == totals(events)
    assert report["replayed"] == 0


async def test_a_signal_does_not_wait_for_the_linger(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """Events that wait for their batch to fill are settled at once when the worker is to leave."""
    group = group_of(await topic())
    worker = group.start(linger_seconds="200")
    eventually(worker.ready)
    await group.produce(usage(5), partition=0)
    eventually(lambda: worker.status()["bufferedBytes"] > 0)
    assert simulator.report()["items"] == 0

    worker.process.terminate()

    assert worker.process.wait(10) == 0
    assert await group.committed() == {0: 5}
    assert simulator.report()["keys"] == totals(usage(5))


async def test_a_request_without_an_answer_is_given_up_at_the_drain_deadline(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """Exit code 75 within INGESTER_DRAIN_TIMEOUT_SECONDS, with nothing committed past it."""
    simulator.add_faults(HANGING)
    group = group_of(await topic())
    events = usage(50)
    await group.produce(events)
    worker = group.start(drain_timeout_seconds="1")
    eventually(worker.ready)
    eventually(lambda: worker.status()["requestsInFlight"] == 1)

    signalled_seconds = time.monotonic()
    worker.process.terminate()

    assert worker.process.wait() == 75
    assert 1 <= time.monotonic() - signalled_seconds < 5
    said = worker.process.log()
    assert "ingester: not everything was settled within 1 s (INGESTER_DRAIN_TIMEOUT" in said
    assert "Traceback" not in said
    assert await group.committed() == {}

    simulator.clear_faults()
    group.start()
    await group.settled()
    assert simulator.report()["keys"] == totals(events)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_it_at_once(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, number: signal.Signals
) -> None:
    """While a drain waits, the next signal exits with 128 and its number, committing nothing."""
    simulator.add_faults(HANGING)
    group = group_of(await topic())
    await group.produce(usage(50))
    worker = group.start(session_timeout_seconds="60")
    eventually(worker.ready)
    eventually(lambda: worker.status()["requestsInFlight"] == 1)
    worker.process.terminate()
    eventually(lambda: worker.events("drain.started"))

    worker.process.signal(number)

    assert worker.process.wait(10) == 128 + number
    assert await group.committed() == {}


@pytest.mark.parametrize("answers", ["refused", "silent"])
def test_a_signal_while_kafka_is_awaited(
    group_of: GroupOf, simulator: Simulator, answers: str
) -> None:
    """A worker that is still waiting for a broker leaves at once, with exit code 0."""
    with socket.socket() as broker:
        broker.bind(("127.0.0.1", 0))
        if answers == "silent":
            broker.listen()
        server = f"127.0.0.1:{broker.getsockname()[1]}"
        worker = group_of("usage").start(kafka_bootstrap_servers=server)
        awaited = "start.retried" if answers == "refused" else "worker.started"
        eventually(lambda: worker.events(awaited))

        worker.process.terminate()

        assert worker.process.wait(10) == 0
    assert worker.events("worker.stopped")[0]["drained"] is True
    assert "Traceback" not in worker.process.log()


async def test_a_signal_to_an_idle_worker(group_of: GroupOf, topic: TopicFactory) -> None:
    """A worker without anything to settle leaves at once, and its group has no member left."""
    group = group_of(await topic())
    worker = group.start(session_timeout_seconds="60")
    eventually(worker.ready)

    worker.process.terminate()

    assert worker.process.wait(10) == 0
    # A member that did not say goodbye would keep the partition for its session.
    successor = group.start()
    eventually(successor.ready, 20)
    assert successor.assigned() == [f"{group.topics[0]}:0"]


async def test_killed_under_load_every_event_is_counted_once(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """After kill -9, and again, totals are exact: what was in flight is sent again as it was.

    What is committed never exceeds what was acknowledged.
    """
    simulator.add_faults(SLOW)
    group = group_of(await topic(4))
    events = [{**event, "key": str(number)} for number, event in enumerate(usage(6000))]
    await group.produce(events)
    for kill in (1, 2, 3):
        worker = group.start(requests_in_flight_max="8", session_timeout_seconds="2")
        eventually(lambda kill=kill: simulator.report(keys=False)["items"] >= kill * 1000)
        worker.process.kill()
        committed = sum((await group.committed()).values())
        assert committed <= simulator.report(keys=False)["items"]

    simulator.clear_faults()
    group.start()
    await group.settled()

    assert simulator.report()["keys"] == totals(events)
