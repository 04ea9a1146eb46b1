"""What a response means: the one table from an answer, or its absence, to what is done about it.

A write counts as acknowledged only by its body. Whatever may have been applied is in doubt and is
sent again under the same key; what certainly was not is deferred. Nothing is given up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

import msgspec

_BODY_KEPT_BYTES_MAX = 2048  # of a refusal: enough for every message seen, a header of a record
_QUOTED_MAX = 300  # characters of a foreign body in a sentence of ours
_SECONDS = re.compile(r"\+?[0-9]+(\.[0-9]*)?", re.ASCII)
RETRY_AFTER_SECONDS_MAX = 24 * 3600.0
"""Longest wait an endpoint may ask for; a longer one is asked again after this."""


class Response(msgspec.Struct, frozen=True):
    """An answer as it came over the wire; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NothingSent(msgspec.Struct, frozen=True):
    """The request did not leave: no address, no connection, no TLS session."""

    reason: str
    kind: Literal["refused", "dns", "certificate", "tls", "timeout", "other"] = "other"


class AnswerLost(msgspec.Struct, frozen=True):
    """The request left, or may have, and no whole answer came back."""

    reason: str
    timed_out: bool = False
    """Whether it may still be on its way, for as long again."""


Answer = Response | NothingSent | AnswerLost


class Acknowledged(msgspec.Struct, frozen=True):
    """PacSpace took the whole batch and named it."""

    batch_id: str
    status: int


class Deferred(msgspec.Struct, frozen=True):
    """Certainly not applied; to be sent again after a backoff."""

    reason: str


class InDoubt(msgspec.Struct, frozen=True):
    """Perhaps applied; the same bytes go again under the same key."""

    reason: str
    status: int | None
    retry_after_seconds: float | None = None
    timed_out: bool = False
    """Whether the request may arrive, and be applied, after this."""


class Throttled(msgspec.Struct, frozen=True):
    """Not applied, and no request of ours is wanted for a while."""

    reason: str
    status: int
    retry_after_seconds: float | None


class Blocked(msgspec.Struct, frozen=True):
    """Not applied, and no other request would be, until somebody changes something."""

    reason: str
    status: int


class Refused(msgspec.Struct, frozen=True):
    """Not applied because of what is in the batch; the same bytes will not pass."""

    reason: str
    status: int
    meaning: Literal["conflict", "too_large", "invalid"]
    is_api: bool
    """Whether the body is the API's own envelope, and not the page of something in between."""
    body: bytes = b""
    """The beginning of the answer, for the dead letter."""


Outcome = Acknowledged | Deferred | InDoubt | Throttled | Blocked | Refused

Meaning = Literal["in_doubt", "throttled", "blocked", "conflict", "too_large", "invalid"]


class Row(msgspec.Struct, frozen=True):
    """One row of the table for answers that are no acknowledgement."""

    statuses: frozenset[int]
    meaning: Meaning
    why: str


TABLE: tuple[Row, ...] = (
    Row(
        frozenset({408, 500, 502, 503, 504}),
        "in_doubt",
        "a gateway or a failing server may have passed the write on before it answered",
    ),
    Row(
        frozenset({429}),
        "throttled",
        "refused before it was looked at; the limit is the account's, so every request waits",
    ),
    Row(
        frozenset({401, 402, 403, 412}),
        "blocked",
        "key, credit, permission or environment: true of every request until somebody acts",
    ),
    Row(
        frozenset({409}),
        "conflict",
        "the key was used with another body: two histories of one range, for a human to judge",
    ),
    Row(frozenset({413}), "too_large", "a limit on the body, not on what is in it"),
    Row(
        frozenset({400, 422}),
        "invalid",
        "at least one item will never pass; the others are innocent",
    ),
)
_MEANINGS: dict[int, Meaning] = {status: row.meaning for row in TABLE for status in row.statuses}


def judge(answer: Answer, *, items_count: int, now: datetime) -> Outcome:
    """Say what became of a write of `items_count` items; `now` is for dates in Retry-After.

    A status outside the table (404, 405, redirects, ...) is the wrong URL or a proxy in between:
    blocked, because whoever answered is not the writes endpoint.
    """
    if isinstance(answer, NothingSent):
        return Deferred(answer.reason)
    if isinstance(answer, AnswerLost):
        return InDoubt(answer.reason, status=None, timed_out=answer.timed_out)
    if 200 <= answer.status < 300:
        return _judge_success(answer, items_count, now)
    details = read_envelope(answer.body)
    reason = f"HTTP {answer.status}: {details.sentence(answer.body)}"
    retry_after_seconds = _retry_after_seconds(answer, details, now)
    match _MEANINGS.get(answer.status):
        case "in_doubt":
            return InDoubt(reason, answer.status, retry_after_seconds)
        case "throttled":
            return Throttled(reason, answer.status, retry_after_seconds)
        case "blocked":
            return Blocked(reason, answer.status)
        case "conflict" | "too_large" | "invalid" as meaning:
            body = answer.body[:_BODY_KEPT_BYTES_MAX]
            return Refused(reason, answer.status, meaning, details.is_api, body)
        case None:
            return Blocked(f"{reason} (is INGESTER_PACSPACE_URL right?)", answer.status)


class Envelope(msgspec.Struct, frozen=True):
    """What the API's envelopes agree on, in whichever spelling it came."""

    is_api: bool
    code: str | None = None
    message: str | None = None
    retry_after_seconds: float | None = None

    def sentence(self, body: bytes) -> str:
        """Code and message, or the beginning of a body that is not the API's."""
        if self.is_api:
            return ": ".join(part for part in (self.code, self.message) if part) or "no message"
        text = " ".join(body.decode("utf-8", "replace").split())
        return f"not PacSpace's envelope: {text[:_QUOTED_MAX]!r}" if text else "an empty body"


def read_envelope(body: bytes) -> Envelope:
    """Read an error body: `error` as a string or an object, members on top, or no JSON at all."""
    document = _decode(body)
    if not isinstance(document, dict):
        return Envelope(is_api=False)
    error = document.get("error")
    inner = error if isinstance(error, dict) else document
    code = inner.get("code")
    message = inner.get("message", document.get("message"))
    if isinstance(message, list):
        message = "; ".join(str(part) for part in message)
    if message is None and isinstance(error, str):
        message = error
    seconds = inner.get("retryAfterSeconds", document.get("retryAfterSeconds"))
    return Envelope(
        is_api=isinstance(message, str) or isinstance(code, str),
        code=code[:_QUOTED_MAX] if isinstance(code, str) else None,
        message=str(message)[:_QUOTED_MAX] if message is not None else None,
        retry_after_seconds=_bounded(seconds),
    )


def _judge_success(answer: Response, items_count: int, now: datetime) -> Outcome:
    def in_doubt(why: str) -> InDoubt:
        asked = _retry_after_seconds(answer, read_envelope(answer.body), now)
        return InDoubt(f"HTTP {answer.status}{why}", answer.status, asked)

    document = _decode(answer.body)
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, dict) or not isinstance(document, dict) or _denies(document):
        sentence = read_envelope(answer.body).sentence(answer.body)
        return in_doubt(f" without an acknowledgement: {sentence}")
    # Both spellings are in the field: `batchId` in older answers, `requestId` in newer ones.
    batch_id = data.get("batchId") or data.get("requestId")
    if not isinstance(batch_id, str) or not batch_id.strip():
        return in_doubt(" without a batch id")
    count = data.get("itemCount", items_count)
    if type(count) is not int or count != items_count:
        return in_doubt(
            f", batch {batch_id[:_QUOTED_MAX]}: itemCount is {count!r:.40}, {items_count} were sent"
        )
    return Acknowledged(batch_id, answer.status)


def _denies(document: Mapping[str, object]) -> bool:
    """Whether the body says beside its data that it is no success, or not yet."""
    status = document.get("statusCode", 202)
    return (
        type(status) is not int
        or not 200 <= status < 300
        or document.get("success", True) is not True
        or any(document.get(name) is not None for name in ("error", "code"))
    )


def _decode(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _retry_after_seconds(answer: Response, details: Envelope, now: datetime) -> float | None:
    """Body before header; the header as seconds or as an HTTP-date."""
    if details.retry_after_seconds is not None:
        return details.retry_after_seconds
    header = answer.headers.get("retry-after", "").strip()
    # The header may come twice, joined by a comma; what comes with a date has letters.
    numbers = [part.strip() for part in header.split(",")]
    if all(_SECONDS.fullmatch(number) for number in numbers):
        return min(max(map(float, numbers)), RETRY_AFTER_SECONDS_MAX)
    try:
        date = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return _bounded((date - now).total_seconds())


def _bounded(seconds: object) -> float | None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    # Bounded before it is converted: an integer may be larger than any float.
    return float(min(max(seconds, 0), RETRY_AFTER_SECONDS_MAX))


def backoff_seconds(
    attempts: int, *, jitter: float, seconds_min: float, seconds_max: float
) -> float:
    """Return the wait before the next attempt: exponential, full jitter above the minimum.

    `attempts` counts those made, from 1; `jitter` is from [0, 1). The exponent is bounded so that a
    batch that has been tried for days does not overflow.
    """
    ceiling = min(seconds_max, seconds_min * 2.0 ** min(attempts, 32))
    return seconds_min + (ceiling - seconds_min) * jitter
