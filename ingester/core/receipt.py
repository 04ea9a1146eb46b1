"""What the receipts topic says of a source's records: proofs of batches, and people's decisions.

One JSON object a note, in the partition of the same number as the source's; `kind` tells them
apart. `bodyDigest` lets anybody who forms the batch again see that it is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal, cast

import msgspec

from ingester.core.batch import Batch
from ingester.core.delivery import Acknowledged
from ingester.core.intent import Range

Offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
PartitionNumber = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
"""Both as Kafka has them: a note with others is none that a worker wrote."""


class Receipt(
    msgspec.Struct,
    frozen=True,
    gc=False,
    rename="camel",
    tag_field="kind",
    tag="receipt",
    omit_defaults=True,
):
    """One settled batch; without items it was dead-lettered as a whole, and nobody acknowledged."""

    topic: str
    partition: PartitionNumber
    first_offset: Offset
    next_offset: Offset
    idempotency_key: str
    batch_id: str | None
    http_status: int | None
    items: int
    dead_letters: int
    bits: int
    bits_by_key: Mapping[str, int]
    body_digest: str
    attempts: int
    in_doubt: bool
    """Whether an attempt before the last may have been applied: if PacSpace ignores the key, what
    was counted twice is among these."""
    settled_at: str
    """ISO 8601, UTC, by the worker's clock."""
    replay: str | None = None
    """The name of the replay that settled it; None for a worker."""
    forced: bool = False
    """Whether it was to be counted whatever had receipts, under keys of the replay's own."""

    @property
    def range(self) -> Range:
        return (self.first_offset, self.next_offset)

    @property
    def settled_at_ms(self) -> int | None:
        """The same in milliseconds since the epoch; None for a text that is no such time."""
        try:
            return int(datetime.fromisoformat(self.settled_at).timestamp() * 1000)
        except (ValueError, OverflowError):
            return None

    @property
    def namespace(self) -> str:
        """What its idempotency key was made with, beside the records."""
        return self.replay or "" if self.forced else ""


Decision = Literal["acknowledged", "resend", "skipped"]


class Resolution(
    msgspec.Struct, frozen=True, gc=False, rename="camel", tag_field="kind", tag="resolution"
):
    """Somebody's decision about a range that no worker may decide about."""

    topic: str
    partition: PartitionNumber
    first_offset: Offset
    next_offset: Offset
    decision: Decision
    by: str
    reason: str
    decided_at: str
    """ISO 8601, UTC, by the clock of the machine on which it was taken."""
    intended_at: int | None = None
    """That of the batch decided about: whoever sends it again intends it anew, so that this
    decision is not taken for one about that attempt."""
    unaccounted: bool = False
    """Whether it was taken although what may have been sent is not known: where the group has lost
    its offset, or a replay has not ended, everything is sent that has no receipt."""

    @property
    def range(self) -> Range:
        return (self.first_offset, self.next_offset)


class Replay(msgspec.Struct, frozen=True, gc=False, rename="camel", tag_field="kind", tag="replay"):
    """Somebody's replay of a part of a partition: a claim to it first, then its end.

    In between, what is beyond the group's committed offset is the replay's, and no worker's.
    """

    topic: str
    partition: PartitionNumber
    first_offset: Offset
    next_offset: Offset
    name: str
    state: Literal["started", "ended"]
    by: str
    reason: str
    at: str
    """ISO 8601, UTC, by the clock of the machine on which it runs."""
    forced: bool = False
    sets: tuple[str, ...] = ()
    """How dead letters are corrected, as on the command line; so are `removes`."""
    removes: tuple[str, ...] = ()
    repeated: tuple[tuple[int, str, int, int], ...] = ()
    """Its letters that are not the only ones of their records: the offset of each, then topic,
    partition and offset of the record. When such a letter is deleted, what is left of the record is
    known to be done."""

    @property
    def range(self) -> Range:
        return (self.first_offset, self.next_offset)


Note = Receipt | Resolution | Replay

_encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Note] = msgspec.json.Decoder(Note)


def encode_receipt(
    batch: Batch,
    outcome: Acknowledged | None,
    attempts: int,
    settled_at: str,
    *,
    in_doubt: bool,
    replay: str | None = None,
    forced: bool = False,
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
            bits_by_key=cast("Mapping[str, int]", msgspec.Raw(batch.bits_by_key_json)),
            body_digest=batch.body_digest.hex(),
            attempts=attempts,
            in_doubt=in_doubt,
            settled_at=settled_at,
            replay=replay,
            forced=forced,
        )
    )


def encode_note(note: Resolution | Replay) -> bytes:
    """Return the value of the record of a note that is no receipt."""
    return _encode(note)


def decode_note(value: bytes | None) -> Note | None:
    """Read a note back; None for a record that is none, whoever wrote it."""
    try:
        note = _decoder.decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(note, Receipt) and note.next_offset <= note.first_offset:
        return None  # no batch is empty
    return note
