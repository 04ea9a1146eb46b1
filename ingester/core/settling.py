"""Takes a batch through the topics: its dead letters, a look at what was refused, its receipt.

One step at a time; what fails is repeated after a backoff, for as long as it takes. Behind the last
step the batch is settled, and its offsets may be committed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from itertools import count

from ingester.core.committer import Committer
from ingester.core.deliveries import Deliveries
from ingester.core.dispatch import Delivery
from ingester.core.messages import (
    DeadLettersNotWritten,
    DeadLettersWritten,
    Limits,
    RangeNotRead,
    ReadRange,
    ReceiptNotWritten,
    ReceiptWritten,
    WriteDeadLetters,
    WriteReceipt,
)
from ingester.core.partition import Partition
from ingester.core.record import TopicPartition

Step = WriteDeadLetters | ReadRange | WriteReceipt


def step_of(delivery: Delivery) -> Step:
    """Return what is to be done next for a batch in the topics."""
    if delivery.dead_letters_pending:
        return WriteDeadLetters(delivery.batch, delivery.letters)
    if delivery.refused is not None:
        return ReadRange(delivery.batch)
    return WriteReceipt(
        delivery.batch, delivery.acknowledged, delivery.attempts, in_doubt=delivery.in_doubt
    )


class Settling:
    """Settles what is done; a fact about a batch that nobody delivers any more changes nothing."""

    def __init__(
        self,
        limits: Limits,
        partitions: Mapping[TopicPartition, Partition],
        deliveries: Deliveries,
        committer: Committer,
    ) -> None:
        self._limits = limits
        self._partitions = partitions
        self._deliveries = deliveries
        self._committer = committer
        self._failed: list[tuple[float, int, Delivery]] = []
        # Those whose step failed: a heap by the time at which it is repeated.
        self._sequence = count()  # breaks ties in the heap

    @property
    def repeats_at(self) -> float | None:
        """When the first step that failed is to be repeated."""
        return self._failed[0][0] if self._failed else None

    def advance(self, delivery: Delivery) -> Sequence[Step]:
        """Return the last step once nothing else is left and the batch is recorded.

        Without receipts there is none, and the batch is settled.
        """
        if not delivery.done:
            return ()
        if not self._limits.receipts:
            self._settle(delivery)
        elif delivery.recorded:
            return (step_of(delivery),)
        return ()

    def dead_letters_written(self, fact: DeadLettersWritten) -> Sequence[Step]:
        """Go on with what was refused, or with the receipt."""
        delivery = self._deliveries.of(fact.batch)
        if delivery is None:
            return ()
        delivery.dead_letters_pending = False
        delivery.write_refused = None
        return (step_of(delivery),) if delivery.refused is not None else self.advance(delivery)

    def receipt_written(self, fact: ReceiptWritten) -> None:
        delivery = self._deliveries.of(fact.batch)
        if delivery is not None:
            self._partitions[fact.batch.partition].offsets.receipt_found(fact.offset)
            self._settle(delivery)

    def not_done(
        self, fact: DeadLettersNotWritten | ReceiptNotWritten | RangeNotRead, now: float
    ) -> None:
        """Have the step that failed repeated after its backoff."""
        delivery = self._deliveries.of(fact.batch)
        if delivery is not None:
            delivery.topic_attempts += 1
            delivery.write_refused = None if isinstance(fact, RangeNotRead) else fact.refused
            due = now + self._limits.backoff_seconds(delivery.topic_attempts, fact.jitter)
            heapq.heappush(self._failed, (due, next(self._sequence), delivery))

    def repeat(self, now: float) -> Iterator[Step]:
        """Return the steps whose backoff is over."""
        while self._failed and self._failed[0][0] <= now:
            delivery = heapq.heappop(self._failed)[2]
            if delivery in self._deliveries:
                yield step_of(delivery)

    def clear(self) -> None:
        self._failed.clear()

    def _settle(self, delivery: Delivery) -> None:
        part = self._partitions[delivery.batch.partition]
        self._deliveries.forget([delivery])
        if part.offsets.settle(delivery.span):
            self._committer.changed(part)
