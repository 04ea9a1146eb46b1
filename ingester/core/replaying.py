"""Where a replay begins in a partition: what it is to send, less what was settled since.

A replay is a worker of a group of its own. Whatever it is not to send is passed like something
that has a receipt, so that its batches end where that begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from ingester.core.coverage import Proof
from ingester.core.intent import Ledger, Range
from ingester.core.mapping import Correction
from ingester.core.messages import Commit, Start
from ingester.core.ranges import subtracted
from ingester.core.receipt import Note, Receipt, Replay
from ingester.core.record import TopicPartition
from ingester.core.start import is_to_go_on, start_at

_LOG_END: Final = 2**63 - 1  # beyond every offset


class Replaying(msgspec.Struct, frozen=True):
    """What a replay is to send of each partition, in ascending ranges."""

    name: str
    selected: Mapping[TopicPartition, Sequence[Range]]
    forced: bool = False
    """Whether what has receipts is to be counted once more."""
    correction: Correction | None = None
    """Of dead letters, which stay what they are when they are refused again; None for others."""

    @property
    def namespace(self) -> str:
        """Of its keys: those of what is counted once more must be new to PacSpace."""
        return self.name if self.forced else ""

    def extents(self) -> Mapping[TopicPartition, Range]:
        """Return the range of each partition that holds all of its own."""
        return {name: (each[0][0], each[-1][1]) for name, each in self.selected.items() if each}

    def start_of(
        self,
        name: TopicPartition,
        commit: Commit | None,
        *,
        log_begins: int,
        receipts_end: int,
        notes: Sequence[tuple[int, Note]],
    ) -> Start:
        """Return where it goes on, by the offset of its own group and the notes about all."""
        selected = self.selected.get(name, ())
        if not selected:
            nothing = _not_selected((0, _LOG_END))
            return Start(log_begins, Ledger(receipts_end, ()), {}, proofs=(nothing,))
        begun = start_at(
            name,
            commit or Commit(selected[0][0], ""),
            log_begins=log_begins,
            receipts_end=receipts_end,
            notes=[each for each in notes if not self.forced or _is_of(self.name, each[1])],
        )
        intended = [each.range for each in begun.ledger.intents]
        left_out = subtracted(subtracted([(begun.offset, _LOG_END)], selected), intended)
        # Whoever has an offset of its own has come first: all others have given way.
        rival = None if commit else _rival(self.name, notes, (selected[0][0], selected[-1][1]))
        return replace(
            begun,
            halt_reason=begun.halt_reason or (_taken(name, rival) if rival else None),
            proofs=(*begun.proofs, *map(_not_selected, left_out)),
        )


def _not_selected(range_: Range) -> Proof:
    """Pass a range without a receipt: beyond all of them, it has none of them read again."""
    return Proof(*range_, "", _LOG_END)


def _is_of(replay: str, note: Note) -> bool:
    return not isinstance(note, Receipt) or note.replay == replay


def _rival(replay: str, notes: Sequence[tuple[int, Note]], extent: Range) -> Replay | None:
    """Return another replay of some of it that began before this one and goes on."""
    ended: set[str] = set()
    rival: Replay | None = None
    for _, note in reversed(notes):
        if is_to_go_on(note):
            break
        if not isinstance(note, Replay):
            continue
        if note.state == "ended":
            ended.add(note.name)
        elif note.name == replay:
            rival = None  # those that began after it give way
        elif note.name not in ended:
            overlaps = note.first_offset < extent[1] and extent[0] < note.next_offset
            rival = note if overlaps else rival
    return rival


def _taken(name: TopicPartition, rival: Replay) -> str:
    return (
        f"the replay {rival.name} has {name}[{rival.first_offset},{rival.next_offset}) since"
        f" {rival.at}, and has not ended. Let it end, continue it, or give it up (`ingester resolve"
        f" {name}` says how), and repeat this one"
    )
