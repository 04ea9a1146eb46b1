"""Asks a running worker how it is, at the address where it serves health and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from ingester.core.delivery import Response
from ingester.core.record import TopicPartition
from ingester.exchange import Exchanges
from ingester.option import Address

_TIMEOUT_SECONDS: Final = 2.0  # it is on this machine, or near
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- what others listen on


class PartitionStatus(msgspec.Struct, frozen=True, rename="camel"):
    """How far a worker is with one of its partitions."""

    committed_offset: int | None
    unsettled_batches: int
    buffered_bytes: int
    halted: str | None
    write_refused: str | None = None
    stalled: bool = False


class WorkerStatus(msgspec.Struct, frozen=True, rename="camel"):
    """What a worker says of itself."""

    requests_in_flight: int
    blocked: str | None
    held_until: str | None
    held_for: str | None
    partitions: Mapping[str, PartitionStatus]
    group: str | None = None
    """None of a worker that does not say it yet."""

    def of(self, name: TopicPartition) -> PartitionStatus | None:
        """How far it is with a partition; None for one that it does not have."""
        return self.partitions.get(str(name))


_decode = msgspec.json.Decoder(WorkerStatus).decode


def status_url(listen: Address) -> str:
    """Where a worker with this INGESTER_HTTP_LISTEN is to be asked, on its own machine."""
    return f"http://{Address(_EVERYWHERE.get(listen.host, listen.host), listen.port)}"


async def worker_status(url: str) -> WorkerStatus | str:
    """Ask the worker at a base URL; why there is no answer, if there is none."""
    exchanges = Exchanges(
        url,
        {"Accept": "application/json"},
        connect_timeout_seconds=_TIMEOUT_SECONDS,
        request_timeout_seconds=_TIMEOUT_SECONDS,
        connections_max=1,
    )
    try:
        answer = await exchanges.exchange("GET", "/status")
    finally:
        await exchanges.aclose()
    if not isinstance(answer, Response):
        return answer.reason
    if answer.status != 200:
        return f"HTTP {answer.status}"
    try:
        return _decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "what answers there is no worker"
