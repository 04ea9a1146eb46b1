"""Brokers die, restart, fall silent and slow down under load; nothing is lost or counted twice.

`python -m tests.torture.failover` plays all scenarios or those that it is told; `--list` names all.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ingester.local_kafka import JvmCluster, Keeper
from ingester.local_kafka.jvm import jvm_cluster
from tests.support.kafka_proxy import Api, Direction, Exchange
from tests.support.kafka_proxy import Verdict as Answer
from tests.support.processes import Ingesters
from tests.support.waiting import eventually_async
from tests.torture.failover_stage import (
    BROKERS,
    PARTITIONS,
    PROGRESS_SECONDS_MAX,
    SESSION_TIMEOUT_SECONDS,
    WORKERS,
    Stage,
    staged,
)
from tests.torture.failover_verdict import Verdict, judge

Report = Callable[[str], None]

_LONGER_THAN_A_SESSION_SECONDS = 1.7 * SESSION_TIMEOUT_SECONDS
_LONGER_THAN_A_WRITE_SECONDS = 55.0  # the client gives up after 40, once a leader is missed
_LATENCY_SECONDS = 0.2
_LATE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is done to a stage whose workers share the load; all is well again when it returns."""

    play: Callable[[Stage], Awaitable[None]]
    proxied_workers: int = 0
    """How many of the workers talk to the brokers by the proxy."""
    fragile_receipts: bool = False
    """Whether each receipts partition has one replica only."""

    @property
    def name(self) -> str:
        return self.play.__name__.strip("_")

    @property
    def claim(self) -> str:
        return (self.play.__doc__ or "").partition("\n")[0]


async def play(scenario: Scenario, cluster: JvmCluster, ingesters: Ingesters) -> Verdict:
    """Play a scenario on a topic and a group of its own, and judge it."""
    verdict = Verdict(scenario.name)
    async with staged(
        cluster,
        ingesters,
        proxied_workers=scenario.proxied_workers,
        fragile_receipts=scenario.fragile_receipts,
    ) as stage:
        loading = asyncio.create_task(stage.load.run())
        try:
            await stage.shared()
            await stage.goes_on()
            await stage.in_sync()
            await scenario.play(stage)
        except AssertionError as error:
            what = stage.marks[-1].what if stage.marks else "the start"
            verdict.problems.append(f"after {what}: {error}")
            with suppress(AssertionError):
                await stage.heal()
        ended_at = time.time()
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        try:
            await stage.group.settled()
        except AssertionError as error:
            verdict.problems.append(f"not everything was settled: {error}")
        await judge(stage, verdict, ended_at)
    return verdict


# -- scenarios ------------------------------------------------------------------------------------


async def _other_leader(stage: Stage, topic: str) -> int:
    """A leader of the topic's partitions that is not the group's coordinator."""
    coordinator = await stage.brokers.coordinator(stage.group.name)
    leaders = await stage.brokers.leaders(topic)
    return next(each for each in leaders if each != coordinator)


async def _return(stage: Stage, *brokers: int) -> None:
    stage.mark("its return" if len(brokers) == 1 else "their return")
    await stage.start(*brokers)
    await stage.goes_on()


async def _dies_and_returns(stage: Stage, broker: int, what: str) -> None:
    stage.mark(f"SIGKILL of {what}")
    stage.kill(broker)
    await stage.goes_on()
    await _return(stage, broker)


async def leader_killed(stage: Stage) -> None:
    """The leader of usage partitions, which is not the coordinator, dies and returns."""
    broker = await _other_leader(stage, stage.topic)
    await _dies_and_returns(stage, broker, "a leader of usage partitions")


async def coordinator_killed(stage: Stage) -> None:
    """The group's coordinator, which leads usage partitions as well, dies and returns."""
    coordinator = await stage.brokers.coordinator(stage.group.name)
    assert coordinator in await stage.brokers.leaders(stage.topic)
    await _dies_and_returns(stage, coordinator, "the coordinator, a leader of partitions too")


async def receipts_leader_killed(stage: Stage) -> None:
    """The leader of receipts partitions, which is not the coordinator, dies and returns."""
    broker = await _other_leader(stage, stage.receipts_topic)
    await _dies_and_returns(stage, broker, "a leader of receipts partitions")


async def controller_killed(stage: Stage) -> None:
    """The active controller dies and returns."""
    await _dies_and_returns(stage, await stage.brokers.controller(), "the active controller")


async def rolled_by_kill(stage: Stage) -> None:
    """One broker after the other dies and returns, each as soon as the last is in sync again."""
    for broker in range(BROKERS):
        await _dies_and_returns(stage, broker, f"broker {broker}")


async def rolled_in_order(stage: Stage) -> None:
    """One broker after the other hands over, leaves and returns, as an upgrade does it."""
    for broker in range(BROKERS):
        stage.mark(f"SIGTERM of broker {broker}")
        await stage.terminate(broker)
        await stage.goes_on()
        await _return(stage, broker)


async def _are_gone(stage: Stage, *brokers: int) -> None:
    for broker in brokers:
        stage.kill(broker)
    await asyncio.sleep(_LONGER_THAN_A_WRITE_SECONDS)
    await _return(stage, *brokers)


async def all_killed(stage: Stage) -> None:
    """All brokers die at once, and return after longer than the client tries to write."""
    stage.mark("SIGKILL of all brokers")
    await _are_gone(stage, *range(BROKERS))


async def majority_killed(stage: Stage) -> None:
    """Two of three brokers are gone for longer than the client tries to write."""
    stage.mark("SIGKILL of two brokers")
    await _are_gone(stage, 0, 1)


async def receipts_offline(stage: Stage) -> None:
    """The only replica of receipts partitions is gone for longer than the client tries to write."""
    broker = await _other_leader(stage, stage.receipts_topic)
    leaders = await stage.brokers.leaders(stage.receipts_topic)
    stage.mark("SIGKILL of the only replica of receipts partitions")
    stage.kill(broker)
    await stage.goes_on(at_least=PARTITIONS - leaders.count(broker))
    await asyncio.sleep(_LONGER_THAN_A_WRITE_SECONDS)
    await _return(stage, broker)


async def worker_killed_in_outage(stage: Stage) -> None:
    """A worker dies while the coordinator is gone; its substitute starts before that is back."""
    coordinator = await stage.brokers.coordinator(stage.group.name)
    stage.mark("SIGKILL of the coordinator")
    stage.kill(coordinator)
    await asyncio.sleep(1)
    stage.mark("SIGKILL of a worker in the outage")
    stage.kill_worker(stage.workers[0])
    stage.start_worker()
    await stage.goes_on()
    await stage.shared()
    stage.mark("the coordinator's return")
    await stage.start(coordinator)
    await stage.goes_on()


async def _dies_when_asked(stage: Stage, api: Api, what: str) -> None:
    """Kill a worker in mid-batch, then the broker that its successors ask this first."""
    killed: list[int] = []

    async def kill(exchange: Exchange) -> Answer:
        if killed:
            return Answer.PASS
        killed.append(exchange.broker)
        stage.mark(f"SIGKILL of {what}, before it answers")
        stage.kill(exchange.broker)
        return Answer.DISCONNECT

    async def has_been_asked() -> bool:
        return bool(killed)

    stage.mark("SIGKILL of a worker")
    stage.kill_worker(stage.workers[0])
    stage.proxy.before[api] = kill
    stage.start_worker(proxied=True)
    await eventually_async(has_been_asked, PROGRESS_SECONDS_MAX)
    await stage.goes_on()
    await _return(stage, *killed)
    await stage.shared()


async def coordinator_killed_in_look_up(stage: Stage) -> None:
    """The coordinator dies when a worker asks it where its new partitions begin."""
    await _dies_when_asked(stage, Api.OFFSET_FETCH, "the coordinator")


async def leader_killed_in_look_up(stage: Stage) -> None:
    """A leader dies when a worker asks it how far the receipts of its new partitions go."""
    await _dies_when_asked(stage, Api.LIST_OFFSETS, "a leader of receipts partitions")


async def _heal(stage: Stage) -> None:
    stage.mark("the end of it")
    await stage.proxy.heal()
    await stage.goes_on()
    await stage.shared()


async def worker_stalled(stage: Stage) -> None:
    """A worker hears nothing of any broker for longer than its session, then all at once."""
    stage.mark("silence between a worker and all brokers")
    stage.proxy.stall()
    await asyncio.sleep(_LONGER_THAN_A_SESSION_SECONDS)
    await stage.goes_on()
    await _heal(stage)


async def worker_cut_off(stage: Stage) -> None:
    """A worker is refused by every broker for longer than its session."""
    stage.mark("a worker cut off from all brokers")
    stage.proxy.cut()
    await asyncio.sleep(_LONGER_THAN_A_SESSION_SECONDS)
    await stage.goes_on()
    await _heal(stage)


async def answers_held(stage: Stage) -> None:
    """What the workers ask arrives, and no answer comes for longer than their session."""
    stage.mark("the brokers' answers held")
    stage.proxy.stall(Direction.TO_CLIENT)
    await asyncio.sleep(_LONGER_THAN_A_SESSION_SECONDS)
    await _heal(stage)


async def _is_stalled(stage: Stage, broker: int, what: str) -> None:
    stage.mark(f"silence between the workers and {what}")
    stage.proxy.brokers[broker].stall()
    await asyncio.sleep(_LONGER_THAN_A_SESSION_SECONDS)
    await _heal(stage)


async def leader_stalled(stage: Stage) -> None:
    """The workers hear nothing of one broker that is well, and is not the coordinator."""
    await _is_stalled(stage, await _other_leader(stage, stage.topic), "a leader")


async def coordinator_stalled(stage: Stage) -> None:
    """The workers hear nothing of their coordinator, which is well."""
    coordinator = await stage.brokers.coordinator(stage.group.name)
    await _is_stalled(stage, coordinator, "the coordinator")


async def far_away(stage: Stage) -> None:
    """Each request to a broker and each answer takes 200 ms longer for a while."""
    stage.mark("200 ms of latency each way")
    stage.proxy.latency_seconds = _LATENCY_SECONDS
    await asyncio.sleep(_LATE_SECONDS)
    await stage.goes_on()
    stage.mark("the end of it")
    stage.proxy.latency_seconds = 0.0
    await stage.goes_on()


async def short(stage: Stage) -> None:
    """The coordinator dies, then the active controller, then a worker loses all brokers."""
    await coordinator_killed(stage)
    await controller_killed(stage)
    await worker_stalled(stage)


SHORT = Scenario(short, proxied_workers=1)
SCENARIOS = (
    Scenario(leader_killed),
    Scenario(coordinator_killed),
    Scenario(receipts_leader_killed),
    Scenario(controller_killed),
    Scenario(rolled_by_kill),
    Scenario(rolled_in_order),
    Scenario(all_killed),
    Scenario(worker_killed_in_outage),
    Scenario(majority_killed),
    Scenario(receipts_offline, fragile_receipts=True),
    Scenario(coordinator_killed_in_look_up, proxied_workers=WORKERS),
    Scenario(leader_killed_in_look_up, proxied_workers=WORKERS),
    Scenario(worker_stalled, proxied_workers=1),
    Scenario(worker_cut_off, proxied_workers=1),
    Scenario(answers_held, proxied_workers=WORKERS),
    Scenario(leader_stalled, proxied_workers=WORKERS),
    Scenario(coordinator_stalled, proxied_workers=WORKERS),
    Scenario(far_away, proxied_workers=WORKERS),
)


def run_failover(report: Report, names: Sequence[str] = ()) -> bool:
    """Play the scenarios of these names, or all, on one cluster; whether all promises were kept.

    The logs of a scenario that failed are left where the report says.
    """
    unknown = set(names) - {each.name for each in SCENARIOS}
    if unknown:
        raise SystemExit(f"no such scenario: {', '.join(unknown)}; --list names them")
    kept = True
    with jvm_cluster(report, BROKERS, proxied=True) as cluster, Keeper() as keeper:
        for scenario in SCENARIOS:
            if names and scenario.name not in names:
                continue
            folder = Path(tempfile.mkdtemp(prefix=f"failover-{scenario.name}-"))
            ingesters = Ingesters(keeper, folder)
            report(f"{scenario.name}: {scenario.claim}")
            try:
                verdict = asyncio.run(play(scenario, cluster, ingesters))
            finally:
                ingesters.close()
            for line in verdict.lines():
                report(line)
            if verdict.problems:
                kept = False
                report(f"  the logs are in {folder}")
            else:
                _remove(folder)
    return kept


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def main(arguments: Sequence[str]) -> int:
    """Play what is named; the exit code is 1 when a promise was broken."""
    if "--list" in arguments:
        for scenario in SCENARIOS:
            print(f"{scenario.name}: {scenario.claim}")
        return 0
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it warns of what is done to it
    return 0 if run_failover(lambda line: print(line, flush=True), arguments) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
