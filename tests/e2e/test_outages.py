"""PacSpace slow, down, throttling or refusing: nothing is lost, and it is not pestered."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import httpx
import pytest
from aiohttp import web

from tests.conftest import TopicFactory
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.waiting import eventually, eventually_async
from tests.support.wire import PassOn, Wire, Write
from tests.support.workers import Group, totals, usage

GroupOf = Callable[..., Group]


async def test_an_endpoint_that_fails_in_every_way_at_once(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """Errors before and after the write, lost and cut answers lose nothing and double nothing."""
    simulator.add_faults(
        {"match": {"method": "POST", "every_nth": 5}, "effect": {"kind": "lose"}},
        {"match": {"method": "POST", "every_nth": 7}, "effect": {"kind": "cut_body"}},
        {"match": {"method": "POST", "every_nth": 8}, "effect": {"kind": "drop"}},
        *(
            {
                "match": {"method": "POST", "every_nth": 6},
                "effect": {"kind": "answer", "status": status, "applied": applied},
            }
            for status, applied in ((500, True), (500, False), (502, True), (503, False))
        ),
        {
            "match": {"method": "POST", "every_nth": 6},
            "effect": {"kind": "answer", "status": 504, "envelope": "html", "applied": True},
        },
        {"match": {"method": "POST", "every_nth": 6}, "effect": {"kind": "answer", "status": 408}},
        {"match": {"method": "POST", "every_nth": 9}, "effect": {"kind": "hang", "applied": True}},
    )
    group = group_of(await topic(4))
    events = usage(3000)
    await group.produce(events)
    worker = group.start(items_max="20", request_timeout_seconds="1", connect_timeout_seconds="0.5")

    await group.settled()

    report = simulator.report()
    assert report["keys"] == totals(events)
    assert {"408", "500", "502", "503", "504", "cut", "hung"} <= set(report["requests"])
    assert report["replayed"] > 0
    assert report["conflicts"] == 0
    assert await group.dead_letters() == []
    assert worker.events("partition.halted") == []


async def test_an_endpoint_that_is_gone_and_comes_back(
    group_of: GroupOf, topic: TopicFactory, ingesters: Ingesters, simulator: Simulator
) -> None:
    """While connections are refused everything is put off; afterwards it goes by itself."""
    group = group_of(await topic(2))
    before, meanwhile = usage(300), usage(2000, first=300)
    await group.produce(before)
    worker = group.start()
    await group.settled()
    assert simulator.report()["keys"] == totals(before)
    simulator.process.terminate()
    assert simulator.process.wait() == 0
    await group.produce(meanwhile)
    eventually(lambda: len(worker.events("batch.deferred")) >= 30)

    port = httpx.URL(simulator.url).port
    successor = Simulator(ingesters, "--listen", f"127.0.0.1:{port}")

    await group.settled()
    assert successor.report()["keys"] == totals(meanwhile)


def _too_many(form: str) -> web.Response:
    """A 429, or a 503, that asks for at least two seconds."""
    headers: dict[str, str] = {}
    body: dict[str, Any] = {"statusCode": 429, "message": "slow down", "code": "CADENCE_LIMIT"}
    match form:
        case "seconds" | "seconds of a 503":
            headers["Retry-After"] = "2"
        case "date":
            # Dates have whole seconds: rounded up, it is never less than two from now.
            moment = datetime.now(UTC) + timedelta(seconds=3)
            headers["Retry-After"] = format_datetime(moment, usegmt=True)
        case "body":
            headers["Retry-After"] = "0"
            body["retryAfterSeconds"] = 2
    status = 503 if form == "seconds of a 503" else 429
    return web.json_response(body, status=status, headers=headers)


@pytest.mark.parametrize("form", ["seconds", "date", "body", "seconds of a 503"])
async def test_no_request_comes_earlier_than_the_endpoint_asks(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, wire: Wire, form: str
) -> None:
    """Retry-After as seconds, as a date and in the body holds back every batch of the worker."""

    async def throttle_once(_: Write, pass_on: PassOn) -> web.Response:
        return _too_many(form) if len(wire.writes) == 1 else await pass_on()

    wire.intercept = throttle_once
    group = group_of(await topic(2), wire=wire)
    events = usage(500)
    await group.produce(events)
    worker = group.start(requests_in_flight_max="1")

    await group.settled()

    throttled, *others = wire.writes
    assert throttled.answered_seconds is not None
    assert len(others) >= 5
    assert min(write.arrived_seconds for write in others) >= throttled.answered_seconds + 2
    assert simulator.report()["keys"] == totals(events)
    name = "batch.in_doubt" if form == "seconds of a 503" else "batch.throttled"
    assert [each["attempt"] for each in worker.events(name)] == [1]


async def test_an_endpoint_that_refuses_everything_is_probed_with_single_requests(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, wire: Wire
) -> None:
    """Nothing is lost or dead-lettered, probes go one at a time, and it recovers by itself."""
    in_flight_max = 4
    group = group_of(await topic(2), wire=wire)
    worker = group.start(
        requests_in_flight_max=str(in_flight_max),
        backoff_seconds_min="0.1",
        backoff_seconds_max="0.2",
    )
    events = []
    for status in (401, 402, 403, 404, 412):

        async def refuse(_: Write, __: PassOn, status: int = status) -> web.Response:
            return web.json_response({"statusCode": status, "message": "not now"}, status=status)

        async def probed() -> bool:
            return len(wire.writes) >= in_flight_max + 4

        settled = await group.committed()
        wire.writes.clear()
        wire.intercept = refuse
        more = usage(1000, first=len(events))
        events += more
        await group.produce(more)
        await eventually_async(probed)
        assert f"HTTP {status}" in worker.status()["blocked"]
        assert await group.committed() == settled
        probes = list(wire.writes[in_flight_max - 1 :])
        for probe, following in pairwise(probes):
            assert probe.answered_seconds is not None
            assert following.arrived_seconds >= probe.answered_seconds + 0.1

        wire.intercept = None
        await group.settled()
        assert worker.status()["blocked"] is None
        blocked = worker.events("pacspace.blocked")[-1]
        assert blocked["level"] == "error"
        assert f"HTTP {status}" in blocked["reason"]
    assert len(worker.events("pacspace.blocked")) == len(worker.events("pacspace.unblocked")) == 5
    assert simulator.report()["keys"] == totals(events)
    assert await group.dead_letters() == []


async def test_a_conflict_halts_its_partition_and_no_other(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """409 stops what it is about, aloud; once it is gone all is settled."""
    group = group_of(await topic(2))
    name = group.topics[0]
    conflicting, others = usage(350), usage(350, first=1000)
    conflicting[150]["key"] = "conflicting"
    simulator.add_faults(
        {
            "match": {"key": "conflicting"},
            "effect": {"kind": "refuse", "status": 409, "message": "no"},
        }
    )
    await group.produce(conflicting, partition=0)
    await group.produce(others, partition=1)
    settings = {"linger_seconds": "1"}  # so that the batches are full
    worker = group.start(**settings)

    (halt,) = eventually(lambda: worker.events("partition.halted"))
    assert (halt["level"], halt["partition"]) == ("error", f"{name}:0")
    assert "[100,200) is in doubt" in halt["reason"]
    assert "HTTP 409: no" in halt["reason"]
    await group.commits({0: 100, 1: 350})
    later = usage(10, first=9000)
    await group.produce(later, partition=1)
    await group.commits({0: 100, 1: 360})
    worker.process.terminate()
    assert worker.process.wait() == 75
    (stopped,) = worker.events("worker.stopped")
    assert (stopped["level"], stopped["halted"]) == ("error", [f"{name}:0"])

    simulator.clear_faults()
    group.start(**settings)
    await group.settled()
    assert simulator.report()["keys"] == totals(conflicting + others + later)
    assert await group.dead_letters() == []
