"""PacSpace's writes endpoint, reduced to what costs nothing: counts, adds up, acknowledges.

A raw protocol on uvloop, in a process of its own, so that it is never what a run waits for. What
it acknowledges it has counted, and nothing else; a key that it has acknowledged counts once.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import time
from typing import cast

import msgspec
import uvloop

from ingester.wire import IDEMPOTENCY_KEY_HEADER, WRITES_PATH
from tests.benchmark.http1 import Message, split_message

TOTALS_PATH = "/totals"
_POST = b"POST %s " % WRITES_PATH.encode()
_GET_TOTALS = b"GET %s " % TOTALS_PATH.encode()
_KEY = re.compile(rb"\r\n%s: *([^\r]+)" % IDEMPOTENCY_KEY_HEADER.encode(), re.IGNORECASE)


class _Item(msgspec.Struct, gc=False):
    bits: int


class _Write(msgspec.Struct, gc=False):
    items: list[_Item]


class Totals(msgspec.Struct):
    """What was acknowledged since the start; times are this process's own."""

    items: int = 0
    bits: int = 0
    requests: int = 0
    requests_repeated: int = 0
    """Those under a key that had been acknowledged before; their items are not counted again."""
    keys: int = 0
    """Distinct Idempotency-Keys."""
    seconds: float = 0.0
    """From the first request to the last acknowledgement."""
    cpu_seconds: float = 0.0
    """Of this process, within these seconds."""
    latency_seconds: float = 0.0
    """From a whole request to its acknowledgement, on average: timers are late, and cores busy."""
    items_by_tenth: list[int] = msgspec.field(default_factory=list)
    """Those counted in each tenth of a second since the first request, repeated ones left out."""


class Ledger:
    """Adds up acknowledgements."""

    def __init__(self) -> None:
        self.totals = Totals()
        self._keys: set[bytes] = set()
        self._started: tuple[float, float] | None = None

    def request_seen(self) -> None:
        """Start the clocks, if this is the first request."""
        if self._started is None:
            self._started = (time.perf_counter(), time.process_time())

    def acknowledge(self, items: int, bits: int, key: bytes | None, latency_seconds: float) -> int:
        """Count a write that has waited for so long, and return its number, from one on."""
        assert self._started is not None
        totals = self.totals
        totals.requests += 1
        totals.latency_seconds += (latency_seconds - totals.latency_seconds) / totals.requests
        if key in self._keys:
            totals.requests_repeated += 1
        else:
            totals.items += items
            self._count_tenth(items)
            totals.bits += bits
            if key is not None:
                self._keys.add(key)
                totals.keys += 1
        totals.seconds = time.perf_counter() - self._started[0]
        totals.cpu_seconds = time.process_time() - self._started[1]
        return totals.requests

    def _count_tenth(self, items: int) -> None:
        assert self._started is not None
        tenths = self.totals.items_by_tenth
        current = int((time.perf_counter() - self._started[0]) * 10)
        tenths.extend([0] * (current + 1 - len(tenths)))
        tenths[current] += items


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests are answered one after the other."""

    def __init__(self, ledger: Ledger, latency_seconds: float) -> None:
        self._ledger = ledger
        self._latency_seconds = latency_seconds
        self._decode = msgspec.json.Decoder(_Write).decode
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (message := split_message(self._buffer)) is not None:
            self._buffer = message.rest
            self._answer(message)

    def _answer(self, message: Message) -> None:
        if message.head.startswith(_POST):
            self._ledger.request_seen()
            items = self._decode(message.body).items
            found = _KEY.search(message.head)
            bits = sum([item.bits for item in items])
            write = (len(items), bits, found and found[1], time.perf_counter())
            if self._latency_seconds:
                loop = asyncio.get_running_loop()
                loop.call_later(self._latency_seconds, self._acknowledge, *write)
            else:
                self._acknowledge(*write)
        elif message.head.startswith(_GET_TOTALS):
            self._send(b"200 OK", msgspec.json.encode(self._ledger.totals))
        else:
            self._send(b"404 Not Found", b'{"statusCode":404,"error":"Not Found"}')

    def _acknowledge(self, items: int, bits: int, key: bytes | None, received: float) -> None:
        if self._transport.is_closing():
            return
        number = self._ledger.acknowledge(items, bits, key, time.perf_counter() - received)
        self._send(
            b"202 Accepted",
            b'{"statusCode":202,"data":{"batchId":"batch_%d","itemCount":%d,"status":"queued",'
            b'"message":"Write accepted. Items are queued for verification."}}' % (number, items),
        )

    def _send(self, status: bytes, body: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (status, len(body), body)
        )


async def serve(latency_seconds: float) -> None:
    """Serve on a free port of the loopback interface, say which, and go on until killed."""
    ledger = Ledger()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(ledger, latency_seconds), "127.0.0.1", 0
    )
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency-ms", type=float, default=0.0)
    uvloop.run(serve(parser.parse_args().latency_ms / 1000))
