"""`ingester resolve` beside a group that has stopped: what it shows, refuses and writes."""

from __future__ import annotations

import getpass
import json
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import RecordsToDelete
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from ingester.core.intent import Intent, Ledger, encode
from ingester.core.receipt import Receipt
from ingester.kafka.admin import KafkaAdmin
from ingester.kafka.connection import client_options
from ingester.local_kafka import LocalKafka, free_ports
from ingester.settings import KafkaSettings
from tests.conftest import TopicFactory
from tests.support.kafka import admin, produce, read_all
from tests.support.planted_commits import plant, plant_intents
from tests.support.processes import Ingesters
from tests.support.workers import totals, usage

EVENTS = usage(60)
WHY = ("--reason", "looked it up")


@dataclass
class Books:
    """A group that has committed 20, with [20,30), [30,40) and [40,50) intended and the second of
    them receipted.
    """

    servers: str
    topic: str
    group: str
    ingesters: Ingesters

    def resolve(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run the command with the settings of Kafka alone."""
        changed = {f"INGESTER_{name.upper()}": value for name, value in settings.items()}
        return self.ingesters.run("resolve", *arguments, settings={**self.settings(), **changed})

    def settings(self) -> dict[str, str]:
        return {
            "INGESTER_KAFKA_BOOTSTRAP_SERVERS": self.servers,
            "INGESTER_TOPIC": self.topic,
            "INGESTER_GROUP_ID": self.group,
        }

    def shown(self, *arguments: str, **settings: str) -> dict[str, Any]:
        """What `--json` says of the only partition."""
        ended = self.resolve(*arguments, "--json", **settings)
        assert ended.returncode == 0, ended.stderr
        (partition,) = json.loads(ended.stdout)["partitions"]
        return dict(partition)

    async def notes(self) -> list[dict[str, Any]]:
        """The notes behind the receipt."""
        return [
            json.loads(record.value)
            for record in await read_all(self.servers, f"{self.topic}.receipts")
        ][1:]


@pytest.fixture
async def books(kafka: LocalKafka, topic: TopicFactory, ingesters: Ingesters) -> Books:
    """See `Books`."""
    name = await topic()
    made = Books(kafka.bootstrap_servers, name, f"group-of-{name}", ingesters)
    receipts = await topic(name=f"{name}.receipts")
    await produce(made.servers, name, EVENTS)
    ranges = [(20, 30), (30, 40), (40, 50)]
    await plant_intents(made.servers, made.group, name, 20, ranges, age_seconds=3600)
    receipt = Receipt(
        topic=name,
        partition=0,
        first_offset=30,
        next_offset=40,
        idempotency_key="key",
        batch_id="batch_7",
        http_status=202,
        items=10,
        dead_letters=0,
        bits=1,
        bits_by_key={},
        body_digest="",
        attempts=1,
        in_doubt=False,
        settled_at="2025-06-10T14:30:00Z",
    )
    await produce(made.servers, receipts, [msgspec.json.encode(receipt)])
    return made


def test_shows_what_is_in_doubt_and_what_it_holds(books: Books) -> None:
    """Range, age, items and bits by key of each batch without receipt, for people and programs."""
    listed = books.resolve()
    detailed = books.resolve(f"{books.topic}:0:45")
    shown = books.shown(books.topic)

    assert listed.returncode == detailed.returncode == 0
    heading, first, second, *below = listed.stdout.splitlines()
    assert heading.split() == [
        "PARTITION", "RANGE", "SINCE", "AGE", "ITEMS", "BITS", "KEY", "DECIDED", "WORKER"
    ]  # fmt: skip
    assert first.startswith(f"{books.topic}:0  [20,30)")
    assert second.startswith(f"{books.topic}:0  [40,50)")
    assert "[20,30)" not in detailed.stdout
    assert shown["committedOffset"] == shown["nextOffset"] == 20
    assert shown["worker"] is shown["gap"] is shown["unreadable"] is None
    doubts = {each["firstOffset"]: each for each in shown["inDoubt"]}
    assert list(doubts) == [20, 40]
    for first_offset, doubt in doubts.items():
        held = EVENTS[first_offset : first_offset + 10]
        by_key = {key: total["bits"] for key, total in totals(held).items()}
        assert doubt["nextOffset"] == first_offset + 10
        assert 3600 <= doubt["ageSeconds"] < 3700
        assert doubt["decision"] is None
        assert doubt["batch"]["items"] == 10
        assert doubt["batch"]["bitsByKey"] == by_key
        assert doubt["batch"]["bits"] == sum(by_key.values())
        assert doubt["batch"]["idempotencyKey"] in listed.stdout
    for key, bits in doubts[40]["batch"]["bitsByKey"].items():
        assert f"  {bits} for {key}: ingester balance {key}\n" in detailed.stdout
    by_key = sorted(doubts[20]["batch"]["bitsByKey"].items())
    decide = f"ingester resolve {books.topic}:0:20 --as"
    assert below[:7] == [
        f"{books.topic}:0[20,30) holds, to be compared with the balances:",
        *(f"  {bits} for {key}: ingester balance {key}" for key, bits in by_key[:3]),
        "  and 4 keys more (--json has all)",
        f"  counted by PacSpace: {decide} acknowledged --reason ...",
        f"  not counted: {decide} resend --reason ...",
    ]
    assert shown["commandsIfHalted"] == [
        f"ingester resolve {books.topic}:0:{offset} --as {decision} --reason ..."
        for offset in (20, 40)
        for decision in ("acknowledged", "resend")
    ]


def test_a_group_without_committed_offsets_is_none_without_doubts(books: Books) -> None:
    """A misspelt or renamed group should not calm anybody: with receipts it is told from a new one,
    which ends with 64.
    """
    renamed = books.resolve(group_id="nobody")
    new = books.resolve(group_id="nobody", receipts="off")

    assert renamed.returncode == 0
    assert f"{books.topic}:0: the group has no committed offset" in renamed.stdout
    assert f"ingester resolve {books.topic}:0:0 --as resend" in renamed.stdout
    assert new.returncode == 64
    assert new.stdout == ""
    assert f"the group nobody has no committed offset of {books.topic}" in new.stderr


async def test_says_that_nothing_is_in_doubt(books: Books) -> None:
    """What is behind, and may have halted without a doubt, is named with where to look."""
    await plant(books.servers, books.group, books.topic, 60, "")
    settled = books.resolve()
    await plant(books.servers, books.group, books.topic, 50, "")
    listed = books.resolve()
    asked = books.resolve(f"{books.topic}:0")

    assert listed.returncode == settled.returncode == asked.returncode == 0
    assert settled.stdout == f"Nothing of {books.topic} is in doubt in the group {books.group}.\n"
    assert f"nothing in doubt: {books.topic}:0 (50 of 60, no worker)" in listed.stdout
    assert "`halted` of its /status" in listed.stdout
    assert "50 is the next offset to be settled, the log ends at 60" in asked.stdout
    assert "No worker has it." in asked.stdout
    assert books.shown()["commandsIfHalted"] == []


async def test_a_batch_that_cannot_be_formed_is_shown_without_contents(books: Books) -> None:
    """By other settings than it was sent by, nothing wrong is said of what a batch holds."""
    odd = {**EVENTS[0], "note": "an unknown member"}
    (written,) = await produce(books.servers, books.topic, [odd])
    await plant_intents(books.servers, books.group, books.topic, 60, [(60, 61)])
    assert books.shown()["inDoubt"][0]["batch"]["deadLetters"] == 1

    detailed = books.resolve(f"{books.topic}:0:{written.offset}", unknown_members="ignore")

    assert "cannot be formed" in detailed.stdout
    assert "INGESTER_UNKNOWN_MEMBERS or INGESTER_BODY_BYTES_MAX differ" in detailed.stdout
    assert " holds" not in detailed.stdout
    assert f"{books.topic}:0:60 --as skipped" in detailed.stdout


@pytest.mark.parametrize(
    ("target", "decision", "said"),
    [
        (
            "{topic}:0:30",
            "acknowledged",
            "PacSpace acknowledged it as batch_7, says its receipt of",
        ),
        ("{topic}:0:19", "acknowledged", "is settled: the committed offset is 20"),
        ("{topic}:0:50", "acknowledged", "in doubt in {topic}:0: [20,30), [40,50)"),
        (
            "{topic}:0:20",
            "skipped",
            "[20,30) is in the log and can be formed again as it was",
        ),
        ("{topic}:7:20", "acknowledged", "has no committed offset of {topic}:7"),
        ("other:0:20", "acknowledged", "other is none of INGESTER_TOPIC ({topic})"),
        ("{topic}:0", "acknowledged", "name TOPIC:PARTITION:OFFSET"),
        ("{topic}:0:x", "acknowledged", "should be TOPIC, TOPIC:PARTITION or"),
        ("{topic}:0:99999999999999999999", "acknowledged", "should be TOPIC, TOPIC:PARTITION or"),
    ],
)
async def test_what_is_not_in_doubt_is_not_decided(
    books: Books, target: str, decision: str, said: str
) -> None:
    """Exit code 64 with the reason and what is in doubt instead; nothing is written."""
    ended = books.resolve(target.format(topic=books.topic), "--as", decision, *WHY)

    assert ended.returncode == 64
    assert said.format(topic=books.topic) in ended.stderr
    assert ended.stdout == ""
    assert await books.notes() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--as", "acknowledged"), "--reason TEXT is kept with the decision"),
        (("--as", "acknowledged", "--reason", " "), "--reason TEXT is kept with the decision"),
        (("--reason", "why"), "go with a decision: --as"),
        (("--dry-run",), "go with a decision: --as"),
        (("--as", "forgotten", *WHY), "'forgotten' is not one of"),
    ],
)
def test_a_decision_is_whole(ingesters: Ingesters, arguments: tuple[str, ...], said: str) -> None:
    """Exit code 64 before Kafka is asked, when what makes a decision is missing."""
    (port,) = free_ports(1)
    settings = {"INGESTER_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{port}", "INGESTER_TOPIC": "usage"}

    ended = ingesters.run("resolve", "usage:0:20", *arguments, settings=settings)

    assert ended.returncode == 64
    assert said in ended.stderr


@pytest.mark.parametrize("arguments", [(), ("usage:0:20", "--as", "acknowledged", *WHY)])
def test_without_kafka(ingesters: Ingesters, arguments: tuple[str, ...]) -> None:
    """Exit code 69 with the address that does not answer."""
    (port,) = free_ports(1)
    settings = {"INGESTER_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{port}", "INGESTER_TOPIC": "usage"}

    ended = ingesters.run("resolve", *arguments, settings=settings)

    assert ended.returncode == 69
    assert f"127.0.0.1:{port} refuses connections" in ended.stderr


def test_a_missing_topic(books: Books) -> None:
    """Exit code 69 with the command that would create it."""
    ended = books.resolve(topic="usage-nowhere")

    assert ended.returncode == 69
    assert "has no topic usage-nowhere" in ended.stderr


async def test_without_receipts_there_is_nothing_to_decide_by(books: Books) -> None:
    """Exit code 78 for a decision, which would not be read; what is intended is shown."""
    ended = books.resolve(f"{books.topic}:0:20", "--as", "acknowledged", *WHY, receipts="off")

    assert ended.returncode == 78
    assert "INGESTER_RECEIPTS is off" in ended.stderr
    assert [each["firstOffset"] for each in books.shown(receipts="off")["inDoubt"]] == [20, 30, 40]
    assert await books.notes() == []


async def test_a_dry_run_writes_nothing(books: Books) -> None:
    """It says what would be decided about which range."""
    ended = books.resolve(f"{books.topic}:0:25", "--as", "acknowledged", *WHY, "--dry-run")

    assert ended.returncode == 0
    assert f"{books.topic}:0[20,30) is passed without being sent again" in ended.stdout
    assert "Nothing is written" in ended.stdout
    assert await books.notes() == []


async def test_a_decision_is_kept_with_who_took_it_and_why(books: Books) -> None:
    """The note names the batch's whole range; the same decision is not taken twice, another is."""
    ended = books.resolve(f"{books.topic}:0:25", "--as", "acknowledged", *WHY, "--json")

    said = json.loads(ended.stdout)
    (note,) = await books.notes()
    assert (note["firstOffset"], note["nextOffset"]) == (20, 30)
    assert note["by"] == f"{getpass.getuser()}@{socket.gethostname()}"
    assert note == {name: said[name] for name in note}
    assert (said["receiptsTopic"], said["receiptsOffset"]) == (f"{books.topic}.receipts", 1)
    decided = books.shown()["inDoubt"][0]["decision"]
    assert decided == {name: note[name] for name in decided}
    again = books.resolve(f"{books.topic}:0:20", "--as", "acknowledged", *WHY)
    assert again.returncode == 64
    assert f"is decided: acknowledged, by {note['by']} at {note['decidedAt']}" in again.stderr

    changed = books.resolve(f"{books.topic}:0:20", "--as", "resend", *WHY, "--by", "ann")

    assert changed.returncode == 0
    assert "warning: " in changed.stderr
    assert [each["decision"] for each in await books.notes()] == ["acknowledged", "resend"]


async def test_what_was_skipped_is_not_skipped_again(books: Books) -> None:
    """A gap is passed once, with the batches that begin in it; what lies behind stays in doubt."""
    async with admin(books.servers) as client:
        where = TopicPartition(books.topic, 0)
        await client.delete_records({where: RecordsToDelete(before_offset=25)})
    shown = books.shown()
    assert shown["gap"] == {"firstOffset": 20, "nextOffset": 30, "missingOffsets": 5}
    assert shown["inDoubt"][0]["batch"] is None
    assert "retention overtook the committed offset" in books.resolve().stdout
    target = f"{books.topic}:0:20"

    resent = books.resolve(target, "--as", "resend", *WHY)
    skipped = books.resolve(target, "--as", "skipped", *WHY)
    again = books.resolve(target, "--as", "skipped", *WHY)

    assert resent.returncode == 64
    assert "begins at offset 25: what was before it cannot be sent again" in resent.stderr
    assert "5 offsets are missing, and it is not known what was in them" in skipped.stdout
    assert "In doubt in it: [20,30); PacSpace may have counted that, or not" in skipped.stdout
    assert again.returncode == 64
    assert "is decided: skipped, by" in again.stderr
    (note,) = await books.notes()
    assert (note["decision"], note["firstOffset"], note["nextOffset"]) == ("skipped", 20, 30)
    assert [each["firstOffset"] for each in books.shown()["inDoubt"]] == [40]


@pytest.mark.parametrize(
    ("offset", "decision", "said"),
    [
        (21, "resend", "20 is the next offset to be settled"),
        (20, "acknowledged", "20 is the next offset to be settled"),
        (20, "resend", "no worker has {topic}:0, so that none has halted it"),
    ],
)
async def test_without_doubt_and_worker_there_is_nothing_to_decide(
    books: Books, offset: int, decision: str, said: str
) -> None:
    """Exit code 64: what no worker has, none can have halted."""
    await plant(books.servers, books.group, books.topic, 20, "")

    ended = books.resolve(f"{books.topic}:0:{offset}", "--as", decision, *WHY)

    assert ended.returncode == 64
    assert said.format(topic=books.topic) in ended.stderr
    assert await books.notes() == []


@pytest.mark.container
async def test_each_missing_permission_is_told(
    ingesters: Ingesters, report: Callable[[str], None]
) -> None:
    """Exit code 77 names what the login may not see or write, one after the other."""
    from tests.support.guarded_kafka import GuardedKafka  # noqa: PLC0415 - needs the engine's client

    report("starting a Kafka with logins in a container")
    with GuardedKafka("hunter2") as guarded:
        await _plant_as_admin(guarded.bootstrap_servers)

        def resolve(*arguments: str) -> subprocess.CompletedProcess[str]:
            return ingesters.run("resolve", *arguments, settings=_login(guarded.bootstrap_servers))

        topic_hidden = resolve()
        _permit(guarded, "--topic", "*", "--operation", "Describe", "--operation", "Read")
        group_hidden = resolve()
        _permit(guarded, "--group", "*", "--operation", "Describe", "--operation", "Read")
        listed = resolve()
        not_written = resolve("usage:0:0", "--as", "acknowledged", *WHY)
        _permit(guarded, "--topic", "usage.receipts", "--operation", "Write")
        written = resolve("usage:0:0", "--as", "acknowledged", *WHY)

    assert topic_hidden.returncode == 77
    assert "may not see the topic usage" in topic_hidden.stderr
    assert group_hidden.returncode == 77
    assert "may not see the group" in group_hidden.stderr
    assert listed.returncode == 0, listed.stderr
    assert "usage:0    [0,10)" in listed.stdout
    assert not_written.returncode == 77
    assert "that takes WRITE on the topic usage.receipts" in not_written.stderr
    assert written.returncode == 0, written.stderr


def _login(servers: str) -> dict[str, str]:
    return {
        "INGESTER_KAFKA_BOOTSTRAP_SERVERS": servers,
        "INGESTER_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "INGESTER_KAFKA_SASL_USERNAME": "reader",
        "INGESTER_KAFKA_SASL_PASSWORD": "hunter2",
        "INGESTER_TOPIC": "usage",
        "INGESTER_GROUP_ID": "group",
    }


async def _plant_as_admin(servers: str) -> None:
    """Two topics without records, and a commit with an intent."""
    settings = KafkaSettings(
        kafka_bootstrap_servers=(servers,),
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_username="admin",
        kafka_sasl_password="hunter2",
        topic=("usage",),
    )
    for topic in ("usage", "usage.receipts"):
        await KafkaAdmin(settings, timeout_seconds=20).ensure_topic(topic, 1, {})
    where = TopicPartition("usage", 0)
    metadata = encode(0, Ledger(0, [Intent(0, 10, 1_700_000_000, 0)]))
    async with AIOKafkaConsumer(
        **client_options(settings), group_id="group", enable_auto_commit=False
    ) as consumer:
        consumer.assign([where])
        await consumer.commit({where: OffsetAndMetadata(0, metadata)})


def _permit(guarded: Any, *what: str) -> None:
    script = "/opt/kafka/bin/kafka-acls.sh"
    command = [script, "--bootstrap-controller", "localhost:9093", "--add"]
    ended = guarded.exec([*command, "--allow-principal", "User:reader", *what])
    assert ended.exit_code == 0, ended.output
