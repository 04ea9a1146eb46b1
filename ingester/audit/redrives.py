"""What the receipts of dead-letter topics say that redrives have sent, and whether it is still so.

A topic that was made anew begins at the same offsets: whether a receipt means the letters that are
there is seen in its idempotency key, which names their timestamps.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ingester.core.batch import idempotency_key
from ingester.core.intent import Range
from ingester.core.ranges import holds, merged
from ingester.core.receipt import Note, Receipt, Replay, Resolution
from ingester.core.record import Record, TopicPartition
from ingester.core.start import is_to_go_on


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What of a record an idempotency key names."""

    offset: int
    timestamp: int
    key: None = None
    value: None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


class Redrives:
    """Told of every note about the dead-letter topics in order, then of every record there."""

    def __init__(self) -> None:
        self.batches: Counter[TopicPartition] = Counter()
        """Those that were sent, by partition."""
        self._sent: defaultdict[TopicPartition, list[Receipt]] = defaultdict(list)
        self._claims: defaultdict[TopicPartition, dict[str, Replay]] = defaultdict(dict)
        self._repeated: list[Replay] = []
        self._wanted: set[tuple[TopicPartition, int]] = set()  # the ends of what was sent
        self._stamps: dict[tuple[TopicPartition, int], _Stamp] = {}

    def note(self, name: TopicPartition, note: Note) -> None:
        """Hear what is written about a partition."""
        match note:
            case Receipt():
                if note.items:
                    self.batches[name] += 1
                    self._sent[name].append(note)
                    self._wanted |= {(name, note.first_offset), (name, note.next_offset - 1)}
            case Resolution():
                if is_to_go_on(note):
                    self._claims[name].clear()
            case Replay():
                self._claims[name].pop(note.name, None)
                if note.state == "started":
                    self._claims[name][note.name] = note
                    if note.repeated:
                        self._repeated.append(note)

    def record(self, name: TopicPartition, record: Record) -> None:
        """Look at a record that is there now."""
        if (name, record.offset) in self._wanted:
            self._stamps[name, record.offset] = _Stamp(record.offset, record.timestamp)

    def sent(self, name: TopicPartition, log: Range) -> tuple[list[Range], list[Range]]:
        """Return the ranges that were sent, and those of receipts that mean other letters.

        `log` is younger than the receipts: a receipt that passes its end is of a former log.
        """
        sent: list[Range] = []
        mistaken: list[Range] = []
        for receipt in self._sent[name]:
            is_of_these = receipt.next_offset <= log[1] and self._is_of_these(name, receipt)
            (sent if is_of_these else mistaken).append(receipt.range)
        return merged(sent), merged(mistaken)

    def _is_of_these(self, name: TopicPartition, receipt: Receipt) -> bool:
        first = self._stamps.get((name, receipt.first_offset))
        last = self._stamps.get((name, receipt.next_offset - 1))
        if first is None or last is None:  # they are deleted, and the key tells nothing
            return True
        key = idempotency_key(name, first, last, receipt.namespace)
        return key == receipt.idempotency_key

    def repeated(self) -> Iterator[tuple[TopicPartition, int]]:
        """Yield the records of which a letter was sent and others were there, by what was noted.

        So it is known of these when the one that was sent is deleted.
        """
        sent: defaultdict[tuple[TopicPartition, str | None], list[Range]] = defaultdict(list)
        for name, receipts in self._sent.items():
            for receipt in receipts:
                sent[name, receipt.replay].append(receipt.range)
        for note in self._repeated:
            ranges = merged(sent[TopicPartition(note.topic, note.partition), note.name])
            for offset, topic, partition, source_offset in note.repeated:
                if holds(ranges, offset):
                    yield TopicPartition(topic, partition), source_offset

    def claimed(self, name: TopicPartition) -> list[Range]:
        """Return where the letters are of redrives that have begun and not ended."""
        claims = self._claims[name].values()
        return merged((each.first_offset, each.next_offset) for each in claims)

    def under_way(self, extents: Mapping[TopicPartition, Range]) -> Replay | None:
        """Return a redrive of some of these letters that has begun and not ended."""
        for name, (first_offset, next_offset) in extents.items():
            for claim in self._claims[name].values():
                if claim.first_offset < next_offset and first_offset < claim.next_offset:
                    return claim
        return None
