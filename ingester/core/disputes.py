"""Receipts that cover ground more than once: whether they are one batch, told twice, or two.

Holds one claim for each range and key of the disputed ground, never the notes; it is given all
notes once more, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from ingester.core.audit import Finding, FindingKind, NotePlace, PartitionAudit
from ingester.core.intent import Range
from ingester.core.ranges import merged, touches
from ingester.core.receipt import Note, Receipt


class _Claim(NamedTuple):
    range: Range
    idempotency_key: str
    batch_id: str | None
    place: NotePlace


@dataclass(slots=True)
class Disputes:
    """Receipts of the same ground, read again, in any order."""

    audit: PartitionAudit
    _ground: list[Range] = field(init=False)
    _claims: dict[tuple[Range, str], _Claim] = field(default_factory=dict)
    # The first receipt of each range and key: filled by `add`, read by `add` and `judge`.
    _aside: dict[tuple[Range, str], Receipt] = field(default_factory=dict)
    # Of which none was counted yet: filled and emptied by `add`, read by `judge`.

    def __post_init__(self) -> None:
        self._ground = merged(self.audit.disputed.values())

    def add(self, place: NotePlace, note: Note) -> None:
        """Take a note again."""
        if not isinstance(note, Receipt) or note.forced or not touches(self._ground, note.range):
            return
        name = note.range, note.idempotency_key
        claim = _Claim(note.range, note.idempotency_key, note.batch_id, place)
        earlier = self._claims.setdefault(name, claim)
        if earlier is not claim:
            self._compare(earlier, claim)
        elif place in self.audit.disputed:
            self._aside[name] = note
        if place not in self.audit.disputed:
            self._aside.pop(name, None)

    def _compare(self, one: _Claim, other: _Claim) -> None:
        earlier, later = sorted((one, other), key=attrgetter("place"))
        ids = {earlier.batch_id, later.batch_id} - {None}
        where = f"receipts {_at(earlier)} and {_at(later)}"
        if len(ids) > 1:
            self._find(
                "counted_twice",
                later.range,
                f"PacSpace acknowledged it as {earlier.batch_id} and as {later.batch_id} ({where}):"
                " it may have counted it twice",
            )
        else:
            self._find("repeated", later.range, f"the same batch has two receipts ({where})")

    def judge(self) -> Sequence[Receipt]:
        """Find what overlaps otherwise, once all notes are read.

        Returns the receipts whose bits count although they were set aside.
        """
        claims = sorted(self._claims.values())
        furthest: _Claim | None = None
        for claim in claims:
            if furthest is not None and claim.range[0] < furthest.range[1]:
                overlap = (claim.range[0], min(claim.range[1], furthest.range[1]))
                self._find(
                    "overlap",
                    overlap,
                    f"in the receipts of two batches, {_shown(furthest)} and {_shown(claim)}",
                )
            if furthest is None or claim.range[1] > furthest.range[1]:
                furthest = claim
        return list(self._aside.values())

    def _find(self, kind: FindingKind, range_: Range, detail: str) -> None:
        self.audit.findings.append(Finding(kind, self.audit.name, range_, detail))


def _at(claim: _Claim) -> str:
    book, offset = claim.place
    return f"{book}:{offset}"


def _shown(claim: _Claim) -> str:
    return f"[{claim.range[0]},{claim.range[1]}) as {claim.batch_id or 'no batch'}"
