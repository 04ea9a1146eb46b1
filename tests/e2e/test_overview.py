"""`ingester status`: what an operator sees of a group, with its workers and without."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingester.local_kafka import LocalKafka, free_ports
from tests.conftest import TopicFactory
from tests.e2e.test_markers import transact
from tests.support.kafka import committed_offsets, produce
from tests.support.planted_commits import plant, plant_intents
from tests.support.processes import COMMAND, Ingesters
from tests.support.simulator import Simulator
from tests.support.waiting import eventually, eventually_async
from tests.support.workers import Group, usage

GroupOf = Callable[..., Group]
Status = Callable[..., subprocess.CompletedProcess[str]]
WELL = "Nothing needs somebody; 0 offsets are still to be settled."


@pytest.fixture
def status(ingesters: Ingesters) -> Status:
    """Runs `ingester status` with what it needs of a group's settings: nothing of PacSpace's."""

    def run(
        group: Group, *arguments: str, exit_code: int = 0, **changed: str
    ) -> subprocess.CompletedProcess[str]:
        settings = {
            name: value
            for name, value in group.settings(**{"http_listen": "off", **changed}).items()
            if "PACSPACE" not in name
        }
        ended = ingesters.run("status", *arguments, settings=settings)
        assert ended.returncode == exit_code, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stdout + ended.stderr
        return ended

    return run


def seen(ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return dict(json.loads(ended.stdout))


async def test_a_group_that_is_well(group_of: GroupOf, topic: TopicFactory, status: Status) -> None:
    """Members and their partitions, no lag, nothing in doubt, and 0; the worker adds its own."""
    group = group_of(await topic(3))
    (name,) = group.topics
    worker = group.start()
    await group.produce(usage(60))
    await group.settled()

    from_kafka = status(group)
    document = seen(status(group, "--json", "--worker", worker.address))
    own = status(group, http_listen=worker.address)

    assert "Nothing needs somebody, as far as Kafka knows; 0 offsets" in from_kafka.stdout
    assert "none was asked (INGESTER_HTTP_LISTEN is off)" in from_kafka.stdout
    assert WELL in own.stdout
    assert "is known to the workers alone" not in own.stdout
    (silent,) = free_ports(1)
    unanswered = status(group, http_listen=f"127.0.0.1:{silent}").stdout
    assert f"none answered at 127.0.0.1:{silent}" in unanswered
    assert "Worker at" not in from_kafka.stdout
    assert "stable, 1 member: " in from_kafka.stdout
    assert (document["state"], document["needsSomebody"]) == ("Stable", [])
    (member,) = document["members"]
    assert sorted(member["partitions"]) == [f"{name}:{number}" for number in range(3)]
    for partition in document["partitions"]:
        assert partition["worker"] == member["host"]
        assert partition["lag"] == 0
        assert partition["lagSeconds"] is None
        assert partition["oldestUncommitted"] is None
        assert partition["inDoubt"] == {"batches": 0, "items": 0, "since": None}
        assert partition["state"] == "settled"
        assert partition["stalled"] is False
    assert sum(each["logEnds"] for each in document["partitions"]) == 60
    (reported,) = document["workers"]
    assert reported["address"] == worker.address
    assert reported["status"]["group"] == group.name
    assert f"Worker at {worker.address}: 3 partitions" in own.stdout


async def test_a_group_without_workers(
    group_of: GroupOf, topic: TopicFactory, status: Status
) -> None:
    """What nobody settles needs somebody: lag in records and seconds, and what is in doubt."""
    group = group_of(await topic(3))
    (name,) = group.topics
    old = 1_700_000_000_000
    await produce(group.servers, name, usage(30), partition=0, timestamp_ms=old)
    await plant_intents(group.servers, group.name, name, 10, [(10, 20)], age_seconds=3600)
    await produce(group.servers, name, usage(5), partition=1)

    ended = status(group, exit_code=1)
    document = seen(status(group, "--json", exit_code=1))

    one, two, three = document["partitions"]
    assert (one["committedOffset"], one["logEnds"], one["lag"]) == (10, 30, 20)
    assert one["oldestUncommitted"] == {"offset": 10, "time": "2023-11-14T22:13:20+00:00"}
    assert one["lagSeconds"] > 365 * 86400
    assert (one["inDoubt"]["batches"], one["state"]) == (1, "nobody has it")
    assert (two["committedOffset"], two["lag"], two["lagSeconds"] < 3600) == (None, 5, True)
    assert (three["lag"], three["state"]) == (0, "settled")
    nobody, in_doubt = document["needsSomebody"]
    assert f"no worker is in the group {group.name}, and {name}:0, {name}:1 have" in nobody
    assert f"`ingester resolve {name}:0`" in in_doubt
    assert "1 batch," in ended.stdout
    assert f"! {nobody}" in ended.stdout


async def test_what_replays_have_settled_is_not_behind(
    group_of: GroupOf, topic: TopicFactory, ingesters: Ingesters, status: Status, tmp_path: Path
) -> None:
    """Neither for the replay's own group, nor for one that never ran; what came since is."""
    group = group_of(await topic(2))
    (name,) = group.topics
    await transact(group.servers, name, usage(20), commit=True)
    await group.produce(usage(5), partition=1)
    plan = ("--name", "june", "--save", str(tmp_path / "plan.json"))
    done = ingesters.run("replay", f"{name}:0", *plan, settings=group.settings())
    assert done.returncode == 0, done.stderr
    own_group = f"{group.name}.replay.june"
    await group.produce(usage(1), partition=0)

    document = seen(status(group, "--json", exit_code=1))
    own = seen(status(group, "--json", group_id=own_group))

    assert [each["lag"] for each in document["partitions"]] == [2, 5]  # a marker is one of them
    assert document["partitions"][0]["oldestUncommitted"]["offset"] == 21
    assert [(each["lag"], each["state"]) for each in own["partitions"]] == [(0, "settled")] * 2
    rest = ingesters.run("replay", name, "--save", str(tmp_path / "r"), settings=group.settings())
    assert rest.returncode == 0, rest.stderr
    assert "Nothing needs somebody; 1 offset is still to be settled." in status(group).stdout


async def test_a_replay_that_was_interrupted_is_to_be_continued(
    group_of: GroupOf, topic: TopicFactory, ingesters: Ingesters, status: Status, tmp_path: Path
) -> None:
    """Its group has something to settle up to the end of the plan; given up, nothing any more."""
    group = group_of(await topic(1))
    (name,) = group.topics
    await group.produce(usage(200), partition=0)
    slow = group.settings(items_max="5", requests_in_flight_max="1", requests_per_second_max="2")
    plan = ("--name", "june", "--save", str(tmp_path / "plan.json"))
    process = ingesters.start("replay", f"{name}:0:0-150", *plan, settings=slow)
    own_group = f"{group.name}.replay.june"

    async def has_begun() -> bool:
        stored = await committed_offsets(group.servers, own_group)
        return any(each.offset for each in stored.values())

    await eventually_async(has_begun)
    process.signal(signal.SIGINT)
    assert process.wait() == 75

    told = f"To give it up: `ingester resolve {name}:PARTITION`"
    assert told in process.log()

    of_workers = seen(status(group, "--json", exit_code=1))
    left = seen(status(group, "--json", group_id=own_group, exit_code=1))

    (nobody,) = of_workers["needsSomebody"]
    assert f"the replay june of {name}:0 began at " in nobody
    assert "june.replay.json" in nobody
    assert f"ingester resolve {name}:0:0 --as resend" in nobody
    assert of_workers["partitions"][0]["state"] == "awaits replay"

    (partition,) = left["partitions"]
    assert partition["lag"] == 150 - partition["committedOffset"]
    (need,) = left["needsSomebody"]
    assert f"the replay june, and {name}:0 has something to settle: `ingester replay" in need
    decision = ("--as", "resend", "--reason", "workers are quicker")
    decided = ingesters.run("resolve", f"{name}:0:0", *decision, settings=group.settings())
    assert decided.returncode == 0, decided.stderr
    assert WELL in status(group, group_id=own_group).stdout


async def test_while_a_replay_is_at_work_nothing_needs_somebody(
    group_of: GroupOf, topic: TopicFactory, ingesters: Ingesters, status: Status, tmp_path: Path
) -> None:
    """Neither a worker is to be started, nor the claim to be decided about."""
    group = group_of(await topic(1))
    (name,) = group.topics
    await group.produce(usage(200), partition=0)
    slow = group.settings(items_max="5", requests_in_flight_max="1", requests_per_second_max="2")
    plan = ("--name", "june", "--save", str(tmp_path / "plan.json"))
    process = ingesters.start("replay", name, *plan, settings=slow)
    own_group = f"{group.name}.replay.june"

    async def has_begun() -> bool:
        stored = await committed_offsets(group.servers, own_group)
        return any(each.offset for each in stored.values())

    await eventually_async(has_begun)

    alone = status(group)
    worker = group.start()
    eventually(lambda: worker.events("partition.halted"))
    beside = status(group, http_listen=worker.address)

    assert f"Group {group.name}: there is none of that name in Kafka" in alone.stdout
    for each in (alone, beside):
        assert "The replay june is at work at " in each.stdout
        assert "Nothing needs somebody" in each.stdout
    process.signal(signal.SIGINT)
    assert process.wait() == 75


async def test_items_in_doubt_are_counted(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, status: Status
) -> None:
    """Halted in doubt: Kafka has batches and items, the worker has the reason; and one of both."""
    simulator.add_faults({"match": {"method": "POST", "count": 1}, "effect": {"kind": "lose"}})
    group = group_of(await topic(1))
    (name,) = group.topics
    await group.produce(usage(80), partition=0)
    worker = group.start(in_doubt="halt", linger_seconds="0.5", drain_timeout_seconds="1")
    eventually(lambda: worker.events("partition.halted"))

    halted = seen(status(group, "--json", "--worker", worker.address, exit_code=1))

    (partition,) = halted["partitions"]
    assert partition["state"] == "halted"
    assert "INGESTER_IN_DOUBT is halt" in partition["halted"]
    (need,) = halted["needsSomebody"]
    assert f"{name}:0 has halted: " in need
    assert f"`ingester resolve {name}:0` says how it goes on" in need

    async def items() -> int | None:
        ended = await asyncio.to_thread(
            status, group, "--json", "--worker", worker.address, exit_code=1
        )
        counted: int | None = seen(ended)["partitions"][0]["inDoubt"]["items"]
        return counted

    assert await eventually_async(items) == 80  # once it cannot be in flight any more


async def test_what_blocks_and_holds(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, status: Status
) -> None:
    """A PacSpace that refuses everything needs somebody; one that asks for a wait is shown."""
    group = group_of(await topic(1))
    worker = group.start()
    eventually(worker.ready)
    simulator.add_faults({"match": {"method": "POST"}, "effect": {"kind": "answer", "status": 402}})
    await group.produce(usage(10), partition=0)
    eventually(lambda: worker.status()["blocked"])

    blocked = status(group, "--worker", worker.address, exit_code=1)

    assert "PacSpace refuses everything of the worker at" in blocked.stdout
    assert "HTTP 402" in blocked.stdout
    simulator.clear_faults()
    await group.settled()
    simulator.add_faults(
        {
            "match": {"method": "POST", "count": 1},
            "effect": {"kind": "answer", "status": 429, "retry_after": 20},
        }
    )
    await group.produce(usage(10), partition=0)
    eventually(lambda: worker.status()["heldFor"])
    held = status(group, "--worker", worker.address)
    assert "nothing is sent before 20" in held.stdout
    assert "HTTP 429" in held.stdout


async def test_halted_as_kafka_alone_can_tell(
    group_of: GroupOf, topic: TopicFactory, status: Status
) -> None:
    """Metadata that nobody can read halts whoever gets the partition: known without a worker."""
    group = group_of(await topic(1))
    (name,) = group.topics
    await group.produce(usage(30), partition=0)
    await plant(group.servers, group.name, name, 10, "pacspace9:AAAA")

    document = seen(status(group, "--json", exit_code=1))

    assert "another version of this program wrote it" in document["partitions"][0]["halted"]
    assert any("another version" in each for each in document["needsSomebody"])


async def test_an_offset_beyond_the_log(
    group_of: GroupOf, topic: TopicFactory, status: Status
) -> None:
    """A topic that was made anew is behind its group's offsets, and said to be."""
    group = group_of(await topic(1))
    await plant(group.servers, group.name, group.topics[0], 10, "")

    document = seen(status(group, "--json", exit_code=1))

    assert document["partitions"][0]["lag"] == 0
    assert "beyond the end of the log, 0. Was the topic made anew?" in document["needsSomebody"][0]


async def test_a_worker_that_is_none_of_the_group(
    group_of: GroupOf, topic: TopicFactory, status: Status
) -> None:
    """One that was named has to answer and to be of the group; the default may be anybody's."""
    usage_topic = await topic(1)
    group, other = group_of(usage_topic), group_of(usage_topic)
    worker = other.start()
    eventually(worker.ready)
    (port,) = free_ports(1)

    foreign = status(group, "--worker", worker.address, exit_code=1)
    silent = status(group, "--worker", f"127.0.0.1:{port}", exit_code=1)
    by_default = status(group, http_listen=worker.address)

    assert f"its worker is one of the group {other.name}" in foreign.stdout
    assert "nothing listens on" in silent.stdout
    assert "Worker at" not in by_default.stdout


async def test_watching(group_of: GroupOf, topic: TopicFactory, ingesters: Ingesters) -> None:
    """Each look is printed, one JSON document a line, until it is interrupted with 130."""
    group = group_of(await topic(1))
    process = ingesters.start(
        "status", "--watch", "1", "--json", settings=group.settings(http_listen="off")
    )
    eventually(lambda: process.log().count("\n") >= 1)
    await group.produce(usage(7), partition=0)

    eventually(lambda: '"lag":7' in process.log())

    process.signal(2)
    assert process.wait() == 130
    looks = [json.loads(line) for line in process.log().splitlines()]
    assert [each["partitions"][0]["lag"] for each in looks][-1] == 7


@pytest.mark.parametrize(
    ("arguments", "exit_code", "says"),
    [
        (("--worker", "nonsense"), 64, "should be HOST:PORT"),
        (("--watch", "0.1"), 64, "--watch"),
        ((), 69, "refuses connections"),
    ],
    ids=["no address", "too often", "no Kafka"],
)
def test_what_cannot_be(
    ingesters: Ingesters, arguments: tuple[str, ...], exit_code: int, says: str
) -> None:
    """The message names what is wrong, and the exit code is documented."""
    settings = {"INGESTER_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "INGESTER_TOPIC": "usage"}

    ended = ingesters.run("status", *arguments, settings=settings)

    assert ended.returncode == exit_code, ended.stderr
    assert says in ended.stderr


README = Path(__file__).parents[2] / "README.md"


async def test_the_readme_can_be_typed(
    kafka: LocalKafka, group_of: GroupOf, topic: TopicFactory, tmp_path: Path
) -> None:
    """The table has the columns that the chapter shows, for a group that is well."""
    group = group_of(await topic(4))
    await group.produce(usage(40))
    worker = group.start()
    await group.settled()
    chapter = README.read_text("utf-8").partition("## See what it does\n")[2].partition("\n## ")[0]
    (command,) = re.findall(r"^\$ (ingester status.*?)(?: +#.*)?$", chapter, re.MULTILINE)
    settings = group.settings(http_listen=worker.address)

    ended = await asyncio.to_thread(
        subprocess.run,
        command.split(),
        check=True,
        capture_output=True,
        text=True,
        env={**settings, "PATH": f"{COMMAND.parent}:/usr/bin:/bin"},
        cwd=tmp_path,
    )

    (headings,) = re.findall(r"^PARTITION .*", chapter, re.MULTILINE)
    assert headings.split() == ended.stdout.splitlines()[1].split()
    assert WELL in ended.stdout
