"""The client over real connections: what it sends, and what it makes of whatever comes back."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from urllib.parse import unquote

import msgspec
import pytest

from ingester.core.delivery import (
    Acknowledged,
    AnswerLost,
    Blocked,
    Deferred,
    InDoubt,
    NothingSent,
    Outcome,
    Refused,
    Response,
    Throttled,
)
from ingester.core.event import UsageEvent
from ingester.local_kafka import free_ports
from ingester.pacspace import Agreement, Balance, PacspaceClient, ReadFailed, UnknownKey
from ingester.settings import PacspaceSettings
from ingester.simulator.options import Options
from ingester.simulator.server import running
from tests.support.scripted import (
    Endpoint,
    Script,
    answering,
    closing_after,
    endpoint,
    response,
    silence,
)
from tests.support.tls import server_context

API_KEY = "pk_test_public.secret"
ACKNOWLEDGEMENT = b'{"statusCode":202,"data":{"batchId":"batch_1","itemCount":1}}'
BALANCE = {
    "key": "k",
    "accountId": "a",
    "currentBits": 500,
    "totalWrites": 3,
    "lastWriteAt": "2025-06-10T14:30:00.000Z",
    "verified": True,
}


async def written(url: str, body: bytes = b'{"items":[]}', **options: float) -> Outcome:
    """Post a body of one item once, with a client of its own."""
    async with PacspaceClient(url, API_KEY, **options) as client:
        return await client.write(body, idempotency_key="key-1", items_count=1)


async def read(url: str, key: str = "k") -> Balance | UnknownKey | ReadFailed:
    async with PacspaceClient(url, API_KEY) as client:
        return await client.get_balance(key)


# -- what is sent -------------------------------------------------------------------------------


async def test_a_write_is_sent_as_documented() -> None:
    """Path, key, idempotency key and body arrive as they were given, the body byte for byte."""
    body = '{"items":[{"key":"é","accountId":"a","bits":1,"metadata":{ "n":1.10 }}]}'.encode()
    async with endpoint(answering(response(202, ACKNOWLEDGEMENT))) as found:
        assert await written(found.url + "/", body) == Acknowledged("batch_1", 202)

    (request,) = found.requests
    assert request.line == "POST /api/v1/writes HTTP/1.1"
    assert request.body == body
    expected = {
        "x-api-key": API_KEY,
        "idempotency-key": "key-1",
        "content-type": "application/json",
        "accept": "application/json",
    }
    assert expected.items() <= request.headers.items()
    assert request.headers["user-agent"].startswith("pacspace-ingester/")


async def test_a_connection_serves_many_requests_and_no_cookie_is_kept() -> None:
    """One connection for all, and no answer changes the next request."""
    answer = response(202, ACKNOWLEDGEMENT, "Set-Cookie: lb=1; Path=/")
    async with (
        endpoint(answering(answer)) as found,
        PacspaceClient(found.url, API_KEY) as client,
    ):
        for number in range(3):
            await client.write(b"{}", idempotency_key=f"key-{number}", items_count=1)

    assert found.connections == 1
    assert [request.headers["idempotency-key"] for request in found.requests] == [
        "key-0",
        "key-1",
        "key-2",
    ]
    assert not any("cookie" in request.headers for request in found.requests)


@pytest.mark.parametrize(
    "key",
    [
        "settlement-2025-06",
        "a b",
        "a/b",
        "a%2Fb",
        "100%",
        "é/東京",
        "a?b#c",
        "a+b;c=d",
        "a&b",
        "..a",
        '"\\',
    ],
)
async def test_a_key_of_any_characters_is_one_part_of_the_path(key: str) -> None:
    """What the server decodes is the key, and nothing of it is taken for path or query."""
    answer = response(200, json.dumps({"data": BALANCE | {"key": key}}).encode())
    async with endpoint(answering(answer)) as found:
        balance = await read(found.url, key)

    assert isinstance(balance, Balance)
    (request,) = found.requests
    method, path, _ = request.line.split(" ")
    assert method == "GET"
    assert path.startswith("/api/v1/reads/bucket/")
    part = path.removeprefix("/api/v1/reads/bucket/")
    assert "/" not in part
    assert "?" not in part
    assert unquote(part) == key


@pytest.mark.parametrize("key", [".", "..", ""], ids=repr)
async def test_a_key_that_no_path_can_carry_is_not_asked_for(key: str) -> None:
    """A dot segment would ask for another resource: the read fails and says why."""
    async with endpoint(answering(response(200, json.dumps({"data": BALANCE}).encode()))) as found:
        balance = await read(found.url, key)

    assert isinstance(balance, ReadFailed)
    assert repr(key) in balance.reason
    assert found.requests == []


async def test_no_more_connections_are_opened_than_allowed() -> None:
    """Further requests wait for one of them, and none is lost."""
    open_now, most = 0, 0

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        nonlocal open_now, most
        while True:
            await found.take(reader)
            open_now += 1
            most = max(most, open_now)
            await asyncio.sleep(0.01)
            open_now -= 1
            writer.write(response(202, ACKNOWLEDGEMENT))

    async with (
        endpoint(script) as found,
        PacspaceClient(found.url, API_KEY, connections_max=2) as client,
    ):
        outcomes = await asyncio.gather(
            *(client.write(b"{}", idempotency_key=str(n), items_count=1) for n in range(9))
        )

    assert outcomes == [Acknowledged("batch_1", 202)] * 9
    assert most == found.connections == 2


async def test_an_early_hint_is_not_the_answer() -> None:
    """Informational answers announce one, and the connection serves the next request too."""
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
    async with (
        endpoint(answering(hint + response(202, ACKNOWLEDGEMENT))) as found,
        PacspaceClient(found.url, API_KEY) as client,
    ):
        for number in range(3):
            outcome = await client.write(b"{}", idempotency_key=f"key-{number}", items_count=1)
            assert Acknowledged("batch_1", 202) == outcome
    assert 1 == found.connections


# -- what was not sent, and what may have been --------------------------------------------------


async def test_a_refused_connection_is_deferred() -> None:
    """Nobody listens: certainly nothing was sent."""
    async with endpoint(answering(b"")) as found:
        url = found.url

    assert isinstance(await written(url), Deferred)


async def no_tls(
    found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await reader.read(100)
    writer.write(b"this is no TLS")


async def test_a_failed_tls_handshake_is_deferred() -> None:
    """The request does not leave before there is a session."""
    async with endpoint(no_tls) as found:
        outcome = await written(found.url.replace("http:", "https:"))

    assert isinstance(outcome, Deferred)


async def test_what_kept_a_request_from_leaving_is_said_in_an_operators_words() -> None:
    """Each kind has a sentence with the address and nothing of the client's own."""
    (port,) = free_ports(1)
    async with (
        endpoint(silence) as silent,
        endpoint(no_tls) as plain,
        endpoint(closing_after(b""), tls=server_context()) as untrusted,
    ):
        where = [each.url.removeprefix("http://") for each in (silent, plain, untrusted)]
        expected = {
            f"http://127.0.0.1:{port}": ("refused", f"nothing listens on 127.0.0.1:{port}"),
            "https://pacspace.invalid": ("dns", "the name pacspace.invalid does not resolve"),
            f"https://{where[0]}": ("timeout", "no connection within 0.5 s"),
            f"https://{where[1]}": ("tls", f"no TLS with {where[1]}: wrong version number"),
            f"https://{where[2]}": (
                "certificate",
                f"the certificate of {where[2]} is not accepted: self-signed certificate",
            ),
        }
        actual = {}
        for url in expected:
            async with PacspaceClient(url, API_KEY, connect_timeout_seconds=0.5) as client:
                answer = await client.get("/status")
            assert isinstance(answer, NothingSent)
            actual[url] = (answer.kind, answer.reason)

    assert expected == actual


@pytest.mark.parametrize(
    "script",
    [
        closing_after(b""),
        closing_after(b"", reset=True),
        closing_after(response(202, ACKNOWLEDGEMENT)[:-5]),
        closing_after(response(202, ACKNOWLEDGEMENT)[:-5], reset=True),
        closing_after(b"HTTP/1.1 202 Acc"),
        closing_after(b"this is no HTTP\r\n\r\n"),
        closing_after(response(202, b"not gzip", "Content-Encoding: gzip")),
        closing_after(b"HTTP/1.1 202 A\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"),
        closing_after(b"HTTP/1.1 202 A\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        closing_after(response(202, b'{"data":"' + b"x" * 2**20 + b'"}')),
    ],
    ids=[
        "closed",
        "reset",
        "cut",
        "cut and reset",
        "cut head",
        "no HTTP",
        "no gzip",
        "cut chunk",
        "bad chunk",
        "too long",
    ],
)
async def test_an_answer_that_does_not_come_whole_is_in_doubt(script: Script) -> None:
    """The request has arrived, and whoever took it may have applied it."""
    async with endpoint(script) as found:
        outcome = await written(found.url)

    assert isinstance(outcome, InDoubt)
    assert outcome.status is None
    assert len(found.requests) == 1, "the client itself must not repeat a write"


@pytest.mark.parametrize("begin", [b"", response(202, ACKNOWLEDGEMENT)[:-1]], ids=["none", "most"])
async def test_a_request_ends_with_its_timeout(begin: bytes) -> None:
    """However little comes, however often: the whole request is bounded."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await found.take(reader)
        writer.write(begin)
        await reader.read()  # until the client goes

    async with endpoint(script) as found:
        started = time.monotonic()
        outcome = await written(found.url, request_timeout_seconds=0.3)

    assert outcome == InDoubt("no whole answer within 0.3 s", None, timed_out=True)
    assert time.monotonic() - started < 5


async def test_a_refusal_that_comes_before_the_body_was_read_is_an_answer() -> None:
    """An endpoint need not read a megabyte to say that it is too much."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response(413, b'{"message":"too large"}', "Connection: close"))
        await writer.drain()
        await asyncio.sleep(10)  # neither reads nor closes

    async with endpoint(script) as found:
        started = time.monotonic()
        outcome = await written(found.url, b"x" * 2**25, request_timeout_seconds=8)

    assert isinstance(outcome, Refused)
    assert outcome.is_api
    assert (outcome.reason, outcome.meaning) == ("HTTP 413: too large", "too_large")
    assert time.monotonic() - started < 5


async def test_closing_ends_requests_with_their_answers_lost() -> None:
    """A client that is closed under a request raises nothing at it."""
    taken = asyncio.Event()

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await found.take(reader)
        taken.set()
        await reader.read()

    async with endpoint(script) as found:
        client = PacspaceClient(found.url, API_KEY)
        request = asyncio.create_task(client.write(b"{}", idempotency_key="key-1", items_count=1))
        await taken.wait()
        await client.aclose()

        assert isinstance(await asyncio.wait_for(request, 5), InDoubt)


# -- what is answered ---------------------------------------------------------------------------


async def test_a_compressed_answer_is_read() -> None:
    """A proxy may compress what the API did not."""
    answer = response(202, gzip.compress(ACKNOWLEDGEMENT), "Content-Encoding: gzip")
    async with endpoint(answering(answer)) as found:
        assert await written(found.url) == Acknowledged("batch_1", 202)


async def test_an_answer_packed_twice_is_not_unpacked() -> None:
    """Some kilobytes could fill the memory; whether the write was applied is in doubt."""
    packed = gzip.compress(gzip.compress(bytes(2**24)))
    answer = response(202, packed, "Content-Encoding: gzip, gzip")
    async with endpoint(answering(answer)) as found:
        outcome = await written(found.url)

    assert isinstance(outcome, InDoubt)
    assert "compressed more than once" in outcome.reason


async def test_an_answer_that_nobody_asked_for_answers_nothing() -> None:
    """A second acknowledgement on a kept connection is not taken for that of the next write."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await found.take(reader)
        writer.write(response(202, ACKNOWLEDGEMENT))
        await writer.drain()
        writer.write(response(202, ACKNOWLEDGEMENT.replace(b"batch_1", b"batch_1_again")))
        await writer.drain()
        came.set()
        await reader.read()  # until the client closes

    came = asyncio.Event()
    async with endpoint(script) as found, PacspaceClient(found.url, API_KEY) as client:
        first = await client.write(b"{}", idempotency_key="1", items_count=1)
        await came.wait()
        # The client's side of the loopback has what the server has drained, one turn later.
        await asyncio.sleep(0.05)
        second = await client.write(b"{}", idempotency_key="2", items_count=1)

    assert first == Acknowledged("batch_1", 202)
    assert second == Acknowledged("batch_1", 202)
    assert found.connections == 2


async def test_a_redirect_is_not_followed() -> None:
    """The key goes to the configured host and to no other."""
    async with (
        endpoint(answering(response(202, ACKNOWLEDGEMENT))) as elsewhere,
        endpoint(
            answering(response(307, b"", f"Location: {elsewhere.url}/api/v1/writes"))
        ) as found,
    ):
        outcome = await written(found.url)

    assert isinstance(outcome, Blocked)
    assert elsewhere.requests == []


@pytest.mark.parametrize(
    "header", ["Retry-After: 7", "retry-after: 7", "RETRY-AFTER:   7  "], ids=repr
)
async def test_retry_after_reaches_the_outcome(header: str) -> None:
    """In whichever case the header is written."""
    answer = response(429, b'{"message":"slow down"}', header)
    async with endpoint(answering(answer)) as found:
        assert await written(found.url) == Throttled("HTTP 429: slow down", 429, 7.0)


async def test_a_bare_answer_is_for_probes() -> None:
    """`get` judges nothing: status and body as they came, or why they did not."""
    async with (
        endpoint(answering(response(418, b"teapot"))) as found,
        PacspaceClient(found.url, API_KEY) as client,
    ):
        assert await client.get("/status") == Response(418, {}, b"teapot")
    async with (
        endpoint(closing_after(b"")) as found,
        PacspaceClient(found.url, API_KEY) as client,
    ):
        assert isinstance(await client.get("/status"), AnswerLost)


# -- balances -----------------------------------------------------------------------------------


async def test_a_balance_is_read_with_all_its_members() -> None:
    """Bits beyond 64 bits are kept, and metadata character by character."""
    metadata = b'{ "n":1E400, "d":1.10000000000000000000000000001, "l":"\xc3\xa9" }'
    document = json.dumps({"data": BALANCE | {"currentBits": 2**70, "metadata": 0}}).encode()
    document = document.replace(b'"metadata": 0', b'"other": -1E400, "metadata": ' + metadata)
    async with endpoint(answering(response(200, document))) as found:
        assert await read(found.url) == Balance(
            key="k",
            account_id="a",
            current_bits=2**70,
            total_writes=3,
            last_write_at="2025-06-10T14:30:00.000Z",
            verified=True,
            metadata=msgspec.Raw(metadata),
        )


async def test_only_the_api_knows_that_a_key_is_unknown() -> None:
    """A proxy's 404 says nothing about the key."""
    unknown = b'{"statusCode":404,"error":"Not Found","message":"No record found for key: k"}'
    async with endpoint(answering(response(404, unknown))) as found:
        assert await read(found.url) == UnknownKey("k")
    async with endpoint(answering(response(404, b"<html>nginx</html>"))) as found:
        actual = await read(found.url)

    assert isinstance(actual, ReadFailed)
    assert actual.status == 404


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b'{"message":"Invalid API key"}'),
        (500, b""),
        (302, b""),
        (200, b""),
        (200, b"<html>"),
        (200, b"\xff"),
        (200, b"[]"),
        (200, b"3"),
        (200, b"{}"),
        (200, b'{"data":[]}'),
        (200, b'{"data":{}}'),
        (200, json.dumps({"data": BALANCE | {"currentBits": "500"}}).encode()),
        (200, json.dumps({"data": BALANCE | {"currentBits": 500.0}}).encode()),
        (200, json.dumps({"data": BALANCE | {"currentBits": True}}).encode()),
        (200, json.dumps({"data": BALANCE}).encode()[:-2] + b',"metadata":{"x":"\xff"}}}'),
        (200, b'{"data":' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
        (200, b'{"data":{"currentBits":' + b"9" * 5000 + b"}}"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_whatever_is_no_balance_is_a_failed_read(status: int, body: bytes) -> None:
    """With its status and the beginning of what came; nothing is raised."""
    async with endpoint(answering(response(status, body))) as found:
        actual = await read(found.url)

    assert isinstance(actual, ReadFailed)
    assert actual.status == status
    assert actual.reason.startswith(f"HTTP {status}")
    assert len(actual.reason) < 600


async def test_a_read_that_gets_no_answer_failed_without_a_status() -> None:
    """Lost or never sent: nothing is known of the key."""
    async with endpoint(closing_after(b"")) as found:
        lost = await read(found.url)
    refused = await read(found.url)

    assert isinstance(lost, ReadFailed)
    assert isinstance(refused, ReadFailed)
    assert lost.status is refused.status is None


@pytest.mark.parametrize(
    ("members", "expected", "status"),
    [
        ({}, 500, "agreed"),
        ({}, 499, "mismatch"),
        ({"verified": False}, 500, "pending_verification"),
        ({"verified": False}, 499, "pending_verification"),
        ({"currentBits": -(2**70)}, -(2**70), "agreed"),
    ],
    ids=repr,
)
async def test_agreement_needs_a_verified_balance(
    members: dict[str, object], expected: int, status: str
) -> None:
    """Both numbers come with the verdict; an unverified balance neither agrees nor differs."""
    answer = response(200, json.dumps({"data": BALANCE | members}).encode())
    async with (
        endpoint(answering(answer)) as found,
        PacspaceClient(found.url, API_KEY) as client,
    ):
        agreement = await client.verify_agreement("k", expected=expected)

    assert isinstance(agreement, Agreement)
    assert (agreement.status, agreement.expected) == (status, expected)
    assert isinstance(agreement.balance, Balance)


async def test_a_key_without_records_agrees_with_no_sum() -> None:
    """Not even with 0: the key may be misspelt. A read that failed says nothing at all."""
    unknown = response(404, b'{"message":"No record found for key: k"}')
    async with (
        endpoint(answering(unknown)) as found,
        PacspaceClient(found.url, API_KEY) as client,
    ):
        for expected in (0, 1):
            assert await client.verify_agreement("k", expected=expected) == Agreement(
                "unknown_key", expected, UnknownKey("k")
            )
    async with PacspaceClient(found.url, API_KEY) as client:
        assert isinstance(await client.verify_agreement("k", expected=0), ReadFailed)


# -- as an API of its own -----------------------------------------------------------------------


async def test_recorded_usage_is_in_the_balance_once() -> None:
    """Repeated under its key it counts once, and both parties agree on the sum."""
    events = [UsageEvent("settlement-2025-06", "customer-acme", bits) for bits in (100, 250, 150)]
    async with (
        running(Options(port=0, verify_delay_seconds=0)) as url,
        PacspaceClient(url, API_KEY) as client,
    ):
        outcomes = [await client.record_usage(events, idempotency_key="op-1") for _ in range(2)]
        agreement = await client.verify_agreement("settlement-2025-06", expected=500)

    assert all(isinstance(outcome, Acknowledged) for outcome in outcomes)
    assert outcomes[0] == outcomes[1]
    assert isinstance(agreement, Agreement)
    assert agreement.status == "agreed"
    assert isinstance(agreement.balance, Balance)
    assert agreement.balance.total_writes == 3


async def test_a_client_is_made_from_settings() -> None:
    """Address, key and timeouts are those of the settings."""
    async with endpoint(silence) as found:
        settings = PacspaceSettings.model_validate(
            {
                "pacspace_url": found.url,
                "pacspace_api_key": API_KEY,
                "connect_timeout_seconds": 0.1,
                "request_timeout_seconds": 0.3,
            }
        )
        async with PacspaceClient.from_settings(settings) as client:
            assert await client.get("/x") == AnswerLost(
                "no whole answer within 0.3 s", timed_out=True
            )
    async with endpoint(closing_after(b"")) as found:
        there = settings.model_copy(update={"pacspace_url": found.url})
        async with PacspaceClient.from_settings(there) as client:
            await client.get("/x")
    assert found.requests[0].headers["x-api-key"] == API_KEY


async def test_a_write_of_nothing_is_a_mistake_of_the_caller() -> None:
    """It is refused before anything is sent."""
    async with PacspaceClient("http://127.0.0.1:1", API_KEY) as client:
        with pytest.raises(ValueError, match="at least one event"):
            await client.record_usage([], idempotency_key="op-1")


@pytest.mark.parametrize("key", ["", "op\r\nX-Api-Key: other", "op\x00"])
async def test_a_key_that_no_header_can_carry_is_a_mistake_of_the_caller(key: str) -> None:
    """It would end the header, and begin another."""
    async with PacspaceClient("http://127.0.0.1:1", API_KEY) as client:
        with pytest.raises(ValueError, match="no header can carry"):
            await client.write(b"{}", idempotency_key=key, items_count=1)


@pytest.mark.parametrize(
    "answer",
    [
        {"data": BALANCE | {"key": "another"}},
        {"success": False, "data": BALANCE},
        {"success": "false", "data": BALANCE},
    ],
    ids=str,
)
async def test_a_balance_is_of_its_own_key_and_no_failure(answer: dict[str, object]) -> None:
    """Whatever else it says, it is none: it would be taken for an agreement."""
    async with (
        endpoint(answering(response(200, json.dumps(answer).encode()))) as found,
        PacspaceClient(found.url, API_KEY) as client,
    ):
        assert isinstance(await client.verify_agreement("k", expected=500), ReadFailed)


async def test_no_answer_repeats_the_api_key() -> None:
    """An endpoint that tells what it was sent is quoted without it, in reads and in writes."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            request = await found.take(reader)
            told = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
            writer.write(response(400, told.encode()))

    async with endpoint(script) as found, PacspaceClient(found.url, API_KEY) as client:
        read = await client.get_balance("k")
        refused = await client.write(b"{}", idempotency_key="key-1", items_count=1)
        probed = await client.get("/")

    said = f"{read} {refused} {probed}"
    assert isinstance(refused, Refused)
    assert "pk_test_public.***" in said
    assert "secret" not in said
    assert {each.headers["x-api-key"] for each in found.requests} == {API_KEY}


async def test_a_status_line_that_repeats_the_api_key_is_not_quoted() -> None:
    """What is no HTTP is told of with its beginning."""
    async with (
        endpoint(closing_after(f"{API_KEY}\r\n\r\n".encode())) as found,
        PacspaceClient(found.url, API_KEY) as client,
    ):
        lost = await client.get_balance("k")

    assert isinstance(lost, ReadFailed)
    assert "secret" not in lost.reason
