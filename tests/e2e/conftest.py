"""What every end-to-end test starts from: a group of workers, and a wire to look into."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from ingester.local_kafka import LocalKafka
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.wire import Wire
from tests.support.workers import Group


@pytest.fixture
def group_of(kafka: LocalKafka, ingesters: Ingesters, simulator: Simulator) -> Callable[..., Group]:
    """Makes a consumer group of workers over topics, which settles at the simulator."""

    def make(*topics: str, wire: Wire | None = None) -> Group:
        return Group(kafka, ingesters, (wire or simulator).settings(), topics)

    return make


@pytest.fixture
async def wire(simulator: Simulator) -> AsyncIterator[Wire]:
    """Listens between workers and the simulator; only those that are told talk through it."""
    async with Wire(simulator.url).running() as running:
        yield running
