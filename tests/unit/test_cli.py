"""What the command line says of itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ingester.cli import command_line


def said(*arguments: str) -> str:
    result = CliRunner().invoke(command_line(arguments), arguments, terminal_width=80)
    assert result.exit_code == 0
    return result.output


def test_it_says_the_version_of_the_installed_package() -> None:
    """What the command calls itself is what an installer knows it by."""
    assert said("--version") == f"ingester {version('pacspace-ingester')}\n"


def test_no_summary_is_cut() -> None:
    """Each command's first sentence fits into a terminal of 80 columns."""
    commands = said("--help").partition("Commands:\n")[2].splitlines()

    assert {line.split()[0] for line in commands} == {
        "run",
        "check",
        "emit",
        "explain",
        "replay",
        "reconcile",
        "statement",
        "balance",
        "status",
        "resolve",
        "dlq",
        "simulate",
        "demo",
    }
    for line in commands:
        assert line.endswith("."), line
        assert not line.endswith("..."), line


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ("run", "  INGESTER_PACSPACE_URL=https://app.pacspace.io PACSPACE_API_KEY=pk_test_... ing"),
        ("check", "  ingester check --config ingester.toml --json\n"),
        ("emit", "  ingester emit settlement-2025-06 customer-acme -5\n"),
        ("balance", "  ingester balance settlement-2025-06 --expect 500 --json\n"),
        ("resolve", "  ingester resolve usage:3:4100\n"),
        ("status", "  ingester status --worker 10.0.0.5:8080 --worker 10.0.0.6:8080\n"),
        ("dlq list", "  ingester dlq list --code refused --status 422 --not-redriven\n"),
        ("dlq show", "  ingester dlq show usage:3:4100 --json\n"),
        ("dlq stats", "  ingester dlq stats --not-redriven --json\n"),
        ("dlq redrive", "  ingester dlq redrive --set metadata.region={region} --remove region\n"),
        ("dlq export", "  ingester dlq export --code wrong_type --format csv > letters.csv\n"),
        ("simulate", '"every_nth": 10}, "effect": {"kind": "lose"}},\n'),
        ("demo", "  ingester demo --keep\n"),
    ],
)  # fmt: skip
def test_examples_keep_their_lines(command: str, example: str) -> None:
    """An example in a command's help can be copied as it stands."""
    assert example in said(*command.split(), "--help")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_imports_ends_it_quietly(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Whatever is being imported, there is an exit code and no traceback."""
    # Stands in the way of the first library that the command line imports.
    (tmp_path / "structlog.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\n")
    result = subprocess.run(
        [sys.executable, "-m", "ingester", "status"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.returncode, result.stderr) == (128 + number, "")
