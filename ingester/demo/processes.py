"""PacSpace's stand-in and the worker, started as an operator would start them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from subprocess import Popen
from typing import Final

from ingester.demo.stage import START_SECONDS_MAX, wait_for
from ingester.errors import UnavailableError
from ingester.local_kafka import Keeper
from ingester.option import Address

API_KEY: Final = "pk_test_demo.demo"  # the stand-in lets in any key of the right form
_COMMAND: Final = (sys.executable, "-m", "ingester")
_VERIFY_DELAY_SECONDS: Final = 0.5


async def start_simulator(keeper: Keeper) -> str:
    """Start it and return its URL as soon as it listens."""
    log = keeper.folder / "simulator.log"
    delay = str(_VERIFY_DELAY_SECONDS)
    command = [*_COMMAND, "simulate", "--listen", "127.0.0.1:0", "--verify-delay-seconds", delay]
    process = keeper.start(command, log=log)

    async def listening() -> str | None:
        said = log.read_text()
        if process.poll() is not None:
            raise UnavailableError(f"PacSpace's stand-in ended at its start: {said}")
        return said.rpartition("listening on ")[2].strip() if said.endswith("\n") else None

    return await wait_for(listening, START_SECONDS_MAX, "PacSpace's stand-in did not start")


def start_worker(
    keeper: Keeper, bootstrap_servers: str, topic: str, url: str, listen: Address
) -> tuple[Popen[bytes], Path]:
    """Start the worker; its log tells each acknowledged batch."""
    log = keeper.folder / "ingester.log"
    settings = worker_settings(bootstrap_servers, topic, url)
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("INGESTER")}
    process = keeper.start(
        [*_COMMAND, "run"],
        log=log,
        env={
            **inherited,
            **settings,
            "INGESTER_HTTP_LISTEN": str(listen),
            "INGESTER_LOG_LEVEL": "debug",
            "INGESTER_LOG_FORMAT": "json",
        },
    )
    return process, log


def worker_settings(bootstrap_servers: str, topic: str, url: str) -> dict[str, str]:
    """What makes an `ingester` of the operator's own talk to the demo."""
    return {
        "INGESTER_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        "INGESTER_TOPIC": topic,
        "INGESTER_GROUP_ID": topic,
        "INGESTER_PACSPACE_URL": url,
        "PACSPACE_API_KEY": API_KEY,
    }
