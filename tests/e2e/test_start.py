"""What a worker says and does that cannot start: a clear message and a defined exit code."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from ingester.local_kafka import LocalKafka, free_ports
from tests.conftest import TopicFactory
from tests.support.kafka import create_topic, delete_topics
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.waiting import eventually
from tests.support.workers import Group, totals, usage

GroupOf = Callable[..., Group]
SettingsFor = Callable[..., dict[str, str]]
PACSPACE = {"INGESTER_PACSPACE_URL": "http://127.0.0.1:9", "PACSPACE_API_KEY": "pk_test_a.b"}


@pytest.fixture
def settings_for(kafka: LocalKafka, ingesters: Ingesters) -> SettingsFor:
    """The settings of a worker on a topic that does not get as far as PacSpace."""

    def settings(topic: str, **changed: str) -> dict[str, str]:
        return Group(kafka, ingesters, PACSPACE, [topic]).settings(http_listen="off", **changed)

    return settings


def test_an_unreachable_broker(settings_for: SettingsFor, ingesters: Ingesters) -> None:
    """Exit code 69 when INGESTER_STARTUP_TIMEOUT_SECONDS have passed, and the address is named."""
    (port,) = free_ports(1)
    settings = settings_for(
        "usage", kafka_bootstrap_servers=f"127.0.0.1:{port}", startup_timeout_seconds="3"
    )
    started_seconds = time.monotonic()

    ended = ingesters.run("run", settings=settings)

    assert ended.returncode == 69
    assert time.monotonic() - started_seconds < 15
    last = ended.stderr.splitlines()[-1]
    assert last == (
        f"ingester: Kafka at 127.0.0.1:{port} refuses connections. Is a broker running there, on"
        " that port?"
    )
    assert '"start.retried"' in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_missing_topic(settings_for: SettingsFor, ingesters: Ingesters) -> None:
    """Exit code 69 with the command that would create the topic; it is never created unasked."""
    ended = ingesters.run(
        "run", settings=settings_for("usage-nowhere", startup_timeout_seconds="2")
    )

    assert ended.returncode == 69
    last = ended.stderr.splitlines()[-1]
    assert "has no topic usage-nowhere: correct INGESTER_TOPIC, or create it" in last
    assert "kafka-topics.sh --bootstrap-server" in last
    assert "--create --topic usage-nowhere" in last
    assert "Traceback" not in ended.stderr


async def test_a_topic_that_comes_late(
    group_of: GroupOf, kafka: LocalKafka, simulator: Simulator
) -> None:
    """A worker that waits for its topic begins as soon as somebody has created it."""
    group = group_of("usage-late")
    worker = group.start()
    eventually(lambda: worker.events("start.retried"))

    await create_topic(kafka.bootstrap_servers, "usage-late", 2)
    try:
        await group.produce(usage(20))
        await group.settled()
    finally:
        worker.process.kill()
        names = ["usage-late", "usage-late.dead-letters", "usage-late.receipts"]
        await delete_topics(kafka.bootstrap_servers, names)
    assert simulator.report()["keys"] == totals(usage(20))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"INGESTER_ITEMS_MAX": "many"}, "INGESTER_ITEMS_MAX"),
        ({"INGESTER_ITEM_MAX": "10"}, "INGESTER_ITEM_MAX"),
        ({"INGESTER_DRAIN_TIMEOUT_SECONDS": "60"}, "drain_not_below_session_timeout"),
        ({"PACSPACE_API_KEY": "hunter2"}, "PACSPACE_API_KEY"),
        ({"INGESTER_TOPIC": ""}, "INGESTER_TOPIC"),
    ],
)
def test_wrong_settings(
    settings_for: SettingsFor,
    ingesters: Ingesters,
    changed: dict[str, str],
    said: str,
) -> None:
    """Exit code 78 before anything is reached, with the setting's name and without its secret."""
    ended = ingesters.run("run", settings={**settings_for("usage"), **changed})

    assert ended.returncode == 78
    assert said in ended.stderr
    assert "hunter2" not in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_port_that_is_taken(
    group_of: GroupOf, topic: TopicFactory, ingesters: Ingesters
) -> None:
    """Exit code 78 when the health endpoint cannot listen, with the way out."""
    group = group_of(await topic())
    first = group.start()
    eventually(first.ready)
    taken = first.address

    ended = ingesters.run("run", settings=group.settings(http_listen=taken))

    assert ended.returncode == 78
    assert f"cannot listen on {taken}" in ended.stderr
    assert "INGESTER_HTTP_LISTEN" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_wrong_api_key(
    group_of: GroupOf, topic: TopicFactory, ingesters: Ingesters, kafka: LocalKafka
) -> None:
    """`run` says that it is blocked and waits, `check` and `balance` exit with code 77."""
    simulator = Simulator(ingesters, "--api-key", "pk_test_right.secret")
    group = Group(kafka, ingesters, simulator.settings(), [await topic()])
    await group.produce(usage(10))
    worker = group.start(drain_timeout_seconds="1")

    eventually(lambda: len(worker.events("batch.blocked")) >= 2)
    assert "HTTP 401" in worker.status()["blocked"]
    assert worker.process.exit_code is None
    assert await group.committed() == {}
    settings = group.settings()
    check = ingesters.run("check", settings=settings)
    balance = ingesters.run("balance", "usage-0", settings=settings)
    assert (check.returncode, balance.returncode) == (77, 77)
    assert "HTTP 401" in balance.stderr
    assert "secret" not in worker.process.log() + check.stdout + check.stderr + balance.stderr
    worker.process.terminate()
    assert worker.process.wait() == 75

    right = {**settings, "PACSPACE_API_KEY": "pk_test_right.secret", "INGESTER_HTTP_LISTEN": "off"}
    ingesters.start("run", settings=right)
    await group.settled()
    assert simulator.report()["keys"] == totals(usage(10))
