"""Kafka itself goes away and comes back under a running worker."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil
import pytest

from ingester.local_kafka import JvmCluster, LocalKafka, local_kafka
from tests.support.kafka import create_topic
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.waiting import eventually
from tests.support.workers import Group, totals, usage


@pytest.fixture(scope="module")
def own_kafka() -> Iterator[LocalKafka]:
    """A broker that no other test shares, so that it can be killed."""
    with local_kafka(lambda _: None, kind="jvm") as found:
        yield found


@pytest.fixture
def broker(own_kafka: LocalKafka) -> JvmCluster:
    """Runs when the test begins; it need not when it ends."""
    cluster = own_kafka.cluster
    assert cluster is not None
    if not psutil.pid_exists(cluster.pid(0)):
        cluster.start(0)
    return cluster


@pytest.fixture
async def group(
    own_kafka: LocalKafka,
    broker: JvmCluster,
    ingesters: Ingesters,
    simulator: Simulator,
    request: pytest.FixtureRequest,
) -> Group:
    name = f"usage-{request.node.name}"
    await create_topic(own_kafka.bootstrap_servers, name, 4)
    return Group(own_kafka, ingesters, simulator.settings(), [name])


async def test_a_broker_that_is_killed_and_comes_back(
    group: Group, broker: JvmCluster, simulator: Simulator
) -> None:
    """The worker waits for the broker and goes on by itself; every event is counted."""
    events = usage(1000)
    await group.produce(events)
    worker = group.start()
    await group.settled()

    broker.kill(0)
    eventually(lambda: "Unable connect to node" in worker.process.log())
    broker.start(0)

    later = usage(1000, first=1000)
    await group.produce(later)
    await group.settled()
    assert simulator.report()["keys"] == totals(events + later)
    assert worker.process.exit_code is None
    assert "Traceback" not in worker.process.log()
    # The client retries ten times a second; its places that say so are few.
    said = worker.process.log().splitlines()
    assert sum('"logger": "aiokafka' in line for line in said) < 40
    assert not any('"level": "error"' in line for line in said)


async def test_a_signal_to_a_worker_whose_broker_is_frozen(
    group: Group, broker: JvmCluster, simulator: Simulator
) -> None:
    """A broker that does not even refuse holds the exit back by seconds, not by its timeouts."""
    await group.produce(usage(100))
    worker = group.start()
    await group.settled()
    frozen = psutil.Process(broker.pid(0))
    frozen.suspend()
    try:
        worker.process.terminate()
        assert worker.process.wait(15) == 0
    finally:
        frozen.resume()
    assert "Traceback" not in worker.process.log()


async def test_a_signal_while_the_broker_is_gone(
    group: Group, broker: JvmCluster, simulator: Simulator
) -> None:
    """What cannot be committed is given up at the drain deadline, with exit code 75."""
    simulator.add_faults({"match": {"method": "POST"}, "effect": {"kind": "hang"}})
    events = usage(100)
    await group.produce(events, partition=0)
    worker = group.start(
        drain_timeout_seconds="2",
        linger_seconds="0.5",
        request_timeout_seconds="1",
        connect_timeout_seconds="0.5",
    )
    eventually(worker.ready)
    eventually(lambda: worker.status()["requestsInFlight"] == 1)
    broker.kill(0)
    simulator.clear_faults()
    eventually(lambda: worker.events("batch.acknowledged"))

    signalled_seconds = time.monotonic()
    worker.process.terminate()

    assert worker.process.wait() == 75
    assert time.monotonic() - signalled_seconds < 12
    assert "Traceback" not in worker.process.log()
