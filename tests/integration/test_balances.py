"""Balances that are asked for until there is an answer, over real connections."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from urllib.parse import unquote

import pytest

from ingester.audit.balances import Answered, NotAsked, read_balances
from ingester.errors import UnavailableError
from ingester.pacspace import Balance
from ingester.settings import PacspaceSettings
from tests.integration.http.test_pacspace import API_KEY, BALANCE
from tests.support.scripted import Endpoint, endpoint, response


def settings(found: Endpoint) -> PacspaceSettings:
    return PacspaceSettings(pacspace_url=found.url, pacspace_api_key=API_KEY)


async def balances(found: Endpoint, *keys: str) -> dict[str, Answered]:
    read: dict[str, Answered] = {}
    await read_balances(settings(found), keys, read.__setitem__)
    return read


def balance_of(line: str) -> bytes:
    key = unquote(line.split()[1].rpartition("/")[2])
    return response(200, json.dumps({"data": BALANCE | {"key": key}}).encode())


@pytest.mark.parametrize("status", [400, 414, 431])
async def test_a_key_that_is_not_taken_keeps_no_other_from_being_read(status: int) -> None:
    """It cannot be asked for, as one that no path can carry; each of the others has a balance."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            request = await found.take(reader)
            too_long = len(request.line) > 8000
            writer.write(response(status, b"") if too_long else balance_of(request.line))

    long = "x" * 20_000
    async with endpoint(script) as found:
        read = await balances(found, long, "a", ".", "b")

    refused = {key for key, each in read.items() if isinstance(each, NotAsked)}
    assert refused == {long, "."}
    assert {key for key, each in read.items() if isinstance(each, Balance)} == {"a", "b"}


async def test_an_endpoint_that_takes_no_key_at_all_is_an_error() -> None:
    """It is something else that it does not like, and nothing was compared."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            await found.take(reader)
            writer.write(response(400, b""))

    async with endpoint(script) as found:
        with pytest.raises(UnavailableError, match=r"no balance of .*HTTP 400"):
            await balances(found, "a", "b")


async def test_what_retry_after_asks_for_is_waited_out_and_is_no_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """More often than an endpoint may fail; once for all, and it is said once."""
    times: list[float] = []

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            request = await found.take(reader)
            times.append(asyncio.get_running_loop().time())
            held = len(times) <= 7
            answer = response(429, b"", "Retry-After: 1") if held else balance_of(request.line)
            writer.write(answer)

    async with endpoint(script) as found:
        read = await balances(found, "a")

    assert isinstance(read["a"], Balance)
    pauses = [after - before for before, after in pairwise(times)]
    assert len(pauses) == 7
    assert all(1 <= pause < 3 for pause in pauses)
    assert "PacSpace asks to be left alone for 1 s" in capsys.readouterr().err


async def test_who_asks_for_more_than_is_waited_for_is_away() -> None:
    """An hour is no pause: the error says what was asked for."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            await found.take(reader)
            writer.write(response(429, b"", "Retry-After: 3600"))

    async with endpoint(script) as found:
        with pytest.raises(UnavailableError, match=r"HTTP 429"):
            await asyncio.wait_for(balances(found, "a"), 10)
