"""Reads the balances of many keys from PacSpace, some at a time, each until there is an answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ingester.errors import IngesterError, RefusedError, UnavailableError
from ingester.pacspace import PATHLESS_KEYS, Balance, PacspaceClient, ReadFailed, UnknownKey
from ingester.settings import PacspaceSettings
from ingester.tables import harmless

_ATTEMPTS_MAX: Final = 5
_PAUSE_SECONDS: Final = 0.5  # before the second attempt; each further one waits twice as long
_HELD_SECONDS_MAX: Final = 300.0  # for one balance, by Retry-After: who asks for more is away
_TRANSIENT: Final = {None, 408, 425, 429, 500, 502, 503, 504}
_ABOUT_THE_KEY: Final = {400, 414, 431}  # of a path that somebody takes for too long, or for none
_KEY_SHOWN_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class NotAsked:
    """A key whose balance cannot be asked for: no path can carry it, or PacSpace takes none so."""

    key: str
    reason: str


Answered = Balance | UnknownKey | NotAsked
Take = Callable[[str, Answered], None]


async def read_balances(settings: PacspaceSettings, keys: Iterable[str], take: Take) -> None:
    """Hand over the balance of each key, in any order, `requests_in_flight_max` asked at a time.

    UnavailableError, or RefusedError, for the first key without an answer: none is left out. So it
    is where PacSpace takes none of the keys: it is something else, then, that it does not like.
    """
    waiting = iter(keys)
    requests = settings.requests_in_flight_max
    async with PacspaceClient.from_settings(settings, connections_max=requests) as client:
        reader = BalanceReader(client, settings.pacspace_url)

        async def read() -> None:
            for key in waiting:
                take(key, await reader.balance_of(key))

        tasks = [asyncio.create_task(read()) for _ in range(requests)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        reader.end()


class BalanceReader:
    """Asks for balances one by one, or several at a time, and heeds what PacSpace says of that."""

    def __init__(self, client: PacspaceClient, url: str) -> None:
        self._client = client
        self._url = url
        self._held_until = 0.0
        # By the loop's clock: written when PacSpace asks for a pause, and it asks it of everybody.
        self._answers = 0
        self._refusal: IngesterError | None = None
        # Of the last key that was not taken; it is an error where no other was.

    async def balance_of(self, key: str) -> Answered:
        """Ask for one, and again while there is no answer; UnavailableError, RefusedError."""
        if key in PATHLESS_KEYS:
            return NotAsked(key, "no path can carry it")
        pauses = [_PAUSE_SECONDS * 2**attempt for attempt in range(_ATTEMPTS_MAX - 1)]
        held_seconds = 0.0
        while True:
            await self._unheld()
            found = await self._client.get_balance(key)
            if not isinstance(found, ReadFailed):
                self._answers += 1
                return found
            if found.status in _ABOUT_THE_KEY:
                self._refusal = self._error(key, found)
                return NotAsked(key, found.reason)
            asked_seconds = found.retry_after_seconds
            if asked_seconds is not None and held_seconds + asked_seconds <= _HELD_SECONDS_MAX:
                held_seconds += self._hold(max(asked_seconds, _PAUSE_SECONDS))
            elif found.status in _TRANSIENT and asked_seconds is None and pauses:
                await asyncio.sleep(pauses.pop(0))
            else:
                raise self._error(key, found)

    def end(self) -> None:
        """Say that there are no more keys; the error of the last one where none was taken."""
        if self._refusal is not None and not self._answers:
            raise self._refusal

    def _hold(self, seconds: float) -> float:
        now = asyncio.get_running_loop().time()
        if self._held_until <= now:
            sys.stderr.write(f"ingester: PacSpace asks to be left alone for {seconds:g} s\n")
        self._held_until = max(self._held_until, now + seconds)
        return seconds

    async def _unheld(self) -> None:
        loop = asyncio.get_running_loop()
        while (seconds := self._held_until - loop.time()) > 0:  # noqa: ASYNC110 -- more may be asked
            await asyncio.sleep(seconds)

    def _error(self, key: str, found: ReadFailed) -> IngesterError:
        kind = RefusedError if found.status in {401, 403} else UnavailableError
        return kind(
            f"no balance of {harmless(key, _KEY_SHOWN_MAX)} from {self._url}: {found.reason}."
            " Nothing was changed; `ingester check` tries the connection and the key, then repeat"
            " the command."
        )
