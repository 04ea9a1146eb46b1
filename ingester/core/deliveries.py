"""Every batch that is cut and not settled, and the bytes that these hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ingester.core.batch import Batch
from ingester.core.dispatch import Delivery
from ingester.core.partition import Partition
from ingester.core.record import TopicPartition


class Deliveries:
    """Knows the delivery of each such batch; a fact about any other is about a former assignment.

    A batch that is forgotten without being settled leaves its span behind, which no commit passes.
    """

    def __init__(self, partitions: Mapping[TopicPartition, Partition]) -> None:
        self._partitions = partitions
        self._by_batch: dict[Batch, Delivery] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._by_batch)

    def __contains__(self, delivery: Delivery) -> bool:
        return self._by_batch.get(delivery.batch) is delivery

    def __iter__(self) -> Iterator[Delivery]:
        return iter(self._by_batch.values())

    def of(self, batch: Batch) -> Delivery | None:
        """Return the delivery that a fact is about, if anybody still wants to know."""
        return self._by_batch.get(batch)

    def add(self, delivery: Delivery) -> None:
        batch = delivery.batch
        self._by_batch[batch] = delivery
        self._partitions[batch.partition].batches_bytes += batch.buffered_bytes
        self.bytes += batch.buffered_bytes

    def forget(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            batch = delivery.batch
            del self._by_batch[batch]
            self._partitions[batch.partition].batches_bytes -= batch.buffered_bytes
            self.bytes -= batch.buffered_bytes

    def clear(self) -> None:
        self._by_batch.clear()
        self.bytes = 0
