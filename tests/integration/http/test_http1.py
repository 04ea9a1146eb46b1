"""One connection: which answers are taken as whole, and which are lost."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib

import pytest

from ingester.core.delivery import AnswerLost, Response
from tests.support.exchanges import BODY, answers
from tests.support.scripted import (
    Endpoint,
    Script,
    closing_after,
    endpoint,
    response,
)

GZIP = "Content-Encoding: gzip"
CHUNKED = b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n"
UNMARKED = b"HTTP/1.1 202 Accepted\r\n\r\n" + BODY  # its end is that of the connection


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
