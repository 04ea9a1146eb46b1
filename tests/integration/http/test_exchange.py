"""Single exchanges over real connections: which answers are taken, and what connections serve."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ingester.core.delivery import Answer, AnswerLost, NothingSent, Response
from ingester.dialling import Dialler
from ingester.exchange import Exchanges
from tests.support.scripted import (
    Endpoint,
    Script,
    answering,
    closing_after,
    endpoint,
    response,
    silence,
)
from tests.support.waiting import eventually_async

SELF_SIGNED = Path(__file__).parents[2] / "support" / "self_signed.pem"
BODY = b'{"data":{"batchId":"batch_1"}}'
GZIP = "Content-Encoding: gzip"
CHUNKED = b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n"
UNMARKED = b"HTTP/1.1 202 Accepted\r\n\r\n" + BODY  # its end is that of the connection


@asynccontextmanager
async def exchanges(
    url: str,
    *,
    connect_timeout_seconds: float = 5.0,
    request_timeout_seconds: float = 20.0,
    connections_max: int = 4,
) -> AsyncIterator[Exchanges]:
    made = Exchanges(
        url,
        {"X-Test": "1"},
        connect_timeout_seconds=connect_timeout_seconds,
        request_timeout_seconds=request_timeout_seconds,
        connections_max=connections_max,
    )
    try:
        yield made
    finally:
        await made.aclose()


async def answers(url: str, count: int = 1) -> list[Answer]:
    """What one client gets for so many exchanges, one after the other."""
    async with exchanges(url) as made:
        return [await made.exchange("POST", "/", b"body") for _ in range(count)]


def chunks(body: bytes, *, size_end: bytes = b"", trailer: bytes = b"") -> bytes:
    pieces = [body[:7], body[7:8], body[8:]]
    lines = [b"%x%s\r\n%s\r\n" % (len(piece), size_end, piece) for piece in pieces]
    return b"".join(lines) + b"0\r\n" + trailer + b"\r\n"


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


def in_pieces(answer: bytes) -> Script:
    """Answer every request with these bytes, one at a time, and close the connection."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await found.take(reader)
        for position in range(len(answer)):
            writer.write(answer[position : position + 1])
            await writer.drain()
            await asyncio.sleep(0)

    return script


# -- answers ------------------------------------------------------------------------------------

WHOLE = {
    "plain": (response(202, BODY), Response(202, {}, BODY)),
    "empty": (response(500, b""), Response(500, {}, b"")),
    "HTTP/1.0": (
        response(202, BODY).replace(b"HTTP/1.1", b"HTTP/1.0"),
        Response(202, {}, BODY),
    ),
    "bare line feeds": (response(202, BODY).replace(b"\r\n", b"\n"), Response(202, {}, BODY)),
    "no reason": (response(202, BODY).replace(b" Whatever", b""), Response(202, {}, BODY)),
    "chunked": (CHUNKED + b"\r\n" + chunks(BODY), Response(202, {}, BODY)),
    "spaces after sizes": (
        CHUNKED + b"\r\n" + chunks(BODY, size_end=b" "),
        Response(202, {}, BODY),
    ),
    "extensions of chunks": (
        CHUNKED + b"\r\n" + chunks(BODY, size_end=b";a=b"),
        Response(202, {}, BODY),
    ),
    "trailers": (
        CHUNKED + b"Retry-After: 1\r\n\r\n" + chunks(BODY, trailer=b"Retry-After: 9\r\n"),
        Response(202, {"retry-after": "1"}, BODY),
    ),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", Response(204, {}, b"")),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\n\r\n", Response(304, {}, b"")),
    "after hints": (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        + b"HTTP/1.1 103 Early Hints\r\nRetry-After: 9\r\n\r\n" * 2
        + response(202, BODY),
        Response(202, {}, BODY),
    ),
    "retry-after twice": (
        response(429, b"", "Retry-After: 7", "retry-after:  8 \t "),
        Response(429, {"retry-after": "7, 8"}, b""),
    ),
    "retry-after of no ASCII": (
        response(429, b"", "Retry-After: ?").replace(b"?", b"\xe9"),
        Response(429, {"retry-after": "é"}, b""),
    ),
    "control characters": (response(202, BODY, "X-Odd: a\x01b"), Response(202, {}, BODY)),
    "gzip": (response(202, gzip.compress(BODY), "content-encoding: GZip"), Response(202, {}, BODY)),
    "gzip in parts": (
        response(202, gzip.compress(BODY[:9]) + gzip.compress(BODY[9:]), GZIP),
        Response(202, {}, BODY),
    ),
    "gzip of nothing": (response(202, b"", GZIP), Response(202, {}, b"")),
    "chunked gzip": (
        CHUNKED + GZIP.encode() + b"\r\n\r\n" + chunks(gzip.compress(BODY)),
        Response(202, {}, BODY),
    ),
    "deflate": (
        response(202, zlib.compress(BODY), "Content-Encoding: deflate"),
        Response(202, {}, BODY),
    ),
    "deflate without a frame": (
        response(202, raw_deflate(BODY), "Content-Encoding: deflate"),
        Response(202, {}, BODY),
    ),
    "no encoding": (response(202, BODY, "Content-Encoding: identity"), Response(202, {}, BODY)),
    "no such encoding": (response(202, BODY, "Content-Encoding: utf-8"), Response(202, {}, BODY)),
    "until the end": (UNMARKED, Response(202, {}, BODY)),
    "as long as may be": (response(202, b"x" * 2**20), Response(202, {}, b"x" * 2**20)),
    "another protocol": (
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nx",
        Response(101, {}, b""),
    ),
    "another protocol, unnamed": (b"HTTP/1.1 101 Switching\r\n\r\n", Response(101, {}, b"")),
}


@pytest.mark.parametrize(("answer", "expected"), WHOLE.values(), ids=WHOLE)
async def test_a_whole_answer_is_taken(answer: bytes, expected: Response) -> None:
    """However it is written down, and in whichever pieces it comes."""
    scripts = [closing_after(answer)] + ([in_pieces(answer)] if len(answer) < 2**10 else [])
    for script in scripts:
        async with endpoint(script) as found:
            assert [expected] == await answers(found.url)


LOST = {
    "no HTTP": (b"this is no HTTP\r\n\r\n", "no HTTP: Expected HTTP/"),
    "HTTP/2": (response(202, BODY).replace(b"1.1", b"2.1"), "no HTTP: Invalid HTTP version"),
    "no status": (b"HTTP/1.1 20 X\r\n\r\n", "no HTTP: Invalid status code"),
    "a header without a name": (response(202, BODY, ": x"), "no HTTP: Invalid header"),
    "a null byte": (response(202, BODY, "X-Odd: a\0b"), "no HTTP: a header holds a null byte"),
    "two lengths": (response(202, BODY, "Content-Length: 3"), "no HTTP: Duplicate"),
    "a negative length": (b"HTTP/1.1 202 A\r\nContent-Length: -1\r\n\r\n", "no HTTP: Invalid"),
    "length and chunks": (
        CHUNKED + b"Content-Length: 3\r\n\r\n" + chunks(BODY),
        "no HTTP: Content-Length can't be present with",
    ),
    "a bad chunk": (CHUNKED + b"\r\n5\r\nabcde\r\nzz\r\n", "no HTTP: Invalid character in chunk"),
    "a chunk that is longer than it says": (
        CHUNKED + b"\r\n5\r\nabcdefg\r\n0\r\n\r\n",
        "no HTTP: Expected LF after chunk data",
    ),
    "more than it says": (
        b"HTTP/1.1 202 A\r\nContent-Length: 4\r\n\r\n" + BODY,
        "no HTTP: Expected HTTP/",
    ),
    "nothing": (b"", "the connection ended before an answer came"),
    "a hint only": (b"HTTP/1.1 103 Early Hints\r\n\r\n", "ended before the answer was whole"),
    "part of the head": (response(202, BODY)[:20], "ended before the answer was whole"),
    "part of the body": (response(202, BODY)[:-1], "ended before the answer was whole"),
    "part of a chunk": (CHUNKED + b"\r\n5\r\nabc", "ended before the answer was whole"),
    "no last chunk": (
        CHUNKED.replace(b"chunked", b"Chunked") + b"\r\n" + chunks(BODY)[:-5],
        "ended before the answer was whole",
    ),
    "no gzip": (response(202, BODY, GZIP), "the answer is not packed with gzip, as it says"),
    "part of a gzip": (
        response(202, gzip.compress(BODY)[:-9], GZIP),
        "ends within what is packed with gzip",
    ),
    "more than a gzip": (response(202, gzip.compress(BODY) + b"xyz", GZIP), "not packed with gzip"),
    "a gzip in many parts": (
        response(202, gzip.compress(b"") * 17, GZIP),
        "packed in more than 16 parts",
    ),
    "part of a deflate": (
        response(202, zlib.compress(BODY)[:-6], "Content-Encoding: deflate"),
        "ends within what is packed with deflate",
    ),
    "packed twice": (response(202, BODY, "Content-Encoding: gzip, br"), "more than once"),
    "packed twice, in two lines": (response(202, BODY, GZIP, GZIP), "compressed more than once"),
    "packed otherwise": (response(202, BODY, "Content-Encoding: br"), "is compressed with br"),
    "grown too long": (
        response(202, gzip.compress(bytes(2**24)), GZIP),
        "longer than 1048576 bytes",
    ),
    "too long": (response(202, bytes(2**20 + 1)), "longer than 1048576 bytes"),
    "too long, without saying so": (UNMARKED + bytes(2**20), "longer than 1048576 bytes"),
    "too long in chunks": (
        CHUNKED + b"\r\n" + chunks(bytes(2**20 + 1)),
        "longer than 1048576 bytes",
    ),
    "a long header": (response(202, BODY, f"X: {'y' * 2**18}"), "131072 bytes beside its body"),
    "a long name": (response(202, BODY, f"X{'y' * 2**18}: y"), "131072 bytes beside its body"),
    "many headers": (response(202, BODY, *["X: y"] * 2**15), "131072 bytes beside its body"),
    "a long trailer": (
        CHUNKED + b"\r\n" + chunks(BODY, trailer=b"X: %s\r\n" % (b"y" * 2**18)),
        "131072 bytes beside its body",
    ),
    "long extensions": (
        CHUNKED + b"\r\n" + chunks(BODY, size_end=b";" + b"y" * 2**18),
        "131072 bytes beside its body",
    ),
}


@pytest.mark.parametrize(("answer", "words"), LOST.values(), ids=LOST)
async def test_an_answer_that_is_not_whole_or_not_in_order_is_lost(
    answer: bytes, words: str
) -> None:
    """Whoever sent it may have applied the request: it is none, and says why."""
    async with endpoint(closing_after(answer)) as found:
        (lost,) = await answers(found.url)

    assert isinstance(lost, AnswerLost)
    assert words in lost.reason
    assert not lost.timed_out
    assert 1 == len(found.requests), "no request is repeated here"


async def test_what_grows_too_long_is_not_unpacked_further() -> None:
    """Some kilobytes would fill the memory before their length is known."""
    packed = response(202, gzip.compress(bytes(2**26)), GZIP)
    async with endpoint(closing_after(packed)) as found:
        tracemalloc.start()
        try:
            (lost,) = await answers(found.url)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert isinstance(lost, AnswerLost)
    assert peak_bytes < 2**24


async def test_an_answer_without_a_marked_end_is_lost_with_a_broken_connection() -> None:
    """Only an orderly end is that of the answer: after a reset, some of it may be missing."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await closing_after(UNMARKED, reset=True)(found, reader, writer)

    async with endpoint(script) as found:
        (lost,) = await answers(found.url)

    assert isinstance(lost, AnswerLost)
    assert lost.reason.endswith("Connection reset by peer")


# -- connections --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        (response(202, BODY), 1),
        (CHUNKED + b"\r\n" + chunks(BODY), 1),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + response(202, BODY), 1),
        (response(500, BODY), 1),
        (response(202, BODY, "Connection: close"), 3),
        (response(202, BODY).replace(b"1.1", b"1.0"), 3),
        (response(202, BODY, "Connection: keep-alive").replace(b"1.1", b"1.0"), 1),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 3),
        (response(202, BODY) + response(202, BODY), 3),
        (response(202, BODY) + b"H", 3),
    ],
    ids=[
        "plain",
        "chunked",
        "hint",
        "an error",
        "close",
        "HTTP/1.0",
        "HTTP/1.0 kept",
        "another protocol",
        "a second answer",
        "the beginning of one",
    ],
)
async def test_a_connection_serves_as_long_as_it_can(answer: bytes, connections: int) -> None:
    """Three exchanges take one, unless an answer, or what comes with it, ends each."""
    async with endpoint(answering(answer)) as found:
        got = await answers(found.url, 3)

    assert 1 == len(set(map(repr, got)))
    assert isinstance(got[0], Response)
    assert connections == found.connections


async def test_after_an_answer_unasked_for_no_connection_serves_twice() -> None:
    """What came is no answer to a later request, and who sends it once may do so again."""
    talkative = asyncio.Event()

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await found.take(reader)
        writer.write(response(202, b"%d" % found.connections))
        await talkative.wait()
        if found.connections == 1:
            writer.write(response(202, b"unasked"))
        await answering(response(202, b"%d" % found.connections))(found, reader, writer)

    async def first_has_ended() -> bool:
        return found.ended == 1

    async with endpoint(script) as found, exchanges(found.url) as made:
        got = [await made.exchange("GET", "/")]
        talkative.set()
        await eventually_async(first_has_ended)
        got += [await made.exchange("GET", "/") for _ in range(3)]

    assert [Response(202, {}, b"%d" % number) for number in (1, 2, 3, 4)] == got


async def test_a_server_that_speaks_first_is_not_answered_for() -> None:
    """What it says before it was asked is no answer."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(response(202, BODY))
        await asyncio.sleep(0.2)

    async with endpoint(script) as found, exchanges(found.url) as made:
        connecting = await made._open(asyncio.get_running_loop().time() + 5)
        assert not isinstance(connecting, NothingSent)
        await connecting.lost
        assert connecting.unasked
        assert isinstance(await connecting.send(b"GET / HTTP/1.1\r\n\r\n"), AnswerLost)


async def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    """The next exchange opens one of its own and is answered."""

    async def both_have_ended() -> bool:
        return found.ended == 2

    async with endpoint(closing_after(response(202, BODY))) as found, exchanges(found.url) as made:
        await asyncio.gather(*(made.exchange("GET", "/") for _ in range(2)))
        await eventually_async(both_have_ended)
        await asyncio.gather(*(connection.lost for connection in set(made._connections)))
        answer = await made.exchange("GET", "/")

    assert Response(202, {}, BODY) == answer
    assert 3 == found.connections


async def test_a_request_that_met_a_closing_connection_may_have_been_applied() -> None:
    """The server has read it, or has not: nobody here can tell."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await found.take(reader)
        writer.write(response(202, BODY))
        await reader.readuntil(b"\r\n\r\n")

    async with endpoint(script) as found:
        first, second = await answers(found.url, 2)

    assert isinstance(first, Response)
    assert isinstance(second, AnswerLost)
    assert 1 == found.connections


async def test_an_answer_before_the_whole_request_ends_the_connection() -> None:
    """The rest of the request must not be read as another; it is not even sent."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response(413, b""))
        await writer.drain()
        await release.wait()
        unread.append(len(await reader.read(-1)))

    release, unread = asyncio.Event(), list[int]()
    async with endpoint(script) as found, exchanges(found.url) as made:
        large = await made.exchange("POST", "/", bytes(2**25))
        assert not made._kept
        release.set()

        async def ended() -> bool:
            return found.ended == 1

        await eventually_async(ended)

    assert Response(413, {}, b"") == large
    assert sum(unread) < 2**25


@pytest.mark.parametrize("age_seconds", [31.0, 29.0], ids=["after 31 s", "after 29 s"])
async def test_a_free_connection_is_kept_for_half_a_minute(age_seconds: float) -> None:
    """Then it is closed, though nobody asks for one."""
    loop = asyncio.get_running_loop()
    async with endpoint(answering(response(202, BODY))) as found, exchanges(found.url) as made:
        await made.exchange("GET", "/")
        (kept,) = made._kept
        kept.kept_since = loop.time() - age_seconds
        made._look()
        assert (age_seconds > 30) == (made._kept == [])
        await made.exchange("GET", "/")

    assert (2 if age_seconds > 30 else 1) == found.connections


async def test_the_connection_used_last_is_used_next() -> None:
    """A burst's other connections come of age."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await answering(response(202, b"%d" % found.connections))(found, reader, writer)

    async with endpoint(script) as found, exchanges(found.url) as made:
        await asyncio.gather(*(made.exchange("GET", "/") for _ in range(3)))
        assert 3 == len(made._kept)
        served = {repr(await made.exchange("GET", "/")) for _ in range(6)}

    assert 1 == len(served)


# -- timeouts, cancellation, closing ------------------------------------------------------------


async def test_a_cancelled_exchange_ends_its_connection_and_makes_room() -> None:
    """An answer that comes later is nobody's; whoever waits for a connection has its turn."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await found.take(reader)
        if found.connections == 1:
            await reader.read()  # until the client goes
        else:
            writer.write(response(202, BODY))

    async def arrived() -> bool:
        return len(found.requests) == 1

    async def gone() -> bool:
        return found.ended >= 1

    async with endpoint(script) as found, exchanges(found.url, connections_max=1) as made:
        first, second, third = (
            asyncio.create_task(made.exchange("POST", "/", b"%d" % number)) for number in range(3)
        )
        await eventually_async(arrived)
        second.cancel()
        first.cancel()
        answer = await third
        await eventually_async(gone)
        ended = await asyncio.gather(first, second, return_exceptions=True)

    assert all(isinstance(each, asyncio.CancelledError) for each in ended)
    assert Response(202, {}, BODY) == answer
    assert [b"0", b"2"] == [request.body for request in found.requests]


async def test_a_whole_request_is_bounded_though_nothing_was_sent_yet() -> None:
    """Whoever waits for TLS says so, and that nothing was sent."""
    async with (
        endpoint(silence) as found,
        exchanges(
            found.url.replace("http:", "https:"), request_timeout_seconds=0.3, connections_max=1
        ) as made,
    ):
        got = await asyncio.gather(*(made.exchange("GET", "/") for _ in range(3)))
        assert 0 == made._under_way

    assert [NothingSent("no connection within 0.3 s", "timeout")] * 3 == got


async def test_each_exchange_has_its_own_deadline() -> None:
    """One that is answered in time is not lost with one that is not."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            request = await found.take(reader)
            if request.body == b"slow":
                await reader.read()
            await asyncio.sleep(0.15)
            writer.write(response(202, BODY))

    lost = AnswerLost("no whole answer within 0.4 s", timed_out=True)
    async with endpoint(script) as found, exchanges(found.url, request_timeout_seconds=0.4) as made:

        async def quick() -> list[Answer]:
            return [await made.exchange("POST", "/", b"quick") for _ in range(5)]

        slow = asyncio.create_task(made.exchange("POST", "/", b"slow"))
        assert [Response(202, {}, BODY)] * 5 == await quick()
        later = asyncio.create_task(made.exchange("POST", "/", b"slow"))
        assert [lost, lost] == await asyncio.gather(slow, later)
        assert not made._deadlines


async def test_closing_ends_every_exchange_and_every_connection() -> None:
    """Sent ones are lost, those that wait were not sent, and later ones are not either."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while (await found.take(reader)).body == b"quick":
            writer.write(response(202, BODY))
        await reader.read()  # until the client goes

    async def arrived() -> bool:
        return len(found.requests) == 3

    async def gone() -> bool:
        return found.ended == found.connections == 2

    async with endpoint(script) as found, exchanges(found.url, connections_max=2) as made:
        await asyncio.gather(*(made.exchange("POST", "/", b"quick") for _ in range(2)))
        waiting = asyncio.create_task(made.exchange("POST", "/", b"hang"))
        await eventually_async(arrived)
        assert 1 == len(made._kept)
        await made.aclose()

        assert isinstance(await waiting, AnswerLost)
        assert isinstance(await made.exchange("GET", "/"), NothingSent)
        assert not made._connections
        await eventually_async(gone)


async def test_who_waits_for_a_connection_when_all_are_closed_has_sent_nothing() -> None:
    """Each exchange ends, and in the order in which they came."""
    async with endpoint(silence) as found, exchanges(found.url, connections_max=1) as made:
        tasks = [asyncio.create_task(made.exchange("GET", "/")) for _ in range(3)]

        async def connected() -> bool:
            return found.connections == 1 and bool(made._deadlines)

        await eventually_async(connected)
        await made.aclose()
        first, *others = await asyncio.wait_for(asyncio.gather(*tasks), 5)

    assert isinstance(first, AnswerLost)
    assert [NothingSent("no connection: closed here")] * 2 == others


# -- reaching the server ------------------------------------------------------------------------


@pytest.fixture
def certified(monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What a server for localhost needs, and clients that trust it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(SELF_SIGNED))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(SELF_SIGNED)
    return context


async def test_tls_serves_many_exchanges(certified: ssl.SSLContext) -> None:
    """Over one connection, with bodies beyond one record of TLS, and closed in order."""
    async with endpoint(answering(response(202, bytes(2**18))), tls=certified) as found:
        got = await answers(f"https://localhost:{found.port}", 3)

        async def gone() -> bool:
            return found.ended == 1

        await eventually_async(gone)

    assert [Response(202, {}, bytes(2**18))] * 3 == got
    assert 1 == found.connections
    assert [b"body"] * 3 == [request.body for request in found.requests]
    assert f"localhost:{found.port}" == found.requests[0].headers["host"]


@pytest.mark.parametrize(
    "script",
    [
        closing_after(b""),
        closing_after(b"", reset=True),
        closing_after(response(202, BODY)[:-1]),
        closing_after(response(202, BODY)[:-1], reset=True),
    ],
    ids=["closed", "reset", "cut", "cut and reset"],
)
async def test_an_answer_can_be_lost_within_tls(script: Script, certified: ssl.SSLContext) -> None:
    """As it can without."""
    async with endpoint(script, tls=certified) as found:
        (lost,) = await answers(f"https://localhost:{found.port}")

    assert isinstance(lost, AnswerLost)


async def test_a_server_that_hangs_up_within_the_handshake_was_sent_nothing() -> None:
    """It is said in words, though the loop has none for it."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.read(1)

    async with endpoint(script) as found:
        (answer,) = await answers(found.url.replace("http:", "https:"))

    assert isinstance(answer, NothingSent)
    assert answer.reason.startswith(f"no connection to 127.0.0.1:{found.port}: ")
    assert not answer.reason.endswith(": ")


async def test_an_address_of_ipv6_is_one() -> None:
    """It stands in brackets where a port may follow."""
    async with endpoint(answering(response(202, BODY)), host="::1") as found:
        assert [Response(202, {}, BODY)] == await answers(found.url)

    assert f"[::1]:{found.port}" == found.requests[0].headers["host"]


@dataclass
class Names:
    """What the system's resolver finds, for whichever name it is asked."""

    addresses: tuple[str, ...] = ()
    lookups: list[str] = field(default_factory=list)

    def getaddrinfo(self, host: str, port: int, *_: object, **__: object) -> list[object]:
        self.lookups.append(host)
        time.sleep(0.05)  # in a thread, as the real one
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (address, port)) for address in self.addresses]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Stands for the system's resolver where the loop asks that of Python."""
    found = Names()
    monkeypatch.setattr(socket, "getaddrinfo", found.getaddrinfo)
    return found


resolved = pytest.mark.asyncio(loop_factories=["asyncio"])  # uvloop asks the system itself


@resolved
async def test_every_address_of_a_name_is_tried(names: Names) -> None:
    """One at which nobody listens keeps nothing from being sent to the next."""
    names.addresses = ("127.0.0.3", "127.0.0.4", "127.0.0.2")
    async with endpoint(answering(response(202, BODY)), host="127.0.0.2") as found:
        got = await answers(f"http://pacspace.test:{found.port}", 2)
    (refused,) = await answers(f"http://pacspace.test:{found.port}")

    assert [Response(202, {}, BODY)] * 2 == got
    assert NothingSent(f"nothing listens on pacspace.test:{found.port}", "refused") == refused


@resolved
@pytest.mark.parametrize("other", [closing_after(b""), silence], ids=["no TLS", "silent"])
async def test_an_address_without_tls_is_passed_over(
    other: Script, names: Names, certified: ssl.SSLContext
) -> None:
    """Whoever answers there first is not the server, or is on its way out."""
    names.addresses = ("127.0.0.2", "127.0.0.3")
    async with (
        endpoint(answering(response(202, BODY)), host="127.0.0.3", tls=certified) as found,
        endpoint(other, host="127.0.0.2", port=found.port) as passed,
        exchanges(f"https://localhost:{found.port}", connect_timeout_seconds=0.5) as made,
    ):
        assert Response(202, {}, BODY) == await made.exchange("GET", "/")

    assert 1 == passed.connections


@resolved
async def test_a_name_is_looked_up_once_for_all_that_connect(names: Names) -> None:
    """What was found is used in turn, and for a while; what was not is asked for again."""
    url = "http://pacspace.test"
    async with exchanges(url, connections_max=8) as made:
        got = await asyncio.gather(*(made.exchange("GET", "/") for _ in range(8)))
    assert [NothingSent("the name pacspace.test does not resolve", "dns")] * 8 == got
    assert ["pacspace.test"] == names.lookups

    names.addresses = ("127.0.0.2", "127.0.0.3")
    closing = answering(response(202, BODY, "Connection: close"))
    async with (
        endpoint(closing, host="127.0.0.2") as one,
        endpoint(closing, host="127.0.0.3", port=one.port) as other,
        exchanges(f"{url}:{one.port}", connections_max=8) as made,
    ):
        await asyncio.gather(*(made.exchange("GET", "/") for _ in range(8)))
        await asyncio.gather(*(made.exchange("GET", "/") for _ in range(8)))

    assert ["pacspace.test"] * 2 == names.lookups
    assert 8 == one.connections == other.connections


@pytest.mark.parametrize("url", ["", "pacspace.io", "ftp://pacspace.io", "https://", "//x"])
async def test_what_is_no_base_url_is_a_mistake_of_the_caller(url: str) -> None:
    """It is refused before anything could be sent elsewhere."""
    with pytest.raises(ValueError, match="no base URL of a server"):
        async with exchanges(url):
            pass


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://app.pacspace.io", "app.pacspace.io"),
        ("HTTPS://App.PacSpace.io:443/", "app.pacspace.io"),
        ("http://app.pacspace.io:443", "app.pacspace.io:443"),
        ("http://[::1]:80", "[::1]"),
        ("http://[::1]:8080", "[::1]:8080"),
        ("http://127.0.0.1:80", "127.0.0.1"),
        ("https://faß.example", "xn--fa-hia.example"),
        ("https://pacspace.io.", "pacspace.io"),
    ],
)
def test_the_host_header_is_that_of_the_url(url: str, authority: str) -> None:
    """Without the scheme's own port, in ASCII, and without the dot that ends a full name."""
    assert authority == Dialler(url, connect_timeout_seconds=1).authority
