"""What answers do to the users of ingesters like this one, played from outside: S1, S3, S4, S5.

The command as it is installed, a real Kafka, and an HTTP server that was written against the API's
documentation alone. Each test is one scenario, which its claim names. Where no answer is lost the
server ignores Idempotency-Keys, so that whatever is sent again without need is counted twice.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from tests.conftest import TopicFactory
from tests.support import ledger_fixtures
from tests.support.kafka import read_all
from tests.support.ledger_server import (
    Answer,
    LedgerServer,
    Reaction,
    Write,
    accepted,
    coded_error,
    error,
)
from tests.support.waiting import eventually, eventually_async
from tests.support.workers import Event, Group, Worker, totals, usage

GroupOf = Callable[..., Group]
ledger = pytest.fixture(ledger_fixtures.ledger)
group_of = pytest.fixture(ledger_fixtures.group_of)

PROVES_NOTHING = (
    accepted(itemCount=20, status="queued"),
    accepted(batchId="", itemCount=20),
    accepted(batchId=None, itemCount=20),
    accepted(batchId="batch_1", itemCount=19),
    accepted(batchId="batch_1", itemCount=21),
    accepted(batchId="batch_1", itemCount=0),
    Answer(202, b""),
    Answer(200, b"<html>Welcome</html>", {"Content-Type": "text/html"}),
    Answer(202, b'{"statusCode":202,"data":{"batchId":"batch_1","itemC'),
    Answer(202, b'{"success":false,"data":{"batchId":"batch_1"}}'),
)
SPOILT = (
    *(Reaction(answer=each, reaches_api=True) for each in PROVES_NOTHING),
    *(Reaction(answer=each, reaches_api=False) for each in PROVES_NOTHING),
    Reaction(end="cut"),
)


async def test_s1_nothing_is_committed_past_an_answer_that_proves_nothing(
    group_of: GroupOf, topic: TopicFactory, ledger: LedgerServer
) -> None:
    """S1: without an id, empty, cut short or with a wrong count, a 2xx commits nothing past it."""
    holes = [f"hole-{partition}" for partition in range(len(SPOILT))]

    async def spoil(write: Write) -> Reaction | None:
        return next((SPOILT[n] for n, hole in enumerate(holes) if write.has(hole)), None)

    def attempts() -> list[int]:
        return [sum(write.has(hole) for write in list(ledger.writes)) for hole in holes]

    async def all_are_tried_again() -> bool:
        assert max((await group.committed()).values(), default=0) <= 20
        return min(attempts()) >= before + 3

    ledger.react = spoil
    group = group_of(await topic(len(SPOILT)))
    events: list[Event] = []
    for partition, hole in enumerate(holes):
        here = usage(60, first=1000 * partition)
        here[30]["key"] = hole
        events += here
        await group.produce(here, partition=partition)
    worker = group.start(items_max="20", linger_seconds="1")

    before = 0
    await eventually_async(all_are_tried_again)
    await group.commits(dict.fromkeys(range(len(SPOILT)), 20))
    before = max(attempts())
    await eventually_async(all_are_tried_again)

    ledger.react = None
    await group.settled()
    assert ledger.sums() == totals(events)
    assert worker.events("partition.halted") == []
    assert await group.dead_letters() == []


async def test_s3_credentials_and_credit_that_fail_for_a_while(
    group_of: GroupOf, topic: TopicFactory, ledger: LedgerServer
) -> None:
    """S3: 401, 402 and 403 lose and dead-letter nothing, and meet a single probe now and then."""
    crowd_seconds, each_seconds = 1.0, 3.0
    refusals = (
        coded_error(401, "INVALID_API_KEY", "The API key was toggled off"),
        error(402, "Insufficient credits", error="Payment Required"),
        Answer(403, b"<html>Forbidden</html>", {"Content-Type": "text/html"}),
    )
    refused: list[Write] = []

    async def refuse_for_a_while(write: Write) -> Reaction | None:
        if len(ledger.writes) <= 10:
            return None
        began_seconds = refused[0].arrived_seconds if refused else write.arrived_seconds
        phase = int((write.arrived_seconds - began_seconds) / each_seconds)
        if phase >= len(refusals):
            return None
        refused.append(write)
        # The first wait until the worker has no request left to open before it learns of any.
        since_first = time.monotonic() - began_seconds
        await asyncio.sleep(crowd_seconds - since_first)
        return Reaction(answer=refusals[phase], reaches_api=False)

    ledger.honours_keys = False
    ledger.react = refuse_for_a_while
    group = group_of(await topic(4))
    events = usage(4000)
    await group.produce(events)
    worker = group.start(
        items_max="20",
        requests_in_flight_max="8",
        backoff_seconds_min="0.05",
        backoff_seconds_max="2",
    )

    await group.settled()

    assert ledger.sums() == totals(events)
    assert await group.dead_letters() == []
    assert worker.events("partition.halted") == []
    assert len(worker.events("pacspace.blocked")) == len(worker.events("pacspace.unblocked")) == 1
    assert {write.status for write in refused} == {401, 402, 403}
    answered_seconds = refused[0].answered_seconds
    assert answered_seconds is not None
    probes = [write for write in refused if write.arrived_seconds > answered_seconds]
    for probe, following in pairwise(probes):
        assert probe.answered_seconds is not None
        assert following.arrived_seconds > probe.answered_seconds
    # They are a second apart in the mean; twenty in nine seconds are four deviations off.
    assert 3 <= len(probes) <= 20


def _seven_seconds(form: str) -> Answer:
    match form:
        case "header":
            plain = error(429, "Too many requests")
            return Answer(plain.status, plain.body, {"Retry-After": "7"})
        case "date":
            # Dates have whole seconds: rounded up, it is never less than seven from now.
            date = formatdate(math.ceil(time.time()) + 7, usegmt=True)
            return Answer(429, b'{"message":"Too many requests"}', {"Retry-After": date})
        case _:
            return coded_error(429, "RATE_LIMITED", "Too many requests", retry_after_seconds=7)


async def test_s4_no_request_comes_earlier_than_it_may(
    group_of: GroupOf, topic: TopicFactory
) -> None:
    """S4: `Retry-After: 7`, as seconds, date or in the body, silences all partitions that long."""
    in_flight_max = 4  # as many as a worker begins with

    async def throttled(form: str) -> None:
        full = asyncio.Event()

        async def throttle_one_of_many(_: Write) -> Reaction | None:
            if len(ledger.writes) > in_flight_max:
                return None
            # The worker has no request left to open until one of these has its answer.
            if len(ledger.writes) == in_flight_max:
                full.set()
                return Reaction(answer=_seven_seconds(form), reaches_api=False)
            await full.wait()
            return Reaction(delay_seconds=0.5)

        with LedgerServer() as ledger:
            ledger.honours_keys = False
            ledger.react = throttle_one_of_many
            group = group_of(await topic(4), at=ledger)
            events = usage(1000)
            await group.produce(events)
            worker = group.start(items_max="20", requests_in_flight_max=str(in_flight_max))
            await group.settled()

            throttling = ledger.writes[in_flight_max - 1]
            assert throttling.answered_seconds is not None
            others = [write.arrived_seconds for write in ledger.writes[in_flight_max:]]
            assert len(others) >= 40
            assert min(others) >= throttling.answered_seconds + 7
            assert min(others) < throttling.answered_seconds + 12
            assert ledger.sums() == totals(events)
            assert [each["attempt"] for each in worker.events("batch.throttled")] == [1]

    await asyncio.gather(*map(throttled, ("header", "date", "body")))


class LosesAnswers:
    """Every fifth write is applied, and its connection closed before the answer."""

    def __init__(self, ledger: LedgerServer) -> None:
        self._ledger = ledger
        self.lost: Counter[str] = Counter()  # answers, by Idempotency-Key

    async def __call__(self, write: Write) -> Reaction | None:
        if len(self._ledger.writes) % 5:
            return None
        self.lost[write.idempotency_key] += 1
        return Reaction(end="lost")


async def _receipts(group: Group) -> list[dict[str, Any]]:
    records = await read_all(group.servers, f"{group.topics[0]}.receipts")
    return [msgspec.json.decode(record.value) for record in records]


async def test_s5_lost_answers_where_keys_are_honoured(
    group_of: GroupOf, topic: TopicFactory, ledger: LedgerServer
) -> None:
    """S5: with the answers to a fifth of the writes lost, every event is counted once."""
    ledger.react = losing = LosesAnswers(ledger)
    group = group_of(await topic(4))
    events = usage(3000)
    await group.produce(events)
    group.start(items_max="20")

    await group.settled()

    assert losing.lost.total() >= 30
    assert ledger.sums() == totals(events)


async def test_s5_lost_answers_where_keys_are_ignored(
    group_of: GroupOf, topic: TopicFactory, ledger: LedgerServer
) -> None:
    """S5: what is counted twice is what was in doubt, no more, and receipts and log name it all."""
    ledger.honours_keys = False
    ledger.react = losing = LosesAnswers(ledger)
    group = group_of(await topic(4))
    events = usage(3000)
    await group.produce(events)
    worker = group.start(items_max="20")

    await group.settled()

    assert losing.lost.total() >= 30
    in_doubt = Counter(each["idempotency_key"] for each in worker.events("batch.in_doubt"))
    assert in_doubt == losing.lost
    named, bits = totals(events), Counter[str]()
    for receipt in await _receipts(group):
        repeated = receipt["attempts"] - 1
        assert repeated == losing.lost[receipt["idempotencyKey"]]
        for key, sum_ in receipt["bitsByKey"].items():
            bits[key] += repeated * sum_
    # What the receipts say to have been sent more than once is all that the two books differ by.
    excess = {key: sum_["bits"] - named[key]["bits"] for key, sum_ in ledger.sums().items()}
    assert excess == {key: bits[key] for key in named}
    assert any(excess.values())


async def test_s5_lost_answers_where_nothing_in_doubt_is_sent_again(
    group_of: GroupOf, topic: TopicFactory, ledger: LedgerServer
) -> None:
    """S5: with INGESTER_IN_DOUBT=halt nothing is counted twice, not even by a successor.

    Partitions halt and name the batch; the others go on. Who knows that keys are honoured after
    all sets `retry`, and everything is settled.
    """
    ledger.honours_keys = False
    ledger.react = losing = LosesAnswers(ledger)
    group = group_of(await topic(4))
    events = usage(3000)
    await group.produce(events)
    for _ in range(2):
        worker = group.start(items_max="20", in_doubt="halt")
        halts = eventually(lambda worker=worker: _halted(worker, 4))
        assert all("in doubt, and INGESTER_IN_DOUBT is halt" in each["reason"] for each in halts)
        worker.process.terminate()
        assert worker.process.wait() == 75
        assert set(ledger.times_counted().values()) == {1}
        numbers = Counter(
            item["metadata"]["number"] for write in ledger.counted for item in write.items
        )
        assert set(numbers.values()) == {1}
    assert losing.lost.total() >= 4
    assert len(await _receipts(group)) == len(ledger.counted) - losing.lost.total()
    settled = sum((await group.committed()).values())
    assert settled < ledger.items_count < len(events)

    ledger.react, ledger.honours_keys = None, True
    group.start(items_max="20", in_doubt="retry")
    await group.settled()
    assert ledger.sums() == totals(events)


def _halted(worker: Worker, count: int) -> list[dict[str, Any]]:
    halts = worker.events("partition.halted")
    return halts if len(halts) == count else []
