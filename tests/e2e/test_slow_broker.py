"""A Kafka that answers late: everything takes longer, and nothing piles up before it."""

from __future__ import annotations

from ingester.local_kafka import LocalKafka
from ingester.local_kafka.jvm import jvm_cluster
from tests.support.kafka import create_topic
from tests.support.kafka_proxy import KafkaProxy
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.workers import Group, totals, usage

LATENCY_SECONDS = 0.2  # each way


async def test_receipts_do_not_wait_for_each_other_one_by_one(
    ingesters: Ingesters, simulator: Simulator
) -> None:
    """Those that come while a write is under way go with the next, however many they are."""
    with jvm_cluster(lambda _: None, 1, proxied=True) as cluster:
        kafka = LocalKafka(cluster.bootstrap_servers, "test", cluster)
        await create_topic(kafka.bootstrap_servers, "usage", 1)
        group = Group(kafka, ingesters, simulator.settings(), ["usage"])
        events = usage(4000)
        await group.produce(events)
        async with KafkaProxy(cluster.routes).running() as proxy:
            proxy.latency_seconds = LATENCY_SECONDS
            # Answers come one after the other, and so do receipts.
            simulator.add_faults(
                *(
                    {
                        "match": {"method": "POST", "every_nth": nth},
                        "latency_seconds": nth / 100,
                    }
                    for nth in (11, 7, 5, 3, 2)
                )
            )
            worker = group.start(
                kafka_bootstrap_servers=proxy.bootstrap_servers,
                items_max="10",
                session_timeout_seconds="10",
            )
            await group.settled()

            assert worker.events("receipt.retried") == []
            assert simulator.report()["keys"] == totals(events)
            worker.process.kill()
