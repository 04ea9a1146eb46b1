"""When the loop calls back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import ceil
from typing import Final

_TICK_SECONDS: Final = 0.001  # of uvloop's clock and timers


def call_not_before(at_seconds: float, callback: Callable[[], None]) -> asyncio.Handle:
    """Call back at this time of the running loop, or up to a tick later.

    `call_at` takes the nearest tick. Whoever is called before, and asks to be called when it is
    time, is called at once, hundreds of times until the clock has moved on.
    """
    loop = asyncio.get_running_loop()
    ticks = ceil(max(0.0, at_seconds - loop.time()) / _TICK_SECONDS)
    return loop.call_later(ticks * _TICK_SECONDS, callback)
