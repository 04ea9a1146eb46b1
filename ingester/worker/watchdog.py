"""Notices partitions that are behind and do not move, whatever the reason.

A partition that waits for PacSpace says so elsewhere, and so does one that is halted. This one is
for what nobody has thought of: it looks at results alone, and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import msgspec

from ingester.core.pipeline import Pipeline
from ingester.core.record import TopicPartition
from ingester.errors import IngesterError
from ingester.kafka.group import UsageConsumer
from ingester.worker.telemetry import Telemetry

_LOOK_SECONDS: Final = 5.0


class _Standing(msgspec.Struct):
    """Where a partition was last seen to move, and when."""

    committed: int | None
    position: int | None
    since: float
    reported: bool = False


class Watchdog:
    """Looks every few seconds; a stall is reported once, and again when it is over."""

    def __init__(
        self, pipeline: Pipeline, consumer: UsageConsumer, telemetry: Telemetry, seconds: float
    ) -> None:
        self._pipeline = pipeline
        self._consumer = consumer
        self._telemetry = telemetry
        self._seconds = seconds
        self._standings: dict[TopicPartition, _Standing] = {}
        # Of the partitions that are assigned and not halted, as of the last look.

    @property
    def stalled(self) -> frozenset[TopicPartition]:
        """Those that were reported, and have not moved since."""
        return frozenset(name for name, each in self._standings.items() if each.reported)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(min(_LOOK_SECONDS, self._seconds / 2))
            await self.look(asyncio.get_running_loop().time())

    async def look(self, now: float) -> None:
        """Compare each partition with how it stood before."""
        before, self._standings = self._standings, {}
        still: dict[TopicPartition, _Standing] = {}
        for name, state in self._pipeline.partitions.items():
            if state.halt_reason:
                continue
            position = self._consumer.position(name)
            standing = before.get(name)
            if standing is None or (standing.committed, standing.position) != (
                state.committed,
                position,
            ):
                if standing is not None and standing.reported:
                    self._telemetry.partition_moved(name, now - standing.since)
                standing = _Standing(state.committed, position, now)
            elif now - standing.since >= self._seconds:
                still[name] = standing
            self._standings[name] = standing
        behind = await self._behind(still)
        for name, standing in still.items():
            if name in behind and not standing.reported:
                standing.reported = True
                hold = self._pipeline.hold
                held_for = hold.reason if hold is not None and now < hold.until else None
                self._telemetry.partition_stalled(
                    name, now - standing.since, behind[name], held_for
                )
        self._telemetry.stalled.set(sum(each.reported for each in self._standings.values()))

    async def _behind(
        self, standings: Mapping[TopicPartition, _Standing]
    ) -> Mapping[TopicPartition, int]:
        """Return how many offsets each is behind, of those that are; all, while nobody knows."""
        try:
            ends = await self._consumer.ends(list(standings))
        except IngesterError:
            return {}  # Kafka away is not a partition that stalls, and is reported by the poll
        lags = {
            name: ends[name] - (standing.position if standing.position is not None else 0)
            for name, standing in standings.items()
            if name in ends
        }
        states = self._pipeline.partitions
        return {
            name: max(lag, 0)
            for name, lag in lags.items()
            if lag > 0 or (name in states and states[name].unsettled_batches)
        }
