"""When the worker's loop calls back."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from ingester.worker.timing import call_not_before


@pytest.mark.parametrize("delay_seconds", [-1.0, 0.0, 0.0002, 0.005, 0.0052, 0.0055, 0.0058, 0.01])
def test_nothing_is_called_before_its_time(delay_seconds: float) -> None:
    """By the clock that the called one reads: it need not ask to be called again."""

    async def early_by() -> float:
        loop = asyncio.get_running_loop()
        called: asyncio.Future[float] = loop.create_future()
        at_seconds = loop.time() + delay_seconds
        call_not_before(at_seconds, lambda: called.set_result(loop.time()))
        return at_seconds - await called

    async def early_most() -> float:
        return max([await early_by() for _ in range(20)])

    assert uvloop.run(early_most()) <= 0
