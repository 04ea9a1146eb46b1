"""Serves a few pages that change nothing: GET and HEAD, one request a connection.

That is what probes and scrapes need. A library's server does more, and takes 0.1 s of CPU at each
start of a worker, and 10 MB of its memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import structlog

from ingester.option import Address

_HEAD_BYTES_MAX: Final = 16 * 1024  # what other servers take at most is 8 to 64 KiB
_HEAD_END: Final = b"\r\n\r\n"
_METHODS: Final = ("GET", "HEAD")


class Page(NamedTuple):
    """What is answered."""

    status: HTTPStatus
    content_type: str
    body: bytes


class PageServer:
    """One listener in the running loop; each page is made when somebody asks for its path."""

    def __init__(
        self, pages: Mapping[str, Callable[[], Page]], *, exchange_seconds_max: float = 10.0
    ) -> None:
        """Whoever takes longer to ask and to take the answer is disconnected."""
        self._pages = pages
        self._exchange_seconds_max = exchange_seconds_max
        self._server: asyncio.Server | None = None

    async def start(self, listen: Address) -> None:
        """Listen; OSError when the address cannot be had."""
        self._server = await asyncio.start_server(self._serve, *listen, limit=_HEAD_BYTES_MAX)

    @property
    def port(self) -> int:
        """Where it listens, which the system may have chosen."""
        assert self._server is not None, "it has to be started"
        return int(self._server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        """Listen no more; whoever is being answered gets the rest."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._exchange_seconds_max):
                writer.write(await self._answer(reader))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # gone without having asked, or too slow
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(_HEAD_END)
        except asyncio.LimitOverrunError:
            return _encoded(_only(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        try:
            method, target, version = head.partition(b"\r\n")[0].decode("ascii").split(" ")
            path = urlsplit(target).path
        except ValueError:
            return _encoded(_only(HTTPStatus.BAD_REQUEST))
        if not version.startswith("HTTP/1."):
            return _encoded(_only(HTTPStatus.BAD_REQUEST))
        if path not in self._pages:
            return _encoded(_only(HTTPStatus.NOT_FOUND))
        if method not in _METHODS:
            return _encoded(_only(HTTPStatus.METHOD_NOT_ALLOWED))
        try:
            page = self._pages[path]()
        except Exception:  # noqa: BLE001 -- to tell whoever asked, and no reason not to settle
            structlog.get_logger().exception("page.failed", path=path)
            page = _only(HTTPStatus.INTERNAL_SERVER_ERROR)
        return _encoded(page, with_body=method != "HEAD")


def _only(status: HTTPStatus) -> Page:
    return Page(status, "text/plain; charset=utf-8", f"{status}: {status.phrase}".encode())


def _encoded(page: Page, *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {page.status} {page.status.phrase}\r\n"
        f"Content-Type: {page.content_type}\r\n"
        f"Content-Length: {len(page.body)}\r\n"
        f"Allow: {', '.join(_METHODS)}\r\n"
        f"Date: {formatdate(usegmt=True)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (page.body if with_body else b"")
