"""`ingester replay` of what workers without receipts may have settled, and of names and periods."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TopicFactory
from tests.support.processes import Ingesters, said_on_a_terminal
from tests.support.simulator import Simulator
from tests.support.waiting import eventually
from tests.support.workers import Group, Worker, totals, usage

GroupOf = Callable[..., Group]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def replay(ingesters: Ingesters) -> Run:
    """Runs `ingester replay` with a group's settings."""

    def run(group: Group, *arguments: str, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
        ended = ingesters.run("replay", *arguments, settings=group.settings())
        assert ended.returncode == exit_code, ended.stdout + ended.stderr
        return ended

    return run


async def settle(group: Group, **settings: str) -> None:
    """Let a worker settle what there is, and leave."""
    worker = group.start(**settings)
    await group.settled()
    stop(worker)


def stop(worker: Worker) -> None:
    worker.process.terminate()
    assert worker.process.wait() == 0


@pytest.fixture
async def group(group_of: GroupOf, topic: TopicFactory) -> Group:
    """A topic of 300 events: settled with receipts, settled without, and not settled."""
    found = group_of(await topic(1))
    await found.produce(usage(100))
    await settle(found)
    await found.produce(usage(100, first=100))
    await settle(found, receipts="off", items_max="7")
    await found.produce(usage(100, first=200))
    return found


async def test_what_workers_without_receipts_may_have_settled_is_left_out_and_named(
    group: Group, replay: Run, simulator: Simulator, tmp_path: Path
) -> None:
    """Only what is beyond the committed offset is sent, and the totals are exact."""
    (name,) = group.topics

    done = replay(group, "--unreceipted", "--save", str(tmp_path / "plan.json"))

    left_out = f"100 offsets of {name}:0 are below the committed offset without a receipt"
    assert f"{left_out}, and left out" in done.stdout
    assert "--below-committed --reason" in done.stdout
    assert simulator.report()["keys"] == totals(usage(300))
    again = replay(group, name)
    assert "Nothing to send" in again.stdout
    assert left_out in again.stdout
    planned = json.loads(replay(group, f"{name}:0:50-150", "--dry-run", "--json").stdout)
    assert (planned["partitions"], planned["unaccounted"]) == ({}, {"0": [[100, 150]]})


async def test_it_is_sent_by_decision(
    group: Group, replay: Run, simulator: Simulator, tmp_path: Path
) -> None:
    """With a reason, and said aloud; a second run sends nothing."""
    asked = ("--unreceipted", "--below-committed")
    assert "--reason" in replay(group, *asked, exit_code=64).stderr

    decided = (*asked, "--reason", "the offset was set by hand")
    done = replay(group, *decided, "--save", str(tmp_path / "plan.json"))

    assert "100 offsets are below the committed offset without a receipt, and sent" in done.stdout
    again = [*usage(300), *usage(100, first=100)]
    assert simulator.report()["keys"] == totals(again)
    assert "Nothing to send" in replay(group, *decided).stdout
    assert simulator.report()["keys"] == totals(again)


async def test_what_was_settled_without_receipts_since_the_plan_is_not_sent(
    group: Group, replay: Run, simulator: Simulator, tmp_path: Path
) -> None:
    """The plan is refused, and one that is made again has the rest."""
    plan = tmp_path / "plan.json"
    replay(group, "--unreceipted", "--dry-run", "--save", str(plan))
    await settle(group, receipts="off")

    refused = replay(group, "--plan", str(plan), exit_code=64)

    assert "100 offsets" in refused.stderr
    assert "since the plan was made, without a receipt" in refused.stderr
    assert simulator.report()["keys"] == totals(usage(300))
    assert "Nothing to send" in replay(group, "--unreceipted").stdout
    await group.produce(usage(10, first=300))
    await settle(group)
    assert simulator.report()["keys"] == totals(usage(310))


async def test_a_plan_that_has_ended_says_when(
    group: Group, replay: Run, simulator: Simulator, tmp_path: Path
) -> None:
    """And not that it had something to send."""
    plan = str(tmp_path / "plan.json")
    replay(group, "--unreceipted", "--save", plan)

    again = replay(group, "--plan", plan)

    assert again.stdout.startswith("Nothing left to send: the replay ")
    assert " ended at 20" in again.stdout
    assert "to send\n" not in again.stdout
    assert simulator.report()["keys"] == totals(usage(300))


async def test_a_name_is_used_once(
    group: Group, replay: Run, simulator: Simulator, tmp_path: Path
) -> None:
    """A second forced replay of that name would send nothing, under the keys of the first."""
    (name,) = group.topics
    forced = (f"{name}:0:0-10", "--force", "--reason", "lost", "--name", "july")
    replay(group, *forced, "--save", str(tmp_path / "1.json"))
    replay(group, f"{name}:0:20-30", "--dry-run", *forced[1:4], "--save", str(tmp_path / "2.json"))
    other = json.loads((tmp_path / "2.json").read_text())
    (tmp_path / "2.json").write_text(json.dumps(other | {"name": "july"}))

    again = replay(group, *forced, "--save", str(tmp_path / "3.json"), exit_code=64)

    assert "a replay had the name july before" in again.stderr
    assert not (tmp_path / "3.json").exists()
    refused = replay(group, "--plan", str(tmp_path / "2.json"), exit_code=64)
    assert "another one had that name" in refused.stderr
    assert simulator.report()["keys"] == totals([*usage(200), *usage(10)])


@pytest.mark.parametrize(("level", "is_told"), [("debug", True), (None, False)])
async def test_a_log_level_that_was_chosen_counts_on_a_terminal(
    group_of: GroupOf, topic: TopicFactory, tmp_path: Path, level: str | None, is_told: bool
) -> None:
    """Where a bar shows how far it is, only warnings are beside it unless somebody wants more."""
    group = group_of(await topic(1))
    await group.produce(usage(5))
    settings = group.settings()
    settings.pop("INGESTER_LOG_LEVEL")
    settings |= {"INGESTER_LOG_LEVEL": level} if level else {}

    said = said_on_a_terminal(settings, "replay", "--unreceipted", "--save", str(tmp_path / "plan"))

    assert ("batch.acknowledged" in said) == is_told
    assert "sending" in said


async def test_what_only_replays_have_settled_is_reconciled(
    group_of: GroupOf, topic: TopicFactory, replay: Run, ingesters: Ingesters, tmp_path: Path
) -> None:
    """From their receipts, for the group has committed nothing; and nothing of it is behind."""
    group = group_of(await topic(1))
    await group.produce(usage(50))
    replay(group, "--unreceipted", "--save", str(tmp_path / "plan.json"))

    asked = ("reconcile", "--from-topic")
    found = eventually_agreed(lambda: ingesters.run(*asked, settings=group.settings()))
    looked = ingesters.run("status", settings=group.settings(http_listen="off"))

    headings, row, *_ = found.splitlines()
    assert dict(zip(headings.split()[:5], row.split()[:5], strict=True)) == {
        "PARTITION": f"{group.topics[0]}:0",
        "COMMITTED": "-",
        "LOG": "[0,50)",
        "RECEIPTS": "1",
        "COVERED": "50",
    }
    assert "Nothing needs somebody; 0 offsets are still to be settled." in looked.stdout


def eventually_agreed(run: Callable[[], subprocess.CompletedProcess[str]]) -> str:
    """What it prints as soon as all balances are verified."""
    ended = eventually(lambda: ended if (ended := run()).returncode != 2 else None)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_a_period_that_is_empty_is_refused(group_of: GroupOf, replay: Run) -> None:
    """In the words of `ingester statement`, before Kafka is asked."""
    period = ("--from", "2025-06-02", "--to", "2025-06-01")
    assert "the period is empty" in replay(group_of("usage"), *period, exit_code=64).stderr
