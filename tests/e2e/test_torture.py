"""The torture as `make torture` plays it, short: every named kill point once, and some more."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

import pytest

from ingester.local_kafka import Keeper
from ingester.local_kafka.jvm import JvmCluster, jvm_cluster
from tests.torture.endpoint import Moment
from tests.torture.judgement import judge
from tests.torture.points import BY_NAME, POINTS, Point, shuffled
from tests.torture.schedule import Act
from tests.torture.stage import Round, Stage, until

SEED = 20_261_122
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[JvmCluster]:
    with jvm_cluster(lambda _: None, 1, proxied=True) as found:
        yield found


@pytest.fixture
async def stage(cluster: JvmCluster, keeper: Keeper, tmp_path: Path) -> AsyncIterator[Stage]:
    async with Stage(cluster, keeper, tmp_path).running() as running:
        yield running


async def test_killed_at_every_step(stage: Stage) -> None:
    """A chain of workers, each killed at another named step, leaves exact totals."""
    points = shuffled(Random(SEED))

    outcome = await Act("named", tuple(points)).play(stage, SEED)

    assert outcome.violations == []
    assert {death.point for death in outcome.deaths} == {point.name for point in POINTS}
    assert outcome.kills == len(points)
    assert sum(outcome.resent.values()) > 0
    assert outcome.doubles == {}


async def test_killed_at_random_with_one_suspended(stage: Stage) -> None:
    """Members that are killed at any moment, or suspended beyond their session, double nothing."""
    round_ = Round(stage, "suspended", Random(SEED))
    async with round_.running():
        suspended, other = round_.start(), round_.start()
        await round_.assigned(suspended)
        await round_.assigned(other)
        round_.endpoint.hold(Moment.STORED)
        await round_.produce(400, poisoned=4)
        await until(
            "requests of both are held",
            lambda: round_.endpoint.held(suspended.address) and round_.endpoint.held(other.address),
            round_.state,
        )
        suspended.process.pause()
        round_.note(suspended, "suspended")
        round_.endpoint.release()
        await round_.settled()  # which the other can only do when the session has passed
        await round_.produce(200, poisoned=4)
        suspended.process.resume()
        await round_.settled()
        for _ in range(3):
            worker = round_.start()
            await round_.produce(200, poisoned=4)
            await asyncio.sleep(round_.random.uniform(0.5, 2.0))  # any moment is as good
            await round_.killed(worker, "random")
        await round_.settled()
        await judge(round_, stage.servers)

    assert round_.outcome.violations == []
    assert round_.outcome.kills == 3
    assert sum(round_.outcome.resent.values()) > 0
    assert round_.outcome.doubles == {}


RISKY = ("request applied", "request answered", "receipt held", "drain waits")


async def test_an_endpoint_that_ignores_keys_doubles_only_what_was_in_doubt(stage: Stage) -> None:
    """With INGESTER_IN_DOUBT=retry no batch is doubled that no crash left in doubt."""
    points = tuple(BY_NAME[name] for name in RISKY)

    outcome = await Act("ignored", points, honours_keys=False).play(stage, SEED)

    assert outcome.violations == []
    assert 0 < sum(outcome.doubles.values()) <= sum(outcome.in_doubt.values())


@pytest.mark.parametrize("name", ["intent stored", "request applied", "receipt held"])
async def test_an_endpoint_that_ignores_keys_doubles_nothing_where_doubt_halts(
    stage: Stage, name: str
) -> None:
    """With INGESTER_IN_DOUBT=halt partitions with something in doubt halt, and none is doubled."""
    points: tuple[Point, ...] = (BY_NAME[name],)

    outcome = await Act("halting", points, honours_keys=False, in_doubt="halt").play(stage, SEED)

    assert outcome.violations == []
    assert outcome.halted > 0
    assert outcome.doubles == {}


def test_the_command_plays_and_reports(tmp_path: Path) -> None:
    """`python -m tests.torture` kills, prints its tables and writes its figures."""
    file = tmp_path / "torture.json"
    options = ["--kills", "1", "--only", "named", "--json", str(file)]

    ended = subprocess.run(
        [sys.executable, "-m", "tests.torture", *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ,
        timeout=200,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "| together |  |  | 1 |" in ended.stdout
    assert '"violations": 0' in file.read_text(encoding="utf-8")
