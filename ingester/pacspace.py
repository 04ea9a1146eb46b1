"""The shell around PacSpace's HTTP API: requests out, typed results back.

What an answer to a write means is decided in `core.delivery`. Usable on its own as a small
asynchronous client.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from typing import Final, Literal, Self
from urllib.parse import quote

import msgspec
from msgspec.structs import replace
from pydantic import SecretStr

from ingester import __version__
from ingester.core.delivery import (
    Answer,
    InDoubt,
    Outcome,
    Response,
    Throttled,
    judge,
    read_envelope,
)
from ingester.core.event import UsageEvent
from ingester.exchange import Exchanges
from ingester.option import show
from ingester.settings import PacspaceSettings
from ingester.wire import API_KEY_HEADER, BUCKET_PATH, IDEMPOTENCY_KEY_HEADER, WRITES_PATH

PATHLESS_KEYS = ("", ".", "..")
"""Keys whose balance cannot be asked for: each is another resource's path, however encoded."""

_QUOTED_BYTES_MAX: Final = 200


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
    success: bool = True


class UnknownKey(msgspec.Struct, frozen=True):
    """PacSpace has no record of the key: nothing was written, or nothing is visible yet."""

    key: str


class ReadFailed(msgspec.Struct, frozen=True):
    """No balance could be read; `status` is None when no whole answer came."""

    reason: str
    status: int | None
    retry_after_seconds: float | None = None
    """For how long the endpoint wants to be left alone, where it says so."""


class Agreement(msgspec.Struct, frozen=True):
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
        self._api_key = api_key
        self._api_key_shown = show(SecretStr(api_key))
        self._exchanges = Exchanges(
            url,
            {
                API_KEY_HEADER: api_key,
                "Content-Type": "application/json",
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": f"pacspace-ingester/{__version__}",
            },
            connect_timeout_seconds=connect_timeout_seconds,
            request_timeout_seconds=request_timeout_seconds,
            connections_max=connections_max,
        )

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
        await self._exchanges.aclose()

    def begin_write(self, body: bytes, *, idempotency_key: str) -> Awaitable[Answer] | None:
        """Send a write at once where a connection is kept; `write` takes it, and says the rest."""
        return self._exchanges.begin("POST", WRITES_PATH, body, _key_line(idempotency_key))

    async def write(
        self,
        body: bytes,
        *,
        idempotency_key: str,
        items_count: int,
        begun: Awaitable[Answer] | None = None,
    ) -> Outcome:
        """Post an encoded body of `items_count` items once and say what became of it.

        What was `begun` with the same body and key is waited for, and not sent again.
        """
        answer = await self._exchange(
            "POST", WRITES_PATH, body, _key_line(idempotency_key), begun=begun
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
        answer = await self._exchange("GET", BUCKET_PATH + quote(key, safe=""))
        if not isinstance(answer, Response):
            return ReadFailed(answer.reason, status=None)
        envelope = read_envelope(answer.body)
        if answer.status == 404 and envelope.is_api:
            return UnknownKey(key)
        if answer.status != 200:
            judged = judge(answer, items_count=0, now=datetime.now(UTC))
            asked = judged.retry_after_seconds if isinstance(judged, Throttled | InDoubt) else None
            return ReadFailed(
                f"HTTP {answer.status}: {envelope.sentence(answer.body)}", answer.status, asked
            )
        try:
            answer.body.decode()  # the decoder does not look into metadata
            found = msgspec.json.decode(answer.body, type=_BalanceAnswer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found = None
        if found is None or not found.success or found.data.key != key:
            what = "the balance of another key" if found and found.success else "no balance"
            text = answer.body[:_QUOTED_BYTES_MAX].decode("utf-8", "replace")
            return ReadFailed(f"HTTP 200, but {what}: {text!r}", answer.status)
        return found.data

    async def verify_agreement(self, key: str, *, expected: int) -> Agreement | ReadFailed:
        """Compare an own sum with the balance; an unverified balance neither agrees nor differs."""
        balance = await self.get_balance(key)
        if isinstance(balance, ReadFailed):
            return balance
        return compare(balance, expected)

    async def get(self, path: str) -> Answer:
        """Send one GET and return the bare answer, for probes of the connection and the key."""
        return await self._exchange("GET", path)

    async def _exchange(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: str = "",
        *,
        begun: Awaitable[Answer] | None = None,
    ) -> Answer:
        """Send one request; no answer repeats the API key, for answers are quoted and kept."""
        answer = await (begun or self._exchanges.exchange(method, path, body, headers))
        if isinstance(answer, Response):
            if self._api_key.encode() not in answer.body:
                return answer
            shown = self._api_key_shown.encode()
            return replace(answer, body=answer.body.replace(self._api_key.encode(), shown))
        return replace(answer, reason=answer.reason.replace(self._api_key, self._api_key_shown))


def _key_line(idempotency_key: str) -> str:
    if not idempotency_key or not idempotency_key.isprintable():
        raise ValueError(f"no header can carry the key {idempotency_key!r}")
    return f"{IDEMPOTENCY_KEY_HEADER}: {idempotency_key}\r\n"


def compare(balance: Balance | UnknownKey, expected: int) -> Agreement:
    """Compare a balance that was read with an own sum."""
    if isinstance(balance, UnknownKey):
        return Agreement("unknown_key", expected, balance)
    if not balance.verified:
        return Agreement("pending_verification", expected, balance)
    status: Literal["agreed", "mismatch"] = (
        "agreed" if balance.current_bits == expected else "mismatch"
    )
    return Agreement(status, expected, balance)
