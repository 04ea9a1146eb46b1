"""`ingester replay` of what is left between receipts: only what is to be settled is offered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingester.config import load
from ingester.core.record import TopicPartition
from ingester.kafka.range import not_empty
from ingester.settings import Settings
from tests.conftest import TopicFactory
from tests.e2e.test_markers import transact
from tests.support.bookkeeping import receipt
from tests.support.kafka import create_topic, produce
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.workers import Group, totals, usage

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


async def test_nothing_is_left_of_transactions_that_were_replayed(
    group_of: GroupOf,
    topic: TopicFactory,
    ingesters: Ingesters,
    simulator: Simulator,
    planned: Planned,
    tmp_path: Path,
) -> None:
    """Their markers and what was aborted have no receipts, and are no reason for another run."""
    group = group_of(await topic())
    (name,) = group.topics
    for first in (0, 20, 40):
        await transact(group.servers, name, EVENTS[first : first + 20], commit=True)
        await transact(group.servers, name, usage(3, first=500), commit=False)
    arguments = ("replay", "--unreceipted", "--save", str(tmp_path / "plan.json"))
    ended = ingesters.run(*arguments, settings=group.settings(items_max="7"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert simulator.report()["keys"] == totals(EVENTS)

    again = ingesters.run("replay", "--unreceipted", settings=group.settings())

    assert "Nothing to send" in again.stdout
    assert (again.returncode, planned(group)["partitions"]) == (0, {})
    await transact(group.servers, name, usage(1, first=900), commit=True)
    assert [*planned(group)["partitions"]] == ["0"]


async def test_of_a_long_range_one_record_is_enough(group_of: GroupOf, topic: TopicFactory) -> None:
    """It is offered as a whole; and so is each short one that holds any, and no other."""
    group = group_of(await topic())
    (name,) = group.topics
    values = [b"x"] * 20_010
    await produce(group.servers, name, values, partition=0)
    await transact(group.servers, name, EVENTS[:2], commit=False)
    await transact(group.servers, name, EVENTS[:2], commit=True)
    settings = load(Settings, environ=group.settings(), config_file=None).settings
    ends = len(values)
    aborted, committed = (ends, ends + 3), (ends + 3, ends + 5)
    marker = (ends + 5, ends + 6)

    found = await not_empty(
        settings, TopicPartition(name, 0), [(0, 20_005), (20_007, 20_008), aborted, committed]
    )
    of_markers = await not_empty(settings, TopicPartition(name, 0), [aborted, marker])

    assert found == [(0, 20_005), (20_007, 20_008), committed]
    assert of_markers == []


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
