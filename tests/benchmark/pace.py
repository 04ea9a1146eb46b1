"""Latency at a steady pace: from the broker's timestamp of an event to its acknowledgement."""

from __future__ import annotations

import asyncio
import math
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from aiokafka import AIOKafkaProducer

from ingester.local_kafka import Keeper
from tests.benchmark.contenders import INGESTER, settings
from tests.benchmark.events import generate
from tests.benchmark.loading import LoadedTopic
from tests.benchmark.measure import check_totals, end, endpoint_process, wait_for_commits
from tests.benchmark.observed import FILE_VARIABLE, Passage
from tests.benchmark.workload import Workload
from tests.support.kafka import admin, create_topic, delete_topics
from tests.support.waiting import eventually_async

EVENTS_PER_SECOND = 1_000
_PARTITIONS = 8
_QUANTILES = (0.5, 0.99, 0.999)

PARTS = {
    "broker to worker": ("appended", "fetched"),
    "linger": ("fetched", "cut"),
    "intent": ("cut", "sent"),
    "request": ("sent", "acknowledged"),
    "all of it": ("appended", "acknowledged"),
    "receipt, afterwards": ("acknowledged", "receipted"),
}
"""An event's way, by the steps at which each part begins and ends."""


@dataclass(frozen=True)
class Delay:
    """How long a part of the way took, by quantiles over all events."""

    part: str
    p50_seconds: float
    p99_seconds: float
    p999_seconds: float


@dataclass(frozen=True)
class Pace:
    """What a paced run found."""

    events: int
    events_per_second: float
    """As they were appended."""
    delays: Sequence[Delay]


async def measure_pace(bootstrap_servers: str, keeper: Keeper, seconds: float) -> Pace:
    """Produce at a steady pace while the worker runs, and hear from it what took how long."""
    name = f"benchmark-pace-{uuid.uuid4().hex[:8]}"
    await create_topic(
        bootstrap_servers, name, _PARTITIONS, {"message.timestamp.type": "LogAppendTime"}
    )
    try:
        return await _measure(bootstrap_servers, keeper, name, seconds)
    finally:
        await delete_topics(bootstrap_servers, [name, f"{name}.dead-letters", f"{name}.receipts"])


async def _measure(bootstrap_servers: str, keeper: Keeper, topic: str, seconds: float) -> Pace:
    observed = replace(
        INGESTER, command=(sys.executable, str(Path(__file__).with_name("observed.py")), "run")
    )
    log, file = keeper.folder / f"{topic}.log", keeper.folder / f"{topic}.json"
    async with (
        endpoint_process(keeper, 0.0) as endpoint,
        admin(bootstrap_servers) as kafka,
        AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all") as producer,
    ):
        environment = settings(observed, bootstrap_servers, topic, topic, endpoint.url)
        process = keeper.start(
            observed.command, log=log, env={**environment, FILE_VARIABLE: str(file)}
        )
        try:
            await producer.send_and_wait(topic, next(generate(1)).value, partition=0)

            async def warm() -> bool:
                return (await endpoint.totals()).items > 0

            await eventually_async(warm)
            started = time.time()
            written = await _produce(producer, topic, round(seconds * EVENTS_PER_SECOND))
            await wait_for_commits(kafka, topic, written, [process], log)
            await end(process, observed.exit_code, log)
        finally:
            process.kill()
            process.wait()
        totals = await endpoint.totals()
    check_totals("the paced worker", totals, written.workload.events, written.bits)
    passages = msgspec.json.decode(file.read_bytes(), type=list[Passage])
    return conclude([each for each in passages if each.appended >= started])


async def _produce(producer: AIOKafkaProducer, topic: str, count: int) -> LoadedTopic:
    """Write one event after the other when it is due, behind the one that is there already."""
    first, *events = generate(count + 1)
    next_offsets = dict.fromkeys(range(_PARTITIONS), 0) | {0: 1}
    loop = asyncio.get_running_loop()
    begun = loop.time()
    sent = []
    for number, event in enumerate(events):
        await asyncio.sleep(begun + number / EVENTS_PER_SECOND - loop.time())
        partition = event.account % _PARTITIONS
        next_offsets[partition] += 1
        sent.append(await producer.send(topic, event.value, partition=partition))
    await asyncio.gather(*sent)
    bits = first.bits + sum(event.bits for event in events)
    return LoadedTopic(topic, Workload(count + 1, _PARTITIONS), bits, next_offsets)


def conclude(passages: Sequence[Passage]) -> Pace:
    """Make quantiles of what each event went through."""
    appended = [each.appended for each in passages]
    delays = []
    for part, (begin, finish) in PARTS.items():
        taken = [getattr(each, finish) - getattr(each, begin) for each in passages]
        delays.append(Delay(part, *quantiles(taken)))
    return Pace(
        events=len(passages),
        events_per_second=(len(passages) - 1) / (max(appended) - min(appended)),
        delays=delays,
    )


def quantiles(seconds: Iterable[float]) -> list[float]:
    """Values that so much of all do not exceed; each is one of them, none is made up."""
    ascending = sorted(seconds)
    return [ascending[math.ceil(share * len(ascending)) - 1] for share in _QUANTILES]
