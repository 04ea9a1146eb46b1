"""Three real brokers under load lose one of their number, and a worker loses all of them.

The longer scenarios of the same kind are played by `python -m tests.torture.failover`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ingester.local_kafka import JvmCluster
from ingester.local_kafka.jvm import jvm_cluster
from tests.support.processes import Ingesters
from tests.torture import failover
from tests.torture.failover_stage import BROKERS


@pytest.fixture
def cluster(report: Callable[[str], None]) -> Iterator[JvmCluster]:
    """Brokers that no other test shares, so that they can be killed."""
    with jvm_cluster(report, BROKERS, proxied=True) as found:
        yield found


@pytest.mark.timeout(600)  # 80 s on two idle cores, of which 40 are the brokers missing each other
async def test_every_event_is_counted_once_whatever_fails(
    cluster: JvmCluster, ingesters: Ingesters
) -> None:
    """Totals, receipts and offsets agree with the topic, and no worker ends or halts."""
    verdict = await failover.play(failover.SHORT, cluster, ingesters)

    assert verdict.problems == []
    assert len(verdict.silences) == 6
    assert verdict.replayed > 0
