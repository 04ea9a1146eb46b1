"""Decisions among the receipts: none is overlooked, none is taken twice."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from ingester.core.intent import Intent, Ledger, encode
from ingester.core.messages import Commit
from ingester.core.partition import PartitionState
from ingester.core.receipt import Decision, Resolution
from ingester.core.record import TopicPartition
from ingester.kafka.receipts import Receipts
from ingester.local_kafka import LocalKafka
from ingester.settings import Settings
from ingester.worker.halts import Decisions
from tests.conftest import TopicFactory
from tests.support.simulator import API_KEY

HALTED = PartitionState(100, 0, 1, 0, "in doubt", None)
INTENDED_AT = 1_700_000_000
INTENDED = Commit(100, encode(100, Ledger(0, [Intent(100, 200, INTENDED_AT, 7)])))


class Bookkeeping:
    """The receipts of two topics in one, as `INGESTER_RECEIPTS_TOPIC` makes it."""

    def __init__(self, settings: Settings) -> None:
        self.sources = [TopicPartition(topic, 0) for topic in settings.topics]
        self.receipts = Receipts(settings)
        self.decisions = Decisions(settings, self.receipts)

    async def decide(
        self, source: TopicPartition, decision: Decision, range_: tuple[int, int] = (100, 200)
    ) -> int:
        resolution = Resolution(
            *source, *range_, decision, "ann", "why", "2025-06-10T00:00:00Z", INTENDED_AT
        )
        return await self.receipts.write_note(resolution)

    async def look_up(self, *sources: TopicPartition) -> None:
        await self.receipts.starts(dict.fromkeys(sources, INTENDED), dict.fromkeys(sources, 0))


@pytest.fixture
async def bookkeeping(kafka: LocalKafka, topic: TopicFactory) -> AsyncIterator[Bookkeeping]:
    """On a receipts topic of its own; the usage topics need not exist."""
    receipts_topic = await topic(2)
    suffix = uuid.uuid4().hex[:8]
    made = Bookkeeping(
        Settings(
            kafka_bootstrap_servers=(kafka.bootstrap_servers,),
            topic=(f"a-{suffix}", f"b-{suffix}"),
            receipts_topic=receipts_topic,
            pacspace_url="http://127.0.0.1:9",
            pacspace_api_key=API_KEY,
        )
    )
    await made.receipts.start()
    yield made
    await made.receipts.stop()


async def test_a_decision_made_before_the_first_look_is_found(bookkeeping: Bookkeeping) -> None:
    """Between the halt and the first look somebody may have decided already."""
    source, other = bookkeeping.sources
    await bookkeeping.look_up(source, other)
    await bookkeeping.decide(source, "resend")

    decided = await bookkeeping.decisions.taken({source: HALTED, other: HALTED})

    assert list(decided) == [source]
    assert [(each.decision, each.by) for each in decided[source]] == [("resend", "ann")]


async def test_a_decision_stands_until_the_partition_begins_anew(bookkeeping: Bookkeeping) -> None:
    """Where it cannot be looked up where to begin, the next look finds the decision again."""
    source, _ = bookkeeping.sources
    await bookkeeping.look_up(source)
    await bookkeeping.decide(source, "resend")

    for _ in range(2):
        assert await bookkeeping.decisions.taken({source: HALTED})
    await bookkeeping.look_up(source)
    assert await bookkeeping.decisions.taken({source: HALTED}) == {}

    await bookkeeping.decide(source, "resend")
    assert await bookkeeping.decisions.taken({source: HALTED})


async def test_a_decision_about_what_is_settled_reopens_nothing(bookkeeping: Bookkeeping) -> None:
    """A decision below the committed offset is history."""
    source, _ = bookkeeping.sources
    await bookkeeping.look_up(source)
    await bookkeeping.decide(source, "resend", (0, 100))

    assert await bookkeeping.decisions.taken({source: HALTED}) == {}


async def test_topics_that_share_a_receipts_topic_find_their_notes(
    bookkeeping: Bookkeeping,
) -> None:
    """The notes of each are read from its own place on, not from that of the last one asked for."""
    source, other = bookkeeping.sources
    offset = await bookkeeping.decide(source, "resend")
    late = Commit(100, encode(100, Ledger(offset + 1, [Intent(100, 200, 1_700_000_000, 7)])))

    starts = await bookkeeping.receipts.starts(
        {source: INTENDED, other: late}, {source: 0, other: 0}
    )

    assert starts[source].resent == {(100, 200)}
    assert not starts[other].resent
