"""The simulator over HTTP: what any client sees, with faults and without."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from ingester.errors import UnavailableError
from ingester.simulator.options import Options
from ingester.simulator.server import VERSION, running

API_KEY = "pk_test_public.secret"
EXAMPLES = Path(__file__).parent / "published_examples"
SIMULATE = "import typer; from ingester.simulator.command import simulate; typer.run(simulate)"
DEADLINE_SECONDS = 20


@dataclass(frozen=True)
class Client:
    """A running simulator and a session with it."""

    url: str
    session: aiohttp.ClientSession

    async def write(self, *items: dict[str, object], key: str | None = None) -> tuple[int, dict]:
        headers = {"Idempotency-Key": key} if key else {}
        async with self.session.post(
            "/api/v1/writes", json={"items": items}, headers=headers
        ) as response:
            return response.status, await response.json()

    async def read(self, key: str) -> tuple[int, dict]:
        async with self.session.get(f"/api/v1/reads/bucket/{quote(key, safe='')}") as response:
            return response.status, await response.json()

    async def fault(self, *rules: dict[str, object]) -> None:
        async with self.session.post("/_simulator/faults", json=rules) as response:
            assert response.status == 201, await response.text()

    async def report(self, query: str = "") -> dict:
        async with self.session.get(f"/_simulator/report{query}") as response:
            return await response.json()


@asynccontextmanager
async def simulator(**options: object) -> AsyncIterator[Client]:
    headers = {"X-Api-Key": API_KEY}
    async with (
        running(Options(port=0, **options)) as url,
        aiohttp.ClientSession(url, headers=headers) as session,
    ):
        yield Client(url, session)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with simulator() as client:
        yield client


def item(bits: object = 1, *, key: str = "k", account: str = "a") -> dict[str, object]:
    return {"key": key, "accountId": account, "bits": bits}


async def until(
    condition: Callable[[], Awaitable[bool]], deadline_seconds: float = DEADLINE_SECONDS
) -> None:
    async with asyncio.timeout(deadline_seconds):
        while not await condition():  # noqa: ASYNC110 - the condition is in another process
            await asyncio.sleep(0.01)


async def test_writes_accumulate_and_are_read_back(client: Client) -> None:
    """What was acknowledged is what a read shows, item by item."""
    status, acknowledged = await client.write(item(100), item(250))
    await client.write(item(150) | {"metadata": {"n": 3}})

    assert status == 202
    assert acknowledged["data"]["itemCount"] == 2
    assert acknowledged["data"]["batchId"].startswith("batch_")
    status, record = await client.read("k")
    assert status == 200
    assert record["data"] | {"lastWriteAt": ""} == {
        "key": "k",
        "accountId": "a",
        "currentBits": 500,
        "totalWrites": 3,
        "lastWriteAt": "",
        "verified": True,
        "metadata": {"n": 3},
    }


@pytest.mark.parametrize(
    "key", ["a/b", "a b", "100%", "%2F", "ä€😀", "?x=1#y", "a+b", '"', ":", ";", "..", "\x00"]
)
async def test_any_key_can_be_read(client: Client, key: str) -> None:
    """A percent-encoded key names the same record as the JSON string."""
    await client.write(item(7, key=key))

    # The path is sent as written: a client's own normalisation is not what is tested.
    host, port = client.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    path = f"/api/v1/reads/bucket/{quote(key, safe='').replace('.', '%2E')}"
    writer.write(f"GET {path} HTTP/1.0\r\nX-Api-Key: {API_KEY}\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()

    assert b" 200 " in head.splitlines()[0]
    assert json.loads(body)["data"]["key"] == key


async def test_an_unknown_key_is_not_found(client: Client) -> None:
    """The 404 repeats the key in the API's words."""
    assert await client.read("order-99999") == (
        404,
        {
            "statusCode": 404,
            "error": "Not Found",
            "message": "No record found for key: order-99999",
        },
    )


async def test_every_answer_says_that_it_is_simulated(client: Client) -> None:
    """Success, refusal, unknown path and report all carry the header."""
    requests = [
        ("GET", "/api/v1/reads/bucket/k"),
        ("POST", "/api/v1/writes"),
        ("PUT", "/api/v1/writes"),
        ("GET", "/nowhere"),
        ("GET", "/_simulator/report"),
    ]

    for method, path in requests:
        async with client.session.request(method, path) as response:
            assert response.headers["X-PacSpace-Simulator"] == VERSION, (method, path)


async def test_an_unknown_path_is_answered_in_the_api_envelope(client: Client) -> None:
    """Neither a wrong path nor a wrong method shows the server's own page."""
    for method, path in (("PUT", "/api/v1/writes"), ("GET", "/api/v1/balance/usage")):
        async with client.session.request(method, path) as response:
            assert (response.status, await response.json()) == (
                404,
                {"statusCode": 404, "error": "Not Found", "message": f"Cannot {method} {path}"},
            )


async def test_a_refused_body_changes_nothing(client: Client) -> None:
    """One wrong item refuses the whole write, by name, and nothing is applied."""
    status, refused = await client.write(item(), item(), item(True))

    assert (status, refused["message"]) == (
        400,
        "Validation failed: items[2].bits must be an integer",
    )
    assert (await client.report())["items"] == 0


async def test_body_bytes_max_is_the_last_size_accepted() -> None:
    """A body of exactly the limit is accepted; one byte more is a 413 in the API's envelope."""
    body = json.dumps({"items": [item()]}).encode()
    async with simulator(body_bytes_max=len(body)) as client:
        async with client.session.post("/api/v1/writes", data=body) as response:
            assert response.status == 202
        async with client.session.post("/api/v1/writes", data=body + b" ") as response:
            assert (response.status, (await response.json())["error"]) == (413, "Payload Too Large")
        assert (await client.report())["writes"] == 1


async def test_a_record_is_verified_after_the_delay() -> None:
    """`verified` is false right after a write and turns true by itself."""
    async with simulator(verify_delay_seconds=0.2) as client:
        await client.write(item())
        assert (await client.read("k"))[1]["data"]["verified"] is False

        async def verified() -> bool:
            return (await client.read("k"))[1]["data"]["verified"]

        await until(verified)


async def test_the_newer_spelling_of_the_id() -> None:
    """With the switch an acknowledgement has `requestId` and no `batchId`."""
    async with simulator(id_field="requestId") as client:
        _, acknowledged = await client.write(item())

    assert acknowledged["data"]["requestId"].startswith("req_")
    assert "batchId" not in acknowledged["data"]


async def test_a_retry_during_and_after_a_write_is_applied_once() -> None:
    """While in flight the retry is pending, afterwards it repeats the acknowledgement."""
    async with simulator(latency_seconds=0.3) as client:
        first = asyncio.create_task(client.write(item(5), key="one"))

        async def in_flight() -> bool:
            return (await client.report())["in_flight"] == 1

        await until(in_flight)
        status, pending = await client.write(item(5), key="one")
        acknowledged = await first
        replayed = await client.write(item(5), key="one")
        conflict = await client.write(item(6), key="one")
        report = await client.report()

    assert (status, pending["code"]) == (202, "IDEMPOTENCY_PENDING")
    assert acknowledged == replayed
    assert (conflict[0], conflict[1]["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert (report["bits"], report["replayed"], report["pending"], report["conflicts"]) == (
        5,
        1,
        1,
        1,
    )


@pytest.mark.parametrize(
    ("effect", "applied"),
    [
        ({"kind": "lose"}, 5),
        ({"kind": "cut_body"}, 5),
        ({"kind": "drop"}, 0),
        ({"kind": "hang"}, 0),
        ({"kind": "hang", "applied": True}, 5),
    ],
    ids=str,
)
async def test_a_lost_answer_is_an_error_and_its_retry_is_applied_once(
    client: Client, effect: dict[str, object], applied: int
) -> None:
    """The client gets no answer, the ledger tells what happened, and a retry makes it exactly 5."""
    await client.fault({"match": {"method": "POST", "count": 1}, "effect": effect})
    timeout = aiohttp.ClientTimeout(total=0.5 if effect["kind"] == "hang" else DEADLINE_SECONDS)

    with pytest.raises((aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError)):
        async with client.session.post(
            "/api/v1/writes",
            json={"items": [item(5)]},
            headers={"Idempotency-Key": "one"},
            timeout=timeout,
        ) as response:
            await response.read()
    assert (await client.report())["bits"] == applied

    status, _ = await client.write(item(5), key="one")

    assert status == 202
    assert (await client.report())["bits"] == 5


async def test_half_a_body_arrives_before_the_cut(client: Client) -> None:
    """The status line and the declared length are right; the bytes stop in the middle."""
    await client.fault({"effect": {"kind": "cut_body"}})
    host, port = client.url.removeprefix("http://").split(":")
    body = json.dumps({"items": [item()]}).encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST /api/v1/writes HTTP/1.1\r\nHost: x\r\nX-Api-Key: {API_KEY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )

    head, _, half = (await asyncio.wait_for(reader.read(), DEADLINE_SECONDS)).partition(b"\r\n\r\n")
    writer.close()

    [length] = [int(line.split(b":")[1]) for line in head.splitlines() if b"ontent-Length" in line]
    assert b" 202 " in head.splitlines()[0]
    assert len(half) == length // 2


async def test_a_late_answer_applies_the_write_although_the_client_has_gone(
    client: Client,
) -> None:
    """A client's time-out does not take its write back."""
    await client.fault({"latency_seconds": 0.3})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.write(item(5)), 0.1)

    async def applied() -> bool:
        return (await client.report())["bits"] == 5

    await until(applied)


async def test_faults_are_added_listed_and_removed(client: Client) -> None:
    """A rule acts from the moment it is added until it is spent or removed."""
    answer = {"kind": "answer", "status": 503, "retry_after": 7, "envelope": "e2", "code": "DOWN"}
    await client.fault({"match": {"account": "a", "every_nth": 2}, "effect": answer})

    statuses = [(await client.write(item(account=account)))[0] for account in "abab"]
    async with client.session.get("/_simulator/faults") as response:
        [listed] = await response.json()
    async with client.session.delete("/_simulator/faults") as response:
        assert response.status == 204
    statuses += [(await client.write(item()))[0] for _ in range(2)]

    assert statuses == [202, 202, 503, 202, 202, 202]
    assert (listed["matched"], listed["taken"]) == (2, 1)
    assert listed["rule"]["effect"]["kind"] == "answer"
    assert (await client.report())["requests"] == {"202": 5, "503": 1}


async def test_an_injected_answer_carries_retry_after(client: Client) -> None:
    """Status, header and body members arrive as the rule says."""
    effect = {"kind": "answer", "status": 429, "retry_after": 7, "retry_after_seconds": 9}
    await client.fault({"effect": effect})

    async with client.session.get("/api/v1/reads/bucket/k") as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "7")
        assert (await response.json())["retryAfterSeconds"] == 9


async def test_a_wrong_rule_is_refused_and_not_armed(client: Client) -> None:
    """The 400 names the member, and the rules in force stay as they were."""
    rules = [{"effect": {"kind": "drop"}}, {"effect": {"kind": "answer", "status": 700}}]
    async with client.session.post("/_simulator/faults", json=rules) as response:
        assert response.status == 400
        assert "effect.status" in (await response.json())["message"]

    assert (await client.write(item()))[0] == 202


async def test_the_report_is_exact_and_can_be_reset(client: Client) -> None:
    """Totals per key and account are integers of any size; after a reset all is zero."""
    large = 10**40
    await client.write(item(large, key="x"), item(1, key="x"), item(-3, key="y", account="b"))
    _, acknowledged = await client.write(item(2, key="y", account="b"), key="one")

    report = await client.report("?batch_ids=true")
    short = await client.report("?keys=false")
    async with client.session.delete("/_simulator/report") as response:
        assert response.status == 204

    assert report["bits"] == large
    assert report["keys"] == {"x": {"bits": large + 1, "items": 2}, "y": {"bits": -1, "items": 2}}
    assert report["accounts"] == {
        "a": {"bits": large + 1, "items": 2},
        "b": {"bits": -1, "items": 2},
    }
    # The ledger's own number is in both spellings of the id.
    [number] = [n for n, batch in report["batch_ids"].items() if batch["idempotency_key"] == "one"]
    assert acknowledged["data"]["batchId"] == f"batch_{number}"
    assert "keys" not in short
    assert (await client.report()) | {"requests": {}} == {
        "writes": 0,
        "items": 0,
        "bits": 0,
        "batches": 0,
        "replayed": 0,
        "pending": 0,
        "conflicts": 0,
        "in_flight": 0,
        "requests": {},
        "accounts": {},
        "keys": {},
    }


async def test_concurrent_writes_are_all_counted(client: Client) -> None:
    """Two hundred writes at once, each tried twice under its key, add up to two hundred."""
    answers = await asyncio.gather(
        *[client.write(item(1), key=f"key-{n % 200}") for n in range(400)]
    )

    assert {status for status, _ in answers} == {202}
    assert len({answer["data"]["batchId"] for _, answer in answers}) == 200
    assert (await client.report())["bits"] == 200


async def test_a_port_in_use_is_reported_by_name(client: Client) -> None:
    """The message has the address, the cause and the way out."""
    port = int(client.url.rsplit(":", 1)[1])

    with pytest.raises(
        UnavailableError, match=rf"127.0.0.1:{port}: the port is in use; .*--listen"
    ):
        async with running(Options(port=port)):
            pass


async def test_a_foreign_address_is_reported_by_name() -> None:
    """An address that is not this machine's is refused in a sentence, not in a traceback."""
    with pytest.raises(UnavailableError, match=r"192.0.2.1:0: .*address of this machine"):
        async with running(Options(host="192.0.2.1", port=0)):
            pass


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
async def test_the_process_says_where_it_listens_and_stops_on_a_signal(
    signal_number: signal.Signals,
) -> None:
    """One line on standard output, connections accepted by then, exit code 0 even while hanging."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SIMULATE, "--listen", "127.0.0.1:0"),
        stdout=subprocess.PIPE,
    )
    try:
        line = await asyncio.wait_for(process.stdout.readline(), DEADLINE_SECONDS)
        prefix, _, url = line.decode().rstrip("\n").rpartition(" ")
        assert prefix == "simulator listening on"
        async with aiohttp.ClientSession(url) as session:
            await session.post("/_simulator/faults", json={"effect": {"kind": "hang"}})
            hanging = asyncio.create_task(session.get("/api/v1/reads/bucket/k"))

            async def hung() -> bool:
                async with session.get("/_simulator/report") as response:
                    return (await response.json())["requests"] == {"hung": 1}

            await until(hung)
            process.send_signal(signal_number)

            assert await asyncio.wait_for(process.wait(), DEADLINE_SECONDS) == 0
            with pytest.raises(aiohttp.ClientConnectionError):
                await hanging
        host, port = url.removeprefix("http://").split(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=1)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def interpreter(example: str) -> str:
    if example.endswith(".py"):
        return sys.executable
    node = shutil.which("node")
    assert node, "node is not on the PATH: install Node.js 18 or newer, this test needs its fetch"
    return node


async def run_example(client: Client, example: str) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        interpreter(example),
        str(EXAMPLES / example),
        env=os.environ | {"PACSPACE_URL": client.url, "PACSPACE_API_KEY": API_KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    assert process.returncode == 0, errors.decode()
    return output.decode().splitlines()


@pytest.mark.parametrize("example", ["basic_settlement.js", "basic_settlement.py"])
async def test_the_basic_settlement_example_settles(client: Client, example: str) -> None:
    """A client written for PacSpace, unchanged, records three deltas and agrees on their sum."""
    output = await run_example(client, example)

    recorded, rest = output[:3], output[3:]
    assert [line.rpartition(" ")[0] for line in recorded] == [
        f"Recorded: {bits} for settlement-2025-06 → batch" for bits in (100, 250, 150)
    ]
    assert len({line.rpartition(" ")[2] for line in recorded}) == 3
    assert all(line.rpartition(" ")[2].startswith("batch_") for line in recorded)
    assert rest == [
        "Balance for settlement-2025-06: 500 (3 writes)",
        "Total usage recorded: 500",
        "Balance for settlement-2025-06: 500 (3 writes)",
        "Agreement confirmed: both parties agree on 500",
        "Settlement complete. Generating invoice for 500",
    ]


@pytest.mark.parametrize("example", ["basic_settlement.js", "basic_settlement.py"])
async def test_the_basic_settlement_example_sees_verification_pending(example: str) -> None:
    """Before verification the balance is there and the agreement is not."""
    async with simulator(verify_delay_seconds=3_600) as client:
        output = await run_example(client, example)

    assert output[-2:] == [
        "Balance for settlement-2025-06: 500 (3 writes)",
        "No agreement: pending_verification",
    ]


async def test_the_metering_example_reads_an_unknown_month_as_zero(client: Client) -> None:
    """A 404 is what such a client takes for no usage."""
    assert await run_example(client, "saas_metering.py") == ["2025-05 0", "2025-06 3"]
