"""Dead letters: records that are not sent, why, and how many of them are too many.

A few are bad data. When most of what comes is refused, it is a bad deployment, and a partition is
better halted than emptied into the dead-letter topic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from ingester.core.event import Rejection
from ingester.core.record import Record, TopicPartition

_PARTITION_BELOW: Final = 2**31  # both as Kafka has them
_OFFSET_BELOW: Final = 2**63
_BUCKETS = 10  # of a window: what is older than it goes a tenth at a time


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that is not sent, and why."""

    record: Record
    rejection: Rejection
    http_status: int | None = None
    """What PacSpace answered to the item alone; None when it was never sent."""
    http_body: bytes = b""
    """The beginning of that answer."""


class Origin(NamedTuple):
    """What the headers of a dead letter say: which record it was, and why it is there."""

    partition: TopicPartition
    offset: int
    code: str
    detail: str
    http_status: int | None
    http_body: bytes
    dead_lettered_at: str | None
    """ISO 8601, UTC, by the worker's clock; None where it did not say."""


def origin_of(headers: Sequence[tuple[str, bytes | None]]) -> Origin | None:
    """Read the headers of a record in the dead-letter topic; None for one that is none of ours.

    Those that were written last hold: what they say of a dead letter's own dead letter is before.
    """
    said = {name: (content or b"") for name, content in headers}
    try:
        status, at = said.get("ingester-http-status"), said.get("ingester-dead-lettered-at")
        partition = int(said["ingester-source-partition"])
        offset = int(said["ingester-source-offset"])
        if not (0 <= partition < _PARTITION_BELOW and 0 <= offset < _OFFSET_BELOW):
            return None
        return Origin(
            TopicPartition(said["ingester-source-topic"].decode(), partition),
            offset,
            said["ingester-error-code"].decode("utf-8", "replace"),
            said.get("ingester-error-detail", b"").decode("utf-8", "replace"),
            int(status) if status is not None else None,
            said.get("ingester-http-body", b""),
            at.decode("ascii", "replace") if at is not None else None,
        )
    except (KeyError, ValueError):
        return None


class DeadLetterLimit(msgspec.Struct, frozen=True):
    """How many dead letters a window may bring: more than both bounds is too many."""

    count_max: int
    share_max: float
    """Of all that the window counts, from 0 to 1."""
    window_seconds: float


class DeadLetterWindow(msgspec.Struct):
    """Counts what one partition brought lately; `now` never goes back."""

    limit: DeadLetterLimit
    _buckets: deque[tuple[float, int, int]] = msgspec.field(default_factory=deque)
    # When each begins, its records, its dead letters; oldest first.
    _records: int = 0
    _dead_letters: int = 0

    def add(self, now: float, records: int, dead_letters: int) -> str | None:
        """Count a batch; return why it is too much, if it is."""
        limit = self.limit
        while self._buckets and self._buckets[0][0] <= now - limit.window_seconds:
            _, old_records, old_letters = self._buckets.popleft()
            self._records -= old_records
            self._dead_letters -= old_letters
        self._records += records
        self._dead_letters += dead_letters
        if self._buckets and self._buckets[-1][0] > now - limit.window_seconds / _BUCKETS:
            begins, last_records, last_letters = self._buckets.pop()
            self._buckets.append((begins, last_records + records, last_letters + dead_letters))
        else:
            self._buckets.append((now, records, dead_letters))
        if not dead_letters or self._dead_letters <= limit.count_max:
            return None
        in_all = max(self._records, self._dead_letters)
        if self._dead_letters <= limit.share_max * in_all:
            return None
        return (
            f"{self._dead_letters} of {in_all} records within {limit.window_seconds:g} s"
            " are dead letters (INGESTER_DEAD_LETTERS_MAX, INGESTER_DEAD_LETTER_SHARE_MAX)"
        )
