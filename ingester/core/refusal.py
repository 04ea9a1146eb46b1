"""What becomes of a batch that PacSpace refuses: halves of it, and in the end a dead letter.

A half is a new cut: it has its own range, body and key, and is intended before it is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ingester.core.batch import Batch
from ingester.core.deadletter import DeadLetter
from ingester.core.delivery import Refused
from ingester.core.event import Rejection
from ingester.core.record import Record

_LEARNED_SECONDS = 600.0  # after which an endpoint that took less may be tried with twice as much


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
    emptied = replace(batch, items_count=0, bits=0, bits_by_key={}, dead_letters=tuple(letters))
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
