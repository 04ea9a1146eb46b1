"""The command's entry point: can be stopped from the first moment, then loads the rest."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType

_YOUNG_OBJECTS_MAX = 10_000
"""Not 700: a poll of 500 records makes 1,000 objects that reference counts soon free."""


def main() -> None:
    """Run the command line.

    As the first process of a container Python ignores SIGTERM until somebody handles it, and the
    imports take 0.2 s of CPU, of which a pod may get a tenth: a stop in that time would wait out
    its grace period. Ctrl-C in it would end in a traceback out of whatever is being imported.

    What the imports make stays. Looking for garbage among it takes 0.04 s while they run, and with
    the default threshold 1.5 of the worker's 5.8 CPU seconds per million events afterwards.
    """
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGINT, _exit)
    gc.disable()
    _import_structlog_alone()
    from ingester import cli  # noqa: PLC0415 -- after the handlers, as said

    app = cli.command_line(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS_MAX)
    gc.enable()
    cli.main(app)


def _import_structlog_alone() -> None:
    """Import structlog as where rich is not installed: it has no other way not to import it.

    It would for tracebacks in colour, which nothing here prints. They take 36 ms of CPU at each
    start, and 5 MB. None is Python's own mark of a module that is not to be found; progress bars,
    where a command has one, find rich again.
    """
    if "structlog" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment] # only modules are expected there
    import structlog  # noqa: F401, PLC0415 -- after the handlers, too

    del sys.modules["rich"]


def _exit(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


if __name__ == "__main__":
    main()
