"""What redrives, replays and workers send of a dead-lettered record is counted once, or said."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tests.conftest import TopicFactory
from tests.support.dead_letters import CLOSED, said
from tests.support.kafka import admin, create_topic, delete_topics, end_offsets, produce
from tests.support.processes import COMMAND, Ingesters, environment
from tests.support.simulator import Simulator
from tests.support.waiting import eventually, eventually_async
from tests.support.workers import Group, Worker

GroupOf = Callable[..., Group]
Run = Callable[..., subprocess.CompletedProcess[str]]
OF_CLOSED = {"key": "usage-c", "accountId": "closed", "bits": 7}
FIX = ("--set", "bits={bits}")


@pytest.fixture
def go(ingesters: Ingesters) -> Run:
    """Runs a command with a group's settings, which is to end as `exit_code` says."""

    def run(
        group: Group, *arguments: str, exit_code: int = 0, **changed: str
    ) -> subprocess.CompletedProcess[str]:
        ended = ingesters.run(*arguments, settings=group.settings(**changed))
        assert ended.returncode == exit_code, ended.stdout + ended.stderr
        return ended

    return run


def stop(worker: Worker) -> None:
    worker.process.terminate()
    assert worker.process.wait() == 0


async def limit_values(group: Group, topic: str, bytes_max: int) -> None:
    resource = ConfigResource(
        ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(bytes_max)}
    )
    async with admin(group.servers) as client:
        await client.alter_configs([resource])


async def died_between_letter_and_receipt(
    group: Group, topic: TopicFactory, simulator: Simulator
) -> None:
    """One record is refused, its letter written, its receipt not; the account is opened then."""
    simulator.add_faults(CLOSED)
    receipts = await topic(1, name=f"{group.topics[0]}.receipts", config={"max.message.bytes": "9"})
    letters = await topic(1, name=f"{group.topics[0]}.dead-letters")
    worker = group.start()
    await group.produce([OF_CLOSED], partition=0)

    async def is_written() -> bool:
        return await end_offsets(group.servers, letters) == {0: 1}

    await eventually_async(is_written, 30)
    worker.process.kill()
    simulator.clear_faults()
    await limit_values(group, receipts, 1_000_000)


async def test_a_letter_whose_record_a_successor_has_settled(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, go: Run
) -> None:
    """It is passed, and shown as settled."""
    group = group_of(await topic(1))
    await died_between_letter_and_receipt(group, topic, simulator)
    worker = group.start()
    await group.settled()
    stop(worker)

    redriven = go(group, "dlq", "redrive")
    (listed,) = json.loads(go(group, "dlq", "list", "--json").stdout)["letters"]

    assert simulator.report()["keys"] == {"usage-c": {"bits": 7, "items": 1}}
    assert "0 dead letters to send" in redriven.stdout
    assert "its record became an item all the same" in redriven.stdout
    assert (listed["settled"], listed["redriven"]) == (True, False)


async def test_a_letter_whose_record_a_successor_will_settle(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, go: Run
) -> None:
    """It is left to the worker."""
    group = group_of(await topic(1))
    await died_between_letter_and_receipt(group, topic, simulator)

    redriven = go(group, "dlq", "redrive")
    worker = group.start()
    await group.settled()
    stop(worker)

    assert simulator.report()["keys"] == {"usage-c": {"bits": 7, "items": 1}}
    assert "a worker still settles it" in redriven.stdout


@pytest.mark.parametrize("first", ["replay", "redrive"])
async def test_a_letter_of_a_time_without_receipts(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, go: Run, first: str
) -> None:
    """Its record is counted by the replay of what has no receipt, or by the redrive."""
    name = await topic(1)
    group = group_of(name)
    simulator.add_faults(CLOSED)
    worker = group.start(receipts="off")
    await group.produce([OF_CLOSED], partition=0)
    await group.settled()
    stop(worker)
    simulator.clear_faults()

    below = ("--below-committed", "--reason", "r")
    both = [("replay", name, "--unreceipted", *below), ("dlq", "redrive")]
    for each in both if first == "replay" else reversed(both):
        go(group, *each)

    assert simulator.report()["keys"] == {"usage-c": {"bits": 7, "items": 1}}


@pytest.mark.parametrize("first", ["replay", "redrive"])
async def test_a_plan_whose_records_were_counted_since(
    group_of: GroupOf,
    topic: TopicFactory,
    simulator: Simulator,
    go: Run,
    tmp_path: Path,
    first: str,
) -> None:
    """It is refused, be it one of records whose letters were sent, or of letters."""
    name = await topic(1)
    group = group_of(name)
    simulator.add_faults(CLOSED)
    worker = group.start(receipts="off")
    await group.produce([OF_CLOSED], partition=0)
    await group.settled()
    stop(worker)
    simulator.clear_faults()
    plan = str(tmp_path / "plan.json")
    replay = ("replay", name, "--unreceipted", "--below-committed", "--reason", "r")
    redrive = ("dlq", "redrive")
    planned, other = (redrive, replay) if first == "replay" else (replay, redrive)

    go(group, *planned, "--dry-run", "--save", plan)
    go(group, *other)
    refused = go(group, "replay", "--plan", plan, exit_code=64)

    assert "since the plan was made" in refused.stderr
    assert simulator.report()["keys"] == {"usage-c": {"bits": 7, "items": 1}}


async def test_a_replay_beside_a_redrive_that_has_not_ended(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, go: Run, tmp_path: Path
) -> None:
    """It leaves the records of its letters to it, and a plan that has them is refused."""
    name = await topic(1)
    group = group_of(name)
    simulator.add_faults(CLOSED)
    worker = group.start(receipts="off")
    await group.produce([OF_CLOSED], partition=0)
    await group.settled()
    stop(worker)
    simulator.clear_faults()
    simulator.add_faults({"match": {"method": "POST"}, "effect": {"kind": "answer", "status": 409}})
    replay = ("replay", name, "--unreceipted", "--below-committed", "--reason", "r")
    plan, letters_plan = str(tmp_path / "plan.json"), str(tmp_path / "letters.json")
    go(group, *replay, "--dry-run", "--save", plan)
    go(group, "dlq", "redrive", "--save", letters_plan, exit_code=75)
    simulator.clear_faults()

    refused = go(group, "replay", "--plan", plan, exit_code=64)
    passed = go(group, *replay)

    assert "or are about to be" in refused.stderr
    assert "Nothing to send" in passed.stdout
    assert simulator.report()["keys"] == {}


async def test_a_letter_whose_record_a_forced_replay_has_counted(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, go: Run
) -> None:
    """It counts as redriven, and its record as settled."""
    name = await topic(1)
    group = group_of(name)
    simulator.add_faults(CLOSED)
    worker = group.start()
    await group.produce([OF_CLOSED], partition=0)
    await group.settled()
    stop(worker)
    simulator.clear_faults()
    go(group, "replay", f"{name}:0:0-1", "--force", "--reason", "the account was opened")

    go(group, "dlq", "redrive")
    (listed,) = json.loads(go(group, "dlq", "list", "--json").stdout)["letters"]
    explained = go(group, "explain", f"{name}:0:0")

    assert simulator.report()["keys"] == {"usage-c": {"bits": 7, "items": 1}}
    assert listed["redriven"]
    assert f"{name}:0:0 is settled" in explained.stdout


async def hand_written(group: Group, offsets: Sequence[int], **more: str) -> None:
    """Dead letters of records that the log of the first topic does not have (any more)."""
    for offset in offsets:
        item = {"key": f"k-{offset}", "accountId": "a", "bits": "1", **more}
        letters = f"{group.topics[0]}.dead-letters"
        headers = said(group.topics[0], offset)
        await produce(group.servers, letters, [json.dumps(item).encode()], headers=headers)


async def in_shell(group: Group, folder: Path, line: str) -> subprocess.CompletedProcess[bytes]:
    """What a shell makes of a line, for its redirections and limits."""
    return await asyncio.to_thread(
        subprocess.run,
        ["/bin/bash", "-c", line],
        env=environment(group.settings()),
        cwd=folder,
        capture_output=True,
        check=False,
    )


async def test_what_is_left_of_a_record_whose_redriven_letter_was_deleted(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, go: Run
) -> None:
    """It is known to be redriven."""
    name = await topic(1)
    letters = await topic(1, name=f"{name}.dead-letters")
    group = group_of(name)
    await hand_written(group, [7, 8, 7, 9])
    go(group, "dlq", "redrive", *FIX)
    async with admin(group.servers) as client:
        place = TopicPartition(letters, 0)
        await client.delete_records({place: RecordsToDelete(before_offset=2)})

    again = go(group, "dlq", "redrive", *FIX)
    listed = json.loads(go(group, "dlq", "list", "--json").stdout)["letters"]

    assert simulator.report()["items"] == 3
    assert "0 dead letters to send" in again.stdout
    assert [each["redriven"] for each in listed] == [True, True]


async def test_letters_of_a_topic_made_anew(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, go: Run
) -> None:
    """They are not taken for those that were redriven at the same offsets, and are sent."""
    name = await topic(1)
    letters = f"{name}.dead-letters"
    group = group_of(name)
    await create_topic(group.servers, letters)
    await hand_written(group, [7, 8, 9])
    go(group, "dlq", "redrive", *FIX)
    await delete_topics(group.servers, [letters])

    async def is_gone() -> bool:
        async with admin(group.servers) as client:
            return letters not in await client.list_topics()

    await eventually_async(is_gone, 30)
    await topic(1, name=letters)
    await hand_written(group, [20, 21])

    listed = go(group, "dlq", "list", "--json")
    go(group, "dlq", "redrive", *FIX)
    again = go(group, "dlq", "redrive", *FIX)

    assert [each["redriven"] for each in json.loads(listed.stdout)["letters"]] == [False, False]
    assert f"the topic was made anew. They count as not sent: 2 of {letters}:0" in listed.stderr
    assert simulator.report()["items"] == 5
    assert "0 dead letters to send" in again.stdout


async def test_a_plan_is_carried_out_with_the_settings_that_decided(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, go: Run, tmp_path: Path
) -> None:
    """Those of another run refuse none of its letters, which would be marked as redriven."""
    name = await topic(1)
    await topic(1, name=f"{name}.dead-letters")
    group = group_of(name)
    await hand_written(group, [0])
    await hand_written(group, [1], region="eu")
    plan = str(tmp_path / "plan.json")
    dry = ("dlq", "redrive", *FIX, "--dry-run", "--save", plan)

    go(group, *dry, unknown_members="ignore")
    go(group, "replay", "--plan", plan)

    assert simulator.report()["items"] == 2


@pytest.mark.parametrize(("sink", "exit_code"), [("| true", 0), ("> /dev/full", 74)])
async def test_letters_are_sent_whoever_listens(
    group_of: GroupOf,
    topic: TopicFactory,
    simulator: Simulator,
    tmp_path: Path,
    sink: str,
    exit_code: int,
) -> None:
    """A closed pipe, or a full disk, keeps nothing from being done."""
    name = await topic(1)
    await topic(1, name=f"{name}.dead-letters")
    group = group_of(name)
    await hand_written(group, range(20), key="k" * 900)

    redrive = f"{COMMAND} dlq redrive {' '.join(FIX)}"
    ended = await in_shell(group, tmp_path, f"set -o pipefail; {redrive} {sink}")

    assert simulator.report()["items"] == 20
    assert ended.returncode == exit_code


async def test_a_plan_that_does_not_fit_the_disk(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, tmp_path: Path
) -> None:
    """Nothing is left of it, and the same command goes on when there is room."""
    name = await topic(1)
    await topic(1, name=f"{name}.dead-letters")
    group = group_of(name)
    await hand_written(group, [7])
    redrive = f"exec {COMMAND} dlq redrive {' '.join(FIX)} --save plan.json"

    codes = [
        (await in_shell(group, tmp_path, f"{limit} {redrive}")).returncode
        for limit in ("ulimit -f 0;", "")
    ]

    assert codes == [64, 0]
    assert simulator.report()["items"] == 1


async def test_a_redrive_beside_another(
    group_of: GroupOf,
    topic: TopicFactory,
    simulator: Simulator,
    ingesters: Ingesters,
    go: Run,
    tmp_path: Path,
) -> None:
    """It is refused with the name of the one that holds the letters, and leaves no plan."""
    name = await topic(1)
    await topic(1, name=f"{name}.dead-letters")
    group = group_of(name)
    await hand_written(group, range(30))
    plan = tmp_path / "first.json"
    slow = group.settings(items_max="1", requests_per_second_max="5")
    process = ingesters.start("dlq", "redrive", *FIX, "--save", str(plan), settings=slow)
    eventually(lambda: simulator.report()["items"] > 2)
    process.kill()
    held_by = json.loads(plan.read_text())["name"]
    second = tmp_path / "second.json"

    refused = go(group, "dlq", "redrive", *FIX, "--save", str(second), exit_code=75)
    go(group, "replay", "--plan", str(plan))

    assert f"the redrive {held_by} by" in refused.stderr
    assert not second.exists()
    assert simulator.report()["items"] == 30


async def test_a_redriven_letter_says_how_it_was_corrected(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, go: Run
) -> None:
    """And by whom and why; nothing of it reads as if it were counted twice."""
    name = await topic(1)
    group = group_of(name)
    worker = group.start()
    await group.produce([{"key": "k", "accountId": "a", "bits": "7"}], partition=0)
    await group.settled()
    stop(worker)

    redriven = go(group, "dlq", "redrive", *FIX, "--reason", "bits were text", "--json")
    explained = go(group, "explain", f"{name}:0:0").stdout

    assert "corrected        --set bits={bits}" in explained
    assert ": bits were text" in explained
    assert "forced" not in explained
    assert [each["forced"] for each in json.loads(redriven.stdout)["plans"]] == [False]
    assert simulator.report()["items"] == 1


async def test_the_hint_of_a_halted_redrive_works(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, go: Run
) -> None:
    """The settings that it names show what it has in doubt."""
    name = await topic(1)
    letters = await topic(1, name=f"{name}.dead-letters")
    group = group_of(name)
    await hand_written(group, [7])
    simulator.add_faults({"match": {"method": "POST"}, "effect": {"kind": "answer", "status": 409}})

    halted = go(group, "dlq", "redrive", *FIX, exit_code=75)
    (hint,) = re.findall(r"INGESTER_(TOPIC)=(\S+) INGESTER_(GROUP_ID)=(\S+)", halted.stderr)
    changed = {hint[0].lower(): hint[1], hint[2].lower(): hint[3]}
    resolve = go(group, "resolve", **changed)

    assert f"{letters}:0[0,1)" in resolve.stdout


async def test_a_template_that_does_not_fit_is_told_from_what_is_missing(
    group_of: GroupOf, topic: TopicFactory, go: Run
) -> None:
    """The correction is at fault, and not the letter's own member."""
    name = await topic(1)
    await topic(1, name=f"{name}.dead-letters")
    group = group_of(name)
    await hand_written(group, [7])

    dry = ("dlq", "redrive", "--set", "key={region}", "--dry-run", "--json")
    told = json.loads(go(group, *dry, exit_code=1).stdout)

    assert [each["code"] for each in told["refused"]] == ["not_corrected"]
