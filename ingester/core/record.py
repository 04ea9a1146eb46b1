"""A record as the broker hands it over, and where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class TopicPartition(NamedTuple):
    """One partition; equal to any (topic, partition) tuple, the client library's own included."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}"


class Record(Protocol):
    """What the core reads of a consumed record; the client library's own class satisfies it."""

    @property
    def offset(self) -> int: ...

    @property
    def timestamp(self) -> int:
        """Milliseconds since the epoch, by the producer's or the broker's clock."""

    @property
    def key(self) -> bytes | None: ...

    @property
    def value(self) -> bytes | None: ...

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...
