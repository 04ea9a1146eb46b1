"""The command line: names the verbs, turns errors into a message and an exit code."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TextIO

import structlog
import typer
import uvloop

from ingester import __version__
from ingester.arguments import ConfigFile
from ingester.balance import balance
from ingester.check import check
from ingester.config import load
from ingester.demo import demo
from ingester.emit import EmitCommand, emit
from ingester.errors import EXIT_BUG, IngesterError, OutputError, UsageError
from ingester.resolve import resolve
from ingester.settings import Settings
from ingester.simulator.command import simulate
from ingester.telemetry import configure_logging
from ingester.worker import run_worker

_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count
# Nothing but our output goes to a file of somebody's choice, or to a terminal that may go away.
_OUTPUT_FAILURES: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
# Every error about the command line; the class itself is not public, only its heirs are.
_COMMAND_LINE_ERROR: Final[Any] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="ingester",
    help="Reads usage events from Kafka, settles them with PacSpace, commits offsets only after the"
    " acknowledgement.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"ingester {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    del version  # its callback has done the work


@app.command()
def run(config: ConfigFile = None) -> None:
    """Settle the usage topics until SIGTERM, then drain and leave.

    A second signal exits at once.

    Settings come from INGESTER_* variables and the file; `ingester check` shows and tries them.

    \b
    Example:
      INGESTER_KAFKA_BOOTSTRAP_SERVERS=kafka:9092 INGESTER_TOPIC=usage \\
      INGESTER_PACSPACE_URL=https://app.pacspace.io PACSPACE_API_KEY=pk_test_... ingester run

    Exit codes: 0 drained; 69 Kafka or a topic is missing for longer than
    INGESTER_STARTUP_TIMEOUT_SECONDS; 75 the drain deadline passed before everything was settled,
    or a partition had halted and waits for a decision (nothing is lost; the log says which); 77
    Kafka refuses the credentials; 78 the settings.
    """
    loaded = load(Settings, environ=os.environ, config_file=config)
    configure_logging(loaded.settings.log_level, loaded.settings.log_format)
    for warning in loaded.warnings:
        structlog.get_logger().warning("settings.warned", detail=warning)
    uvloop.run(run_worker(loaded.settings))


app.command()(check)
app.command(cls=EmitCommand)(emit)
app.command()(balance)
app.command()(resolve)
app.command()(simulate)
app.command()(demo)


def main() -> None:
    """Run the command line and exit; a message for every error, a traceback only for a bug."""
    if sys.stdout is None:  # closed by whoever called us: nothing is to be heard
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 -- for the rest of the process
    # Before anything can fail: the default would print local variables, keys among them.
    configure_logging("info", "auto")
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except IngesterError as error:
        _exit(str(error), error.exit_code)
    except _COMMAND_LINE_ERROR as error:
        said = io.StringIO()
        error.show(file=said)
        _end(said.getvalue(), UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(_INTERRUPTED)
    except (BrokenPipeError, SystemExit):  # the latter is typer's word for the former
        _discard(sys.stdout)  # whoever read our output has gone, and wants no more
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 -- the last line of defence
        if isinstance(error, OSError) and error.errno in _OUTPUT_FAILURES:
            _discard(sys.stdout)
            failure = OutputError(
                f"the output cannot be written: {error.strerror}. What the command did is done;"
                " make room, or send the output elsewhere."
            )
            _exit(str(failure), failure.exit_code)
        structlog.get_logger().exception("ingester.failed")
        _exit(
            f"a bug in the ingester: {type(error).__name__}: {error}. Nothing that was not"
            " acknowledged is committed. Please report the lines above.",
            EXIT_BUG,
        )
    sys.exit(code if isinstance(code, int) else 0)


def _exit(message: str, code: int) -> NoReturn:
    _end(f"ingester: {message}\n", code)


def _end(said: str, code: int) -> NoReturn:
    """End with a text, or with the code alone where standard error takes nothing, too."""
    try:
        sys.stderr.write(said)
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)
    sys.exit(code)


def _discard(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere; the interpreter would complain at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
