"""`ingester emit`: put usage events on the topic and wait until the brokers have them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Annotated, Any

import msgspec
import typer
from typer.core import TyperCommand

from ingester.arguments import AsJson, ConfigFile
from ingester.config import load
from ingester.core.event import Rejection, UsageEvent, event_decoder
from ingester.errors import DataError, UsageError
from ingester.kafka.admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.kafka.writing import RecordWriter, Written
from ingester.progress import Advance, bar_beside_output
from ingester.settings import EventSettings, KafkaSettings

_UNACKNOWLEDGED_MAX = 5000  # records waiting for the broker; more would only take memory
_CHUNK_BYTES = 64 * 1024  # what a pipe holds
_CHUNKS_MAX = 4  # read ahead of what is sent
_REFUSALS_SHOWN_MAX = 20
_NEGATIVE_NUMBER = re.compile(r"-\d+")

Event = tuple[bytes, UsageEvent]
Refuse = Callable[[int, Rejection], None]


class EmitSettings(KafkaSettings, EventSettings):
    """The brokers, and what the worker would take for an event."""


class EmitCommand(TyperCommand):
    """Takes `-5` for a number, where an option of that name would be looked for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Let unknown options pass beside a negative number, and refuse all others."""
        optional = args[: args.index("--")] if "--" in args else args
        ctx.ignore_unknown_options = any(map(_NEGATIVE_NUMBER.fullmatch, optional))
        rest = super().parse_args(ctx, args)
        for name in ("key", "account_id") if ctx.ignore_unknown_options else ():
            if (ctx.params.get(name) or "").startswith("-"):
                raise UsageError(
                    f"{ctx.params[name]} is no option; if it is meant as {name.upper()}, put --"
                    " before KEY"
                )
        return rest


def emit(
    key: Annotated[
        str | None,
        typer.Argument(metavar="KEY", help="The record key in PacSpace, or `-` for JSON lines."),
    ] = None,
    account_id: Annotated[
        str | None, typer.Argument(metavar="ACCOUNT_ID", help="The account that used it.")
    ] = None,
    bits: Annotated[
        int | None, typer.Argument(metavar="BITS", help="How much was used: a signed integer.")
    ] = None,
    metadata: Annotated[str | None, typer.Option(help="A JSON object to go along.")] = None,
    topic: Annotated[
        str | None, typer.Option(help="Instead of the first topic of INGESTER_TOPIC.")
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Put usage events on the topic, and wait for the brokers.

    Events are validated as the worker validates them, by INGESTER_UNKNOWN_MEMBERS too; the account
    is the Kafka record's key. With --json each acknowledged event is an object on standard output,
    each refused line one on standard error.

    \b
    Examples:
      ingester emit settlement-2025-06 customer-acme 100
      ingester emit settlement-2025-06 customer-acme -5
      ingester emit settlement-2025-06 customer-acme 100 --metadata '{"plan":"pro"}'
      ingester emit - < events.jsonl

    Exit codes: 0 all acknowledged, 64 wrong arguments, 65 some lines are no usage events,
    69 Kafka cannot be reached, 77 Kafka refuses the credentials.
    """
    single = None
    if key == "-":
        if account_id is not None or bits is not None or metadata is not None:
            raise UsageError("`ingester emit -` takes its events from standard input alone")
    elif key is None or account_id is None or bits is None:
        raise UsageError("name KEY ACCOUNT_ID BITS, or - to read JSON lines: see --help")
    else:
        single = _single(key, account_id, bits, metadata)
    settings = load(EmitSettings, environ=os.environ, config_file=config).settings
    refused: list[str] = []

    def refuse(number: int, rejection: Rejection) -> None:
        if as_json:
            refusal = {"line": number, "code": rejection.code, "detail": rejection.detail}
            sys.stderr.write(json.dumps(refusal) + "\n")
        refused.append(f"line {number}: {rejection.detail} ({rejection.code})")

    events = _only(single) if single else _validated(settings, refuse)
    asked = topic or settings.topics[0]
    named_by = "--topic" if topic else "INGESTER_TOPIC"
    acknowledged = asyncio.run(_emit(events, settings, asked, named_by, as_json=as_json))
    if refused and as_json:
        raise typer.Exit(DataError.exit_code)
    if refused:
        shown = "\n  ".join(refused[:_REFUSALS_SHOWN_MAX])
        more = len(refused) - _REFUSALS_SHOWN_MAX
        raise DataError(
            f"{acknowledged} events acknowledged; not sent, because they are no usage events:\n"
            f"  {shown}" + (f"\n  and {more} more" if more > 0 else "")
        )


def _single(key: str, account_id: str, bits: int, metadata: str | None) -> Event:
    """The event of the command line; UsageError in the words of its arguments."""
    item: dict[str, Any] = {"key": key, "accountId": account_id, "bits": bits}
    try:
        value = json.dumps(item, ensure_ascii=False).encode()
        if metadata is not None:
            # As written: parsing it here could change a large integer or a decimal.
            msgspec.json.decode(metadata.encode(), type=dict[str, msgspec.Raw])
            value = value[:-1] + b', "metadata": ' + metadata.encode() + b"}"
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UsageError(
            f'--metadata is no JSON object: {error}. Write it as \'{{"plan":"pro"}}\''
        ) from None
    decoded = event_decoder("refuse")(value)
    if isinstance(decoded, Rejection):
        detail = decoded.detail.replace("the value", "--metadata")
        for member, argument in (("key", "KEY"), ("accountId", "ACCOUNT_ID"), ("bits", "BITS")):
            detail = detail.replace(f"`{member}`", argument)
        raise UsageError(detail)
    return value, decoded[0]


async def _only(event: Event) -> AsyncIterator[Event]:
    yield event


async def _validated(settings: EmitSettings, refuse: Refuse) -> AsyncIterator[Event]:
    """The events on standard input; lines that are none are refused, blank ones passed over."""
    decode = event_decoder(settings.unknown_members)
    number = 0
    async for line in _lines_of(sys.stdin.fileno()):
        number += 1
        value = line.strip()
        if not value:
            continue
        decoded = decode(value)
        if isinstance(decoded, Rejection):
            refuse(number, decoded)
        else:
            yield value, decoded[0]


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


async def _emit(
    events: AsyncIterable[Event],
    settings: KafkaSettings,
    topic: str,
    named_by: str,
    *,
    as_json: bool,
) -> int:
    """Send the events and report their acknowledgements; the number of those."""
    await _find_topic(settings, topic, named_by)
    sent: asyncio.Queue[tuple[UsageEvent, asyncio.Future[Written]] | None] = asyncio.Queue(
        _UNACKNOWLEDGED_MAX
    )

    async def send() -> None:
        async for value, event in events:
            await sent.put((event, await writer.send(topic, value, event.accountId.encode())))
        await sent.put(None)

    async def report(advance: Advance) -> int:
        acknowledged = 0
        while (each := await sent.get()) is not None:
            await _report(*each, as_json=as_json)
            acknowledged += 1
            advance(1)
            if sent.empty():
                sys.stdout.flush()
        return acknowledged

    writer = RecordWriter(settings, compress=True)
    await writer.start()
    try:
        with bar_beside_output("events acknowledged", None) as advance:
            _, acknowledged = await asyncio.gather(send(), report(advance))
    finally:
        await writer.stop()
    return acknowledged


async def _find_topic(settings: KafkaSettings, topic: str, named_by: str) -> None:
    """Say at once that a topic is missing; the producer would wait for it to be created."""
    admin = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)
    found = await admin.ensure_topic(topic, 1, {}, validate_only=True)
    if found != "exists":
        raise admin.missing_topic(topic, named_by=named_by)


async def _report(event: UsageEvent, future: asyncio.Future[Written], *, as_json: bool) -> None:
    written = await future
    where = written.partition
    if as_json:
        facts = {"topic": where.topic, "partition": where.partition, "offset": written.offset}
        sys.stdout.write(json.dumps({"key": event.key, "bits": event.bits, **facts}) + "\n")
    else:
        sys.stdout.write(f"{where}:{written.offset}  {event.bits} for {event.key}\n")
