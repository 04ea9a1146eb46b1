"""Receipts and dead letters as a worker writes them, and as none would."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.support.kafka import produce, read_all


def receipt(
    topic: str, first_offset: int, next_offset: int, bits_by_key: Mapping[str, int], **changed: Any
) -> dict[str, Any]:
    """A receipt of partition 0, unless it is changed; its item count is that of its offsets."""
    key = f"ingester-{topic}-{first_offset}-{next_offset}"
    return {
        "kind": "receipt",
        "topic": topic,
        "partition": 0,
        "firstOffset": first_offset,
        "nextOffset": next_offset,
        "idempotencyKey": key,
        "batchId": f"batch-of-{key}",
        "httpStatus": 202,
        "items": next_offset - first_offset,
        "deadLetters": 0,
        "bits": sum(bits_by_key.values()),
        "bitsByKey": dict(bits_by_key),
        "bodyDigest": "00",
        "attempts": 1,
        "inDoubt": False,
        "settledAt": "2025-06-10T14:30:00.000+00:00",
        **changed,
    }


def dead_letter_headers(
    topic: str, partition: int, offset: int, code: str = "invalid_json", **more: str
) -> list[tuple[str, bytes]]:
    """The headers of a dead letter; `http_status="400"` adds ingester-http-status."""
    said = {
        "error-code": code,
        "error-detail": "the value is not JSON",
        "source-topic": topic,
        "source-partition": str(partition),
        "source-offset": str(offset),
        **{name.replace("_", "-"): content for name, content in more.items()},
    }
    return [(f"ingester-{name}", content.encode()) for name, content in said.items()]


async def copied(
    servers: str,
    receipts_topic: str,
    other_topic: str,
    changed: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Write what a receipts topic holds to another one, changed; return what it holds."""
    notes = [json.loads(record.value) for record in await read_all(servers, receipts_topic)]
    for note in changed(notes):
        await produce(servers, other_topic, [note], partition=note["partition"])
    return notes
