"""A worker that ends amid a bisection, after any step of it, and what its successors make of it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ingester.core.batch import BatchLimits
from ingester.core.intent import Ledger, decode
from ingester.core.messages import Limits
from ingester.core.receipt import Decision, Resolution
from tests.support.lives import Life, World
from tests.support.records import LogRecord, usage_records
from tests.support.scenario import LIMITS, resolution_of

RECEIPTS = replace(LIMITS, batch=BatchLimits(6, 10_000, 5.0), receipts=True)
NO_RECEIPTS = replace(RECEIPTS, receipts=False)
REFUSED = (1, 7)  # of twelve, in two batches
LOG = [LogRecord(4, None) if record.offset == 4 else record for record in usage_records(12)]


def world_of(limits: Limits) -> World:
    return World(LOG, limits, refused=REFUSED)


def steps_of(limits: Limits) -> int:
    return Life(world_of(limits)).run()


@pytest.mark.parametrize("limits", [RECEIPTS, NO_RECEIPTS], ids=["receipts", "no receipts"])
def test_without_a_crash_exactly_the_refused_items_become_dead_letters(limits: Limits) -> None:
    """Once each, beside the tombstone; all others are counted."""
    world = world_of(limits)
    Life(world).run()

    world.check()
    assert sorted(letter.record.offset for letter in world.letters) == [1, 4, 7]
    assert set(world.counted) == set(range(12)) - {1, 4, 7}


@pytest.mark.parametrize("changed", [None, (), (0, 1, 7, 10)], ids=["same", "all", "fewer"])
@pytest.mark.parametrize("limits", [RECEIPTS, NO_RECEIPTS], ids=["receipts", "no receipts"])
def test_a_crash_after_any_step_counts_nothing_twice(
    limits: Limits, changed: tuple[int, ...] | None
) -> None:
    """Nor does it lose anything, whether PacSpace is of the same mind, takes all or takes less."""
    for steps in range(steps_of(limits)):
        world = world_of(limits)
        life = Life(world)
        for _ in range(steps):
            assert life.step()
        if changed is not None:
            world.refused = frozenset(changed)
        successor = Life(world)
        successor.run()

        assert successor.halts == [], steps
        world.check()
        if changed is None:
            assert set(world.counted) == set(range(12)) - {1, 4, 7}, steps


def test_a_crash_of_the_successor_too_counts_nothing_twice() -> None:
    """After every few steps of both; the third finds that PacSpace takes all."""
    for steps in range(0, steps_of(RECEIPTS), 3):
        for more in range(0, 60, 7):
            world = world_of(RECEIPTS)
            for count in (steps, more):
                life = Life(world)
                for _ in range(count):
                    life.step()
            world.refused = frozenset()
            last = Life(world)
            last.run()

            assert last.halts == [], (steps, more)
            world.check()


def resolved(world: World, decision: Decision) -> Resolution:
    """What somebody decides about the one batch that is in doubt."""
    ledger = decode(world.commit.next_offset, world.commit.metadata)
    assert isinstance(ledger, Ledger)
    (intent,) = ledger.intents
    return resolution_of(intent.range, decision, intended_at=intent.intended_at)


def test_a_decision_to_send_again_is_used_up_by_one_attempt() -> None:
    """After a crash at any step, the next owner acts on it only if nobody has sent by it."""
    limits = replace(LIMITS, receipts=True, in_doubt="halt")
    used_up = 0
    for steps in range(30):
        world = World(usage_records(2), limits)
        life = Life(world)
        while not world.requests:
            assert life.step()
        (halted,) = Life(world).halts
        assert "INGESTER_IN_DOUBT is halt: [0,2)" in halted
        world.notes.append(resolved(world, "resend"))
        life = Life(world)
        for _ in range(steps):
            life.step()
        attempts = len(world.requests)
        successor = Life(world)
        successor.run()

        assert life.halts == []
        assert len(world.requests) == 2 or successor.halts, steps
        if successor.halts:
            assert len(world.requests) == attempts, steps
            used_up += attempts == 2
            world.notes.append(resolved(world, "acknowledged"))
            Life(world).run()
        world.check()
    assert used_up, "no life ended between the attempt and its receipt"


def test_what_was_split_is_not_sent_as_a_whole_again() -> None:
    """The halves were recorded: the successor sends them, though the whole would pass by now."""
    world = world_of(RECEIPTS)
    life = Life(world)
    while (0, 2) not in world.requests:
        assert life.step()
    world.refused = frozenset()
    before = len(world.requests)
    Life(world).run()

    assert (0, 6) not in world.requests[before:]
    world.check()
