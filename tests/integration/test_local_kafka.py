"""A Kafka on any machine: each way of getting one, for real, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import docker
import psutil
import pytest
from testcontainers.core.labels import LABEL_SESSION_ID, SESSION_ID

from ingester.errors import UnavailableError
from ingester.local_kafka import Kind, LocalKafka, docker_problem, local_kafka
from tests.support.kafka import (
    committed_offsets,
    create_topic,
    end_offsets,
    produce,
    read_all,
)
from tests.support.waiting import eventually

USE_ONE = """
import sys
from ingester.local_kafka import local_kafka

say = lambda sentence: print(sentence, flush=True)
with local_kafka(say, kind=sys.argv[1]) as kafka:
    cluster = kafka.cluster
    say(f"pid {cluster.pid(0) if cluster else None}")
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names no Kafka, unless a test says so."""
    monkeypatch.delenv("INGESTER_TEST_KAFKA", raising=False)
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)


@pytest.fixture(scope="module", params=["jvm", pytest.param("docker", marks=pytest.mark.container)])
def either(request: pytest.FixtureRequest) -> Iterator[LocalKafka]:
    with local_kafka(lambda _: None, kind=request.param) as found:
        yield found


@pytest.fixture(scope="module")
def three_brokers() -> Iterator[LocalKafka]:
    with local_kafka(lambda _: None, brokers=3) as found:
        yield found


async def test_keeps_what_is_written_to_it(either: LocalKafka) -> None:
    """Records come back from a Kafka of either kind in the order of each partition."""
    servers = either.bootstrap_servers
    values = [f"{number}".encode() for number in range(100)]
    await create_topic(servers, "written", 2)
    await produce(servers, "written", values[:60], partition=0)
    await produce(servers, "written", values[60:], partition=1)

    assert await end_offsets(servers, "written") == {0: 60, 1: 40}
    assert [record.value for record in await read_all(servers, "written")] == values


async def test_creates_no_topic_unasked(either: LocalKafka) -> None:
    """Asking for what a group committed, or for a topic, brings neither into being."""
    servers = either.bootstrap_servers
    for _ in range(2):
        assert await committed_offsets(servers, "nobody") == {}
        with pytest.raises(AssertionError, match="topic unasked does not exist"):
            await end_offsets(servers, "unasked")


def test_the_jvm_and_its_data_end_with_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the block ends, the broker's process and its folder are gone."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with local_kafka(lambda _: None, kind="jvm") as kafka:
        assert kafka.cluster is not None
        pid = kafka.cluster.pid(0)
        assert psutil.pid_exists(pid)
        assert len(list(tmp_path.iterdir())) == 1

    assert not psutil.pid_exists(pid)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.container
def test_the_container_ends_with_the_block() -> None:
    """When the block ends, the container that it started is gone."""
    before = containers()
    with local_kafka(lambda _: None, kind="docker"):
        assert len(containers() - before) == 1

    assert containers() == before


@pytest.mark.container
def test_the_container_is_reached_from_this_machine_alone() -> None:
    """Where the engine runs on this machine, the broker's port is open on loopback only."""
    parent = use_one("docker", {"TESTCONTAINERS_CONNECTION_MODE": "docker_host"})
    try:
        address = said_until_up(parent)[-2].split()[-1]
        with closing(docker.from_env()) as engine:
            published = [
                f"{each['HostIp']}:{each['HostPort']}"
                for container in engine.containers.list()
                for bindings in container.ports.values()
                for each in bindings or ()
            ]
    finally:
        parent.communicate(timeout=60)

    host, port = address.split(":")
    assert host == "127.0.0.1"
    assert [each for each in published if each.endswith(f":{port}")] == [address]


@pytest.mark.container
def test_says_that_a_killed_parent_leaves_its_container() -> None:
    """Where the reaper's image cannot be had, that is said, once."""
    parent = use_one("docker", {"RYUK_CONTAINER_IMAGE": "127.0.0.1:1/nothing"})
    try:
        said = said_until_up(parent)
    finally:
        parent.communicate(timeout=60)

    assert sum("if this process is killed, the container stays" in line for line in said) == 1


def test_names_the_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the Python package `docker` that is what is said, and how to get it."""
    monkeypatch.setitem(sys.modules, "docker", None)
    monkeypatch.setitem(sys.modules, "docker.errors", None)
    monkeypatch.delitem(sys.modules, "ingester.local_kafka.container", raising=False)

    assert docker_problem() == "the Python package `docker` is missing (pip install '.[dev]')"


def test_asking_for_an_engine_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where no engine answers, no socket is left for a later test to be blamed for."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    gc.collect()

    with warnings.catch_warnings(action="always", record=True) as warned:
        assert docker_problem() == "no Docker engine answers (start one)"
        gc.collect()

    assert [str(each.message) for each in warned] == []


@pytest.mark.parametrize("last", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_leaves_nothing_of_a_parent_that_is_killed(last: signal.Signals, tmp_path: Path) -> None:
    """The broker and its data end with the process that asked for them, however that ends."""
    parent = use_one("jvm", {"TMPDIR": str(tmp_path)})
    try:
        pid = broker_pid(parent)
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        parent.send_signal(last)
        parent.communicate(timeout=30)

    eventually(lambda: not psutil.pid_exists(pid))
    eventually(lambda: list(tmp_path.iterdir()) == [])


def test_two_at_once_share_one_download(tmp_path: Path) -> None:
    """Two processes that find an empty cache at once both get a broker, from one download."""
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    parents = [use_one("jvm", environment), use_one("jvm", environment)]
    said = []
    try:
        pids = {broker_pid(parent, said) for parent in parents}
    finally:
        for parent in parents:
            parent.communicate(timeout=60)

    assert len(pids) == 2
    assert sum(line.startswith("fetching Kafka") for line in said) == 1
    kept = [path.name for path in (tmp_path / "pacspace-ingester").iterdir()]
    assert sorted(kept) == ["kafka-4.3.1", "lock"]


async def test_three_brokers_survive_the_loss_of_one(three_brokers: LocalKafka) -> None:
    """With one broker of three killed, confirmed writes go on, and nothing is lost."""
    servers, cluster = three_brokers.bootstrap_servers, three_brokers.cluster
    assert cluster is not None
    await create_topic(servers, "usage", 3)
    await produce(servers, "usage", [b"before"] * 30)

    await asyncio.to_thread(cluster.kill, 1)
    await produce(servers, "usage", [b"without"] * 30)
    await asyncio.to_thread(cluster.start, 1)
    await produce(servers, "usage", [b"after"] * 30)

    values = [record.value for record in await read_all(servers, "usage")]
    assert {value: values.count(value) for value in values} == {
        b"before": 30,
        b"without": 30,
        b"after": 30,
    }


def test_takes_the_kafka_that_is_named(
    three_brokers: LocalKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Kafka that the environment names is taken before any other, and nothing is started."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", three_brokers.bootstrap_servers)
    said: list[str] = []
    with local_kafka(said.append) as kafka:
        assert kafka.bootstrap_servers == three_brokers.bootstrap_servers
    assert said == [kafka.how]


def test_insists_on_the_kafka_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the Kafka that is named does not answer, that is said, and no other is taken."""
    monkeypatch.setenv("INGESTER_TEST_KAFKA", "127.0.0.1:1")
    with (
        pytest.raises(UnavailableError, match=r"does not answer at 127\.0\.0\.1:1"),
        local_kafka(print),
    ):
        pass


@pytest.mark.container
def test_falls_back_on_the_jvm_without_the_image() -> None:
    """An engine that cannot have the image is named, and a JVM does instead."""
    parent = use_one("auto", {"TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX": "127.0.0.1:1/"})
    said: list[str] = []
    try:
        broker_pid(parent, said)
    finally:
        parent.communicate(timeout=60)
    assert "127.0.0.1:1/apache/kafka:4.3.1 is neither there nor can it be pulled" in said[1]
    assert "in a JVM" in said[-1]


@pytest.mark.parametrize(
    ("java", "expected"),
    [
        (None, "no Java was found in PATH: install a JRE 17"),
        ("11.0.2", "Kafka needs Java 17 or newer"),
        ("17.0.1", "install Maven"),
    ],
)
def test_says_what_to_install(
    java: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with no engine and no JVM of use, the error says what would help."""
    if java is not None:
        program = tmp_path / "java"
        program.write_text(f"#!/bin/sh\necho 'openjdk version \"{java}\"' >&2\n", encoding="utf-8")
        program.chmod(0o755)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(UnavailableError) as caught, local_kafka(print):
        pass
    for part in ("no Docker engine answers", expected, "INGESTER_TEST_KAFKA=host:port"):
        assert part in str(caught.value)


def test_shows_why_a_broker_did_not_come_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Kafka said before it failed is part of the error, and nothing is left of it."""
    jars = tmp_path / "pacspace-ingester" / "kafka-4.3.1"
    jars.mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with (
        pytest.raises(UnavailableError, match="Could not find or load main class"),
        local_kafka(print, kind="jvm"),
    ):
        pass


def use_one(kind: Kind, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Another process that holds a Kafka until its standard input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", USE_ONE, kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
        text=True,
    )


def broker_pid(parent: subprocess.Popen[str], said: list[str] | None = None) -> int:
    """The broker's process once it is up; `said` gets what the parent reported until then."""
    *before, pid = said_until_up(parent)
    if said is not None:
        said += before
    return int(pid.removeprefix("pid "))


def said_until_up(parent: subprocess.Popen[str]) -> list[str]:
    """What the parent reported until its broker was up; the line about its process is the last."""
    assert parent.stdout is not None
    said = []
    for line in parent.stdout:
        said.append(line)
        if line.startswith("pid "):
            return said
    raise AssertionError("the parent ended before its broker was up")


def containers() -> set[str]:
    """The Kafka containers of this process, running or not."""
    with closing(docker.from_env()) as engine:
        ours = {"label": f"{LABEL_SESSION_ID}={SESSION_ID}", "ancestor": "apache/kafka:4.3.1"}
        return {container.id for container in engine.containers.list(all=True, filters=ours)}
