"""`ingester dlq`: what an operator sees of the records that could not be settled."""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ingester.local_kafka import LocalKafka
from tests.conftest import TopicFactory
from tests.support.dead_letters import CLOSED, DAY, FIRST_TIMESTAMP, mixed, produce_all, said
from tests.support.kafka import produce, read_all
from tests.support.processes import COMMAND, Ingesters, environment
from tests.support.simulator import Simulator
from tests.support.unreadable import produce_unreadable
from tests.support.workers import Group, totals, usage

GroupOf = Callable[..., Group]
Dlq = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def dlq(ingesters: Ingesters, kafka: LocalKafka) -> Dlq:
    """Runs `ingester dlq` with the settings of Kafka alone."""

    def run(
        topics: str, *arguments: str, exit_code: int = 0, **changed: str
    ) -> subprocess.CompletedProcess[str]:
        settings = {
            "INGESTER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "INGESTER_TOPIC": topics,
            **{f"INGESTER_{name.upper()}": value for name, value in changed.items()},
        }
        ended = ingesters.run("dlq", *arguments, settings=settings)
        assert ended.returncode == exit_code, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stdout + ended.stderr
        return ended

    return run


def listed(ended: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What `--json` printed."""
    return list(json.loads(ended.stdout)["letters"])


def content(document: dict[str, Any], name: str) -> bytes | None:
    """A value of an exported letter, as it was."""
    if f"{name}Base64" in document:
        return base64.b64decode(document[f"{name}Base64"])
    text = document[name]
    return None if text is None else text.encode()


async def test_a_thousand_mixed_letters_of_two_topics(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, dlq: Dlq
) -> None:
    """Each is listed, counted and exported with why, whence and what it holds, and no other."""
    simulator.add_faults(CLOSED)
    one, other, letters_topic = await topic(2), await topic(2), await topic(1)
    group = group_of(one, other)
    bad = mixed(1000)
    for number in range(4):
        name = (one, other)[number % 2]
        await produce_all(group.servers, name, number // 2, bad[number::4])
        await produce(group.servers, name, usage(50, first=50 * number), partition=number // 2)
    worker = group.start(dead_letter_topic=letters_topic, items_max="25")
    await group.settled()
    assert simulator.report()["keys"] == totals(usage(200))
    assert worker.process.exit_code is None
    topics, shared = f"{one},{other}", {"dead_letter_topic": letters_topic}

    found = listed(dlq(topics, "list", "--json", **shared))
    lines = dlq(topics, "export", **shared).stdout.splitlines()
    table = dlq(topics, "list", **shared).stdout.splitlines()
    counts = json.loads(dlq(topics, "stats", "--json", **shared).stdout)
    refused = listed(dlq(topics, "list", "--json", "--status", "422", **shared))
    in_first = listed(dlq(one, "list", "--json", **shared))
    in_partition = listed(dlq(topics, "list", "--json", "--source", f"{other}:1", **shared))

    records = await read_all(group.servers, letters_topic)
    assert len(records) == len(found) == len(lines) == len(table) - 1 == 1000
    by_time = {each.timestamp: each for each in bad}
    for record, document, line in zip(records, found, lines, strict=True):
        exported = json.loads(line)
        source = by_time[record.timestamp]
        place = (document["deadLetterPartition"], document["deadLetterOffset"])
        assert place == (record.partition, record.offset)
        assert document["code"] == source.code
        assert document["accountId"] == source.account
        assert exported == exported | document
        assert content(exported, "value") == source.value
        assert content(exported, "recordKey") == source.record_key
        headers = [(each["name"], content(each, "value")) for each in exported["headers"]]
        assert headers == list(record.headers)
        assert headers[: len(source.headers)] == list(source.headers)
        assert (document["redriven"], document["repeats"]) == (False, False)
        assert document["deadLetteredAt"] > "2025"
    codes = Counter(each.code for each in bad)
    assert counts["byCode"] == codes
    assert (counts["letters"], counts["records"], counts["redriven"]) == (1000, 1000, 0)
    assert counts["byTopic"] == {one: 500, other: 500}
    assert counts["byAccount"] == {"acme": 500, "-": 400, "closed": 100}
    assert counts["byStatus"] == {"-": 900, "422": 100}
    assert list(counts["byDay"]) == ["2023-11-14", "2023-11-15", "2023-11-16"]
    assert {each["code"] for each in refused} == {"refused"}
    assert len(refused) == codes["refused"]
    assert {each["topic"] for each in in_first} == {one}
    assert len(in_first) == 500
    assert {(each["topic"], each["partition"]) for each in in_partition} == {(other, 1)}
    assert len(in_partition) == 250


async def letters_by_hand(kafka: LocalKafka, topic: TopicFactory) -> tuple[str, str]:
    """A usage topic and its dead-letter topic with letters of three records, one of them twice."""
    name = await topic(1)
    letters = await topic(1, name=f"{name}.dead-letters")
    value = b'{"key":"k-1","accountId":"a-1","bits":"1"}'
    for number, headers in enumerate(
        [
            [("own", b"1"), *said(name, 7)],
            [*said(name, 8, code="refused", status=422, dead_lettered_at=None)],
            [*said(name, 7, dead_lettered_at="2025-06-11T00:00:00.000+00:00")],
            [*said(name, 9, code="tombstone", detail="the record has no value")],
        ]
    ):
        await produce(
            kafka.bootstrap_servers,
            letters,
            [None if number == 3 else value.replace(b"-1", f"-{number}".encode())],
            key=b"\xff" if number == 1 else b"rk",
            headers=headers,
            timestamp_ms=FIRST_TIMESTAMP + number * DAY,
        )
    return name, letters


@pytest.mark.parametrize(
    ("filters", "offsets"),
    [
        ((), [0, 1, 2, 3]),
        (("--code", "refused"), [1]),
        (("--code", "refused", "--code", "tombstone"), [1, 3]),
        (("--account", "a-0", "--account", "a-2"), [0, 2]),
        (("--key", "k-1", "--account", "a-2"), []),
        (("--status", "422"), [1]),
        (("--from", "2023-11-15T22:13:20Z"), [1, 2, 3]),
        (("--from", "2023-11-15T22:13:20.001", "--to", "2023-11-17"), [2]),
        (("--from", "2023-11-15T23:13:20+01:00", "--to", "2023-11-16T22:13:20Z"), [1]),
        (("--dead-lettered-from", "2025-06-11"), [2]),
        (("--dead-lettered-to", "2025-06-11"), [0, 3]),
        (("--redriven",), []),
        (("--not-redriven",), [0, 1, 2, 3]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_filters(
    kafka: LocalKafka, topic: TopicFactory, dlq: Dlq, filters: tuple[str, ...], offsets: list[int]
) -> None:
    """Each narrows the list by what it says; one that is repeated takes any of its values."""
    name, _ = await letters_by_hand(kafka, topic)

    found = listed(dlq(name, "list", "--json", *filters))

    assert [each["deadLetterOffset"] for each in found] == offsets


async def test_show(kafka: LocalKafka, topic: TopicFactory, dlq: Dlq) -> None:
    """Either position shows all that a letter holds; that of a record shows all its letters."""
    name, letters = await letters_by_hand(kafka, topic)

    text = dlq(name, "show", f"{letters}:0:1").stdout
    (by_place,) = listed(dlq(name, "show", f"{letters}:0:1", "--json"))
    (by_source,) = listed(dlq(name, "show", f"{name}:0:8", "--json"))
    twice = listed(dlq(name, "show", f"{name}:0:7", "--json"))

    assert by_place == by_source
    assert content(by_place, "recordKey") == b"\xff"
    assert by_place["httpBody"] == '{"message":"no"}'
    for said_there in (f"{letters}:0:1\n", f"{name}:0:8", "refused", "422", "/w==", '"bits":"1"'):
        assert said_there in text
    assert [each["deadLetterOffset"] for each in twice] == [0, 2]
    assert [each["repeats"] for each in twice] == [False, True]
    assert twice[0]["headers"][0] == {"name": "own", "value": "1"}


async def test_a_repeated_letter_counts_once(
    kafka: LocalKafka, topic: TopicFactory, dlq: Dlq
) -> None:
    """Letters and records are told apart, and the tallies are of records."""
    name, _ = await letters_by_hand(kafka, topic)

    counts = json.loads(dlq(name, "stats", "--json").stdout)
    text = dlq(name, "stats").stdout

    assert (counts["letters"], counts["records"]) == (4, 3)
    assert sum(counts["byCode"].values()) == 3
    assert "4 dead letters of 3 records" in text


async def test_csv_can_be_read_back(kafka: LocalKafka, topic: TopicFactory, dlq: Dlq) -> None:
    """A line for each letter, whatever is in it, with the columns of the JSON."""
    name, _ = await letters_by_hand(kafka, topic)

    rows = list(csv.DictReader(dlq(name, "export", "--format", "csv").stdout.splitlines()))

    assert [row["offset"] for row in rows] == ["7", "8", "7", "9"]
    assert rows[1]["recordKeyBase64"] == "/w=="
    assert rows[0]["value"] == '{"key":"k-0","accountId":"a-0","bits":"1"}'
    assert json.loads(rows[0]["headers"])[0] == {"name": "own", "value": "1"}


@pytest.mark.parametrize(
    ("arguments", "exit_code"), [("list > /dev/full", 74), ("export | head -c 10", 0)]
)
async def test_output_that_ends_early_leaves_nothing_behind(
    kafka: LocalKafka, topic: TopicFactory, arguments: str, exit_code: int
) -> None:
    """No word of what was still being read, be it on a full disk or as with `head`."""
    name = await topic(1)
    letters = await topic(1, name=f"{name}.dead-letters")
    for offset in range(3):  # more than fits into a pipe
        values = [b"x" * 3000] * 300
        await produce(kafka.bootstrap_servers, letters, values, headers=said(name, offset))
    settings = {
        "INGESTER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "INGESTER_TOPIC": name,
    }

    ended = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-c", f"set -o pipefail; '{COMMAND}' dlq {arguments}"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(settings),
    )

    assert ended.returncode == exit_code
    remarks = [line for line in ended.stderr.splitlines() if "the output cannot be" not in line]
    assert remarks == []


async def test_records_of_others_are_left_out_aloud(
    kafka: LocalKafka, topic: TopicFactory, dlq: Dlq
) -> None:
    """What is no dead letter, or of a topic that is not named, is counted on standard error."""
    name, letters = await letters_by_hand(kafka, topic)
    servers = kafka.bootstrap_servers
    await produce(servers, letters, [b"hello"])
    await produce(servers, letters, [b"{}"], headers=said("another", 1))
    forged = said(name, 10)
    await produce(servers, letters, [b"{}"], headers=[("ingester-source-offset", b"x"), *forged])

    ended = dlq(name, "list", "--json")

    assert [each["offset"] for each in listed(ended)] == [7, 8, 7, 9, 10]
    assert "1 that no version of this program wrote" in ended.stderr
    assert "1 of another" in ended.stderr


async def test_letters_that_cannot_be_read_are_left_out_aloud(
    kafka: LocalKafka, topic: TopicFactory, dlq: Dlq
) -> None:
    """Their offsets are named on standard error; the others are listed."""
    name = await topic()
    letters = await topic(1, name=f"{name}.dead-letters")
    await produce_unreadable(kafka.bootstrap_servers, letters, [b"{}"], 0)

    ended = dlq(name, "list")

    assert f"nobody can read these offsets: {letters}:0[0,1)" in ended.stderr


async def test_steers_no_terminal(kafka: LocalKafka, topic: TopicFactory, dlq: Dlq) -> None:
    """Control characters of producers are shown as escapes."""
    name = await topic(1)
    letters = await topic(1, name=f"{name}.dead-letters")
    value = json.dumps({"key": "k\x1b[2J", "accountId": "a\r\n", "bits": "1"}).encode() + b"\x1b"
    await produce(kafka.bootstrap_servers, letters, [value[:-1]], headers=said(name, 1))
    await produce(kafka.bootstrap_servers, letters, [value], headers=said(name, 2))

    for arguments in (("list",), ("show", f"{letters}:0:0"), ("show", f"{letters}:0:1")):
        assert "\x1b" not in dlq(name, *arguments).stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "says"),
    [
        (("show", "nonsense"), 64, "should be TOPIC:PARTITION:OFFSET"),
        (("show", "{topic}:0:12345"), 64, "has no dead letter"),
        (("show", "{topic}.dead-letters:0:99"), 64, "it has [0,4)"),
        (("show", "{topic}.dead-letters:3:0"), 64, "has no partition 3"),
        (("show", "elsewhere:0:1"), 64, "neither of INGESTER_TOPIC"),
        (("list", "--code", "nonsense"), 64, "is none of duplicated_member"),
        (("list", "--from", "yesterday"), 64, "2025-06-10T14:30:00Z"),
        (("list", "--from", "2025-06-10", "--to", "2025-06-10"), 64, "no time is from"),
        (("list", "--source", "elsewhere"), 64, "is none of INGESTER_TOPIC"),
        (("list", "--source", "a:b:c"), 64, "should be TOPIC or TOPIC:PARTITION"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_what_cannot_be(
    kafka: LocalKafka,
    topic: TopicFactory,
    dlq: Dlq,
    arguments: tuple[str, ...],
    exit_code: int,
    says: str,
) -> None:
    """The message names what is wrong, and the exit code is documented."""
    name, _ = await letters_by_hand(kafka, topic)

    ended = dlq(name, *(each.format(topic=name) for each in arguments), exit_code=exit_code)

    assert says in ended.stderr


async def test_a_topic_without_dead_letters(topic: TopicFactory, dlq: Dlq) -> None:
    """An empty topic is well; one that is missing is said to be, with the settings that name it."""
    name = await topic(1)
    missing = dlq(name, "list", exit_code=69)
    await topic(1, name=f"{name}.dead-letters")

    assert f"there is no topic {name}.dead-letters" in missing.stderr
    assert dlq(name, "list").stdout == f"There are no dead letters of {name}.\n"
    assert dlq(name, "export").stdout == ""
    assert listed(dlq(name, "list", "--json")) == []


README = Path(__file__).parents[2] / "README.md"


async def test_the_readme_can_be_typed(
    kafka: LocalKafka, topic: TopicFactory, simulator: Simulator, tmp_path: Path
) -> None:
    """Each command of the chapter does what it says of the letter that it shows."""
    name = await topic(4)
    letters = await topic(1, name=f"{name}.dead-letters")
    value = b'{"key":"usage-acme-2025-06","accountId":"acme","bits":"1"}'
    for number in range(18):
        await produce(
            kafka.bootstrap_servers,
            letters,
            [value],
            headers=said(name, 4083 + number, partition=3),
            timestamp_ms=int(datetime(2025, 6, 8, tzinfo=UTC).timestamp() * 1000),
        )
    chapter = README.read_text("utf-8").partition("## Dead letters\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^\$ (.*?)(?: {2,}#.*)?$", chapter, re.MULTILINE)
    settings = {
        "INGESTER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "INGESTER_TOPIC": name,
        "PATH": f"{COMMAND.parent}:/usr/bin:/bin",
        **simulator.settings(),
    }

    said_by = {}
    for command in commands:
        typed = re.sub(r"\busage(?=[:.])", name, command)
        ended = await asyncio.to_thread(
            subprocess.run,
            ["sh", "-c", typed],
            check=True,
            capture_output=True,
            text=True,
            env=settings,
            cwd=tmp_path,
        )
        said_by[command.split()[2]] = ended.stdout

    assert set(said_by) == {"stats", "list", "show", "export", "redrive"}
    assert "18 dead letters of 18 records" in said_by["stats"]
    headings, *_, last = said_by["list"].splitlines()
    assert headings.split() == re.findall(r"^LETTER.*", chapter, re.MULTILINE)[0].split()
    assert last.split()[:2] == [f"{letters}:0:17", f"{name}:3:4100"]
    assert f"{letters}:0:17" in said_by["show"]
    assert len((tmp_path / "letters.ndjson").read_text().splitlines()) == 18
    assert "18 items with 18 bits acknowledged" in said_by["redrive"]
    assert simulator.report()["items"] == 18
