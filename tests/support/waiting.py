"""Waiting for a condition, with a deadline: the only way in which a test waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PAUSE_SECONDS = 0.05


def eventually(predicate: Callable[[], T], timeout_seconds: float = 30.0) -> T:
    """Return the predicate's first true value; AssertionError shows the last one it gave."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        value = predicate()
        if value:
            return value
        _check(deadline, timeout_seconds, value)
        time.sleep(PAUSE_SECONDS)


async def eventually_async(
    predicate: Callable[[], Awaitable[T]], timeout_seconds: float = 30.0
) -> T:
    """Return the first true value that the predicate's coroutine gave, as `eventually` does."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        value = await predicate()
        if value:
            return value
        _check(deadline, timeout_seconds, value)
        await asyncio.sleep(PAUSE_SECONDS)


def _check(deadline: float, timeout_seconds: float, value: object) -> None:
    if time.monotonic() > deadline:
        raise AssertionError(f"still not so after {timeout_seconds:g} s; the last value: {value!r}")
