"""What was applied: balances, idempotency keys and totals; pure, time is an argument.

Every write is applied whole and once. Bits are Python integers throughout, never rounded.
Nothing is ever evicted: a ledger lives as long as one test or demonstration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ingester.simulator.validation import Item


class Instant(NamedTuple):
    """One moment on both clocks: durations are measured on the first, dates told by the second."""

    monotonic_seconds: float
    epoch_seconds: float


class Standing(Enum):
    """Why a known idempotency key has no original response to repeat."""

    IN_FLIGHT = "in_flight"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Write:
    """An applied request."""

    batch_id: str
    items: int
    bits: int
    idempotency_key: str | None
    body_digest: bytes


@dataclass(slots=True)
class Bucket:
    """The running balance of one key; it belongs to the account that wrote first."""

    account_id: str
    bits: int
    items: int
    written_at: Instant
    metadata: bytes
    """JSON text of the latest write's, as it was spelt."""


@dataclass(slots=True)
class Total:
    """A sum over the items of one account."""

    bits: int = 0
    items: int = 0


class Ledger:
    """Everything one run has applied and answered."""

    def __init__(self, *, run_id: str, verify_delay_seconds: float) -> None:
        """Start empty; `run_id` keeps batch ids unique across ledgers."""
        self._run_id = run_id
        self._verify_delay_seconds = verify_delay_seconds
        self._buckets: dict[str, Bucket] = {}
        self._accounts: dict[str, Total] = {}
        self._writes: list[Write] = []
        # Digest of the body that is being processed under each key: begin() adds, apply() removes.
        self._in_flight: dict[str, bytes] = {}
        # The latest write under each key: apply() adds, nothing removes.
        self._completed: dict[str, Write] = {}
        self._requests: Counter[str] = Counter()
        self._replayed = self._pending = self._conflicts = 0

    def lookup(self, idempotency_key: str, body_digest: bytes) -> Write | Standing | None:
        """Return what is known of a key; None when it is new."""
        write = self._completed.get(idempotency_key)
        known = write.body_digest if write else self._in_flight.get(idempotency_key)
        if known is None:
            return None
        if known != body_digest:
            self._conflicts += 1
            return Standing.CONFLICT
        if write is None:
            self._pending += 1
            return Standing.IN_FLIGHT
        self._replayed += 1
        return write

    def begin(self, idempotency_key: str, body_digest: bytes) -> None:
        """Hold a key until its write is applied."""
        self._in_flight[idempotency_key] = body_digest

    def apply(
        self,
        items: Sequence[Item],
        *,
        idempotency_key: str | None,
        body_digest: bytes,
        now: Instant,
    ) -> Write:
        """Add all items to their balances, and remember the response under the key."""
        for item in items:
            self._add(item, now)
        write = Write(
            batch_id=f"{self._run_id}{len(self._writes) + 1:08d}",
            items=len(items),
            bits=sum(item.bits for item in items),
            idempotency_key=idempotency_key,
            body_digest=body_digest,
        )
        self._writes.append(write)
        if idempotency_key is not None:
            self._in_flight.pop(idempotency_key, None)
            self._completed[idempotency_key] = write
        return write

    def _add(self, item: Item, now: Instant) -> None:
        metadata = bytes(item.metadata)  # a copy: the original keeps the whole request alive
        bucket = self._buckets.get(item.key)
        if bucket is None:
            self._buckets[item.key] = Bucket(item.account_id, item.bits, 1, now, metadata)
        else:
            bucket.bits += item.bits
            bucket.items += 1
            bucket.written_at = now
            bucket.metadata = metadata
        total = self._accounts.setdefault(item.account_id, Total())
        total.bits += item.bits
        total.items += 1

    def bucket(self, key: str) -> Bucket | None:
        """Return the balance of a key; None when nothing was ever written to it."""
        return self._buckets.get(key)

    def is_verified(self, bucket: Bucket, now: Instant) -> bool:
        """Whether the delay has passed since the latest write."""
        elapsed_seconds = now.monotonic_seconds - bucket.written_at.monotonic_seconds
        return elapsed_seconds >= self._verify_delay_seconds

    def count_request(self, outcome: str) -> None:
        """Count a request of the API by what went back: a status, `cut` or `hung`."""
        self._requests[outcome] += 1

    def report(self, *, keys: bool, batch_ids: bool) -> Mapping[str, object]:
        """Return all totals, with what was applied to each key and by each batch if wanted."""
        report: dict[str, object] = {
            "writes": len(self._writes),
            "items": sum(write.items for write in self._writes),
            "bits": sum(write.bits for write in self._writes),
            "batches": len(self._writes),  # each write is acknowledged as one batch
            "replayed": self._replayed,
            "pending": self._pending,
            "conflicts": self._conflicts,
            "in_flight": len(self._in_flight),
            "requests": dict(self._requests),
            "accounts": self._accounts,
        }
        if keys:
            report["keys"] = {
                key: {"bits": bucket.bits, "items": bucket.items}
                for key, bucket in self._buckets.items()
            }
        if batch_ids:
            report["batch_ids"] = {
                write.batch_id: {
                    "items": write.items,
                    "bits": write.bits,
                    "idempotency_key": write.idempotency_key,
                }
                for write in self._writes
            }
        return report
