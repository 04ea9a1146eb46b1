"""`ingester balance` over many keys: of the command line, of a file, of an account."""

from __future__ import annotations

import asyncio
import csv
import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from ingester.local_kafka import LocalKafka
from tests.conftest import TopicFactory
from tests.support.kafka import admin
from tests.support.processes import COMMAND, Ingesters, environment
from tests.support.simulator import API_KEY, Simulator
from tests.support.waiting import eventually
from tests.support.workers import Group

GroupOf = Callable[..., Group]
Run = Callable[..., subprocess.CompletedProcess[str]]
KEYS = 20_000
MEMORY_BYTES_MAX = 32 * 1024 * 1024  # more than a single key takes


@pytest.fixture
def balance(ingesters: Ingesters, simulator: Simulator) -> Run:
    def run(
        *arguments: str, exit_code: int = 0, stdin: str = "", **changed: str
    ) -> subprocess.CompletedProcess[str]:
        settings = {**simulator.settings(), **changed}
        ended = ingesters.run("balance", *arguments, settings=settings, stdin=stdin)
        assert ended.returncode == exit_code, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stdout + ended.stderr
        return ended

    return run


def write(simulator: Simulator, sums: Mapping[str, int], account: str = "acme") -> None:
    """Let PacSpace have these sums."""
    items = [{"key": key, "accountId": account, "bits": bits} for key, bits in sums.items()]
    for first in range(0, len(items), 1000):
        httpx.post(
            f"{simulator.url}/api/v1/writes",
            json={"items": items[first : first + 1000]},
            headers={"X-Api-Key": API_KEY},
            timeout=60,
        ).raise_for_status()


def verified(simulator: Simulator, key: str) -> None:
    """Wait until PacSpace has verified the last write to a key."""

    def is_verified() -> bool:
        url = f"{simulator.url}/api/v1/reads/bucket/{key}"
        answer = httpx.get(url, headers={"X-Api-Key": API_KEY})
        return bool(answer.json()["data"]["verified"])

    eventually(is_verified)


def rows(ended: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    return list(csv.DictReader(ended.stdout.splitlines()))


def test_several_keys(simulator: Simulator, balance: Run) -> None:
    """A table in the order of the keys, or JSON with what one key prints; an unknown one is 1."""
    write(simulator, {"b": 2, "a": 1})
    verified(simulator, "a")

    table = balance("b", "a").stdout.splitlines()
    document = json.loads(balance("b", "nobody", "a", "--json", exit_code=1).stdout)
    one = json.loads(balance("a", "--json").stdout)

    assert [line.split()[:4] for line in table[1:3]] == [
        ["b", "acme", "2", "1"],
        ["a", "acme", "1", "1"],
    ]
    assert table[3] == "2 keys: 2 read"
    assert [each["key"] for each in document["balances"]] == ["b", "nobody", "a"]
    assert document["balances"][1] == {"key": "nobody", "status": "unknown_key", "balance": None}
    assert document["balances"][2] == one
    assert document["statuses"] == {"read": 2, "unknown_key": 1}


def test_sums_from_a_file(simulator: Simulator, balance: Run, tmp_path: Path) -> None:
    """Each line is compared, whatever the key; the worst outcome is the exit code."""
    keys = {"plain": 1, "with, comma": 2, 'with "quotes"': 3, "é/1": 4}
    write(simulator, keys)
    verified(simulator, "plain")
    file = tmp_path / "sums.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([["key", "expected"], *keys.items()])

    agreed = rows(balance("--keys-from", str(file), "--csv"))
    mixed = 'plain,2\n\n"with, comma"\nnobody,0\n'
    differing = rows(balance("--keys-from", "-", "--csv", stdin=mixed, exit_code=1))

    assert [(each["key"], each["status"]) for each in agreed] == [(key, "agreed") for key in keys]
    assert {each["verified"] for each in agreed} == {"true"}
    assert [(each["status"], each["difference"]) for each in differing] == [
        ("mismatch", "-1"),
        ("read", ""),
        ("unknown_key", ""),
    ]


def test_what_is_not_verified(ingesters: Ingesters) -> None:
    """Pending is 2 where nothing is worse, and 1 beside a mismatch."""
    simulator = Simulator(ingesters, "--verify-delay-seconds", "3600")
    write(simulator, {"a": 1})

    def exit_code(lines: str) -> int:
        return ingesters.run(
            "balance", "--keys-from", "-", settings=simulator.settings(), stdin=lines
        ).returncode

    assert exit_code("a,1\n") == 2
    assert exit_code("a,1\nnobody,1\n") == 1
    assert exit_code("a\n") == 0


async def test_the_keys_of_an_account(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, balance: Run
) -> None:
    """Those of its events in the log, and of the receipts those that PacSpace has for it."""
    group = group_of(await topic(1))
    (name,) = group.topics
    lost = [("acme-old", "acme"), ("other-old", "other")]
    kept = [("acme-2", "acme"), ("acme-1", "acme"), ("other-1", "other")]
    for key, account in [*lost, *kept]:
        await group.produce([{"key": key, "accountId": account, "bits": 5}], partition=0)
    group.start()
    await group.settled()
    async with admin(group.servers) as client:
        before = RecordsToDelete(before_offset=len(lost))
        await client.delete_records({TopicPartition(name, 0): before})
    kafka = {k: v for k, v in group.settings().items() if "PACSPACE" not in k}

    ended = balance("--account", "acme", "--csv", **kafka)
    nobody = balance("--account", "nobody", exit_code=64, **kafka)
    missing = balance("--account", "acme", exit_code=69, **{**kafka, "INGESTER_TOPIC": "nowhere"})

    assert [each["key"] for each in rows(ended)] == ["acme-1", "acme-2", "acme-old"]
    assert {each["accountId"] for each in rows(ended)} == {"acme"}
    assert f"acme has 2 keys in the log of {name}" in ended.stderr
    assert "its receipts have 2 that the log does not" in ended.stderr
    assert "none of these keys is of the account nobody" in nobody.stderr
    assert "has no topic nowhere" in missing.stderr


def peak_memory_bytes(arguments: Sequence[str], settings: Mapping[str, str], folder: Path) -> int:
    """Run the command to a good end, and return the most memory it was seen to have."""
    with (folder / "output").open("wb") as output:
        process = psutil.Popen([COMMAND, *arguments], env=environment(settings), stdout=output)
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
            process.wait(0.05)
        except (psutil.TimeoutExpired, psutil.NoSuchProcess):
            continue
    assert process.returncode == 0
    return peak


def test_many_keys_take_little_memory_and_few_requests_at_once(
    ingesters: Ingesters, simulator: Simulator, tmp_path: Path
) -> None:
    """Every one of 20,000 keys agrees, in order; memory is not that of 20,000 answers."""
    sums = {f"usage-{number:06d}": number for number in range(KEYS)}
    write(simulator, sums)
    verified(simulator, f"usage-{KEYS - 1:06d}")
    file = tmp_path / "sums.csv"
    file.write_text("".join(f"{key},{bits}\n" for key, bits in sums.items()))
    settings = {**simulator.settings(), "INGESTER_REQUESTS_IN_FLIGHT_MAX": "8"}
    single = peak_memory_bytes(("balance", "usage-000000", "--csv"), settings, tmp_path)

    many = peak_memory_bytes(("balance", "--keys-from", str(file), "--csv"), settings, tmp_path)

    with (tmp_path / "output").open(newline="") as output:
        found = [(each["key"], each["status"]) for each in csv.DictReader(output)]
    assert found == [(key, "agreed") for key in sums]
    assert many - single < MEMORY_BYTES_MAX


def test_an_outage_of_moments_is_waited_out(simulator: Simulator, balance: Run) -> None:
    """A key that gets no answer is asked again; what stays away ends the command with 69."""
    write(simulator, {"a": 1, "b": 2})
    down = {"match": {"method": "GET"}, "effect": {"kind": "answer", "status": 503}}
    simulator.add_faults({**down, "match": {"method": "GET", "count": 2}})

    assert "2 keys: 2 read" in balance("a", "b").stdout
    simulator.add_faults(down)
    assert "no balance of a from" in balance("a", "b", exit_code=69).stderr
    simulator.clear_faults()
    refused = {"kind": "answer", "status": 403}
    simulator.add_faults({"match": {"method": "GET"}, "effect": refused})
    assert "no balance of a from" in balance("a", "b", exit_code=77).stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        ((), "", "name a KEY, or --keys-from FILE, or --account ID"),
        (("a", "b", "--expect", "1"), "", "--expect goes with one KEY"),
        (("a", "--csv", "--json"), "", "one of them"),
        (("a", ".."), "", "KEY is '..'"),
        (("--keys-from", "/nowhere"), "", "/nowhere cannot be read: No such file"),
        (("--keys-from", "-"), "a\n..\n", "line 2 of the keys is '..'"),
        (("--keys-from", "-"), "a,b\n", "line 1 of the keys should be KEY, or KEY,N"),
        (("--keys-from", "-"), "a,1,2\n", "line 1 of the keys should be KEY, or KEY,N"),
        (("--keys-from", "-"), '"a\n', "line 2 of the keys: unexpected end of data"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_cannot_be(balance: Run, arguments: tuple[str, ...], stdin: str, says: str) -> None:
    """Exit code 64, and the line at fault is named."""
    assert says in balance(*arguments, stdin=stdin, exit_code=64).stderr


README = Path(__file__).parents[2] / "README.md"


async def test_the_readme_can_be_typed(
    kafka: LocalKafka, group_of: GroupOf, topic: TopicFactory, simulator: Simulator, tmp_path: Path
) -> None:
    """Each command of the chapter does what it says."""
    group = group_of(await topic(1))
    keys = ["usage-acme-2025-05", "usage-acme-2025-06"]
    await group.produce([{"key": key, "accountId": "acme", "bits": 7} for key in keys])
    group.start()
    await group.settled()
    verified(simulator, keys[1])
    (tmp_path / "sums.csv").write_text("".join(f"{key},7\n" for key in keys))
    chapter = README.read_text("utf-8").partition("## Balances\n")[2].partition("\n## ")[0]
    said = []
    for command in re.findall(r"^\$ (.*?)(?: +#.*)?$", chapter, re.MULTILINE):
        ended: subprocess.CompletedProcess[Any] = await asyncio.to_thread(
            subprocess.run,
            ["sh", "-c", command],
            check=True,
            capture_output=True,
            text=True,
            env={**group.settings(), "PATH": f"{COMMAND.parent}:/usr/bin:/bin"},
            cwd=tmp_path,
        )
        said.append(ended.stdout)

    one, table, _, of_account = said
    assert one == "Balance for usage-acme-2025-06: 7 (1 writes)\n"
    (headings,) = re.findall(r"^KEY .*", chapter, re.MULTILINE)
    assert table.splitlines()[0].split() == headings.split()
    assert "2 keys: 2 agreed" in table
    assert (tmp_path / "compared.csv").read_text().count(",agreed,") == 2
    assert "2 keys: 2 read" in of_account


@pytest.mark.parametrize("text", ["key,expected\nk,5\n", "k,5\n"])
def test_a_file_that_begins_with_a_byte_order_mark(
    simulator: Simulator, balance: Run, tmp_path: Path, text: str
) -> None:
    """As a spreadsheet writes it: the mark is no part of the first key."""
    write(simulator, {"k": 5})
    verified(simulator, "k")
    file = tmp_path / "sums.csv"
    file.write_text(text, encoding="utf-8-sig")

    assert [each["status"] for each in rows(balance("--keys-from", str(file), "--csv"))] == [
        "agreed"
    ]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (("k", "--expect", "7"), 1),
        (("k", "--expect", "7", "--json"), 1),
        (("--keys-from", "sums.csv"), 1),
        (("k",), 0),
    ],
)
def test_a_verdict_is_the_exit_code_though_nobody_reads_it(
    simulator: Simulator,
    tmp_path: Path,
    arguments: tuple[str, ...],
    exit_code: int,
    unbuffered: str,
) -> None:
    """As with `| true`; sums are compared to the last, which here is the one that differs."""
    write(simulator, {"k": 5, "l": 6})
    verified(simulator, "l")
    (tmp_path / "sums.csv").write_text("l,6\n" * 500 + "k,7\n")
    gone = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    gone.wait()
    assert gone.stdin is not None

    ended = subprocess.run(
        [COMMAND, "balance", *arguments],
        stdout=gone.stdin.fileno(),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=environment({**simulator.settings(), "PYTHONUNBUFFERED": unbuffered}),
        cwd=tmp_path,
    )

    gone.stdin.close()
    assert (ended.returncode, ended.stderr) == (exit_code, "")
