"""The torture's schedule: every point equally often, and the same for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.torture.outcome import Death, Outcome
from tests.torture.points import POINTS, Scene
from tests.torture.report import as_data, as_markdown
from tests.torture.schedule import schedule


@pytest.mark.parametrize("kills", [19, 20, 100, 200])
def test_every_point_comes_equally_often(kills: int) -> None:
    """So many named kills and as many random ones are planned; what is inherited is left before."""
    acts = schedule(kills, 1)
    named = [point for act in acts for point in act.points]
    assert len(named) == kills
    retrying = [act for act in acts if act.in_doubt == "retry"]
    assert sum(act.random_kills for act in retrying) == kills
    chain = [point for act in acts if act.in_doubt == "retry" for point in act.points]
    counts = Counter(point.name for point in chain)
    counts.pop("receipt stored")
    if kills >= 2 * len(POINTS):
        assert set(counts) == {point.name for point in POINTS} - {"receipt stored"}
        assert max(counts.values()) - min(counts.values()) <= 1
    for act in acts:
        for before, point in zip([None, *act.points], act.points, strict=False):
            if point.scene is Scene.INHERITED:
                assert before is not None
                assert before.name == "receipt stored"


def test_the_seed_decides() -> None:
    """The same kills and seed give the same schedule, another seed another one."""
    assert schedule(100, 1) == schedule(100, 1)
    assert schedule(100, 1) != schedule(100, 2)


def test_the_report_adds_up() -> None:
    """Kills are counted by point and round, suspended workers are not among them."""
    killed = Death("receipt held", "w1", 0, 2.0, None)
    suspended = Death("suspended", "w2", 0, 4.0, 7)
    outcome = Outcome("named-0", honours_keys=False, in_doubt_policy="retry", events=10)
    outcome.deaths = [killed, killed, suspended]
    outcome.in_doubt = {"receipt held": 3, "suspended": 1}
    outcome.doubles = {"receipt held": 2}
    outcome.violations = ["something is lost"]

    said = as_markdown([outcome])

    assert "| receipt held | 2 | 3 | 0 | 0 | 2 | 2.0 |" in said
    assert "| named-0 | ignored | retry | 2 | 10 | 0 | 2 | 0 | 0 | 1 |" in said
    assert "| together |  |  | 2 | 10 | 0 | 2 | 0 | 0 | 1 |" in said
    assert "VIOLATION in named-0: something is lost" in said
    assert as_data([outcome], seed=1, kills=2)["violations"] == 1
