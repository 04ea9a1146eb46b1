"""`ingester dlq`: look at dead letters, one by one, in numbers, or as a file."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from ingester.arguments import AsJson, ConfigFile, print_json
from ingester.audit.letters import (
    Letters,
    dead_letter_topics,
    left_out,
    made_anew,
    opened,
    unreadable,
)
from ingester.commands.letter_options import (
    Accounts,
    Codes,
    DeadLetteredFrom,
    DeadLetteredTo,
    From,
    Keys,
    Redriven,
    Sources,
    Statuses,
    To,
    choice_of,
)
from ingester.commands.letter_report import (
    CSV_COLUMNS,
    HEADINGS,
    Counts,
    csv_row,
    details,
    document,
    row,
    whole,
)
from ingester.commands.redrive import redrive
from ingester.config import load
from ingester.core.letters import Choice, Letter, Source
from ingester.core.ranges import length
from ingester.core.record import TopicPartition
from ingester.errors import UsageError
from ingester.settings import LedgerSettings
from ingester.tables import CsvTable, PrintedTable

dlq = typer.Typer(
    help="Look at dead letters, and send them again.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

dlq.command()(redrive)

_POSITION = re.compile(r"(?P<topic>[^:]+):(?P<partition>\d{1,9}):(?P<offset>\d{1,18})", re.ASCII)


@dlq.command("list")
def list_(
    code: Codes = None,
    account: Accounts = None,
    key: Keys = None,
    status: Statuses = None,
    source: Sources = None,
    from_: From = None,
    to: To = None,
    dead_lettered_from: DeadLetteredFrom = None,
    dead_lettered_to: DeadLetteredTo = None,
    redriven: Redriven = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters.

    LETTER is the position in the dead-letter topic, SOURCE that of the record; AGE is the record's.
    ACCOUNT and KEY are shown as far as the value can be read. STATE is `redriven`; `settled` where
    the record became an item all the same; or `repeats` for a further letter of the same record.
    Times are ISO 8601, UTC unless they say otherwise.

    \b
    Examples:
      ingester dlq list
      ingester dlq list --code refused --status 422 --not-redriven
      ingester dlq list --source usage:3 --account acme --from 2025-06-01 --to 2025-07-01
      ingester dlq list --dead-lettered-from 2025-06-10T14:30 --json

    Exit codes: 0 listed, be it nothing; 64 the command line; 69 Kafka or the topic cannot be
    reached; 77 Kafka refuses the credentials or lacks a permission; 78 the settings.
    """
    choice = choice_of(
        code, account, key, status, source, from_, to, dead_lettered_from, dead_lettered_to,
        redriven,
    )  # fmt: skip
    settings = _settings(config)
    asyncio.run(_list(settings, choice, as_json=as_json))


@dlq.command()
def show(
    position: Annotated[
        str,
        typer.Argument(
            metavar="TOPIC:PARTITION:OFFSET",
            help="In the dead-letter topic, or where the record was.",
        ),
    ],
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show everything of one dead letter.

    Values are shown as text where they are UTF-8, else as base64. A record that has several letters
    is shown with all of them.

    \b
    Examples:
      ingester dlq show usage.dead-letters:0:17
      ingester dlq show usage:3:4100 --json

    Exit codes: 0 shown; 64 there is no such dead letter; 69 Kafka or the topic cannot be reached;
    77 Kafka refuses the credentials or lacks a permission; 78 the settings.
    """
    found = _POSITION.fullmatch(position)
    if found is None:
        raise UsageError(f"{position!r} should be TOPIC:PARTITION:OFFSET")
    settings = _settings(config)
    where = TopicPartition(found["topic"], int(found["partition"]))
    asyncio.run(_show(settings, where, int(found["offset"]), as_json=as_json))


@dlq.command()
def stats(
    code: Codes = None,
    account: Accounts = None,
    key: Keys = None,
    status: Statuses = None,
    source: Sources = None,
    from_: From = None,
    to: To = None,
    dead_lettered_from: DeadLetteredFrom = None,
    dead_lettered_to: DeadLetteredTo = None,
    redriven: Redriven = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Count dead letters by topic, code, detail, account, HTTP status and day.

    A record counts once, however many letters it has. The day is that of the record, in UTC.

    \b
    Examples:
      ingester dlq stats
      ingester dlq stats --not-redriven --json

    Exit codes: as of `ingester dlq list`.
    """
    choice = choice_of(
        code, account, key, status, source, from_, to, dead_lettered_from, dead_lettered_to,
        redriven,
    )  # fmt: skip
    settings = _settings(config)
    asyncio.run(_stats(settings, choice, as_json=as_json))


@dlq.command()
def export(
    code: Codes = None,
    account: Accounts = None,
    key: Keys = None,
    status: Statuses = None,
    source: Sources = None,
    from_: From = None,
    to: To = None,
    dead_lettered_from: DeadLetteredFrom = None,
    dead_lettered_to: DeadLetteredTo = None,
    redriven: Redriven = None,
    form: Annotated[
        Literal["ndjson", "csv"], typer.Option("--format", help="Shape of the output.")
    ] = "ndjson",
    config: ConfigFile = None,
) -> None:
    """Write dead letters with all they hold to standard output.

    NDJSON is one object a line, as of `ingester dlq show --json`; CSV has the same in columns, the
    headers as JSON. What is no UTF-8 is base64 and has a name, or column, of its own: `value` is
    then `valueBase64`.

    \b
    Examples:
      ingester dlq export > letters.ndjson
      ingester dlq export --code wrong_type --format csv > letters.csv

    Exit codes: as of `ingester dlq list`.
    """
    choice = choice_of(
        code, account, key, status, source, from_, to, dead_lettered_from, dead_lettered_to,
        redriven,
    )  # fmt: skip
    settings = _settings(config)
    asyncio.run(_export(settings, choice, as_csv=form == "csv"))


def _settings(config: Path | None) -> LedgerSettings:
    return load(LedgerSettings, environ=os.environ, config_file=config).settings


async def _list(settings: LedgerSettings, choice: Choice, *, as_json: bool) -> None:
    letters = await opened(settings, choice)
    async with aclosing(letters.read(choice)) as found:
        if as_json:
            await _print_array(found)
            _warn(letters)
            return
        now = datetime.now(UTC)
        table = PrintedTable(HEADINGS)
        async for letter in found:
            table.add(row(letter, now))
        table.end()
    if not table.rows_count:
        sys.stdout.write(f"{_none(settings, letters)}\n")
    _warn(letters)


async def _show(
    settings: LedgerSettings, where: TopicPartition, offset: int, *, as_json: bool
) -> None:
    letters = await Letters.open(settings)
    if where.topic in dead_letter_topics(settings):
        found = [await letters.at(where, offset)]
    elif where.topic in settings.topics:
        choice = Choice(sources=[Source(*where)])
        found = [each async for each in letters.read(choice) if each.origin.offset == offset]
    else:
        raise UsageError(
            f"{where.topic} is neither of INGESTER_TOPIC ({', '.join(settings.topics)}) nor one of"
            f" their dead-letter topics ({', '.join(dead_letter_topics(settings))})"
        )
    if not found:
        raise UsageError(f"the record at {where}:{offset} has no dead letter")
    if as_json:
        print_json({"letters": [whole(each) for each in found]})
        return
    sys.stdout.write("\n".join(line for each in found for line in details(each)) + "\n")


async def _stats(settings: LedgerSettings, choice: Choice, *, as_json: bool) -> None:
    letters = await opened(settings, choice)
    counts = Counts()
    async for letter in letters.read(choice):
        counts.add(letter)
    if as_json:
        print_json(counts.document())
    else:
        sys.stdout.write("\n".join(counts.lines()) + "\n")
    _warn(letters)


async def _export(settings: LedgerSettings, choice: Choice, *, as_csv: bool) -> None:
    letters = await opened(settings, choice)
    table = CsvTable(sys.stdout)
    if as_csv:
        table.add(CSV_COLUMNS)
    async with aclosing(letters.read(choice)) as found:
        async for letter in found:
            if as_csv:
                table.add(csv_row(letter))
            else:
                print_json(whole(letter))
    _warn(letters)


async def _print_array(letters: AsyncIterator[Letter]) -> None:
    """Print one document of any length, an element at a time."""
    output = sys.stdout.buffer
    output.write(b'{"letters":[')
    separator = b""
    async for each in letters:
        output.write(separator + msgspec.json.encode(document(each)))
        separator = b",\n"
    output.write(b"]}\n")


def _none(settings: LedgerSettings, letters: Letters) -> str:
    topics = ", ".join(settings.topics)
    if length(letters.logs.values()):
        return f"No dead letter of {topics} is like that."
    return f"There are no dead letters of {topics}."


def _warn(letters: Letters) -> None:
    for remark in (left_out(letters.left_out), made_anew(letters), unreadable(letters)):
        if remark:
            sys.stderr.write(f"ingester: {remark}\n")
