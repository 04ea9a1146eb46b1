"""The named kill points: where a worker is killed, and what has to go on for it to come there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from random import Random

from tests.support.workers import Worker
from tests.torture.endpoint import Moment
from tests.torture.stage import (
    EXIT_UNSETTLED,
    SESSION_SECONDS,
    WAIT_SECONDS_MAX,
    Round,
    StuckError,
    until,
)
from tests.torture.trap import Step, Trap

_BURST = 120
_BURST_PAUSE_SECONDS = 3.0  # of silence, in which a worker settles what there is
_POISONED = 4
_ANSWER_SECONDS_MAX = 0.005  # how far a worker may get on after an answer before it is killed
_AWHILE_SECONDS_MAX = 0.4 * SESSION_SECONDS  # within a drain, which takes 0.8 of the session


class Scene(Enum):
    """What goes on around the worker."""

    LOAD = auto()
    """There are events to settle."""
    INHERITED = auto()
    """The same, and its predecessor was killed after a receipt and before the commit."""
    REBALANCE = auto()
    """Another member joins while answers are held back."""
    DRAIN = auto()
    """It is asked to leave while answers are held back."""
    LAST_COMMIT = auto()
    """It is asked to leave, and the answers come."""


@dataclass(frozen=True, slots=True)
class Point:
    """One step of the protocol at which a worker is killed."""

    name: str
    step: Step
    moment: Moment
    scene: Scene = Scene.LOAD


POINTS: tuple[Point, ...] = (
    Point("intent held", Step.INTENT, Moment.HELD),
    Point("intent stored", Step.INTENT, Moment.STORED),
    Point("request arrived", Step.REQUEST, Moment.HELD),
    Point("request applied", Step.REQUEST, Moment.STORED),
    Point("request answered", Step.REQUEST, Moment.ANSWERED),
    Point("receipt held", Step.RECEIPT, Moment.HELD),
    Point("receipt stored", Step.RECEIPT, Moment.STORED),
    Point("receipt answered", Step.RECEIPT, Moment.ANSWERED),
    Point("position held", Step.POSITION, Moment.HELD),
    Point("position stored", Step.POSITION, Moment.STORED),
    Point("position answered", Step.POSITION, Moment.ANSWERED),
    Point("dead letters held", Step.DEAD_LETTERS, Moment.HELD),
    Point("dead letters stored", Step.DEAD_LETTERS, Moment.STORED),
    Point("tail asked", Step.TAIL, Moment.HELD, Scene.INHERITED),
    Point("tail read", Step.TAIL, Moment.STORED, Scene.INHERITED),
    Point("revocation drains", Step.REBALANCE, Moment.ANSWERED, Scene.REBALANCE),
    Point("revocation joins", Step.JOIN, Moment.HELD, Scene.REBALANCE),
    Point("drain waits", Step.REQUEST, Moment.HELD, Scene.DRAIN),
    Point("drain commits", Step.COMMIT, Moment.HELD, Scene.LAST_COMMIT),
)
BY_NAME = {point.name: point for point in POINTS}


class Heir(Enum):
    """Who goes on."""

    NEW = auto()
    """A new process."""
    SAME = auto()
    """A new process under the same group instance id."""
    RUNNING = auto()
    """A member that was there before."""


def shuffled(random: Random) -> list[Point]:
    """Every point once, in any order; where something has to be inherited, what leaves it first."""
    points: list[Point] = []
    for point in random.sample(POINTS, len(POINTS)):
        if point.scene is Scene.INHERITED:
            points.append(BY_NAME["receipt stored"])
        if point.name != "receipt stored":
            points.append(point)
    return points


class Chain:
    """Kills one worker after the other; whoever goes on is the next."""

    def __init__(self, round_: Round) -> None:
        self._round = round_
        self._random = round_.random
        self._instances: dict[Worker, str | None] = {}
        self._next: Worker | None = None
        # The member that is there already, and goes on.

    async def play(self, points: Sequence[Point]) -> None:
        """Kill a worker at each point in turn, then let the last heir settle everything."""
        for point in points:
            await self._kill_at(point)
        heir = self._next or self._start(None)
        await self._round.produce(_BURST, poisoned=_POISONED)
        await self._round.settled()
        halted = self._round.halted()
        assert await self._round.leave(heir) == (EXIT_UNSETTLED if halted else 0)

    async def _kill_at(self, point: Point) -> None:
        round_ = self._round
        victim = self._next or self._start(self._instance())
        self._next = None
        heir = self._heir(victim, point)
        if heir is Heir.RUNNING and point.scene is not Scene.REBALANCE:
            self._next = self._start(self._instance())
            await round_.assigned(victim)
            await round_.assigned(self._next)
        trap = await self._bring_about(point, victim)
        await self._sprung(trap, point)
        round_.trap = None
        await round_.killed(victim, point.name)
        round_.endpoint.release()
        await asyncio.sleep(self._random.choice([0, 0, self._random.uniform(0, 0.3)]))
        if self._next is None:
            same = self._instances[victim] if heir is Heir.SAME else self._instance()
            self._next = self._start(same)

    async def _bring_about(self, point: Point, victim: Worker) -> Trap:
        """Have the scene of the point, with the trap set; the one of a drain springs by itself."""
        round_ = self._round
        trap = self._trap(point, victim)
        if point.scene in {Scene.LOAD, Scene.INHERITED}:
            round_.trap = trap
            await round_.produce(_BURST, poisoned=_POISONED)
            return trap
        await self._hold(victim)
        if point.scene is Scene.REBALANCE:
            round_.trap = trap
            self._next = self._start(self._instance())
            return trap
        victim.process.terminate()
        await until(
            f"{victim.address} drains", lambda: victim.events("drain.started"), round_.state
        )
        if point.scene is Scene.DRAIN:
            await asyncio.sleep(self._random.uniform(0, _AWHILE_SECONDS_MAX))
            trap.spring()
        else:
            round_.trap = trap
            round_.endpoint.release()
        return trap

    async def _sprung(self, trap: Trap, point: Point) -> None:
        """Wait for the trap; where it is load that brings the worker there, go on with it."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not trap.sprung.is_set():
            try:
                await asyncio.wait_for(trap.sprung.wait(), _BURST_PAUSE_SECONDS)
            except TimeoutError:
                if time.monotonic() > deadline:
                    at = f"{trap.worker.address} is at {point.name!r}"
                    raise StuckError(f"no kill before {at}; {self._round.state()}") from None
                if point.scene is Scene.LOAD:
                    await self._round.produce(_BURST, poisoned=_POISONED)

    async def _hold(self, victim: Worker) -> None:
        """Have requests of the victim at the endpoint, applied or not, and unanswered."""
        round_ = self._round
        await round_.assigned(victim)
        round_.endpoint.hold(self._random.choice([Moment.HELD, Moment.STORED]))
        await round_.produce(_BURST, poisoned=_POISONED)
        await until(
            f"requests of {victim.address} are held",
            lambda: round_.endpoint.held(victim.address),
            round_.state,
        )

    def _trap(self, point: Point, victim: Worker) -> Trap:
        longest = _AWHILE_SECONDS_MAX if point.scene is Scene.REBALANCE else _ANSWER_SECONDS_MAX
        # A burst's dead letters may all be one request, and so may what was inherited.
        once = point.scene is not Scene.LOAD or point.step is Step.DEAD_LETTERS
        skip = 0 if once else self._random.choice([0, 0, 1])
        delay_seconds = self._random.uniform(0, longest)
        return Trap(victim, point.step, point.moment, skip=skip, delay_seconds=delay_seconds)

    def _heir(self, victim: Worker, point: Point) -> Heir:
        if point.scene is Scene.REBALANCE:
            return Heir.RUNNING
        if point.scene is Scene.INHERITED:  # with another member it might not be the one to inherit
            return Heir.SAME if self._instances[victim] else Heir.NEW
        if self._instances[victim] is None:
            return self._random.choice([Heir.NEW, Heir.RUNNING])
        return self._random.choice([Heir.SAME, Heir.SAME, Heir.NEW, Heir.RUNNING])

    def _instance(self) -> str | None:
        return self._random.choice([None, f"member-{len(self._round.workers)}"])

    def _start(self, instance: str | None) -> Worker:
        worker = self._round.start(instance)
        self._instances[worker] = instance
        return worker
