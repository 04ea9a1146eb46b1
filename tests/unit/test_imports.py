"""What a command imports at its start, and what it leaves to those who have a use for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest

from ingester.errors import UnavailableError
from tests.support.processes import environment

DRAWING = {"rich.console", "rich.progress", "rich.pretty", "pygments"}
SERVING = {"aiohttp", "aiohttp.web", "ingester.worker.health"}


def modules_of(
    *arguments: str, settings: Mapping[str, str] | None = None, exit_code: int = 0
) -> set[str]:
    """Run a command to its end; return all modules that it imported."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ingester", *arguments],
        env=environment(settings or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == exit_code, result.stderr
    lines = (line for line in result.stderr.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip() for line in lines}


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
    return modules_of("run", settings=settings, exit_code=UnavailableError.exit_code)


def test_a_worker_imports_nothing_that_it_does_not_use() -> None:
    """Where nobody asks how it is, neither a server is loaded nor what draws on terminals."""
    modules = modules_of_a_worker("off")

    assert {"structlog.dev", "ingester.worker.loop"} <= modules
    assert set() == modules & (DRAWING | SERVING)


def test_a_worker_that_listens_imports_the_server() -> None:
    """What is left out above is looked for in the right way."""
    assert modules_of_a_worker("127.0.0.1:0") >= SERVING


@pytest.mark.parametrize("command", ["emit", "balance", "dlq", "reconcile", "replay"])
def test_what_draws_on_terminals_is_imported_on_terminals(command: str) -> None:
    """A command that a script runs loads nothing that only people see."""
    assert set() == modules_of(command, "--help") & DRAWING


def test_the_demo_imports_what_draws_its_tables() -> None:
    """What is left out above is looked for in the right way."""
    assert {"rich.console", "rich.progress"} <= modules_of("demo", "--help")
