"""Kills at random moments under load, among members that join, leave and are suspended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from itertools import count

from tests.support.workers import Worker
from tests.torture.stage import (
    EXIT_UNSETTLED,
    SESSION_SECONDS,
    WAIT_SECONDS_MAX,
    Round,
    StuckError,
    until,
)

MEMBERS = 3
_MEMBERS_MAX = 4
_BURST = 20
_BURST_PAUSE_SECONDS = 0.05
_PAUSE_SECONDS = (0.2, 2.0)  # between two blows
_AT_WORK = 0.7  # of all blows fall only when the group gets on, if it does so soon
_WORK_SECONDS_MAX = 4.0
_REQUESTS = 5  # that it gets on by
_ABSENCE_SECONDS = (0.0, 1.5)  # from a member's end to its successor's start
_SUSPENDED_SECONDS = (1.2 * SESSION_SECONDS, 2.0 * SESSION_SECONDS)
_SETTLE_SECONDS_MAX = 90.0


class Storm:
    """Plays on a round until so many workers are killed."""

    def __init__(self, round_: Round, *, static: bool = False, kills_only: bool = False) -> None:
        """`static` gives members instance ids, which their successors take over."""
        self._round = round_
        self._random = round_.random
        self._static = static
        self._kills_only = kills_only
        self._instances: dict[Worker, str | None] = {}
        self._numbers = count()
        self._suspended: set[Worker] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        # Successors to start and members to continue; those that are done are removed by blows.
        self._calm = asyncio.Event()  # ends the load

    async def play(self, kills: int) -> None:
        """Blow until so many are killed, or all is halted; then let everything be settled."""
        round_ = self._round
        for _ in range(MEMBERS):
            self._start(None)
        load = asyncio.create_task(self._load())
        try:
            await self._blow(kills)
            self._calm.set()
            await asyncio.gather(load, *self._tasks)
        finally:
            for task in (load, *self._tasks):
                task.cancel()
            await asyncio.gather(load, *self._tasks, return_exceptions=True)
        if not round_.alive:
            self._start(None)
        await round_.settled(_SETTLE_SECONDS_MAX)
        halts = round_.outcome.in_doubt_policy == "halt"
        for worker in list(round_.alive):
            await round_.assigned(worker)
            code = await round_.leave(worker)
            assert code == 0 or (halts and code == EXIT_UNSETTLED), f"it ended with {code}"

    async def _blow(self, kills: int) -> None:
        while self._round.outcome.kills < kills:
            await asyncio.sleep(self._random.uniform(*_PAUSE_SECONDS))
            if self._random.random() < _AT_WORK:
                await self._work_goes_on()
            self._raise_failures()
            self._bury_those_that_ended()
            if len(self._round.halted()) == self._round.partitions:
                return
            candidates = [each for each in self._round.alive if each not in self._suspended]
            if not candidates:
                continue
            blow = "kill" if self._kills_only else self._draw()
            worker = self._random.choice(candidates)
            if blow == "kill":
                await self._round.killed(worker, "random")
                self._later(self._replace(worker))
            elif blow == "leave":
                self._later(self._leave(worker))
            elif blow == "suspend" and len(candidates) > 1:
                self._later(self._suspend(worker))
            elif blow == "join" and len(self._round.alive) < _MEMBERS_MAX:
                self._start(None)

    async def _work_goes_on(self) -> None:
        endpoint = self._round.endpoint
        wanted = len(endpoint.arrivals) + _REQUESTS
        with suppress(StuckError):
            await until(
                "requests come",
                lambda: len(endpoint.arrivals) >= wanted,
                self._round.state,
                _WORK_SECONDS_MAX,
            )

    def _draw(self) -> str:
        (blow,) = self._random.choices(
            ("kill", "leave", "suspend", "join"), weights=(66, 12, 14, 8)
        )
        return blow

    def _start(self, instance: str | None) -> None:
        if instance is None and self._static:
            instance = f"member-{next(self._numbers)}"
        worker = self._round.start(instance)
        self._instances[worker] = instance

    async def _replace(self, worker: Worker) -> None:
        await asyncio.sleep(self._random.uniform(*_ABSENCE_SECONDS))
        if len(self._round.alive) < MEMBERS:
            self._start(self._instances[worker])

    async def _leave(self, worker: Worker) -> None:
        code = await self._round.leave(worker)
        if code == EXIT_UNSETTLED:
            self._round.note(worker, "left unsettled")
            exits = self._round.outcome.own_exits
            exits[code] = exits.get(code, 0) + 1
        await self._replace(worker)

    async def _suspend(self, worker: Worker) -> None:
        self._suspended.add(worker)
        worker.process.pause()
        self._round.note(worker, "suspended")
        await asyncio.sleep(self._random.uniform(*_SUSPENDED_SECONDS))
        worker.process.resume()
        self._suspended.discard(worker)

    def _bury_those_that_ended(self) -> None:
        """A worker may give itself up, for an orchestrator to start it again."""
        for worker in list(self._round.alive):
            code = worker.process.exit_code
            if code is not None:
                self._round.alive.remove(worker)
                self._round.note(worker, "ended by itself")
                exits = self._round.outcome.own_exits
                exits[code] = exits.get(code, 0) + 1
                self._later(self._replace(worker))

    async def _load(self) -> None:
        while not self._calm.is_set():
            await self._round.produce(_BURST, poisoned=self._random.choice([0, 1]))
            await asyncio.sleep(_BURST_PAUSE_SECONDS)

    def _later(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(asyncio.wait_for(work, 2 * WAIT_SECONDS_MAX))
        self._tasks.add(task)

    def _raise_failures(self) -> None:
        for task in [each for each in self._tasks if each.done()]:
            self._tasks.discard(task)
            task.result()
