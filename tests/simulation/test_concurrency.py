"""The adaptive limit against every fixed one, at endpoints of many kinds, in virtual time."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.simulation.knee import SCENARIOS, Fixed, Scenario, adaptive, fixed_counts, live

SEEDS = (0, 1, 2)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
each_seed = pytest.mark.parametrize("seed", SEEDS)


def each_run(scenarios: Iterable[Scenario]) -> pytest.MarkDecorator:
    """Every scenario with every seed, or with one where there is nothing to draw."""
    return pytest.mark.parametrize(
        ("scenario", "seed"),
        [
            pytest.param(scenario, seed, id=f"{scenario.name}, {seed}")
            for scenario in scenarios
            for seed in SEEDS
            if seed == 0 or scenario.is_noisy
        ],
    )


@each_run(SCENARIOS)
def test_it_loses_little_to_the_best_fixed_limit(scenario: Scenario, seed: int) -> None:
    """Whoever knew the endpoint beforehand would have had at most a ninth more answers."""
    best = max(fixed_counts(scenario, seed).values())

    assert len(adaptive(scenario, seed).good_at) >= 0.9 * best


@each_run(scenario for scenario in SCENARIOS if scenario.limit_expected_max)
def test_it_leaves_alone_what_brings_nothing(scenario: Scenario, seed: int) -> None:
    """Beyond a knee it stays near it, on average over the second half."""
    assert scenario.limit_expected_max is not None
    mean = adaptive(scenario, seed).limit_mean(scenario.seconds / 2, scenario.seconds)

    assert mean <= scenario.limit_expected_max


@pytest.mark.parametrize(("name", "seconds_max"), [("20 ms", 0.5), ("100 ms", 2.0)])
def test_it_is_at_the_maximum_soon(name: str, seconds_max: float) -> None:
    """From the first request on, in so many seconds, and then it stays there."""
    scenario = BY_NAME[name]
    run = adaptive(scenario)
    reached_at = next(at for at, limit in run.limits if limit == scenario.limit_max)

    assert reached_at <= seconds_max
    assert run.limit_mean(reached_at, scenario.seconds) >= 0.97 * scenario.limit_max


def test_it_permits_what_the_maximum_permits_at_20_ms() -> None:
    """The start, and the trials of fewer, cost less than a twentieth."""
    scenario = BY_NAME["20 ms"]

    most = fixed_counts(scenario)[scenario.limit_max]
    assert len(adaptive(scenario).good_at) >= 0.95 * most


@pytest.mark.parametrize(
    ("name", "kind_again_at"), [("half a minute of 5 s", 40.0), ("200 to 20 ms", 10.0)]
)
def test_it_is_fast_again_within_seconds(name: str, kind_again_at: float) -> None:
    """Two seconds after the last slow answer it sends as much as ever."""
    scenario = BY_NAME[name]
    since = kind_again_at + 7.0  # the last slow answer comes after five
    most = live(scenario, Fixed(scenario.limit_max)).per_second(since, since + 3.0)

    assert adaptive(scenario).per_second(since, since + 3.0) >= 0.9 * most


@each_seed
def test_it_returns_slowly_from_an_outage_and_is_soon_done(seed: int) -> None:
    """When the first succeeds few may be open, a second later as many as ever."""
    scenario = BY_NAME["an hour of outage"]
    run = adaptive(scenario, seed)
    back_at = next(at for at in run.good_at if at >= scenario.down[1])
    allowed = [limit for at, limit in run.limits if at <= back_at][-1]
    most = run.per_second(2.0, 5.0)

    assert allowed <= 4
    assert run.per_second(back_at + 1.0, back_at + 3.0) >= 0.9 * most


def test_a_slow_endpoint_is_not_taken_for_a_full_one() -> None:
    """Ten times the latency, for all and for good, costs a few trials and no more."""
    run = adaptive(BY_NAME["20 to 200 ms"])

    assert run.limit_mean(10.0, 60.0) >= 0.95 * 32


def test_a_refusal_is_learned_from() -> None:
    """Of an endpoint that refuses the ninth, few refusals come in two minutes."""
    scenario = BY_NAME["refuses at 8"]
    fixed = live(scenario, Fixed(16))

    assert adaptive(scenario).refused_count <= fixed.refused_count / 10


def test_the_endpoint_is_unkind_enough() -> None:
    """Whoever always sends as much as may be gets less than half of what there is."""
    scenario = BY_NAME["collapses at 8"]
    run = live(scenario, Fixed(scenario.limit_max))

    assert len(run.good_at) < 0.5 * max(fixed_counts(scenario).values())
