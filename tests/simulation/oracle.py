"""What must hold across all workers, judged from the logs, the brokers and the endpoint alone.

Told of everything at the moment when it takes effect: a request when it leaves and when it is
applied, a commit when it is stored, a receipt when it is appended. Reads no state of the core.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ingester.core.batch import Batch
from ingester.core.deadletter import DeadLetter
from ingester.core.intent import INTENTS_MAX, METADATA_BYTES_MAX, Ledger, Range, decode
from ingester.core.messages import Commit
from ingester.core.receipt import Decision
from ingester.core.record import TopicPartition
from tests.simulation.plan import Plan
from tests.support.records import Entry, Logs

READ_FAILED = "cannot be read: offset"  # so begins the reason of what a shell cannot read


class BrokenPromiseError(AssertionError):
    """A promise that was not kept; the message says which."""


def promise(kept: object, what: str) -> None:
    if not kept:
        raise BrokenPromiseError(what)


@dataclass(slots=True)
class _Book:
    """Everything about one partition."""

    entries: Sequence[Entry]
    offsets: list[int]
    end: int
    """Where the log ends; behind the last record may be markers."""
    committed: int
    applied: Counter[int] = field(default_factory=Counter)  # by record
    applied_ranges: set[Range] = field(default_factory=set)
    travelling: Counter[Range] = field(default_factory=Counter)
    # Requests that may still be applied.
    refused_alone: set[int] = field(default_factory=set)  # records whose items were
    lettered: set[int] = field(default_factory=set)
    receipts: dict[int, Range] = field(default_factory=dict)  # by record
    receipt_keys: dict[Range, str] = field(default_factory=dict)
    recorded: dict[Range, int] = field(default_factory=dict)  # the generation that stored it last
    receipt_offsets: dict[Range, int] = field(default_factory=dict)  # of the first of each
    has_commit: bool = False
    open: Counter[Range] = field(default_factory=Counter)
    # Attempts, but for those whose sender was told that they were not applied.
    vanished: set[int] = field(default_factory=set)
    forgotten: set[int] = field(default_factory=set)
    # Records that were sent and have no receipt, of which the group has lost all trace.
    unjudged: bool = False  # since it has lost it, if receipts show that there was something
    unreadable: set[int] = field(default_factory=set)
    skipped: set[int] = field(default_factory=set)

    def within(self, first_offset: int, next_offset: int) -> Sequence[Entry]:
        start = bisect_left(self.offsets, first_offset)
        return self.entries[start : bisect_left(self.offsets, next_offset)]


class Oracle:
    """Raises `BrokenPromiseError` where a promise is broken."""

    def __init__(self, logs: Logs, ends: Mapping[TopicPartition, int], plan: Plan) -> None:
        self._plan = plan
        self._books = {
            name: _Book(log, [each.record.offset for each in log], ends[name], log[0].record.offset)
            for name, log in logs.items()
        }
        self._bodies: dict[str, bytes] = {}  # of every key that was ever sent
        self._bits: Counter[str] = Counter()  # at the endpoint
        self.rough_ends = 0  # owners that could not say what they had left unsent
        self.doubles = 0

    # -- requests -----------------------------------------------------------------------------

    def sent(
        self, batch: Batch, key: str, *, owned: bool, inherited: bool, generation: int
    ) -> None:
        """Check an attempt when it leaves its worker."""
        book = self._books[batch.partition]
        range_ = batch.range
        entries = book.within(*range_)
        items = [each.item for each in entries if each.item is not None]
        promise(
            batch.body == b'{"items":[' + b",".join(items) + b"]}"
            or any(each.record.offset in book.vanished for each in entries),
            f"integrity: the body of {batch} is not its records' items",
        )
        promise(
            self._bodies.setdefault(key, batch.body) == batch.body
            or any(each.record.offset in book.vanished for each in entries),
            f"integrity: the key of {batch} carries two bodies",
        )
        promise(not book.unjudged, f"in doubt: {batch} is sent, and the group has lost its offsets")
        promise(owned, f"fencing: {batch} is sent by a worker that does not own its partition")
        promise(
            inherited or book.recorded.get(range_) == generation,
            f"fencing: {batch} is sent, and no commit of its generation recorded it",
        )
        others = book.travelling.keys() | book.applied_ranges
        promise(
            all(each == range_ or each[1] <= range_[0] or range_[1] <= each[0] for each in others)
            or self._plan.keys == "ignored",
            f"frozen batches: {batch} is sent, and some of it was sent in another range",
        )
        book.open[range_] += 1
        book.travelling[range_] += 1

    def arrived(self, batch: Batch) -> None:
        """Hear that an attempt was applied, or will never be."""
        book = self._books[batch.partition]
        book.travelling[batch.range] -= 1
        book.travelling += Counter()  # without those of nothing

    def refused(self, batch: Batch) -> None:
        """Hear that the endpoint, or what is in front of it, refuses what is in a batch."""
        if batch.items_count == 1:
            book = self._books[batch.partition]
            entries = book.within(*batch.range)
            book.refused_alone |= {each.record.offset for each in entries if each.item is not None}

    def denied(self, batch: Batch, *, wholly: bool) -> None:
        """Hear that the sender was told that this attempt, or each, was certainly not applied."""
        book = self._books[batch.partition]
        book.open[batch.range] -= book.open[batch.range] if wholly else 1
        book.open += Counter()  # without those of nothing

    def applied(self, batch: Batch) -> None:
        """Count what the endpoint has written."""
        book = self._books[batch.partition]
        double = False
        if batch.first_offset not in book.forgotten:
            book.applied_ranges.add(batch.range)
        for entry in book.within(*batch.range):
            if entry.item is not None:
                book.applied[entry.record.offset] += 1
                again = book.applied[entry.record.offset] > 1
                double |= again and entry.record.offset not in book.forgotten
        for item in json.loads(batch.body)["items"]:
            self._bits[f"{batch.partition} {item['key']}"] += item["bits"]
        if double:
            self.doubles += 1
            promise(self._plan.keys == "ignored", f"exactly once: {batch} is applied twice")
            promise(
                self._plan.limits.in_doubt == "retry",
                f"in doubt: {batch} is applied twice, though doubts halt",
            )

    # -- topics -------------------------------------------------------------------------------

    def letters_appended(self, batch: Batch, letters: Sequence[DeadLetter]) -> None:
        book = self._books[batch.partition]
        entries = book.within(*batch.range)
        expected = [each.record for each in entries if each.item is None]
        by_pacspace = [each.record for each in letters if each.rejection.code == "refused"]
        promise(
            by_pacspace or [letter.record for letter in letters] == expected or book.vanished,
            f"integrity: the dead letters of {batch} are not its refused records",
        )
        promise(
            {each.offset for each in by_pacspace} <= book.refused_alone,
            f"integrity: {batch} is a dead letter, and nobody refused it alone",
        )
        book.lettered |= {letter.record.offset for letter in letters}

    def receipt_appended(self, batch: Batch, receipt_offset: int) -> None:
        book = self._books[batch.partition]
        range_ = batch.range
        promise(self._plan.limits.receipts, "receipts: one is written though they are off")
        promise(
            book.receipt_keys.setdefault(range_, batch.idempotency_key) == batch.idempotency_key,
            f"coverage: {batch} has receipts with two keys",
        )
        book.receipt_offsets.setdefault(range_, receipt_offset)
        for entry in book.within(*range_):
            offset = entry.record.offset
            promise(
                book.receipts.setdefault(offset, range_) == range_ or offset in book.forgotten,
                f"coverage: {batch.partition}:{offset} has receipts of two ranges",
            )
            done = offset in book.lettered or book.applied[offset]
            promise(
                done or offset in book.vanished,
                f"coverage: {batch} has a receipt before it is settled",
            )

    # -- commits ------------------------------------------------------------------------------

    def stored(self, generation: int, offsets: Mapping[TopicPartition, Commit]) -> None:
        """Check what the coordinator has stored."""
        for name, commit in offsets.items():
            book = self._books[name]
            book.has_commit = True
            promise(commit.next_offset >= book.committed, f"order: {name} is committed back")
            for entry in book.within(book.committed, commit.next_offset):
                if entry.record.offset not in book.vanished | book.skipped:
                    self._check_settled(name, book, entry)
            book.committed = commit.next_offset
            promise(book.committed <= book.end, f"order: {name} is committed beyond its end")
            promise(
                len(commit.metadata.encode()) <= METADATA_BYTES_MAX, "bounds: too much metadata"
            )
            ledger = decode(commit.next_offset, commit.metadata)
            promise(isinstance(ledger, Ledger), f"ledger: {name} has metadata nobody can read")
            assert isinstance(ledger, Ledger)
            promise(len(ledger.intents) <= INTENTS_MAX, "bounds: too many intents")
            ranges = [each.range for each in ledger.intents]
            for range_ in ranges:
                book.recorded[range_] = generation
            forgotten = [
                each for each in book.open if each[1] > commit.next_offset and each not in ranges
            ]
            missed = [
                each
                for each, offset in book.receipt_offsets.items()
                if each[1] > commit.next_offset
                and offset < ledger.receipts_offset
                and each[0] not in book.forgotten
            ]
            promise(not missed, f"ledger: {name}{missed} have receipts that nobody would find")
            promise(
                not forgotten, f"ledger: {name}{forgotten} may have been sent, and is forgotten"
            )

    def _check_settled(self, name: TopicPartition, book: _Book, entry: Entry) -> None:
        offset = entry.record.offset
        if entry.item is None:
            promise(offset in book.lettered, f"nothing lost: {name}:{offset} is no dead letter")
        else:
            promise(
                book.applied[offset] or offset in book.lettered,
                f"nothing lost: {name}:{offset} was never applied",
            )
        if self._plan.limits.receipts:
            promise(offset in book.receipts, f"coverage: {name}:{offset} has no receipt")

    # -- halts --------------------------------------------------------------------------------

    def vanished(self, name: TopicPartition, offset: int) -> None:
        self._books[name].vanished.add(offset)

    def offsets_lost(self) -> None:
        """Hear that the group has none any more: what has no receipt may be counted twice."""
        for book in self._books.values():
            unreceipted = {*book.open, *book.travelling, *book.applied_ranges}
            unreceipted -= book.receipt_offsets.keys()
            for range_ in unreceipted:
                book.forgotten |= {each.record.offset for each in book.within(*range_)}
            book.applied_ranges -= unreceipted
            book.travelling.clear()
            book.open.clear()
            book.recorded.clear()
            book.has_commit = False
            book.committed = book.offsets[0]
            book.unjudged = bool(book.receipts)

    def judged(self, name: TopicPartition) -> None:
        """Hear that somebody has decided about all that is in doubt."""
        self._books[name].unjudged = False

    def unreadable(self, name: TopicPartition, offset: int) -> None:
        """Hear that nobody will ever read a record."""
        self._books[name].unreadable.add(offset)

    def skipped(self, name: TopicPartition, offset: int) -> None:
        """Hear that somebody passes it; only of what is committed can somebody decide."""
        book = self._books[name]
        promise(book.has_commit, f"liveness: {name} halts, and the group has committed nothing")
        book.skipped.add(offset)

    def stopped_where_it_is(self, name: TopicPartition, reason: str) -> None:
        """Check that nothing readable waits before what stopped a partition without doubts."""
        unreadable = reason.removeprefix(READ_FAILED).strip()
        if unreadable.isdigit():
            left = self._books[name].within(self._books[name].committed, int(unreadable))
            promise(not left, f"liveness: {name} halts, and what precedes is unsettled: {reason}")

    def halted(self, name: TopicPartition, reason: str) -> None:
        """Check that a halt for a doubt has one."""
        book = self._books[name]
        if "INGESTER_IN_DOUBT" in reason and not self.rough_ends:
            open_ = [each for each in book.open if each[1] > book.committed]
            # What was never sent has to stay intended below dead letters that are settled.
            settled = any(offset >= book.committed for offset in book.lettered)
            promise(
                open_ or settled, f"in doubt: {name} halts, and nothing of it was sent: {reason}"
            )
        if "does not hold all of its records" in reason:
            promise(book.vanished, f"liveness: {name} halts, and its log is whole: {reason}")

    # -- the end ------------------------------------------------------------------------------

    def finished(self, halts: Mapping[TopicPartition, str], *, judged: bool) -> None:
        """Check that all was settled and committed; a halted partition has to have a reason."""
        for name, book in self._books.items():
            if name in halts:
                if judged:
                    self._excuse(name, book, halts[name])
                continue
            promise(
                book.committed == book.end or book.vanished,
                f"liveness: {name} is committed up to {book.committed} of {book.end}",
            )
            if self._plan.keys != "ignored" and not book.vanished and not book.forgotten:
                self._check_sums(name, book)

    def _check_sums(self, name: TopicPartition, book: _Book) -> None:
        expected: Counter[str] = Counter()
        for entry in book.entries:
            if entry.item is not None and book.applied[entry.record.offset]:
                item = json.loads(entry.item)
                expected[f"{name} {item['key']}"] += item["bits"]
        actual = Counter({key: self._bits[key] for key in expected})
        promise(expected == actual, f"exactly once: the sums of {name} are not those of its log")

    def truth(self, name: TopicPartition, range_: Range) -> Decision:
        """What somebody who knows the endpoint's books decides about a doubt."""
        book = self._books[name]
        entries = book.within(*range_)
        applied = [book.applied[each.record.offset] > 0 for each in entries if each.item]
        if any(each.record.offset in book.forgotten for each in entries):
            # A part may have been applied in a batch that nobody knows of any more.
            return "acknowledged" if all(applied) else "resend"
        return "acknowledged" if any(applied) else "resend"

    def _excuse(self, name: TopicPartition, book: _Book, reason: str) -> None:
        limits = self._plan.limits
        excused = (
            ("INGESTER_IN_DOUBT is halt" in reason and limits.in_doubt == "halt")
            or (
                "INGESTER_IDEMPOTENCY_WINDOW_SECONDS" in reason
                and (
                    limits.idempotency_window_seconds < 1000 or self._plan.clock_jump_seconds > 1000
                )
            )
            or ("INGESTER_DEAD_LETTERS_MAX" in reason and limits.dead_letters.count_max < 1000)
            or ("not by PacSpace itself" in reason and self._plan.answers.get("proxied"))
            or bool(book.vanished)
            or (reason.startswith(READ_FAILED) and book.unreadable - book.skipped)
        )
        promise(excused, f"liveness: {name} stays halted: {reason}")
