"""The open batches of all partitions: what they hold, and when their linger ends."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from ingester.core.batch import Batch
from ingester.core.partition import Partition
from ingester.core.record import Record


class OpenBatches:
    """Each ends full, by its linger, or forgotten; one that waits for a boundary has no linger."""

    def __init__(self, linger_seconds: float) -> None:
        self._linger_seconds = linger_seconds
        self._ends: OrderedDict[Partition, float] = OrderedDict()
        # When the linger of each ends that may be cut. The linger is one for all: oldest first.
        self.bytes = 0
        """Of all of them."""

    def __bool__(self) -> bool:
        return bool(self._ends)

    def __contains__(self, part: Partition) -> bool:
        return part in self._ends

    @property
    def linger_ends_at(self) -> float | None:
        """When the first of them is to be cut."""
        return next(iter(self._ends.values()), None)

    def extend(
        self, part: Partition, records: Sequence[Record], cut_bytes_max: int, now: float
    ) -> list[Batch]:
        """Take records of a partition; return the batches that they end."""
        before = part.builder.buffered_bytes
        batches = part.extend(records, cut_bytes_max)
        self.bytes += part.builder.buffered_bytes - before
        if batches:
            self._ends.pop(part, None)
        if part.builder.may_be_cut:
            self._ends.setdefault(part, now + self._linger_seconds)
        return batches

    def cut(self, part: Partition) -> Batch:
        """End the open batch of a partition that has one."""
        del self._ends[part]
        self.bytes -= part.builder.buffered_bytes
        return part.builder.cut()

    def cut_due(self, until: float) -> Iterator[tuple[Partition, Batch]]:
        """End those whose linger ends until then, each when it is asked for."""
        while self._ends:
            part, ends_at = next(iter(self._ends.items()))
            if ends_at > until:
                return
            yield part, self.cut(part)

    def discard(self, part: Partition) -> None:
        """Forget the open batch of a partition, if it has one."""
        self._ends.pop(part, None)
        self.bytes -= part.builder.buffered_bytes
        part.builder.discard()

    def clear(self) -> None:
        self._ends.clear()
        self.bytes = 0
