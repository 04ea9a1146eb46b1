"""How a consumer group stands: what Kafka knows of it, and what its workers say of themselves.

Kafka knows members, lag and what is in doubt; only a worker knows that it has halted a partition,
or that PacSpace refuses everything. Nothing is changed, and nobody joins the group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from ingester.audit.doubts import (
    DoubtSettings,
    Standing,
    all_standings,
    formed,
    replay_group_id,
)
from ingester.audit.worker_status import PartitionStatus, WorkerStatus, status_url, worker_status
from ingester.core.intent import Intent
from ingester.core.letters import moment_of
from ingester.core.ranges import length
from ingester.core.receipt import Replay
from ingester.core.record import TopicPartition
from ingester.kafka.admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin, Member
from ingester.kafka.range import first_records
from ingester.option import Address
from ingester.settings import HealthSettings

_IN_FLIGHT_SECONDS: Final = 10.0
"""What is in doubt for less is in flight, most likely, and not worth reading the log for."""


class OverviewSettings(DoubtSettings, HealthSettings):
    """Where the group keeps what it has settled, and where a worker says how it is."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A worker's endpoint, and what came of asking it."""

    address: Address
    report: WorkerStatus | None
    problem: str | None
    """Why there is no report of a worker of this group, if there is none."""


@dataclass(frozen=True, slots=True)
class PartitionView:
    """How one partition stands."""

    standing: Standing
    oldest_offset: int | None
    """Of the oldest record that is neither committed nor settled; None where all are."""
    oldest_time: datetime | None
    items: int | None
    """In doubt; None where they are not known, or most likely in flight."""
    report: PartitionStatus | None
    replays: Sequence[Replay] = ()
    """Those that have claimed a part of it, and have not ended."""

    @property
    def name(self) -> TopicPartition:
        return self.standing.name

    @property
    def lag(self) -> int:
        """Offsets beyond the committed one that nobody has settled; some may hold no record."""
        return length(self.standing.unsettled)

    @property
    def in_doubt(self) -> Sequence[Intent]:
        return self.standing.in_doubt

    @property
    def halted(self) -> str | None:
        """Why it goes on by nobody's own doing, as far as a worker or Kafka says so."""
        said = self.report.halted if self.report else None
        return said or self.standing.start.halt_reason

    @property
    def awaited(self) -> Replay | None:
        """The replay for whose end it waits, if that is why it has halted."""
        said = self.halted or ""
        return next((each for each in self.replays if f"the replay {each.name} " in said), None)


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything that was found in one look."""

    group_id: str
    state: str
    """In Kafka's word: Stable, Empty, PreparingRebalance, CompletingRebalance, Dead."""
    members: Sequence[Member]
    partitions: Sequence[PartitionView]
    workers: Sequence[Asked]
    stall_seconds: float
    looked_at: datetime
    unanswered: Sequence[Address] = ()
    """Where no worker of the group has answered."""
    replay_hosts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Where the replays are at work that have not ended; nowhere if nobody carries one out."""


async def overview(settings: OverviewSettings, workers: Sequence[Address]) -> Overview:
    """Look once; UnavailableError and RefusedError as Kafka has it.

    Of the `workers` that are named all are listed; the one at INGESTER_HTTP_LISTEN is asked in
    their place, and listed if it answers as a worker of this group.
    """
    own = [settings.http_listen] if settings.http_listen else []
    asked, (state, members), standings = await asyncio.gather(
        asyncio.gather(*(_ask(each, settings.group_id) for each in workers or own)),
        KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS).members(settings.group_id),
        all_standings(settings, settings.topics),
    )
    told = [each for each in asked if workers or each.problem is None]
    reports = {
        name: report
        for each in told
        if each.report is not None and each.problem is None
        for name, report in each.report.partitions.items()
    }
    oldest = await first_records(settings, {each.name: each.unsettled for each in standings})
    now = datetime.now(UTC)
    views = []
    hosts: dict[str, Sequence[str]] = {}
    for standing in standings:
        replays = standing.claims if standing.claim is None else ()  # or it is the replay's group
        for each in replays:
            if each.name not in hosts:
                hosts[each.name] = await _hosts(settings, each.name)
        record = oldest.get(standing.name)
        views.append(
            PartitionView(
                standing,
                record.offset if record else None,
                moment_of(record.timestamp) if record else None,
                await _items_in_doubt(settings, standing, now),
                reports.get(str(standing.name)),
                replays,
            )
        )
    return Overview(
        settings.group_id,
        state,
        members,
        views,
        told,
        settings.stall_seconds,
        now,
        [each.address for each in asked if each.problem is not None],
        hosts,
    )


async def _hosts(settings: OverviewSettings, replay: str) -> Sequence[str]:
    admin = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)
    _, members = await admin.members(replay_group_id(settings.group_id, replay))
    return list(dict.fromkeys(each.host for each in members))


async def _items_in_doubt(settings: DoubtSettings, standing: Standing, now: datetime) -> int | None:
    doubts = standing.in_doubt
    if all(now.timestamp() - each.intended_at < _IN_FLIGHT_SECONDS for each in doubts):
        return None
    batches = await formed(settings, standing)
    known = [batches[each.range].items_count for each in doubts if each.range in batches]
    return sum(known) if len(known) == len(doubts) else None


async def _ask(address: Address, group_id: str) -> Asked:
    found = await worker_status(status_url(address))
    if isinstance(found, str):
        return Asked(address, None, found)
    if found.group not in {None, group_id}:
        return Asked(address, found, f"its worker is one of the group {found.group}")
    return Asked(address, found, None)
