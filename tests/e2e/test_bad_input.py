"""Records that are no usage: each is set aside with its reason, and its neighbours are exact."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tests.conftest import TopicFactory
from tests.support.kafka import admin, produce, read_all
from tests.support.simulator import Simulator
from tests.support.waiting import eventually
from tests.support.wire import Wire
from tests.support.workers import Group, produce_bare_record, totals, usage

GroupOf = Callable[..., Group]


@dataclass(frozen=True)
class Bad:
    """A value that is no usage event, the code of the reason, and what the sentence names."""

    value: bytes | None
    code: str
    named: str


def _item(**changed: str | None) -> bytes:
    """A usage event with members replaced by JSON text, or left out."""
    members = {"key": '"bad"', "accountId": '"bad"', "bits": "1", **changed}
    written = [f'"{name}":{text}' for name, text in members.items() if text is not None]
    return f"{{{','.join(written)}}}".encode()


BAD = (
    Bad(None, "tombstone", "no value"),
    Bad(b"", "invalid_json", "not JSON"),
    Bad(b"{", "invalid_json", "not JSON"),
    Bad(b"usage", "invalid_json", "not JSON"),
    Bad(_item() + b"{}", "invalid_json", "not JSON"),
    Bad(b"\xef\xbb\xbf" + _item(), "invalid_json", "not JSON"),
    Bad(_item(bits="NaN"), "invalid_json", "not JSON"),
    Bad(_item(metadata='{"a":NaN}'), "invalid_json", "not JSON"),
    Bad(_item(metadata='{"a":Infinity}'), "invalid_json", "not JSON"),
    Bad(_item(metadata='{"a":}'), "invalid_json", "not JSON"),
    Bad(_item(key='"\\ud800"'), "invalid_json", "not JSON"),
    Bad(_item().replace(b'"bad"', b'"\xff"', 1), "invalid_utf8", "byte"),
    Bad(_item(metadata='{"a":"?"}').replace(b"?", b"\xe9"), "invalid_utf8", "byte"),
    Bad(b"[]", "wrong_type", "object"),
    Bad(b"null", "wrong_type", "object"),
    Bad(b"42", "wrong_type", "object"),
    Bad(b"{}", "missing_member", "`key`"),
    Bad(_item(key=None), "missing_member", "`key`"),
    Bad(_item(accountId=None), "missing_member", "`accountId`"),
    Bad(_item(bits=None), "missing_member", "`bits`"),
    Bad(_item(key="null"), "wrong_type", "`key`"),
    Bad(_item(key="7"), "wrong_type", "`key`"),
    Bad(_item(accountId='["a"]'), "wrong_type", "`accountId`"),
    Bad(_item(key='""'), "empty_string", "`key`"),
    Bad(_item(accountId='""'), "empty_string", "`accountId`"),
    Bad(_item(bits="true"), "wrong_type", "`bits`"),
    Bad(_item(bits="null"), "wrong_type", "`bits`"),
    Bad(_item(bits='"1"'), "wrong_type", "`bits`"),
    Bad(_item(bits="1.5"), "wrong_type", "`bits`"),
    Bad(_item(bits="9223372036854775808"), "out_of_range", "`bits`"),
    Bad(_item(bits="-9223372036854775809"), "out_of_range", "`bits`"),
    Bad(_item(bits="1" * 400), "out_of_range", "`bits`"),
    Bad(_item(metadata='"text"'), "wrong_type", "`metadata`"),
    Bad(_item(metadata="[1]"), "wrong_type", "`metadata`"),
    Bad(_item(metadata="{}}"), "invalid_json", "not JSON"),
    Bad(_item(note='"x"'), "unknown_member", "`note`"),
    Bad(_item()[:-1] + b',"bits":2}', "duplicated_member", "`bits`"),
    Bad(_item()[:-1] + b',"b\\u0069ts":2}', "duplicated_member", "`bits`"),
    Bad(_item(metadata="{}")[:-1] + b',"metadata":{}}', "duplicated_member", "`metadata`"),
    Bad(_item(metadata='{"a":' * 200 + "1" + "}" * 200), "nesting_too_deep", "128"),
    Bad(_item(metadata="[" * 50_000 + "]" * 50_000), "nesting_too_deep", "128"),
    Bad(_item(metadata=f'{{"text":"{"x" * 300_000}"}}'), "item_too_large", "300063 bytes"),
)


async def test_every_kind_of_bad_record_among_good_ones(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """Each is in the dead-letter topic as it was, with reason and origin; all others are exact."""
    group = group_of(await topic())
    servers, (name,) = group.servers, group.topics
    events = usage(2 * len(BAD))
    headers = [("trace", b"\x00\xff"), ("trace", None), ("lang", b"\xc3\xa9")]
    where = []
    for number, bad in enumerate(BAD):
        await produce(servers, name, [events[2 * number]])
        (written,) = await produce(
            servers,
            name,
            [bad.value],
            key=f"key-{number}".encode(),
            headers=headers,
            timestamp_ms=1_700_000_000_000 + number,
        )
        where.append(written.offset)
        await produce(servers, name, [events[2 * number + 1]])
    worker = group.start(body_bytes_max="256 KiB", items_max="20")

    await group.settled()

    assert simulator.report()["keys"] == totals(events)
    letters = await group.dead_letters()
    letters.sort(key=lambda letter: letter.timestamp)  # batches write theirs beside each other
    assert len(letters) == len(BAD)
    for number, (bad, letter) in enumerate(zip(BAD, letters, strict=True)):
        assert letter.value == bad.value
        assert letter.key == f"key-{number}".encode()
        assert letter.timestamp == 1_700_000_000_000 + number
        assert list(letter.headers[:3]) == headers
        added = dict(letter.headers[3:])
        assert added.pop("ingester-error-code").decode() == bad.code
        assert bad.named in added.pop("ingester-error-detail").decode()
        assert datetime.fromisoformat(
            added.pop("ingester-dead-lettered-at").decode()
        ) <= datetime.now(UTC)
        assert added == {
            "ingester-source-topic": name.encode(),
            "ingester-source-partition": b"0",
            "ingester-source-offset": str(where[number]).encode(),
        }
    assert worker.process.exit_code is None
    assert "Traceback" not in worker.process.log()


async def test_a_record_without_key_and_value(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """A record of nothing at all is set aside like any other tombstone."""
    group = group_of(await topic())
    await group.produce(usage(1))
    await produce_bare_record(group.servers, group.topics[0])
    await group.produce(usage(1, first=1))
    group.start()

    await group.settled()

    assert simulator.report()["keys"] == totals(usage(2))
    (letter,) = await group.dead_letters()
    assert letter.key is None
    assert not letter.value
    headers = dict(letter.headers)
    assert headers["ingester-error-code"] == b"tombstone"
    assert headers["ingester-source-offset"] == b"1"


async def test_only_bad_records(group_of: GroupOf, topic: TopicFactory, wire: Wire) -> None:
    """Batches of which nothing is left are committed without a request to PacSpace."""
    group = group_of(await topic(), wire=wire)
    await produce(group.servers, group.topics[0], [b"nonsense"] * 250, partition=0)
    group.start()

    await group.settled()

    assert wire.writes == []
    assert [letter.value for letter in await group.dead_letters()] == [b"nonsense"] * 250


async def test_commits_nothing_past_a_dead_letter_that_cannot_be_written(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator
) -> None:
    """While the dead-letter topic refuses, the offset stays; once it takes them, all goes on."""
    name = await topic(2)
    letters = await topic(1, name=f"{name}.dead-letters", config={"max.message.bytes": "2000"})
    group = group_of(name)
    events, others = usage(60), usage(30, first=100)
    await group.produce(events[:30], partition=0)
    noise = "".join(f"{number:x}" for number in range(20_000)).encode()
    await produce(group.servers, name, [noise], partition=0)
    await group.produce(events[30:], partition=0)
    await group.produce(others, partition=1)
    worker = group.start(items_max="10")

    eventually(lambda: len(worker.events("dead_letters.retried")) >= 3)
    eventually(lambda: simulator.report()["keys"] == totals(events + others))
    await group.commits({0: 30, 1: 30})
    retried = worker.events("dead_letters.retried")[0]
    assert "raise its max.message.bytes" in retried["reason"]
    assert retried["level"] == "error"
    partitions = worker.status()["partitions"]
    assert letters in partitions[f"{name}:0"]["writeRefused"]
    assert partitions[f"{name}:1"]["writeRefused"] is None
    assert "ingester_partitions_write_refused 1.0" in worker.metrics()
    assert await read_all(group.servers, letters) == []

    async with admin(group.servers) as client:
        larger = {"max.message.bytes": "1000000"}
        await client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, letters, larger)])
    await group.settled()
    assert worker.status()["partitions"][f"{name}:0"]["writeRefused"] is None
    assert [letter.value for letter in await group.dead_letters()] == [noise]
    assert simulator.report()["keys"] == totals(events + others)


async def test_metadata_goes_through_character_by_character(
    group_of: GroupOf, topic: TopicFactory, wire: Wire
) -> None:
    """Large integers, decimals, exponents, order and repetitions in metadata stay as written."""
    metadatas = [
        '{"integer":123456789012345678901234567890,"small":-0}',
        '{"decimal":0.10000000000000000000000000001,"money":10.00}',
        '{"exponent":1E400,"tiny":1e-999,"plus":1e+05}',
        '{"b":1,"a":2,"b":3}',
        '{"text":"\\u00e9\\/\\n","raw":"é😀","nul":"\\u0000"}',
        '{"deep":' + "[" * 100 + "]" * 100 + "}",
        "{ }",
        '{ "spaces" : [ 1 , 2 ] }',
        '{"key":"k","accountId":"a","bits":1,"metadata":{}}',
    ]
    values = [_item(metadata=metadata) for metadata in metadatas]
    values += [
        _item(metadata="null"),
        _item(),
        _item(bits=str(2**63 - 1)),
        _item(bits=str(-(2**63))),
    ]
    values += [_item(key='"\\u00e9 \\ud83d\\ude00"', accountId='"\u00e9"')]
    group = group_of(await topic(), wire=wire)
    await produce(group.servers, group.topics[0], values, partition=0)
    group.start(linger_seconds="1")

    await group.settled()

    (write,) = wire.writes
    for metadata in metadatas:
        assert f'"metadata":{metadata}}}'.encode() in write.body
    items = json.loads(write.body)["items"]
    assert len(items) == len(values)
    plain = {"key": "bad", "accountId": "bad", "bits": 1}
    assert items[-5:-3] == [plain, plain]
    assert [item["bits"] for item in items[-3:-1]] == [2**63 - 1, -(2**63)]
    assert (items[-1]["key"], items[-1]["accountId"]) == ("é 😀", "é")


async def test_a_large_event(
    group_of: GroupOf, topic: TopicFactory, wire: Wire, simulator: Simulator
) -> None:
    """900 KiB of metadata fit the default request, and disturb nobody before or behind."""
    group = group_of(await topic(), wire=wire)
    events = usage(20)
    events[10]["metadata"] = {"text": "x" * 900 * 1024}
    await group.produce(events, partition=0)
    group.start()

    await group.settled()

    assert simulator.report()["keys"] == totals(events)
    sent = [item for write in wire.writes for item in json.loads(write.body)["items"]]
    assert sorted(sent, key=lambda item: item["bits"]) == events
    assert await group.dead_letters() == []


async def test_unknown_members_pass_where_the_setting_lets_them(
    group_of: GroupOf, topic: TopicFactory, wire: Wire
) -> None:
    """With INGESTER_UNKNOWN_MEMBERS=ignore an event counts, and its unknown members stay behind."""
    group = group_of(await topic(), wire=wire)
    await produce(group.servers, group.topics[0], [_item(note='"x"')])
    group.start(unknown_members="ignore")

    await group.settled()

    (write,) = wire.writes
    assert json.loads(write.body)["items"] == [{"key": "bad", "accountId": "bad", "bits": 1}]
    assert await group.dead_letters() == []


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
async def test_records_are_read_whatever_their_producers_compress_them_with(
    group_of: GroupOf, topic: TopicFactory, simulator: Simulator, codec: str
) -> None:
    """The codec is the producer's choice, and none of them halts a partition."""
    group = group_of(await topic())
    events = usage(50)
    async with AIOKafkaProducer(
        bootstrap_servers=group.servers, acks="all", compression_type=codec
    ) as producer:
        for event in events:
            await producer.send(group.topics[0], json.dumps(event).encode(), partition=0)
    worker = group.start()

    await group.settled()
    assert simulator.report()["keys"] == totals(events)
    assert worker.events("partition.halted") == []
