"""What was begun and has no receipt yet: of the group's workers, and of replays and redrives.

With a worker that is well it is merely in flight; PacSpace may have counted it, or not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ingester.audit.doubts import DoubtSettings, Standing, formed, replay_group_id, standings
from ingester.core.batch import Batch
from ingester.core.intent import Intent, Ledger, decode
from ingester.core.receipt import Receipt, Replay
from ingester.core.record import TopicPartition
from ingester.core.start import start_at
from ingester.kafka.admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.kafka.client import beginning_offsets, end_offsets
from ingester.kafka.receipts import Receipts


class Attempt(NamedTuple):
    """One batch that may have been sent, and by whom."""

    partition: TopicPartition
    intent: Intent
    replay: str | None
    """The replay's name; None for a worker of the group."""


UnderWay = Mapping[Attempt, Batch | None]
"""None where a batch cannot be formed again."""


async def of_group(settings: DoubtSettings) -> UnderWay:
    """What the workers of the group have under way."""
    found: dict[Attempt, Batch | None] = {}
    for standing in await standings(settings, settings.topics):
        batches = await formed(settings, standing) if standing.in_doubt else {}
        for intent in standing.in_doubt:
            found[Attempt(standing.name, intent, None)] = batches.get(intent.range)
    return found


async def of_replays(settings: DoubtSettings, claims: Sequence[Replay]) -> UnderWay:
    """What replays and redrives have under way, by their claims to partitions."""
    by_name: defaultdict[str, dict[TopicPartition, Replay]] = defaultdict(dict)
    for claim in claims:
        by_name[claim.name][TopicPartition(claim.topic, claim.partition)] = claim
    found: dict[Attempt, Batch | None] = {}
    for name, claimed in by_name.items():
        for standing in await _standings_of(settings, name, claimed):
            batches = await formed(settings, standing)
            for intent in standing.in_doubt:
                found[Attempt(standing.name, intent, name)] = batches.get(intent.range)
    return found


async def _standings_of(
    settings: DoubtSettings, replay: str, claimed: Mapping[TopicPartition, Replay]
) -> Sequence[Standing]:
    """Where a replay stands in the partitions in which it has recorded a batch."""
    admin = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)
    stored = await admin.committed_offsets(replay_group_id(settings.group_id, replay))
    commits = {
        name: commit
        for name, commit in stored.items()
        if name in claimed
        and isinstance(ledger := decode(commit.next_offset, commit.metadata), Ledger)
        and ledger.intents
    }
    if not commits:
        return ()
    begins = await beginning_offsets(settings, commits)
    ends = await end_offsets(settings, commits)
    notes = await Receipts(settings).notes(commits, begins)
    found = []
    for name, commit in commits.items():
        # What has receipts is counted once more by a replay that is forced: these are not its own.
        own = [
            (offset, note)
            for offset, note in notes[name]
            if not (claimed[name].forced and isinstance(note, Receipt) and note.replay != replay)
        ]
        start = start_at(name, commit, log_begins=begins[name], receipts_end=0, notes=own)
        said = [note for _, note in own]
        found.append(
            Standing(
                name,
                commit,
                begins[name],
                ends[name],
                start,
                said,
                owner=None,
                has_committed=True,
                claim=claimed[name],
            )
        )
    return found
