"""`make profile`: where a worker's CPU time goes, as a flame graph."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Annotated

import psutil
import typer
import uvloop

from ingester.errors import IngesterError
from ingester.local_kafka import Keeper, local_kafka
from tests.benchmark.contenders import INGESTER, receipts_topic, settings
from tests.benchmark.loading import LoadedTopic, load_topic
from tests.benchmark.measure import (
    Endpoint,
    RunFailedError,
    check_totals,
    endpoint_process,
    wait_for_commits,
)
from tests.benchmark.workload import Workload
from tests.support.kafka import admin, delete_topics

_SAMPLES_PER_SECOND = 250
_PROFILER = Path(sys.executable).parent / "py-spy"
_DENIED = ("Permission denied", "Operation not permitted")


def main(
    *,
    events: Annotated[int, typer.Option(min=1, help="Events of the run.")] = 1_000_000,
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of the topic.")] = 8,
    latency_ms: Annotated[float, typer.Option(min=0, help="How long the endpoint takes.")] = 0.0,
    file: Annotated[Path, typer.Option(help="Where the flame graph goes.")] = Path(
        ".bench/profile.svg"
    ),
) -> None:
    """Let a worker settle a topic, and draw where its CPU time went, imports included."""
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    file.parent.mkdir(parents=True, exist_ok=True)
    workload = Workload(events, partitions)
    try:
        with local_kafka(_say) as kafka, Keeper() as keeper:
            run = _profile(kafka.bootstrap_servers, keeper, workload, latency_ms, file.resolve())
            uvloop.run(run)
    except RunFailedError as error:
        _say(f"profile: {error}")
        sys.exit(1)
    except IngesterError as error:
        _say(f"profile: {error}")
        sys.exit(error.exit_code)
    _say(f"the flame graph is in {file}: open it in a browser")


async def _profile(
    servers: str, keeper: Keeper, workload: Workload, latency_ms: float, file: Path
) -> None:
    topic = await load_topic(servers, workload, lambda _: None)
    try:
        async with endpoint_process(keeper, latency_ms) as endpoint:
            await _record(servers, keeper, topic, endpoint, file)
            check_totals("ingester", await endpoint.totals(), workload.events, topic.bits)
    finally:
        names = (topic.name, f"{topic.name}.dead-letters", receipts_topic(topic.name))
        await delete_topics(servers, names)


async def _record(
    servers: str, keeper: Keeper, topic: LoadedTopic, endpoint: Endpoint, file: Path
) -> None:
    """Run the worker below the profiler, which writes its file when the worker ends."""
    log = keeper.folder / "profile.log"
    options = ("--rate", str(_SAMPLES_PER_SECOND), "--output", str(file))
    profiler = keeper.start(
        (str(_PROFILER), "record", *options, "--", *INGESTER.command),
        log=log,
        env=settings(INGESTER, servers, topic.name, topic.name, endpoint.url),
        cwd=keeper.folder,
    )
    try:
        async with admin(servers) as kafka:
            await wait_for_commits(kafka, topic.name, topic, [profiler], log)
        for worker in psutil.Process(profiler.pid).children():
            worker.terminate()
        await asyncio.to_thread(profiler.wait, 30)
    except RunFailedError as error:
        raise RunFailedError(explained(str(error))) from error
    finally:
        profiler.kill()
        profiler.wait()


def explained(failure: str) -> str:
    """Say what to do where the operating system does not let one process look into another."""
    if not any(each in failure for each in _DENIED):
        return failure
    return (
        "the operating system does not let py-spy look into the worker. On Linux run it as root, or"
        " `sudo sysctl kernel.yama.ptrace_scope=0`; in a container add the capability SYS_PTRACE;"
        " on macOS run it with sudo, and with a Python that is not the system's."
        f" What it said:\n{failure}"
    )


def _say(sentence: str) -> None:
    sys.stderr.write(f"==> {sentence}\n")


if __name__ == "__main__":
    typer.run(main)
