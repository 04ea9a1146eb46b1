"""`ingester explain`: from a record to what became of it, and from a batch back to its records.

Reads, and changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ingester.arguments import AsJson, ConfigFile, print_json
from ingester.audit.accounts import Account, account_of, origin_of_letter
from ingester.audit.books import Entry, extents, notes
from ingester.audit.doubts import DoubtSettings
from ingester.audit.worker_status import WorkerStatus, status_url, worker_status
from ingester.commands.explain_report import (
    batch_document,
    document,
    lines,
    receipt_lines,
    record_document,
    record_lines,
)
from ingester.config import load
from ingester.core.fate import FINAL
from ingester.core.receipt import Receipt
from ingester.core.record import Record, TopicPartition
from ingester.errors import EXIT_MISMATCH, EXIT_OK, EXIT_PENDING, ConfigurationError, UsageError
from ingester.kafka.range import RangeReader
from ingester.output import whoever_reads
from ingester.settings import HealthSettings

_TARGET = re.compile(r"(?P<topic>[^:]+):(?P<partition>\d{1,9}):(?P<offset>\d{1,18})", re.ASCII)


class ExplainSettings(DoubtSettings, HealthSettings):
    """Where a group keeps what it has settled, and where its worker says how it is."""


def explain(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TOPIC:PARTITION:OFFSET",
            help="A record of a usage topic, or of its dead letters.",
            show_default=False,
        ),
    ] = None,
    batch_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="What PacSpace called a batch.", show_default=False),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Under which a batch was sent.", show_default=False),
    ] = None,
    with_record: Annotated[
        bool, typer.Option("--record", help="Print the records, too, where the log has them.")
    ] = False,
    status: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where the partition's worker says how it is; INGESTER_HTTP_LISTEN on this"
            " machine unless given.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Say what became of a record, or which records a batch holds.

    A record is settled (in which batch, when, after how many attempts), a dead letter (why, where,
    whether it was redriven), skipped (by whom, why), or not settled yet: then it is said what it
    waits for.

    \b
    Examples:
      ingester explain usage:3:4100
      ingester explain usage:3:4100 --record --json
      ingester explain usage.dead-letters:0:17
      ingester explain --batch-id batch_6dc3be4f00000001 --record
      ingester explain --idempotency-key ingester-9b1c3a5e2f60d7b48c1e0a9f5d3b2c4e6f708192

    Exit codes: 0 settled, a dead letter, skipped, or no record; for a batch: found; 1 nothing
    explains it although it is committed, or no receipt names the batch; 2 not settled yet; 64 the
    command line, or no such partition; 69 Kafka cannot be reached; 77 it refuses the credentials;
    78 the settings, or INGESTER_RECEIPTS is off.
    """
    named = [each for each in (target, batch_id, idempotency_key) if each]
    if len(named) != 1:
        raise UsageError("name one of TOPIC:PARTITION:OFFSET, --batch-id and --idempotency-key")
    settings = load(ExplainSettings, environ=os.environ, config_file=config).settings
    if settings.receipts == "off":
        raise ConfigurationError(
            "INGESTER_RECEIPTS is off: nothing is written by which a record could be explained."
        )
    if target is None:
        code = asyncio.run(
            _explain_batch(settings, named[0], with_record=with_record, as_json=as_json)
        )
    else:
        name, offset = _parse(settings, target)
        code = asyncio.run(
            _explain_offset(
                settings, name, offset, status, with_record=with_record, as_json=as_json
            )
        )
    if code:
        raise typer.Exit(code)


def _parse(settings: ExplainSettings, target: str) -> tuple[TopicPartition, int]:
    found = _TARGET.fullmatch(target)
    if found is None:
        raise UsageError(f"{target!r} should be TOPIC:PARTITION:OFFSET")
    topics = [*settings.topics, *map(settings.dead_letter_topic_for, settings.topics)]
    if found["topic"] not in topics:
        raise UsageError(
            f"{found['topic']} is neither a topic of INGESTER_TOPIC nor of their dead letters"
            f" ({', '.join(topics)})"
        )
    return TopicPartition(found["topic"], int(found["partition"])), int(found["offset"])


# -- from an offset -------------------------------------------------------------------------------


async def _explain_offset(
    settings: ExplainSettings,
    name: TopicPartition,
    offset: int,
    status: str | None,
    *,
    with_record: bool,
    as_json: bool,
) -> int:
    if name.topic not in settings.topics:
        name, offset = await origin_of_letter(settings, name, offset)
    account = await account_of(settings, name, offset)
    url = status or (status_url(settings.http_listen) if settings.http_listen else None)
    worker: WorkerStatus | str | None = None
    if account.fate not in FINAL and url is not None:
        worker = await worker_status(url)
    with whoever_reads():
        if as_json:
            print_json(document(account, worker, url, with_record=with_record))
        else:
            said = [*lines(account, worker, url)]
            if with_record:
                said += record_lines(account.record)
            sys.stdout.write("\n".join(said) + "\n")
    return _exit_code(account)


def _exit_code(account: Account) -> int:
    if account.fate in FINAL:
        return EXIT_OK
    is_missing = account.fate == "unexplained" or (
        account.fate == "lost" and account.place.is_committed
    )
    return EXIT_MISMATCH if is_missing else EXIT_PENDING


# -- from a batch ---------------------------------------------------------------------------------


async def _explain_batch(
    settings: ExplainSettings, wanted: str, *, with_record: bool, as_json: bool
) -> int:
    topics = [*settings.topics, *map(settings.dead_letter_topic_for, settings.topics)]
    opened = await extents(settings, map(settings.receipts_topic_for, topics))
    entries = [
        entry
        async for entry in notes(settings, opened, topics, containing=wanted)
        if isinstance(entry.note, Receipt)
        and wanted in {entry.note.batch_id, entry.note.idempotency_key}
    ]
    records = [await _records_of(settings, entry) if with_record else () for entry in entries]
    if as_json:
        found = batch_document(entries)
        if with_record:
            found["records"] = [list(map(record_document, each)) for each in records]
        print_json(found)
    else:
        said = [] if entries else [f"No receipt names {wanted}."]
        for entry, found_records in zip(entries, records, strict=True):
            note = entry.note
            said.append(f"{wanted} is {entry.source}[{note.first_offset},{note.next_offset}).")
            said += receipt_lines(entry)
            said += [line for record in found_records for line in record_lines(record)]
        sys.stdout.write("\n".join(said) + "\n")
    return EXIT_OK if entries else EXIT_MISMATCH


async def _records_of(settings: ExplainSettings, entry: Entry) -> Sequence[Record]:
    reader = RangeReader(settings)
    try:
        return await reader.read(entry.source, entry.note.first_offset, entry.note.next_offset)
    finally:
        await reader.stop()
