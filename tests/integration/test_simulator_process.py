"""The simulator as a process: where it listens, what it says, how it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys

import aiohttp
import pytest

from ingester.errors import UnavailableError
from ingester.simulator.options import Options
from ingester.simulator.server import running

SIMULATE = "import typer; from ingester.simulator.command import simulate; typer.run(simulate)"
DEADLINE_SECONDS = 20


async def test_a_port_in_use_is_reported_by_name() -> None:
    """The message has the address, the cause and the way out."""
    async with running(Options(port=0)) as url:
        address = url.removeprefix("http://")
        port = int(address.rpartition(":")[2])

        with pytest.raises(UnavailableError, match=f"{address}: the port is in use; .*--listen"):
            async with running(Options(port=port)):
                pass


async def test_a_foreign_address_is_reported_by_name() -> None:
    """An address that is not this machine's is refused in a sentence, not in a traceback."""
    with pytest.raises(UnavailableError, match=r"192.0.2.1:0: .*address of this machine"):
        async with running(Options(host="192.0.2.1", port=0)):
            pass


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
async def test_the_process_says_where_it_listens_and_stops_on_a_signal(
    signal_number: signal.Signals,
) -> None:
    """One line on standard output, connections accepted by then, exit code 0 even while hanging."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SIMULATE, "--listen", "127.0.0.1:0"),
        stdout=subprocess.PIPE,
    )
    try:
        line = await asyncio.wait_for(process.stdout.readline(), DEADLINE_SECONDS)
        prefix, _, url = line.decode().rstrip("\n").rpartition(" ")
        assert prefix == "simulator listening on"
        async with aiohttp.ClientSession(url) as session:
            await session.post("/_simulator/faults", json={"effect": {"kind": "hang"}})
            hanging = asyncio.create_task(session.get("/api/v1/reads/bucket/k"))

            async with asyncio.timeout(DEADLINE_SECONDS):
                while await requests(session) != {"hung": 1}:  # noqa: ASYNC110 - it shows over HTTP only
                    await asyncio.sleep(0.01)
            process.send_signal(signal_number)

            assert await asyncio.wait_for(process.wait(), DEADLINE_SECONDS) == 0
            with pytest.raises(aiohttp.ClientConnectionError):
                await hanging
        host, port = url.removeprefix("http://").split(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=1)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def requests(session: aiohttp.ClientSession) -> dict[str, int]:
    async with session.get("/_simulator/report") as response:
        return (await response.json())["requests"]
