"""What commands share at the command line: options, who types them, and the answer as JSON."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file with settings.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of sentences.")]


def moment(text: str) -> datetime:
    """Read a time of the command line: ISO 8601, in UTC unless it says otherwise."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} should be a time as 2025-06-10T14:30:00Z, or a day as 2025-06-10"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def who() -> str:
    """Say who runs a command, for the notes that it leaves."""
    user = str(os.getuid())  # what is left in a container without a list of users
    with contextlib.suppress(KeyError, OSError):
        user = getpass.getuser()
    return f"{user}@{socket.gethostname()}"


def print_json(document: object) -> None:
    """Print a document for programs, in one line."""
    sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")


def announce(lines: Iterable[str]) -> None:
    """Print what precedes the work itself, which is done even where nobody can be told of it.

    Whether the output can be written shows again at the end.
    """
    with contextlib.suppress(OSError):
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
