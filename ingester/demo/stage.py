"""What runs in a demo, how to talk to it, and what the worker says it has settled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any, Final, TypeVar

import msgspec
from rich.console import Console

from ingester.errors import IncompleteError
from ingester.kafka.admin import KafkaAdmin
from ingester.kafka.writing import RecordWriter, Written
from ingester.local_kafka import LocalKafka
from ingester.pacspace import PacspaceClient

KEY: Final = "settlement-2025-06"
ACCOUNT: Final = "customer-acme"
START_SECONDS_MAX: Final = 30.0
LOOK_SECONDS: Final = 0.1

T = TypeVar("T")


@dataclass(slots=True)
class Settled:
    """What the worker's log says of acknowledged batches; read on by each `look`."""

    log: Path
    batches: list[dict[str, Any]] = field(default_factory=list)
    events: int = 0
    _read: int = 0

    def look(self) -> None:
        with self.log.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                if b'"batch.acknowledged"' in line:
                    batch = msgspec.json.decode(line)
                    self.batches.append(batch)
                    self.events += batch["items"]

    def batch_id_of(self, written: Written) -> str | None:
        for batch in reversed(self.batches):
            inside = batch["first_offset"] <= written.offset < batch["next_offset"]
            if inside and batch["partition"] == str(written.partition):
                return str(batch["batch_id"])
        return None


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that runs, and how to talk to it."""

    kafka: LocalKafka
    topic: str
    simulator_url: str
    worker: Popen[bytes]
    settled: Settled
    admin: KafkaAdmin
    writer: RecordWriter
    pacspace: PacspaceClient
    console: Console

    def assert_running(self) -> None:
        """Raise IncompleteError with the last of its log when the worker has ended."""
        if self.worker.poll() is not None:
            tail = self.settled.log.read_text().splitlines()[-3:]
            raise IncompleteError("the ingester ended: " + "\n".join(tail))


async def wait_for(look: Callable[[], Awaitable[T | None]], seconds_max: float, failure: str) -> T:
    """What `look` finds, as soon as it finds something; IncompleteError when it is too late."""
    deadline = time.monotonic() + seconds_max
    while time.monotonic() < deadline:
        found = await look()
        if found is not None:
            return found
        await asyncio.sleep(LOOK_SECONDS)
    raise IncompleteError(f"{failure} within {seconds_max:g} s")
