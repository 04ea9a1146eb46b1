"""What a worker asks Kafka before it reads: are the topics there, and where do partitions begin.

While brokers fail it asks again, but no longer than a start may take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

from ingester.core.messages import Start
from ingester.core.record import TopicPartition
from ingester.errors import UnavailableError
from ingester.kafka.admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.kafka.group import UsageConsumer
from ingester.kafka.receipts import Receipts, without_receipts
from ingester.kafka.topics import DEAD_LETTER_PARTITIONS
from ingester.settings import Settings
from ingester.worker.telemetry import Telemetry

T = TypeVar("T")

_RETRY_SECONDS: Final = 2.0


class Starts:
    """Of the partitions of one worker; makes the topics that are missing beside the sources."""

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        consumer: UsageConsumer,
        receipts: Receipts,
        *,
        keeps_letters: bool,
    ) -> None:
        """With `keeps_letters` the sources are dead letters, and have none of their own."""
        self._keeps_letters = keeps_letters
        self._settings = settings
        self._telemetry = telemetry
        self._consumer = consumer
        self._receipts = receipts
        self._admin = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)

    async def find_topics(self) -> None:
        """Wait for Kafka and the sources; UnavailableError when the settings' time is over."""
        await self._patiently(self._find_topics, self._telemetry.start_retried)

    async def look_up(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Start]:
        """Say where each partition begins, and what its former owners left in doubt.

        Waits for brokers that fail meanwhile: another start of this worker would find them no more
        alive.
        """
        return await self._patiently(partial(self.of, partitions), self._telemetry.look_up_retried)

    async def of(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Start]:
        """Say the same at once, or raise UnavailableError."""
        stored = await self._admin.committed_offsets(self._settings.group_id)
        beginnings = await self._consumer.beginnings(partitions)
        commits = {name: stored[name] for name in partitions if name in stored}
        if self._settings.receipts == "off":
            return without_receipts(commits, beginnings)
        counts: dict[str, int] = {}
        for topic, partition in partitions:
            counts[topic] = max(partition + 1, counts.get(topic, 0))
        await self._receipts.ensure_topics(self._admin, counts)
        return await self._receipts.starts(commits, beginnings)

    async def _find_topics(self) -> None:
        admin, settings = self._admin, self._settings
        counts = await admin.partition_counts(settings.topics)
        missing = [topic for topic in settings.topics if not counts[topic]]
        if missing:
            raise admin.missing_topic(missing[0])
        await admin.wait_for_coordinator(settings.group_id)
        own: dict[str, int] = {}
        if not self._keeps_letters:
            letters = map(settings.dead_letter_topic_for, settings.topics)
            own |= dict.fromkeys(letters, DEAD_LETTER_PARTITIONS)
        if settings.receipts == "on":
            own |= self._receipts.topics_for(counts)
        for topic in await admin.lacking(own):
            if await admin.ensure_kept_topic(topic, own[topic]) == "created":
                self._telemetry.topic_created(topic)

    async def _patiently(
        self, question: Callable[[], Awaitable[T]], retried: Callable[[str, float], None]
    ) -> T:
        """Ask Kafka as often as it takes, but no longer than a start may."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.startup_timeout_seconds
        while True:
            try:
                return await question()
            except UnavailableError as error:
                seconds = min(_RETRY_SECONDS, deadline - loop.time())
                if seconds <= 0:
                    raise
                retried(str(error), seconds)
                await asyncio.sleep(seconds)
