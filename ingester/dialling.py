"""Opens connections to one server: its name, its addresses, TCP and TLS.

Whatever keeps one from being opened is told in an operator's words; nothing was sent then.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar
from urllib.parse import urlsplit

import aiohappyeyeballs
import certifi
import idna

from ingester.core.delivery import NothingSent
from ingester.option import Address

_ADDRESSES_KEPT_SECONDS: Final = 10.0  # a server that moves is found by then
_NEXT_ADDRESS_SECONDS: Final = 0.25  # RFC 8305: a silent address holds up the others so long
_TLS_CLOSE_SECONDS: Final = 1.0  # for the server's part of a farewell that nothing depends on
_PORTS: Final = {"http": 80, "https": 443}

Protocol = TypeVar("Protocol", bound=asyncio.Protocol)


class Dialler:
    """Connects to the server of a URL, to each of its addresses in turn."""

    def __init__(self, url: str, *, connect_timeout_seconds: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError(f"no base URL of a server: {url!r}")
        host = parts.hostname
        if not host.isascii():
            host = idna.encode(host, uts46=True).decode()
        self._server = Address(host, parts.port or _PORTS[parts.scheme])
        self._is_secure = parts.scheme == "https"
        self._connect_timeout_seconds = connect_timeout_seconds
        self._context: ssl.SSLContext | None = None  # made by the first connection that needs it
        # What a lookup has found, the next address first, and until when it is believed; `_lookup`
        # is one under way, which all that connect meanwhile wait for.
        self._found: deque[aiohappyeyeballs.AddrInfoType] = deque()
        self._stale_at_seconds = 0.0
        self._lookup: asyncio.Task[None] | None = None

        shown = str(self._server._replace(host=host.rstrip(".")))
        is_usual = self._server.port == _PORTS[parts.scheme]
        self.authority = shown.rpartition(":")[0] if is_usual else shown
        """Host, and port unless it is the scheme's own, as the Host header has it."""

    async def connect(self, factory: Callable[[], Protocol]) -> Protocol | NothingSent:
        """Open a connection for the protocol that the factory makes, or say why there is none."""
        try:
            return await self._connect(factory)
        except Exception as error:  # noqa: BLE001 -- whatever keeps it from connecting is told
            return self._not_sent(error)

    async def _connect(self, factory: Callable[[], Protocol]) -> Protocol:
        loop = asyncio.get_running_loop()
        if self._is_secure and self._context is None:
            self._context = _ssl_context()
        addresses = await self._addresses()
        while True:
            peer = None
            try:
                async with asyncio.timeout(self._connect_timeout_seconds):
                    connected = await aiohappyeyeballs.start_connection(
                        addresses,
                        happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS,
                        interleave=1,
                        loop=loop,
                    )
                    peer = connected.getpeername()
                    _, protocol = await loop.create_connection(
                        factory,
                        sock=connected,
                        ssl=self._context,
                        # Certificates do without the dot that ends a full name.
                        server_hostname=self._server.host.rstrip(".") if self._is_secure else None,
                        ssl_shutdown_timeout=_TLS_CLOSE_SECONDS if self._is_secure else None,
                    )
                    return protocol
            except OSError:  # a timeout is one, and so is a failure of TLS
                if peer is None:
                    raise  # that was of all addresses
                aiohappyeyeballs.remove_addr_infos(addresses, peer)
                if not addresses:
                    raise

    async def _addresses(self) -> list[aiohappyeyeballs.AddrInfoType]:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._stale_at_seconds:
            if self._lookup is None:
                self._lookup = loop.create_task(self._look_up())
            await asyncio.shield(self._lookup)
        addresses = list(self._found)
        self._found.rotate(-1)
        return addresses

    async def _look_up(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._found = deque(
                await loop.getaddrinfo(
                    *self._server,
                    type=socket.SOCK_STREAM,
                    proto=socket.IPPROTO_TCP,
                    flags=socket.AI_NUMERICHOST if self._is_numeric() else socket.AI_ADDRCONFIG,
                )
            )
            self._stale_at_seconds = loop.time() + _ADDRESSES_KEPT_SECONDS
        finally:
            self._lookup = None

    def _is_numeric(self) -> bool:
        try:
            ipaddress.ip_address(self._server.host)
        except ValueError:
            return False
        return True

    def _not_sent(self, error: Exception) -> NothingSent:
        where = self._server
        match error:
            case socket.gaierror() | UnicodeError():
                return NothingSent(f"the name {where.host} does not resolve", "dns")
            case ssl.SSLCertVerificationError(verify_message=why):
                return NothingSent(
                    f"the certificate of {where} is not accepted: {why}", "certificate"
                )
            case ssl.SSLError():
                why = (error.reason or str(error)).replace("_", " ").lower()
                return NothingSent(f"no TLS with {where}: {why}", "tls")
            case OSError(errno=errno.ECONNREFUSED):
                return NothingSent(f"nothing listens on {where}", "refused")
            case OSError(errno=errno.ETIMEDOUT):
                return NothingSent(f"{where} does not answer", "timeout")
            case OSError(errno=int(number)):
                # The system's words: a library's own repeat the address, or name one of several.
                return NothingSent(f"no connection to {where}: {os.strerror(number)}")
            case TimeoutError():
                seconds = self._connect_timeout_seconds
                return NothingSent(f"no connection within {seconds:g} s", "timeout")
        return NothingSent(f"no connection to {where}: {str(error) or type(error).__name__}")


def _ssl_context() -> ssl.SSLContext:
    """Trust whom the environment names (SSL_CERT_FILE, SSL_CERT_DIR), or else the public ones."""
    named = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
    return ssl.create_default_context(cafile=None if named else certifi.where())
