"""`ingester explain`: each fate of a record is told, and from a batch the way leads back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from tests.conftest import TopicFactory
from tests.support.bookkeeping import copied, receipt
from tests.support.kafka import admin, create_topic, delete_topics, produce
from tests.support.planted_commits import plant
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.waiting import eventually
from tests.support.workers import Group, usage

GroupOf = Callable[..., Group]
Explain = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def explain(ingesters: Ingesters) -> Explain:
    """Runs `ingester explain` with what it needs of a group's settings: nothing of PacSpace's."""

    def run(
        group: Group, *arguments: str, exit_code: int = 0, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value
            for name, value in group.settings(**settings).items()
            if "PACSPACE" not in name
        }
        ended = ingesters.run("explain", *arguments, settings=environment)
        assert ended.returncode == exit_code, ended.stdout + ended.stderr
        return ended

    return run


def of(explain: Explain, group: Group, offset: int, *arguments: str, **more: Any) -> dict[str, Any]:
    """What `--json` says of an offset of partition 0."""
    target = f"{group.topics[0]}:0:{offset}"
    return dict(json.loads(explain(group, target, "--json", *arguments, **more).stdout))


async def test_what_is_settled_names_its_batch_and_back(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, explain: Explain
) -> None:
    """From a record to its batch id, and from that or the key to the range and its records."""
    group = group_of(await topic(2))
    name = group.topics[0]
    events = usage(120)
    await group.produce(events, partition=0)
    worker = group.start(items_max="50")
    await group.settled()
    worker.process.terminate()
    assert worker.process.wait() == 0

    told = of(explain, group, 60, "--record")

    assert told["fate"] == "settled"
    (settled,) = told["receipts"]
    assert settled["firstOffset"] <= 60 < settled["nextOffset"]
    batch_id, key = settled["batchId"], settled["idempotencyKey"]
    applied = simulator.report(batch_ids=True)["batch_ids"]
    assert applied[batch_id.removeprefix("batch_")]["idempotency_key"] == key
    assert json.loads(told["record"]["value"]["text"]) == events[60]
    assert (told["committedOffset"], told["waitsFor"]) == (120, [])
    unwritten = explain(group, f"{name}:1:0", exit_code=2).stdout
    assert unwritten == f"{name}:1:0 is not written yet: 0 is the next offset of its log.\n"
    sentences = explain(group, f"{name}:0:60").stdout
    assert f"{name}:0:60 is settled: PacSpace acknowledged its batch as {batch_id}" in sentences
    for option, value in (("--batch-id", batch_id), ("--idempotency-key", key)):
        back = json.loads(explain(group, option, value, "--record", "--json").stdout)
        assert back["receipts"] == [settled]
        values = [json.loads(each["value"]["text"]) for each in back["records"][0]]
        assert values == events[settled["firstOffset"] : settled["nextOffset"]]
        assert f"{value} is {name}:0[" in explain(group, option, value).stdout
    assert (
        "No receipt names nonsense" in explain(group, "--batch-id", "nonsense", exit_code=1).stdout
    )


async def test_a_dead_letter_says_why_and_where(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, explain: Explain
) -> None:
    """From the record, and from the dead letter itself; once redriven, the receipt of that."""
    simulator.add_faults(
        {"match": {"key": "usage-bad"}, "effect": {"kind": "refuse", "message": "no such account"}}
    )
    group = group_of(await topic())
    name = group.topics[0]
    bad = {"key": "usage-bad", "accountId": "a", "bits": 1}
    values = [*usage(10), b"nonsense", *usage(10, first=10), bad]
    await produce(group.servers, name, values, partition=0)
    group.start(linger_seconds="0.5")
    await group.settled()

    invalid, refused = of(explain, group, 10), of(explain, group, 21)

    assert (invalid["fate"], refused["fate"]) == ("dead_lettered", "dead_lettered")
    letters = await group.dead_letters()
    (letter,) = invalid["deadLetters"]
    assert letters[letter["offset"]].value == b"nonsense"
    assert letter["code"] == "invalid_json"
    assert (refused["deadLetters"][0]["code"], refused["deadLetters"][0]["httpStatus"]) == (
        "refused",
        400,
    )
    assert "no such account" in explain(group, f"{name}:0:21").stdout
    assert of(explain, group, 9)["fate"] == "settled"
    through = explain(group, f"{name}.dead-letters:0:{letter['offset']}").stdout
    assert f"{name}:0:10 is a dead letter: invalid_json" in through
    assert "redriven         no" in through

    redriven = receipt(f"{name}.dead-letters", letter["offset"], letter["offset"] + 1, {"k": 5})
    await create_topic(group.servers, f"{name}.dead-letters.receipts")
    await produce(group.servers, f"{name}.dead-letters.receipts", [redriven], partition=0)
    (redrive,) = of(explain, group, 10)["redrives"]
    assert redrive["batchId"] == redriven["batchId"]
    back = json.loads(explain(group, "--batch-id", redriven["batchId"], "--json").stdout)
    assert back["receipts"][0]["topic"] == f"{name}.dead-letters"


async def test_what_halts_in_doubt_says_what_it_waits_for(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, explain: Explain
) -> None:
    """In doubt, behind that, beyond the end: exit code 2 each, and what the worker says."""
    simulator.add_faults({"match": {"method": "POST", "count": 1}, "effect": {"kind": "lose"}})
    group = group_of(await topic())
    name = group.topics[0]
    await group.produce(usage(80), partition=0)
    worker = group.start(in_doubt="halt", linger_seconds="0.5", items_max="40")
    eventually(lambda: worker.events("partition.halted"))
    (lost,) = worker.events("batch.in_doubt")
    offset = lost["first_offset"]

    told = of(explain, group, offset, "--status", f"http://{worker.address}", exit_code=2)

    assert told["fate"] == "in_doubt"
    assert told["inDoubt"]["idempotencyKey"] == lost["idempotency_key"]
    assert any("the partition has halted" in reason for reason in told["waitsFor"])
    listening = {"http_listen": worker.address}
    said = explain(group, f"{name}:0:{offset}", exit_code=2, **listening).stdout
    assert "is in doubt" in said
    assert "the partition has halted" in said
    assert (
        "is not written yet: 80 is the next offset"
        in explain(group, f"{name}:0:80", exit_code=2).stdout
    )
    await group.produce(usage(5, first=80), partition=0)
    waiting = of(explain, group, 84, exit_code=2)
    assert waiting["fate"] == "waiting"
    assert any("says nothing" in reason for reason in waiting["waitsFor"])


async def test_what_was_skipped_names_who_decided(
    group_of: GroupOf,
    topic: TopicFactory,
    explain: Explain,
    ingesters: Ingesters,
) -> None:
    """A gap before the decision and after it; what is settled stays so without its log."""
    group = group_of(await topic())
    name = group.topics[0]
    await group.produce(usage(20), partition=0)
    worker = group.start()
    await group.settled()
    worker.process.terminate()
    assert worker.process.wait() == 0
    await group.produce(usage(50, first=20), partition=0)
    async with admin(group.servers) as client:
        where = TopicPartition(name, 0)
        await client.delete_records({where: RecordsToDelete(before_offset=45)})
    lost = of(explain, group, 30, exit_code=2)
    assert lost["fate"] == "lost"
    assert any("retention overtook" in reason for reason in lost["waitsFor"])
    halted = group.start()
    eventually(lambda: halted.events("partition.halted"))
    status = ("--status", f"http://{halted.address}")
    assert of(explain, group, 30, *status, exit_code=2)["waitsFor"] == lost["waitsFor"][:1]
    halted.process.terminate()
    halted.process.wait()
    decision = ("--as", "skipped", "--reason", "estimated", "--by", "ann")
    assert (
        ingesters.run("resolve", f"{name}:0:20", *decision, settings=group.settings()).returncode
        == 0
    )

    skipped = of(explain, group, 30, "--record")

    assert (skipped["fate"], skipped["record"]) == ("skipped", None)
    assert (skipped["decisions"][0]["by"], skipped["decisions"][0]["reason"]) == (
        "ann",
        "estimated",
    )
    assert "by ann at" in explain(group, f"{name}:0:30").stdout
    assert of(explain, group, 5)["fate"] == "settled"


async def test_what_has_lost_its_receipt_is_not_explained(
    group_of: GroupOf, topic: TopicFactory, explain: Explain
) -> None:
    """Below the committed offset and without any note: exit code 1."""
    group = group_of(await topic())
    name = group.topics[0]
    await group.produce(usage(100), partition=0)
    group.start(items_max="20")
    await group.settled()
    others = await topic(name=f"{name}.less")
    ledger = f"{name}.receipts"
    notes = await copied(
        group.servers, ledger, others, lambda them: [n for n in them if n["firstOffset"] != 20]
    )
    assert 20 in {note["firstOffset"] for note in notes}

    told = of(explain, group, 20, exit_code=1, receipts_topic=others)

    assert (told["fate"], told["waitsFor"]) == ("unexplained", [])
    assert of(explain, group, 0, receipts_topic=others)["fate"] == "settled"


async def test_receipts_of_a_topic_that_was_there_before_prove_nothing(
    group_of: GroupOf, topic: TopicFactory, explain: Explain
) -> None:
    """Other records at the same offsets are not settled: the receipts are named as no proof."""
    group = group_of(await topic())
    (name,) = group.topics
    await group.produce(usage(50), partition=0)
    worker = group.start(items_max="20")
    await group.settled()
    worker.process.terminate()
    assert worker.process.wait() == 0
    await delete_topics(group.servers, [name])
    await create_topic(group.servers, name)
    await group.produce(usage(45, first=500), partition=0)
    await plant(group.servers, group.name, name, 20, "")

    for offset, exit_code in ((3, 1), (44, 2)):  # the last receipt goes beyond the new log's end
        told = of(explain, group, offset, exit_code=exit_code)
        assert told["fate"] == ("unexplained" if exit_code == 1 else "waiting")
        assert (told["receipts"], len(told["receiptsOfOtherRecords"])) == ([], 1)
    assert "of other records that were there" in explain(group, f"{name}:0:3", exit_code=1).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name one of"),
        (["{topic}:0:1", "--batch-id", "b"], "name one of"),
        (["{topic}:0"], "should be TOPIC:PARTITION:OFFSET"),
        (["another:0:1"], "is neither a topic of INGESTER_TOPIC"),
        (["{topic}:7:1"], "has no partition 7"),
        (["{topic}.dead-letters:0:1"], "there is no dead letter of"),
    ],
)
async def test_what_cannot_be_asked_is_said(
    group_of: GroupOf, topic: TopicFactory, explain: Explain, arguments: list[str], said: str
) -> None:
    """Exit code 64 and a sentence, for the command line and for places that do not exist."""
    group = group_of(await topic())
    asked = [each.format(topic=group.topics[0]) for each in arguments]

    assert said in explain(group, *asked, exit_code=64).stderr
