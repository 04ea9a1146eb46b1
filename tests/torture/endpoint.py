"""PacSpace as the torture needs it: exact about what it applied, and held at will at any step.

Every event carries a number, so that a double is seen whatever batch it came in.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto
from random import Random
from typing import Any

from aiohttp import web

from ingester.wire import API_KEY_HEADER, IDEMPOTENCY_KEY_HEADER, WRITES_PATH


class Moment(Enum):
    """How far a request has come, to this endpoint or to a broker."""

    HELD = auto()
    """It has arrived here and is not applied; a broker does not have it."""
    STORED = auto()
    """It is applied, or the broker has it, and the answer is not on its way."""
    ANSWERED = auto()
    """The answer has just left."""


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """One request, whatever became of it."""

    worker: str
    idempotency_key: str
    items: tuple[dict[str, Any], ...]


Watch = Callable[[Moment, Arrival], Awaitable[bool]]


class Endpoint:
    """Counts what it applies; with `honours_keys` a key is applied once, else each time."""

    def __init__(self, random: Random, *, honours_keys: bool = True) -> None:
        self.honours_keys = honours_keys
        self.latency_seconds_max = 0.02
        self.url = ""
        self.watch: Watch | None = None
        """Told of each moment; True ends the connection there, before it is applied or answered."""
        self.arrivals: list[Arrival] = []
        self.applications: Counter[str] = Counter()
        """How often each Idempotency-Key was applied."""
        self.counted: dict[int, Counter[str]] = defaultdict(Counter)
        """How often each event was applied, by its number, under each Idempotency-Key."""
        self.totals: dict[str, int] = defaultdict(int)
        """Bits by record key."""
        self.batch_keys: dict[str, str] = {}
        """The Idempotency-Key of every batch id that was ever answered."""
        self.conflicts: list[str] = []
        """Keys that came with two different bodies."""
        self._random = random
        self._bodies: dict[str, bytes] = {}
        self._answers: dict[str, str] = {}
        self._held_at: Moment | None = None
        self._released = asyncio.Event()
        self._held: Counter[str] = Counter()  # by worker

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Endpoint]:
        """Serve on a free port of the loopback interface until the end of the block."""
        application = web.Application()
        application.router.add_post(WRITES_PATH, self._take)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            self.release()
            await runner.cleanup()

    def hold(self, moment: Moment) -> None:
        """Let no request go past this moment until `release`."""
        self._held_at = moment
        self._released.clear()

    def release(self) -> None:
        """Let all go on that are held, whether anybody still waits for the answer or not."""
        self._held_at = None
        self._released.set()

    def held(self, worker: str) -> int:
        """How many requests of a worker are held."""
        return self._held[worker]

    async def _take(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        arrival = Arrival(
            request.headers[API_KEY_HEADER].partition(".")[0].removeprefix("pk_test_"),
            request.headers[IDEMPOTENCY_KEY_HEADER],
            tuple(json.loads(body)["items"]),
        )
        self.arrivals.append(arrival)
        if self._bodies.setdefault(arrival.idempotency_key, body) != body:
            self.conflicts.append(arrival.idempotency_key)
        await asyncio.sleep(self._random.uniform(0, self.latency_seconds_max))
        if await self._passes(Moment.HELD, arrival):
            return _cut(request)
        batch_id = self._apply(arrival)
        if await self._passes(Moment.STORED, arrival):
            return _cut(request)
        response = web.json_response(
            {"statusCode": 202, "data": {"batchId": batch_id, "itemCount": len(arrival.items)}},
            status=202,
        )
        try:
            await response.prepare(request)
            await response.write_eof()
        except ConnectionError:
            return response  # whoever asked is gone
        await self._passes(Moment.ANSWERED, arrival)
        return response

    async def _passes(self, moment: Moment, arrival: Arrival) -> bool:
        if self._held_at is moment:
            self._held[arrival.worker] += 1
            await self._released.wait()
            self._held[arrival.worker] -= 1
        return self.watch is not None and await self.watch(moment, arrival)

    def _apply(self, arrival: Arrival) -> str:
        key = arrival.idempotency_key
        if self.honours_keys and key in self._answers:
            return self._answers[key]
        self.applications[key] += 1
        for item in arrival.items:
            self.counted[item["metadata"]["number"]][key] += 1
            self.totals[item["key"]] += item["bits"]
        batch_id = f"batch-{len(self.batch_keys) + 1}"
        self.batch_keys[batch_id] = key
        self._answers[key] = batch_id
        return batch_id


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
