"""Answers as bytes: the API's acknowledgement, record and error envelopes, and a proxy's pages.

Never knows how an answer travels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http import HTTPStatus
from typing import assert_never

import msgspec
from msgspec import Raw

from ingester.simulator.faults import AnswerWith
from ingester.simulator.ledger import Bucket, Write
from ingester.simulator.options import IdField
from ingester.wire import IDEMPOTENCY_CONFLICT, IDEMPOTENCY_PENDING

# Python has renamed these between versions; the API's platform has not.
_PHRASES = {413: "Payload Too Large", 422: "Unprocessable Entity"}

_PENDING_RETRY_AFTER_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, ready to be sent."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


def acknowledgement(
    write: Write, *, id_field: IdField, item_count: int | None = None, with_id: bool = True
) -> Answer:
    """Return the 202 for a write; `item_count` and `with_id` are there to lie with."""
    data: dict[str, object] = {}
    if with_id:
        prefix = "batch" if id_field == "batchId" else "req"
        data[id_field] = f"{prefix}_{write.batch_id}"
    data["itemCount"] = write.items if item_count is None else item_count
    data["status"] = "queued"
    data["message"] = "Write accepted. Items are queued for verification."
    return _json(202, {"statusCode": 202, "data": data})


def record(key: str, bucket: Bucket, *, verified: bool) -> Answer:
    """Return the 200 for a read."""
    written_at = datetime.fromtimestamp(bucket.written_at.epoch_seconds, UTC)
    data = {
        "key": key,
        "accountId": bucket.account_id,
        "currentBits": bucket.bits,
        "totalWrites": bucket.items,
        "lastWriteAt": written_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "verified": verified,
        "metadata": Raw(bucket.metadata),
    }
    return _json(200, {"statusCode": 200, "data": data})


def refusal(status: int, message: str, *, code: str | None = None) -> Answer:
    """Return the API's own error envelope (E1: `error` is the status in words)."""
    return _json(status, _e1(status, message, code))


def pending() -> Answer:
    """Return the 202 that acknowledges nothing: a write under this key is still in progress."""
    return _json(
        202,
        {
            "code": IDEMPOTENCY_PENDING,
            "retryAfterSeconds": _PENDING_RETRY_AFTER_SECONDS,
            "message": "A request with this Idempotency-Key is still being processed.",
        },
    )


def conflict() -> Answer:
    """Return the 409 for a key that was first used with another body."""
    return refusal(
        409,
        "This Idempotency-Key was already used with a different request body.",
        code=IDEMPOTENCY_CONFLICT,
    )


def injected(effect: AnswerWith, *, epoch_seconds: float) -> Answer:
    """Return the answer that a rule asks for; a date in it counts from `epoch_seconds`."""
    headers = {}
    if effect.retry_after is not None:
        if effect.retry_after_form == "date":
            headers["Retry-After"] = formatdate(epoch_seconds + effect.retry_after, usegmt=True)
        else:
            headers["Retry-After"] = str(effect.retry_after)
    phrase = _phrase(effect.status)
    message = effect.message or phrase
    match effect.envelope:
        case "empty":
            return Answer(effect.status, b"", headers=headers)
        case "html":
            page = f"<html><head><title>{effect.status} {phrase}</title></head></html>\r\n"
            return Answer(effect.status, page.encode(), "text/html", headers)
        case "e1":
            content = _e1(effect.status, message, effect.code)
            if effect.retry_after_seconds is not None:
                content["retryAfterSeconds"] = effect.retry_after_seconds
        case "e2":
            error: dict[str, object] = {"code": effect.code or "ERROR", "message": message}
            if effect.retry_after_seconds is not None:
                error["retryAfterSeconds"] = effect.retry_after_seconds
            content = {"error": error}
        case _:
            assert_never(effect.envelope)
    return _json(effect.status, content, headers)


def _e1(status: int, message: str, code: str | None) -> dict[str, object]:
    content: dict[str, object] = {
        "statusCode": status,
        "error": _phrase(status),
        "message": message,
    }
    if code is not None:
        content["code"] = code
    return content


def _json(status: int, content: object, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, msgspec.json.encode(content), headers=headers or {})


def _phrase(status: int) -> str:
    if status in _PHRASES:
        return _PHRASES[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
