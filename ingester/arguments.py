"""Command line options that several commands share."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

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
