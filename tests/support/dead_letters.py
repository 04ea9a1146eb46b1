"""Dead letters of every kind: as sources that a worker makes them of, and written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaProducer

Headers = Sequence[tuple[str, bytes]]
CLOSED = {
    "match": {"method": "POST", "account": "closed"},
    "effect": {"kind": "refuse", "status": 422, "message": "account is closed"},
}
"""A fault of the simulator that refuses one account."""
FIRST_TIMESTAMP = 1_700_000_000_000  # 2023-11-14T22:13:20Z
DAY = 86_400_000


@dataclass(frozen=True)
class Bad:
    """A record that becomes a dead letter."""

    value: bytes | None
    code: str
    account: str | None
    """As far as anybody can tell."""
    record_key: bytes | None
    headers: Headers
    timestamp: int


def mixed(count: int) -> list[Bad]:
    """Records that are no usage events, or are refused; with and without keys and headers."""
    kinds: Sequence[tuple[bytes | None, str, str | None]] = (
        (b"\xff\xfe usage", "invalid_utf8", None),
        (None, "tombstone", None),
        (_item(bits="7"), "wrong_type", "acme"),
        (_item(accountId="closed"), "refused", "closed"),
        (_item(key=None), "missing_member", "acme"),
        (_item(region="eu"), "unknown_member", "acme"),
        (b'{"key":"k"', "invalid_json", None),
        (_item(bits=2**63), "out_of_range", "acme"),
        (b'{"key":"k","accountId":"\xff","bits":1}', "invalid_utf8", None),
        (_item(key=""), "empty_string", "acme"),
    )
    found = []
    for number in range(count):
        value, code, account = kinds[number % len(kinds)]
        record_key = f"key-{number}".encode() if number % 3 or value is None else None
        headers = [("trace", str(number).encode()), ("raw", b"\x00\xff")] if number % 2 else []
        timestamp = FIRST_TIMESTAMP + number % 3 * DAY + number
        found.append(Bad(value, code, account, record_key, headers, timestamp))
    return found


def _item(**changed: object) -> bytes:
    members = {"key": "usage-acme", "accountId": "acme", "bits": 7, **changed}
    return json.dumps({k: v for k, v in members.items() if v is not None}).encode()


async def produce_all(servers: str, topic: str, partition: int, records: Sequence[Bad]) -> None:
    """Write them to one partition, in order."""
    async with AIOKafkaProducer(bootstrap_servers=servers, acks="all") as producer:
        for bad in records:
            await producer.send(
                topic,
                bad.value,
                key=bad.record_key,
                partition=partition,
                headers=bad.headers,
                timestamp_ms=bad.timestamp,
            )
        await producer.flush()


def said(
    topic: str,
    offset: int,
    *,
    partition: int = 0,
    code: str = "wrong_type",
    detail: str = "`bits` must be of type integer, not string",
    status: int | None = None,
    dead_lettered_at: str | None = "2025-06-10T14:30:00.000+00:00",
) -> list[tuple[str, bytes]]:
    """The headers that a worker writes behind a record's own."""
    headers = {
        "ingester-error-code": code,
        "ingester-error-detail": detail,
        "ingester-source-topic": topic,
        "ingester-source-partition": str(partition),
        "ingester-source-offset": str(offset),
    }
    if dead_lettered_at:
        headers["ingester-dead-lettered-at"] = dead_lettered_at
    if status:
        headers |= {"ingester-http-status": str(status), "ingester-http-body": '{"message":"no"}'}
    return [(name, text.encode()) for name, text in headers.items()]
