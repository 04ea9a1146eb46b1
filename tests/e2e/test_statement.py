"""`ingester statement`: what one account used in a period, with its proof."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from ingester.core.intent import Ledger, encode
from tests.conftest import TopicFactory
from tests.support.bookkeeping import dead_letter_headers
from tests.support.kafka import admin, produce, read_all
from tests.support.planted_commits import plant
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.workers import Event, Group

GroupOf = Callable[..., Group]
State = Callable[..., subprocess.CompletedProcess[str]]
JUNE = ("--account", "acme", "--from", "2025-06-01", "--to", "2025-07-01")


def event(key: str, account: str, bits: int) -> Event:
    return {"key": key, "accountId": account, "bits": bits}


def moment(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.fixture
def state(ingesters: Ingesters) -> State:
    """Runs `ingester statement` with a group's settings."""

    def run(
        group: Group, *arguments: str, exit_code: int = 0, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        ended = ingesters.run("statement", *arguments, settings=group.settings(**settings))
        assert ended.returncode == exit_code, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended

    return run


async def empty(servers: str, topic: str) -> None:
    """Delete all records of a topic, as retention does."""
    async with admin(servers) as client:
        for each in {record.partition for record in await read_all(servers, topic)}:
            where = TopicPartition(topic, each)
            await client.delete_records({where: RecordsToDelete(before_offset=-1)})


def told(state: State, group: Group, *arguments: str, **more: Any) -> dict[str, Any]:
    return dict(json.loads(state(group, *JUNE, "--json", *arguments, **more).stdout))


@pytest.fixture
async def settled(group_of: GroupOf, topic: TopicFactory, simulator: Simulator) -> Group:
    """Records of May, June and July of two accounts, one of them refused, settled."""
    simulator.add_faults(
        {"match": {"key": "acme-bad"}, "effect": {"kind": "refuse", "message": "no such key"}}
    )
    group = group_of(await topic(2))
    (name,) = group.topics
    records = [
        ("2025-05-31T23:59:59.999", 0, event("acme-api", "acme", 1)),
        ("2025-06-01T00:00:00", 0, event("acme-api", "acme", 10)),
        ("2025-06-10T00:00:00", 0, event("other", "umbrella", 1000)),
        ("2025-06-20T00:00:00", 0, event("acme-storage", "acme", 7)),
        ("2025-06-20T00:00:00", 0, event("acme-bad", "acme", 5)),
        ("2025-06-30T23:59:59.999", 0, event("acme-api", "acme", -3)),
        ("2025-07-01T00:00:00", 0, event("acme-api", "acme", 100)),
        ("2025-06-05T12:00:00", 0, event("acme-api", "acme", 20)),
        ("2025-06-05T12:00:00", 1, event("acme-api", "acme", 40)),
    ]
    for at, partition, each in records:
        await produce(group.servers, name, [each], partition=partition, timestamp_ms=moment(at))
    worker = group.start(linger_seconds="0.5")
    await group.settled()
    worker.process.terminate()
    assert worker.process.wait() == 0
    return group


async def test_a_statement_has_what_the_period_has(settled: Group, state: State) -> None:
    """Lines by key with their sums, places and balances, whatever the order of the records."""
    (name,) = settled.topics

    found = told(state, settled)

    assert (found["verdict"], found["complete"]) == ("agreed", False)
    api, storage = found["lines"]
    assert (api["key"], api["events"], api["bits"]) == ("acme-api", 4, 67)
    assert (api["firstEvent"], api["lastEvent"]) == (f"{name}:0:1", f"{name}:0:5")
    assert (api["currentBits"], api["agreement"]) == (168, "agreed")
    assert (storage["key"], storage["events"], storage["bits"]) == ("acme-storage", 1, 7)
    assert found["totals"] == {"events": 5, "bits": 74}
    assert found["deadLetters"] == {"events": 1, "bits": 5}
    said = state(settled, *JUNE).stdout
    assert "Statement of acme, 2025-06-01T00:00:00Z to 2025-07-01T00:00:00Z" in said
    assert "In the dead-letter topic, and in no line: 1 events, 5 bits" in said
    assert said.endswith("\nBoth parties agree on the balance of each key.\n")
    other = ("--account", "umbrella", *JUNE[2:])
    said = state(settled, *other).stdout
    assert said.endswith("Complete, and both parties agree on the balance of each key.\n")


async def test_redriven_letters_are_stated_as_they_were_sent(
    settled: Group, state: State, ingesters: Ingesters, tmp_path: Path
) -> None:
    """By corrected key and account, one that was no event among them; what is left is said."""
    (name,) = settled.topics
    for value in (
        b'{"key":"acme-old","accountId":"ACME","bits":"30"}',
        b'{"key":"acme-old","accountId":"ACME","bits":"12"}',
        b'{"key":"acme-old","accountId":"acme"}',
    ):
        at = moment("2025-06-12T00:00:00")
        await produce(settled.servers, name, [value], partition=1, timestamp_ms=at)
    worker = settled.start(linger_seconds="0.5")
    await settled.settled()
    worker.process.terminate()
    assert worker.process.wait() == 0
    before = told(state, settled)
    for number, arguments in enumerate(
        [
            ("--code", "wrong_type", "--set", "bits={bits}", "--set", "accountId=acme",
             "--set", "key=acme-new"),
            ("--code", "refused", "--set", "key=acme-storage"),
        ]
    ):  # fmt: skip
        plan = ("--save", str(tmp_path / f"{number}.json"))
        ended = ingesters.run("dlq", "redrive", *arguments, *plan, settings=settled.settings())
        assert ended.returncode == 0, ended.stdout + ended.stderr

    found = told(state, settled)

    lines = {each["key"]: each for each in found["lines"]}
    assert {key: (each["events"], each["bits"]) for key, each in lines.items()} == {
        "acme-api": (4, 67),
        "acme-new": (2, 42),
        "acme-storage": (2, 12),
    }
    new = lines["acme-new"]
    assert (new["firstEvent"], new["lastEvent"]) == (f"{name}:1:1", f"{name}:1:2")
    assert (new["batches"], new["currentBits"], new["agreement"]) == (1, 42, "agreed")
    assert lines["acme-storage"]["batches"] == 2
    assert new["firstSettledAt"] >= before["madeAt"]
    assert (before["deadLetters"], found["deadLetters"]) == (
        {"events": 1, "bits": 5},
        {"events": 0, "bits": 0},
    )
    assert found["verdict"] == "agreed"
    assert before["deadLettersThatAreNoEvent"] == {"missing_member": 1}
    assert found["deadLettersThatAreNoEvent"] == {"missing_member": 1}


async def test_dead_letters_that_are_no_event_are_said(settled: Group, state: State) -> None:
    """Those that name the account, by code and each once, and those that name none."""
    (name,) = settled.topics
    at = moment("2025-06-12T00:00:00")
    for offset, value in enumerate(
        [b'{"key":"k","accountId":"acme","bits":"7"}'] * 2 + [b'{"accountId":"umbrella"}', b"torn"]
    ):
        headers = dead_letter_headers(name, 1, max(1, offset), "wrong_type")
        letters = f"{name}.dead-letters"
        await produce(settled.servers, letters, [value], headers=headers, timestamp_ms=at)

    found = told(state, settled)

    assert found["deadLettersThatAreNoEvent"] == {"wrong_type": 1}
    assert found["deadLettersWithoutAccount"] == 1
    assert "1 records that are no usage event (1 wrong_type)" in " ".join(found["remarks"])


async def test_receipts_that_are_not_right_are_no_agreement(settled: Group, state: State) -> None:
    """Exit code 1 where PacSpace has acknowledged a batch of whichever account twice."""
    (name,) = settled.topics
    first = json.loads((await read_all(settled.servers, f"{name}.receipts"))[0].value)
    twice = first | {"batchId": "batch_other"}
    await produce(settled.servers, f"{name}.receipts", [twice], partition=first["partition"])

    said = state(settled, *JUNE, exit_code=1).stdout

    assert "do not cover each record once" in said
    assert "agree on" not in said


async def test_a_halted_partition_is_no_agreement(settled: Group, state: State) -> None:
    """Exit code 2, and why it has halted, although everything below is settled."""
    (name,) = settled.topics
    torn = encode(1, Ledger(0, [])) + "!"
    await plant(settled.servers, settled.name, name, 1, torn, partition=1)

    said = state(settled, *JUNE, exit_code=2).stdout

    assert f"Halted: {name}:1: " in said
    assert "agree on" not in said


async def test_what_was_counted_again_by_force_is_said(
    settled: Group, state: State, ingesters: Ingesters, tmp_path: Path
) -> None:
    """Beside the lines, with its bits, its name and its reason; the balance holds both."""
    (name,) = settled.topics
    again = ("--force", "--reason", "PacSpace lost it", "--save", str(tmp_path / "plan.json"))
    ended = ingesters.run("replay", f"{name}:1:0-1", *again, settings=settled.settings())
    assert ended.returncode == 0, ended.stdout + ended.stderr

    found = told(state, settled)

    ((counted),) = found["countedAgain"]
    assert (counted["events"], counted["bits"]) == (1, 40)
    assert (found["lines"][0]["bits"], found["lines"][0]["currentBits"]) == (67, 208)
    (remark,) = [each for each in found["remarks"] if "again by force" in each]
    assert counted["replay"] in remark
    assert "1 events, 40 bits" in remark
    assert remark.endswith(": PacSpace lost it.")


async def test_what_was_skipped_is_not_waited_for(settled: Group, state: State) -> None:
    """It is in no line, said beside them, and not pending."""
    (name,) = settled.topics
    passed = event("acme-api", "acme", 9)
    at = moment("2025-06-30T00:00:00")
    await produce(settled.servers, name, [passed], partition=1, timestamp_ms=at)
    note = {
        "kind": "resolution", "topic": name, "partition": 1, "firstOffset": 1, "nextOffset": 2,
        "decision": "skipped", "by": "ops", "reason": "a test", "decidedAt": "2025-07-01T00:00:00Z",
    }  # fmt: skip
    await produce(settled.servers, f"{name}.receipts", [note], partition=1)

    found = told(state, settled)

    assert found["skipped"] == {"events": 1, "bits": 9}
    assert found["waiting"] == {"events": 0, "bits": 0}


async def test_an_account_that_nobody_has_is_refused(settled: Group, state: State) -> None:
    """Exit code 64; one that has used nothing in the period has a statement of nothing."""
    other = ("--account", "acmee", *JUNE[2:])
    assert "no event of the account acmee" in state(settled, *other, exit_code=64).stderr
    before = ("--account", "acme", "--from", "2025-01-01", "--to", "2025-02-01")
    assert json.loads(state(settled, *before, "--json").stdout)["lines"] == []


async def test_a_balance_that_cannot_be_asked_for_is_not_said_to_agree(
    group_of: GroupOf, topic: TopicFactory, state: State
) -> None:
    """No URL path carries the key `.`: its line says so."""
    group = group_of(await topic(1))
    (name,) = group.topics
    at = moment("2025-06-30T00:00:00")
    events = [event(".", "acme", 9), event("acme-api", "acme", 1)]
    await produce(group.servers, name, events, partition=0, timestamp_ms=at)
    worker = group.start()
    await group.settled()
    worker.process.terminate()
    assert worker.process.wait() == 0

    found = told(state, group)

    lines = {each["key"]: each for each in found["lines"]}
    assert (lines["."]["agreement"], lines["."]["currentBits"]) == ("not_asked", None)
    assert lines["acme-api"]["agreement"] == "agreed"
    assert "cannot be asked for" in found["remarks"][-1]


async def test_a_statement_is_csv_as_well(settled: Group, state: State) -> None:
    """The lines with headings on standard output, and remarks beside them."""
    ended = state(settled, *JUNE, "--csv")

    rows = list(csv.DictReader(io.StringIO(ended.stdout)))
    assert [(row["key"], row["events"], row["bits"], row["balance"]) for row in rows] == [
        ("acme-api", "4", "67", "168"),
        ("acme-storage", "1", "7", "7"),
    ]
    assert "dead-letter topic" in ended.stderr


async def test_what_is_not_settled_is_not_stated(settled: Group, state: State) -> None:
    """Exit code 2, with how much it is."""
    (name,) = settled.topics
    late = event("acme-api", "acme", 9)
    await produce(
        settled.servers, name, [late], partition=1, timestamp_ms=moment("2025-06-30T00:00:00")
    )

    found = told(state, settled, exit_code=2)

    assert found["waiting"] == {"events": 1, "bits": 9}
    assert found["totals"]["bits"] == 74
    said = state(settled, *JUNE, exit_code=2).stdout
    assert "Not settled yet" in said
    assert said.endswith("something is pending: run it again later.\n")


async def test_what_retention_took_is_said(settled: Group, state: State) -> None:
    """Incomplete where the log begins within the period; complete for what is behind that."""
    (name,) = settled.topics
    async with admin(settled.servers) as client:
        where = TopicPartition(name, 0)
        await client.delete_records({where: RecordsToDelete(before_offset=3)})

    found = told(state, settled, exit_code=1)

    assert not found["complete"]
    assert "begins at offset 3" in found["remarks"][0]
    assert found["lines"][0]["bits"] == 57
    later = ("--account", "acme", "--from", "2025-06-21", "--to", "2025-07-01")
    assert "Incomplete" not in state(settled, *later).stdout


async def test_events_whose_letters_were_deleted_are_not_said_to_be_settled(
    settled: Group, state: State, ingesters: Ingesters
) -> None:
    """A refused one stays a dead letter; in a batch with settled ones it cannot be told."""
    (name,) = settled.topics
    letters = f"{name}.dead-letters"
    await empty(settled.servers, letters)

    found = told(state, settled)
    kafka = ingesters.run("reconcile", "--from-topic", settings=settled.settings())

    assert found["deadLetters"] == {"events": 1, "bits": 5}
    assert (found["totals"]["bits"], kafka.returncode) == (74, 0)
    notes = [json.loads(each.value) for each in await read_all(settled.servers, f"{name}.receipts")]
    (single,) = [each for each in notes if (each["partition"], each["items"]) == (1, 1)]
    at = moment("2025-06-30T00:00:00")
    more = [event("acme-api", "acme", 9), event("acme-api", "acme", 4)]
    await produce(settled.servers, name, more, partition=1, timestamp_ms=at)
    mixed = single | {
        "firstOffset": 1, "nextOffset": 3, "deadLetters": 1, "idempotencyKey": "another",
        "bits": 9, "bitsByKey": {"acme-api": 9},
    }  # fmt: skip
    await produce(settled.servers, f"{name}.receipts", [mixed], partition=1)

    found = told(state, settled, exit_code=1)

    assert found["untold"] == {"events": 2, "bits": 13}
    assert not found["complete"]
    assert found["remarks"][0].startswith("Incomplete: 2 events, 13 bits are in no line")


async def test_a_balance_that_differs_is_said(settled: Group, state: State) -> None:
    """Exit code 1, beside the line of that key."""
    settled._pacspace |= Simulator(settled._ingesters).settings()  # it knows none of the keys

    found = told(state, settled, exit_code=1)

    assert {each["agreement"] for each in found["lines"]} == {"unknown_key"}


@pytest.mark.parametrize(
    ("period", "said"),
    [
        (("--from", "2025-07-01", "--to", "2025-06-01"), "the period is empty"),
        (("--from", "2999-01-01", "--to", "2999-02-01"), "is in the future"),
        (("--from", "yesterday", "--to", "2025-06-01"), "should be a time as"),
        (("--from", "2025-05-01", "--to", "2025-06-01", "--csv", "--json"), "one of --csv"),
    ],
)
def test_a_period_that_cannot_be_stated_is_refused(
    ingesters: Ingesters, period: tuple[str, ...], said: str
) -> None:
    """Exit code 64 before anything is read."""
    ended = ingesters.run("statement", "--account", "acme", *period)

    assert ended.returncode == 64
    assert said in ended.stderr
