"""`ingester demo`: Kafka, PacSpace's stand-in and a worker as real processes, and a settlement.

The worker and the stand-in are this very command, started as an operator would start them; the
demo only puts events on the topic and reads balances, as the two parties would.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated
from uuid import uuid4

import typer
from rich.console import Console

from ingester.demo.load import settle_many
from ingester.demo.processes import API_KEY, start_simulator, start_worker, worker_settings
from ingester.demo.settlement import settle_three
from ingester.demo.stage import ACCOUNT, KEY, START_SECONDS_MAX, Settled, Stage
from ingester.errors import EXIT_MISMATCH
from ingester.kafka.admin import KafkaAdmin
from ingester.kafka.topics import USAGE_PARTITIONS_ADVISED
from ingester.kafka.writing import RecordWriter
from ingester.local_kafka import Keeper, LocalKafka, free_ports, local_kafka
from ingester.option import Address
from ingester.pacspace import PacspaceClient
from ingester.settings import KafkaSettings


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
    settling came to a stand; 130 interrupted; 143 terminated.
    """
    console = Console(highlight=False, soft_wrap=True)

    def report(sentence: str) -> None:
        console.print(f"==> {sentence}", style="dim", markup=False)

    with _sigterm_interrupts(), local_kafka(report) as kafka, Keeper() as keeper:
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
    admin = KafkaAdmin(settings, timeout_seconds=START_SECONDS_MAX)
    await admin.ensure_topic(topic, USAGE_PARTITIONS_ADVISED, {})
    console.print("==> starting PacSpace's stand-in and the ingester", style="dim")
    url = await start_simulator(keeper)
    listen = Address("127.0.0.1", *free_ports(1))
    worker, log = start_worker(keeper, kafka.bootstrap_servers, topic, url, listen)
    writer = RecordWriter(settings, compress=True)
    await writer.start()
    async with PacspaceClient(url, API_KEY) as pacspace:
        settled = Settled(log)
        stage = Stage(kafka, topic, url, worker, settled, admin, writer, pacspace, console)
        try:
            console.print()
            agreed = await settle_three(stage)
            if events:
                console.print()
                agreed = await settle_many(stage, events) and agreed
            if keep:
                await _keep(stage, listen)
        finally:
            await writer.stop()
            worker.terminate()
            await asyncio.to_thread(worker.wait)
    return agreed


async def _keep(stage: Stage, listen: Address) -> None:
    """Say how to talk to what runs, and wait for Ctrl-C."""
    settings = worker_settings(stage.kafka.bootstrap_servers, stage.topic, stage.simulator_url)
    exports = "\n".join(f"  export {name}={value}" for name, value in settings.items())
    stage.console.print(
        "\nAll of it is up until Ctrl-C. In another terminal:\n"
        f"{exports}\n"
        f"  ingester emit {KEY} {ACCOUNT} 42\n"
        f"  ingester balance {KEY}\n"
        f"  ingester status --worker {listen}\n"
        f"  curl {stage.simulator_url}/_simulator/report\n"
        f"  tail -f {stage.settled.log}",
        markup=False,
    )
    await asyncio.Event().wait()


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Unwind on SIGTERM as on Ctrl-C, so that no container stays; a second one exits at once."""
    before = signal.getsignal(signal.SIGTERM)
    terminated = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        signal.signal(number, before)
        handler = signal.getsignal(signal.SIGINT)  # asyncio's own, while it runs
        (handler if callable(handler) else signal.default_int_handler)(number, frame)

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if terminated:
            raise typer.Exit(128 + signal.SIGTERM) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
