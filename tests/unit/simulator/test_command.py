"""The command line of `simulate`, as far as it goes without a socket."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ingester.errors import ConfigurationError, UsageError
from ingester.simulator.command import simulate


def invoke(*arguments: str) -> object:
    application = typer.Typer()
    application.command()(simulate)
    return CliRunner().invoke(application, arguments)


@pytest.mark.parametrize("listen", ["8099", ":8099", "localhost:", "localhost:http", "h:65536"])
def test_a_wrong_address_is_a_usage_error(listen: str) -> None:
    """The message repeats what was given and shows what is expected."""
    error = invoke("--listen", listen).exception

    assert isinstance(error, UsageError)
    assert str(error) == f"--listen {listen}: expected HOST:PORT, such as 127.0.0.1:8099"


def test_a_missing_faults_file_is_a_configuration_error(tmp_path: Path) -> None:
    """The message names the file and says what to do."""
    error = invoke("--faults", str(tmp_path / "none.json")).exception

    assert isinstance(error, ConfigurationError)
    assert "none.json: cannot be read: No such file" in str(error)


@pytest.mark.parametrize(
    ("text", "member"),
    [
        ('[{"effect":{"kind":"answer","status":"503"}}]', "effect.status"),
        ('[{"match":{"every":2},"effect":{"kind":"drop"}}]', "`every`"),
        ("[{]", "malformed"),
    ],
)
def test_a_bad_faults_file_is_a_configuration_error(tmp_path: Path, text: str, member: str) -> None:
    """The message names the file and the member that is wrong."""
    path = tmp_path / "faults.json"
    path.write_text(text)

    error = invoke("--faults", str(path)).exception

    assert isinstance(error, ConfigurationError)
    assert "faults.json" in str(error)
    assert member in str(error)


def test_help_shows_examples() -> None:
    """An operator can copy a working line and a working rule out of --help."""
    output = invoke("--help").output

    assert "ingester simulate --listen 127.0.0.1:0" in output
    assert '"kind": "lose"' in output
