"""The proof that a batch was acknowledged: what it says, and how it is written and read.

One JSON object a receipt, in the receipts topic's partition of the same number as the source's.
`bodyDigest` lets anybody who forms the batch again see that it is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from ingester.core.batch import Batch
from ingester.core.delivery import Acknowledged


class Receipt(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """One settled batch; without items it was dead-lettered as a whole, and nobody acknowledged."""

    topic: str
    partition: int
    first_offset: int
    next_offset: int
    idempotency_key: str
    batch_id: str | None
    http_status: int | None
    items: int
    dead_letters: int
    bits: int
    bits_by_key: Mapping[str, int]
    body_digest: str
    attempts: int
    settled_at: str
    """ISO 8601, UTC, by the worker's clock."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Receipt).decode


def encode_receipt(
    batch: Batch, outcome: Acknowledged | None, attempts: int, settled_at: str
) -> bytes:
    """Return the value of the receipt's record."""
    return _encode(
        Receipt(
            topic=batch.partition.topic,
            partition=batch.partition.partition,
            first_offset=batch.first_offset,
            next_offset=batch.next_offset,
            idempotency_key=batch.idempotency_key,
            batch_id=outcome.batch_id if outcome else None,
            http_status=outcome.status if outcome else None,
            items=batch.items_count,
            dead_letters=len(batch.dead_letters),
            bits=batch.bits,
            bits_by_key=batch.bits_by_key,
            body_digest=hashlib.blake2b(batch.body, digest_size=20).hexdigest(),
            attempts=attempts,
            settled_at=settled_at,
        )
    )


def decode_receipt(value: bytes | None) -> Receipt | None:
    """Read a receipt back; None for a record that is none, whoever wrote it."""
    try:
        return _decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
