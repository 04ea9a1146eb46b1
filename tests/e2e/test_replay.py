"""`ingester replay`: what has no receipt is sent once, beside whoever else is at work."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TopicFactory
from tests.support.kafka import committed_offsets
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.waiting import eventually
from tests.support.workers import Group, Worker, totals, usage

GroupOf = Callable[..., Group]
Replay = Callable[..., subprocess.CompletedProcess[str]]
PARTITIONS = 2


@pytest.fixture
def replay(ingesters: Ingesters) -> Replay:
    """Runs `ingester replay` with a group's settings."""

    def run(group: Group, *arguments: str, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
        ended = ingesters.run("replay", *arguments, settings=group.settings())
        assert ended.returncode == exit_code, ended.stdout + ended.stderr
        return ended

    return run


def stop(worker: Worker) -> None:
    worker.process.terminate()
    assert worker.process.wait() == 0


@pytest.fixture
async def half(group_of: GroupOf, topic: TopicFactory) -> Group:
    """A topic of 2,000 events, of which the first 1,000 were settled by a worker that has left."""
    group = group_of(await topic(PARTITIONS))
    await group.produce(usage(1000))
    worker = group.start()
    await group.settled()
    stop(worker)
    await group.produce(usage(1000, first=1000))
    return group


async def test_sends_what_has_no_receipt_and_a_second_run_nothing(
    half: Group, replay: Replay, simulator: Simulator, tmp_path: Path
) -> None:
    """Exactly the other half; the group's offsets stay where they are."""
    before = await committed_offsets(half.servers, half.name)
    plan = tmp_path / "plan.json"
    topic = half.topics[0]
    dry = json.loads(
        replay(half, topic, "--unreceipted", "--dry-run", "--save", str(plan), "--json").stdout
    )
    assert (dry["counts"]["items"], dry["receipted"]) == (1000, 1000)
    assert dry["counts"]["bits"] == sum(each["bits"] for each in usage(1000, first=1000))
    assert simulator.report()["keys"] == totals(usage(1000))

    done = json.loads(replay(half, "--plan", str(plan), "--json").stdout)

    assert (done["items"], done["bits"]) == (1000, dry["counts"]["bits"])
    assert simulator.report()["keys"] == totals(usage(2000))
    assert await committed_offsets(half.servers, half.name) == before
    again = replay(half, topic, "--unreceipted", "--save", str(tmp_path / "again.json"))
    assert "Nothing to send" in again.stdout
    assert not (tmp_path / "again.json").exists()
    assert json.loads(replay(half, "--plan", str(plan), "--json").stdout) == done
    assert simulator.report()["keys"] == totals(usage(2000))


async def test_a_worker_that_starts_later_passes_what_was_replayed(
    half: Group, replay: Replay, simulator: Simulator, tmp_path: Path
) -> None:
    """Its group has never committed so far; nothing is counted twice."""
    replay(half, half.topics[0], "--save", str(tmp_path / "plan.json"))
    await half.produce(usage(100, first=2000))
    worker = half.start()

    await half.settled()

    assert simulator.report()["keys"] == totals(usage(2100))
    assert worker.events("partition.halted") == []


def receipts_of(report: dict[str, Any]) -> int:
    return sum(each["items"] for each in report["keys"].values())


async def test_killed_again_and_again_it_ends_with_exact_totals(
    half: Group, ingesters: Ingesters, replay: Replay, simulator: Simulator, tmp_path: Path
) -> None:
    """By SIGKILL, ten times; each run goes on where the one before ended."""
    plan = tmp_path / "plan.json"
    replay(half, half.topics[0], "--dry-run", "--save", str(plan))
    slow = half.settings(
        items_max="7", requests_per_second_max="15", session_timeout_seconds="2"
    )  # too slow to end between two kills, quick to be missed by the group
    for number in range(10):
        had = receipts_of(simulator.report())
        process = ingesters.start("replay", "--plan", str(plan), settings=slow)
        if number % 2:
            eventually(lambda had=had: receipts_of(simulator.report()) > had)
        else:
            eventually(process.log)
        process.kill()
        process.wait()

    replay(half, "--plan", str(plan))

    assert simulator.report()["keys"] == totals(usage(2000))


async def test_beside_a_live_worker_it_leaves_to_it_what_is_its_own(
    half: Group, replay: Replay, simulator: Simulator, tmp_path: Path
) -> None:
    """What lies beyond the group's offsets; what lies below is the replay's."""
    worker = half.start()
    eventually(worker.ready)

    done = replay(half, half.topics[0], "--save", str(tmp_path / "plan.json"))

    await half.settled()
    assert simulator.report()["keys"] == totals(usage(2000)), done.stdout
    assert worker.events("partition.halted") == []


async def test_a_worker_waits_for_the_end_of_a_replay(
    half: Group,
    ingesters: Ingesters,
    replay: Replay,
    simulator: Simulator,
    tmp_path: Path,
) -> None:
    """One that starts amid a replay halts what is the replay's, and goes on by itself."""
    plan = tmp_path / "plan.json"
    replay(half, half.topics[0], "--dry-run", "--save", str(plan))
    had = receipts_of(simulator.report())
    slow = half.settings(items_max="20", requests_per_second_max="6")
    process = ingesters.start("replay", "--plan", str(plan), settings=slow)
    eventually(lambda: receipts_of(simulator.report()) > had)
    worker = half.start()
    eventually(lambda: len(worker.events("partition.halted")) == PARTITIONS)
    assert "the replay " in worker.events("partition.halted")[0]["reason"]

    assert process.wait(60) == 0, process.log()

    await half.settled()
    assert simulator.report()["keys"] == totals(usage(2000))
    assert len(worker.events("partition.reopened")) == PARTITIONS


async def test_an_interrupted_replay_says_how_to_continue_it(
    half: Group, ingesters: Ingesters, replay: Replay, simulator: Simulator, tmp_path: Path
) -> None:
    """SIGINT settles what is in flight; the plan is there to go on with."""
    plan = tmp_path / "plan.json"
    replay(half, half.topics[0], "--dry-run", "--save", str(plan))
    slow = half.settings(items_max="5", requests_in_flight_max="1", requests_per_second_max="10")
    had = receipts_of(simulator.report())
    process = ingesters.start("replay", "--plan", str(plan), settings=slow)
    eventually(lambda: receipts_of(simulator.report()) > had)
    process.signal(signal.SIGINT)
    assert process.wait() == 75
    assert f"ingester replay --plan {plan}" in process.log()

    replay(half, "--plan", str(plan))

    assert simulator.report()["keys"] == totals(usage(2000))
    assert simulator.report()["replayed"] == 0


async def test_filters_choose_records(
    half: Group, replay: Replay, simulator: Simulator, tmp_path: Path
) -> None:
    """By account and by key; the rest can be replayed afterwards."""
    topic = half.topics[0]
    replay(half, topic, "--account", "customer-3", "--save", str(tmp_path / "1.json"))
    chosen = [each for each in usage(1000, first=1000) if each["accountId"] == "customer-3"]
    assert simulator.report()["keys"] == totals([*usage(1000), *chosen])

    replay(half, topic, "--save", str(tmp_path / "2.json"))

    assert simulator.report()["keys"] == totals(usage(2000))


async def test_force_counts_once_more_and_says_so(
    half: Group, replay: Replay, simulator: Simulator, tmp_path: Path
) -> None:
    """For a reason, under keys that PacSpace has not seen, and only what it names."""
    asked = (f"{half.topics[0]}:0:10-20", "--force", "--save", str(tmp_path / "plan.json"))
    assert "--reason" in replay(half, *asked, exit_code=64).stderr
    before = simulator.report()

    done = replay(half, *asked, "--reason", "lost by PacSpace")

    assert "AGAIN" in done.stdout
    assert receipts_of(simulator.report()) == receipts_of(before) + 10
    replay(half, half.topics[0], "--save", str(tmp_path / "rest.json"))
    assert receipts_of(simulator.report()) == 2010


@pytest.mark.parametrize(
    ("moment", "says"),
    [("yesterday", "should be a time as"), ("2999-01-01", "is in the future")],
)
def test_what_is_no_time_in_the_log(
    group_of: GroupOf, replay: Replay, moment: str, says: str
) -> None:
    """Refused before Kafka is asked, in the words of the other commands."""
    assert says in replay(group_of("usage"), "--from", moment, exit_code=64).stderr


async def test_without_a_place_for_the_plan_nothing_is_sent(
    half: Group, replay: Replay, simulator: Simulator, tmp_path: Path
) -> None:
    """As in a container that may write nowhere: what cannot be continued is not begun."""
    before = simulator.report()

    refused = replay(half, half.topics[0], "--save", str(tmp_path / "no" / "p"), exit_code=64)

    assert "Name another file: --save" in refused.stderr
    assert simulator.report() == before
    replay(half, half.topics[0], "--save", str(tmp_path / "plan.json"))
    assert simulator.report()["keys"] == totals(usage(2000))
