"""What scenarios played from outside start from; a test module makes fixtures of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ingester.local_kafka import LocalKafka
from tests.support.ledger_server import LedgerServer
from tests.support.processes import Ingesters
from tests.support.workers import Group


def ledger() -> Iterator[LedgerServer]:
    """PacSpace, as none of the ingester's own code imagines it."""
    with LedgerServer() as running:
        yield running


def group_of(kafka: LocalKafka, ingesters: Ingesters, ledger: LedgerServer) -> Callable[..., Group]:
    """Makes a consumer group of workers over topics, which settles at the ledger server."""

    def make(*topics: str, at: LedgerServer = ledger) -> Group:
        return Group(kafka, ingesters, at.settings(), topics)

    return make
