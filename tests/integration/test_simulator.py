"""The simulator over HTTP: what any client sees, with faults and without."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote

import aiohttp
import pytest

from ingester import __version__
from ingester.simulator.options import Options
from ingester.simulator.server import running

API_KEY = "pk_test_public.secret"
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
        while not await condition():  # noqa: ASYNC110 - what is awaited shows over HTTP only
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
            assert response.headers["X-PacSpace-Simulator"] == __version__, (method, path)


async def test_an_unknown_path_is_answered_in_the_api_envelope(client: Client) -> None:
    """Neither a wrong path nor a wrong method shows the server's own page."""
    unknown = [
        ("PUT", "/api/v1/writes"),
        ("GET", "/api/v1/balance/usage"),
        ("GET", "/api/v1/reads/bucket/unescaped/slash"),
    ]

    for method, path in unknown:
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
    async with simulator(verify_delay_seconds=1) as client:
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
    async with simulator() as client:
        await client.fault({"match": {"count": 1}, "latency_seconds": 1})
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
    ],
    ids=str,
)
async def test_a_lost_answer_is_an_error_and_its_retry_is_applied_once(
    client: Client, effect: dict[str, object], applied: int
) -> None:
    """The client gets no answer, the ledger tells what happened, and a retry makes it exactly 5."""
    await client.fault({"match": {"method": "POST", "count": 1}, "effect": effect})

    with pytest.raises((aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)):
        await client.write(item(5), key="one")
    assert (await client.report())["bits"] == applied

    status, _ = await client.write(item(5), key="one")

    assert status == 202
    assert (await client.report())["bits"] == 5


@pytest.mark.parametrize("applied", [False, True])
async def test_a_hanging_request_is_never_answered(client: Client, applied: bool) -> None:
    """The client waits until it gives up; a retry makes the write exactly once either way."""
    await client.fault({"match": {"count": 1}, "effect": {"kind": "hang", "applied": applied}})
    hanging = asyncio.create_task(client.write(item(5), key="one"))

    async def hung() -> bool:
        return (await client.report())["requests"] == {"hung": 1}

    await until(hung)
    assert not hanging.done()
    assert (await client.report())["bits"] == (5 if applied else 0)
    hanging.cancel()

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
    await client.fault({"latency_seconds": 1})
    impatient = asyncio.create_task(client.write(item(5), key="one"))

    async def in_flight() -> bool:
        return (await client.report())["in_flight"] == 1

    await until(in_flight)
    impatient.cancel()
    assert (await client.report())["bits"] == 0

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
