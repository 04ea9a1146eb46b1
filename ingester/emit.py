"""`ingester emit`: put usage events on the topic and wait until the brokers have them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ingester.config import load
from ingester.core.event import Rejection, UnknownMembers, UsageEvent, event_decoder
from ingester.errors import DataError, UnavailableError, UsageError
from ingester.kafka import RecordWriter, Written
from ingester.kafka_admin import KafkaAdmin
from ingester.settings import KafkaSettings

_ADMIN_TIMEOUT_SECONDS = 10.0
_PARTITIONS_ADVISED = 8  # in the command that would create a missing topic
_UNACKNOWLEDGED_MAX = 5000  # records waiting for the broker; more would only take memory
_CHUNK_BYTES = 64 * 1024  # what a pipe holds
_CHUNKS_MAX = 4  # read ahead of what is sent
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
        values = _lines_of(sys.stdin.fileno())
    elif key is None or account_id is None or bits is None:
        raise UsageError("name KEY ACCOUNT_ID BITS, or - to read JSON lines: see --help")
    else:
        values = _only(_single(key, account_id, bits, metadata))
    settings = load(KafkaSettings, environ=os.environ, config_file=config).settings
    asyncio.run(_emit(values, settings, topic or settings.topics[0], as_json=as_json))


def _single(key: str, account_id: str, bits: int, metadata: str | None) -> bytes:
    item: dict[str, Any] = {"key": key, "accountId": account_id, "bits": bits}
    value = json.dumps(item, ensure_ascii=False)
    if metadata is not None:
        # As written: parsing it here could change a large integer or a decimal.
        value = f'{value[:-1]}, "metadata": {metadata}}}'
    return value.encode("utf-8", "surrogateescape")


async def _only(value: bytes) -> AsyncIterator[bytes]:
    yield value


async def _lines_of(descriptor: int) -> AsyncIterator[bytes]:
    """Lines as soon as they come, without their ends.

    A thread waits for them, so that what was sent is acknowledged and shown meanwhile. It is a
    daemon and bypasses Python's buffer, so that an interrupt need not wait for another line.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue()
    room = threading.Semaphore(_CHUNKS_MAX)

    def read() -> None:
        chunk: bytes | OSError = b""
        while room.acquire():
            try:
                chunk = os.read(descriptor, _CHUNK_BYTES)
            except OSError as error:
                chunk = error
            loop.call_soon_threadsafe(chunks.put_nowait, chunk)
            if not chunk or isinstance(chunk, OSError):
                return

    threading.Thread(target=read, daemon=True).start()
    rest = b""
    while chunk := await chunks.get():
        if isinstance(chunk, OSError):
            raise UsageError(f"standard input cannot be read: {chunk.strerror}")
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
        room.release()
    yield rest


async def _validated(
    values: AsyncIterable[bytes], refused: list[str], unknown_members: UnknownMembers = "refuse"
) -> AsyncIterator[tuple[bytes, UsageEvent]]:
    decode = event_decoder(unknown_members)
    number = 0
    async for line in values:
        number += 1
        value = line.strip()
        if not value:
            continue
        decoded = decode(value)
        if isinstance(decoded, Rejection):
            refused.append(f"line {number}: {decoded.detail} ({decoded.code})")
        else:
            yield value, decoded[0]


async def _emit(
    values: AsyncIterable[bytes], settings: KafkaSettings, topic: str, *, as_json: bool
) -> None:
    await _find_topic(settings, topic)
    refused: list[str] = []
    sent: asyncio.Queue[tuple[UsageEvent, asyncio.Future[Written]] | None] = asyncio.Queue(
        _UNACKNOWLEDGED_MAX
    )
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.completed:,.0f} events acknowledged"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty() or sys.stdout.isatty(),
    )
    task = progress.add_task("emit", total=None)

    async def send() -> None:
        async for value, event in _validated(values, refused):
            await sent.put((event, await writer.send(topic, value, event.accountId.encode())))
        await sent.put(None)

    async def report() -> int:
        acknowledged = 0
        while (each := await sent.get()) is not None:
            await _report(*each, as_json=as_json)
            acknowledged += 1
            progress.update(task, completed=acknowledged)
            if sent.empty():
                sys.stdout.flush()
        return acknowledged

    writer = RecordWriter(settings, compress=True)
    await writer.start()
    try:
        with progress:
            _, acknowledged = await asyncio.gather(send(), report())
    finally:
        await writer.stop()
    if refused:
        shown = "\n  ".join(refused[:_REFUSALS_SHOWN_MAX])
        more = len(refused) - _REFUSALS_SHOWN_MAX
        raise DataError(
            f"{acknowledged} events acknowledged; not sent, because they are no usage events:\n"
            f"  {shown}" + (f"\n  and {more} more" if more > 0 else "")
        )


async def _find_topic(settings: KafkaSettings, topic: str) -> None:
    """Say at once that a topic is missing; the producer would wait for it to be created."""
    admin = KafkaAdmin(settings, timeout_seconds=_ADMIN_TIMEOUT_SECONDS)
    if await admin.ensure_topic(topic, _PARTITIONS_ADVISED, {}, validate_only=True) != "exists":
        raise UnavailableError(
            f"Kafka at {', '.join(settings.kafka_bootstrap_servers)} has no topic {topic}: correct"
            f" the name, or create it: {admin.create_command(topic, _PARTITIONS_ADVISED, {})}"
        )


async def _report(event: UsageEvent, future: asyncio.Future[Written], *, as_json: bool) -> None:
    written = await future
    where = written.partition
    if as_json:
        facts = {"topic": where.topic, "partition": where.partition, "offset": written.offset}
        sys.stdout.write(json.dumps({"key": event.key, "bits": event.bits, **facts}) + "\n")
    else:
        sys.stdout.write(f"{where}:{written.offset}  {event.bits} for {event.key}\n")
