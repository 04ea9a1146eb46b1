"""What the endpoint bears when no Kafka stands before it: the same bodies over bare connections.

The client is as lean as the endpoint and has a core of its own at best; what is measured is a
lower bound of what the endpoint can take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from ingester.wire import IDEMPOTENCY_KEY_HEADER, WRITES_PATH
from tests.benchmark.events import Event
from tests.benchmark.http1 import split_message

_HEAD = (
    f"POST {WRITES_PATH} HTTP/1.1\r\nHost: benchmark\r\nX-Api-Key: pk_test_benchmark.secret\r\n"
    f"Content-Type: application/json\r\n{IDEMPOTENCY_KEY_HEADER}: blast-%d\r\n"
    "Content-Length: %d\r\n\r\n"
).encode()


@dataclass(frozen=True)
class Blast:
    """The requests to send, and what they add up to."""

    bodies: Sequence[bytes]
    requests: int
    """The bodies in turn, each time under a key of its own."""
    items: int
    bits: int


def prepare(events: Sequence[Event], items_max: int, rounds: int) -> Blast:
    """Make bodies of all events as the worker would, to be sent `rounds` times."""
    values = [event.value for event in events]
    bodies = [
        b'{"items":[%s]}' % b",".join(values[first : first + items_max])
        for first in range(0, len(values), items_max)
    ]
    return Blast(
        bodies=bodies,
        requests=len(bodies) * rounds,
        items=len(events) * rounds,
        bits=sum(event.bits for event in events) * rounds,
    )


async def send(blast: Blast, url: str, connections: int) -> None:
    """Post everything, each connection its next request as soon as it has its answer."""
    host, _, port = url.removeprefix("http://").partition(":")
    requests = _requests(blast)
    loop = asyncio.get_running_loop()
    opened = [
        await loop.create_connection(lambda: _Connection(requests), host, int(port))
        for _ in range(connections)
    ]
    try:
        await asyncio.gather(*(protocol.done for _, protocol in opened))
    finally:
        for transport, _ in opened:
            transport.close()


def _requests(blast: Blast) -> Iterator[bytes]:
    for number in range(blast.requests):
        body = blast.bodies[number % len(blast.bodies)]
        yield _HEAD % (number, len(body)) + body


class _Connection(asyncio.Protocol):
    """Takes requests from what all connections share; `done` when there are no more."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self._requests = requests
        self._buffer = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send_next()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        answer = split_message(self._buffer)
        if answer is None:
            return
        self._buffer = answer.rest
        if b" 202 " in answer.head:
            self._send_next()
        elif not self.done.done():
            self.done.set_exception(AssertionError(f"the endpoint answered {answer.head!r}"))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the endpoint closed a connection"))

    def _send_next(self) -> None:
        request = next(self._requests, None)
        if request is not None:
            self._transport.write(request)
        elif not self.done.done():
            self.done.set_result(None)
