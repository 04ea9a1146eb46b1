"""Who may import whom: the contracts hold, and each of them can be broken."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = "Commands use shells, shells use the core, and nothing looks up"
COMMANDS = "Verbs do not know each other, but for the one below another"
BACKFILL = "A plan is chosen, shown and carried out, and knows of none of that"
AUDIT = "Comparing rests on reading"
WORKER = "The loop knows its helpers, not they the loop"
KAFKA_LAYERS = "What reads, writes and joins rests on single connections"
CORE_LAYERS = "In the core, decisions about many rest on decisions about one"
CORE_IS_PURE = "The core does no I/O, has no clock and draws no lots"
KAFKA_CLIENT = "Only the shells around Kafka know its client"
HTTP_LIBRARY = "Only what speaks HTTP knows its library"


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the package in this folder by the contracts beside it."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_contracts_hold() -> None:
    """No module imports what its place does not allow, and every module has a place."""
    result = lint_imports(ROOT)

    assert result.returncode == 0, result.stdout + result.stderr
    assert ", 0 broken." in result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("settings", "import ingester.worker.loop", LAYERS),
        ("kafka/client", "from ingester.worker.loop import Worker", LAYERS),
        ("kafka/client", "import ingester.pacspace", LAYERS),
        ("commands/balance", "import ingester.commands.emit", COMMANDS),
        ("core/record", "import ingester.settings", LAYERS),
        ("core/delivery", "import ingester.simulator.answers", LAYERS),
        ("simulator/answers", "from ingester.core.delivery import Response", LAYERS),
        ("simulator/server", "import ingester.worker.telemetry", LAYERS),
        ("simulator/options", "import ingester.option", LAYERS),
        ("local_kafka/broker", "import ingester.kafka.client", LAYERS),
        ("wire", "import ingester.errors", LAYERS),
        ("newcomer", "", LAYERS),
        ("core/event", "import ingester.core.batch", CORE_LAYERS),
        ("core/batch", "import ingester.core.delivery", CORE_LAYERS),
        ("core/dispatch", "import ingester.core.pipeline", CORE_LAYERS),
        ("core/newcomer", "", CORE_LAYERS),
        ("commands/newcomer", "", COMMANDS),
        ("backfill/plan", "import ingester.backfill.scope", BACKFILL),
        ("audit/books", "import ingester.audit.auditing", AUDIT),
        ("worker/telemetry", "import ingester.worker.loop", WORKER),
        ("core/dispatch", "import random", CORE_IS_PURE),
        ("core/pipeline", "from time import monotonic", CORE_IS_PURE),
        ("core/pipeline", "import asyncio", CORE_IS_PURE),
        ("core/offsets", "import logging", CORE_IS_PURE),
        ("core/batch", "from aiokafka.structs import ConsumerRecord", CORE_IS_PURE),
        ("kafka/reading", "import ingester.kafka.group", KAFKA_LAYERS),
        ("worker/loop", "import aiokafka", KAFKA_CLIENT),
        ("local_kafka/readiness", "from aiokafka.admin import AIOKafkaAdminClient", KAFKA_CLIENT),
        ("commands/check", "import httpx", HTTP_LIBRARY),
        ("pacspace", "import aiohttp", HTTP_LIBRARY),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, module: str, line: str, contract: str) -> None:
    """One line in a copy of the package breaks the contract that forbids it."""
    shutil.copytree(ROOT / "ingester", tmp_path / "ingester")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "ingester" / f"{module}.py").open("a") as file:
        file.write(f"\n{line}\n")

    result = lint_imports(tmp_path)

    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{contract} BROKEN" in result.stdout.replace("\n", " ")
