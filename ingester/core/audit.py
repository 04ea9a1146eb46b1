"""Whether each offset is accounted for once: the notes about a partition, one by one, in any order.

Holds merged ranges and what is odd about some, never the notes. A note that covers ground again is
set aside, and judged by `disputes` when all notes about that ground are read a second time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Literal, NamedTuple

from ingester.core.batch import idempotency_key
from ingester.core.intent import Range
from ingester.core.ranges import intersected, merged, subtracted
from ingester.core.receipt import Note, Receipt, Replay, Resolution
from ingester.core.record import Record, TopicPartition

FindingKind = Literal[
    "gap",
    "counted_twice",
    "overlap",
    "dead_letters_differ",
    "dead_letter_without_receipt",
    "beyond_end",
    "other_records",
    "receipt_differs",
    "in_doubt",
    "repeated",
    "skipped",
    "lost",
    "letters_gone",
    "counted_again",
]
DISCREPANCIES: frozenset[FindingKind] = frozenset(
    {
        "gap",
        "counted_twice",
        "overlap",
        "dead_letters_differ",
        "dead_letter_without_receipt",
        "beyond_end",
        "other_records",
        "receipt_differs",
    }
)
"""What should not be. In doubt is what will be known later; the others are remarks."""

NotePlace = tuple[int, int]
"""Partition and offset in the receipts topic."""

_BEYOND = 2**63  # no offset is as high
_first = itemgetter(0)
_next = itemgetter(1)


class Finding(NamedTuple):
    """Something to be said about a range of offsets."""

    kind: FindingKind
    partition: TopicPartition
    range: Range
    detail: str


class Cover:
    """A set of offsets that grows by ranges, most of them behind the last."""

    def __init__(self) -> None:
        self.ranges: list[Range] = []

    def add(self, first_offset: int, next_offset: int) -> bool:
        """Add a range; return whether some of it was there already."""
        ranges = self.ranges
        begin = bisect_left(ranges, first_offset, key=_next)
        end = bisect_right(ranges, next_offset, key=_first)
        touched = ranges[begin:end]
        overlaps = any(each[0] < next_offset and first_offset < each[1] for each in touched)
        union = (first_offset, next_offset)
        if touched:
            union = (min(first_offset, touched[0][0]), max(next_offset, touched[-1][1]))
        ranges[begin:end] = [union]
        return overlaps


@dataclass(slots=True)
class Recount:
    """What one replay has counted in a partition whatever had receipts."""

    claim: Replay | None = None
    cover: Cover = field(default_factory=Cover)
    bits: int = 0


class DeadOffsets:
    """The source offsets of one partition's dead letters, each once."""

    def __init__(self, offsets: Iterable[int] = ()) -> None:
        self._offsets = sorted(set(offsets))

    def within(self, first_offset: int, next_offset: int) -> Sequence[int]:
        """Those of a range, ascending."""
        begin = bisect_left(self._offsets, first_offset)
        return self._offsets[begin : bisect_left(self._offsets, next_offset, begin)]

    def outside(self, ranges: Sequence[Range], before: int) -> list[Range]:
        """Those below an offset that are in none of the ranges, as ranges."""
        everything = merged((each, each + 1) for each in self._offsets if each < before)
        return subtracted(everything, ranges)

    def __len__(self) -> int:
        return len(self._offsets)


@dataclass(slots=True)
class PartitionAudit:
    """What the notes about one partition cover; `add` takes them in any order."""

    name: TopicPartition
    dead_letters: DeadOffsets
    dead_letters_are_complete: bool = True
    """Whether the dead-letter topic still has its beginning."""
    log: Range = (0, _BEYOND)
    """What the log holds."""
    covered: Cover = field(default_factory=Cover)
    recounts: dict[str | None, Recount] = field(default_factory=dict)
    """By replay: what was counted whatever had receipts."""
    skipped: list[Resolution] = field(default_factory=list)
    open_replays: dict[str, Replay] = field(default_factory=dict)
    """Those that have begun and not ended, by name."""
    disputed: dict[NotePlace, Range] = field(default_factory=dict)
    """Receipts of ground that others had covered."""
    outermost: list[Receipt] = field(default_factory=list)
    """The first and the last whose records the log can have, to see whether it has those."""
    letters_gone: dict[Range, Receipt] = field(default_factory=dict)
    """Receipts of what the log has, with more dead letters than are left: `tell` takes out some."""
    dead_whole: list[Range] = field(default_factory=list)
    """Receipts of nothing but dead letters, of which some are gone."""
    findings: list[Finding] = field(default_factory=list)
    receipts: int = 0

    def add(self, place: NotePlace, note: Note) -> bool:
        """Take a note; return whether what it says of bits counts, as far as is known yet."""
        range_ = note.range
        match note:
            case Replay(state="started"):
                self.open_replays[note.name] = note
                if note.forced:
                    self.recounts.setdefault(note.name, Recount()).claim = note
            case Replay():
                self.open_replays.pop(note.name, None)
            case Resolution():
                if note.decision == "skipped":
                    self.skipped.append(note)
            case Receipt():
                self.receipts += 1
                is_new = self.cover(note)
                if is_new:
                    self._compare_bits(note)
                if is_new and not note.forced:
                    self._compare_dead_letters(note)
                    self._keep_outermost(note)
                elif not note.forced:
                    self.disputed[place] = range_
                return is_new
        return False

    def cover(self, receipt: Receipt) -> bool:
        """Take note of a receipt's ground; return whether none of it was covered before.

        A replay that counts once more has ground of its own; after a crash it may have a second
        receipt of the same.
        """
        if not receipt.forced:
            return not self.covered.add(*receipt.range)
        recount = self.recounts.setdefault(receipt.replay, Recount())
        is_new = not recount.cover.add(*receipt.range)
        recount.bits += receipt.bits if is_new else 0
        return is_new

    def _compare_bits(self, receipt: Receipt) -> None:
        by_key = sum(receipt.bits_by_key.values())
        if by_key != receipt.bits:
            self._find(
                "receipt_differs",
                receipt.range,
                f"the receipt has {receipt.bits} bits, and {by_key} by key: somebody changed it",
            )

    def _keep_outermost(self, receipt: Receipt) -> None:
        begins, ends = self.log
        if begins <= receipt.first_offset and receipt.next_offset <= ends:
            known = sorted([*self.outermost, receipt], key=lambda each: each.range)
            self.outermost = [known[0], known[-1]] if len(known) > 1 else known

    def compare_records(self, receipt: Receipt, first: Record, last: Record) -> None:
        """See whether the first and the last record of a receipt's range are those it means."""
        key = idempotency_key(self.name, first, last, receipt.namespace)
        if (first.offset, last.offset + 1) == receipt.range and key != receipt.idempotency_key:
            self._find(
                "other_records",
                receipt.range,
                "the log holds other records there than those that were settled: was the topic made"
                " anew?",
            )

    def _compare_dead_letters(self, receipt: Receipt) -> None:
        range_ = receipt.range
        found = len(self.dead_letters.within(*range_))
        if found < receipt.dead_letters and not self.dead_letters_are_complete:
            if not receipt.items:
                self.dead_whole.append(receipt.range)
            elif self.log[0] < receipt.next_offset:
                self.letters_gone[receipt.range] = receipt
            return
        if found != receipt.dead_letters:
            self._find(
                "dead_letters_differ",
                range_,
                f"the receipt counts {receipt.dead_letters} dead letters and {receipt.items} items,"
                f" and the dead-letter topic has {found} of its records",
            )

    def tell(self, range_: Range, events: int) -> None:
        """Compare how many events the log has beside known dead letters with a receipt's items.

        With as many, none of the letters that are gone was an event; or else it cannot be told
        which of them were settled.
        """
        receipt = self.letters_gone[range_]
        if events == receipt.items:
            del self.letters_gone[range_]
            return
        left = len(self.dead_letters.within(*range_))
        self._find(
            "letters_gone",
            range_,
            f"the receipt counts {receipt.dead_letters} dead letters, and {left} are left: which of"
            f" its {events} events the {receipt.items} items were cannot be told",
        )

    def judge_ground(self, committed: int) -> list[Range]:
        """Find what the notes alone say is wrong below the committed offset.

        Returns what nothing covers and the log still has, if it has records there at all.
        """
        log_begins, log_ends = self.log
        reached = max([committed, *(each[1] for each in self.covered.ranges[-1:])])
        if log_ends < reached:
            self._find(
                "beyond_end",
                (log_ends, reached),
                f"committed or receipted, and the log ends at {log_ends}: was the topic made anew,"
                " or its log cut short?",
            )
        committed = min(committed, log_ends)
        skipped = merged(each.range for each in self.skipped)
        for decision in self.skipped:
            self._find(
                "skipped",
                decision.range,
                f"by {decision.by} at {decision.decided_at}: {decision.reason}",
            )
        for range_ in self.dead_letters.outside(self.covered.ranges, committed):
            if not intersected([range_], skipped):
                self._find(
                    "dead_letter_without_receipt",
                    range_,
                    "dead letters that no receipt covers, below the committed offset",
                )
        for replay, recount in self.recounts.items():
            self._remark_recount(replay, recount)
        begins = min([log_begins, *(each[0] for each in self.covered.ranges[:1])])
        open_ground = subtracted([(begins, committed)], merged([*self.covered.ranges, *skipped]))
        for range_ in intersected(open_ground, [(0, log_begins)]):
            self._find(
                "lost",
                range_,
                "nothing covers it, and retention has taken it: it cannot be told whether there"
                " were records",
            )
        return intersected(open_ground, [(log_begins, committed)]) if committed > log_begins else []

    def _remark_recount(self, replay: str | None, recount: Recount) -> None:
        ranges, claim = recount.cover.ranges, recount.claim
        if ranges:
            why = f"; by {claim.by}: {claim.reason}" if claim else ""
            self._find(
                "counted_again",
                (ranges[0][0], ranges[-1][1]),
                f"by force, by the replay {replay}, {recount.bits} bits{why}",
            )

    def compare_items(self, ranges: Sequence[Range], items: int, events: int) -> None:
        """See whether receipts count as many items as the log has events in their ranges.

        Where something is odd about the ground it cannot be told by numbers.
        """
        is_odd = self.disputed or self.letters_gone or subtracted(ranges, self.covered.ranges)
        if ranges and items != events and not is_odd:
            self._find(
                "receipt_differs",
                (ranges[0][0], ranges[-1][1]),
                f"the receipts count {items} items, and the log has {events} events",
            )

    def found_gap(self, range_: Range, records: int) -> None:
        """Take note of records that nothing covers."""
        dead = len(self.dead_letters.within(*range_))
        letters = f"; {dead} of them are in the dead-letter topic" if dead else ""
        self._find(
            "gap",
            range_,
            f"{records} records below the committed offset without receipt or decision{letters}",
        )

    def found_unreadable(self, range_: Range) -> None:
        """Take note of offsets that nothing covers and nobody can read."""
        self._find(
            "gap",
            range_,
            "below the committed offset without receipt or decision, and cannot be read",
        )

    def _find(self, kind: FindingKind, range_: Range, detail: str) -> None:
        self.findings.append(Finding(kind, self.name, range_, detail))
