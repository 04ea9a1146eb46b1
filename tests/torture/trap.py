"""Kills a worker with SIGKILL at the very step of the delivery protocol that it is set for.

Steps are told from Kafka's framing and a look into the few requests that matter; whose they are,
from the client's port.
"""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable
from enum import Enum, auto

import psutil
from aiokafka.protocol.commit import OffsetCommitRequest_v2, OffsetCommitRequest_v3

from tests.support.kafka_proxy import Api, Exchange
from tests.support.workers import Worker
from tests.torture.endpoint import Moment

_METADATA_BARE_MAX = 20  # without intents it is a version and two numbers; each intent adds eight
_REBALANCE_IN_PROGRESS = (27).to_bytes(2)
_RECEIPT_KEY = re.compile(rb'"idempotencyKey":"([^"]+)"')


class Step(Enum):
    """What a worker is doing when it is killed."""

    INTENT = auto()
    """A commit that records boundaries."""
    POSITION = auto()
    """A commit that moves an offset on."""
    COMMIT = auto()
    """Any commit."""
    REQUEST = auto()
    """A write to PacSpace."""
    RECEIPT = auto()
    DEAD_LETTERS = auto()
    TAIL = auto()
    """Reading the receipts of former owners."""
    REBALANCE = auto()
    """Learning by a heartbeat that there is a rebalance."""
    JOIN = auto()


class Trap:
    """Springs once, on one step of one worker, after as many of them as `skip` says."""

    def __init__(
        self,
        worker: Worker,
        step: Step,
        moment: Moment,
        *,
        skip: int = 0,
        delay_seconds: float = 0.0,
    ) -> None:
        """`delay_seconds` is between an answer and the kill; the other moments have none."""
        self.worker = worker
        self.sprung = asyncio.Event()
        self._step = step
        self._moment = moment
        self._skip = skip
        self._delay_seconds = delay_seconds
        self._is_taken = False  # set by the step, `sprung` by the kill

    def take(self, steps: set[Step], moment: Moment, owns: Callable[[Worker], bool]) -> bool:
        """Kill the worker if this is the moment; True ends the connection here and now."""
        if self._step not in steps or moment is not self._moment or self._is_taken:
            return False
        if not owns(self.worker):
            return False
        if self._skip:
            self._skip -= 1
            return False
        self._is_taken = True
        if moment is Moment.ANSWERED:
            # The answer is written when the caller goes on, and the kill comes after it.
            asyncio.get_running_loop().call_later(self._delay_seconds, self.spring)
            return False
        self.spring()
        return True

    def spring(self) -> None:
        """Kill the worker now."""
        self.worker.process.signal(signal.SIGKILL)
        self.sprung.set()


def owner_of(port: int) -> Callable[[Worker], bool]:
    """Return what says whether a worker has the connection from this loopback port."""

    def owns(worker: Worker) -> bool:
        try:
            connections = psutil.Process(worker.process.pid).net_connections("tcp4")
        except psutil.Error:
            return False  # it is dead
        return any(each.laddr and each.laddr.port == port for each in connections)

    return owns


class Steps:
    """Says which steps of a topic's workers an exchange with a broker is."""

    def __init__(self, topic: str) -> None:
        self._receipts_topic = f"{topic}.receipts".encode()
        self._dead_letter_topic = f"{topic}.dead-letters".encode()
        self._positions: dict[int, int] = {}
        # By partition, as far as commits were seen before they were forwarded.
        self._commits: dict[Exchange, set[Step]] = {}
        # Steps of each commit that has no answer yet: its position is new only once.
        self.receipted: dict[str, int] = {}
        """Idempotency-Keys whose receipts the broker has acknowledged, numbered from 0."""

    def before(self, exchange: Exchange) -> set[Step]:
        """The steps that a request is."""
        match exchange.api:
            case Api.OFFSET_COMMIT:
                self._commits[exchange] = self._commit(exchange)
                return self._commits[exchange]
            case Api.PRODUCE if self._receipts_topic in exchange.request:
                return {Step.RECEIPT}
            case Api.PRODUCE if self._dead_letter_topic in exchange.request:
                return {Step.DEAD_LETTERS}
            case Api.FETCH if self._receipts_topic in exchange.request:
                return {Step.TAIL}
            case Api.JOIN_GROUP:
                return {Step.JOIN}
        return set()

    def after(self, exchange: Exchange) -> set[Step]:
        """The steps that an answer ends."""
        match exchange.api:
            case Api.OFFSET_COMMIT:
                return self._commits.pop(exchange, set())
            case Api.HEARTBEAT if (exchange.answer or b"").endswith(_REBALANCE_IN_PROGRESS):
                return {Step.REBALANCE}
            case Api.HEARTBEAT:
                return set()
        steps = self.before(exchange)
        if Step.RECEIPT in steps:
            for found in _RECEIPT_KEY.findall(exchange.request):
                self.receipted.setdefault(found.decode(), len(self.receipted))
        return steps

    def _commit(self, exchange: Exchange) -> set[Step]:
        version = OffsetCommitRequest_v3 if exchange.version == 3 else OffsetCommitRequest_v2
        assert exchange.version == version.API_VERSION, "a version that is not read here"
        steps = {Step.COMMIT}
        for _, partitions in version.decode(exchange.request).topics:
            for partition, offset, metadata in partitions:
                if len(metadata) > _METADATA_BARE_MAX:
                    steps.add(Step.INTENT)
                if offset > self._positions.get(partition, 0):
                    self._positions[partition] = offset
                    steps.add(Step.POSITION)
        return steps
