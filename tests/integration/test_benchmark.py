"""The benchmark as `make bench` runs it, short; its figures are not judged, its honesty is."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition

from ingester.local_kafka import Keeper, LocalKafka
from tests.benchmark import plain_loop
from tests.benchmark.contenders import PLAIN, Contender
from tests.benchmark.loading import LoadedTopic, load_topic
from tests.benchmark.measure import RunFailedError, measure_run
from tests.benchmark.membership import rebalance_held, shares
from tests.benchmark.workload import Workload
from tests.support.kafka import admin, delete_topics
from tests.support.waiting import eventually_async

ROOT = Path(__file__).parents[2]
SOURCE = Path(plain_loop.__file__).read_text()


def test_the_command_measures_both_and_prints_a_table(kafka: LocalKafka, tmp_path: Path) -> None:
    """Both contenders bring every event to the endpoint exactly once, and the report says so."""
    file = tmp_path / "figures" / "bench.json"

    ended = _bench(kafka, file, "--pace-seconds", "3")

    figures = json.loads(file.read_text())
    assert [(run["contender"], run["events"]) for run in figures["runs"]] == [
        ("plain", 20_000),
        ("ingester", 20_000),
        ("ingester without receipts", 20_000),
        ("ingester without intents", 20_000),
    ]
    assert all(run["cpu_seconds"] > 0 and run["seconds"] > 0 for run in figures["runs"])
    assert all(run["requests"] >= 200 for run in figures["runs"])
    assert [each["items"] for each in figures["capacities"]] == [2_000_000]
    assert figures["pace"]["events"] == 3_000
    delays = figures["pace"]["delays"]
    assert all(0 <= each["p50_seconds"] <= each["p999_seconds"] for each in delays)
    assert "| 0 ms | plain | 20,000 |" in ended.stdout
    assert "| 0 ms | ingester | 20,000 |" in ended.stdout
    assert "- ingester / plain at 0 ms: " in ended.stdout
    assert f"the figures of every run are in {file}" in ended.stderr


def test_two_workers_share_the_topic_of_one(kafka: LocalKafka, tmp_path: Path) -> None:
    """One worker and two bring the same events, each exactly once, and the report compares them."""
    file = tmp_path / "bench.json"

    ended = _bench(
        kafka,
        file,
        "--only",
        "ingester",
        "--no-variants",
        "--workers",
        "1,2",
        "--pace-seconds",
        "0",
    )

    runs = json.loads(file.read_text())["runs"]
    assert [(run["workload"]["workers"], run["events"]) for run in runs] == [
        (1, 20_000),
        (2, 20_000),
    ]
    assert ended.stderr.count("writing 20,000 events") == 1
    assert "| 0 ms | ingester, 2 workers | 20,000 |" in ended.stdout
    assert "- ingester, 2 workers / one worker at 0 ms: " in ended.stdout


def _bench(kafka: LocalKafka, file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    usual = ("--events", "20000", "--rounds", "1", "--latency-ms", "0", "--json", str(file))
    ended = subprocess.run(
        [sys.executable, "-m", "tests.benchmark", *usual, *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "INGESTER_TEST_KAFKA": kafka.bootstrap_servers},
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    return ended


def test_a_profile_is_drawn_or_said_to_be_forbidden(kafka: LocalKafka, tmp_path: Path) -> None:
    """`make profile` leaves a flame graph of the worker, or says what would allow it."""
    file = tmp_path / "figures" / "profile.svg"

    ended = subprocess.run(
        [sys.executable, "-m", "tests.benchmark.flame", "--events", "20000", "--file", str(file)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "INGESTER_TEST_KAFKA": kafka.bootstrap_servers},
        timeout=240,
    )

    if ended.returncode:
        assert "SYS_PTRACE" in ended.stderr
    else:
        assert "ingester/worker/loop.py" in file.read_text()


@pytest.fixture
async def loaded(kafka: LocalKafka) -> AsyncIterator[LoadedTopic]:
    """A small topic of the benchmark's events."""
    topic = await load_topic(kafka.bootstrap_servers, Workload(1_000, 2), lambda _: None)
    yield topic
    await delete_topics(kafka.bootstrap_servers, [topic.name])


async def test_nobody_reads_before_everybody_has_a_share(
    kafka: LocalKafka, loaded: LoadedTopic
) -> None:
    """Members that join one after the other get their partitions together, and get them once."""
    servers, group_id = kafka.bootstrap_servers, f"{loaded.name}-held"
    given: list[int] = []

    class Listener(ConsumerRebalanceListener):
        def on_partitions_revoked(self, revoked: object) -> None:
            """Nothing is in flight."""

        def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
            given.append(len(assigned))

    members = [AIOKafkaConsumer(bootstrap_servers=servers, group_id=group_id) for _ in range(2)]
    starting: list[asyncio.Task[None]] = []
    async with admin(servers) as client:

        async def joined() -> bool:
            return await shares(client, group_id) == [0] * (1 + len(starting))

        async with rebalance_held(client, group_id, loaded.name):
            for member in members:
                member.subscribe([loaded.name], listener=Listener())
                starting.append(asyncio.create_task(member.start()))
                await eventually_async(joined)
            assert given == []
        await asyncio.gather(*starting)
        found = await shares(client, group_id)
    await asyncio.gather(*(member.stop() for member in members))

    assert found == given == [1, 1]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("for record in batch]", "for record in batch[1:]]"),
        ('json={"items": items}', 'json={"items": items + items[:1]}'),
        ('json={"items": items}', 'json={"items": [*items[1:], {**items[0], "bits": 0}]}'),
    ],
    ids=["lost", "doubled", "changed"],
)
async def test_a_wrong_loop_is_a_failed_run(
    kafka: LocalKafka, keeper: Keeper, loaded: LoadedTopic, tmp_path: Path, right: str, wrong: str
) -> None:
    """A contender that loses, doubles or changes an event has no figures, however fast it was."""
    assert right in SOURCE

    with pytest.raises(RunFailedError, match="something was lost, doubled or changed"):
        await _measure(SOURCE.replace(right, wrong), loaded, kafka, keeper, tmp_path)


async def test_a_loop_that_ends_is_a_failed_run(
    kafka: LocalKafka, keeper: Keeper, loaded: LoadedTopic, tmp_path: Path
) -> None:
    """A contender that gives up is reported at once, with what it printed."""
    right = "response.raise_for_status()"
    assert right in SOURCE
    source = SOURCE.replace(right, 'raise SystemExit("had enough")')

    with pytest.raises(RunFailedError, match=r"(?s)ended with exit code 1;.*had enough"):
        await _measure(source, loaded, kafka, keeper, tmp_path)


async def _measure(
    source: str, topic: LoadedTopic, kafka: LocalKafka, keeper: Keeper, folder: Path
) -> None:
    script = folder / "wrong_loop.py"
    script.write_text(source)
    wrong: Contender = replace(PLAIN, command=(sys.executable, str(script)))
    await measure_run(wrong, topic, 0.0, kafka.bootstrap_servers, keeper)
