"""One HTTP/1.1 connection to a server: a request out, its answer in, and then the next.

An answer is taken when it is whole, well-formed and not longer than it may be; else it is lost.
What comes without having been asked for answers nothing, and ends the connection.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from typing import Final, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from ingester.core.delivery import AnswerLost, Response

_ANSWER_BYTES_MAX: Final = 1024 * 1024  # an answer is some hundred bytes; a bucket's may be more
_FRAMING_BYTES_MAX: Final = 128 * 1024  # head, chunk sizes and trailers: a proxy's are some KiB
_SWITCHING_PROTOCOLS: Final = 101
_WINDOW_BITS: Final = 15
_PACKED_PARTS_MAX: Final = 16  # gzip may come in parts, each of which copies what is behind it
_HEADERS: Final = frozenset(
    [b"content-encoding", b"content-length", b"retry-after", b"transfer-encoding"]
)


class Connection(asyncio.Protocol):
    """Carries one exchange at a time; made by the loop that connects."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        # As aiohttp reads answers: what servers in the field send is not always to the letter.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )
        self.lost = self._loop.create_future()
        """Done as soon as there is no connection any more."""
        self.unasked = False
        """Whether something came that nobody had asked for."""
        self.kept_since = 0.0
        """When it last became free, by the clock of the loop; kept by who keeps it."""
        self._open = False
        self._reusable = True  # as far as the answers tell that have come
        # Of the exchange under way: who waits for its answer, and what has come of that.
        self._waiter: asyncio.Future[Response | AnswerLost] | None = None
        self._received_bytes = 0
        self._headed = False
        self._whole = False
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._body = bytearray()

    @property
    def reusable(self) -> bool:
        """Whether another exchange can follow."""
        return self._open and self._reusable and not self.unasked and self._waiter is None

    def send(self, request: bytes) -> asyncio.Future[Response | AnswerLost]:
        """Send a request; the future holds its answer, or that there will be none."""
        assert self._waiter is None
        self._waiter = waiter = self._loop.create_future()
        self._received_bytes = 0
        self._headed = self._whole = False
        if self._open:
            self._transport.write(request)
        else:
            self._settle(AnswerLost("the connection was closed before the request was sent"))
        return waiter

    def lose(self, answer: AnswerLost) -> None:
        """End the exchange under way, if there is one, with this; the connection ends with it."""
        self._reusable = False
        if self._waiter is not None:
            self._settle(answer)
        self.close()

    def close(self) -> None:
        """Close the connection; whatever has not left of a request never will."""
        if not self._open:
            return
        self._open = False
        if self._whole and not self._transport.get_write_buffer_size():
            self._transport.close()
        else:
            self._transport.abort()

    # -- what the loop tells ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._open = True

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._parser is None:
            self.unasked = self.unasked or self._open
            self.close()
            return
        self._received_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if not (self._whole and self._status == _SWITCHING_PROTOCOLS):
                self.lose(AnswerLost(f"the answer is no HTTP: {error.__context__ or error}"))
                return
            self._reusable = False
        if self._received_bytes > _FRAMING_BYTES_MAX and (excess := self._excess()):
            self.lose(AnswerLost(excess))
        elif self._whole:
            self._finish()

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._open = False
        self._end(error)
        self._parser = None  # it holds this connection, as this one it
        self.lost.set_result(None)

    # -- what the parser tells ----------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._whole:
            self.unasked = True
            return
        self._headers = {}
        self._body = bytearray()

    def on_header(self, name: bytes, value: bytes) -> None:
        if b"\0" in value:
            raise ValueError("a header holds a null byte")
        name = name.lower()
        if name in _HEADERS and not self._headed and not self._whole:
            before = self._headers.get(name)
            self._headers[name] = value if before is None else before + b", " + value

    def on_headers_complete(self) -> None:
        if self._whole:
            return
        assert self._parser is not None
        self._headed = True
        self._status = self._parser.get_status_code()
        self._reusable = self._parser.should_keep_alive()

    def on_body(self, piece: bytes) -> None:
        if not self._whole:
            self._body += piece

    def on_message_complete(self) -> None:
        if 100 <= self._status < 200 and self._status != _SWITCHING_PROTOCOLS:
            self._headed = False  # those announce an answer
        else:
            self._whole = True

    # -- what becomes of the exchange ---------------------------------------------------------

    def _excess(self) -> str | None:
        if len(self._body) > _ANSWER_BYTES_MAX:
            return f"the answer is longer than {_ANSWER_BYTES_MAX} bytes"
        if self._received_bytes - len(self._body) > _FRAMING_BYTES_MAX:
            return f"the answer has more than {_FRAMING_BYTES_MAX} bytes beside its body"
        return None

    def _end(self, error: Exception | None) -> None:
        """Take the end of the connection for that of the answer, if nothing else marks that."""
        self._reusable = False
        if self._waiter is not None:
            coding = self._headers.get(b"transfer-encoding", b"").lower()
            marked = b"content-length" in self._headers or b"chunked" in coding
            if error is None and self._headed and not marked:
                self._whole = True
                self._finish()
            else:
                began = "the answer was whole" if self._received_bytes else "an answer came"
                number = getattr(error, "errno", None)
                why = f": {os.strerror(number)}" if number else f": {error}" if error else ""
                self._settle(AnswerLost(f"the connection ended before {began}{why}"))
        self.close()

    def _finish(self) -> None:
        if self._transport.get_write_buffer_size():
            self._reusable = False  # it answered before it had read everything
        self._settle(self._answer())

    def _answer(self) -> Response | AnswerLost:
        body = bytes(self._body)
        encoding = self._headers.get(b"content-encoding")
        if encoding is not None and body:
            unpacked = _unpack(encoding.decode("latin-1").strip().lower(), body)
            if isinstance(unpacked, AnswerLost):
                return unpacked
            body = unpacked
        after = self._headers.get(b"retry-after")
        kept = {"retry-after": after.decode("latin-1").strip()} if after is not None else {}
        return Response(self._status, kept, body)

    def _settle(self, answer: Response | AnswerLost) -> None:
        waiter, self._waiter = self._waiter, None
        assert waiter is not None
        if not waiter.done():  # by now nobody may wait for it any more
            waiter.set_result(answer)


def _unpack(encoding: str, body: bytes) -> bytes | AnswerLost:
    """What a body holds that a proxy has packed though nobody asked it to."""
    if "," in encoding:
        # Packed once, a body cannot grow beyond what is refused below; twice, it fills the memory.
        return AnswerLost("the answer is compressed more than once")
    match encoding:
        case "gzip":
            window_bits = 16 + _WINDOW_BITS
        case "deflate":  # some servers leave out the frame that tells how it was made
            window_bits = _WINDOW_BITS if body[0] & 0x0F == zlib.DEFLATED else -_WINDOW_BITS
        case "br" | "zstd":
            return AnswerLost(f"the answer is compressed with {encoding}, which nobody asked for")
        case _:
            return body
    unpacked = bytearray()
    for _ in range(_PACKED_PARTS_MAX):
        member = zlib.decompressobj(window_bits)
        try:
            unpacked += member.decompress(body, _ANSWER_BYTES_MAX + 1 - len(unpacked))
        except zlib.error as error:
            return AnswerLost(f"the answer is not packed with {encoding}, as it says: {error}")
        if len(unpacked) > _ANSWER_BYTES_MAX:
            return AnswerLost(f"the answer is longer than {_ANSWER_BYTES_MAX} bytes")
        if not member.eof:
            return AnswerLost(f"the answer ends within what is packed with {encoding}")
        body = member.unused_data
        if not body:
            return bytes(unpacked)
    return AnswerLost(f"the answer is packed in more than {_PACKED_PARTS_MAX} parts")
