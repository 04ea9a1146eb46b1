"""What receipts prove settled beyond where a partition begins, left out where it is read again.

A worker whose group has lost its offsets, or one behind a replay, meets records that were billed.
Whether they are those that the receipts mean is seen in the batch's key, which names their
timestamps: a topic made anew begins at the same offsets.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

from ingester.core.batch import idempotency_key
from ingester.core.intent import Range
from ingester.core.record import Record, TopicPartition

_offset_of = attrgetter("offset")


class Proof(NamedTuple):
    """One settled range, the key under which it was, and where the receipts topic says so."""

    first_offset: int
    next_offset: int
    idempotency_key: str
    """Empty where the range is passed for another reason."""
    receipt_offset: int
    namespace: str = ""

    @property
    def range(self) -> Range:
        return (self.first_offset, self.next_offset)

    def __str__(self) -> str:
        return f"[{self.first_offset},{self.next_offset})"


class Coverage:
    """Consumed in offset order: what is read is compared, and passed once."""

    def __init__(self, partition: TopicPartition, proofs: Iterable[Proof]) -> None:
        self._partition = partition
        self._proofs = deque(sorted(set(proofs)))
        self._first: Record | None = None  # the first and the last of the first proof that was read
        self._last: Record | None = None
        self.mistaken: Proof | None = None
        """Whose range holds other records than those that were settled; set once, ends it."""

    def __bool__(self) -> bool:
        return bool(self._proofs)

    @property
    def is_undecided(self) -> bool:
        """Whether a proof is read in part, and it is not known yet whose records it means."""
        return self._first is not None

    def sift(self, records: Sequence[Record]) -> list[Sequence[Record]]:
        """Return the records that nothing covers, in runs: behind each but the last is a proof."""
        runs: list[Sequence[Record]] = []
        while self._proofs and records:
            proof = self._proofs[0]
            begin = bisect_left(records, proof.first_offset, key=_offset_of)
            if begin == len(records):
                break
            end = bisect_left(records, proof.next_offset, begin, key=_offset_of)
            runs.append(records[:begin])
            inside, records = records[begin:end], records[end:]
            if inside and proof.idempotency_key:
                self._first = self._first or inside[0]
                self._last = inside[-1]
            if records or (inside and inside[-1].offset + 1 == proof.next_offset):
                self._pass(proof)
            if self.mistaken is not None:
                return [*runs, ()]
        return [*runs, records]

    def reached(self, position: int) -> None:
        """Go on behind what ends at or below a position: the log has lost the rest of it."""
        while self._proofs and self._proofs[0].next_offset <= position:
            self._pass(self._proofs[0])

    def _pass(self, proof: Proof) -> None:
        """Go on behind a proof whose records were read, unless they are others."""
        first, last = self._first, self._last
        self._proofs.popleft()
        self._first = self._last = None
        if first is None or last is None:
            return  # the log has lost them, or there is nothing to compare them with
        if (first.offset, last.offset + 1) != proof.range:  # or some, and the key tells nothing
            return
        if idempotency_key(self._partition, first, last, proof.namespace) != proof.idempotency_key:
            self.mistaken = proof
            self._proofs.clear()
