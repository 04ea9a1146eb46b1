"""How far something long is, on standard error; nothing where that is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Advance = Callable[[int], None]


def bar(what: str, total: int | None) -> AbstractContextManager[Advance]:
    """Show how far it is; what it yields is told how many more are done. Gone at the end.

    Where nobody knows the total, show how many are done.
    """
    return _drawn(what, total) if sys.stderr.isatty() else nullcontext(_ignore)


def bar_beside_output(what: str, total: int | None) -> AbstractContextManager[Advance]:
    """Show the same, unless what is printed meanwhile goes to a terminal and shows it itself."""
    return nullcontext(_ignore) if sys.stdout.isatty() else bar(what, total)


@contextmanager
def _drawn(what: str, total: int | None) -> Iterator[Advance]:
    # Not at the top: rich takes 0.05 s of CPU, and what a script calls draws nothing.
    from rich import console, progress  # noqa: PLC0415 -- as said

    columns: tuple[progress.ProgressColumn, ...] = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    if total is None:
        columns = (
            progress.SpinnerColumn(),
            progress.TextColumn("{task.completed:,.0f} {task.description}"),
            progress.TimeElapsedColumn(),
        )
    with progress.Progress(
        *columns,
        console=console.Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # or what is printed meanwhile went to standard error
    ) as drawn:
        task = drawn.add_task(what, total=total)
        yield lambda count: drawn.advance(task, count)


def _ignore(_: int) -> None:
    pass
