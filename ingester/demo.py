"""`ingester demo`: Kafka, PacSpace's stand-in and a worker as real processes, and a settlement.

The worker and the stand-in are this very command, started as an operator would start them; the
demo only puts events on the topic and reads balances, as the two parties would.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Annotated, Any, Final, TypeVar
from uuid import uuid4

import msgspec
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from ingester.balance import describe, describe_agreement
from ingester.core.event import UsageEvent
from ingester.core.record import TopicPartition
from ingester.errors import EXIT_MISMATCH, IncompleteError, UnavailableError
from ingester.kafka import RecordWriter, Written
from ingester.kafka_admin import KafkaAdmin
from ingester.local_kafka import Keeper, LocalKafka, local_kafka
from ingester.pacspace import Agreement, Balance, PacspaceClient
from ingester.settings import KafkaSettings

_COMMAND: Final = (sys.executable, "-m", "ingester")
_API_KEY: Final = "pk_test_demo.demo"  # the stand-in lets in any key of the right form
_PARTITIONS: Final = 8
_KEY: Final = "settlement-2025-06"
_ACCOUNT: Final = "customer-acme"
_AMOUNTS: Final = (100, 250, 150)
_ACCOUNTS: Final = 100
_BITS_MAX: Final = 1000
_VERIFY_DELAY_SECONDS: Final = 0.5
_START_SECONDS_MAX: Final = 30.0
_STALL_SECONDS_MAX: Final = 60.0  # without one more event settled: something is wrong
_UNACKNOWLEDGED_MAX: Final = 5000
_LOOK_SECONDS: Final = 0.1


T = TypeVar("T")


@dataclass(slots=True)
class _Settled:
    """What the worker's log says of acknowledged batches; read on by each `look`."""

    log: Path
    batches: list[dict[str, Any]] = field(default_factory=list)
    events: int = 0
    _read: int = 0

    def look(self) -> None:
        with self.log.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                if b'"batch.acknowledged"' in line:
                    batch = msgspec.json.decode(line)
                    self.batches.append(batch)
                    self.events += batch["items"]

    def batch_id_of(self, written: Written) -> str | None:
        for batch in reversed(self.batches):
            inside = batch["first_offset"] <= written.offset < batch["next_offset"]
            if inside and batch["partition"] == str(written.partition):
                return str(batch["batch_id"])
        return None


@dataclass(slots=True)
class _Sent:
    """What was put on the topic, by the brokers' acknowledgements."""

    bits_by_key: Counter[str] = field(default_factory=Counter)
    next_offsets: dict[TopicPartition, int] = field(default_factory=dict)

    def take(self, written: Written) -> None:
        before = self.next_offsets.get(written.partition, 0)
        self.next_offsets[written.partition] = max(before, written.offset + 1)


@dataclass(frozen=True, slots=True)
class _Stage:
    """Everything that runs, and how to talk to it."""

    kafka: LocalKafka
    topic: str
    simulator_url: str
    worker: Popen[bytes]
    settled: _Settled
    admin: KafkaAdmin
    writer: RecordWriter
    pacspace: PacspaceClient
    console: Console


def demo(
    events: Annotated[
        int, typer.Option(min=0, max=10_000_000, help="Events to settle after the first three.")
    ] = 100_000,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave all up until Ctrl-C, and say how to talk to it.")
    ] = False,
) -> None:
    """Run all of it on this machine: a settlement, then many events.

    Kafka is the one that KAFKA_BOOTSTRAP_SERVERS names, or a container, or a JVM with Maven.
    Nothing is left running; on a Kafka that you named, the demo's topics stay.

    \b
    Examples:
      ingester demo
      ingester demo --events 1000000
      ingester demo --keep

    Exit codes: 0 both parties agree on every number; 1 they do not; 69 no Kafka can be had; 75
    settling came to a stand; 130 interrupted.
    """
    console = Console(highlight=False, soft_wrap=True)

    def report(sentence: str) -> None:
        console.print(f"==> {sentence}", style="dim", markup=False)

    with local_kafka(report) as kafka, Keeper() as keeper:
        agreed = asyncio.run(_demo(kafka, keeper, console, events=events, keep=keep))
    if not agreed:
        raise typer.Exit(EXIT_MISMATCH)


async def _demo(
    kafka: LocalKafka, keeper: Keeper, console: Console, *, events: int, keep: bool
) -> bool:
    topic = f"usage-demo-{uuid4().hex[:8]}"
    settings = KafkaSettings.model_validate(
        {"kafka_bootstrap_servers": kafka.bootstrap_servers, "topic": topic}
    )
    admin = KafkaAdmin(settings, timeout_seconds=_START_SECONDS_MAX)
    await admin.ensure_topic(topic, _PARTITIONS, {})
    console.print("==> starting PacSpace's stand-in and the ingester", style="dim")
    url = await _start_simulator(keeper)
    worker, log = _start_worker(keeper, kafka.bootstrap_servers, topic, url)
    writer = RecordWriter(settings, compress=True)
    await writer.start()
    async with PacspaceClient(url, _API_KEY) as pacspace:
        settled = _Settled(log)
        stage = _Stage(kafka, topic, url, worker, settled, admin, writer, pacspace, console)
        try:
            console.print()
            agreed = await _settle_three(stage)
            if events:
                console.print()
                agreed = await _settle_many(stage, events) and agreed
            if keep:
                await _keep(stage)
        finally:
            await writer.stop()
            worker.terminate()
            await asyncio.to_thread(worker.wait)
    return agreed


# -- the processes ----------------------------------------------------------------------------


async def _start_simulator(keeper: Keeper) -> str:
    log = keeper.folder / "simulator.log"
    delay = str(_VERIFY_DELAY_SECONDS)
    command = [*_COMMAND, "simulate", "--listen", "127.0.0.1:0", "--verify-delay-seconds", delay]
    process = keeper.start(command, log=log)

    async def listening() -> str | None:
        said = log.read_text()
        if process.poll() is not None:
            raise UnavailableError(f"PacSpace's stand-in ended at its start: {said}")
        return said.rpartition("listening on ")[2].strip() if said.endswith("\n") else None

    return await _wait_for(listening, _START_SECONDS_MAX, "PacSpace's stand-in did not start")


def _start_worker(
    keeper: Keeper, bootstrap_servers: str, topic: str, url: str
) -> tuple[Popen[bytes], Path]:
    log = keeper.folder / "ingester.log"
    settings = _worker_settings(bootstrap_servers, topic, url)
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("INGESTER")}
    process = keeper.start(
        [*_COMMAND, "run"],
        log=log,
        env={
            **inherited,
            **settings,
            "INGESTER_HTTP_LISTEN": "off",
            "INGESTER_LOG_LEVEL": "debug",
            "INGESTER_LOG_FORMAT": "json",
        },
    )
    return process, log


def _worker_settings(bootstrap_servers: str, topic: str, url: str) -> dict[str, str]:
    return {
        "INGESTER_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        "INGESTER_TOPIC": topic,
        "INGESTER_GROUP_ID": topic,
        "INGESTER_PACSPACE_URL": url,
        "PACSPACE_API_KEY": _API_KEY,
    }


async def _wait_for(look: Callable[[], Awaitable[T | None]], seconds_max: float, failure: str) -> T:
    deadline = time.monotonic() + seconds_max
    while time.monotonic() < deadline:
        found = await look()
        if found is not None:
            return found
        await asyncio.sleep(_LOOK_SECONDS)
    raise IncompleteError(f"{failure} within {seconds_max:g} s")


# -- the settlement of three ------------------------------------------------------------------


async def _settle_three(stage: _Stage) -> bool:
    """The two sides of PacSpace's "Basic Settlement" example, with Kafka in between."""
    for bits in _AMOUNTS:
        value = msgspec.json.encode(UsageEvent(_KEY, _ACCOUNT, bits))
        written = await (await stage.writer.send(stage.topic, value, _ACCOUNT.encode()))
        batch_id = await _acknowledgement(stage, written)
        stage.console.print(f"Recorded: {bits} for {_KEY} → batch {batch_id}", markup=False)
    total = sum(_AMOUNTS)
    balance = await stage.pacspace.get_balance(_KEY)
    if isinstance(balance, Balance):
        stage.console.print(describe(balance))
    stage.console.print(f"Total usage recorded: {total}")
    agreement = await _verified_agreement(stage, total)
    stage.console.print(describe(agreement.balance))
    stage.console.print(describe_agreement(agreement))
    if agreement.status != "agreed":
        return False
    stage.console.print(f"Settlement complete. Generating invoice for {total}")
    return True


async def _acknowledgement(stage: _Stage, written: Written) -> str:
    async def look() -> str | None:
        _assert_running(stage)
        stage.settled.look()
        return stage.settled.batch_id_of(written)

    return await _wait_for(look, _START_SECONDS_MAX, "the first events were not settled")


async def _verified_agreement(stage: _Stage, expected: int) -> Agreement:
    async def look() -> Agreement | None:
        found = await stage.pacspace.verify_agreement(_KEY, expected=expected)
        verified = isinstance(found, Agreement) and found.status != "pending_verification"
        return found if verified and isinstance(found, Agreement) else None

    return await _wait_for(look, _START_SECONDS_MAX, "the balance was not verified")


def _assert_running(stage: _Stage) -> None:
    if stage.worker.poll() is not None:
        tail = stage.settled.log.read_text().splitlines()[-3:]
        raise IncompleteError("the ingester ended: " + "\n".join(tail))


# -- and of many ------------------------------------------------------------------------------


async def _settle_many(stage: _Stage, events: int) -> bool:
    sent = _Sent()
    batches_before = len(stage.settled.batches)
    started = time.monotonic()
    with _progress(stage.console) as progress:
        watching = asyncio.create_task(_watch(stage, events, progress))
        try:
            await _send(stage, events, sent, progress)
            await watching
        finally:
            watching.cancel()
    seconds = time.monotonic() - started
    committed = await _committed(stage, sent.next_offsets)
    balances = {key: await _current_bits(stage, key) for key in sent.bits_by_key}
    differing = sum(balances[key] != bits for key, bits in sent.bits_by_key.items())
    ids = [batch["batch_id"] for batch in stage.settled.batches[batches_before:]]
    on_kafka, at_pacspace = sent.bits_by_key.total(), sum(balances.values())
    table = Table(title="What happened to the rest", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("events", f"{events:,}")
    table.add_row("batches", f"{len(ids):,}")
    table.add_row("batch ids", f"{ids[0]} … {ids[-1]}, {len(set(ids)):,} different ones")
    table.add_row(
        "committed offsets",
        f"{sum(committed[name] for name in sent.next_offsets):,} over"
        f" {len(sent.next_offsets)} partitions, each at its end",
    )
    table.add_row("events a second", f"{events / seconds:,.0f}, with producing them")
    table.add_row("bits on Kafka", f"{on_kafka:,}")
    table.add_row("bits at PacSpace", f"{at_pacspace:,}")
    table.add_row("keys that differ", f"{differing:,} of {len(balances):,}")
    stage.console.print(table)
    if differing:
        stage.console.print(f"Totals differ: {on_kafka:,} on Kafka, {at_pacspace:,} at PacSpace")
    else:
        stage.console.print(f"Totals agree: {on_kafka:,} bits on both sides")
    return not differing


def _generated(events: int) -> Iterator[UsageEvent]:
    chance = random.Random(events)  # noqa: S311 -- the same events each time
    for number in range(events):
        account = f"customer-{chance.randrange(_ACCOUNTS):03d}"
        metadata = msgspec.Raw(b'{"request":%d,"region":"eu-west-1"}' % number)
        yield UsageEvent(
            f"usage-{account}-2025-06", account, chance.randrange(1, _BITS_MAX), metadata
        )


async def _send(stage: _Stage, events: int, sent: _Sent, progress: Progress) -> None:
    task = progress.add_task("on the topic", total=events)
    unacknowledged: deque[asyncio.Future[Written]] = deque()
    for number, event in enumerate(_generated(events), start=1):
        sent.bits_by_key[event.key] += event.bits
        value = msgspec.json.encode(event)
        unacknowledged.append(await stage.writer.send(stage.topic, value, event.accountId.encode()))
        while len(unacknowledged) >= _UNACKNOWLEDGED_MAX or (number == events and unacknowledged):
            sent.take(await unacknowledged.popleft())
            progress.advance(task)


async def _watch(stage: _Stage, events: int, progress: Progress) -> None:
    task = progress.add_task("settled", total=events)
    already = len(_AMOUNTS)
    last, last_at = 0, time.monotonic()
    while last < events:
        _assert_running(stage)
        stage.settled.look()
        settled = stage.settled.events - already
        progress.update(task, completed=settled)
        if settled > last:
            last, last_at = settled, time.monotonic()
        elif time.monotonic() - last_at > _STALL_SECONDS_MAX:
            raise IncompleteError(
                f"only {settled} of {events} events were settled, none in the last"
                f" {_STALL_SECONDS_MAX:g} s"
            )
        await asyncio.sleep(_LOOK_SECONDS)


async def _committed(
    stage: _Stage, next_offsets: Mapping[TopicPartition, int]
) -> Mapping[TopicPartition, int]:
    """The group's offsets, as soon as they have caught up with the ends of the partitions."""

    async def look() -> Mapping[TopicPartition, int] | None:
        commits = await stage.admin.committed_offsets(stage.topic)
        offsets = {name: commit.next_offset for name, commit in commits.items()}
        caught_up = all(offsets.get(name) == end for name, end in next_offsets.items())
        return offsets if caught_up else None

    return await _wait_for(look, _START_SECONDS_MAX, "the offsets were not committed")


async def _current_bits(stage: _Stage, key: str) -> int:
    balance = await stage.pacspace.get_balance(key)
    return balance.current_bits if isinstance(balance, Balance) else 0


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere a line when it begins."""
    if not console.is_terminal:
        console.print("==> settling the rest", style="dim")
    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress


async def _keep(stage: _Stage) -> None:
    """Say how to talk to what runs, and wait for Ctrl-C."""
    settings = _worker_settings(stage.kafka.bootstrap_servers, stage.topic, stage.simulator_url)
    exports = "\n".join(f"  export {name}={value}" for name, value in settings.items())
    stage.console.print(
        "\nAll of it is up until Ctrl-C. In another terminal:\n"
        f"{exports}\n"
        f"  ingester emit {_KEY} {_ACCOUNT} 42\n"
        f"  ingester balance {_KEY}\n"
        f"  curl {stage.simulator_url}/_simulator/report\n"
        f"  tail -f {stage.settled.log}",
        markup=False,
    )
    await asyncio.Event().wait()
