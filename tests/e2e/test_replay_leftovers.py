"""`ingester replay` of what is left between receipts: only what is to be settled is offered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import TopicFactory
from tests.support.bookkeeping import receipt
from tests.support.kafka import create_topic, produce
from tests.support.processes import Ingesters
from tests.support.workers import Group, usage

GroupOf = Callable[..., Group]
Planned = Callable[..., dict[str, Any]]
EVENTS = usage(60)


@pytest.fixture
def planned(ingesters: Ingesters) -> Planned:
    """Runs `ingester replay --unreceipted --dry-run`, and returns the plan."""

    def run(group: Group) -> dict[str, Any]:
        ended = ingesters.run(
            "replay", "--unreceipted", "--dry-run", "--json", settings=group.settings()
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return dict(json.loads(ended.stdout))

    return run


async def test_what_was_skipped_between_receipts_is_not_offered(
    group_of: GroupOf, topic: TopicFactory, planned: Planned
) -> None:
    """Wherever it lies: before, between and behind what others have settled."""
    group = group_of(await topic())
    (name,) = group.topics
    await group.produce(EVENTS, partition=0)
    await create_topic(group.servers, f"{name}.receipts")
    skipped = {
        "kind": "resolution", "topic": name, "partition": 0, "firstOffset": 20, "nextOffset": 30,
        "decision": "skipped", "by": "me", "reason": "test data",
        "decidedAt": "2025-06-10T14:30:00.000+00:00",
    }  # fmt: skip
    settled = [
        receipt(name, first, first + 10, {"usage-1": 1}, replay="before") for first in (10, 40)
    ]
    await produce(group.servers, f"{name}.receipts", [*settled, skipped], partition=0)

    plan = planned(group)

    assert plan["partitions"] == {"0": [[0, 10], [30, 40], [50, 60]]}
    assert (plan["receipted"], plan["skipped"]) == (20, 10)
