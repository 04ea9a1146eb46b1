"""A bar on standard error while something long goes on; nothing where that is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int], None]


@contextmanager
def bar(what: str, total: int) -> Iterator[Advance]:
    """Show how far it is; what it yields is told how many more are done. Gone at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not sys.stderr.isatty(),
        redirect_stdout=False,  # or what is printed meanwhile went to standard error
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def bar_beside_output(what: str, total: int) -> AbstractContextManager[Advance]:
    """Show the same, unless what is printed meanwhile goes to a terminal and shows it itself."""
    return nullcontext(_ignore) if sys.stdout.isatty() else bar(what, total)


def _ignore(_: int) -> None:
    pass
