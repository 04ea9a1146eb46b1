"""What the sources' receipts say of records that have dead letters.

A letter is written before the receipt of its batch. Whoever dies in between leaves one of which a
successor, or a replay, may make an item all the same: then its record is counted.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ingester.core.deadletter import Origin
from ingester.core.intent import Range
from ingester.core.letters import SourceOffsets
from ingester.core.messages import Commit
from ingester.core.ranges import holds, merged
from ingester.core.receipt import Note, Receipt, Replay, Resolution
from ingester.core.record import TopicPartition
from ingester.core.start import is_to_go_on

_ROOM = 10_000  # ranges that are kept before those that touch are joined


class _Offsets:
    """A set of offsets that grows by ranges, mostly in their order."""

    def __init__(self) -> None:
        self._ranges: list[Range] = []
        self._room = _ROOM
        self._is_merged = True

    def add(self, range_: Range) -> None:
        if self._ranges and self._ranges[-1][1] == range_[0]:
            self._ranges[-1] = (self._ranges[-1][0], range_[1])
        else:
            self._ranges.append(range_)
        self._is_merged = False
        if len(self._ranges) > self._room:
            self._merge()
            self._room = 2 * len(self._ranges) + _ROOM

    def holds(self, offset: int) -> bool:
        if not self._is_merged:
            self._merge()
        return holds(self._ranges, offset)

    def _merge(self) -> None:
        self._ranges = merged(self._ranges)
        self._is_merged = True


@dataclass(slots=True)
class _Mixed:
    """A receipt of items and dead letters, and how many letters of it are of no usage event."""

    range: Range
    dead_letters: int
    letters: int = 0

    def is_counted(self, *, refused: bool) -> bool:
        """Whether a letter of it became an item after all, or may have.

        What PacSpace refuses is receipted without items, so that it was not refused that time.
        Of the others it is not known which, where there are more than became dead letters.
        """
        return refused or self.letters > self.dead_letters


@dataclass(slots=True)
class _Book:
    """The receipts of one partition, those of forced replays apart."""

    counted: _Offsets = field(default_factory=_Offsets)
    mixed: dict[Range, _Mixed] = field(default_factory=dict)
    _firsts: list[int] = field(default_factory=list)
    _sorted: list[_Mixed] = field(default_factory=list)
    _length_max: int = 0

    def add(self, receipt: Receipt) -> None:
        if not receipt.items:
            return
        if not receipt.dead_letters:
            self.counted.add(receipt.range)
            return
        self.mixed[receipt.range] = _Mixed(receipt.range, receipt.dead_letters)
        self._length_max = max(self._length_max, receipt.next_offset - receipt.first_offset)

    def mixed_at(self, offset: int) -> Iterator[_Mixed]:
        if len(self._sorted) != len(self.mixed):
            self._sorted = sorted(self.mixed.values(), key=lambda each: each.range)
            self._firsts = [each.range[0] for each in self._sorted]
        begin = bisect_left(self._firsts, offset - self._length_max)
        for each in self._sorted[begin : bisect_right(self._firsts, offset)]:
            if offset < each.range[1]:
                yield each

    def is_counted(self, offset: int, *, refused: bool) -> bool:
        return self.counted.holds(offset) or any(
            each.is_counted(refused=refused) for each in self.mixed_at(offset)
        )


class Settlements:
    """Told of every note about the sources in order, then of every letter, and asked only then."""

    def __init__(
        self, commits: Mapping[TopicPartition, Commit], logs: Mapping[TopicPartition, Range]
    ) -> None:
        """`commits` and `logs` are older than the notes: what they pass has its receipts."""
        self._commits = commits
        self._logs = logs
        self._books: defaultdict[TopicPartition, _Book] = defaultdict(_Book)
        self._forced: defaultdict[TopicPartition, _Book] = defaultdict(_Book)
        self._final: defaultdict[TopicPartition, _Offsets] = defaultdict(_Offsets)
        # What has a receipt that is not forced, or was skipped by decision.
        self._claims: defaultdict[TopicPartition, dict[str, Replay]] = defaultdict(dict)
        # Replays that go on, by name.
        self._of_no_event = SourceOffsets()  # records of which a letter says so

    def note(self, name: TopicPartition, note: Note) -> None:
        """Hear what is written about a partition."""
        match note:
            case Receipt():
                (self._forced if note.forced else self._books)[name].add(note)
                if not note.forced:
                    self._final[name].add(note.range)
            case Resolution():
                if note.decision == "skipped":
                    self._final[name].add(note.range)
                if is_to_go_on(note):
                    self._claims[name].clear()
            case Replay():
                self._claims[name].pop(note.name, None)
                if note.state == "started":
                    self._claims[name][note.name] = note

    def letter(self, origin: Origin) -> None:
        """Hear of a letter."""
        name, offset = origin.partition, origin.offset
        if origin.http_status is None and self._of_no_event.add(name, offset):
            for book in (self._books[name], self._forced[name]):
                for each in book.mixed_at(offset):
                    each.letters += 1

    def is_counted(self, origin: Origin) -> bool:
        """Whether a worker, or a replay of what was not settled, has made an item of its record."""
        return self._books[origin.partition].is_counted(origin.offset, refused=_is_refused(origin))

    def is_forced(self, origin: Origin) -> bool:
        """Whether a forced replay has made an item of its record."""
        return self._forced[origin.partition].is_counted(origin.offset, refused=_is_refused(origin))

    def settled_by(self, origin: Origin) -> str | None:
        """Say who has still to settle its record, and may make an item of it; None for nobody."""
        name, offset = origin.partition, origin.offset
        is_final = self._final[name].holds(offset)
        for claim in self._claims[name].values():
            held = claim.first_offset <= offset < claim.next_offset
            if held and (claim.forced or not is_final):
                return f"the replay {claim.name} has not ended"
        begins, ends = self._logs.get(name, (0, 0))
        commit = self._commits.get(name)
        is_behind = commit is not None and offset < commit.next_offset
        if is_final or is_behind or not begins <= offset < ends:
            return None
        return "a worker still settles it: it is beyond the group's committed offset"


def _is_refused(origin: Origin) -> bool:
    return origin.http_status is not None
