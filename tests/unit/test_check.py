from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest
from msgspec.structs import replace

from ingester.commands.check import CheckResult, render_results, render_settings, run_checks
from ingester.config import Loaded, Settings, load
from ingester.core.delivery import Answer, AnswerLost, NothingSent, Response
from ingester.errors import IngesterError, RefusedError, UnavailableError
from ingester.kafka.admin import KafkaFacts
from ingester.kafka.topics import KEPT_TOPIC_CONFIG

SECRET = "hunter2hunter2"
HEALTHY = KafkaFacts(
    brokers=("1 at kafka:9092",),
    unreachable_brokers={},
    partitions={"usage": 8, "usage.dead-letters": 8, "usage.receipts": 8},
    refused_topics=frozenset(),
    group="stable, 3 members",
)
UNKNOWN_BODY = b'{"statusCode":404,"error":"Not Found","message":"No record found for key: x"}'
UNKNOWN = Response(404, {}, UNKNOWN_BODY)
REFUSAL = b'{"statusCode":401,"error":"Unauthorized","message":"Invalid API key"}'


@dataclass
class Kafka:
    """A cluster whose facts are given; it answers as KafkaAdmin would."""

    facts: KafkaFacts | IngesterError = HEALTHY
    creation: IngesterError | None = None
    configs: Mapping[str, Mapping[str, str] | None] = field(default_factory=dict)
    # Of topics whose settings are not those of one that the worker made.
    asked: list[str] = field(default_factory=list)

    async def describe(self, topics: Iterable[str], group_id: str) -> KafkaFacts:
        self.asked = [*topics, group_id]
        if isinstance(self.facts, IngesterError):
            raise self.facts
        return self.facts

    async def ensure_topic(
        self, name: str, partitions: int, config: Mapping[str, str], *, validate_only: bool
    ) -> Literal["created", "exists"]:
        assert (name, validate_only) in [(topic, True) for topic in self.asked], "created something"
        assert partitions == (1 if "dead" in name else 8)
        assert config["retention.ms"] == "-1"
        if self.creation:
            raise self.creation
        return "created"

    async def topic_configs(self, topics: Iterable[str]) -> Mapping[str, Mapping[str, str] | None]:
        configs = {"usage": {"max.message.bytes": "1048588"}, **self.configs}
        return {topic: configs.get(topic, KEPT_TOPIC_CONFIG) for topic in topics}

    def alter_command(self, name: str, config: Mapping[str, str]) -> str:
        return f"alter {name} {' '.join('='.join(item) for item in config.items())}"

    def missing_topic(self, name: str) -> UnavailableError:
        return UnavailableError(f"No topic {name}. Create it.")


@dataclass
class Pacspace:
    """An endpoint whose one answer is given."""

    answer: Answer = UNKNOWN

    async def get(self, path: str) -> Answer:
        assert path.startswith("/api/v1/reads/bucket/")
        return self.answer


def facts_of(
    *, usage: int | None = 8, dead_letters: int | None = 1, receipts: int | None = 8
) -> KafkaFacts:
    """A cluster with topics of so many partitions."""
    names = ("usage", "usage.dead-letters", "usage.receipts")
    partitions = dict(zip(names, (usage, dead_letters, receipts), strict=True))
    return KafkaFacts(("1",), {}, partitions, frozenset(), "empty")


def loaded(**environ: str) -> Loaded[Settings]:
    required = {
        "INGESTER_KAFKA_BOOTSTRAP_SERVERS": "kafka:9092",
        "INGESTER_TOPIC": "usage",
        "INGESTER_PACSPACE_URL": "https://pacspace.example",
        "PACSPACE_API_KEY": f"pk_test_public.{SECRET}",
    }
    return load(Settings, environ={**required, **environ}, config_file=None)


async def checked(
    kafka: Kafka | None = None, pacspace: Pacspace | None = None, **environ: str
) -> dict[str, CheckResult]:
    results = await run_checks(loaded(**environ), kafka or Kafka(), pacspace or Pacspace())
    for result in results:
        if result.status == "failed":
            assert result.exit_code, f"{result} does not fail the command"
            assert result.remedy or "." in result.detail, f"{result} does not say what to do"
        else:
            assert not result.exit_code
    return {result.subject: result for result in results}


async def test_all_is_well() -> None:
    """With everything in place each part says what it found."""
    kafka = Kafka()

    results = await checked(kafka)

    assert kafka.asked == ["usage", "usage.dead-letters", "usage.receipts", "pacspace-ingester"]
    assert {subject: result.detail for subject, result in results.items()} == {
        "settings": "valid",
        "kafka": "broker 1 at kafka:9092",
        "topic usage": "8 partitions",
        "dead-letter topic usage.dead-letters": "8 partitions",
        "receipts topic usage.receipts": "8 partitions",
        "group pacspace-ingester": "stable, 3 members",
        "pacspace": "https://pacspace.example: the test key is accepted",
    }
    assert {result.status for result in results.values()} == {"ok"}


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(UnavailableError("No broker. Start one."), 69), (RefusedError("No login. Correct it."), 77)],
)
async def test_kafka_out_of_reach_is_one_failure(error: IngesterError, exit_code: int) -> None:
    """Without Kafka there is one failure in Kafka's words, and PacSpace is checked all the same."""
    results = await checked(Kafka(error))

    assert set(results) == {"settings", "kafka", "pacspace"}
    assert (results["kafka"].detail, results["kafka"].exit_code) == (str(error), exit_code)
    assert results["pacspace"].status == "ok"


async def test_a_missing_topic_comes_with_the_command_that_makes_it() -> None:
    """A usage topic that is missing fails the check; what it needs beside it is not looked at."""
    facts = facts_of(usage=None, dead_letters=None, receipts=None)

    results = await checked(Kafka(facts))

    assert results["topic usage"].exit_code == 69
    assert results["topic usage"].detail == "No topic usage. Create it."
    assert not {"dead-letter topic usage.dead-letters", "receipts topic usage.receipts"} & {
        *results
    }


async def test_what_is_missing_beside_the_topic_is_the_workers_to_create() -> None:
    """Where the cluster would let the worker create topics, or add partitions, that is well."""
    missing = await checked(Kafka(facts_of(dead_letters=None, receipts=None)))
    narrow = await checked(Kafka(facts_of(receipts=3)))

    details = {
        "dead-letter topic usage.dead-letters": "the worker creates it with 1 partition",
        "receipts topic usage.receipts": "the worker creates it with 8 partitions",
    }
    for subject, detail in details.items():
        assert missing[subject].status == "ok"
        assert missing[subject].detail == f"does not exist yet; {detail}"
    result = narrow["receipts topic usage.receipts"]
    assert result.status == "ok"
    assert result.detail == "3 partitions; the worker makes them 8, one for each of the usage topic"


async def test_what_cannot_be_created_is_a_failure() -> None:
    """Where the worker could not create topics, or add partitions, the check says so beforehand."""
    refusal = RefusedError("Not permitted. Have it created.")
    missing = await checked(Kafka(facts_of(dead_letters=None, receipts=None), refusal))
    narrow = await checked(Kafka(facts_of(receipts=3), refusal))

    assert missing["dead-letter topic usage.dead-letters"].exit_code == 77
    assert missing["receipts topic usage.receipts"].exit_code == 77
    assert narrow["receipts topic usage.receipts"].exit_code == 77


async def test_without_receipts_their_topic_is_not_looked_at() -> None:
    """With INGESTER_RECEIPTS=off nothing is asked or said of it."""
    kafka = Kafka()

    results = await checked(kafka, INGESTER_RECEIPTS="off")

    assert kafka.asked == ["usage", "usage.dead-letters", "pacspace-ingester"]
    assert not any("receipts" in subject for subject in results)


@pytest.mark.parametrize("topic", ["usage.dead-letters", "usage.receipts"])
@pytest.mark.parametrize(
    ("name", "value", "mended", "status"),
    [
        ("cleanup.policy", "compact", "delete", "failed"),
        ("cleanup.policy", "compact,delete", "delete", "failed"),
        ("retention.ms", "604800000", "-1", "warning"),
        ("retention.bytes", "1000000", "-1", "warning"),
    ],
)
async def test_a_topic_that_loses_its_records_comes_with_the_command_that_mends_it(
    topic: str, name: str, value: str, mended: str, status: str
) -> None:
    """What removes receipts or dead letters is told beforehand; compaction does at once."""
    configs = {topic: {**KEPT_TOPIC_CONFIG, name: value}}

    results = await checked(Kafka(configs=configs))

    (result,) = (each for each in results.values() if each.subject.endswith(topic))
    assert (result.status, result.exit_code) == (status, 69 if status == "failed" else 0)
    assert f"{name} is {value}" in result.detail
    assert f"alter {topic} {name}={mended}" in result.remedy


async def test_a_topic_that_takes_too_small_records_is_told() -> None:
    """A dead letter is larger than its record; a receipt may be as large as its batch."""
    configs = {
        "usage": {"max.message.bytes": "2000000"},
        "usage.dead-letters": {"max.message.bytes": "2000000"},
        "usage.receipts": {"max.message.bytes": "1000000"},
    }

    results = await checked(Kafka(configs=configs))

    dead_letters = results["dead-letter topic usage.dead-letters"]
    assert dead_letters.status == results["receipts topic usage.receipts"].status == "warning"
    assert "alter usage.dead-letters max.message.bytes=2008192" in dead_letters.remedy
    assert "max.message.bytes=1048576" in results["receipts topic usage.receipts"].remedy


async def test_settings_of_a_topic_that_are_hidden_are_a_warning() -> None:
    """What cannot be seen is not said to be well."""
    results = await checked(Kafka(configs={"usage.receipts": None}))

    result = results["receipts topic usage.receipts"]
    assert (result.status, result.detail) == (
        "warning",
        "8 partitions; the login may not see its settings",
    )
    assert "DESCRIBE_CONFIGS on the topic usage.receipts" in result.remedy


async def test_a_shared_topic_is_checked_once() -> None:
    """One dead-letter topic for several usage topics has one result, and so have receipts."""
    partitions = {"a": 3, "b": 8, "dead": None, "notes": None}
    kafka = Kafka(KafkaFacts(("1",), {}, partitions, frozenset(), "empty"))

    results = await checked(
        kafka,
        INGESTER_TOPIC="a,b",
        INGESTER_DEAD_LETTER_TOPIC="dead",
        INGESTER_RECEIPTS_TOPIC="notes",
    )

    assert kafka.asked == ["a", "b", "dead", "notes", "pacspace-ingester"]
    assert results["receipts topic notes"].detail.endswith("creates it with 8 partitions")
    assert results["dead-letter topic dead"].detail.endswith(
        "the worker creates it with 1 partition"
    )


async def test_what_the_login_may_not_see_is_named_with_the_permission() -> None:
    """Topics and groups that are hidden fail as refusals that name what is to be granted."""
    topics = frozenset({"usage", "usage.dead-letters"})

    results = await checked(Kafka(KafkaFacts(("1",), {}, {}, topics, None)))

    assert results["topic usage"].exit_code == 77
    assert "grant READ and DESCRIBE on the topic usage" in results["topic usage"].remedy
    assert results["group pacspace-ingester"].exit_code == 77
    assert "group pacspace-ingester" in results["group pacspace-ingester"].remedy


async def test_an_advertised_address_that_does_not_work_is_a_failure() -> None:
    """A broker that answers but names an address which does not work from here is told apart."""
    facts = replace(HEALTHY, unreachable_brokers={"1 at kafka:9092": "The name does not resolve."})

    result = (await checked(Kafka(facts)))["kafka broker 1 at kafka:9092"]

    assert result.exit_code == 69
    assert "advertised.listeners" in result.remedy


@pytest.mark.parametrize(
    ("answer", "status", "exit_code", "says"),
    [
        (UNKNOWN, "ok", 0, "the test key is accepted"),
        (Response(200, {}, b'{"statusCode":200,"data":{}}'), "ok", 0, "the test key is accepted"),
        (Response(401, {}, REFUSAL), "failed", 77, "HTTP 401, Invalid API key"),
        (Response(403, {}, b'{"error":{"code":"API_KEY_ENVIRONMENT_HOST_MISMATCH"}}'), "failed", 77,
         "API_KEY_ENVIRONMENT_HOST_MISMATCH"),
        (Response(402, {}, b""), "failed", 69, "nothing left to spend"),
        (Response(412, {}, b""), "failed", 69, "not set up"),
        (Response(429, {}, b""), "warning", 0, "fewer requests"),
        (Response(503, {}, b"<html>Maintenance</html>"), "failed", 69, "Maintenance"),
        (Response(404, {}, b"<html>no such page</html>"), "failed", 69, "other than PacSpace"),
        (Response(200, {}, b"<html>welcome</html>"), "failed", 69, "other than PacSpace"),
        (Response(200, {}, b"\xff"), "failed", 69, "other than PacSpace"),
        (Response(301, {}, b""), "failed", 69, "other than PacSpace"),
        (NothingSent("the name x does not resolve", "dns"), "failed", 69, "does not resolve"),
        (AnswerLost("no whole answer within 30 s"), "failed", 69, "within 30 s"),
    ],
)  # fmt: skip
async def test_each_answer_of_pacspace_has_a_verdict(
    answer: Answer, status: str, exit_code: int, says: str
) -> None:
    """Whatever PacSpace answers, the check says what it means, and names the URL."""
    result = (await checked(pacspace=Pacspace(answer)))["pacspace"]

    assert (result.status, result.exit_code) == (status, exit_code)
    assert says in result.detail
    assert result.detail.startswith("https://pacspace.example: ")


def test_the_settings_are_shown_with_their_origin_and_without_secrets() -> None:
    """Each setting has a line with its value, redacted where secret, and where it came from."""
    text = render_settings(loaded(INGESTER_ITEMS_MAX="7"))

    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert lines["INGESTER_ITEMS_MAX"] == ["7", "environment", "INGESTER_ITEMS_MAX"]
    assert lines["PACSPACE_API_KEY"][0] == "pk_test_public.***"
    assert lines["INGESTER_COALESCE"] == ["off", "default"]
    assert len(lines) == len(Settings.model_fields)
    assert SECRET not in text


def test_what_holds_where_nothing_is_set_is_shown() -> None:
    """The drain timeout and the dead-letter topics have values of their own when they are unset."""
    unset = render_settings(loaded(INGESTER_TOPIC="a,b"))
    chosen = render_settings(
        loaded(INGESTER_DRAIN_TIMEOUT_SECONDS="3", INGESTER_DEAD_LETTER_TOPIC="dead")
    )

    assert "  8 (four fifths of the session timeout)  default" in unset
    assert "  a.dead-letters,b.dead-letters " in unset
    assert "  a.receipts,b.receipts " in unset
    assert {"3", "dead"} <= {line.split()[1] for line in chosen.splitlines()}


def test_a_failure_is_rendered_with_what_to_do() -> None:
    """A result is a line, further lines and the remedy are indented below it."""
    failed = CheckResult("kafka", "failed", "one\ntwo", "Do this.", exit_code=69)

    text = render_results([CheckResult("settings", "ok", "valid"), failed])

    plain = text.replace("\x1b[32m", "").replace("\x1b[31m", "").replace("\x1b[0m", "")
    assert plain.splitlines() == [
        "",
        "ok       settings: valid",
        "failed   kafka: one",
        "         two",
        "         Do this.",
    ]
