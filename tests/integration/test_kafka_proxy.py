"""The proxy before a real broker: it sees what passes, and does to it what a test asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from ingester.local_kafka.jvm import JvmCluster, jvm_cluster
from ingester.local_kafka.readiness import brokers_known
from tests.support.kafka import create_topic, delete_topics, end_offsets, read_all
from tests.support.kafka_proxy import Api, Direction, Exchange, KafkaProxy, Verdict
from tests.support.waiting import eventually_async

TOPIC = "proxied"


@pytest.fixture(scope="module")
def cluster() -> Iterator[JvmCluster]:
    with jvm_cluster(lambda _: None, 2, proxied=True) as found:
        yield found


@pytest.fixture
async def proxy(cluster: JvmCluster) -> AsyncIterator[KafkaProxy]:
    await create_topic(cluster.bootstrap_servers, TOPIC, 2)
    async with KafkaProxy(cluster.routes).running() as running:
        yield running
    await delete_topics(cluster.bootstrap_servers, [TOPIC])


@pytest.fixture
async def producer(proxy: KafkaProxy) -> AsyncIterator[AIOKafkaProducer]:
    async with AIOKafkaProducer(
        bootstrap_servers=proxy.bootstrap_servers, acks="all", enable_idempotence=True
    ) as started:
        yield started
        await proxy.heal()  # while it is closed it writes what is left, for as long as that takes


def address(proxy: KafkaProxy, broker: int) -> str:
    return proxy.bootstrap_servers.split(",")[broker]


async def lengths(cluster: JvmCluster) -> list[int]:
    return list((await end_offsets(cluster.bootstrap_servers, TOPIC)).values())


async def test_clients_that_start_from_it_stay_on_it(
    proxy: KafkaProxy, producer: AIOKafkaProducer
) -> None:
    """Writes to both brokers, and a group's whole life, pass it with their answers."""
    seen: list[Exchange] = []

    async def note(exchange: Exchange) -> Verdict:
        seen.append(exchange)
        return Verdict.PASS

    proxy.after = dict.fromkeys(Api, note)
    for partition in (0, 1):
        await producer.send_and_wait(TOPIC, b"value", partition=partition)
    async with AIOKafkaConsumer(
        TOPIC,
        bootstrap_servers=proxy.bootstrap_servers,
        group_id="proxied",
        auto_offset_reset="earliest",
        client_id="a consumer",
    ) as consumer:
        await consumer.getone()
        await consumer.getone()
        await consumer.commit()

    assert {each.broker for each in seen if each.api == Api.PRODUCE} == {0, 1}
    assert all(TOPIC.encode() in each.request for each in seen if each.api == Api.PRODUCE)
    group = {Api.JOIN_GROUP, Api.SYNC_GROUP, Api.OFFSET_COMMIT, Api.LEAVE_GROUP}
    of_consumer = [each for each in seen if each.client_id == "a consumer"]
    assert group <= {each.api for each in of_consumer}
    assert len({each.client_port for each in of_consumer}) >= 2
    assert all(each.answer for each in seen)


async def test_a_request_that_is_held_does_not_arrive(
    proxy: KafkaProxy, producer: AIOKafkaProducer, cluster: JvmCluster
) -> None:
    """What a hook awaits before a request is not known to the broker until the hook returns."""
    held, released = asyncio.Event(), asyncio.Event()

    async def hold(_: Exchange) -> Verdict:
        held.set()
        await released.wait()
        return Verdict.PASS

    proxy.before[Api.PRODUCE] = hold
    writing = await producer.send(TOPIC, b"value", partition=0)
    async with asyncio.timeout(10):
        await held.wait()
    assert await lengths(cluster) == [0, 0]

    released.set()

    await writing
    assert await lengths(cluster) == [1, 0]


@pytest.mark.parametrize("verdict", [Verdict.DISCONNECT, Verdict.SWALLOW])
async def test_an_answer_can_be_lost(
    proxy: KafkaProxy, cluster: JvmCluster, verdict: Verdict
) -> None:
    """The broker has the record, the producer does not know, and its repetition adds nothing."""
    answers = 0

    async def lose_the_first(_: Exchange) -> Verdict:
        nonlocal answers
        answers += 1
        return verdict if answers == 1 else Verdict.PASS

    proxy.after[Api.PRODUCE] = lose_the_first
    async with AIOKafkaProducer(
        bootstrap_servers=proxy.bootstrap_servers, enable_idempotence=True, request_timeout_ms=1000
    ) as producer:
        await producer.send_and_wait(TOPIC, b"value", partition=1)

    assert answers == 2
    assert await lengths(cluster) == [0, 1]


async def test_a_cut_refuses_everybody_until_it_is_healed(
    proxy: KafkaProxy, producer: AIOKafkaProducer, cluster: JvmCluster
) -> None:
    """Connections end and none comes about, while clients that pass the proxy by go on."""
    await producer.send_and_wait(TOPIC, b"before", partition=0)

    proxy.cut()

    writing = await producer.send(TOPIC, b"meanwhile", partition=0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(brokers_known, address(proxy, 1))
    assert not writing.done()
    values = [record.value for record in await read_all(cluster.bootstrap_servers, TOPIC)]
    assert values == [b"before"]

    await proxy.heal()

    await writing
    values = [record.value for record in await read_all(cluster.bootstrap_servers, TOPIC)]
    assert values == [b"before", b"meanwhile"]


@pytest.mark.parametrize(
    ("direction", "arrives"), [(Direction.TO_BROKER, 0), (Direction.TO_CLIENT, 1)]
)
async def test_a_stall_holds_one_direction(
    proxy: KafkaProxy,
    producer: AIOKafkaProducer,
    cluster: JvmCluster,
    direction: Direction,
    arrives: int,
) -> None:
    """Stalled to the broker, a record does not arrive; to the client, only its answer does not."""
    for partition in (0, 1):  # a connection that is opened in the stall is not asked for anything
        await producer.send_and_wait(TOPIC, b"before", partition=partition)

    proxy.brokers[0].stall(direction)
    proxy.brokers[1].stall(direction)
    writing = await producer.send(TOPIC, b"meanwhile", partition=1)

    async def arrived() -> bool:
        return await lengths(cluster) == [1, 1 + arrives]

    await eventually_async(arrived)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(writing), 0.3)
    assert await lengths(cluster) == [1, 1 + arrives]

    await proxy.heal()

    await writing
    assert await lengths(cluster) == [1, 2]


async def test_latency_is_added_both_ways(proxy: KafkaProxy, producer: AIOKafkaProducer) -> None:
    """A request and its answer take twice the latency."""
    await producer.send_and_wait(TOPIC, b"before", partition=0)
    proxy.latency_seconds = latency_seconds = 1.0

    started = time.monotonic()
    await producer.send_and_wait(TOPIC, b"value", partition=0)

    assert time.monotonic() - started >= 2 * latency_seconds


async def test_what_a_hook_raises_is_not_lost(cluster: JvmCluster) -> None:
    """An assertion in a hook ends its connection, and fails the block in which the proxy runs."""

    async def refuse(_: Exchange) -> Verdict:
        raise AssertionError("not this one")

    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the end of the block raises
        async with KafkaProxy(cluster.routes).running() as proxy:
            proxy.before[Api.METADATA] = refuse
            with suppress(ConnectionError):
                await asyncio.to_thread(brokers_known, address(proxy, 0))
    assert caught.group_contains(AssertionError, match="not this one")


async def test_a_broker_that_is_gone_is_gone_through_the_proxy(
    proxy: KafkaProxy, cluster: JvmCluster
) -> None:
    """Connections to a proxy whose broker was killed end at once, and work when it is back."""
    await asyncio.to_thread(cluster.kill, 1)
    with pytest.raises(ConnectionError):
        await asyncio.to_thread(brokers_known, address(proxy, 1))

    await asyncio.to_thread(cluster.start, 1)

    assert await asyncio.to_thread(brokers_known, address(proxy, 1)) == 2
