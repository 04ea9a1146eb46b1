"""What one bad item does to its neighbours, played from outside: S2.

The command as it is installed, a real Kafka, and an HTTP server that was written against the API's
documentation alone. It ignores Idempotency-Keys where nothing is killed: an item that goes out
again after it was counted is counted twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from tests.conftest import TopicFactory
from tests.support import ledger_fixtures
from tests.support.kafka import produce, read_all
from tests.support.ledger_server import (
    Answer,
    LedgerServer,
    Reaction,
    Refuse,
    Write,
    coded_error,
    error,
)
from tests.support.waiting import eventually
from tests.support.workers import Event, Group, totals, usage

GroupOf = Callable[..., Group]
ledger = pytest.fixture(ledger_fixtures.ledger)
group_of = pytest.fixture(ledger_fixtures.group_of)

CLOSED = "the account is closed"
REFUSALS = {
    "400": error(400, [f"items.0.accountId: {CLOSED}", "items rejected"], error="Bad Request"),
    "422": coded_error(422, "ACCOUNT_CLOSED", CLOSED),
}


def refusing(answer: Answer) -> Refuse:
    """The API refuses every write that holds something for the poisoned account."""

    def refuse(item: Mapping[str, Any]) -> Answer | None:
        return answer if item["accountId"] == "poison" else None

    return refuse


def poisoned(events: list[Event], *indices: int) -> list[Event]:
    """Give these events to the poisoned account, and return the others."""
    for index in indices:
        events[index]["accountId"] = "poison"
    return [event for event in events if event["accountId"] != "poison"]


def times_counted(ledger: LedgerServer) -> Counter[int]:
    """How often each event was counted, by its number."""
    return Counter(item["metadata"]["number"] for write in ledger.counted for item in write.items)


@pytest.mark.parametrize("status", REFUSALS)
async def test_s2_one_poisoned_item_among_a_hundred(
    group_of: GroupOf, topic: TopicFactory, ledger: LedgerServer, status: str
) -> None:
    """S2: exactly that one becomes a dead letter, as it was and with the answer; 99 count once."""
    ledger.refuse = refusing(REFUSALS[status])
    ledger.honours_keys = False
    group = group_of(await topic())
    name = group.topics[0]
    events = usage(100)
    others = poisoned(events, 41)
    headers = [("trace", b"\x00\xff"), ("trace", b"")]
    await group.produce(events[:41], partition=0)
    await produce(
        group.servers,
        name,
        [events[41]],
        partition=0,
        key=b"poisoned",
        headers=headers,
        timestamp_ms=1_700_000_000_041,
    )
    await group.produce(events[42:], partition=0)
    worker = group.start(linger_seconds="1")

    await group.settled()

    assert ledger.sums() == totals(others)
    assert times_counted(ledger) == {number: 1 for number in range(100) if number != 41}
    (letter,) = await group.dead_letters()
    assert (letter.key, json.loads(letter.value)) == (b"poisoned", events[41])
    assert letter.timestamp == 1_700_000_000_041
    assert list(letter.headers[:2]) == headers
    added = dict(letter.headers[2:])
    assert CLOSED in added.pop("ingester-error-detail").decode()
    assert datetime.fromisoformat(added.pop("ingester-dead-lettered-at").decode()) <= datetime.now(
        UTC
    )
    assert added == {
        "ingester-error-code": b"refused",
        "ingester-http-status": status.encode(),
        "ingester-http-body": REFUSALS[status].body,
        "ingester-source-topic": name.encode(),
        "ingester-source-partition": b"0",
        "ingester-source-offset": b"41",
    }
    assert worker.events("partition.halted") == []
    # Seven halvings lead from a hundred items to one, with two requests each.
    assert len(ledger.writes[0].items) == 100
    assert len(ledger.writes) <= 1 + 2 * 7
    receipts = await read_all(group.servers, f"{name}.receipts")
    documents = [msgspec.json.decode(receipt.value) for receipt in receipts]
    assert sum(document["items"] for document in documents) == 99
    assert sum(document["deadLetters"] for document in documents) == 1
    assert sum(document["bits"] for document in documents) == sum(each["bits"] for each in others)


@pytest.mark.parametrize("status", REFUSALS)
async def test_s2_poison_in_every_place(
    group_of: GroupOf, topic: TopicFactory, ledger: LedgerServer, status: str
) -> None:
    """S2: first, last, two apart, two neighbours, or all of a batch: these, and no others."""
    places = [(20,), (39,), (22, 37), (29, 30), range(20, 40), ()]
    ledger.refuse = refusing(REFUSALS[status])
    ledger.honours_keys = False
    group = group_of(await topic(len(places)))
    others: list[Event] = []
    for partition, indices in enumerate(places):
        here = usage(100, first=1000 * partition)
        others += poisoned(here, *indices)
        await group.produce(here, partition=partition)
    worker = group.start(items_max="20", linger_seconds="1")

    await group.settled()

    assert ledger.sums() == totals(others)
    assert times_counted(ledger) == {each["metadata"]["number"]: 1 for each in others}
    letters = [dict(letter.headers) for letter in await group.dead_letters()]
    origins = Counter(
        (int(letter["ingester-source-partition"]), int(letter["ingester-source-offset"]))
        for letter in letters
    )
    assert origins == {
        (partition, offset): 1 for partition, offsets in enumerate(places) for offset in offsets
    }
    assert {letter["ingester-http-status"] for letter in letters} == {status.encode()}
    assert {letter["ingester-error-code"] for letter in letters} == {b"refused"}
    assert worker.events("partition.halted") == []


async def test_s2_more_items_than_the_endpoint_takes(
    group_of: GroupOf, topic: TopicFactory, ledger: LedgerServer
) -> None:
    """S2: a 413 for the number of items splits batches: no dead letter, and all count once."""
    ledger.items_max = 30
    ledger.honours_keys = False
    group = group_of(await topic(2))
    events = usage(1000)
    await group.produce(events)
    worker = group.start()

    await group.settled()

    assert 413 in {write.status for write in ledger.writes}
    assert ledger.sums() == totals(events)
    assert set(times_counted(ledger).values()) == {1}
    assert await group.dead_letters() == []
    assert worker.events("partition.halted") == []


async def test_s2_more_bytes_than_the_endpoint_takes(
    group_of: GroupOf, topic: TopicFactory, ledger: LedgerServer
) -> None:
    """S2: a 413 for the size splits batches; the one item that is alone too large is set aside."""
    ledger.body_bytes_max = 8000
    ledger.honours_keys = False
    group = group_of(await topic())
    events = usage(300)
    for event in events:
        event["metadata"]["text"] = "x" * 100
    large = events[150]
    large["metadata"]["text"] = "x" * 8000
    await group.produce(events, partition=0)
    worker = group.start(linger_seconds="1")

    await group.settled()

    assert ledger.sums() == totals(event for event in events if event is not large)
    assert times_counted(ledger) == {number: 1 for number in range(300) if number != 150}
    (letter,) = await group.dead_letters()
    assert json.loads(letter.value) == large
    added = dict(letter.headers)
    assert added["ingester-error-code"] == b"refused"
    assert added["ingester-http-status"] == b"413"
    assert b"413 Request Entity Too Large" in added["ingester-http-body"]
    assert added["ingester-source-offset"] == b"150"
    assert worker.events("partition.halted") == []


@pytest.mark.parametrize("mended", [True, False])
async def test_s2_killed_while_a_batch_is_taken_apart(
    group_of: GroupOf, topic: TopicFactory, ledger: LedgerServer, mended: bool
) -> None:
    """S2: parts that were counted before a kill are not counted again with the whole.

    Not even when the endpoint, by the time the successor comes, would take what it refused.
    """

    async def slow(_: Write) -> Reaction:
        return Reaction(delay_seconds=0.3)

    ledger.react = slow
    ledger.refuse = refusing(REFUSALS["400"])
    group = group_of(await topic())
    events = usage(100)
    others = poisoned(events, 99)
    await group.produce(events, partition=0)
    settings = {
        "linger_seconds": "1",
        "session_timeout_seconds": "2",
        "request_timeout_seconds": "3",
        "connect_timeout_seconds": "1",
    }
    worker = group.start(**settings)
    eventually(lambda: ledger.items_count > 0)
    worker.process.kill()
    assert 0 < ledger.items_count < len(others)
    ledger.react = None
    if mended:
        ledger.refuse = None

    group.start(**settings)
    await group.settled()

    assert ledger.sums() == totals(events if mended else others)
    assert set(times_counted(ledger).values()) == {1}
    letters = [json.loads(letter.value) for letter in await group.dead_letters()]
    assert letters == ([] if mended else [events[99]])
