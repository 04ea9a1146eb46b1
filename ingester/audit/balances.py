"""Reads the balances of many keys from PacSpace, some at a time, each until there is an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from ingester.errors import RefusedError, UnavailableError
from ingester.pacspace import Balance, PacspaceClient, ReadFailed, UnknownKey
from ingester.settings import PacspaceSettings

_ATTEMPTS_MAX: Final = 5
_PAUSE_SECONDS: Final = 0.5  # before the second attempt; each further one waits twice as long
_TRANSIENT: Final = {None, 408, 425, 429, 500, 502, 503, 504}

Take = Callable[[str, Balance | UnknownKey], None]


async def read_balances(settings: PacspaceSettings, keys: Iterable[str], take: Take) -> None:
    """Hand over the balance of each key, in any order, `requests_in_flight_max` asked at a time.

    UnavailableError, or RefusedError, for the first key without an answer: none is left out.
    """
    waiting = iter(keys)
    requests = settings.requests_in_flight_max
    async with PacspaceClient.from_settings(settings, connections_max=requests) as client:

        async def read() -> None:
            for key in waiting:
                take(key, await balance_of(client, key, settings.pacspace_url))

        tasks = [asyncio.create_task(read()) for _ in range(requests)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def balance_of(client: PacspaceClient, key: str, url: str) -> Balance | UnknownKey:
    """Ask for one balance, and again while there is no answer; UnavailableError, RefusedError."""
    pauses = [_PAUSE_SECONDS * 2**attempt for attempt in range(_ATTEMPTS_MAX - 1)]
    found = await client.get_balance(key)
    while isinstance(found, ReadFailed):
        if found.status not in _TRANSIENT or not pauses:
            kind = RefusedError if found.status in {401, 403} else UnavailableError
            raise kind(
                f"no balance of {key} from {url}: {found.reason}. Nothing was changed; `ingester"
                " check` tries the connection and the key, then repeat the command."
            )
        await asyncio.sleep(pauses.pop(0))
        found = await client.get_balance(key)
    return found
