"""`ingester status`: how the group stands, and whether anything of it needs somebody."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Annotated, Final, NoReturn

import msgspec
import typer

from ingester.arguments import AsJson, ConfigFile
from ingester.audit.overview import Overview, OverviewSettings, overview
from ingester.commands.overview_report import document, lines, needs
from ingester.config import load
from ingester.errors import EXIT_MISMATCH, UnavailableError, UsageError
from ingester.option import Address, parse_address
from ingester.output import whoever_reads

_CLEAR: Final = "\x1b[H\x1b[2J"  # home, and erase the screen


def status(
    worker: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Ask this worker, too; may be repeated. Unless given, INGESTER_HTTP_LISTEN.",
        ),
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=1, help="Look again and again until Ctrl-C."),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show how the group stands, and what needs somebody.

    COMMITTED is the next offset, LAG what is beyond it without a receipt; BEHIND is the age of the
    OLDEST record there. What is in doubt for seconds is in flight. Halted, blocked, held and
    stalled are known to workers alone: name those that do not listen at INGESTER_HTTP_LISTEN. Where
    none answers, it says so, and the exit code is what Kafka alone knows.

    \b
    Examples:
      ingester status
      ingester status --worker 10.0.0.5:8080 --worker 10.0.0.6:8080
      ingester status --watch 5
      ingester status --json

    Exit codes: 0 nothing needs somebody; 1 something does, each with what to do; 64 the command
    line; 69 Kafka or a topic cannot be reached; 77 Kafka refuses the credentials or lacks a
    permission; 78 the settings. With --watch it ends by Ctrl-C, with 130.
    """
    addresses = [_address(each) for each in worker or ()]
    settings = load(OverviewSettings, environ=os.environ, config_file=config).settings
    if watch is not None:
        asyncio.run(_watch(settings, addresses, watch, as_json=as_json))
    seen = asyncio.run(overview(settings, addresses))
    with whoever_reads():
        sys.stdout.write(_said(seen, as_json=as_json))
    if any(needs(seen)):
        raise typer.Exit(EXIT_MISMATCH)


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise UsageError(f"--worker {error}") from error


async def _watch(
    settings: OverviewSettings, workers: list[Address], seconds: float, *, as_json: bool
) -> NoReturn:
    """Print each look over the last one; on no terminal, or as JSON, below it."""
    over = _CLEAR if sys.stdout.isatty() and not as_json else ""
    while True:
        try:
            said = _said(await overview(settings, workers), as_json=as_json)
        except UnavailableError as error:
            sys.stderr.write(f"ingester: {error}\n")
        else:
            sys.stdout.write(over + said)
            sys.stdout.flush()
        await asyncio.sleep(seconds)


def _said(seen: Overview, *, as_json: bool) -> str:
    if as_json:
        return msgspec.json.encode(document(seen)).decode() + "\n"
    return "\n".join(lines(seen)) + "\n"
