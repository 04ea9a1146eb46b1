"""`ingester dlq redrive`: dead letters are corrected, sent once, and marked."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TopicFactory
from tests.support.dead_letters import CLOSED, mixed, produce_all, said
from tests.support.kafka import admin, end_offsets, produce, read_all
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.waiting import eventually
from tests.support.workers import Group, totals, usage

GroupOf = Callable[..., Group]
Run = Callable[..., subprocess.CompletedProcess[str]]
FIX = ("--set", "key=usage-{accountId}", "--set", "bits={bits}", "--remove", "region")


@pytest.fixture
def dlq(ingesters: Ingesters) -> Run:
    """Runs `ingester dlq`, or another command, with a group's settings."""

    def run(
        group: Group, *arguments: str, verb: str = "dlq", exit_code: int = 0, **changed: str
    ) -> subprocess.CompletedProcess[str]:
        ended = ingesters.run(verb, *arguments, settings=group.settings(**changed))
        assert ended.returncode == exit_code, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stdout + ended.stderr
        return ended

    return run


def told(ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return dict(json.loads(ended.stdout))


async def test_a_thousand_mixed_letters_of_two_topics(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, dlq: Run
) -> None:
    """What can be corrected is sent once; what is refused still, or again, stays as it is."""
    simulator.add_faults(CLOSED)
    one, other, letters = await topic(2), await topic(2), await topic(1)
    group = group_of(one, other)
    shared = {"dead_letter_topic": letters}
    bad = mixed(1000)
    for number in range(4):
        name = (one, other)[number % 2]
        await produce_all(group.servers, name, number // 2, bad[number::4])
        await produce(group.servers, name, usage(50, first=50 * number), partition=number // 2)
    worker = group.start(**shared, items_max="25")
    await group.settled()
    settled = usage(200)
    assert simulator.report()["keys"] == totals(settled)
    committed = await group.committed()

    dry = told(dlq(group, "redrive", *FIX, "--dry-run", "--json", exit_code=1, **shared))
    assert simulator.report()["keys"] == totals(settled)
    first = told(dlq(group, "redrive", *FIX, "--json", exit_code=1, **shared))
    acme = [{"key": "usage-acme", "bits": 7}] * 400
    assert simulator.report()["keys"] == totals([*settled, *acme])
    text = dlq(group, "redrive", *FIX, exit_code=1, **shared)  # the account is closed still
    assert simulator.report()["keys"] == totals([*settled, *acme])
    simulator.clear_faults()
    dlq(group, "redrive", *FIX, "--account", "closed", **shared)
    closed = [{"key": "usage-closed", "bits": 7}] * 100
    again = told(dlq(group, "redrive", *FIX, "--json", exit_code=1, **shared))

    assert simulator.report()["keys"] == totals([*settled, *acme, *closed])
    assert (dry["letters"], dry["sent"], dry["plans"][0]["counts"]["items"]) == (500, [], 500)
    refused: Counter[str] = Counter()
    for each in dry["refused"]:
        refused[each["code"]] += each["letters"]
    assert refused == {
        "invalid_utf8": 200, "tombstone": 100, "invalid_json": 100, "out_of_range": 100,
    }  # fmt: skip
    (sent,) = first["sent"]
    assert (sent["items"], sent["deadLetters"], sent["bits"]) == (400, 100, 2800)
    assert "100 dead letters to send" in text.stdout
    assert "100 were refused by PacSpace again, and stay dead letters" in text.stdout
    assert (again["letters"], again["plans"], again["sent"]) == (0, [], [])
    assert len(await read_all(group.servers, letters)) == 1000
    assert await group.committed() == committed
    assert worker.process.exit_code is None
    async with admin(group.servers) as client:
        assert f"{letters}.dead-letters" not in await client.list_topics()
    redriven = json.loads(dlq(group, "list", "--redriven", "--json", **shared).stdout)["letters"]
    stats = told(dlq(group, "stats", "--json", **shared))
    assert {each["code"] for each in redriven} == {
        "wrong_type", "refused", "missing_member", "unknown_member", "empty_string",
    }  # fmt: skip
    assert (len(redriven), stats["redriven"]) == (500, 500)


async def hand_written(
    group: Group, letters: str, offsets: Sequence[int], *, bits: str = '"1"'
) -> None:
    """Dead letters of records of the first topic, each a usage event but for its bits."""
    for offset in offsets:
        value = f'{{"key":"k-{offset % 7}","accountId":"a","bits":{bits}}}'.encode()
        await produce(group.servers, letters, [value], headers=said(group.topics[0], offset))


async def test_of_repeated_letters_one_is_sent(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, dlq: Run
) -> None:
    """The first; and none of those that come after it was sent."""
    name = await topic(1)
    letters = await topic(1, name=f"{name}.dead-letters")
    group = group_of(name)
    await hand_written(group, letters, [7, 8, 7])

    first = told(dlq(group, "redrive", "--set", "bits={bits}", "--json"))
    await hand_written(group, letters, [8, 9])
    second = told(dlq(group, "redrive", "--set", "bits={bits}", "--json"))

    assert (first["letters"], first["repeats"]) == (2, 1)
    assert second["letters"] == 1
    report = simulator.report()
    assert report["keys"] == {key: {"bits": 1, "items": 1} for key in ("k-0", "k-1", "k-2")}


async def test_killed_in_the_middle_it_is_continued(
    group_of: GroupOf,
    topic: TopicFactory,
    simulator: Simulator,
    ingesters: Ingesters,
    dlq: Run,
    tmp_path: Path,
) -> None:
    """By kill -9; the plan goes on with the same corrections, and totals are exact."""
    name = await topic(1)
    letters = await topic(1, name=f"{name}.dead-letters")
    group = group_of(name)
    await hand_written(group, letters, range(210))
    plan = tmp_path / "plan.json"
    slow = group.settings(items_max="7", requests_per_second_max="10", session_timeout_seconds="2")
    process = ingesters.start(
        "dlq", "redrive", "--set", "bits={bits}", "--save", str(plan), settings=slow
    )
    eventually(lambda: simulator.report()["items"] > 14)
    process.kill()
    assert 0 < simulator.report()["items"] < 210

    blocked = dlq(group, "redrive", "--set", "bits=2", exit_code=75)
    continued = dlq(group, "--plan", str(plan), verb="replay")

    assert "has not ended. Let it end, or continue it" in blocked.stdout + blocked.stderr
    assert "has ended" in continued.stdout
    sums = {f"k-{number}": {"bits": 30, "items": 30} for number in range(7)}
    assert simulator.report()["keys"] == sums
    assert "0 dead letters to send" in dlq(group, "redrive").stdout


async def test_a_plan_that_was_overtaken_is_refused(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, dlq: Run, tmp_path: Path
) -> None:
    """What another redrive has sent since the plan was made is not sent by the plan."""
    name = await topic(1)
    letters = await topic(1, name=f"{name}.dead-letters")
    group = group_of(name)
    await hand_written(group, letters, [1, 2, 3])
    plan = tmp_path / "plan.json"
    fix = ("--set", "bits={bits}")
    dlq(group, "redrive", *fix, "--dry-run", "--save", str(plan))
    dlq(group, "redrive", *fix)

    overtaken = dlq(group, "--plan", str(plan), verb="replay", exit_code=64)

    assert "were sent since the plan was made" in overtaken.stderr
    assert simulator.report()["items"] == 3
    await hand_written(group, letters, [4])
    dlq(group, "redrive", *fix)  # the overtaken plan holds nobody up
    assert simulator.report()["items"] == 4


async def test_a_dry_run_writes_nothing(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, dlq: Run
) -> None:
    """It shows events as they would be sent, and why others would not be."""
    name = await topic(1)
    letters = await topic(1, name=f"{name}.dead-letters")
    group = group_of(name)
    await hand_written(group, letters, [1])
    await hand_written(group, letters, [2], bits="[]")

    shown = dlq(group, "redrive", "--set", "bits={bits}0", "--dry-run", exit_code=1).stdout

    assert "1 dead letter to send, with 10 bits" in shown
    assert f"{letters}:0:0" in shown
    assert "1 would be refused still" in shown
    assert "`bits` must be a string, a number or a boolean" in shown
    assert simulator.report()["items"] == 0
    assert await end_offsets(group.servers, letters) == {0: 2}
    async with admin(group.servers) as client:
        assert f"{letters}.receipts" not in await client.list_topics()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--set", "key"), "should be MEMBER=TEMPLATE"),
        (("--set", "region=x"), "no region"),
        (("--set", "key={a"), "a brace without its other"),
        (("--remove", "a."), "names no member"),
        (("--code", "nonsense"), "is none of"),
    ],
)
def test_what_cannot_be(ingesters: Ingesters, arguments: tuple[str, ...], says: str) -> None:
    """Exit code 64, before anything is looked at."""
    ended = ingesters.run("dlq", "redrive", *arguments)

    assert ended.returncode == 64
    assert says in ended.stderr
