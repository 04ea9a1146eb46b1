"""`ingester reconcile`: on a healthy run all agree, and each planted fault is found and named."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from tests.conftest import TopicFactory
from tests.e2e.test_markers import transact
from tests.support.bookkeeping import copied, dead_letter_headers, receipt
from tests.support.kafka import admin, create_topic, delete_topics, produce, read_all
from tests.support.planted_commits import plant
from tests.support.processes import COMMAND, Ingesters, environment
from tests.support.simulator import API_KEY, Simulator
from tests.support.unreadable import produce_unreadable
from tests.support.waiting import eventually
from tests.support.workers import Group, totals, usage

GroupOf = Callable[..., Group]
Ended = subprocess.CompletedProcess[str]
Reconcile = Callable[..., Ended]
Notes = list[dict[str, Any]]
EVENTS = usage(300)


@pytest.fixture
def reconcile(ingesters: Ingesters) -> Reconcile:
    """Runs `ingester reconcile` with a group's settings."""

    def run(group: Group, *arguments: str, exit_code: int = 0, **settings: str) -> Ended:
        ended = ingesters.run("reconcile", *arguments, settings=group.settings(**settings))
        assert ended.returncode == exit_code, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended

    return run


@pytest.fixture
async def settled(group_of: GroupOf, topic: TopicFactory) -> Group:
    """Two partitions with three hundred events, and one that is none in between, all settled."""
    group = group_of(await topic(2))
    (name,) = group.topics
    await produce(group.servers, name, [*EVENTS[:130], b"bad", *EVENTS[130:200]], partition=0)
    await group.produce(EVENTS[200:], partition=1)
    worker = group.start(items_max="50")
    await group.settled()
    worker.process.terminate()
    assert worker.process.wait() == 0
    return group


def told(reconcile: Reconcile, group: Group, *arguments: str, **more: Any) -> dict[str, Any]:
    return dict(json.loads(reconcile(group, "--json", *arguments, **more).stdout))


def wrong(found: dict[str, Any]) -> list[tuple[str, int, int, int]]:
    """Kind, partition and range of each discrepancy in the coverage."""
    return [
        (each["kind"], each["partition"], each["firstOffset"], each["nextOffset"])
        for each in found["findings"]
        if each["discrepancy"]
    ]


def write(simulator: Simulator, *items: dict[str, Any]) -> None:
    """Write to PacSpace behind the ingester's back."""
    httpx.post(
        f"{simulator.url}/api/v1/writes", json={"items": items}, headers={"X-Api-Key": API_KEY}
    ).raise_for_status()


def taken(simulator: Simulator) -> int:
    """How many requests the only fault rule has had its way with."""
    (rule,) = httpx.get(f"{simulator.url}/_simulator/faults").raise_for_status().json()
    return int(rule["taken"])


def forget(simulator: Simulator) -> None:
    """Let PacSpace lose all that it was told."""
    httpx.delete(f"{simulator.url}/_simulator/report").raise_for_status()


async def rewritten(
    group: Group, topic: TopicFactory, changed: Callable[[Notes], Notes]
) -> tuple[Notes, dict[str, str]]:
    """Return what the receipts were, and the setting that names them changed."""
    (name,) = group.topics
    other = await topic(2, name=f"{name}.rewritten")
    notes = await copied(group.servers, f"{name}.receipts", other, changed)
    return notes, {"receipts_topic": other}


async def test_a_healthy_run_agrees(settled: Group, reconcile: Reconcile) -> None:
    """Exit code 0, by the receipts alone and by the events of Kafka itself."""
    for arguments in ([], ["--from-topic"]):
        said = reconcile(settled, *arguments).stdout
        assert said.endswith("All agree: Kafka, the receipts and PacSpace.\n")
        assert "Totals: 7 keys" in said
        found = told(reconcile, settled, *arguments)
        assert (found["verdict"], found["findings"], found["keys"]) == ("agreed", [], [])
        assert found["keysAgreed"] == 7
        assert [each["coveredOffsets"] for each in found["partitions"]] == [201, 100]


async def test_a_receipt_that_was_removed_is_a_gap(
    settled: Group, reconcile: Reconcile, topic: TopicFactory
) -> None:
    """Its range, and for each of its keys that PacSpace has more than the receipts say."""
    notes, changed = await rewritten(settled, topic, lambda notes: notes[1:])
    removed = notes[0]

    found = told(reconcile, settled, exit_code=1, **changed)

    range_ = (removed["partition"], removed["firstOffset"], removed["nextOffset"])
    assert wrong(found) == [("gap", *range_)]
    differing = {each["key"]: each["difference"] for each in found["keys"]}
    assert differing == removed["bitsByKey"]
    assert all(each["isInGaps"] and not each["suspects"] for each in found["keys"])
    said = reconcile(settled, "--from-topic", exit_code=1, **changed).stdout
    assert f"{removed['firstOffset']},{removed['nextOffset']})" in said
    kafka = told(reconcile, settled, "--from-topic", exit_code=1, **changed)
    assert {each["kafkaBits"] - each["currentBits"] for each in kafka["keys"]} == {0}


async def test_a_receipt_with_another_batch_id_is_counted_twice(
    settled: Group, reconcile: Reconcile, topic: TopicFactory, simulator: Simulator
) -> None:
    """The range and both ids; where PacSpace has counted twice, the keys differ by the batch."""
    notes, changed = await rewritten(
        settled, topic, lambda notes: [*notes, notes[1] | {"batchId": "batch_other"}]
    )
    doubled = notes[1]

    found = told(reconcile, settled, exit_code=1, **changed)

    range_ = (doubled["partition"], doubled["firstOffset"], doubled["nextOffset"])
    assert wrong(found) == [("counted_twice", *range_)]
    assert doubled["batchId"] in found["findings"][0]["detail"]
    assert found["keys"] == []
    for key, bits in doubled["bitsByKey"].items():
        write(simulator, {"key": key, "accountId": "a", "bits": bits})
    found = told(reconcile, settled, exit_code=1, **changed)
    assert {each["key"]: each["difference"] for each in found["keys"]} == doubled["bitsByKey"]
    looked_at = [each["suspects"][0] for each in found["keys"]]
    assert all(each["firstOffset"] == doubled["firstOffset"] for each in looked_at)


async def test_a_receipt_that_counts_other_items_is_named(
    settled: Group, reconcile: Reconcile, topic: TopicFactory
) -> None:
    """By the events of Kafka itself, although all sums of bits agree."""
    _, changed = await rewritten(
        settled, topic, lambda notes: [notes[0] | {"items": 3}, *notes[1:]]
    )

    found = told(reconcile, settled, "--from-topic", exit_code=1, **changed)

    assert [each[0] for each in wrong(found)] == ["receipt_differs"]
    assert found["keys"] == []


async def test_a_repeated_receipt_is_none_the_worse(
    settled: Group, reconcile: Reconcile, topic: TopicFactory
) -> None:
    """A fenced worker's late receipt of the same batch is remarked upon, and counted once."""
    _, changed = await rewritten(settled, topic, lambda notes: [*notes, notes[1]])

    found = told(reconcile, settled, **changed)

    assert found["verdict"] == "agreed"
    assert [each["kind"] for each in found["findings"]] == ["repeated"]


async def test_ranges_that_overlap_are_named(
    settled: Group, reconcile: Reconcile, topic: TopicFactory
) -> None:
    """Two batches of the same records, each with a receipt of its own."""
    (name,) = settled.topics
    other = receipt(name, 120, 160, {"usage-0": 5})
    notes, changed = await rewritten(settled, topic, lambda notes: [*notes, other])

    found = told(reconcile, settled, exit_code=1, **changed)

    overlaps = wrong(found)
    assert {each[:2] for each in overlaps} == {("overlap", 0)}
    assert (min(each[2] for each in overlaps), max(each[3] for each in overlaps)) == (120, 160)
    named = [
        f"[{each['firstOffset']},{each['nextOffset']})"
        for each in notes
        if each["partition"] == 0 and each["firstOffset"] < 160 and each["nextOffset"] > 120
    ]
    said = "".join(each["detail"] for each in found["findings"])
    assert all(range_ in said for range_ in named)
    assert [(each["key"], each["difference"]) for each in found["keys"]] == [("usage-0", -5)]


async def test_a_bucket_that_is_off_by_one_is_named(
    settled: Group, reconcile: Reconcile, simulator: Simulator
) -> None:
    """Both sums, the difference, and where the key is; the others agree."""
    write(simulator, {"key": "usage-3", "accountId": "customer-3", "bits": 1})

    found = told(reconcile, settled, exit_code=1)

    assert wrong(found) == []
    (key,) = found["keys"]
    expected = totals(EVENTS)["usage-3"]["bits"]
    assert (key["key"], key["accountId"], key["status"]) == ("usage-3", "customer-3", "mismatch")
    assert (key["receiptsBits"], key["currentBits"], key["difference"]) == (
        expected,
        expected + 1,
        1,
    )
    assert {each["partition"] for each in key["ranges"]} == {0, 1}
    assert found["keysAgreed"] == 6
    assert "+1" in reconcile(settled, exit_code=1).stdout
    assert told(reconcile, settled, "--key", "usage-2")["keysAgreed"] == 1
    assert told(reconcile, settled, "--account", "customer-2")["keysAgreed"] == 1
    assert told(reconcile, settled, "--account", "customer-3", exit_code=1)["keysAgreed"] == 0


async def test_a_key_that_pacspace_does_not_know_is_named(
    settled: Group, reconcile: Reconcile, simulator: Simulator
) -> None:
    """Receipts name it, and nothing was ever written to it."""
    forget(simulator)

    found = told(reconcile, settled, exit_code=1)

    assert {each["status"] for each in found["keys"]} == {"unknown_key"}
    assert len(found["keys"]) == 7
    assert "unknown_key" in reconcile(settled, exit_code=1).stdout


async def test_offsets_that_were_committed_without_a_receipt_are_a_gap(
    group_of: GroupOf, topic: TopicFactory, reconcile: Reconcile, ingesters: Ingesters
) -> None:
    """What a worker without receipts has settled, with the number of its records."""
    group = group_of(await topic())
    await group.produce(EVENTS[:40], partition=0)
    for settings in ({}, {"receipts": "off"}, {}):
        worker = group.start(**settings)
        await group.settled()
        worker.process.terminate()
        assert worker.process.wait() == 0
        await group.produce(EVENTS[40:60], partition=0)
    worker = group.start()
    await group.settled()

    found = told(reconcile, group, exit_code=1)

    assert wrong(found) == [("gap", 0, 40, 60)]
    assert found["findings"][0]["detail"].startswith("20 records below the committed offset")


async def test_a_record_that_was_dead_lettered_and_receipted_is_named(
    settled: Group, reconcile: Reconcile
) -> None:
    """The range of the receipt that counts fewer dead letters than there are."""
    (name,) = settled.topics
    letters = f"{name}.dead-letters"
    await produce(settled.servers, letters, [b"{}"], headers=dead_letter_headers(name, 0, 130))
    assert told(reconcile, settled)["verdict"] == "agreed"  # the same one again, after a crash
    await produce(settled.servers, letters, [b"{}"], headers=dead_letter_headers(name, 1, 7))

    found = told(reconcile, settled, exit_code=1)

    ((kind, partition, first_offset, next_offset),) = wrong(found)
    assert (kind, partition) == ("dead_letters_differ", 1)
    assert first_offset <= 7 < next_offset
    assert "counts 0 dead letters" in found["findings"][0]["detail"]
    assert wrong(told(reconcile, settled, f"{name}:0")) == []


async def test_a_dead_letter_without_a_receipt_is_named(
    settled: Group, reconcile: Reconcile, topic: TopicFactory
) -> None:
    """Its offset lies below the committed one, and in no receipt."""
    notes, changed = await rewritten(
        settled, topic, lambda notes: [each for each in notes if not each["deadLetters"]]
    )
    (removed,) = [each for each in notes if each["deadLetters"]]

    found = told(reconcile, settled, exit_code=1, **changed)

    assert wrong(found) == [
        ("gap", 0, removed["firstOffset"], removed["nextOffset"]),
        ("dead_letter_without_receipt", 0, 130, 131),
    ]


async def test_what_is_no_record_is_no_gap(
    group_of: GroupOf, topic: TopicFactory, reconcile: Reconcile
) -> None:
    """Markers and aborted records between batches, foreign notes, and what is not committed yet."""
    group = group_of(await topic())
    (name,) = group.topics
    worker = group.start()
    for first in (0, 30, 60):
        await transact(group.servers, name, EVENTS[first : first + 30], commit=True)
        await group.settled()
        await transact(group.servers, name, EVENTS[:5], commit=False)
        await group.settled()
    worker.process.terminate()
    assert worker.process.wait() == 0
    await group.produce(EVENTS[90:], partition=0)
    await produce(group.servers, f"{name}.receipts", [b"foreign", {"kind": "other"}], partition=0)

    for arguments in ([], ["--from-topic"]):
        found = told(reconcile, group, *arguments)
        assert (found["verdict"], found["findings"]) == ("agreed", [])
        assert found["foreignRecords"] == 2
    assert "2 records of" in reconcile(group).stdout


async def test_what_is_in_doubt_is_pending(
    group_of: GroupOf,
    topic: TopicFactory,
    reconcile: Reconcile,
    simulator: Simulator,
    ingesters: Ingesters,
) -> None:
    """Exit code 2, and the batch, while PacSpace may have counted it, until somebody decides."""
    group = group_of(await topic())
    (name,) = group.topics
    await group.produce(EVENTS[:70], partition=0)
    first = group.start()
    await group.settled()
    first.process.terminate()
    assert first.process.wait() == 0
    simulator.add_faults({"match": {"method": "POST", "count": 1}, "effect": {"kind": "lose"}})
    await group.produce(EVENTS[70:100], partition=0)
    worker = group.start(in_doubt="halt", linger_seconds="1")
    eventually(lambda: worker.events("partition.halted"))
    (lost,) = worker.events("batch.in_doubt")
    offset, next_offset = lost["first_offset"], lost["next_offset"]

    found = told(reconcile, group, exit_code=2)

    assert found["verdict"] == "pending"
    (doubt,) = found["findings"]
    assert (doubt["kind"], doubt["firstOffset"], doubt["nextOffset"]) == (
        "in_doubt",
        offset,
        next_offset,
    )
    assert {each["status"] for each in found["keys"]} == {"pending"}
    assert "pending: under way" in reconcile(group, exit_code=2).stdout
    decision = ("--as", "acknowledged", "--reason", "it is there")
    ended = ingesters.run("resolve", f"{name}:0:{offset}", *decision, settings=group.settings())
    assert ended.returncode == 0, ended.stderr
    await group.settled()
    assert told(reconcile, group)["verdict"] == "agreed"


async def test_what_is_not_verified_is_pending(
    group_of: GroupOf, topic: TopicFactory, reconcile: Reconcile, ingesters: Ingesters
) -> None:
    """Exit code 2 until PacSpace has verified the balance."""
    group = group_of(await topic())
    slow = Simulator(ingesters, "--verify-delay-seconds", "3600")
    group._pacspace = slow.settings()
    await group.produce(EVENTS[:20], partition=0)
    group.start()
    await group.settled()

    found = told(reconcile, group, exit_code=2)

    assert {each["status"] for each in found["keys"]} == {"pending"}
    assert "not verified yet" in reconcile(group, exit_code=2).stdout


async def test_what_retention_took_is_not_judged(
    settled: Group, reconcile: Reconcile, topic: TopicFactory
) -> None:
    """With receipts all agrees without the log; without, it is said that it cannot be told."""
    (name,) = settled.topics
    async with admin(settled.servers) as client:
        where = {TopicPartition(name, 0): RecordsToDelete(before_offset=120)}
        await client.delete_records(where)
    for arguments in ([], ["--from-topic"]):
        assert told(reconcile, settled, *arguments)["verdict"] == "agreed"

    _, changed = await rewritten(
        settled,
        topic,
        lambda notes: [
            each for each in notes if (each["partition"], each["firstOffset"]) != (0, 50)
        ],
    )

    found = told(reconcile, settled, exit_code=1, **changed)
    assert [(each["kind"], each["firstOffset"]) for each in found["findings"]] == [("lost", 50)]
    assert len(found["keys"]) == 7


async def test_redriven_and_replayed_bits_count(
    settled: Group, reconcile: Reconcile, simulator: Simulator
) -> None:
    """A dead letter that was settled in its turn, and a replay that was to count again."""
    (name,) = settled.topics
    letters = f"{name}.dead-letters"
    redriven = receipt(letters, 0, 1, {"usage-1": 11})
    await create_topic(settled.servers, f"{letters}.receipts")
    for _ in range(2):  # the second after a crash
        await produce(settled.servers, f"{letters}.receipts", [redriven], partition=0)
    forced = receipt(name, 0, 50, {"usage-2": 13}, replay="again", forced=True)
    await produce(settled.servers, f"{name}.receipts", [forced], partition=0)
    assert len(told(reconcile, settled, exit_code=1)["keys"]) == 2

    write(simulator, {"key": "usage-1", "accountId": "a", "bits": 11})
    write(simulator, {"key": "usage-2", "accountId": "a", "bits": 13})

    for arguments in ([], ["--from-topic"]):
        found = told(reconcile, settled, *arguments)
        assert found["verdict"] == "agreed"
        (again,) = found["findings"]
        assert (again["kind"], again["firstOffset"], again["nextOffset"]) == (
            "counted_again",
            0,
            50,
        )
        assert again["detail"] == "by force, by the replay again, 13 bits"
    said = reconcile(settled).stdout
    assert said.endswith(
        "All agree: Kafka with what was counted again by force, the receipts and PacSpace.\n"
    )
    write(simulator, {"key": "usage-2", "accountId": "a", "bits": 1})
    (key,) = told(reconcile, settled, "--from-topic", exit_code=1)["keys"]
    own = totals(EVENTS)["usage-2"]["bits"]
    assert (key["kafkaBits"], key["countedAgainBits"]) == (own, 13)
    assert (key["receiptsBits"], key["currentBits"]) == (own + 13, own + 14)


async def test_what_the_log_does_not_have_is_named(settled: Group, reconcile: Reconcile) -> None:
    """A topic made anew: other records at the receipts' offsets, and none where they end."""
    (name,) = settled.topics
    await delete_topics(settled.servers, [name])
    await create_topic(settled.servers, name, partitions=2)
    await settled.produce(usage(250, first=500), partition=0)
    await plant(settled.servers, settled.name, name, 201, "")
    await plant(settled.servers, settled.name, name, 100, "", partition=1)

    found = told(reconcile, settled, "--from-topic", exit_code=1)

    named = {each[:2] for each in wrong(found)}
    assert {("other_records", 0), ("beyond_end", 1)} <= named
    assert wrong(found)[-1] == ("beyond_end", 1, 0, 100)


async def test_what_cannot_be_read_is_a_gap(settled: Group, reconcile: Reconcile) -> None:
    """Below the committed offset, unless somebody decided to skip it."""
    (name,) = settled.topics
    values = [json.dumps(each).encode() for each in usage(3)]
    await produce_unreadable(settled.servers, name, values, 0, partition=1)
    await plant(settled.servers, settled.name, name, 103, "", partition=1)

    found = told(reconcile, settled, exit_code=1)

    assert wrong(found) == [("gap", 1, 100, 103)]
    assert found["findings"][0]["detail"].endswith("cannot be read")
    note = {
        "kind": "resolution", "topic": name, "partition": 1, "firstOffset": 100, "nextOffset": 103,
        "decision": "skipped", "by": "ops", "reason": "a test", "decidedAt": "2025-07-01T00:00:00Z",
    }  # fmt: skip
    await produce(settled.servers, f"{name}.receipts", [note], partition=1)
    assert wrong(told(reconcile, settled)) == []


async def test_receipts_are_found_in_whichever_partition_they_are(
    settled: Group, reconcile: Reconcile, topic: TopicFactory
) -> None:
    """A mirror may have another layout: a second batch id is named in that, too."""
    (name,) = settled.topics
    one = await topic(1, name=f"{name}.one")
    notes = [json.loads(each.value) for each in await read_all(settled.servers, f"{name}.receipts")]
    await produce(settled.servers, one, [*notes, notes[0] | {"batchId": "other"}], partition=0)

    assert {
        each[0] for each in wrong(told(reconcile, settled, exit_code=1, receipts_topic=one))
    } == {"counted_twice"}
    elsewhere = notes[0] | {"batchId": "other"}
    other = 1 - notes[0]["partition"]
    await produce(settled.servers, f"{name}.receipts", [elsewhere], partition=other)
    assert {each[0] for each in wrong(told(reconcile, settled, exit_code=1))} == {"counted_twice"}


async def test_what_another_deployment_redrives_is_not_counted(
    settled: Group, reconcile: Reconcile
) -> None:
    """Two share a topic of dead letters: the receipts of the other's are the other's."""
    (name,) = settled.topics
    letters = f"{name}.dead-letters"
    await produce(settled.servers, letters, [b"{}"], headers=dead_letter_headers("other", 0, 3))
    places = list(await read_all(settled.servers, letters))
    (foreign,) = [each for each in places if each.value == b"{}"]
    note = receipt(letters, foreign.offset, foreign.offset + 1, {"usage-1": 11})
    await create_topic(settled.servers, f"{letters}.receipts")
    await produce(
        settled.servers,
        f"{letters}.receipts",
        [note | {"partition": foreign.partition}],
        partition=0,
    )

    for arguments in ([], ["--from-topic"]):
        assert told(reconcile, settled, *arguments)["verdict"] == "agreed"


async def test_beside_a_busy_worker_nothing_differs(
    group_of: GroupOf, topic: TopicFactory, reconcile: Reconcile
) -> None:
    """While events are settled it is agreed or pending, and agreed when they are."""
    group = group_of(await topic(2))
    group.start(requests_per_second_max="20", items_max="10")
    await group.produce(usage(2000))
    eventually(lambda: group._ingesters.processes[-1].log().count("batch.acknowledged") > 10)

    codes = []
    for _ in range(3):
        ended = group._ingesters.run("reconcile", settings=group.settings())
        assert "mismatch" not in ended.stdout
        codes.append(ended.returncode)

    assert set(codes) <= {0, 2}
    await group.settled()
    assert told(reconcile, group)["verdict"] == "agreed"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["other"], 64, "is none of INGESTER_TOPIC"),
        (["{topic}:0", "{topic}:9"], 64, "{topic} has no partition 9; it has 0 to"),
        (["{topic}:x"], 64, "should be TOPIC or TOPIC:PARTITION"),
        (["--account", "nobody"], 64, "no key of the receipts is the account nobody's"),
        (["--key", "."], 64, "cannot be asked for the balance of '.'"),
    ],
)
async def test_what_cannot_be_asked_is_said(
    settled: Group, reconcile: Reconcile, arguments: list[str], exit_code: int, said: str
) -> None:
    """A sentence that names it, and an exit code of its own."""
    (name,) = settled.topics
    asked = [each.format(topic=name) for each in arguments]

    assert said.format(topic=name) in reconcile(settled, *asked, exit_code=exit_code).stderr


async def test_a_group_that_has_only_begun_is_said_to_be_at_work(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, reconcile: Reconcile
) -> None:
    """Nothing is wrong with what was asked: exit code 69, to try again later."""
    group = group_of(await topic(1))
    (name,) = group.topics
    simulator.add_faults({"match": {"method": "POST"}, "effect": {"kind": "hang"}})
    worker = group.start()
    eventually(worker.ready)

    said = reconcile(group, exit_code=69).stderr

    assert f"has committed nothing of {name} yet, and is at work with 1 member" in said


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_discrepancy_is_the_exit_code_though_nobody_reads_it(
    settled: Group, simulator: Simulator, arguments: tuple[str, ...]
) -> None:
    """As with `| true`, whenever it is noticed that the reader has gone."""
    httpx.post(
        f"{simulator.url}/api/v1/writes",
        json={"items": [{"key": "usage-1", "accountId": "customer-1", "bits": 1}]},
        headers={"X-Api-Key": API_KEY},
    ).raise_for_status()
    gone = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    gone.wait()
    assert gone.stdin is not None
    codes = []
    for unbuffered in ("", "1"):
        ended = subprocess.run(
            [COMMAND, "reconcile", *arguments],
            stdout=gone.stdin.fileno(),
            stderr=subprocess.PIPE,
            check=False,
            env=environment(settled.settings() | {"PYTHONUNBUFFERED": unbuffered}),
        )
        codes.append((ended.returncode, ended.stderr))
    gone.stdin.close()

    assert codes == [(1, b"")] * 2


async def test_an_interrupt_leaves_nothing_half_done(
    settled: Group, simulator: Simulator, ingesters: Ingesters
) -> None:
    """Exit code 130 in the middle of the balances, without a word; the next run agrees."""
    simulator.add_faults({"match": {"method": "GET", "count": 7}, "effect": {"kind": "hang"}})
    started = ingesters.start("reconcile", settings=settled.settings())
    eventually(lambda: taken(simulator))

    started.signal(signal.SIGINT)

    assert started.wait() == 130
    assert "Traceback" not in started.log()
    assert "Totals" not in started.log()
    simulator.clear_faults()
    assert ingesters.run("reconcile", settings=settled.settings()).returncode == 0


async def test_what_is_missing_is_said(
    settled: Group, reconcile: Reconcile, simulator: Simulator
) -> None:
    """No receipts topic, another group, a PacSpace that is away, and one that refuses the key."""
    missing = reconcile(settled, exit_code=69, receipts_topic="nowhere").stderr
    assert "there is no topic nowhere, where the receipts of" in missing
    assert "has committed nothing" in reconcile(settled, exit_code=64, group_id="other").stderr
    assert "INGESTER_RECEIPTS is off" in reconcile(settled, exit_code=78, receipts="off").stderr
    simulator.add_faults({"match": {"method": "GET"}, "effect": {"kind": "answer", "status": 401}})
    assert "no balance of" in reconcile(settled, exit_code=77).stderr
    simulator.process.kill()
    away = reconcile(settled, exit_code=69)
    assert away.stdout.endswith("is accounted for, once.\n\n")
    assert "no balance of" in away.stderr
    assert len(await read_all(settled.servers, settled.topics[0])) == 301
