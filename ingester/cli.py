"""The command line: names the verbs, turns errors into a message and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, Final

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
from ingester.errors import EXIT_BUG, IngesterError, UsageError
from ingester.resolve import resolve
from ingester.settings import Settings
from ingester.simulator.command import simulate
from ingester.telemetry import configure_logging
from ingester.worker import run_worker

_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count
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
    INGESTER_STARTUP_TIMEOUT_SECONDS; 75 the drain deadline passed (nothing is lost); 77 Kafka
    refuses the credentials; 78 the settings.
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
    # Before anything can fail: the default would print local variables, keys among them.
    configure_logging("info", "auto")
    try:
        code = app(standalone_mode=False)
    except IngesterError as error:
        _exit(str(error), error.exit_code)
    except _COMMAND_LINE_ERROR as error:
        error.show()
        sys.exit(UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter would complain once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 -- the last line of defence
        structlog.get_logger().exception("ingester.failed")
        _exit(
            f"a bug in the ingester: {type(error).__name__}: {error}. Nothing that was not"
            " acknowledged is committed. Please report the lines above.",
            EXIT_BUG,
        )
    sys.exit(code if isinstance(code, int) else 0)


def _exit(message: str, code: int) -> None:
    sys.stderr.write(f"ingester: {message}\n")
    sys.exit(code)
