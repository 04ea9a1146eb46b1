"""Clients written for PacSpace's API, in its documentation's style, run unchanged."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingester.simulator.options import Options
from ingester.simulator.server import running

API_KEY = "pk_test_public.secret"
DEADLINE_SECONDS = 30


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with running(Options(port=0)) as url:
        yield url


def interpreter(example: str) -> str:
    if example.endswith(".py"):
        return sys.executable
    node = shutil.which("node")
    assert node, "node is not on the PATH: install Node.js 18 or newer, this test needs its fetch"
    return node


async def run_example(url: str, example: str) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        interpreter(example),
        str(Path(__file__).with_name(example)),
        env=os.environ | {"PACSPACE_URL": url, "PACSPACE_API_KEY": API_KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    assert process.returncode == 0, errors.decode()
    return output.decode().splitlines()


@pytest.mark.parametrize("example", ["basic_settlement.js", "basic_settlement.py"])
async def test_the_basic_settlement_example_settles(url: str, example: str) -> None:
    """A client written for PacSpace, unchanged, records three deltas and agrees on their sum."""
    output = await run_example(url, example)

    recorded, rest = output[:3], output[3:]
    assert [line.rpartition(" ")[0] for line in recorded] == [
        f"Recorded: {bits} for settlement-2025-06 → batch" for bits in (100, 250, 150)
    ]
    assert len({line.rpartition(" ")[2] for line in recorded}) == 3
    assert all(line.rpartition(" ")[2].startswith("batch_") for line in recorded)
    assert rest == [
        "Balance for settlement-2025-06: 500 (3 writes)",
        "Total usage recorded: 500",
        "Balance for settlement-2025-06: 500 (3 writes)",
        "Agreement confirmed: both parties agree on 500",
        "Settlement complete. Generating invoice for 500",
    ]


@pytest.mark.parametrize("example", ["basic_settlement.js", "basic_settlement.py"])
async def test_the_basic_settlement_example_sees_verification_pending(example: str) -> None:
    """Before verification the balance is there and the agreement is not."""
    async with running(Options(port=0, verify_delay_seconds=3_600)) as url:
        output = await run_example(url, example)

    assert output[-2:] == [
        "Balance for settlement-2025-06: 500 (3 writes)",
        "No agreement: pending_verification",
    ]


async def test_the_metering_example_reads_an_unknown_month_as_zero(url: str) -> None:
    """A 404 is what such a client takes for no usage."""
    assert await run_example(url, "saas_metering.py") == ["2025-05 0", "2025-06 3"]
