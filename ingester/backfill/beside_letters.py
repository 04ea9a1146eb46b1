"""Looks whether records were counted by way of their dead letters, or letters by their records.

A replay sends records, and a redrive letters of them: whichever is second leaves out the first's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ingester.audit.letters import Letters
from ingester.backfill.plan import Plan
from ingester.core.intent import Range
from ingester.core.letters import Choice
from ingester.core.ranges import holds, merged
from ingester.core.record import TopicPartition
from ingester.kafka.admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.settings import Settings


async def redriven(
    settings: Settings, topic: str, names: Iterable[TopicPartition]
) -> Mapping[TopicPartition, Sequence[Range]]:
    """Return the offsets of a source of which a redrive has sent dead letters, or is about to.

    What lies between those that an unfinished one sends is among them: the next run tells more.
    """
    settings = settings.model_copy(update={"topic": (topic,)})
    letters_topic = settings.dead_letter_topic_for(topic)
    places = [letters_topic, settings.receipts_topic_for(letters_topic)]
    admin = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)
    if not all((await admin.partition_counts(places)).values()):
        return {}
    letters = await Letters.open(settings)
    found = letters.redriven
    claimed = {place: letters.redrives.claimed(place) for place in letters.logs}
    if any(claimed.values()):
        async for letter in letters.read(Choice()):
            if holds(claimed[letter.place], letter.record.offset):
                found.add(letter.origin.partition, letter.origin.offset)
    return {name: merged((at, at + 1) for at in found.of(name)) for name in names}


async def settled_since(settings: Settings, plan: Plan) -> str | None:
    """Say which letter of a redrive nobody may send any more, and why; None where there is none."""
    letters = await Letters.open(settings, to_send=True)
    selected = plan.replaying().selected
    async for letter in letters.read(Choice()):
        if not holds(selected.get(letter.place, ()), letter.record.offset):
            continue
        is_counted = letter.settled or letters.settlements.is_forced(letter.origin)
        reason = "it is settled" if is_counted else letters.settlements.settled_by(letter.origin)
        if reason is not None:
            origin = letter.origin
            return f"{origin.partition}:{origin.offset} ({reason})"
    return None
