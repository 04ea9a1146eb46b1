"""Which rounds a torture plays, and in which order: by the number of kills and the seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Literal

from tests.torture.judgement import judge
from tests.torture.outcome import Outcome
from tests.torture.points import BY_NAME, Chain, Point, shuffled
from tests.torture.stage import Round, Stage
from tests.torture.storms import Storm

_CHAIN_KILLS_MIN = 20  # for each round that halts, so that the others keep their share
_STORM_KILLS = 25
_HALTING_STORM_KILLS = 10
_STORM_PARTITIONS = 8
_HALTING_STORM_PARTITIONS = 24  # some for each of its kills
_IGNORED_EVERY = 4  # one round of so many is with an endpoint that ignores keys
_HALTING_POINTS = ("intent stored", "request arrived", "request applied", "receipt held")


@dataclass(frozen=True, slots=True)
class Act:
    """One round: `points` for a chain of named kills, or a number of random ones."""

    name: str
    points: tuple[Point, ...] = ()
    random_kills: int = 0
    honours_keys: bool = True
    in_doubt: Literal["retry", "halt"] = "retry"
    static: bool = False
    partitions: int = 4

    @property
    def kills(self) -> int:
        """How many workers it kills."""
        return len(self.points) or self.random_kills

    async def play(self, stage: Stage, seed: int) -> Outcome:
        """Play it on a stage; its violations are in the outcome."""
        round_ = Round(
            stage,
            self.name,
            Random(f"{seed} {self.name}"),
            partitions=self.partitions,
            honours_keys=self.honours_keys,
            in_doubt=self.in_doubt,
        )
        async with round_.running():
            if self.points:
                await Chain(round_).play(self.points)
            else:
                # Whoever leaves or is suspended leaves doubts as well, but not countable ones.
                storm = Storm(round_, static=self.static, kills_only=not self.honours_keys)
                await storm.play(self.random_kills)
            await judge(round_, stage.servers)
        return round_.outcome


def schedule(kills: int, seed: int) -> list[Act]:
    """So many named kills and as many random ones; most with an endpoint that honours keys."""
    return [*_chains(kills, seed), *_storms(kills)]


def _chains(kills: int, seed: int) -> Iterator[Act]:
    random = Random(seed)
    halting = _HALTING_POINTS[: kills // _CHAIN_KILLS_MIN]
    left = kills - len(halting)
    for number in count():
        points = shuffled(random)[:left]
        if not points:
            break
        left -= len(points)
        yield Act(f"named-{number}", tuple(points), honours_keys=_honours(number))
    for number, name in enumerate(halting):
        points = [BY_NAME[name]]
        yield Act(f"named-halting-{number}", tuple(points), honours_keys=False, in_doubt="halt")


def _storms(kills: int) -> Iterator[Act]:
    for number, first in enumerate(range(0, kills, _STORM_KILLS)):
        yield Act(
            f"random-{number}",
            random_kills=min(_STORM_KILLS, kills - first),
            honours_keys=_honours(number),
            static=number % 2 == 1,
            partitions=_STORM_PARTITIONS,
        )
    # On top of the others: it ends with fewer kills when everything is halted before.
    yield Act(
        "random-halting",
        random_kills=min(_HALTING_STORM_KILLS, kills),
        honours_keys=False,
        in_doubt="halt",
        partitions=_HALTING_STORM_PARTITIONS,
    )


def _honours(number: int) -> bool:
    return number % _IGNORED_EVERY != _IGNORED_EVERY - 1
