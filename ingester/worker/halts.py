"""Looks, while partitions are halted, for what people have decided about them.

`ingester resolve` writes a decision to the receipts topic; whoever owns the partition reads it
there, at its next assignment or here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ingester.core.partition import PartitionState
from ingester.core.receipt import Receipt, Replay, Resolution, decode_note
from ingester.core.record import TopicPartition
from ingester.kafka.range import read_to_end
from ingester.kafka.receipts import Receipts
from ingester.settings import Settings


class Decisions:
    """Knows up to where the notes of each halted partition were looked through."""

    def __init__(self, settings: Settings, receipts: Receipts) -> None:
        self._settings = settings
        self._receipts = receipts
        self._looked_up_to: dict[TopicPartition, int] = {}
        # In the receipts topic, of the partitions that were halted when it was last looked: below
        # there is no decision that its start does not know.

    async def taken(
        self, halted: Mapping[TopicPartition, PartitionState]
    ) -> Mapping[TopicPartition, Sequence[Resolution | Replay]]:
        """Return what was decided about them since it was last said where they begin.

        It is returned until that has been said anew. UnavailableError when the receipts cannot be
        read now.
        """
        self._looked_up_to = {
            name: max(
                self._looked_up_to.get(name, 0),
                self._receipts.read_up_to(name),
                state.receipts_offset,
            )
            for name, state in halted.items()
        }
        starts: dict[TopicPartition, int] = {}
        for name, looked_up_to in self._looked_up_to.items():
            place = self._receipts.partition_for(name)
            starts[place] = min(looked_up_to, starts.get(place, looked_up_to))
        decided: dict[TopicPartition, list[Resolution | Replay]] = {}
        async for _, record in read_to_end(self._settings, starts):
            note = decode_note(record.value)
            if note is None:
                continue
            name = TopicPartition(note.topic, note.partition)
            if name not in halted or record.offset < self._looked_up_to[name]:
                continue
            if not isinstance(note, Receipt) and _lets_go_on(note, halted[name].committed):
                decided.setdefault(name, []).append(note)
            elif name not in decided:
                self._looked_up_to[name] = record.offset + 1
        return decided


def _lets_go_on(note: Resolution | Replay, committed: int) -> bool:
    """Whether a halt may be over: somebody has decided, or a replay has ended."""
    ended = isinstance(note, Resolution) or note.state == "ended"
    return ended and note.next_offset > committed
