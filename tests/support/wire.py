"""What passes between workers and PacSpace: kept as it was, and answered otherwise on demand."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from tests.support.simulator import API_KEY

_BODY_BYTES_MAX = 16 * 1024 * 1024


@dataclass(slots=True)
class Write:
    """One request as it came, byte by byte; times are of the monotonic clock."""

    idempotency_key: str
    body: bytes
    arrived_seconds: float
    answered_seconds: float | None = None


PassOn = Callable[[], Awaitable[web.Response]]
Intercept = Callable[[Write, PassOn], Awaitable[web.Response]]


class Wire:
    """Passes writes on to PacSpace; `intercept` decides about each of them, and its answer."""

    def __init__(self, target_url: str) -> None:
        self.writes: list[Write] = []
        self.intercept: Intercept | None = None
        self.url = ""
        self._target_url = target_url

    def settings(self) -> dict[str, str]:
        """The settings that make an ingester talk through it."""
        return {"INGESTER_PACSPACE_URL": self.url, "PACSPACE_API_KEY": API_KEY}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Wire]:
        """Listen on a free port until the end of the block."""
        application = web.Application(client_max_size=_BODY_BYTES_MAX)
        async with aiohttp.ClientSession() as session:

            async def take(request: web.Request) -> web.Response:
                return await self._take(request, session)

            application.router.add_post("/{path:.*}", take)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
                yield self
            finally:
                await runner.cleanup()

    async def _take(self, request: web.Request, session: aiohttp.ClientSession) -> web.Response:
        arrived_seconds = time.monotonic()
        body = await request.read()
        write = Write(request.headers["Idempotency-Key"], body, arrived_seconds)
        self.writes.append(write)

        async def pass_on() -> web.Response:
            async with session.post(
                self._target_url + request.path, data=body, headers=request.headers
            ) as answer:
                return web.Response(
                    status=answer.status,
                    body=await answer.read(),
                    content_type=answer.content_type,
                )

        try:
            return await (self.intercept(write, pass_on) if self.intercept else pass_on())
        finally:
            write.answered_seconds = time.monotonic()
