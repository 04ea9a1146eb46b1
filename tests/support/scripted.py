"""A TCP server that does with each connection what a script says, to the byte."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from socket import SO_LINGER, SOL_SOCKET


@dataclass(frozen=True, slots=True)
class Request:
    """What came over the wire, byte for byte; header names in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes


Script = Callable[["Endpoint", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Endpoint:
    """A TCP server that does with each connection what a script says."""

    script: Script
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    ended: int = 0
    """Connections that have come to their end, on whichever side."""
    url: str = ""
    port: int = 0
    _serving: set[asyncio.Task[None]] = field(default_factory=set)

    async def take(self, reader: asyncio.StreamReader) -> Request:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.requests.append(Request(line, headers, body))
        return self.requests[-1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        self.connections += 1
        try:
            await self.script(self, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        except asyncio.CancelledError:
            pass  # `end`: Python 3.11 reports a task of its streams that is cancelled
        finally:
            self.ended += 1
            writer.close()

    async def end(self) -> None:
        """Cut off the scripts that still serve somebody."""
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)


@asynccontextmanager
async def endpoint(
    script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Endpoint]:
    """Serve by a script while the context lasts, which cuts off whoever is still connected."""
    found = Endpoint(script)
    server = await asyncio.start_server(found.serve, host, port, limit=2**22, ssl=tls)
    found.port = server.sockets[0].getsockname()[1]
    found.url = f"http://{f'[{host}]' if ':' in host else host}:{found.port}"
    try:
        yield found
    finally:
        server.close()
        await found.end()


def response(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def answering(answer: bytes) -> Script:
    """Answer every request of a connection with these bytes."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            await found.take(reader)
            writer.write(answer)

    return script


def closing_after(answer: bytes, *, reset: bool = False) -> Script:
    """Take one request, answer with these bytes and close the connection, or reset it."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await found.take(reader)
        writer.write(answer)
        await writer.drain()
        if reset:
            socket = writer.get_extra_info("socket")
            socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))

    return script


async def silence(
    found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await reader.read()  # until the client goes
