"""What a worker imports at its start, and what it leaves to those who have a use for it."""

from __future__ import annotations

import subprocess
import sys

from ingester.errors import UnavailableError
from tests.support.processes import environment


def modules_of_a_worker(listen: str) -> set[str]:
    """Run a worker until it has found no Kafka; return all modules that it imported."""
    settings = {
        "INGESTER_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "INGESTER_TOPIC": "usage",
        "INGESTER_PACSPACE_URL": "http://127.0.0.1:1",
        "PACSPACE_API_KEY": "pk_test_start.secret",
        "INGESTER_HTTP_LISTEN": listen,
        "INGESTER_STARTUP_TIMEOUT_SECONDS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ingester", "run"],
        env=environment(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == UnavailableError.exit_code, result.stderr
    lines = (line for line in result.stderr.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip() for line in lines}


def test_a_worker_imports_nothing_that_it_does_not_use() -> None:
    """Where nobody asks how it is, neither a server is loaded nor what draws on terminals."""
    modules = modules_of_a_worker("off")

    assert {"structlog.dev", "ingester.worker.loop"} <= modules
    assert set() == modules & {"rich.console", "rich.pretty", "pygments", "aiohttp.web"}


def test_a_worker_that_listens_imports_the_server() -> None:
    """What is left out above is looked for in the right way."""
    assert "aiohttp.web" in modules_of_a_worker("127.0.0.1:0")
