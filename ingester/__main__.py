"""The command's entry point: can be stopped from the first moment, then loads the rest."""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line.

    As the first process of a container Python ignores SIGTERM until somebody handles it, and the
    imports take most of a second: a stop in that second would wait out its grace period.
    """
    signal.signal(signal.SIGTERM, _exit)
    from ingester.cli import main as command_line  # noqa: PLC0415 -- after the handler, as said

    command_line()


def _exit(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


if __name__ == "__main__":
    main()
