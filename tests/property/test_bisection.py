"""Any log with any items refused, any limits, any order of events, any crashes: nothing twice."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ingester.core.batch import BatchLimits
from ingester.core.deadletter import DeadLetterLimit
from tests.support.lives import Life, World
from tests.support.records import LogRecord, usage_records
from tests.support.scenario import LIMITS


@settings(max_examples=150)
@given(
    kinds=st.lists(st.sampled_from("iiitr"), min_size=1, max_size=40),
    items_max=st.integers(1, 12),
    requests_in_flight_max=st.sampled_from([1, 2, 50]),
    receipts=st.booleans(),
    crashes=st.lists(st.tuples(st.integers(0, 120), st.booleans(), st.booleans()), max_size=4),
    seed=st.integers(0, 2**32),
)
def test_all_is_counted_once_or_a_dead_letter(
    kinds: list[str],
    items_max: int,
    requests_in_flight_max: int,
    receipts: bool,
    crashes: list[tuple[int, bool, bool]],
    seed: int,
) -> None:
    """PacSpace changes its mind between lives, about items and about sizes; nothing halts."""
    random = Random(seed)
    log = [
        LogRecord(record.offset, None) if kind == "t" else record
        for record, kind in zip(usage_records(len(kinds)), kinds, strict=True)
    ]
    refused = [offset for offset, kind in enumerate(kinds) if kind == "r"]
    limits = replace(
        LIMITS,
        batch=BatchLimits(items_max, 10_000, 5.0),
        requests_in_flight_max=requests_in_flight_max,
        receipts=receipts,
        dead_letters=DeadLetterLimit(0, 1.0, 60.0),
    )
    world = World(log, limits, refused=refused)
    for steps, refuses, takes_little in crashes:
        life = Life(world, random.randrange)
        for _ in range(steps):
            life.step()
        assert life.halts == []
        world.refused = frozenset(refused if refuses else ())
        world.body_bytes_max = 250 if takes_little else 10**6

    last = Life(world, random.randrange)
    last.run()

    assert last.halts == []
    assert last.pipeline.drained
    assert last.pipeline.buffered_bytes == 0
    world.check()
