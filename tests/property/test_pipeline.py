"""The promises of the whole core, in worlds where anything happens in any order."""

from __future__ import annotations

from random import Random

from hypothesis import given, note, settings
from hypothesis import strategies as st

from ingester.core.batch import BatchLimits
from ingester.core.messages import Limits
from tests.support.records import make_logs
from tests.support.world import Climate, World

LIMITS = st.builds(
    Limits,
    batch=st.builds(
        BatchLimits,
        items_max=st.sampled_from([1, 2, 3, 7]),
        body_bytes_max=st.sampled_from([90, 150, 400, 4000]),
        linger_seconds=st.sampled_from([0.0, 0.05, 5.0]),
    ),
    requests_in_flight_max=st.sampled_from([1, 2, 3, 8]),
    buffer_bytes_max=st.sampled_from([200, 2_000, 10_000]),
    backoff_seconds_min=st.just(0.1),
    backoff_seconds_max=st.sampled_from([0.1, 1.0, 30.0]),
    commit_interval_seconds=st.sampled_from([0.01, 1.0]),
)
CLIMATES = st.builds(
    Climate,
    outcomes=st.fixed_dictionaries(
        {
            "acknowledged": st.sampled_from([20.0, 5.0, 1.0, 0.3]),
            "deferred": st.sampled_from([0.0, 2.0]),
            "in_doubt": st.sampled_from([0.0, 2.0, 5.0]),
            "throttled": st.sampled_from([0.0, 1.0]),
            "blocked": st.sampled_from([0.0, 1.0]),
            "refused": st.sampled_from([0.0, 0.1]),
        }
    ),
    writes_failing=st.sampled_from([0.0, 0.3, 0.9]),
    commits_failing=st.sampled_from([0.0, 0.3, 0.9]),
    rebalances=st.sampled_from([0.0, 0.2, 1.0]),
    crashes=st.sampled_from([0.0, 0.1]),
    drains=st.sampled_from([0.0, 0.05]),
    positions_lost=st.sampled_from([0.0, 0.05]),
)
WORLDS = {
    "limits": LIMITS,
    "climate": CLIMATES,
    "seed": st.integers(0, 2**32),
    "partitions": st.integers(1, 4),
    "records": st.integers(1, 60),
    "steps": st.integers(0, 300),
}


def lived(
    limits: Limits, climate: Climate, seed: int, partitions: int, records: int, steps: int
) -> World:
    """Return a world after its unkind steps and the kind ones that follow."""
    random = Random(seed)
    world = World(random, make_logs(random, partitions, records, limits), limits, climate)
    try:
        world.run(steps)
        world.settle()
    finally:
        note("\n".join(world.trace[-200:]))
    return world


@settings(max_examples=500)
@given(**WORLDS)
def test_nothing_is_lost_or_sent_twice_and_all_is_settled_in_the_end(
    limits: Limits, climate: Climate, seed: int, partitions: int, records: int, steps: int
) -> None:
    """In every interleaving commits cover only what is settled, batches hold exactly their range,
    bounds and waits are kept, and once the world is kind everything is settled and committed.
    """
    lived(limits, climate, seed, partitions, records, steps)


@settings(max_examples=30)
@given(**WORLDS)
def test_the_same_facts_give_the_same_commands(
    limits: Limits, climate: Climate, seed: int, partitions: int, records: int, steps: int
) -> None:
    """Two pipelines that are told the same do the same, so a seed reproduces a run."""
    first = lived(limits, climate, seed, partitions, records, steps)
    second = lived(limits, climate, seed, partitions, records, steps)

    assert first.trace == second.trace
