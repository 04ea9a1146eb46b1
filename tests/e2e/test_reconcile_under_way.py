"""`ingester reconcile` while replays and redrives are at work: pending, and never an excuse."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ingester.audit.auditing import Auditor
from ingester.audit.comparison import AuditSettings, Comparison
from ingester.audit.doubts import standings
from ingester.audit.under_way import of_group
from ingester.config import load
from tests.conftest import TopicFactory
from tests.e2e.test_reconcile import write
from tests.support.kafka import produce
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.waiting import eventually
from tests.support.workers import Group, usage

GroupOf = Callable[..., Group]
Reconcile = Callable[..., dict[str, Any]]
EVENTS = usage(60)
ANSWERS_LOST = {"match": {"method": "POST", "key": "usage-0"}, "effect": {"kind": "lose"}}
FORCED = ("--force", "--reason", "PacSpace has lost them")


@pytest.fixture
async def settled(group_of: GroupOf, topic: TopicFactory) -> Group:
    """Sixty events in one partition, settled by a worker that has left."""
    group = group_of(await topic(1))
    await group.produce(EVENTS)
    worker = group.start(items_max="20")
    await group.settled()
    worker.process.terminate()
    assert worker.process.wait() == 0
    return group


@pytest.fixture
def reconcile(ingesters: Ingesters) -> Reconcile:
    """Runs `ingester reconcile --json`, and returns what it says."""

    def run(group: Group, *, exit_code: int) -> dict[str, Any]:
        ended = ingesters.run("reconcile", "--json", settings=group.settings())
        assert ended.returncode == exit_code, ended.stdout + ended.stderr
        return dict(json.loads(ended.stdout))

    return run


def taken(simulator: Simulator, key: str, bits: int) -> bool:
    """Whether PacSpace has so much of a key."""
    return bool(simulator.report()["keys"].get(key, {}).get("bits") == bits)


def sum_of(key: str) -> int:
    return sum(int(each["bits"]) for each in EVENTS if each["key"] == key)


def pending(found: Mapping[str, Any]) -> set[str]:
    """The keys that are pending, where none is anything worse."""
    assert {each["status"] for each in found["keys"]} == {"pending"}
    return {each["key"] for each in found["keys"]}


async def test_a_forced_replay_in_flight_is_pending(
    settled: Group,
    reconcile: Reconcile,
    ingesters: Ingesters,
    simulator: Simulator,
    tmp_path: Path,
) -> None:
    """PacSpace has counted again what the replay has no answer about; agreed once it has ended."""
    (name,) = settled.topics
    simulator.add_faults(ANSWERS_LOST)
    plan = ("--save", str(tmp_path / "plan.json"))
    replay = ingesters.start(
        "replay", f"{name}:0:0-60", *FORCED, *plan, settings=settled.settings(items_max="20")
    )
    eventually(lambda: taken(simulator, "usage-0", 2 * sum_of("usage-0")))

    found = reconcile(settled, exit_code=2)

    assert len(pending(found)) == 7
    assert {each["kind"] for each in found["findings"]} == {"in_doubt"}
    assert "`ingester replay --plan`" in found["findings"][0]["detail"]
    write(simulator, {"key": "usage-3", "accountId": "customer-3", "bits": 1_000_000})
    statuses = {each["key"]: each["status"] for each in reconcile(settled, exit_code=1)["keys"]}
    assert statuses.pop("usage-3") == "mismatch"
    assert set(statuses.values()) == {"pending"}
    write(simulator, {"key": "usage-3", "accountId": "customer-3", "bits": -1_000_000})
    simulator.clear_faults()
    assert replay.wait() == 0, replay.log()
    assert reconcile(settled, exit_code=0)["verdict"] == "agreed"


async def test_a_corrected_redrive_in_flight_is_pending(
    settled: Group,
    reconcile: Reconcile,
    ingesters: Ingesters,
    simulator: Simulator,
    tmp_path: Path,
) -> None:
    """What it sends is known from its claim, which says how the letters are corrected."""
    (name,) = settled.topics
    await produce(settled.servers, name, [b'{"key":"usage-0","accountId":"a","bits":"5"}'])
    worker = settled.start()
    await settled.settled()
    worker.process.terminate()
    assert worker.process.wait() == 0
    simulator.add_faults(ANSWERS_LOST)
    redrive = ingesters.start(
        "dlq", "redrive", "--set", "bits={bits}", "--save", str(tmp_path / "plan.json"),
        settings=settled.settings(),
    )  # fmt: skip
    eventually(lambda: taken(simulator, "usage-0", sum_of("usage-0") + 5))

    found = reconcile(settled, exit_code=2)

    assert pending(found) == {"usage-0"}
    (doubt,) = found["findings"]
    assert (doubt["kind"], doubt["topic"]) == ("in_doubt", f"{name}.dead-letters")
    simulator.clear_faults()
    assert redrive.wait() == 0, redrive.log()
    assert reconcile(settled, exit_code=0)["verdict"] == "agreed"


async def test_a_replay_that_begins_in_the_middle_is_pending(
    settled: Group, ingesters: Ingesters, simulator: Simulator, tmp_path: Path
) -> None:
    """It had no claim yet when the books were read, and PacSpace has what it sent since."""
    (name,) = settled.topics
    settings = load(AuditSettings, environ=settled.settings(), config_file=None).settings
    found = await standings(settings, settings.topics)
    before = await of_group(settings)
    auditor = Auditor(settings, None, None)
    audit = await auditor.audit(found, from_topic=False)
    simulator.add_faults(ANSWERS_LOST)
    plan = ("--save", str(tmp_path / "plan.json"))
    ingesters.start("replay", f"{name}:0:0-60", *FORCED, *plan, settings=settled.settings())
    eventually(lambda: taken(simulator, "usage-0", 2 * sum_of("usage-0")))

    compared = Comparison(settings, auditor, audit, None)
    await compared.compare(list(audit.bits), before)

    assert {each.status for each in compared.results.values()} == {"pending"}
    assert len(compared.results) == 7
