"""The worker with a stopwatch: notes when each event passes each step, writes it down at the end.

The steps are facts and commands of the core, so that the worker itself knows nothing of it.
"""

from __future__ import annotations

import atexit
import os
import time
from pathlib import Path

import msgspec

from ingester.__main__ import main
from ingester.core.batch import Batch
from ingester.core.delivery import Acknowledged
from ingester.core.messages import (
    AttemptEnded,
    Command,
    Fact,
    ReceiptWritten,
    RecordsFetched,
    SendBatch,
)
from ingester.core.partition import Partition
from ingester.core.pipeline import Pipeline
from ingester.core.record import TopicPartition
from ingester.worker import loop as worker

FILE_VARIABLE = "BENCHMARK_PASSAGES_FILE"


class Passage(msgspec.Struct, gc=False):
    """When one event got where, in seconds since the epoch."""

    appended: float
    """By the broker's clock, in whole milliseconds."""
    fetched: float
    cut: float = 0.0
    sent: float = 0.0
    acknowledged: float = 0.0
    receipted: float = 0.0


_passages: dict[tuple[TopicPartition, int], Passage] = {}


class _Observed(Pipeline):
    """Notes the time of the facts and commands that an event's way is made of."""

    def _take_one(self, part: Partition, batch: Batch, now: float, commands: list[Command]) -> None:
        super()._take_one(part, batch, now, commands)
        _note(batch, "cut")

    def handle(self, fact: Fact, now: float) -> list[Command]:
        if isinstance(fact, RecordsFetched):
            wall_seconds = time.time()
            for name, records in fact.records.items():
                for record in records:
                    passage = Passage(record.timestamp / 1000, wall_seconds)
                    _passages[name, record.offset] = passage
        elif isinstance(fact, AttemptEnded) and isinstance(fact.outcome, Acknowledged):
            _note(fact.batch, "acknowledged")
        elif isinstance(fact, ReceiptWritten):
            _note(fact.batch, "receipted")
        commands = super().handle(fact, now)
        for command in commands:
            if isinstance(command, SendBatch):
                _note(command.batch, "sent")
        return commands


def _note(batch: Batch, step: str) -> None:
    wall_seconds = time.time()
    for offset in range(batch.first_offset, batch.next_offset):
        setattr(_passages[batch.partition, offset], step, wall_seconds)


def _write() -> None:
    Path(os.environ[FILE_VARIABLE]).write_bytes(msgspec.json.encode(list(_passages.values())))


if __name__ == "__main__":
    worker.Pipeline = _Observed  # type: ignore[misc] # the one place where the worker makes its own
    atexit.register(_write)
    main()
