"""The broker's version and the settings that both kinds of local Kafka share."""

from __future__ import annotations

KAFKA_VERSION = "4.3.1"


def broker_settings(brokers: int) -> dict[str, str]:
    """Settings of a cluster that is thrown away: durable while it lives, and quick to answer."""
    replicas = min(brokers, 3)
    replicas_in_sync_min = max(1, replicas - 1)
    return {
        "auto.create.topics.enable": "false",
        "default.replication.factor": str(replicas),
        "min.insync.replicas": str(replicas_in_sync_min),
        "offsets.topic.replication.factor": str(replicas),
        "transaction.state.log.replication.factor": str(replicas),
        "transaction.state.log.min.isr": str(replicas_in_sync_min),
        "share.coordinator.state.topic.replication.factor": str(replicas),
        "share.coordinator.state.topic.min.isr": str(replicas_in_sync_min),
        # Kafka makes 50 of each by default, which takes seconds on a small machine.
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.num.partitions": "4",
        # 3 s by default, so that many members starting together cause one rebalance.
        "group.initial.rebalance.delay.ms": "0",
        # 6 s by default: a test need not wait that long for the broker to miss a dead worker.
        "group.min.session.timeout.ms": "1000",
    }
