"""`ingester emit`: put usage events on the topic and wait until the brokers have them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ingester.config import load
from ingester.core.event import Rejection, UnknownMembers, UsageEvent, event_decoder
from ingester.errors import DataError, UsageError
from ingester.kafka import RecordWriter, Written
from ingester.settings import KafkaSettings

_UNACKNOWLEDGED_MAX = 5000  # records waiting for the broker; more would only take memory
_REFUSALS_SHOWN_MAX = 20


def emit(
    key: Annotated[
        str | None, typer.Argument(help="The record key in PacSpace, or `-` for JSON lines.")
    ] = None,
    account_id: Annotated[str | None, typer.Argument(help="The account that used it.")] = None,
    bits: Annotated[int | None, typer.Argument(help="How much was used: a signed integer.")] = None,
    metadata: Annotated[str | None, typer.Option(help="A JSON object to go along.")] = None,
    topic: Annotated[
        str | None, typer.Option(help="Instead of the first topic of INGESTER_TOPIC.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Put usage events on the topic and wait for the brokers' acknowledgement.

    Events are validated as the worker validates them; the account is the Kafka record's key.

    \b
    Examples:
      ingester emit settlement-2025-06 customer-acme 100
      ingester emit settlement-2025-06 customer-acme 100 --metadata '{"plan":"pro"}'
      ingester emit - < events.jsonl

    Exit codes: 0 all acknowledged, 64 wrong arguments, 65 some lines are no usage events,
    69 Kafka cannot be reached, 77 Kafka refuses the credentials.
    """
    if key == "-" or (key is None and not sys.stdin.isatty()):
        if account_id is not None or bits is not None or metadata is not None:
            raise UsageError("`ingester emit -` takes its events from standard input alone")
        lines: Iterable[bytes] = sys.stdin.buffer
    elif key is None or account_id is None or bits is None:
        raise UsageError("name KEY ACCOUNT_ID BITS, or - to read JSON lines: see --help")
    else:
        lines = [_single(key, account_id, bits, metadata)]
    settings = load(KafkaSettings, environ=os.environ, config_file=config).settings
    asyncio.run(_emit(lines, settings, topic or settings.topics[0], as_json=as_json))


def _single(key: str, account_id: str, bits: int, metadata: str | None) -> bytes:
    item: dict[str, Any] = {"key": key, "accountId": account_id, "bits": bits}
    value = json.dumps(item, ensure_ascii=False)
    if metadata is not None:
        # As written: parsing it here could change a large integer or a decimal.
        value = f'{value[:-1]}, "metadata": {metadata}}}'
    return value.encode("utf-8", "surrogateescape")


def _validated(
    lines: Iterable[bytes], refused: list[str], unknown_members: UnknownMembers = "refuse"
) -> Iterator[tuple[bytes, UsageEvent]]:
    decode = event_decoder(unknown_members)
    for number, line in enumerate(lines, start=1):
        value = line.strip()
        if not value:
            continue
        decoded = decode(value)
        if isinstance(decoded, Rejection):
            refused.append(f"line {number}: {decoded.detail} ({decoded.code})")
        else:
            yield value, decoded[0]


async def _emit(
    lines: Iterable[bytes], settings: KafkaSettings, topic: str, *, as_json: bool
) -> None:
    refused: list[str] = []
    unacknowledged: deque[tuple[UsageEvent, asyncio.Future[Written]]] = deque()
    acknowledged = 0
    writer = RecordWriter(settings)
    await writer.start()
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.completed:,.0f} events acknowledged"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty() or sys.stdout.isatty(),
    )
    try:
        with progress:
            task = progress.add_task("emit", total=None)
            for value, event in _validated(lines, refused):
                future = await writer.send(topic, value, event.accountId.encode())
                unacknowledged.append((event, future))
                while len(unacknowledged) >= _UNACKNOWLEDGED_MAX:
                    await _report(unacknowledged.popleft(), as_json=as_json)
                    acknowledged += 1
                    progress.update(task, completed=acknowledged)
            while unacknowledged:
                await _report(unacknowledged.popleft(), as_json=as_json)
                acknowledged += 1
    finally:
        await writer.stop()
    if refused:
        shown = "\n  ".join(refused[:_REFUSALS_SHOWN_MAX])
        more = len(refused) - _REFUSALS_SHOWN_MAX
        raise DataError(
            f"{acknowledged} events acknowledged; not sent, because they are no usage events:\n"
            f"  {shown}" + (f"\n  and {more} more" if more > 0 else "")
        )


async def _report(sent: tuple[UsageEvent, asyncio.Future[Written]], *, as_json: bool) -> None:
    event, future = sent
    written = await future
    where = written.partition
    if as_json:
        facts = {"topic": where.topic, "partition": where.partition, "offset": written.offset}
        sys.stdout.write(json.dumps({"key": event.key, "bits": event.bits, **facts}) + "\n")
    else:
        sys.stdout.write(f"{where}:{written.offset}  {event.bits} for {event.key}\n")
