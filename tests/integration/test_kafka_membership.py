"""A member of a group, and a coordinator that is lost, late or in doubt about it."""

from __future__ import annotations

import asyncio
import gc
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import pytest

from ingester.core.intent import Ledger
from ingester.core.messages import Commit, Start
from ingester.core.record import TopicPartition
from ingester.errors import UnavailableError
from ingester.kafka.admin import KafkaAdmin
from ingester.kafka.client import POLL_SECONDS
from ingester.kafka.group import Fetched, UsageConsumer
from ingester.local_kafka import JvmCluster, LocalKafka
from ingester.local_kafka.jvm import jvm_cluster
from ingester.settings import Settings
from tests.support.kafka import create_topic, produce
from tests.support.kafka_proxy import Api, Exchange, KafkaProxy, Verdict
from tests.support.processes import Ingesters
from tests.support.simulator import API_KEY, Simulator
from tests.support.waiting import eventually_async
from tests.support.workers import Group, usage

SESSION_SECONDS = 6.0  # no broker allows less


@pytest.fixture(scope="module")
def cluster() -> Iterator[JvmCluster]:
    with jvm_cluster(lambda _: None, 1, proxied=True) as found:
        yield found


@pytest.fixture
async def proxy(cluster: JvmCluster) -> AsyncIterator[KafkaProxy]:
    async with KafkaProxy(cluster.routes).running() as running:
        yield running


class Member:
    """A consumer with one partition, and what it is told."""

    def __init__(self, settings: Settings) -> None:
        self.consumer = UsageConsumer(settings, self)
        self.partition = TopicPartition(settings.topics[0], 0)
        self.start = Start(0, Ledger(0, []), {})
        self.looks_up = asyncio.Event()
        self.may_begin = asyncio.Event()
        self.may_begin.set()
        self.has_partition = asyncio.Event()
        self.failures: list[Exception] = []

    async def partitions_revoked(self) -> None:
        self.has_partition.clear()

    async def look_up(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Start]:
        self.looks_up.set()
        await self.may_begin.wait()
        return dict.fromkeys(partitions, self.start)

    def partitions_assigned(self, starts: Mapping[TopicPartition, Start]) -> None:
        assert list(starts) == [self.partition]
        self.has_partition.set()

    def rebalance_failed(self, error: Exception) -> None:
        self.failures.append(error)


@pytest.fixture
async def settings(cluster: JvmCluster, proxy: KafkaProxy) -> Settings:
    name = f"usage-{uuid.uuid4().hex[:12]}"
    await create_topic(cluster.bootstrap_servers, name)
    return Settings(
        kafka_bootstrap_servers=(proxy.bootstrap_servers,),
        topic=(name,),
        group_id=name,
        session_timeout_seconds=SESSION_SECONDS,
        poll_interval_seconds_max=2,
        linger_seconds=0.1,
        pacspace_url="http://127.0.0.1:9",
        pacspace_api_key=API_KEY,
    )


@pytest.fixture
async def member(settings: Settings) -> AsyncIterator[Member]:
    made = Member(settings)
    yield made
    await made.consumer.stop()
    assert made.failures == []


async def test_a_member_stays_one_while_it_looks_up_where_to_begin(
    member: Member, proxy: KafkaProxy
) -> None:
    """For longer than a session lasts without heartbeats."""
    beats: list[float] = []
    loop = asyncio.get_running_loop()

    async def note(_: Exchange) -> Verdict:
        beats.append(loop.time())
        return Verdict.PASS

    proxy.after[Api.HEARTBEAT] = note
    member.may_begin.clear()
    await member.consumer.start()
    async with asyncio.timeout(30):
        await member.looks_up.wait()
    began = loop.time()

    async def session_has_passed() -> bool:
        await member.consumer.poll()
        return bool(beats) and beats[-1] - began > SESSION_SECONDS

    await eventually_async(session_has_passed)
    member.may_begin.set()

    async with asyncio.timeout(5):
        await member.has_partition.wait()
    assert member.consumer.is_member
    assert await member.consumer.commit({member.partition: Commit(0, "")}) is None


async def test_polls_wait_while_it_is_looked_up_where_to_begin(
    member: Member, proxy: KafkaProxy, cluster: JvmCluster
) -> None:
    """The client asks for no offsets and no records meanwhile, then begins where it was told."""
    await produce(cluster.bootstrap_servers, member.partition.topic, [{}, {}])
    member.start = Start(1, Ledger(0, []), {})
    asked: list[int] = []
    loop = asyncio.get_running_loop()

    async def note(exchange: Exchange) -> Verdict:
        asked.append(exchange.api)
        return Verdict.PASS

    for api in (Api.OFFSET_FETCH, Api.LIST_OFFSETS, Api.FETCH):
        proxy.before[api] = note
    member.may_begin.clear()
    await member.consumer.start()
    async with asyncio.timeout(30):
        await member.looks_up.wait()
    began = loop.time()
    polled = [await member.consumer.poll() for _ in range(4)]
    seconds = loop.time() - began
    assert asked == []
    member.may_begin.set()

    assert polled == [Fetched({})] * 4
    assert seconds > 3 * POLL_SECONDS
    offsets: list[int] = []

    async def is_read() -> bool:
        records = (await member.consumer.poll()).records
        offsets.extend(record.offset for each in records.values() for record in each)
        return bool(offsets)

    await eventually_async(is_read)
    assert offsets == [1]
    assert {Api.FETCH} == set(asked)


async def test_a_member_that_polls_no_more_leaves(member: Member, settings: Settings) -> None:
    """Also when a poll before has failed: the partition is given to one that works."""
    member.start = Start(100, Ledger(0, []), {})
    await member.consumer.start()

    async def poll_has_failed() -> bool:
        return bool((await member.consumer.poll()).failed)

    await eventually_async(poll_has_failed)
    assert member.has_partition.is_set()
    group = KafkaAdmin(settings, timeout_seconds=10)

    async def has_left() -> bool:
        return not await group.owners(settings.group_id)

    await eventually_async(has_left)


async def test_the_end_of_a_commit_that_was_given_up_is_not_an_error(
    member: Member, proxy: KafkaProxy
) -> None:
    """A member's late commit that the group does not take any more is nobody's concern."""
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    released, refused = asyncio.Event(), asyncio.Event()

    async def hold(_: Exchange) -> Verdict:
        await released.wait()
        return Verdict.PASS

    async def note(_: Exchange) -> Verdict:
        refused.set()
        return Verdict.PASS

    await member.consumer.start()
    async with asyncio.timeout(30):
        await member.has_partition.wait()
    proxy.before[Api.OFFSET_COMMIT] = hold  # and with it the heartbeats behind it
    proxy.after[Api.OFFSET_COMMIT] = note

    problem = await member.consumer.commit({member.partition: Commit(0, "")})

    assert problem is not None
    assert problem.reason == "no answer within 6 s"
    released.set()
    async with asyncio.timeout(30):
        await refused.wait()
        while member.consumer._coordinator.member_id:  # noqa: ASYNC110 - nothing else says it
            await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    gc.collect()
    assert unheard == []


async def test_a_coordinator_that_goes_away_when_it_is_asked_is_asked_again(
    settings: Settings, proxy: KafkaProxy
) -> None:
    """The next one answers."""
    asked = 0

    async def disconnect_twice(_: Exchange) -> Verdict:
        nonlocal asked
        asked += 1
        return Verdict.DISCONNECT if asked < 3 else Verdict.PASS

    proxy.before[Api.OFFSET_FETCH] = disconnect_twice

    assert await KafkaAdmin(settings, timeout_seconds=10).committed_offsets("nobody's") == {}
    assert asked == 3


async def test_a_coordinator_that_stays_away_is_named(
    settings: Settings, proxy: KafkaProxy, cluster: JvmCluster
) -> None:
    """Alone, not with the servers that did answer."""

    async def disconnect(_: Exchange) -> Verdict:
        return Verdict.DISCONNECT

    proxy.before[Api.OFFSET_FETCH] = disconnect
    servers = (proxy.bootstrap_servers, cluster.bootstrap_servers)
    asked = settings.model_copy(update={"kafka_bootstrap_servers": servers})

    with pytest.raises(UnavailableError, match=r"closed the connection\. Has") as caught:
        await KafkaAdmin(asked, timeout_seconds=4).committed_offsets("nobody's")
    assert str(caught.value).startswith(f"Kafka at {proxy.bootstrap_servers} closed")


async def test_a_worker_outlives_a_coordinator_that_is_lost_in_its_look_up(
    settings: Settings,
    proxy: KafkaProxy,
    cluster: JvmCluster,
    ingesters: Ingesters,
    simulator: Simulator,
) -> None:
    """It asks until there is one, says so each time, and settles what is there."""
    (topic,) = settings.topics
    kafka = LocalKafka(cluster.bootstrap_servers, "one broker", cluster)
    group = Group(kafka, ingesters, simulator.settings(), [topic])
    await produce(cluster.bootstrap_servers, topic, usage(100))
    lost = True

    async def disconnect(_: Exchange) -> Verdict:
        return Verdict.DISCONNECT if lost else Verdict.PASS

    proxy.before[Api.OFFSET_FETCH] = disconnect
    worker = group.start(kafka_bootstrap_servers=proxy.bootstrap_servers)

    async def has_retried() -> bool:
        assert worker.process.exit_code is None
        return bool(worker.events("look_up.retried"))

    await eventually_async(has_retried, 60)
    lost = False

    await group.settled()
    assert worker.process.exit_code is None
    assert len(worker.events("partitions.assigned")) == 1
