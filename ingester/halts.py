"""Looks, while partitions are halted, for what people have decided about them.

`ingester resolve` writes a decision to the receipts topic; whoever owns the partition reads it
there, at its next assignment or here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ingester.core.receipt import Resolution, decode_note
from ingester.core.record import TopicPartition
from ingester.kafka import end_offsets, read_to_end
from ingester.receipts import Receipts
from ingester.settings import Settings


class Decisions:
    """Knows up to where the notes of each halted partition were looked through."""

    def __init__(self, settings: Settings, receipts: Receipts) -> None:
        self._settings = settings
        self._receipts = receipts
        self._looked_up_to: dict[TopicPartition, int] = {}
        # In the receipts topic, of the partitions that were halted when it was last looked.

    async def taken(self, halted: Iterable[TopicPartition]) -> Sequence[TopicPartition]:
        """Return those about which something was decided since they were first asked about.

        UnavailableError when the receipts cannot be read now.
        """
        places = {name: self._receipts.partition_for(name) for name in halted}
        new = [name for name in places if name not in self._looked_up_to]
        ends = await end_offsets(self._settings, {places[name] for name in new})
        self._looked_up_to = {
            name: self._looked_up_to.get(name, ends.get(place, 0)) for name, place in places.items()
        }
        starts: dict[TopicPartition, int] = {}
        for name, place in places.items():
            looked_up_to = self._looked_up_to[name]
            starts[place] = min(looked_up_to, starts.get(place, looked_up_to))
        decided: dict[TopicPartition, None] = {}
        async for _, record in read_to_end(self._settings, starts):
            note = decode_note(record.value)
            if note is None:
                continue
            name = TopicPartition(note.topic, note.partition)
            if name in places and record.offset >= self._looked_up_to[name]:
                self._looked_up_to[name] = record.offset + 1
                if isinstance(note, Resolution):
                    decided[name] = None
        return list(decided)
