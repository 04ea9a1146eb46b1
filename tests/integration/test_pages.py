"""The server of a worker's pages, asked as probes ask it, and as nobody should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

import httpx
import pytest
from structlog.testing import capture_logs

from ingester.option import Address
from ingester.worker.pages import Page, PageServer


def hello() -> Page:
    return Page(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", "hälló".encode())


def broken() -> Page:
    raise RuntimeError("a bug")


@asynccontextmanager
async def serving(
    page: Callable[[], Page] = hello, *, exchange_seconds_max: float = 10.0
) -> AsyncIterator[int]:
    """Serve one page as /page; yields the port."""
    server = PageServer({"/page": page}, exchange_seconds_max=exchange_seconds_max)
    await server.start(Address("127.0.0.1", 0))
    try:
        yield server.port
    finally:
        server.stop()


async def said_to(port: int, *parts: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_a_page_is_served_with_its_status_and_type() -> None:
    """A client library reads back what was meant, as often as it asks."""
    async with serving() as port, httpx.AsyncClient() as client:
        answers = [await client.get(f"http://127.0.0.1:{port}/page?now=1") for _ in range(3)]

    for answer in answers:
        assert (answer.status_code, answer.reason_phrase) == (503, "Service Unavailable")
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.text == "hälló"


async def test_head_is_get_without_the_body() -> None:
    """With the length that the body would have."""
    async with serving() as port:
        head = await said_to(port, b"HEAD /page HTTP/1.1\r\nHost: h\r\n\r\n")
        whole = await said_to(port, b"GET /page HTTP/1.0\r\n\r\n")

    assert head.endswith(b"\r\n\r\n")
    assert b"Content-Length: 7\r\n" in head
    assert whole.partition(b"\r\n\r\n")[2].decode() == "hälló"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /other HTTP/1.1\r\n\r\n", 404),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"POST /page HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 405),
        (b"GET http://proxy.example/page HTTP/1.1\r\n\r\n", 503),
        (b"GET /page HTTP/2.0\r\n\r\n", 400),
        (b"GET /page\r\n\r\n", 400),
        (b"GET //[ HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00 \xff \r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nCookie: " + b"x" * 20_000 + b"\r\n\r\n", 431),
    ],
)
async def test_what_is_asked_wrongly_is_refused(request_: bytes, status: int) -> None:
    """Each with its status, and the server goes on."""
    async with serving() as port:
        refused = await said_to(port, request_)
        assert (await said_to(port, b"GET /page HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 503 ")

    assert refused.startswith(f"HTTP/1.1 {status} ".encode())


async def test_a_request_may_come_in_pieces() -> None:
    """Its head ends where it ends, however it is cut."""
    pieces = [bytes([each]) for each in b"GET /page HTTP/1.1\r\nHost: h\r\n\r\n"]

    async with serving() as port:
        assert (await said_to(port, *pieces)).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize("said", [b"", b"GET /page HTTP/1.1\r\n"])
async def test_who_asks_nothing_is_disconnected(said: bytes) -> None:
    """A connection costs a file, and there is a limit of these."""
    async with serving(exchange_seconds_max=0.05) as port:
        async with asyncio.timeout(10):
            assert await said_to(port, said) == b""


async def test_a_page_that_fails_is_told_and_logged() -> None:
    """Whoever asks gets a 500, and the log the reason; the server goes on."""
    async with serving(broken) as port:
        with capture_logs() as lines:
            answers = [await said_to(port, b"GET /page HTTP/1.1\r\n\r\n") for _ in range(2)]

    assert all(each.startswith(b"HTTP/1.1 500 ") for each in answers)
    assert [(each["event"], each["path"]) for each in lines] == [("page.failed", "/page")] * 2


async def test_a_stopped_server_takes_nobody() -> None:
    """The address is free again."""
    async with serving() as port:
        pass

    with pytest.raises(ConnectionRefusedError):
        await said_to(port)
