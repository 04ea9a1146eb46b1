"""A partition halts, somebody decides, and it goes on: at once, or at the next start."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from tests.conftest import TopicFactory
from tests.support.kafka import admin, produce, read_all
from tests.support.planted_commits import plant, plant_intents
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.waiting import eventually, eventually_async
from tests.support.wire import PassOn, Wire, Write
from tests.support.workers import Group, Worker, totals, usage

GroupOf = Callable[..., Group]
Resolve = Callable[..., subprocess.CompletedProcess[str]]
HALTING = {"in_doubt": "halt", "linger_seconds": "0.5", "drain_timeout_seconds": "1"}


@pytest.fixture
async def group(group_of: GroupOf, topic: TopicFactory) -> Group:
    """Over one topic, whose partition 0 is the one that halts."""
    return group_of(await topic(2))


@pytest.fixture
def resolve(ingesters: Ingesters) -> Resolve:
    """Runs `ingester resolve` with what it needs of a group's settings: nothing of PacSpace's."""

    def run(group: Group, *arguments: str, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
        settings = {
            name: value for name, value in group.settings().items() if "PACSPACE" not in name
        }
        ended = ingesters.run("resolve", *arguments, settings=settings)
        assert ended.returncode == exit_code, ended.stdout + ended.stderr
        return ended

    return run


def halt_of(worker: Worker) -> dict[str, Any]:
    """The line about the partition that halts, as soon as it is there."""
    return eventually(lambda: worker.events("partition.halted"))[0]


def fail_once(kind: str) -> dict[str, Any]:
    return {"match": {"method": "POST", "count": 1}, "effect": {"kind": kind}}


async def resolutions(group: Group) -> list[dict[str, Any]]:
    """The decisions among the receipts of the first topic."""
    notes = [
        json.loads(record.value)
        for record in await read_all(group.servers, f"{group.topics[0]}.receipts")
    ]
    return [note for note in notes if note["kind"] == "resolution"]


DECISIONS = pytest.mark.parametrize(
    ("fault", "decision", "replayed"),
    [("lose", "acknowledged", 0), ("lose", "resend", 1), ("drop", "resend", 0)],
)


@DECISIONS
async def test_a_running_worker_goes_on_after_a_decision(
    group: Group,
    simulator: Simulator,
    resolve: Resolve,
    fault: str,
    decision: str,
    replayed: int,
) -> None:
    """What halted in doubt is passed or sent again without a restart, and totals are exact."""
    simulator.add_faults(fail_once(fault))
    name = f"{group.topics[0]}:0"
    events = usage(350)
    await group.produce(events, partition=0)
    worker = group.start(**HALTING)
    halt = halt_of(worker)
    first_offset = int(halt["reason"].partition("[")[2].partition(",")[0])
    (listed,) = json.loads(resolve(group, f"{name}:{first_offset}", "--json").stdout)["partitions"]
    (lost,) = worker.events("batch.in_doubt")
    assert listed["inDoubt"][0]["batch"]["idempotencyKey"] == lost["idempotency_key"]
    assert ipaddress.ip_address(listed["worker"])  # as the broker sees it

    written = resolve(
        group, f"{name}:{first_offset}", "--as", decision, "--reason", "looked it up", "--by", "ann"
    )

    await group.settled()
    assert simulator.report()["keys"] == totals(events)
    assert simulator.report()["replayed"] == replayed
    (reopened,) = worker.events("partition.reopened")
    assert reopened["partition"] == name
    assert reopened["decisions"] == [
        {
            "first_offset": first_offset,
            "next_offset": lost["next_offset"],
            "decision": decision,
            "by": "ann",
            "reason": "looked it up",
        }
    ]
    assert worker.status()["partitions"][name]["halted"] is None
    assert f"{name}[{first_offset},{lost['next_offset']}) is " in written.stdout
    assert "may simply be in flight" in written.stderr
    (resolution,) = await resolutions(group)
    assert resolution["decision"] == decision
    assert (resolution["by"], resolution["reason"]) == ("ann", "looked it up")
    assert resolution["firstOffset"] == first_offset


@DECISIONS
async def test_a_stopped_worker_takes_the_decision_at_its_start(
    group: Group,
    simulator: Simulator,
    resolve: Resolve,
    fault: str,
    decision: str,
    replayed: int,
) -> None:
    """A decision made while nobody runs is acted upon by the next worker before anything else."""
    simulator.add_faults(fail_once(fault))
    events = usage(80)
    await group.produce(events, partition=0)
    worker = group.start(**HALTING)
    halt_of(worker)
    worker.process.terminate()
    assert worker.process.wait() == 75

    resolve(group, f"{group.topics[0]}:0:79", "--as", decision, "--reason", "looked it up")

    worker = group.start(**HALTING)
    await group.settled()
    assert simulator.report()["keys"] == totals(events)
    assert simulator.report()["replayed"] == replayed
    assert worker.events("partition.halted") == []


async def test_one_decision_is_good_for_one_reopening(
    group: Group, simulator: Simulator, resolve: Resolve
) -> None:
    """What is lost again after it was sent again waits for another decision, and takes the same."""
    simulator.add_faults(fail_once("lose"), fail_once("drop"))
    name = f"{group.topics[0]}:0"
    events = usage(80)
    await group.produce(events, partition=0)
    worker = group.start(**HALTING)
    halt_of(worker)
    resolve(group, f"{name}:0", "--as", "resend", "--reason", "once", "--by", "ann")
    eventually(lambda: len(worker.events("partition.halted")) == 2)

    again = resolve(group, f"{name}:0", "--as", "resend", "--reason", "twice")

    assert "is decided: resend, by ann at" in again.stderr
    await group.settled()
    assert len(worker.events("partition.reopened")) == 2
    assert simulator.report()["keys"] == totals(events)


async def test_what_is_too_old_to_be_sent_again_is_decided_about(
    group: Group, simulator: Simulator, resolve: Resolve
) -> None:
    """Past INGESTER_IDEMPOTENCY_WINDOW_SECONDS a partition halts until each batch is decided."""
    (name,) = group.topics
    events = usage(30)
    await group.produce(events, partition=0)
    await plant_intents(group.servers, group.name, name, 0, [(0, 10), (10, 20)], age_seconds=3600)
    worker = group.start(idempotency_window_seconds="60")
    assert "may have forgotten its key" in halt_of(worker)["reason"]

    resolve(group, f"{name}:0:10", "--as", "resend", "--reason", "not in the balance")
    eventually(lambda: len(worker.events("partition.halted")) == 2)
    assert worker.events("partition.halted")[-1]["reason"].endswith(": [0,10)")
    resolve(group, f"{name}:0:0", "--as", "acknowledged", "--reason", "in the balance")

    await group.settled()
    assert simulator.report()["keys"] == totals(events[10:])
    assert worker.status()["partitions"][f"{name}:0"]["halted"] is None


async def test_a_conflict_is_decided_about(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, wire: Wire, resolve: Resolve
) -> None:
    """A key that PacSpace knows with another body halts; acknowledged, its batch is passed."""

    async def apply_and_deny(_: Write, pass_on: PassOn) -> web.Response:
        answer = await pass_on()
        if len(wire.writes) > 1:
            return answer
        document = {"statusCode": 409, "error": "Conflict", "message": "another body"}
        return web.json_response(document, status=409)

    wire.intercept = apply_and_deny
    group = group_of(await topic(), wire=wire)
    events = usage(30)
    await group.produce(events, partition=0)
    worker = group.start(linger_seconds="0.5")

    async def halts() -> list[dict[str, Any]]:
        return worker.events("partition.halted")  # while the wire is served

    (halt,) = await eventually_async(halts)
    assert "the key was used before with another body" in halt["reason"]

    resolve(group, f"{group.topics[0]}:0:0", "--as", "acknowledged", "--reason", "it is there")

    more = usage(30, first=30)
    await group.produce(more, partition=0)
    await group.settled()
    assert simulator.report()["keys"] == totals(events + more)
    assert simulator.report()["replayed"] == 0


async def test_what_retention_took_is_skipped_only_by_decision(
    group: Group, simulator: Simulator, resolve: Resolve
) -> None:
    """The gap is noted among the receipts with what a person said of it, and the rest settled."""
    (name,) = group.topics
    events = usage(70)
    await group.produce(events[:20], partition=0)
    worker = group.start()
    await group.settled()
    worker.process.terminate()
    assert worker.process.wait() == 0
    await group.produce(events[20:], partition=0)
    await delete_records(group, before_offset=45)
    worker = group.start()
    assert f"ingester resolve {name}:0:20 --as skipped" in halt_of(worker)["reason"]
    assert f"`ingester resolve {name}:0` says" in halt_of(worker)["detail"]
    assert f"ingester resolve {name}:0:20 --as skipped" in resolve(group, f"{name}:0").stdout

    skipped = resolve(group, f"{name}:0:20", "--as", "skipped", "--reason", "estimated on paper")

    assert "25 offsets are missing, and it is not known what was in them" in skipped.stdout
    assert "Nothing in it was in doubt" in skipped.stdout
    await group.settled()
    assert simulator.report()["keys"] == totals(events[:20] + events[45:])
    (gap,) = await resolutions(group)
    assert (gap["firstOffset"], gap["nextOffset"]) == (20, 45)
    assert (gap["decision"], gap["reason"]) == ("skipped", "estimated on paper")


async def test_a_batch_that_retention_cut_into_is_skipped_as_a_whole(
    group: Group, simulator: Simulator, resolve: Resolve
) -> None:
    """What is left of a batch in doubt cannot be sent under its key, and is passed with the gap."""
    (name,) = group.topics
    events = usage(70)
    await group.produce(events, partition=0)
    await plant_intents(group.servers, group.name, name, 20, [(20, 40), (40, 60)])
    await delete_records(group, before_offset=45)
    worker = group.start()
    halt_of(worker)

    skipped = resolve(group, f"{name}:0:20", "--as", "skipped", "--reason", "estimated on paper")

    assert "25 offsets are missing" in skipped.stdout
    assert "[45,60) is in the log still" in skipped.stdout
    assert "In doubt in it: [20,40), [40,60)" in skipped.stdout
    await group.settled()
    assert simulator.report()["keys"] == totals(events[60:])


async def test_too_many_dead_letters_are_tried_again_by_decision(
    group: Group, simulator: Simulator, resolve: Resolve
) -> None:
    """At the limit the partition halts; `resend` at the committed offset lets it go on."""
    (name,) = group.topics
    worker = group.start(dead_letters_max="5", dead_letter_share_max="0.1")
    await produce(group.servers, name, [b"bad"] * 4, partition=0)
    await group.settled()
    await produce(group.servers, name, [b"bad"] * 2, partition=0)
    assert "INGESTER_DEAD_LETTERS_MAX" in halt_of(worker)["reason"]
    await group.commits({0: 6})  # what passes the limit is the last that is written
    await produce(group.servers, name, [b"bad"] * 2, partition=0)

    assert f"with nothing in doubt: {name}:0 (6 of 8, worker at " in resolve(group).stdout
    shown = resolve(group, f"{name}:0").stdout
    assert f"  ingester resolve {name}:0:6 --as resend --reason ...\n" in shown
    resolve(group, f"{name}:0:6", "--as", "resend", "--reason", "they are meant to be refused")

    await group.produce(usage(21), partition=0)
    await group.settled()
    assert simulator.report()["keys"] == totals(usage(21))
    assert len(await group.dead_letters()) == 8


async def test_metadata_of_a_newer_version_halts(
    group: Group, simulator: Simulator, resolve: Resolve
) -> None:
    """What was in doubt there is not known, so nothing is sent, and nothing can be decided."""
    (name,) = group.topics
    await group.produce(usage(30), partition=0)
    await plant(group.servers, group.name, name, 10, "pacspace9:AAAA")
    worker = group.start()

    assert "another version of this program wrote it" in halt_of(worker)["reason"]
    refused = resolve(group, f"{name}:0:10", "--as", "resend", "--reason", "try", exit_code=64)
    assert "another version of this program wrote it" in refused.stderr
    assert "another version of this program wrote it" in resolve(group).stdout
    assert simulator.report()["items"] == 0
    assert await group.committed() == {0: 10}


async def test_metadata_of_somebody_else_is_replaced_aloud(
    group: Group, simulator: Simulator, resolve: Resolve
) -> None:
    """A worker says what it found where its intents go, and settles on from the offset."""
    (name,) = group.topics
    events = usage(30)
    await group.produce(events, partition=0)
    await plant(group.servers, group.name, name, 10, "mirror-maker was here")
    assert "'mirror-maker was here'" in resolve(group).stdout

    worker = group.start()

    await group.settled()
    (replaced,) = worker.events("metadata.replaced")
    assert replaced["metadata"] == "mirror-maker was here"
    assert simulator.report()["keys"] == totals(events[10:])


async def delete_records(group: Group, *, before_offset: int) -> None:
    """Do to partition 0 of the first topic what retention does."""
    async with admin(group.servers) as client:
        where = TopicPartition(group.topics[0], 0)
        await client.delete_records({where: RecordsToDelete(before_offset=before_offset)})
