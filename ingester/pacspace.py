"""The shell around PacSpace's HTTP API: requests out, typed results back, nothing is raised.

The only module that imports httpx. It tells what was certainly not sent from what may have been,
and reads bounded bodies in bounded time. What an answer to a write means is decided in
`core.delivery`. Usable on its own as a small asynchronous client.
"""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Self
from urllib.parse import quote

import aiohttp
import httpx
import msgspec
from httpx_aiohttp import AiohttpTransport

from ingester import __version__
from ingester.core.delivery import (
    Answer,
    AnswerLost,
    NothingSent,
    Outcome,
    Response,
    judge,
    read_envelope,
)
from ingester.core.event import UsageEvent
from ingester.option import Address
from ingester.settings import PacspaceSettings
from ingester.wire import API_KEY_HEADER, BUCKET_PATH, IDEMPOTENCY_KEY_HEADER, WRITES_PATH

_ANSWER_BYTES_MAX = 1024 * 1024  # an answer is some hundred bytes; a bucket's metadata may be more
PATHLESS_KEYS = ("", ".", "..")
"""Keys whose balance cannot be asked for: each is another resource's path, however encoded."""
_KEEPALIVE_SECONDS = 30.0  # below the idle limits usual for load balancers (60 s and more)


class Balance(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The running balance of one key, as both parties read it.

    `metadata` is JSON as it came, `null` where there is none: no number in it is read or changed.
    """

    key: str
    account_id: str
    current_bits: int
    total_writes: int
    last_write_at: str | None = None
    verified: bool = False
    metadata: msgspec.Raw = msgspec.Raw(b"null")


class _BalanceAnswer(msgspec.Struct):
    data: Balance


@dataclass(frozen=True, slots=True)
class UnknownKey:
    """PacSpace has no record of the key: nothing was written, or nothing is visible yet."""

    key: str


@dataclass(frozen=True, slots=True)
class ReadFailed:
    """No balance could be read; `status` is None when no whole answer came."""

    reason: str
    status: int | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """What comparing one's own sum with the balance gave; an unknown key agrees with no sum."""

    status: Literal["agreed", "pending_verification", "mismatch", "unknown_key"]
    expected: int
    balance: Balance | UnknownKey


class PacspaceClient:
    """Asynchronous client for writes and balances; close it, or use it with `async with`.

    `connections_max` bounds concurrent requests; further ones wait for a connection. A request ends
    after `request_timeout_seconds` at the latest, connecting after `connect_timeout_seconds`.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        connect_timeout_seconds: float = 5.0,
        request_timeout_seconds: float = 30.0,
        connections_max: int = 32,
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = {
            API_KEY_HEADER: api_key,
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": f"pacspace-ingester/{__version__}",
        }
        self._connections_max = connections_max
        self._connect_timeout_seconds = connect_timeout_seconds
        self._request_timeout_seconds = request_timeout_seconds
        self._timeouts = httpx.Timeout(
            connect=connect_timeout_seconds,
            read=request_timeout_seconds,
            write=request_timeout_seconds,
            pool=request_timeout_seconds,
        ).as_dict()
        self._transport = AiohttpTransport(client=self._session)

    @classmethod
    def from_settings(cls, settings: PacspaceSettings, *, connections_max: int = 32) -> Self:
        """Make the client that the settings describe."""
        return cls(
            settings.pacspace_url,
            settings.pacspace_api_key.get_secret_value(),
            connect_timeout_seconds=settings.connect_timeout_seconds,
            request_timeout_seconds=settings.request_timeout_seconds,
            connections_max=connections_max,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections; requests under way end with their answers lost."""
        await self._transport.aclose()

    async def write(self, body: bytes, *, idempotency_key: str, items_count: int) -> Outcome:
        """Post an encoded body of `items_count` items once and say what became of it."""
        answer = await self._request(
            "POST", WRITES_PATH, body, {IDEMPOTENCY_KEY_HEADER: idempotency_key}
        )
        return judge(answer, items_count=items_count, now=datetime.now(UTC))

    async def record_usage(self, events: Sequence[UsageEvent], *, idempotency_key: str) -> Outcome:
        """Post events as one write, once.

        Only `Acknowledged` says that they count. After `InDoubt` repeat the call with the same
        events and the same key; a key made from the operation itself survives a restart.
        """
        if not events:
            raise ValueError("a write holds at least one event")
        body = msgspec.json.encode({"items": events})
        return await self.write(body, idempotency_key=idempotency_key, items_count=len(events))

    async def get_balance(self, key: str) -> Balance | UnknownKey | ReadFailed:
        """Read the running balance of a key."""
        if key in PATHLESS_KEYS:
            return ReadFailed(f"no path can carry the key {key!r}", status=None)
        answer = await self._request("GET", BUCKET_PATH + quote(key, safe=""))
        if not isinstance(answer, Response):
            return ReadFailed(answer.reason, status=None)
        envelope = read_envelope(answer.body)
        if answer.status == 404 and envelope.is_api:
            return UnknownKey(key)
        if answer.status != 200:
            return ReadFailed(
                f"HTTP {answer.status}: {envelope.sentence(answer.body)}", answer.status
            )
        try:
            answer.body.decode()  # the decoder does not look into metadata
            return msgspec.json.decode(answer.body, type=_BalanceAnswer).data
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            text = answer.body[:200].decode("utf-8", "replace")
            return ReadFailed(f"HTTP 200, but no balance: {text!r}", answer.status)

    async def verify_agreement(self, key: str, *, expected: int) -> Agreement | ReadFailed:
        """Compare an own sum with the balance; an unverified balance neither agrees nor differs."""
        balance = await self.get_balance(key)
        if isinstance(balance, ReadFailed):
            return balance
        if isinstance(balance, UnknownKey):
            return Agreement("unknown_key", expected, balance)
        if not balance.verified:
            return Agreement("pending_verification", expected, balance)
        status: Literal["agreed", "mismatch"] = (
            "agreed" if balance.current_bits == expected else "mismatch"
        )
        return Agreement(status, expected, balance)

    async def get(self, path: str) -> Answer:
        """Send one GET and return the bare answer, for probes of the connection and the key."""
        return await self._request("GET", path)

    async def _request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        try:
            request = httpx.Request(
                method,
                self._url + path,
                headers={**self._headers, **(headers or {})},
                content=body,
                extensions={"timeout": self._timeouts},
            )
            async with asyncio.timeout(self._request_timeout_seconds):
                response = await self._transport.handle_async_request(request)
                try:
                    return await _read(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            return AnswerLost(f"no whole answer within {self._request_timeout_seconds:g} s")
        except Exception as error:  # noqa: BLE001 -- whatever a server provokes is an outcome
            return self._classify(error)

    def _classify(self, error: Exception) -> NothingSent | AnswerLost:
        """Tell a request that never left from one that may have arrived.

        The transport maps a connection that broke in the middle to the same httpx error as one that
        never came about (`ConnectTimeout`); only the cause tells them apart.
        """
        match error.__cause__ or error:
            case aiohttp.ConnectionTimeoutError():
                waited = f"{self._connect_timeout_seconds:g} s"
                return NothingSent(f"no connection within {waited}", "timeout")
            case aiohttp.ClientConnectorError() as cause:
                return _no_connection(cause)
            case httpx.InvalidURL() as cause:
                return NothingSent(f"no URL can carry this: {cause}")
            case cause:
                text = f": {cause}" if str(cause) else ""
                return AnswerLost(f"{type(cause).__name__}{text}")

    def _session(self) -> aiohttp.ClientSession:
        """Called by the transport on its first request, inside the loop."""
        connector = _Connector(
            limit=self._connections_max,
            keepalive_timeout=_KEEPALIVE_SECONDS,
            ssl=httpx.create_ssl_context(),
        )
        # Cookies would make one answer change the next request.
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


class _Connector(aiohttp.TCPConnector):
    """Closes kept connections on which something came that nobody had asked for.

    The pool itself would hand them out, and what had come would be read as the next answer: the
    second acknowledgement of one batch as the first of another. An endpoint that does so once gets
    a connection for each request from then on.
    """

    async def _get(self, key: Any, traces: Any) -> Any:
        for handler, _ in self._conns.get(key, ()):
            if handler.should_close:
                handler.close()
                self._force_close = True
        return await super()._get(key, traces)


async def _read(response: httpx.Response) -> Answer:
    if "," in response.headers.get("content-encoding", ""):
        # Packed once, a chunk cannot grow beyond what is refused below; twice, it fills the memory.
        return AnswerLost("the answer is compressed more than once")
    chunks: list[bytes] = []
    read_bytes = 0
    async for chunk in response.aiter_bytes():
        chunks.append(chunk)
        read_bytes += len(chunk)
        if read_bytes > _ANSWER_BYTES_MAX:
            return AnswerLost(f"the answer is longer than {_ANSWER_BYTES_MAX} bytes")
    retry_after = response.headers.get("retry-after")
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return Response(response.status_code, headers, b"".join(chunks))


def _no_connection(error: aiohttp.ClientConnectorError) -> NothingSent:
    where, cause = Address(error.host, error.port or 0), error.os_error
    match error, cause:
        case aiohttp.ClientConnectorDNSError(), _:
            return NothingSent(f"the name {error.host} does not resolve", "dns")
        case _, ssl.SSLCertVerificationError():
            reason = f"the certificate of {where} is not accepted: {cause.verify_message}"
            return NothingSent(reason, "certificate")
        case _, ssl.SSLError():
            why = (cause.reason or str(cause)).replace("_", " ").lower()
            return NothingSent(f"no TLS with {where}: {why}", "tls")
        case _, OSError(errno=errno.ECONNREFUSED):
            return NothingSent(f"nothing listens on {where}", "refused")
        case _, OSError(errno=errno.ETIMEDOUT):
            return NothingSent(f"{where} does not answer", "timeout")
    # The system's words: a library's own repeat the address, or name one of several.
    why = os.strerror(cause.errno) if cause.errno else str(cause)
    return NothingSent(f"no connection to {where}: {why}")
