"""The image and the compose file, built and run on a Docker engine as an operator would."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingester.local_kafka import free_ports
from tests.support.kafka import committed_offsets, end_offsets, produce
from tests.support.waiting import eventually, eventually_async

pytestmark = pytest.mark.container

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "deploy" / "compose.yaml"
COMMAND_SECONDS_MAX = 60.0
BUILD_SECONDS_MAX = 240.0  # below pytest's own limit, which would end the run without a clean-up
LOCKED_DOWN = ("--rm", "--read-only", "--cap-drop", "ALL", "--network", "none")
SLOW_WRITES = {"match": {"method": "POST"}, "latency_seconds": 2.0}


def docker(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = COMMAND_SECONDS_MAX,
) -> subprocess.CompletedProcess[str]:
    """Run `docker ARGUMENTS` to its end, with its two output streams apart."""
    return subprocess.run(
        ["docker", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
        timeout=timeout_seconds,
    )


def succeed(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command printed, provided that it ended well."""
    assert done.returncode == 0, f"{done.args} ended with {done.returncode}:\n{done.stderr}"
    return done.stdout.strip()


@contextmanager
def afterwards(command: str) -> Iterator[None]:
    """Run a shell command when the block ends, even when the tests are killed in it."""
    shell = subprocess.Popen(
        ["sh", "-c", f"read -r _; {command}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    try:
        yield
    finally:
        shell.stdin.close()
        assert shell.wait(COMMAND_SECONDS_MAX) == 0, f"failed: {command}"


class Stack:
    """A project of the compose file, with a name and ports of its own."""

    def __init__(self) -> None:
        self.project = f"pacspace-ingester-test-{uuid.uuid4().hex[:8]}"
        self.image = f"pacspace-ingester:{self.project}"
        self._kafka_port, self._simulator_port, self._http_port = free_ports(3)
        self._environment = {
            "IMAGE": self.image,
            "KAFKA_PORT": str(self._kafka_port),
            "SIMULATOR_PORT": str(self._simulator_port),
            "HTTP_PORT": str(self._http_port),
        }

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self._kafka_port}"

    def compose(
        self, *arguments: str, timeout_seconds: float = COMMAND_SECONDS_MAX
    ) -> subprocess.CompletedProcess[str]:
        """Run `docker compose ARGUMENTS` on the project."""
        options = ("--project-name", self.project, "--file", str(COMPOSE_FILE))
        return docker(
            "compose",
            *options,
            *arguments,
            environment=self._environment,
            timeout_seconds=timeout_seconds,
        )

    def up(self, *options: str) -> None:
        """Bring all up and wait until it is ready."""
        done = self.compose("up", "-d", "--wait", *options, timeout_seconds=BUILD_SECONDS_MAX)
        assert done.returncode == 0, f"{done.stderr}\n{self.compose('logs').stdout}"

    def ingester(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `ingester ARGUMENTS` in the container that has the settings."""
        return self.compose("exec", "-T", "ingester", "ingester", *arguments)

    def container(self, service: str) -> str:
        """The id of a service's container, running or not."""
        return succeed(self.compose("ps", "--all", "--quiet", service))

    def state(self, service: str) -> dict[str, Any]:
        """What the engine says about a service's container."""
        inspected = succeed(
            docker("inspect", "--format", "{{json .State}}", self.container(service))
        )
        return dict(json.loads(inspected))

    def volumes(self) -> set[str]:
        """The names of the volumes that the project's containers use."""
        mounts = "{{range .Mounts}}{{if .Name}}{{.Name}} {{end}}{{end}}"
        containers = succeed(self.compose("ps", "--all", "--quiet")).split()
        return set(succeed(docker("inspect", "--format", mounts, *containers)).split())

    def report(self) -> dict[str, Any]:
        """What the simulator applied so far."""
        url = f"http://127.0.0.1:{self._simulator_port}/_simulator/report"
        return dict(httpx.get(url).raise_for_status().json())

    def settled(self, key: str) -> dict[str, int] | None:
        """Bits and items that the simulator applied to a key; None when it has no such key."""
        found: dict[str, int] | None = self.report()["keys"].get(key)
        return found

    def ask(self, path: str) -> httpx.Response:
        """What the ingester's own listener answers."""
        return httpx.get(f"http://127.0.0.1:{self._http_port}{path}")

    def requests_in_flight(self) -> int:
        return int(self.ask("/status").json()["requestsInFlight"])

    async def produce(self, key: str, count: int) -> None:
        """Put this many events of one bit on the topic, from outside."""
        event = {"key": key, "accountId": "customer-acme", "bits": 1}
        await produce(self.bootstrap_servers, "usage", [event] * count)

    async def committed_events(self) -> int:
        """How many events of the topic the group has committed."""
        offsets = await committed_offsets(self.bootstrap_servers, "pacspace-ingester")
        return sum(found.offset for found in offsets.values())

    async def all_committed(self) -> bool:
        """Whether the group has committed everything that is on the topic."""
        ends = await end_offsets(self.bootstrap_servers, "usage")
        return await self.committed_events() == sum(ends.values())

    @contextmanager
    def slow_writes(self) -> Iterator[None]:
        """Make the simulator take its time for every write until the block ends."""
        faults = f"http://127.0.0.1:{self._simulator_port}/_simulator/faults"
        httpx.post(faults, json=[SLOW_WRITES]).raise_for_status()
        try:
            yield
        finally:
            httpx.delete(faults).raise_for_status()


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """The image as it is built from the working tree, removed at the end."""
    name = f"pacspace-ingester:test-{uuid.uuid4().hex[:8]}"
    with afterwards(f"docker image rm --force {name}"):
        succeed(docker("build", "--tag", name, str(ROOT), timeout_seconds=BUILD_SECONDS_MAX))
        yield name


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Everything of the compose file, up and ready."""
    found = Stack()
    with afterwards(
        f"docker compose --project-name {found.project} down --volumes --timeout 1;"
        f" docker image rm --force {found.image}"
    ):
        found.up("--build")
        yield found


def test_the_image_runs_as_an_ordinary_user(image: str) -> None:
    """The process is not root, and cannot change the program that it runs."""
    asking = "import os, ingester; print(os.getuid(), os.access(ingester.__path__[0], os.W_OK))"
    said = succeed(docker("run", *LOCKED_DOWN, "--entrypoint", "python", image, "-c", asking))

    assert said == "10001 False"


def test_the_image_is_the_command(image: str) -> None:
    """Arguments to `docker run` are those of `ingester`, with nothing writable and no network."""
    said = succeed(docker("run", *LOCKED_DOWN, image, "--help"))

    for verb in ("run", "check", "emit", "balance", "simulate"):
        assert f"\n  {verb} " in said


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "INGESTER_TOPIC is required"),
        ({"INGESTER_TOPICS": "usage"}, "INGESTER_TOPICS is not a setting"),
        (
            {
                "INGESTER_KAFKA_BOOTSTRAP_SERVERS": "kafka:9092",
                "INGESTER_TOPIC": "usage",
                "INGESTER_PACSPACE_URL": "http://pacspace.example",
                "PACSPACE_API_KEY": "pk_live_container.hunter2",
            },
            "secret_over_plain_http",
        ),
    ],
)
def test_wrong_settings_are_explained(image: str, settings: dict[str, str], expected: str) -> None:
    """Wrong settings end the container with code 78, a sentence, no traceback and no secret."""
    given = [part for pair in settings.items() for part in ("--env", "=".join(pair))]
    done = docker("run", *LOCKED_DOWN, *given, image)

    assert done.returncode == 78
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_compose_brings_up_all(stack: Stack) -> None:
    """`up --wait` returns when the worker has its partitions and everything else is healthy."""
    health = {
        service: stack.state(service)["Health"]["Status"]
        for service in ("kafka", "simulator", "ingester")
    }
    assert health == {"kafka": "healthy", "simulator": "healthy", "ingester": "healthy"}
    assert stack.state("topic")["ExitCode"] == 0
    assert stack.ask("/readyz").json() == {"ready": True}
    assert len(stack.ask("/status").json()["partitions"]) == 8


def test_the_image_knows_whether_it_is_healthy(image: str, stack: Stack) -> None:
    """The image's own health check passes beside a worker, and fails where none listens."""
    probe = json.loads(
        succeed(docker("image", "inspect", "--format", "{{json .Config.Healthcheck.Test}}", image))
    )
    assert probe.pop(0) == "CMD"

    assert docker("exec", stack.container("ingester"), *probe).returncode == 0
    assert docker("exec", stack.container("simulator"), *probe).returncode != 0


def test_three_events_settle(stack: Stack) -> None:
    """Events emitted beside the worker become the balance that both sides read."""
    key = "settlement-2025-06"
    for bits in ("100", "250", "150"):
        succeed(stack.ingester("emit", key, "customer-acme", bits))
    eventually(lambda: stack.settled(key) == {"bits": 500, "items": 3})

    assert succeed(stack.ingester("balance", key, "--expect", "500")).splitlines() == [
        f"Balance for {key}: 500 (3 writes)",
        "Agreement confirmed: both parties agree on 500",
    ]


async def test_stopping_drains(stack: Stack) -> None:
    """`docker stop` with requests in flight ends with code 0, and what they wrote is committed."""
    before = stack.report()
    with stack.slow_writes():
        await stack.produce("stopped", 500)
        eventually(stack.requests_in_flight)
        begun = time.monotonic()
        succeed(docker("stop", stack.container("ingester")))
        elapsed_seconds = time.monotonic() - begun
    after = stack.report()

    assert stack.state("ingester")["ExitCode"] == 0
    assert elapsed_seconds < 10
    assert after["items"] > before["items"]
    assert await stack.committed_events() == after["items"]

    stack.up()
    await eventually_async(stack.all_committed)
    report = stack.report()
    assert report["keys"]["stopped"] == {"bits": 500, "items": 500}
    assert report["replayed"] == 0


async def test_a_restart_neither_loses_nor_doubles(stack: Stack) -> None:
    """Events sent before, during and after a restart are each written once, and sent once."""
    started_at = stack.state("ingester")["StartedAt"]
    with stack.slow_writes():
        await stack.produce("restarted", 1000)
        eventually(stack.requests_in_flight)
        restart = asyncio.create_task(asyncio.to_thread(stack.compose, "restart", "ingester"))
        for _ in range(10):
            await stack.produce("restarted", 100)
        succeed(await restart)
    await stack.produce("restarted", 1000)
    await eventually_async(stack.all_committed)

    assert stack.state("ingester")["StartedAt"] != started_at
    report = stack.report()
    assert report["keys"]["restarted"] == {"bits": 3000, "items": 3000}
    assert report["replayed"] == 0


def test_down_leaves_nothing(stack: Stack) -> None:
    """After `down`, without any option, no container, network or volume is left."""
    ours = ("--filter", f"label=com.docker.compose.project={stack.project}", "--quiet")
    volumes = stack.volumes()
    assert len(succeed(docker("ps", "--all", *ours)).split()) == 4

    succeed(stack.compose("down"))

    assert succeed(docker("ps", "--all", *ours)) == ""
    assert succeed(docker("network", "ls", *ours)) == ""
    assert succeed(docker("volume", "ls", *ours)) == ""
    assert volumes & set(succeed(docker("volume", "ls", "--quiet")).split()) == set()
