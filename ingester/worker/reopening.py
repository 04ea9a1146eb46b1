"""Reopens halted partitions, while they are assigned, about which somebody has decided."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from ingester.core.messages import PartitionReopened
from ingester.core.pipeline import Pipeline
from ingester.errors import IngesterError
from ingester.kafka.group import UsageConsumer
from ingester.kafka.receipts import Receipts
from ingester.settings import Settings
from ingester.worker.halts import Decisions
from ingester.worker.starts import Starts
from ingester.worker.telemetry import Telemetry

_LOOK_SECONDS: Final = 5.0


class Reopening:
    """Looks every few seconds; what is decided is as if the partition were assigned anew."""

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        pipeline: Pipeline,
        consumer: UsageConsumer,
        receipts: Receipts,
        starts: Starts,
        *,
        handle: Callable[[PartitionReopened], None],
    ) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._pipeline = pipeline
        self._consumer = consumer
        self._starts = starts
        self._handle = handle
        self._decisions = Decisions(settings, receipts)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._settings.receipts == "on":
                await self._look()

    async def _look(self) -> None:
        pipeline = self._pipeline
        halted = {
            name: state
            for name, state in pipeline.partitions.items()
            if pipeline.may_be_reopened(name)
        }
        if not halted:
            return
        epoch = pipeline.epoch
        try:
            decided = await self._decisions.taken(halted)
            starts = await self._starts.of(list(decided)) if decided else {}
        except IngesterError as error:
            self._telemetry.decisions_retried(str(error))
            return
        if pipeline.epoch != epoch:
            return  # by others meanwhile, perhaps, more was settled than was looked up
        for name, start in starts.items():
            if pipeline.may_be_reopened(name):
                self._consumer.seek(name, start.offset)
                self._handle(PartitionReopened(name, start, time.time()))
                self._telemetry.partition_reopened(name, start, decided[name])
