"""What one account has used in a period, by key: events of the log, each with its receipt."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ingester.core.event import UsageEvent
from ingester.core.record import TopicPartition

_UNKNOWN_MS: Final = -(2**63)  # in place of None, where a column holds numbers alone


class Occasion(NamedTuple):
    """When an event was, and where it is; the earlier of two is the lesser."""

    timestamp_ms: int
    partition: TopicPartition
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


class Settlement(NamedTuple):
    """Of a receipt what a statement needs."""

    first_offset: int
    next_offset: int
    settled_at_ms: int | None
    """None where the receipt does not say it."""


class Settlements:
    """The receipts of one partition, in 24 bytes each: added in any order, sorted, then asked."""

    def __init__(self) -> None:
        self._columns = [array("q") for _ in Settlement._fields]

    def add(self, settlement: Settlement) -> None:
        for column, number in zip(self._columns, settlement, strict=True):
            column.append(_UNKNOWN_MS if number is None else number)

    def sort(self) -> None:
        """Make ready to be asked."""
        rows = sorted(zip(*self._columns, strict=True))
        for number, column in enumerate(self._columns):
            column[:] = array("q", [row[number] for row in rows])

    def of(self, offset: int) -> Settlement | None:
        """Return the receipt that covers an offset; None without one."""
        position = bisect_right(self._columns[0], offset) - 1
        if position < 0:
            return None
        begin, end, moment = (column[position] for column in self._columns)
        if end <= offset:
            return None
        return Settlement(begin, end, None if moment == _UNKNOWN_MS else moment)


@dataclass(slots=True)
class Tally:
    """Events that are no part of any line, and why is said elsewhere."""

    events: int = 0
    bits: int = 0

    def add(self, bits: int) -> None:
        self.events += 1
        self.bits += bits


@dataclass(slots=True)
class Line:
    """The settled events of one key."""

    key: str
    first: Occasion
    last: Occasion
    first_settled_at_ms: int | None
    last_settled_at_ms: int | None
    events: int = 0
    bits: int = 0
    batches: int = 0
    _batches: dict[TopicPartition, int] = field(default_factory=dict)
    # Where the batch begins that was counted last, by the partition that it is of: events come in
    # offset order.

    def add(
        self, bits: int, occasion: Occasion, settlement: Settlement, sent_from: TopicPartition
    ) -> None:
        """Take one more event."""
        self.events += 1
        self.bits += bits
        self.first = min(self.first, occasion)
        self.last = max(self.last, occasion)
        moments = {self.first_settled_at_ms, self.last_settled_at_ms, settlement.settled_at_ms}
        known = [each for each in moments if each is not None]
        self.first_settled_at_ms = min(known, default=None)
        self.last_settled_at_ms = max(known, default=None)
        if self._batches.get(sent_from) != settlement.first_offset:
            self._batches[sent_from] = settlement.first_offset
            self.batches += 1


@dataclass(slots=True)
class Statement:
    """Fed with the events of the account alone, in the order of what they were sent from."""

    account: str
    begin_ms: int
    end_ms: int
    lines: dict[str, Line] = field(default_factory=dict)
    waiting: Tally = field(default_factory=Tally)
    """Without a receipt: not settled yet."""
    refused: Tally = field(default_factory=Tally)
    """In the dead-letter topic, and not redriven."""
    skipped: Tally = field(default_factory=Tally)
    """Passed by somebody's decision, without a receipt."""
    untold: Tally = field(default_factory=Tally)
    """In a batch of which dead letters are gone: these, or settled."""
    recounted: dict[str, Tally] = field(default_factory=dict)
    """By replay: what was counted again by force, in the lines or not."""
    broken: Counter[str] = field(default_factory=Counter)
    """By code: dead letters that are no usage event, and name the account."""
    nameless: int = 0
    """Dead letters that are no usage event, and name no account."""

    def covers(self, timestamp_ms: int) -> bool:
        """Whether a moment is in the period, whose end is not."""
        return self.begin_ms <= timestamp_ms < self.end_ms

    def add(
        self,
        event: UsageEvent,
        occasion: Occasion,
        settlement: Settlement | None,
        *,
        dead: bool = False,
        skipped: bool = False,
        untold: bool = False,
        sent_from: TopicPartition | None = None,
    ) -> None:
        """Take an event of the account and the period.

        `sent_from` is the partition of its batch, if that is not the one of the occasion: that of
        a dead letter.
        """
        if dead:
            self.refused.add(event.bits)
        elif settlement is None and skipped:
            self.skipped.add(event.bits)
        elif settlement is not None and untold:
            self.untold.add(event.bits)
        elif settlement is None:
            self.waiting.add(event.bits)
        else:
            line = self.lines.get(event.key)
            if line is None:
                moment = settlement.settled_at_ms
                line = self.lines[event.key] = Line(event.key, occasion, occasion, moment, moment)
            line.add(event.bits, occasion, settlement, sent_from or occasion.partition)

    def add_broken(self, account: str | None, code: str, count: int) -> None:
        """Take dead letters of the period that are no usage event; a negative count takes back."""
        if account is None:
            self.nameless += count
        elif account == self.account:
            self.broken[code] += count

    @property
    def is_whole(self) -> bool:
        """Whether everything of the account and the period is in a line, as far as is known."""
        return not (self._beside or self.nameless)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the account was met in the period."""
        return not (self.lines or self._beside)

    @property
    def _beside(self) -> int:
        """How much is in no line."""
        tallies = (self.waiting, self.refused, self.skipped, self.untold)
        return sum(each.events for each in tallies) + self.broken.total()

    @property
    def totals(self) -> Tally:
        """Of all lines."""
        lines = self.lines.values()
        return Tally(sum(each.events for each in lines), sum(each.bits for each in lines))
