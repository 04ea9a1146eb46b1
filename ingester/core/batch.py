"""Gathers a partition's records into batches: one request each, with frozen boundaries and bytes.

A batch covers every record of `[first_offset, next_offset)`: those that became items, in offset
order, and those that were rejected. Its body and its key depend on the records and the
configuration alone: whoever forms the same range again sends the same bytes.
"""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Collection, Mapping, Sequence

import msgspec

from ingester.core.deadletter import DeadLetter
from ingester.core.event import Decode, Rejection, UsageEvent
from ingester.core.intent import Intent, Range
from ingester.core.record import Record, TopicPartition

_encode = msgspec.json.Encoder().encode
_decode_bits_by_key = msgspec.json.Decoder(dict[str, int]).decode

_BODY_START = b'{"items":['
_BODY_END = b"]}"
_COMMALESS_BYTES = len(_BODY_START) + len(_BODY_END) - 1
"""A body without items, less the comma that its first item does not have before it."""
_DEAD_LETTER_BYTES = 500
"""A record and its rejection without key, value and headers: 340 measured, and the sentence. A
tombstone has to fill the buffer as well, or a topic of them would fill the memory."""


class Batch(msgspec.Struct, frozen=True, eq=False):
    """One request. `items_count` is zero when every record of the range was rejected."""

    partition: TopicPartition
    epoch: int
    first_offset: int
    next_offset: int
    items_count: int
    bits: int
    bits_by_key_json: bytes
    """Encoded at the cut: 2 us, and 12 for the receipt, when a hundred keys have left the cache."""
    body: bytes
    body_digest: bytes
    idempotency_key: str
    dead_letters: tuple[DeadLetter, ...]
    buffered_bytes: int

    @property
    def range(self) -> Range:
        return (self.first_offset, self.next_offset)

    @property
    def bits_by_key(self) -> Mapping[str, int]:
        return _decode_bits_by_key(self.bits_by_key_json)

    @property
    def intent_digest(self) -> int:
        """What an intent has room for of the digest."""
        return int.from_bytes(self.body_digest[:4])

    def __str__(self) -> str:
        return f"{self.partition}[{self.first_offset},{self.next_offset})"


class BatchLimits(msgspec.Struct, frozen=True):
    """When a batch is cut: at whichever limit is reached first."""

    items_max: int
    body_bytes_max: int
    linger_seconds: float


class BatchBuilder(msgspec.Struct):
    """The one open batch of a partition; `extend` fills it, each cut empties it."""

    partition: TopicPartition
    epoch: int
    limits: BatchLimits
    decode: Decode
    namespace: str = ""
    """Part of each key: what is to be counted once more needs keys that PacSpace has not seen."""
    frozen: deque[Intent] = msgspec.field(default_factory=deque)
    """Boundaries that a former owner recorded, in offset order; each goes when it is formed."""
    passed: Collection[Range] = ()
    """Those of them that are settled: their records are not formed, but left out."""
    lost: Intent | None = None
    """A frozen range that cannot be formed again as it was; set once, ends the filling."""
    _encoded: list[bytes] = msgspec.field(default_factory=list)
    _dead_letters: list[DeadLetter] = msgspec.field(default_factory=list)
    _bits_by_key: dict[str, int] = msgspec.field(default_factory=dict)
    _body_bytes: int = _COMMALESS_BYTES
    _buffered_bytes: int = 0
    _first: Record | None = None
    _last: Record | None = None

    @property
    def may_be_cut(self) -> bool:
        """Whether there is something to cut; a frozen batch has its boundary and no linger."""
        return self._first is not None and not self.frozen

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the items in the open batch, and of all that its dead letters keep."""
        return self._buffered_bytes

    def extend(self, records: Sequence[Record], cut_bytes_max: int = sys.maxsize) -> list[Batch]:
        """Take records in offset order; return the batches that they filled.

        A record that is no usage event stays in the batch as a dead letter and changes nothing for
        its neighbours; so does one whose item alone exceeds `body_bytes_max`. `cut_bytes_max` is
        for an endpoint that takes less than the limits say.
        """
        batches: list[Batch] = []
        if self.frozen:
            records = self._form_again(records, batches)
        cut_bytes_max = min(cut_bytes_max, self.limits.body_bytes_max)
        self._fill(records, batches, self.limits.items_max, cut_bytes_max)
        return batches

    def form(self, records: Sequence[Record]) -> Batch:
        """Form one batch of all these records, of which there is one at least."""
        assert self._first is None, "the records of another batch are in between"
        self._fill(records, [], sys.maxsize, sys.maxsize)
        return self.cut()

    def _form_again(self, records: Sequence[Record], batches: list[Batch]) -> Sequence[Record]:
        """Form what a former owner intended, by its boundaries alone; return the records beyond."""
        while self.frozen and records:
            intent = self.frozen[0]
            inside = [record for record in records if record.offset < intent.next_offset]
            records = records[len(inside) :]
            if intent.range in self.passed:
                if records or inside[-1].offset + 1 == intent.next_offset:
                    self.frozen.popleft()
                continue
            self._fill(inside, batches, sys.maxsize, sys.maxsize)
            if not records and (self._last is None or self._last.offset + 1 < intent.next_offset):
                break  # the rest of it is still to be fetched
            batch = self._cut_as(intent)
            if batch is None:
                self.lost = intent
                self.discard()
                return ()
            self.frozen.popleft()
            batches.append(batch)
        return records

    def _cut_as(self, intent: Intent) -> Batch | None:
        """Cut what was intended; None when that is not what is there."""
        first, last = self._first, self._last
        if first is None or last is None or (first.offset, last.offset + 1) != intent.range:
            return None
        batch = self.cut()
        return batch if batch.intent_digest == intent.digest else None

    def _fill(
        self, records: Sequence[Record], batches: list[Batch], items_max: int, cut_bytes_max: int
    ) -> None:
        """Add records, as many at once as the open batch has room for: 0.5 us each, not 1.3."""
        position = 0
        while position < len(records):
            room = items_max - len(self._encoded) - len(self._dead_letters)
            piece = records[position : position + room]
            position += len(piece)
            if not self._take(piece, min(cut_bytes_max, self.limits.body_bytes_max)):
                self._fill_one_by_one(piece, batches, items_max, cut_bytes_max)
            elif len(piece) == room:
                batches.append(self.cut())

    def _take(self, records: Sequence[Record], body_bytes_max: int) -> bool:
        """Add all of these, unless one may be no event or they exceed the bytes of a body."""
        decoded = self.decode.all_of([record.value for record in records])
        if decoded is None:
            return False
        body_bytes = self._body_bytes + decoded.items_bytes + len(records)  # a comma before each
        if body_bytes > body_bytes_max:
            return False
        self._encoded += decoded.items
        self._body_bytes = body_bytes
        self._buffered_bytes += decoded.items_bytes
        self._count(decoded.events)
        if self._first is None:
            self._first = records[0]
        self._last = records[-1]
        return True

    def _count(self, events: Sequence[UsageEvent]) -> None:
        by_key = self._bits_by_key
        for event in events:
            key = event.key
            by_key[key] = by_key.get(key, 0) + event.bits

    def _fill_one_by_one(
        self, records: Sequence[Record], batches: list[Batch], items_max: int, cut_bytes_max: int
    ) -> None:
        decode, body_bytes_max = self.decode, self.limits.body_bytes_max
        for record in records:
            decoded = decode(record.value)
            if type(decoded) is tuple:
                event, encoded = decoded
                item_bytes = len(encoded) + 1  # a comma before it
                if _COMMALESS_BYTES + item_bytes > body_bytes_max:
                    self._reject(record, _too_large(len(encoded), body_bytes_max))
                else:
                    if self._body_bytes + item_bytes > cut_bytes_max and self._first is not None:
                        batches.append(self.cut())
                    self._encoded.append(encoded)
                    self._body_bytes += item_bytes
                    self._buffered_bytes += len(encoded)
                    self._count([event])
            else:
                assert isinstance(decoded, Rejection)
                self._reject(record, decoded)
            if self._first is None:
                self._first = record
            self._last = record
            if len(self._encoded) + len(self._dead_letters) >= items_max:
                batches.append(self.cut())

    def cut(self) -> Batch:
        """Close the open batch, whatever its size, and return it."""
        first, last = self._first, self._last
        assert first is not None
        assert last is not None
        body = _BODY_START + b",".join(self._encoded) + _BODY_END
        batch = Batch(
            partition=self.partition,
            epoch=self.epoch,
            first_offset=first.offset,
            next_offset=last.offset + 1,
            items_count=len(self._encoded),
            bits=sum(self._bits_by_key.values()),
            bits_by_key_json=_encode(self._bits_by_key),
            body=body,
            body_digest=hashlib.blake2b(body, digest_size=20).digest(),
            idempotency_key=idempotency_key(self.partition, first, last, self.namespace),
            dead_letters=tuple(self._dead_letters),
            buffered_bytes=self._buffered_bytes,
        )
        self.discard()
        return batch

    def discard(self) -> None:
        """Forget what is gathered; the records will be read again from the committed offset."""
        self._encoded = []
        self._dead_letters = []
        self._bits_by_key = {}
        self._body_bytes = _COMMALESS_BYTES
        self._buffered_bytes = 0
        self._first = self._last = None

    def _reject(self, record: Record, rejection: Rejection) -> None:
        self._dead_letters.append(DeadLetter(record, rejection))
        kept = _DEAD_LETTER_BYTES + len(record.key or b"") + len(record.value or b"")
        kept += sum(len(name) + len(content or b"") for name, content in record.headers)
        self._buffered_bytes += kept


def _too_large(item_bytes: int, body_bytes_max: int) -> Rejection:
    detail = (
        f"the item takes {item_bytes} bytes and does not fit a request of {body_bytes_max} bytes"
        " (INGESTER_BODY_BYTES_MAX)"
    )
    return Rejection("item_too_large", detail)


def idempotency_key(
    partition: TopicPartition, first: Record, last: Record, namespace: str = ""
) -> str:
    """Name the range, not the attempt; the timestamps tell a topic from a namesake made anew."""
    name = (
        f"{partition.topic}/{partition.partition}/{first.offset}/{last.offset + 1}"
        f"/{first.timestamp}/{last.timestamp}"
    )
    if namespace:
        name += f"/{namespace}"
    return "ingester-" + hashlib.blake2b(name.encode(), digest_size=20).hexdigest()
