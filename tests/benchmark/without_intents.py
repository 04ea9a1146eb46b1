"""The worker, but for its second promise: it sends a batch without recording its boundaries first.

What that saves is what the promise costs. Nobody but the benchmark may run it: after a crash it
counts twice.
"""

from __future__ import annotations

from ingester.__main__ import main
from ingester.core.batch import Batch
from ingester.core.messages import Command
from ingester.core.partition import Partition
from ingester.core.pipeline import Pipeline
from ingester.worker import loop as worker


class _Careless(Pipeline):
    """Has each batch ready as soon as it is cut; commits store positions alone."""

    def _take_one(self, part: Partition, batch: Batch, now: float, commands: list[Command]) -> None:
        super()._take_one(part, batch, now, commands)
        for delivery in self._committer.give_up(part):
            delivery.recorded = True
            self._dispatcher.add(delivery)


if __name__ == "__main__":
    worker.Pipeline = _Careless  # type: ignore[misc] # the one place where the worker makes its own
    main()
