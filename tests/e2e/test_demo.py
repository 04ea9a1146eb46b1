"""`ingester demo`: what it shows, and that it leaves nothing behind."""

from __future__ import annotations

import re
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing

import psutil
import pytest

from ingester.local_kafka import LocalKafka, free_ports
from tests.support.processes import IngesterProcess, Ingesters
from tests.support.waiting import eventually

SETTLEMENT = re.compile(
    r"""
Recorded: 100 for settlement-2025-06 → batch batch_\w+
Recorded: 250 for settlement-2025-06 → batch batch_\w+
Recorded: 150 for settlement-2025-06 → batch batch_\w+
Balance for settlement-2025-06: 500 \(3 writes\)
Total usage recorded: 500
Balance for settlement-2025-06: 500 \(3 writes\)
Agreement confirmed: both parties agree on 500
Settlement complete\. Generating invoice for 500
"""
)


def start(ingesters: Ingesters, kafka: LocalKafka, *arguments: str) -> IngesterProcess:
    # Settings of the operator's own must not reach the demo's worker.
    settings = {
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "INGESTER_ITEMS_MAX": "1",
        "INGESTER_TOPIC": "another",
    }
    return ingesters.start("demo", *arguments, settings=settings)


def children(demo: IngesterProcess) -> list[psutil.Process]:
    """The simulator and the worker, as soon as both run, and whatever else it has started."""

    def both() -> list[psutil.Process]:
        found = psutil.Process(demo.pid).children(recursive=True)
        commands = [" ".join(each.cmdline()) for each in found]
        wanted = ("ingester simulate", "ingester run")
        return found if all(any(verb in line for line in commands) for verb in wanted) else []

    return eventually(both)


def none_runs(processes: list[psutil.Process]) -> bool:
    return not any(each.is_running() and each.status() != "zombie" for each in processes)


def test_settles_three_events_and_then_many(ingesters: Ingesters, kafka: LocalKafka) -> None:
    """The settlement's lines, then totals that agree on both sides; no process is left."""
    demo = start(ingesters, kafka, "--events", "3000")
    started = children(demo)

    assert demo.wait() == 0

    said = demo.log()
    assert SETTLEMENT.search(said)
    assert "==> settling the 3,000 further events" in said
    assert "What happened to the 3,000 further events" in said
    ids = re.findall(r"→ batch (batch_\w+)", said)
    assert len(set(ids)) == 3
    facts = dict(re.findall(r"│ (\S[a-zA-Z ]+?) +│ (\S.*?) +│", said))
    assert facts["events"] == "3,000"
    assert facts["committed offsets"].startswith("3,003 over 8 partitions")
    assert facts["bits on Kafka"] == facts["bits at PacSpace"]
    assert facts["keys that differ"] == "0 of 100"
    assert f"Totals agree: {facts['bits on Kafka']} bits on both sides" in said
    assert "Traceback" not in said
    eventually(lambda: none_runs(started))


def test_stays_until_ctrl_c_and_can_be_talked_to(ingesters: Ingesters, kafka: LocalKafka) -> None:
    """With --keep the printed settings work in another terminal; Ctrl-C ends all of it."""
    demo = start(ingesters, kafka, "--events", "0", "--keep")
    eventually(lambda: "tail -f" in demo.log())
    started = children(demo)
    printed = dict(re.findall(r"^  export (\w+)=(\S+)$", demo.log(), re.MULTILINE))

    emitted = ingesters.run("emit", "settlement-2025-06", "customer-acme", "42", settings=printed)
    assert emitted.returncode == 0
    (asks,) = re.findall(r"^  ingester (status --worker \S+)$", demo.log(), re.MULTILINE)
    looked = ingesters.run(*asks.split(), settings=printed)
    assert "is known to the workers alone" not in looked.stdout
    assert f"Worker at {asks.split()[-1]}: " in looked.stdout
    wanted = ("balance", "settlement-2025-06", "--expect", "542")
    eventually(lambda: ingesters.run(*wanted, settings=printed).returncode == 0)

    demo.signal(signal.SIGINT)
    assert demo.wait() == 130
    assert "Traceback" not in demo.log()
    eventually(lambda: none_runs(started))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_leaves_nothing_when_it_is_ended(
    ingesters: Ingesters, kafka: LocalKafka, number: signal.Signals
) -> None:
    """Whoever ends it in the middle, and however, its processes end with it."""
    demo = start(ingesters, kafka, "--events", "1000000")
    started = children(demo)

    demo.signal(number)

    expected = 143 if number == signal.SIGTERM else -number
    assert demo.wait() == expected
    assert "Traceback" not in demo.log()
    eventually(lambda: none_runs(started))


@pytest.fixture
def image_of_ones_own() -> Iterator[tuple[str, Callable[..., int]]]:
    """A prefix under which Kafka's image is known to one test alone, and a count of containers."""
    import docker  # noqa: PLC0415 - where there is no engine, its client may be missing as well

    from ingester.local_kafka.container import IMAGE  # noqa: PLC0415 - as above

    prefix = f"test-{uuid.uuid4().hex[:12]}/"
    with closing(docker.from_env()) as engine:

        def count(*, ended_too: bool = False) -> int:
            found = engine.containers.list(all=ended_too, ignore_removed=True)
            return sum(each.attrs["Config"]["Image"] == prefix + IMAGE for each in found)

        if not engine.images.list(IMAGE):
            engine.images.pull(IMAGE)
        engine.images.get(IMAGE).tag(prefix + IMAGE)
        yield prefix, count
        engine.images.remove(prefix + IMAGE, force=True)


@pytest.mark.container
@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
@pytest.mark.parametrize("moment", ["starting Kafka", "tail -f"], ids=["early", "late"])
def test_leaves_no_container_when_it_is_ended(
    ingesters: Ingesters,
    image_of_ones_own: tuple[str, Callable[..., int]],
    number: signal.Signals,
    exit_code: int,
    moment: str,
) -> None:
    """A demo with a container takes it down before it exits, however little of it is up yet."""
    prefix, containers = image_of_ones_own
    settings = {"TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX": prefix}
    demo = ingesters.start("demo", "--events", "0", "--keep", settings=settings)
    eventually(lambda: moment in demo.log(), 120)
    eventually(containers)

    demo.signal(number)

    assert demo.wait() == exit_code
    assert containers(ended_too=True) == 0
    assert "Traceback" not in demo.log()


def test_says_that_the_named_kafka_does_not_answer(ingesters: Ingesters) -> None:
    """Exit code 69, the address, and what to do."""
    (port,) = free_ports(1)
    settings = {"KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{port}"}

    ended = ingesters.run("demo", settings=settings)

    assert ended.returncode == 69
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
