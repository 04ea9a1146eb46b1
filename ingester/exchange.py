"""Single exchanges with one HTTP/1.1 server: prepared bytes out, a bounded answer in.

Connects and parses with aiohttp, below its client: that one's request and response objects take
0.15 ms of CPU an exchange, httpx on top of them 0.25 ms, this 0.04 ms. It tells what was certainly
not sent from what may have been. Redirects, cookies and proxies there are none.
"""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import certifi
from yarl import URL

from ingester.core.delivery import Answer, AnswerLost, NothingSent, Response
from ingester.option import Address

_ANSWER_BYTES_MAX: Final = 1024 * 1024  # an answer is some hundred bytes; a bucket's may be more
_KEEPALIVE_SECONDS: Final = 30.0  # below the idle limits usual for load balancers (60 s and more)


class Exchanges:
    """Makes exchanges over kept connections; more than `connections_max` at a time wait."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        connect_timeout_seconds: float,
        request_timeout_seconds: float,
        connections_max: int,
    ) -> None:
        self._url = URL(url)
        lines = {"Host": self._url.host_port_subcomponent, **headers}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._connect_timeout_seconds = connect_timeout_seconds
        self._request_timeout_seconds = request_timeout_seconds
        self._connections_max = connections_max
        self._timeouts = aiohttp.ClientTimeout(sock_connect=connect_timeout_seconds)
        self._connector: _Connector | None = None  # made by the first exchange, inside the loop
        self._target: aiohttp.ClientRequest | None = None  # with it: says where to connect to

    async def aclose(self) -> None:
        """Close all connections; exchanges under way end with their answers lost."""
        if self._connector is not None:
            await self._connector.close()

    async def exchange(
        self, method: str, path: str, body: bytes = b"", headers: str = ""
    ) -> Answer:
        """Send one request; `headers` are further lines, each with its line end.

        Whatever happens is an answer, nothing is raised.
        """
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\n{self._head}{headers}{length}\r\n".encode()
        connection: aiohttp.connector.Connection | None = None
        whole = asyncio.timeout(self._request_timeout_seconds)
        try:
            async with whole:
                connection = await self._connect()
                return await _converse(connection, head, body)
        except TimeoutError:
            if connection is not None:
                return AnswerLost(
                    f"no whole answer within {self._request_timeout_seconds:g} s", timed_out=True
                )
            seconds = (
                self._request_timeout_seconds if whole.expired() else self._connect_timeout_seconds
            )
            return NothingSent(f"no connection within {seconds:g} s", "timeout")
        except Exception as error:  # noqa: BLE001 -- whatever a server provokes is an answer
            return self._not_sent(error) if connection is None else _lost(error)
        finally:
            if connection is not None:
                connection.close()  # without effect on one that is kept

    async def _connect(self) -> aiohttp.connector.Connection:
        if self._connector is None or self._target is None:
            context = _ssl_context() if self._url.scheme == "https" else True
            self._connector = _Connector(
                limit=self._connections_max, keepalive_timeout=_KEEPALIVE_SECONDS
            )
            self._target = aiohttp.ClientRequest(
                "POST", self._url, loop=asyncio.get_running_loop(), ssl=context
            )
        return await self._connector.connect(self._target, [], self._timeouts)

    def _not_sent(self, error: Exception) -> NothingSent:
        where = Address(self._url.raw_host or "", self._url.port or 0)
        match error, getattr(error, "os_error", error):
            case aiohttp.ClientConnectorDNSError(), _:
                return NothingSent(f"the name {where.host} does not resolve", "dns")
            case _, ssl.SSLCertVerificationError(verify_message=why):
                return NothingSent(
                    f"the certificate of {where} is not accepted: {why}", "certificate"
                )
            case _, ssl.SSLError() as cause:
                why = (cause.reason or str(cause)).replace("_", " ").lower()
                return NothingSent(f"no TLS with {where}: {why}", "tls")
            case _, OSError(errno=errno.ECONNREFUSED):
                return NothingSent(f"nothing listens on {where}", "refused")
            case _, OSError(errno=errno.ETIMEDOUT):
                return NothingSent(f"{where} does not answer", "timeout")
            case _, OSError(errno=int(number)):
                # The system's words: a library's own repeat the address, or name one of several.
                return NothingSent(f"no connection to {where}: {os.strerror(number)}")
        return NothingSent(f"no connection to {where}: {error}")


class _Connector(aiohttp.TCPConnector):
    """Closes kept connections on which something came that nobody had asked for.

    The pool itself would hand them out, and what had come would be read as the next answer: the
    second acknowledgement of one batch as the first of another. An endpoint that does so once gets
    a connection for each request from then on.
    """

    async def _get(self, key: Any, traces: Any) -> aiohttp.connector.Connection | None:
        while (connection := await super()._get(key, traces)) is not None:
            assert connection.protocol is not None
            if not connection.protocol.should_close:
                return connection
            connection.close()
            self._force_close = True
        return None


async def _converse(connection: aiohttp.connector.Connection, head: bytes, body: bytes) -> Answer:
    """Send a request and read its answer; the connection is kept if it can serve another."""
    protocol, transport = connection.protocol, connection.transport
    assert protocol is not None
    assert transport is not None
    protocol.set_response_params(read_until_eof=True)
    transport.write(head + body)  # `writelines` never ends in Python 3.13.0 if one is empty
    message, payload = await protocol.read()
    while 100 <= message.code < 200 and message.code != 101:  # those announce an answer
        message, payload = await protocol.read()
    headers = message.headers
    if "," in headers.get("Content-Encoding", ""):
        # Packed once, a chunk cannot grow beyond what is refused below; twice, it fills the memory.
        return AnswerLost("the answer is compressed more than once")
    chunks: list[bytes] = []
    read_bytes = 0
    while chunk := await payload.readany():
        chunks.append(chunk)
        read_bytes += len(chunk)
        if read_bytes > _ANSWER_BYTES_MAX:
            return AnswerLost(f"the answer is longer than {_ANSWER_BYTES_MAX} bytes")
    if not transport.get_write_buffer_size():  # else it answered before it had read everything
        connection.release()
    retry_after = headers.getall("Retry-After", ())
    kept = {"retry-after": ", ".join(retry_after)} if retry_after else {}
    return Response(message.code, kept, b"".join(chunks))


def _lost(error: Exception) -> AnswerLost:
    text = f": {error}" if str(error) else ""
    return AnswerLost(f"{type(error).__name__}{text}")


def _ssl_context() -> ssl.SSLContext:
    """Trust whom the environment names (SSL_CERT_FILE, SSL_CERT_DIR), or else the public ones."""
    named = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
    return ssl.create_default_context(cafile=None if named else certifi.where())
