"""Many generated events: put on the topic, watched until they are settled, and compared."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ingester.core.event import UsageEvent
from ingester.core.record import TopicPartition
from ingester.demo.settlement import AMOUNTS
from ingester.demo.stage import LOOK_SECONDS, START_SECONDS_MAX, Stage, wait_for
from ingester.errors import IncompleteError
from ingester.kafka.writing import Written
from ingester.pacspace import Balance

_ACCOUNTS: Final = 100
_BITS_MAX: Final = 1000
_STALL_SECONDS_MAX: Final = 60.0  # without one more event settled: something is wrong
_UNACKNOWLEDGED_MAX: Final = 5000


@dataclass(slots=True)
class _Sent:
    """What was put on the topic, by the brokers' acknowledgements."""

    bits_by_key: Counter[str] = field(default_factory=Counter)
    next_offsets: dict[TopicPartition, int] = field(default_factory=dict)

    def take(self, written: Written) -> None:
        before = self.next_offsets.get(written.partition, 0)
        self.next_offsets[written.partition] = max(before, written.offset + 1)


async def settle_many(stage: Stage, events: int) -> bool:
    """Settle so many more, and compare both sides key by key; whether they agree."""
    further = f"the {events:,} further event{'' if events == 1 else 's'}"
    stage.console.print(f"==> settling {further}", style="dim")
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
    on_kafka, at_pacspace = sent.bits_by_key.total(), sum(balances.values())
    ids = [batch["batch_id"] for batch in stage.settled.batches[batches_before:]]
    stage.console.print(
        _table(
            f"What happened to {further}",
            {
                "events": f"{events:,}",
                "batches": f"{len(ids):,}",
                "batch ids": f"{ids[0]} … {ids[-1]}, {len(set(ids)):,} different ones",
                "committed offsets": f"{sum(committed[name] for name in sent.next_offsets):,} over"
                f" {len(sent.next_offsets)} partitions, each at its end",
                "events a second": f"{events / seconds:,.0f}, with producing them",
                "bits on Kafka": f"{on_kafka:,}",
                "bits at PacSpace": f"{at_pacspace:,}",
                "keys that differ": f"{differing:,} of {len(balances):,}",
            },
        )
    )
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


async def _send(stage: Stage, events: int, sent: _Sent, progress: Progress) -> None:
    task = progress.add_task("on the topic", total=events)
    unacknowledged: deque[asyncio.Future[Written]] = deque()
    for number, event in enumerate(_generated(events), start=1):
        sent.bits_by_key[event.key] += event.bits
        value = msgspec.json.encode(event)
        unacknowledged.append(await stage.writer.send(stage.topic, value, event.accountId.encode()))
        while len(unacknowledged) >= _UNACKNOWLEDGED_MAX or (number == events and unacknowledged):
            sent.take(await unacknowledged.popleft())
            progress.advance(task)


async def _watch(stage: Stage, events: int, progress: Progress) -> None:
    task = progress.add_task("settled", total=events)
    already = len(AMOUNTS)
    last, last_at = 0, time.monotonic()
    while last < events:
        stage.assert_running()
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
        await asyncio.sleep(LOOK_SECONDS)


async def _committed(
    stage: Stage, next_offsets: Mapping[TopicPartition, int]
) -> Mapping[TopicPartition, int]:
    """The group's offsets, as soon as they have caught up with the ends of the partitions."""

    async def look() -> Mapping[TopicPartition, int] | None:
        commits = await stage.admin.committed_offsets(stage.topic)
        offsets = {name: commit.next_offset for name, commit in commits.items()}
        caught_up = all(offsets.get(name) == end for name, end in next_offsets.items())
        return offsets if caught_up else None

    return await wait_for(look, START_SECONDS_MAX, "the offsets were not committed")


async def _current_bits(stage: Stage, key: str) -> int:
    balance = await stage.pacspace.get_balance(key)
    return balance.current_bits if isinstance(balance, Balance) else 0


def _progress(console: Console) -> Progress:
    """Bars on a terminal, nothing elsewhere."""
    return Progress(
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _table(title: str, facts: Mapping[str, str]) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for fact in facts.items():
        table.add_row(*fact)
    return table
