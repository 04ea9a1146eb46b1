"""Records as a broker would hand them over, and logs of them, without one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import msgspec

from ingester.core.batch import BatchBuilder, BatchLimits
from ingester.core.event import event_decoder
from ingester.core.record import TopicPartition

PARTITION = TopicPartition("usage", 0)


class LogRecord(msgspec.Struct, frozen=True):
    """One record of a log; two with the same members are the same record."""

    offset: int
    value: bytes | None
    timestamp: int = 1_700_000_000_000
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


def event_json(
    bits: int = 1,
    *,
    key: str = "settlement-2025-06",
    account_id: str = "customer-acme",
    metadata: Mapping[str, object] | None = None,
) -> bytes:
    """A usage event in the spelling in which its item is sent."""
    members: dict[str, object] = {"key": key, "accountId": account_id, "bits": bits}
    if metadata is not None:
        members["metadata"] = metadata
    return json.dumps(members, separators=(",", ":")).encode()


def usage_records(count: int, first_offset: int = 0) -> list[LogRecord]:
    """Valid records whose bits tell them apart, at consecutive offsets."""
    return [
        LogRecord(offset, event_json(offset + 1), timestamp=1_700_000_000_000 + offset)
        for offset in range(first_offset, first_offset + count)
    ]


def in_range(log: Sequence[LogRecord], first_offset: int, next_offset: int) -> list[LogRecord]:
    """What a log has of a range."""
    return [record for record in log if first_offset <= record.offset < next_offset]


def digest_of(records: Sequence[LogRecord]) -> int:
    """What an intent says of the body of a batch of these records."""
    limits = BatchLimits(1, 2**20, 0.0)
    return BatchBuilder(PARTITION, 1, limits, event_decoder("refuse")).form(records).intent_digest


@dataclass(frozen=True, slots=True)
class Entry:
    """A record of a log, and the item that is to be sent for it; None for a dead letter."""

    record: LogRecord
    item: bytes | None


Logs = Mapping[TopicPartition, Sequence[Entry]]


def make_logs(random: Random, partitions: int, records: int, limits: BatchLimits) -> Logs:
    """Logs with gaps in the offsets, valid events, dead letters of several kinds, large items."""
    return {
        TopicPartition("usage", number): _make_log(random, records, limits)
        for number in range(partitions)
    }


def _make_log(random: Random, records: int, limits: BatchLimits) -> list[Entry]:
    item_bytes_max = limits.body_bytes_max - len(b'{"items":[]}')
    entries = []
    offset = random.choice([0, 0, 5, 2**40])
    for number in range(records):
        offset += random.choice([0, 0, 0, 1, 3])
        timestamp = 1_700_000_000_000 + number
        item: bytes | None = event_json(
            random.randrange(-5, 2**40), key=f"k{number}", metadata=random.choice([None, {"a": 1}])
        )
        value = item
        kind = random.randrange(12)
        if kind == 0:
            value = item = None
        elif kind == 1:
            value, item = random.choice([b"", b"{", b"[]", event_json() + b"x"]), None
        elif kind == 2:
            room = item_bytes_max - len(event_json(key=""))
            item = value = event_json(key="k" * (room + random.choice([-1, 0, 0, 1, 2])))
        if item is not None and len(item) > item_bytes_max:
            item = None
        entries.append(Entry(LogRecord(offset, value, timestamp), item))
        offset += 1
    return entries
