"""The options that choose dead letters, and what they ask for."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Final, get_args

import typer

from ingester.arguments import moment
from ingester.core.event import RejectionCode
from ingester.core.letters import Choice, Source, Span
from ingester.errors import UsageError

_CODES: Final = get_args(RejectionCode)
_SOURCE = re.compile(r"(?P<topic>[^:]+)(:(?P<partition>\d{1,9}))?", re.ASCII)

Codes = Annotated[
    list[str] | None,
    typer.Option("--code", metavar="CODE", help="Only this error code; may be repeated."),
]
Accounts = Annotated[
    list[str] | None,
    typer.Option("--account", metavar="ID", help="Only this account; may be repeated."),
]
Keys = Annotated[
    list[str] | None, typer.Option("--key", metavar="KEY", help="Only this key; may be repeated.")
]
Statuses = Annotated[
    list[int] | None,
    typer.Option("--status", metavar="N", help="Only this HTTP status; may be repeated."),
]
Sources = Annotated[
    list[str] | None,
    typer.Option("--source", metavar="TOPIC[:PARTITION]", help="Only from there; may be repeated."),
]
From = Annotated[
    datetime | None,
    typer.Option("--from", parser=moment, metavar="TIME", help="Only records not older."),
]
To = Annotated[
    datetime | None, typer.Option("--to", parser=moment, metavar="TIME", help="Only older records.")
]
DeadLetteredFrom = Annotated[
    datetime | None,
    typer.Option(
        "--dead-lettered-from", parser=moment, metavar="TIME", help="Only written since then."
    ),
]
DeadLetteredTo = Annotated[
    datetime | None,
    typer.Option(
        "--dead-lettered-to", parser=moment, metavar="TIME", help="Only written before then."
    ),
]
Redriven = Annotated[
    bool | None,
    typer.Option(
        "--redriven/--not-redriven", help="Only those that a redrive has sent, or has not."
    ),
]


def choice_of(
    codes: list[str] | None,
    accounts: list[str] | None,
    keys: list[str] | None,
    statuses: list[int] | None,
    sources: list[str] | None,
    from_: datetime | None,
    to: datetime | None,
    dead_lettered_from: datetime | None,
    dead_lettered_to: datetime | None,
    redriven: bool | None,
) -> Choice:
    """Return what the options ask for; UsageError where nothing can be it."""
    for begin, end in ((from_, to), (dead_lettered_from, dead_lettered_to)):
        if begin is not None and end is not None and begin >= end:
            raise UsageError(f"no time is from {begin.isoformat()} on and before {end.isoformat()}")
    for unknown in set(codes or ()).difference(_CODES):
        raise UsageError(f"--code {unknown!r} is none of {', '.join(_CODES)}")
    return Choice(
        codes=codes or (),
        accounts=accounts or (),
        keys=keys or (),
        statuses=statuses or (),
        sources=[_source(each) for each in sources or ()],
        record_time=Span(from_, to),
        dead_lettered=Span(dead_lettered_from, dead_lettered_to),
        redriven=redriven,
    )


def _source(text: str) -> Source:
    found = _SOURCE.fullmatch(text)
    if found is None:
        raise UsageError(f"--source {text!r} should be TOPIC or TOPIC:PARTITION")
    partition = found["partition"]
    return Source(found["topic"], int(partition) if partition else None)
