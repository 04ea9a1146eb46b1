"""A write counts only by the body of its answer: whatever else comes back, it is sent again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from tests.conftest import TopicFactory
from tests.support.simulator import Simulator
from tests.support.waiting import eventually, eventually_async
from tests.support.wire import PassOn, Wire, Write
from tests.support.workers import Group, totals, usage

GroupOf = Callable[..., Group]
PENDING = {
    "code": "IDEMPOTENCY_PENDING",
    "retryAfterSeconds": 0,
    "message": "A request with this Idempotency-Key is still being processed.",
}


def accepted(data: Any) -> bytes:
    return json.dumps({"statusCode": 202, "data": data}).encode()


NO_ACKNOWLEDGEMENTS = (
    (202, accepted({"itemCount": 30}), "without a batch id"),
    (202, accepted({"batchId": " ", "itemCount": 30}), "without a batch id"),
    (202, accepted({"batchId": 7, "itemCount": 30}), "without a batch id"),
    (202, accepted({"batchId": "b", "itemCount": 29}), "itemCount is 29, 30 were sent"),
    (202, accepted({"batchId": "b", "itemCount": "30"}), "itemCount is '30'"),
    (202, accepted(["b"]), "without an acknowledgement"),
    (200, b"", "an empty body"),
    (200, b"<html>Welcome</html>", "not PacSpace's envelope"),
    (202, json.dumps(PENDING).encode(), "IDEMPOTENCY_PENDING"),
)


async def test_a_success_without_an_acknowledgement_commits_nothing(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, wire: Wire
) -> None:
    """The same bytes go out under the same key until a real acknowledgement; then totals agree."""

    async def apply_and_spoil(_: Write, pass_on: PassOn) -> web.Response:
        await pass_on()
        status, body, _ = NO_ACKNOWLEDGEMENTS[(len(wire.writes) - 1) % len(NO_ACKNOWLEDGEMENTS)]
        return web.Response(status=status, body=body)

    wire.intercept = apply_and_spoil
    group = group_of(await topic(), wire=wire)
    events = usage(30)
    await group.produce(events, partition=0)
    worker = group.start(linger_seconds="0.5", backoff_seconds_max="0.1")

    async def all_were_met() -> bool:
        return len(worker.events("batch.in_doubt")) >= len(NO_ACKNOWLEDGEMENTS)

    await eventually_async(all_were_met)
    assert await group.committed() == {}
    assert len({(write.idempotency_key, write.body) for write in wire.writes}) == 1
    for said, (_, _, reason) in zip(worker.events("batch.in_doubt"), NO_ACKNOWLEDGEMENTS):  # noqa: B905 -- attempts go on
        assert reason in said["reason"]

    wire.intercept = None
    await group.settled()
    assert simulator.report()["keys"] == totals(events)


async def test_waits_as_long_as_a_pending_write_asks(
    group_of: GroupOf, topic: TopicFactory, wire: Wire
) -> None:
    """After IDEMPOTENCY_PENDING the write is sent again once `retryAfterSeconds` have passed."""

    async def pending_once(_: Write, pass_on: PassOn) -> web.Response:
        if len(wire.writes) > 1:
            return await pass_on()
        return web.json_response({**PENDING, "retryAfterSeconds": 1.5}, status=202)

    wire.intercept = pending_once
    group = group_of(await topic(), wire=wire)
    await group.produce(usage(10), partition=0)
    group.start()

    await group.settled()

    first, second = wire.writes
    assert first.answered_seconds is not None
    assert second.arrived_seconds >= first.answered_seconds + 1.5
    assert second.idempotency_key == first.idempotency_key


async def test_a_write_still_in_progress_is_not_counted_twice(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """A write that outlives its request is asked for under its key until its answer is there."""
    slow = {"match": {"method": "POST", "count": 1}, "latency_seconds": 2.5}
    simulator.add_faults(slow)
    group = group_of(await topic())
    events = usage(10)
    await group.produce(events, partition=0)
    worker = group.start(request_timeout_seconds="0.5", connect_timeout_seconds="0.4")

    await group.settled()

    reasons = [each["reason"] for each in worker.events("batch.in_doubt")]
    assert "no whole answer within 0.5 s" in reasons[0]
    assert any("IDEMPOTENCY_PENDING" in reason for reason in reasons)
    report = simulator.report()
    assert report["keys"] == totals(events)
    assert report["replayed"] == 1


async def test_a_connection_that_breaks_leaves_the_write_in_doubt(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """Whether or not the write was applied before the break, it is counted once in the end."""
    breaks = ("drop", "lose", "cut_body")
    simulator.add_faults(
        *({"match": {"method": "POST", "count": 2}, "effect": {"kind": kind}} for kind in breaks),
        {"match": {"method": "POST"}, "effect": {"kind": "drop"}},
    )
    group = group_of(await topic())
    events = usage(30)
    await group.produce(events, partition=0)
    worker = group.start()

    eventually(lambda: simulator.report()["requests"].get("cut", 0) > 2 * len(breaks))
    assert await group.committed() == {}
    assert worker.events("batch.acknowledged") == []

    simulator.clear_faults()
    await group.settled()
    assert simulator.report()["keys"] == totals(events)
    assert worker.events("batch.deferred") == []


async def test_either_spelling_of_the_id_acknowledges(
    group_of: GroupOf, topic: TopicFactory, wire: Wire
) -> None:
    """`requestId`, as newer answers spell it, is as good as `batchId`."""

    async def spelt_anew(write: Write, _: PassOn) -> web.Response:
        count = len(json.loads(write.body)["items"])
        data = {"requestId": "req_1", "itemCount": count}
        return web.json_response({"statusCode": 202, "data": data}, status=202)

    wire.intercept = spelt_anew
    group = group_of(await topic(), wire=wire)
    await group.produce(usage(10), partition=0)
    worker = group.start()

    await group.settled()

    assert [each["batch_id"] for each in worker.events("batch.acknowledged")] == ["req_1"]
