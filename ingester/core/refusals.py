"""What becomes of batches that PacSpace refuses: halves of them, and in the end dead letters.

The records of a refused batch are read again, because nobody kept them. A half is a new cut: it has
its own range, body and key, and is intended before it is sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from ingester.core.batch import Batch, BatchBuilder
from ingester.core.committer import Committer
from ingester.core.deadletter import DeadLetter
from ingester.core.deliveries import Deliveries
from ingester.core.delivery import Refused
from ingester.core.dispatch import Delivery
from ingester.core.event import Decode, Rejection
from ingester.core.messages import Limits
from ingester.core.offsets import Span
from ingester.core.partition import Partition
from ingester.core.record import Record

_LEARNED_SECONDS = 60.0  # after which an endpoint that took less may be tried with twice as much


class Refusals:
    """Holds refused batches until something smaller can take their place."""

    def __init__(
        self,
        limits: Limits,
        decode: Decode,
        namespace: str,
        deliveries: Deliveries,
        committer: Committer,
    ) -> None:
        self._limits = limits
        self._decode = decode
        self._namespace = namespace
        self._deliveries = deliveries
        self._committer = committer
        self._waiting: dict[Partition, list[Delivery]] = {}
        # In the order of their refusals; emptied as there are records to look into, and room.

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def add(self, part: Partition, delivery: Delivery) -> None:
        """Take a batch whose refusal is the last word."""
        self._waiting.setdefault(part, []).append(delivery)

    def give_up(self, part: Partition) -> Sequence[Delivery]:
        """Return what was not replaced, and forget it: nothing of it was applied."""
        return self._waiting.pop(part, ())

    def read(self, delivery: Delivery, records: Sequence[Record]) -> bool:
        """Take the records of a refused batch; return whether the log still holds all of them."""
        if not records:
            return False
        if self._form(delivery.batch, records).body_digest != delivery.batch.body_digest:
            return False
        delivery.records = records
        return True

    def replace(self, now: float, wall_seconds: int) -> list[Delivery | tuple[Partition, str]]:
        """Replace what can be, and return those without items that have a dead letter to write.

        A partition comes with the reason for which it has to be halted after that.
        """
        done: list[Delivery | tuple[Partition, str]] = []
        for part, waiting in list(self._waiting.items()):
            left = []
            too_many: str | None = None
            for delivery in waiting:
                if too_many or not delivery.records:
                    left.append(delivery)
                elif delivery.batch.items_count == 1:
                    assert delivery.refused is not None, "only what was refused waits here"
                    done.append(self._refuse_item(delivery, delivery.refused))
                    too_many = part.refusals.add(now, 1, 1)
                    if too_many:
                        done.append((part, f"{too_many}; the last one: {delivery.refused.reason}"))
                elif self._committer.may_split(part, delivery):
                    self._split(part, delivery, wall_seconds)
                else:
                    left.append(delivery)
            self._waiting[part] = left
            if not left:
                del self._waiting[part]
        return done

    def clear(self) -> None:
        self._waiting.clear()

    def _split(self, part: Partition, delivery: Delivery, wall_seconds: int) -> None:
        parts = []
        for records in halves(delivery.batch, delivery.records):
            half = self._form(delivery.batch, records)
            span = Span(half.first_offset, half.next_offset, half.intent_digest)
            parts.append(Delivery(half, span, dead_letters_pending=False, records=records))
        first, second = parts
        part.offsets.split(delivery.span, (first.span, second.span), wall_seconds)
        self._deliveries.forget([delivery])
        for each in parts:
            self._deliveries.add(each)
        self._committer.intend_halves(part, parts)

    def _refuse_item(self, delivery: Delivery, refused: Refused) -> Delivery:
        batch, letter = without_item(delivery.batch, delivery.records, refused)
        emptied = Delivery(
            batch,
            delivery.span,
            delivery.attempts,
            recorded=True,
            items_pending=False,
            letters=(letter,),
        )
        self._deliveries.forget([delivery])
        self._deliveries.add(emptied)
        return emptied

    def _form(self, batch: Batch, records: Sequence[Record]) -> Batch:
        builder = BatchBuilder(
            batch.partition,
            batch.epoch,
            self._limits.batch,
            self._decode,
            self._namespace,
        )
        return builder.form(records)


def halves(batch: Batch, records: Sequence[Record]) -> tuple[Sequence[Record], Sequence[Record]]:
    """Divide a batch's records between the items in its middle."""
    assert batch.items_count > 1, "an item cannot be split"
    items = _items(batch, records)
    middle = items[len(items) // 2]
    return records[:middle], records[middle:]


def without_item(
    batch: Batch, records: Sequence[Record], refused: Refused
) -> tuple[Batch, DeadLetter]:
    """Return the batch without its only item, and the dead letter that the item becomes."""
    (index,) = _items(batch, records)
    rejection = Rejection("refused", refused.reason)
    letter = DeadLetter(records[index], rejection, refused.status, refused.body)
    letters = sorted((*batch.dead_letters, letter), key=lambda each: each.record.offset)
    emptied = replace(
        batch, items_count=0, bits=0, bits_by_key_json=b"{}", dead_letters=tuple(letters)
    )
    return emptied, letter


def _items(batch: Batch, records: Sequence[Record]) -> list[int]:
    """Return the indices of the records that became items."""
    rejected = {letter.record.offset for letter in batch.dead_letters}
    return [index for index, record in enumerate(records) if record.offset not in rejected]


class BodyLimit:
    """How many bytes the endpoint takes, learned from what it refused as too large."""

    def __init__(self, bytes_max: int) -> None:
        self._configured = self._bytes_max = bytes_max
        self._relaxed_at = 0.0

    def refused(self, body_bytes: int, now: float) -> None:
        """Hear that so much was too much."""
        self._bytes_max = min(self._bytes_max, max(1, body_bytes // 2))
        self._relaxed_at = now + _LEARNED_SECONDS

    def bytes_max(self, now: float) -> int:
        """Return where to cut; what was learned long ago is tried again."""
        if self._bytes_max < self._configured and now >= self._relaxed_at:
            self._bytes_max = min(self._configured, 2 * self._bytes_max)
            self._relaxed_at = now + _LEARNED_SECONDS
        return self._bytes_max
