"""What became of one record, by all that is written about its offset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from ingester.core.intent import Intent
from ingester.core.receipt import Note, Receipt, Replay, Resolution

Fate = Literal[
    "settled",
    "dead_lettered",
    "skipped",
    "no_record",
    "in_doubt",
    "waiting",
    "beyond_end",
    "lost",
    "unexplained",
]
FINAL: frozenset[Fate] = frozenset({"settled", "dead_lettered", "skipped", "no_record"})
"""Nothing more will become of it, and nothing is missing."""


class Place(msgspec.Struct, frozen=True):
    """An offset, and where it stands between the ends of its log."""

    offset: int
    next_offset: int | None
    """The committed one; None where the group has committed nothing."""
    log_begins: int
    log_ends: int
    holds_record: bool
    """Whether the log holds a record there, which can only be seen between its ends."""

    @property
    def is_committed(self) -> bool:
        """Whether the group has passed it for good."""
        return self.next_offset is not None and self.offset < self.next_offset

    @property
    def is_in_log(self) -> bool:
        """Whether it can be seen what is there."""
        return self.log_begins <= self.offset < self.log_ends


class Evidence(msgspec.Struct, frozen=True):
    """What is written about one offset: each part oldest first, and possibly empty."""

    receipts: Sequence[Receipt]
    decisions: Sequence[Resolution]
    claims: Sequence[Replay]
    """Replays that have begun there, and not ended."""
    dead_letters: int
    """How many dead letters it has: more than one after a crash."""
    intent: Intent | None = None
    """The batch in doubt that it is a part of."""
    is_event: bool = True
    """Whether the record is a usage event, as far as it can be seen."""

    @property
    def counted(self) -> Sequence[Receipt]:
        """Receipts that prove the record an item, and no dead letter."""
        return [each for each in self.receipts if each.items and not each.dead_letters]


def covering(offset: int, notes: Sequence[Note]) -> Sequence[Note]:
    """Return the notes whose range covers an offset, in their order."""
    return [note for note in notes if note.first_offset <= offset < note.next_offset]


def evidence(
    notes: Sequence[Note],
    *,
    dead_letters: int = 0,
    intent: Intent | None = None,
    is_event: bool = True,
) -> Evidence:
    """Sort what covers one offset by what it is."""
    replays = [note for note in notes if isinstance(note, Replay)]
    ended = {note.name for note in replays if note.state == "ended"}
    return Evidence(
        [note for note in notes if isinstance(note, Receipt)],
        [note for note in notes if isinstance(note, Resolution)],
        [note for note in replays if note.name not in ended],
        dead_letters,
        intent,
        is_event,
    )


def fate_of(place: Place, found: Evidence) -> Fate:
    """Decide what became of the record at an offset, if there is one.

    What is proved goes before what can be seen: a receipt holds when the log has lost the record,
    and one without dead letters when somebody has written one of it before.
    """
    if found.dead_letters and not found.counted:
        return "dead_lettered"
    if place.offset >= place.log_ends and not found.receipts:
        return "beyond_end"
    if place.is_in_log and not place.holds_record:
        return "no_record"
    if found.receipts:
        may_be = found.is_event and any(each.items for each in found.receipts)
        return "settled" if found.counted or may_be else "dead_lettered"
    if any(each.decision == "skipped" for each in found.decisions):
        return "skipped"
    if found.intent is not None:
        return "in_doubt"
    if place.is_committed:
        return "unexplained"
    return "lost" if place.offset < place.log_begins else "waiting"
