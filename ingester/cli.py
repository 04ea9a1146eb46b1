"""The command line: names the verbs, turns errors into a message and an exit code."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import structlog
import typer

from ingester import __version__
from ingester.errors import EXIT_BUG, IngesterError, OutputError, UsageError
from ingester.log_lines import configure_logging
from ingester.output import discard
from ingester.tables import harmless

# Where each command is. To import all of them takes 0.2 s of CPU more than `run` alone, and 16 MB,
# which would stay in the memory of a worker.
_MODULES: Final[Mapping[str, str]] = {
    "run": "ingester.commands.run",
    "check": "ingester.commands.check",
    "emit": "ingester.commands.emit",
    "balance": "ingester.commands.balance",
    "explain": "ingester.commands.explain",
    "replay": "ingester.commands.replay",
    "status": "ingester.commands.status",
    "reconcile": "ingester.commands.reconcile",
    "statement": "ingester.commands.statement",
    "resolve": "ingester.commands.resolve",
    "dlq": "ingester.commands.dlq",
    "simulate": "ingester.simulator.command",
    "demo": "ingester.demo",
}
# The classes of commands that parse their arguments by themselves.
_CLASSES: Final[Mapping[str, str]] = {"emit": "EmitCommand"}
_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count
# Nothing but our output goes to a file of somebody's choice, or to a terminal that may go away.
_OUTPUT_FAILURES: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
# Every error about the command line; the class itself is not public, only its heirs are.
_COMMAND_LINE_ERROR: Final[Any] = typer.BadParameter.__mro__[1]


def command_line(arguments: Sequence[str]) -> typer.Typer:
    """Make what understands these arguments: only what they name, where they name something."""
    app = typer.Typer(
        name="ingester",
        help="Reads usage events from Kafka, settles them with PacSpace, commits offsets only after"
        " the acknowledgement.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        callback=_options,
    )
    for name in _needed(arguments):
        module = import_module(_MODULES[name])
        command = getattr(module, name)
        if isinstance(command, typer.Typer):  # several, under one name
            app.add_typer(command, name=name)
            continue
        kind = getattr(module, _CLASSES[name]) if name in _CLASSES else None
        app.command(name, cls=kind)(command)
    return app


def _needed(arguments: Sequence[str]) -> Iterable[str]:
    """Name the commands without which these arguments cannot be understood."""
    if arguments[:1] == ["--version"]:
        return ()
    named = next((each for each in arguments if not each.startswith("-")), "")
    return [named] if named in _MODULES else _MODULES


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"ingester {__version__}\n")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    del version  # its callback has done the work


def main(app: typer.Typer) -> None:
    """Run the command line and exit; a message for every error, a traceback only for a bug."""
    if sys.stdout is None:  # closed by whoever called us: nothing is to be heard
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 -- for the rest of the process
    # Before anything can fail: the default would print local variables, keys among them.
    configure_logging("info", "auto")
    _refuse_bytes(sys.argv[1:])
    code: object = None
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
        discard(sys.stdout)  # whoever read our output has gone, and wants no more
    except Exception as error:  # noqa: BLE001 -- the last line of defence
        if isinstance(error, OSError) and error.errno in _OUTPUT_FAILURES:
            discard(sys.stdout)
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


def _refuse_bytes(arguments: Sequence[str]) -> None:
    """End where an argument is no text: it could be neither sent, compared nor printed."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            message = f"the argument {os.fsencode(argument)!r} is no UTF-8: correct it"
            _exit(message, UsageError.exit_code)


def _exit(message: str, code: int) -> NoReturn:
    lines = map(harmless, message.split("\n"))  # what producers wrote may be quoted in them
    _end("ingester: " + "\n".join(lines) + "\n", code)


def _end(said: str, code: int) -> NoReturn:
    """End with a text, or with the code alone where standard error takes nothing, too."""
    try:
        sys.stderr.write(said)
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)
    sys.exit(code)
