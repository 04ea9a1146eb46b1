"""Which partitions pause while more is read than settled: memory has a bound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ingester.core.partition import Partition
from ingester.core.record import TopicPartition


class Backpressure:
    """Past the bound it stops the partitions that hold more than their share of it.

    Those below their share go on, so that a heavy partition does not starve the light ones;
    together they stay below twice the bound, plus one fetch each.
    """

    def __init__(self, bytes_max: int, partitions: Mapping[TopicPartition, Partition]) -> None:
        self._bytes_max = bytes_max
        self._partitions = partitions
        self.paused: set[TopicPartition] = set()
        """Those that are to go on; one that halts is taken out, and stays paused."""

    def pause(
        self, names: Iterable[TopicPartition], buffered_bytes: int
    ) -> frozenset[TopicPartition]:
        """Return which of these are to stop, by the bytes of all."""
        if buffered_bytes < self._bytes_max:
            return frozenset()
        share = self._bytes_max // len(self._partitions)
        parts = [self._partitions[name] for name in names if name in self._partitions]
        heavy = frozenset(
            part.name for part in parts if part.buffered_bytes >= share and not part.halt_reason
        )
        heavy -= self.paused
        self.paused |= heavy
        return heavy

    def resume(self, buffered_bytes: int) -> frozenset[TopicPartition]:
        """Return all below half of the bound; half, so that pausing does not flutter."""
        if buffered_bytes > self._bytes_max // 2:
            return frozenset()
        resumed = frozenset(self.paused)
        self.paused.clear()
        return resumed

    def resume_gathering(self) -> frozenset[TopicPartition]:
        """Return those that make room only with what is still to be read up to a boundary."""
        gathering = frozenset(name for name in self.paused if self._partitions[name].builder.frozen)
        self.paused -= gathering
        return gathering
