"""One measurement: a contender as processes of its own, from their start to the last commit.

A run that ends with a total, an offset or an exit code that is not exactly the expected one is a
failure, however fast it was.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import psutil
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError

from ingester.local_kafka import Keeper
from tests.benchmark import blast
from tests.benchmark.contenders import Contender, receipts_topic, settings
from tests.benchmark.endpoint import TOTALS_PATH, Totals
from tests.benchmark.loading import LoadedTopic
from tests.benchmark.membership import rebalance_held, shares
from tests.benchmark.workload import Workload
from tests.support.kafka import admin, delete_topics
from tests.support.waiting import eventually_async

STALL_SECONDS_MAX = 60.0
_POLL_SECONDS = 0.1  # how exact `wall_seconds` is
_START_SECONDS_MAX = 60.0  # of several on a busy machine
_END_SECONDS_MAX = 30.0
_LOG_LINES_SHOWN = 20
_CLIMBED_SHARE = 0.9
_CLIMBED_TENTHS = 5
_ROOT = Path(__file__).parents[2]


class RunFailedError(Exception):
    """A run that lost, doubled or never finished something; its figures mean nothing."""


@dataclass(frozen=True)
class Run:
    """What one run of one contender cost."""

    contender: str
    latency_ms: float
    workload: Workload
    requests: int
    requests_repeated: int
    seconds: float
    """From the first request that the endpoint saw to the last that it acknowledged."""
    wall_seconds: float
    """From the start of the processes to their last commit."""
    cpu_seconds: float
    """User and system of all workers, from their start to the last commit, children included."""
    resident_bytes_max: int
    """Of the worker that had the most."""
    endpoint_cpu_seconds: float
    """Of the endpoint, within `seconds`."""
    machine_cpu_seconds: float
    """Of everything that ran on this machine, within `wall_seconds`."""
    endpoint_latency_seconds: float
    """From a whole request to its acknowledgement, on average, as the endpoint saw it."""
    items_by_tenth: tuple[int, ...]
    """What the endpoint acknowledged in each tenth of a second since the first request."""

    @property
    def events(self) -> int:
        return self.workload.events

    @property
    def events_per_second(self) -> float:
        return self.events / self.seconds

    @property
    def steady_events_per_second(self) -> float:
        """In the second half of the time, without the last tenth of a second, which is cut off."""
        tenths = self.items_by_tenth[:-1]
        later = tenths[len(tenths) // 2 :]
        return sum(later) / len(later) * 10 if later else self.events_per_second

    @property
    def climb_seconds(self) -> float:
        """From the first request until half a second begins that is nearly as fast as that."""
        enough = _CLIMBED_SHARE * self.steady_events_per_second * _CLIMBED_TENTHS / 10
        tenths = self.items_by_tenth
        for first in range(len(tenths)):
            if sum(tenths[first : first + _CLIMBED_TENTHS]) >= enough:
                return first / 10
        return self.seconds

    @property
    def cpu_seconds_per_million(self) -> float:
        return self.cpu_seconds / self.events * 1_000_000

    @property
    def endpoint_busy(self) -> float:
        """The share of the time in which the endpoint had anything to do."""
        return self.endpoint_cpu_seconds / self.seconds

    @property
    def rest_cores(self) -> float:
        """Cores that the broker and whatever else runs here took on average."""
        rest = self.machine_cpu_seconds - self.cpu_seconds - self.endpoint_cpu_seconds
        return max(0.0, rest / self.wall_seconds)


@dataclass(frozen=True)
class Capacity:
    """What the endpoint took from the blast client."""

    latency_ms: float
    items: int
    connections: int
    seconds: float
    endpoint_cpu_seconds: float

    @property
    def items_per_second(self) -> float:
        return self.items / self.seconds


class Endpoint:
    """The running endpoint process."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self._client = client

    async def totals(self) -> Totals:
        """What it has acknowledged so far."""
        answer = await self._client.get(self.url + TOTALS_PATH)
        return msgspec.json.decode(answer.raise_for_status().content, type=Totals)


@asynccontextmanager
async def endpoint_process(keeper: Keeper, latency_ms: float) -> AsyncIterator[Endpoint]:
    """Run a fresh endpoint until the end of the block."""
    log = keeper.folder / f"endpoint-{uuid.uuid4().hex[:8]}.log"
    command = [sys.executable, "-m", "tests.benchmark.endpoint", "--latency-ms", str(latency_ms)]
    process = keeper.start(command, log=log, cwd=_ROOT)

    async def listening() -> re.Match[str] | None:
        _check_alive([process], log)
        return re.search(r"^listening on (\S+)\n", log.read_text())

    try:
        found = await eventually_async(listening)
        assert found is not None
        async with httpx.AsyncClient() as client:
            yield Endpoint(found[1], client)
    finally:
        process.kill()
        process.wait()


async def measure_capacity(
    keeper: Keeper, load: blast.Blast, latency_ms: float, connections: int
) -> Capacity:
    """Post the load to a fresh endpoint, and check that all of it arrived."""
    async with endpoint_process(keeper, latency_ms) as endpoint:
        await blast.send(load, endpoint.url, connections)
        totals = await endpoint.totals()
    check_totals("the blast", totals, load.items, load.bits)
    return Capacity(latency_ms, load.items, connections, totals.seconds, totals.cpu_seconds)


async def measure_run(
    contender: Contender,
    topic: LoadedTopic,
    latency_ms: float,
    bootstrap_servers: str,
    keeper: Keeper,
) -> Run:
    """Let a contender's workers bring the whole topic to a fresh endpoint, in a fresh group."""
    group_id = f"benchmark-{contender.name.replace(' ', '-')}-{uuid.uuid4().hex[:8]}"
    log = keeper.folder / f"{group_id}.log"
    async with (
        endpoint_process(keeper, latency_ms) as endpoint,
        admin(bootstrap_servers) as kafka,
    ):
        environment = settings(contender, bootstrap_servers, topic.name, group_id, endpoint.url)
        processes: list[subprocess.Popen[bytes]] = []
        try:
            async with rebalance_held(kafka, group_id, topic.name):
                started, machine_started = time.perf_counter(), _machine_cpu_seconds()
                for _ in range(topic.workload.workers):
                    process = keeper.start(
                        contender.command, log=log, env=environment, cwd=keeper.folder
                    )
                    processes.append(process)
                await _wait_for_members(kafka, group_id, processes, log)
            await wait_for_commits(kafka, group_id, topic, processes, log)
            wall_seconds = time.perf_counter() - started
            machine_cpu_seconds = _machine_cpu_seconds() - machine_started
            used = [_usage(process.pid) for process in processes]
            check_shares(contender.name, await shares(kafka, group_id), topic.workload)
            await asyncio.gather(*(end(each, contender.exit_code, log) for each in processes))
        finally:
            for process in processes:
                process.kill()
                process.wait()
            await delete_topics(bootstrap_servers, [receipts_topic(group_id)])
        totals = await endpoint.totals()
    check_totals(contender.name, totals, topic.workload.events, topic.bits)
    return Run(
        contender=contender.name,
        latency_ms=latency_ms,
        workload=topic.workload,
        requests=totals.requests,
        requests_repeated=totals.requests_repeated,
        seconds=totals.seconds,
        wall_seconds=wall_seconds,
        cpu_seconds=sum(cpu_seconds for cpu_seconds, _ in used),
        resident_bytes_max=max(resident_bytes for _, resident_bytes in used),
        endpoint_cpu_seconds=totals.cpu_seconds,
        machine_cpu_seconds=machine_cpu_seconds,
        endpoint_latency_seconds=totals.latency_seconds,
        items_by_tenth=tuple(totals.items_by_tenth),
    )


async def _wait_for_members(
    kafka: AIOKafkaAdminClient,
    group_id: str,
    processes: Sequence[subprocess.Popen[bytes]],
    log: Path,
) -> None:
    """Return when all of them are in the group, beside the one that holds it."""

    async def joined() -> bool:
        _check_alive(processes, log)
        return len(await shares(kafka, group_id)) == len(processes) + 1

    await eventually_async(joined, _START_SECONDS_MAX)


async def wait_for_commits(
    kafka: AIOKafkaAdminClient,
    group_id: str,
    topic: LoadedTopic,
    processes: Sequence[subprocess.Popen[bytes]],
    log: Path,
) -> None:
    """Return when the group has committed the end of every partition, and nothing beyond it."""
    loop = asyncio.get_running_loop()
    latest, moved_at = dict[int, int](), loop.time()
    while latest != topic.next_offsets:
        _check_alive(processes, log)
        try:
            offsets = await kafka.list_consumer_group_offsets(group_id)
        except (GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError):
            offsets = {}  # the first question about any group makes the offsets topic
        committed = {where.partition: found.offset for where, found in offsets.items()}
        if committed != latest:
            latest, moved_at = committed, loop.time()
        elif loop.time() - moved_at > STALL_SECONDS_MAX:
            raise RunFailedError(
                f"nothing was committed for {STALL_SECONDS_MAX:g} s; committed is {latest}, the"
                f" topic ends at {topic.next_offsets}; what was printed:\n{_tail(log)}"
            )
        await asyncio.sleep(_POLL_SECONDS)


async def end(process: subprocess.Popen[bytes], expected: int, log: Path) -> None:
    """Ask a process to end; RunFailedError unless it does so in time, and with this code."""
    process.terminate()
    try:
        code = await asyncio.to_thread(process.wait, _END_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        code = None
    if code != expected:
        ended = "did not end" if code is None else f"ended with exit code {code}"
        raise RunFailedError(
            f"within {_END_SECONDS_MAX:g} s of SIGTERM the process {ended}, expected was"
            f" {expected}; it printed:\n{_tail(log)}"
        )


def _check_alive(processes: Sequence[subprocess.Popen[bytes]], log: Path) -> None:
    for process in processes:
        code = process.poll()
        if code is not None:
            raise RunFailedError(
                f"the process ended with exit code {code}; it printed:\n{_tail(log)}"
            )


def _usage(pid: int) -> tuple[float, int]:
    """CPU seconds since the start, children included, and the most memory that was resident."""
    process = psutil.Process(pid)
    cpu = process.cpu_times()
    cpu_seconds = cpu.user + cpu.system + cpu.children_user + cpu.children_system
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        assert peak is not None
        return cpu_seconds, int(peak[1]) * 1024
    return cpu_seconds, process.memory_info().rss  # without /proc only what it is now is known


def _machine_cpu_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def check_shares(who: str, found: Sequence[int], workload: Workload) -> None:
    """RunFailedError unless each worker is still in the group, with its share of the partitions."""
    share, more = divmod(workload.partitions, workload.workers)
    due = [share] * (workload.workers - more) + [share + 1] * more
    if found != due:
        raise RunFailedError(
            f"{who}: the members of the group have {found} partitions at the end, due were {due}:"
            " a worker came late or left early"
        )


def check_totals(who: str, totals: Totals, items: int, bits: int) -> None:
    """RunFailedError unless the endpoint acknowledged exactly what there was."""
    if (totals.items, totals.bits) != (items, bits):
        raise RunFailedError(
            f"{who}: the endpoint acknowledged {totals.items:,} items of {totals.bits:,} bits,"
            f" sent were {items:,} of {bits:,}: something was lost, doubled or changed"
        )


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])
