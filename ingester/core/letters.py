"""Chooses dead letters: by why they are there, whose they are, and when they came.

A letter is read back from its record in the dead-letter topic. The same source record may have
several: whoever died before its offset was committed has written it, and so has its successor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import msgspec

from ingester.core.deadletter import Origin
from ingester.core.record import Record, TopicPartition

_BLOCK_OFFSETS: Final = (
    4096  # a block of neighbours takes 0.5 KiB, one that is alone some 100 bytes
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Letter(NamedTuple):
    """A dead letter: where it is, what it holds, and where it came from."""

    place: TopicPartition
    record: Record
    origin: Origin
    account: str | None
    """As far as the value can be read; so is `key`."""
    key: str | None
    redriven: bool
    """Whether this letter, or another of the same record, was sent by a redrive, or the record
    was counted by a forced replay."""
    repeats: bool
    """Whether an earlier letter is of the same record."""
    settled: bool = False
    """Whether its record became an item all the same, by the receipt of a worker or a replay."""

    @property
    def record_time(self) -> datetime | None:
        """When the source record was made, as it says; None where it does not."""
        return moment_of(self.record.timestamp)

    @property
    def dead_lettered_at(self) -> datetime | None:
        """When it was written, by the worker's clock; None where nobody has said so."""
        try:
            said = datetime.fromisoformat(self.origin.dead_lettered_at or "")
        except ValueError:
            return None
        return said if said.tzinfo else None


class Source(NamedTuple):
    """A topic that records came from, or one partition of it."""

    topic: str
    partition: int | None

    def holds(self, name: TopicPartition) -> bool:
        """Whether a partition is it, or of it."""
        return self.topic == name.topic and self.partition in {None, name.partition}


class Span(NamedTuple):
    """A time from `begin` on and before `end`; None is no bound."""

    begin: datetime | None = None
    end: datetime | None = None

    def __bool__(self) -> bool:
        return self.begin is not None or self.end is not None

    def holds(self, moment: datetime | None) -> bool:
        """Whether a moment is in it; one that is not known is in none but the boundless one."""
        if moment is None:
            return not self
        after_begin = self.begin is None or moment >= self.begin
        return after_begin and (self.end is None or moment < self.end)


BOUNDLESS: Final = Span()


class Choice(msgspec.Struct, frozen=True):
    """What letters have to be like; what is empty, or None, does not matter."""

    codes: Sequence[str] = ()
    accounts: Sequence[str] = ()
    keys: Sequence[str] = ()
    statuses: Sequence[int] = ()
    sources: Sequence[Source] = ()
    record_time: Span = BOUNDLESS
    dead_lettered: Span = BOUNDLESS
    redriven: bool | None = None

    def wants(self, letter: Letter) -> bool:
        """Whether a letter is to be looked at."""
        origin = letter.origin
        return (
            _among(origin.code, self.codes)
            and _among(letter.account, self.accounts)
            and _among(letter.key, self.keys)
            and _among(origin.http_status, self.statuses)
            and (not self.sources or any(each.holds(origin.partition) for each in self.sources))
            and self.record_time.holds(letter.record_time)
            and self.dead_lettered.holds(letter.dead_lettered_at)
            and self.redriven in {None, letter.redriven}
        )


def _among(found: object, wanted: Sequence[object]) -> bool:
    return not wanted or found in wanted


class SourceOffsets:
    """A set of records, by partition and offset: one bit for each, in blocks of neighbours."""

    def __init__(self) -> None:
        self._blocks: defaultdict[tuple[TopicPartition, int], int] = defaultdict(int)

    def add(self, name: TopicPartition, offset: int) -> bool:
        """Put a record in; return whether it is new."""
        block, number = divmod(offset, _BLOCK_OFFSETS)
        bit = 1 << number
        if self._blocks[name, block] & bit:
            return False
        self._blocks[name, block] |= bit
        return True

    def of(self, name: TopicPartition) -> Iterator[int]:
        """Yield the offsets of a partition, ascending."""
        for number in sorted(number for place, number in self._blocks if place == name):
            bits = self._blocks[name, number]
            first_offset = number * _BLOCK_OFFSETS
            yield from (first_offset + at for at in range(bits.bit_length()) if bits >> at & 1)

    def holds(self, name: TopicPartition, offset: int) -> bool:
        """Whether a record is in."""
        block, number = divmod(offset, _BLOCK_OFFSETS)
        return bool(self._blocks.get((name, block), 0) >> number & 1)


class _Peek(msgspec.Struct, gc=False):
    key: object = None
    accountId: object = None  # noqa: N815 -- the API's own spelling


_peek = msgspec.json.Decoder(_Peek).decode


def peeked(value: bytes | None) -> tuple[str | None, str | None]:
    """Return account and key of a value that is no usage event, as far as they can be read."""
    try:
        found = _peek(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, None
    account, key = found.accountId, found.key
    return account if isinstance(account, str) else None, key if isinstance(key, str) else None


def moment_of(timestamp: int) -> datetime | None:
    """Milliseconds since the epoch as a time; None for what is none."""
    if timestamp < 0:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=timestamp)
    except OverflowError:
        return None
