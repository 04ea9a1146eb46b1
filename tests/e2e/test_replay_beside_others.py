"""A plan that others got in the way of: nobody counts twice, and nobody waits for ever."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from ingester.backfill.plan import Plan, read
from ingester.core.receipt import Replay, encode_note
from tests.conftest import TopicFactory
from tests.e2e.test_markers import transact
from tests.support.kafka import admin, create_topic, delete_topics, end_offsets, read_all
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.waiting import eventually, eventually_async
from tests.support.workers import Group, Worker, totals, usage

GroupOf = Callable[..., Group]
Ended = subprocess.CompletedProcess[str]
Run = Callable[..., Ended]
PARTITIONS = 2


@pytest.fixture
def replay(ingesters: Ingesters) -> Run:
    """Runs `ingester replay` with a group's settings."""

    def run(group: Group, *arguments: str, exit_code: int = 0) -> Ended:
        ended = ingesters.run("replay", *arguments, settings=group.settings())
        assert ended.returncode == exit_code, ended.stdout + ended.stderr
        return ended

    return run


@pytest.fixture
async def half(group_of: GroupOf, topic: TopicFactory) -> Group:
    """A topic of 800 events, of which the first 400 were settled by a worker that has left."""
    group = group_of(await topic(PARTITIONS))
    await group.produce(usage(400))
    worker = group.start()
    await group.settled()
    stop(worker)
    await group.produce(usage(400, first=400))
    return group


@pytest.fixture
def plan_file(half: Group, replay: Run, tmp_path: Path) -> Path:
    """A plan of the other half."""
    path = tmp_path / "plan.json"
    replay(half, half.topics[0], "--dry-run", "--save", str(path))
    return path


def stop(worker: Worker) -> None:
    worker.process.terminate()
    assert worker.process.wait() in {0, 75}


async def claim(group: Group, plan: Plan, partition: int, state: str, shorter: int = 0) -> None:
    """Leave the note that a replay was killed behind."""
    ranges = plan.partitions[partition]
    extent = (ranges[0][0], ranges[-1][1] - shorter)
    note = Replay(plan.topic, partition, *extent, plan.name, state, "ada", "", plan.created_at)  # type: ignore[arg-type]  # one of the two
    topic, key = f"{plan.topic}.receipts", f"{plan.topic}:{partition}".encode()
    async with AIOKafkaProducer(bootstrap_servers=group.servers, acks="all") as producer:
        await producer.send_and_wait(topic, encode_note(note), key=key, partition=partition)


def name_partition(plan_file: Path, number: int) -> None:
    """Let a plan be about this partition alone."""
    document = json.loads(plan_file.read_text())
    plan_file.write_text(json.dumps(document | {"partitions": {number: [[0, 10]]}}))


async def notes_of(group: Group) -> list[dict[str, Any]]:
    """What is in the receipts topic, partition by partition."""
    records = await read_all(group.servers, f"{group.topics[0]}.receipts")
    return [json.loads(record.value) for record in records]


async def left_by_all(servers: str, group_id: str) -> None:
    """Wait until a group has no members, be it by the session timeout."""

    async def empty() -> bool:
        async with admin(servers) as client:
            (answer,) = await client.describe_consumer_groups([group_id])
            return not answer.groups[0][5]

    await eventually_async(empty)


async def test_what_a_worker_left_in_doubt_since_the_plan_is_not_sent(
    half: Group, replay: Run, simulator: Simulator, plan_file: Path, tmp_path: Path
) -> None:
    """The plan does not know of it; a new one passes it, and the next worker settles it."""
    before = simulator.report()["items"]
    simulator.add_faults({"match": {"method": "POST"}, "effect": {"kind": "lose"}})
    worker = half.start(items_max="7", backoff_seconds_min="5", backoff_seconds_max="9")
    eventually(lambda: simulator.report()["items"] > before + 50)
    worker.process.kill()
    await left_by_all(half.servers, half.name)
    simulator.clear_faults()

    refused = replay(half, "--plan", str(plan_file), exit_code=64)

    assert "in doubt. Make the plan again" in refused.stderr
    replay(half, half.topics[0], "--save", str(tmp_path / "new.json"))
    half.start()
    await half.settled()
    assert simulator.report()["keys"] == totals(usage(800))


async def test_a_claim_that_workers_do_not_know_of_is_not_carried_out(
    half: Group, replay: Run, simulator: Simulator, plan_file: Path
) -> None:
    """Killed between its claim and its look at the workers, it looks again before it goes on."""
    worker = half.start(items_max="3", requests_per_second_max="5")
    eventually(worker.ready)
    plan = read(plan_file)
    for number in plan.partitions:
        await claim(half, plan, number, "started")

    refused = replay(half, "--plan", str(plan_file), exit_code=64)

    assert f"Stop them, and continue: ingester replay --plan {plan_file}" in refused.stderr
    assert "Unclosed" not in refused.stderr
    stop(worker)
    replay(half, "--plan", str(plan_file))
    half.start()
    await half.settled()
    assert simulator.report()["keys"] == totals(usage(800))


async def test_an_end_that_was_cut_short_is_told_of_all_partitions(
    half: Group, replay: Run, simulator: Simulator, plan_file: Path
) -> None:
    """Killed between two of its last notes; workers would wait for the missing one for ever."""
    plan = read(plan_file)
    for number in plan.partitions:
        await claim(half, plan, number, "started")
    await claim(half, plan, 0, "ended")

    ended = replay(half, "--plan", str(plan_file), exit_code=64)

    assert "has ended" in ended.stderr
    half.start()
    await half.settled()
    assert simulator.report()["keys"] == totals(usage(800))


async def test_a_claim_that_was_given_up_is_not_carried_out(
    half: Group, ingesters: Ingesters, replay: Run, simulator: Simulator, plan_file: Path
) -> None:
    """By decision the workers have what it claimed, and another replay may have it."""
    plan = read(plan_file)
    for number, ranges in plan.partitions.items():
        await claim(half, plan, number, "started")
        target = f"{plan.topic}:{number}:{ranges[0][0]}"
        decision = ("--as", "resend", "--reason", "too slow")
        decided = ingesters.run("resolve", target, *decision, settings=half.settings())
        assert decided.returncode == 0, decided.stderr

    refused = replay(half, "--plan", str(plan_file), exit_code=64)

    assert "they would send the same" in refused.stderr
    replay(half, half.topics[0], "--save", str(plan_file.with_name("new.json")))
    assert simulator.report()["keys"] == totals(usage(800))


async def test_a_claim_is_not_given_up_while_its_replay_is_at_work(
    half: Group, ingesters: Ingesters, simulator: Simulator, plan_file: Path
) -> None:
    """Workers would send what it is sending; once it was stopped, they have the rest."""
    slow = half.settings(items_max="5", requests_in_flight_max="1", requests_per_second_max="5")
    process = ingesters.start("replay", "--plan", str(plan_file), settings=slow)
    eventually(lambda: simulator.report()["items"] > 400)
    plan = read(plan_file)
    first = [f"{plan.topic}:{number}:{ranges[0][0]}" for number, ranges in plan.partitions.items()]
    decision = ("--as", "resend", "--reason", "too slow")

    refused = ingesters.run("resolve", first[0], *decision, settings=half.settings())

    assert refused.returncode == 64
    assert f"the replay {plan.name} is at work on {plan.topic}:0, at " in refused.stderr
    process.signal(signal.SIGINT)
    assert process.wait() == 75
    for target in first:
        decided = ingesters.run("resolve", target, *decision, settings=half.settings())
        assert decided.returncode == 0, decided.stderr
    half.start()
    await half.settled()
    assert simulator.report()["keys"] == totals(usage(800))


async def test_a_replay_that_comes_back_after_its_claim_was_given_up_ends(
    half: Group, ingesters: Ingesters, simulator: Simulator, plan_file: Path
) -> None:
    """Suspended for longer than its session, it finds that workers have what it had."""
    wait = {"kind": "answer", "status": 429, "retry_after": 120}
    simulator.add_faults({"match": {"method": "POST", "count": 1}, "effect": wait})
    short = half.settings(session_timeout_seconds="2", requests_in_flight_max="1")
    process = ingesters.start("replay", "--plan", str(plan_file), settings=short)
    eventually(lambda: "429" in process.log())
    process.signal(signal.SIGSTOP)
    plan = read(plan_file)
    await left_by_all(half.servers, plan.replay_group_id)
    for number, ranges in plan.partitions.items():
        decision = ("--as", "resend", "--reason", "it hangs")
        target = f"{plan.topic}:{number}:{ranges[0][0]}"
        decided = ingesters.run("resolve", target, *decision, settings=half.settings())
        assert decided.returncode == 0, decided.stderr
    half.start()
    await half.settled()

    process.signal(signal.SIGCONT)

    assert process.wait(60) == 64, process.log()
    assert "they would send the same" in process.log()
    assert simulator.report()["keys"] == totals(usage(800))


async def test_what_halted_says_where_its_doubts_are_decided(
    half: Group, ingesters: Ingesters, simulator: Simulator, plan_file: Path
) -> None:
    """They are those of the replay's own group, and not of the workers'."""
    simulator.add_faults({"match": {"method": "POST"}, "effect": {"kind": "lose"}})
    settings = half.settings(in_doubt="halt")

    halted = ingesters.run("replay", "--plan", str(plan_file), settings=settings)

    group = f"{half.name}.replay.{read(plan_file).name}"
    assert halted.returncode == 75
    assert f"INGESTER_GROUP_ID={group} ingester resolve" in halted.stderr
    shown = ingesters.run("resolve", settings={**settings, "INGESTER_GROUP_ID": group})
    assert "counted by PacSpace: ingester resolve" in shown.stdout


async def test_what_a_forced_replay_has_in_doubt_is_shown_under_its_own_keys(
    half: Group, ingesters: Ingesters, replay: Run, simulator: Simulator, tmp_path: Path
) -> None:
    """Those that its receipts have once it is decided; what it has no part of is not told."""
    simulator.add_faults({"match": {"method": "POST", "count": 1}, "effect": {"kind": "lose"}})
    path = tmp_path / "forced.json"
    asked = (f"{half.topics[0]}:0:10-20", "--force", "--reason", "lost", "--save", str(path))
    halted = ingesters.run("replay", *asked, settings=half.settings(in_doubt="halt"))
    assert halted.returncode == 75, halted.stderr
    name = read(path).name
    settings = half.settings(group_id=f"{half.name}.replay.{name}")

    listed = ingesters.run("resolve", settings=settings)
    shown = json.loads(ingesters.run("resolve", "--json", settings=settings).stdout)

    assert f"{half.topics[0]}:1" not in listed.stdout
    (doubt,) = shown["partitions"][0]["inDoubt"]
    decide = ("--as", "resend", "--reason", "compared")
    decided = ingesters.run("resolve", f"{half.topics[0]}:0:10", *decide, settings=settings)
    assert decided.returncode == 0, decided.stderr
    replay(half, "--plan", str(path))
    notes = await notes_of(half)
    own = [each["idempotencyKey"] for each in notes if each.get("replay") == name]
    assert own == [doubt["batch"]["idempotencyKey"]]


async def test_a_plan_that_was_changed_since_it_began_is_refused(
    half: Group, replay: Run, simulator: Simulator, plan_file: Path
) -> None:
    """Its claim, which workers go by, is another than what it would send."""
    await claim(half, read(plan_file), 0, "started", shorter=1)

    refused = replay(half, "--plan", str(plan_file), exit_code=64)

    assert "was changed after it had begun" in refused.stderr
    assert simulator.report()["keys"] == totals(usage(400))


async def test_a_partition_that_the_topic_does_not_have_is_not_waited_for(
    half: Group, replay: Run, simulator: Simulator, plan_file: Path
) -> None:
    """Nor do its receipts get one: the topic may have been made anew, with fewer."""
    name_partition(plan_file, 7)

    refused = replay(half, "--plan", str(plan_file), exit_code=64)

    assert f"which has {PARTITIONS} partitions" in refused.stderr
    assert len(await end_offsets(half.servers, f"{half.topics[0]}.receipts")) == PARTITIONS
    assert simulator.report()["keys"] == totals(usage(400))


async def made_anew(group: Group, count: int) -> None:
    """Replace the topic by a namesake with other records, all in its first partition."""
    (name,) = group.topics
    await delete_topics(group.servers, [name])

    async def is_gone() -> bool:
        async with admin(group.servers) as client:
            return name not in await client.list_topics()

    await eventually_async(is_gone)
    await create_topic(group.servers, name)
    await group.produce(usage(count, first=5000), partition=0)


@pytest.mark.parametrize("is_claimed", [False, True], ids=["not begun", "begun"])
async def test_a_log_that_ends_before_the_plan_is_not_waited_for(
    group_of: GroupOf,
    topic: TopicFactory,
    replay: Run,
    simulator: Simulator,
    tmp_path: Path,
    is_claimed: bool,
) -> None:
    """Nothing is sent, a claim is taken back, and a plan of what is there now can be made."""
    group = group_of(await topic())
    await group.produce(usage(40), partition=0)
    path = tmp_path / "plan.json"
    replay(group, group.topics[0], "--dry-run", "--save", str(path))
    if is_claimed:
        await topic(name=f"{group.topics[0]}.receipts")
        await claim(group, read(path), 0, "started")
    await made_anew(group, 10)

    refused = replay(group, "--plan", str(path), exit_code=64)

    where = f"{group.topics[0]}:0 ends at offset 10, and the plan at 40"
    assert where in refused.stderr
    assert "Make the plan again" in refused.stderr
    assert simulator.report()["items"] == 0
    replay(group, group.topics[0], "--save", str(tmp_path / "new.json"))
    group.start()
    await group.produce(usage(5), partition=0)
    await group.settled()
    assert simulator.report()["keys"] == totals([*usage(10, first=5000), *usage(5)])


async def test_a_log_that_loses_its_end_ends_the_replay(
    group_of: GroupOf,
    topic: TopicFactory,
    ingesters: Ingesters,
    simulator: Simulator,
    tmp_path: Path,
) -> None:
    """While it runs: it settles what it has read, and says what is missing."""
    group = group_of(await topic())
    await group.produce(usage(20_000), partition=0)
    simulator.add_faults({"match": {"method": "POST"}, "effect": {"kind": "answer", "status": 503}})
    settings = group.settings(
        items_max="20",
        body_bytes_max="4096",
        buffer_bytes_max="65536",
        partition_fetch_bytes_max="16384",
    )  # so that it has not read far when the topic is made anew
    plan = ("--save", str(tmp_path / "plan.json"))
    process = ingesters.start("replay", group.topics[0], *plan, settings=settings)
    eventually(lambda: "503" in process.log())
    await made_anew(group, 3000)
    simulator.clear_faults()

    assert process.wait(60) == 64, process.log()

    assert "ends at offset 3000, and the plan at 20000" in process.log()


async def test_a_group_that_has_settled_nothing_of_it_is_asked_about(
    half: Group, ingesters: Ingesters, simulator: Simulator
) -> None:
    """With another group's name the workers at work would not be seen, and count it as well."""
    settings = {**half.settings(), "INGESTER_GROUP_ID": f"{half.name}-misspelt"}

    ended = ingesters.run("replay", half.topics[0], settings=settings)

    assert (ended.returncode, "Correct INGESTER_GROUP_ID" in ended.stderr) == (64, True)
    assert simulator.report()["keys"] == totals(usage(400))


async def test_it_ends_behind_a_marker_whatever_follows(
    group_of: GroupOf, topic: TopicFactory, replay: Run, simulator: Simulator, tmp_path: Path
) -> None:
    """Of a topic that no worker has read, up to a transaction's end, behind which more came."""
    group = group_of(await topic())
    events = usage(20)
    await transact(group.servers, group.topics[0], events, commit=True)
    path = tmp_path / "plan.json"
    replay(group, group.topics[0], "--dry-run", "--save", str(path))
    assert json.loads(path.read_text())["partitions"] == {"0": [[0, 21]]}
    await group.produce(usage(30, first=20), partition=0)

    replay(group, "--plan", str(path))

    assert simulator.report()["keys"] == totals(events)
