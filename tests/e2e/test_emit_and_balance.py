"""`ingester emit` and `ingester balance`, the two ends of the way that an event takes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ingester.local_kafka import LocalKafka, free_ports
from tests.conftest import TopicFactory
from tests.support.kafka import read_all
from tests.support.processes import COMMAND, Ingesters, environment, said_on_a_terminal
from tests.support.simulator import Simulator
from tests.support.waiting import eventually
from tests.support.workers import Group

GroupOf = Callable[..., Group]
Ended = subprocess.CompletedProcess[str]
Run = Callable[..., Ended]


@pytest.fixture
async def usage_topic(topic: TopicFactory) -> str:
    return await topic(3)


@pytest.fixture
def emit(kafka: LocalKafka, ingesters: Ingesters, usage_topic: str) -> Run:
    settings = {
        "INGESTER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "INGESTER_TOPIC": usage_topic,
    }

    def run(*arguments: str, stdin: str = "", **changed: str) -> Ended:
        return ingesters.run("emit", *arguments, settings={**settings, **changed}, stdin=stdin)

    return run


@pytest.fixture
def balance(ingesters: Ingesters, simulator: Simulator) -> Run:
    def run(*arguments: str, **changed: str) -> Ended:
        settings = {**simulator.settings(), **changed}
        return ingesters.run("balance", *arguments, settings=settings)

    return run


def _says_no_traceback(ended: Ended) -> bool:
    return "Traceback" not in ended.stdout + ended.stderr


async def test_from_emit_to_balance(
    group_of: GroupOf, emit: Run, balance: Run, usage_topic: str
) -> None:
    """Three amounts that were emitted are the balance on which both parties agree."""
    group = group_of(usage_topic)
    group.start()
    for bits in ("100", "250", "150"):
        assert emit("settlement-2025-06", "customer-acme", bits).returncode == 0

    await group.settled()

    agreed = balance("settlement-2025-06", "--expect", "500")
    assert agreed.returncode == 0
    assert agreed.stdout == (
        "Balance for settlement-2025-06: 500 (3 writes)\n"
        "Agreement confirmed: both parties agree on 500\n"
    )


async def test_emit_says_where_the_broker_put_an_event(
    kafka: LocalKafka, emit: Run, usage_topic: str
) -> None:
    """Events of one account go to one partition in order, with metadata as it was written."""
    metadata = '{"n":123456789012345678901234567890,"d":1.10}'
    first = emit("k", "customer-é", "7", "--metadata", metadata)
    second = emit("k", "customer-é", "-8", "--json")

    one, two = await read_all(kafka.bootstrap_servers, usage_topic)
    assert (one.partition, one.offset, two.offset) == (two.partition, 0, 1)
    assert one.key == two.key == "customer-é".encode()
    assert (
        one.value
        == f'{{"key": "k", "accountId": "customer-é", "bits": 7, "metadata": {metadata}}}'.encode()
    )
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout == f"{usage_topic}:{one.partition}:0  7 for k\n"
    assert json.loads(second.stdout) == {
        "key": "k",
        "bits": -8,
        "topic": usage_topic,
        "partition": one.partition,
        "offset": 1,
    }


async def test_emit_reads_json_lines(kafka: LocalKafka, emit: Run, usage_topic: str) -> None:
    """Each line is one event, byte by byte; blank lines are passed over."""
    lines = [f'{{"key":"k{n}", "accountId":"a{n}", "bits":{n}}}' for n in range(20_000)]

    ended = emit("-", "--json", stdin="\n\n".join(lines))

    assert ended.returncode == 0
    acknowledged = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [each["key"] for each in acknowledged] == [f"k{n}" for n in range(20_000)]
    records = await read_all(kafka.bootstrap_servers, usage_topic)
    assert sorted(record.value for record in records) == sorted(line.encode() for line in lines)


async def test_emit_names_the_lines_it_refuses(
    kafka: LocalKafka, emit: Run, usage_topic: str
) -> None:
    """Exit code 65, each refused line by its number and reason; all the others are on the topic."""
    good = [f'{{"key":"k","accountId":"a","bits":{n}}}' for n in range(3)]
    lines = [good[0], "nonsense", good[1], '{"key":"k","accountId":"a","bits":1.5}', good[2]]

    ended = emit("-", stdin="\n".join(lines))

    assert ended.returncode == 65
    assert "3 events acknowledged; not sent" in ended.stderr
    assert "line 2: the value is not JSON" in ended.stderr
    assert "line 4: `bits` must be of type integer, not number (wrong_type)" in ended.stderr
    assert ended.stdout.count("\n") == 3
    records = await read_all(kafka.bootstrap_servers, usage_topic)
    assert sorted(record.value for record in records) == [each.encode() for each in good]
    assert _says_no_traceback(ended)


def test_emit_names_the_lines_it_refuses_in_json(emit: Run) -> None:
    """With --json each refused line is an object on standard error, and nothing else is there."""
    good = '{"key":"k","accountId":"a","bits":1}'

    ended = emit("-", "--json", stdin=f'{good}\n\n[]\n{{"key":"k","accountId":"a"}}\n{good}\n')

    assert ended.returncode == 65
    assert len([json.loads(line) for line in ended.stdout.splitlines()]) == 2
    assert [json.loads(line) for line in ended.stderr.splitlines()] == [
        {"line": 3, "code": "wrong_type", "detail": "the value must be an object, not array"},
        {"line": 4, "code": "missing_member", "detail": "`bits` is missing"},
    ]


async def test_emit_lets_unknown_members_pass_where_the_worker_would(
    kafka: LocalKafka, emit: Run, usage_topic: str
) -> None:
    """INGESTER_UNKNOWN_MEMBERS=ignore holds for `emit` too; the line goes out as it is."""
    line = '{"key":"k","accountId":"a","bits":1,"region":"eu"}'

    refused = emit("-", stdin=line)
    ignored = emit("-", stdin=line, INGESTER_UNKNOWN_MEMBERS="ignore")

    assert (refused.returncode, ignored.returncode) == (65, 0)
    assert "unknown_member" in refused.stderr
    records = await read_all(kafka.bootstrap_servers, usage_topic)
    assert [record.value for record in records] == [line.encode()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("", "a", "1"), "KEY must not be empty"),
        (("k", "", "1"), "ACCOUNT_ID must not be empty"),
        (("k", "a", str(2**63)), f"BITS must be from {-(2**63)} to {2**63 - 1}"),
        (("k", "a", "1", "--metadata", "[]"), "--metadata is no JSON object: Expected `object`"),
        (("k", "a", "1", "--metadata", "{x"), "--metadata is no JSON object: JSON is malformed"),
        (("k", "a", "1", "--metadata", '{},"bits":2'), "--metadata is no JSON object"),
        (("k", "a", "1", "--metadata", '{"a":' * 130 + "1" + "}" * 130), "--metadata nests deeper"),
        ((b"\xff", "a", "1"), "no UTF-8"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_emit_refuses_a_single_event_that_is_none(
    emit: Run, arguments: tuple[str, ...], said: str
) -> None:
    """Exit code 64 in the words of the command line, without a word to Kafka."""
    ended = emit(*arguments, INGESTER_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")

    assert ended.returncode == 64
    assert said in ended.stderr
    assert "line 1" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("k",),
        ("k", "a"),
        ("k", "a", "many"),
        ("-", "a", "1"),
        ("--nonsense",),
        ("k", "--nonsense", "-5"),
        ("k", "a", "-5", "--nonsense"),
        ("-5", "a", "1"),
    ],
    ids=repr,
)
def test_emit_refuses_an_incomplete_command_line(emit: Run, arguments: tuple[str, ...]) -> None:
    """Exit code 64, without a word to Kafka."""
    ended = emit(*arguments, INGESTER_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")

    assert ended.returncode == 64
    assert _says_no_traceback(ended)


def test_emit_acknowledges_events_as_they_come(
    kafka: LocalKafka, usage_topic: str, tmp_path: Path
) -> None:
    """An event from an open pipe is acknowledged before the next one is written; Ctrl-C ends it."""
    output = tmp_path / "output"
    settings = {
        "INGESTER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "INGESTER_TOPIC": usage_topic,
    }
    with output.open("wb") as stdout:
        emitting = subprocess.Popen(
            [COMMAND, "emit", "-"], env=environment(settings), stdin=subprocess.PIPE, stdout=stdout
        )
    assert emitting.stdin is not None
    try:
        for number in (1, 2):
            emitting.stdin.write(b'{"key":"k","accountId":"a","bits":%d}\n' % number)
            emitting.stdin.flush()
            eventually(lambda number=number: f"{number} for k\n" in output.read_text())
        emitting.send_signal(signal.SIGINT)
        assert emitting.wait(10) == 130
    finally:
        emitting.kill()
        emitting.stdin.close()
        emitting.wait()


def test_acknowledgements_in_a_file_are_counted_on_the_terminal(
    kafka: LocalKafka, usage_topic: str, tmp_path: Path
) -> None:
    """What shows how far it is takes nothing of what goes elsewhere."""
    settings = {
        "INGESTER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "INGESTER_TOPIC": usage_topic,
    }
    lines = '{"key":"k","accountId":"a","bits":7}\n' * 3

    with (tmp_path / "acknowledged").open("w+") as file:
        said = said_on_a_terminal(settings, "emit", "-", stdin=lines, stdout=file)
        file.seek(0)
        acknowledged = file.readlines()

    assert len(acknowledged) == 3
    assert all(each.endswith("  7 for k\n") for each in acknowledged)
    assert "3 events acknowledged" in said


def test_emit_to_a_topic_that_is_not_there(emit: Run) -> None:
    """Exit code 69 within seconds, with the command that would create it."""
    started_seconds = time.monotonic()

    ended = emit("k", "a", "1", "--topic", "usage-nowhere")

    assert time.monotonic() - started_seconds < 10
    assert ended.returncode == 69
    assert "has no topic usage-nowhere: correct --topic, or create it" in ended.stderr
    assert "kafka-topics.sh" in ended.stderr
    assert _says_no_traceback(ended)


def test_emit_without_a_broker(emit: Run) -> None:
    """Exit code 69, and the address is named."""
    (port,) = free_ports(1)

    ended = emit("k", "a", "1", INGESTER_KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{port}")

    assert ended.returncode == 69
    assert f"127.0.0.1:{port}" in ended.stderr
    assert _says_no_traceback(ended)
    assert len(ended.stderr.splitlines()) == 1


async def test_balance_tells_agreed_from_mismatch(
    group_of: GroupOf, emit: Run, balance: Run, usage_topic: str
) -> None:
    """Exit code 0 where the sums agree, 1 where they do not or the key is unknown."""
    group = group_of(usage_topic)
    metadata = '{ "n":1E400, "d":1.10000000000000000000000000001 }'
    assert emit("k/1 é", "a", "500", "--metadata", metadata).returncode == 0
    group.start()
    await group.settled()

    read = balance("k/1 é")
    mismatch = balance("k/1 é", "--expect", "498")
    unknown = balance("nobody", "--expect", "1")
    nothing = balance("nobody", "--expect", "0")

    assert (read.returncode, read.stdout) == (0, "Balance for k/1 é: 500 (1 writes)\n")
    assert mismatch.returncode == 1
    assert "Mismatch: 498 is expected, PacSpace has 500 (difference +2)" in mismatch.stdout
    assert unknown.returncode == 1
    assert unknown.stdout == "Unknown key: PacSpace has no record of nobody; 1 is expected\n"
    assert nothing.returncode == 1
    assert nothing.stdout == "Unknown key: PacSpace has no record of nobody; 0 is expected\n"
    as_json = balance("k/1 é", "--expect", "498", "--json").stdout
    assert f'"metadata":{metadata}' in as_json
    document = json.loads(as_json)
    assert (document["status"], document["expected"]) == ("mismatch", 498)
    assert document["balance"]["currentBits"] == 500
    assert document["balance"]["accountId"] == "a"
    facts = {"key": "nobody", "status": "unknown_key", "balance": None}
    assert json.loads(balance("nobody", "--json").stdout) == facts
    assert json.loads(balance("nobody", "--expect", "0", "--json").stdout) == facts | {
        "expected": 0
    }


@pytest.mark.parametrize("key", ["", ".", ".."], ids=repr)
def test_balance_of_a_key_that_cannot_be_asked_for(balance: Run, key: str) -> None:
    """Exit code 64, and nothing is asked."""
    ended = balance(key)

    assert ended.returncode == 64
    assert f"KEY is {key!r}" in ended.stderr


async def test_balance_waits_for_the_verification(
    kafka: LocalKafka, ingesters: Ingesters, emit: Run, balance: Run, usage_topic: str
) -> None:
    """Exit code 2 while PacSpace has not verified the latest write, whatever the sum is."""
    unverified = Simulator(ingesters, "--verify-delay-seconds", "3600")
    group = Group(kafka, ingesters, unverified.settings(), [usage_topic])
    assert emit("k", "a", "500").returncode == 0
    group.start()
    await group.settled()

    ended = balance("k", "--expect", "500", **unverified.settings())

    assert ended.returncode == 2
    assert "Pending verification: PacSpace has 500" in ended.stdout


def test_balance_without_an_answer(balance: Run, simulator: Simulator) -> None:
    """Exit code 77 where the key is refused, and 69 for anything else that is no balance."""
    for status, envelope, exit_code in (
        (401, "e1", 77),
        (403, "e2", 77),
        (404, "html", 69),
        (429, "e1", 69),
        (500, "empty", 69),
    ):
        effect = {"kind": "answer", "status": status, "envelope": envelope}
        simulator.clear_faults()
        simulator.add_faults({"match": {"method": "GET"}, "effect": effect})

        ended = balance("k", "--expect", "500", "--json")

        assert ended.returncode == exit_code
        assert f"HTTP {status}" in ended.stderr
        assert ended.stdout == ""
        assert _says_no_traceback(ended)


def test_balance_of_an_endpoint_that_is_gone(balance: Run) -> None:
    """Exit code 69, and the address is named."""
    (port,) = free_ports(1)

    ended = balance("k", INGESTER_PACSPACE_URL=f"http://127.0.0.1:{port}")

    assert ended.returncode == 69
    assert f"http://127.0.0.1:{port}" in ended.stderr
    assert _says_no_traceback(ended)
