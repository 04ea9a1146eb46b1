from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from ingester.check import CheckResult, render_results, render_settings, run_checks
from ingester.config import Loaded, Settings, load
from ingester.core.delivery import Answer, AnswerLost, NothingSent, Response
from ingester.errors import IngesterError, RefusedError, UnavailableError
from ingester.kafka_admin import KafkaFacts

SECRET = "hunter2hunter2"
HEALTHY = KafkaFacts(
    brokers=("1 at kafka:9092",),
    unreachable_brokers={},
    partitions={"usage": 8, "usage.dead-letters": 8},
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
        assert partitions == 1
        assert config["retention.ms"] == "-1"
        if self.creation:
            raise self.creation
        return "created"

    def missing_topic(self, name: str) -> UnavailableError:
        return UnavailableError(f"No topic {name}. Create it.")


@dataclass
class Pacspace:
    """An endpoint whose one answer is given."""

    answer: Answer = UNKNOWN

    async def get(self, path: str) -> Answer:
        assert path.startswith("/api/v1/reads/bucket/")
        return self.answer


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

    assert kafka.asked == ["usage", "usage.dead-letters", "pacspace-ingester"]
    assert {subject: result.detail for subject, result in results.items()} == {
        "settings": "valid",
        "kafka": "broker 1 at kafka:9092",
        "topic usage": "8 partitions",
        "dead-letter topic usage.dead-letters": "8 partitions",
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
    """A usage topic that is missing fails the check; its dead-letter topic is not looked at."""
    facts = KafkaFacts(
        ("1",), {}, {"usage": None, "usage.dead-letters": None}, frozenset(), "empty"
    )

    results = await checked(Kafka(facts))

    assert results["topic usage"].exit_code == 69
    assert results["topic usage"].detail == "No topic usage. Create it."
    assert "dead-letter topic usage.dead-letters" not in results


async def test_a_missing_dead_letter_topic_is_the_workers_to_create() -> None:
    """Where the cluster would let the worker create the dead-letter topic, that is well."""
    facts = KafkaFacts(("1",), {}, {"usage": 8, "usage.dead-letters": None}, frozenset(), "empty")

    results = await checked(Kafka(facts))

    result = results["dead-letter topic usage.dead-letters"]
    assert result.status == "ok"
    assert result.detail == "does not exist yet; the worker creates it with 1 partition"


async def test_a_dead_letter_topic_that_cannot_be_created_is_a_failure() -> None:
    """Where the worker could not create the dead-letter topic, the check says so beforehand."""
    facts = KafkaFacts(("1",), {}, {"usage": 8, "usage.dead-letters": None}, frozenset(), "empty")

    results = await checked(Kafka(facts, RefusedError("Not permitted. Have it created.")))

    assert results["dead-letter topic usage.dead-letters"].exit_code == 77


async def test_a_shared_dead_letter_topic_is_checked_once() -> None:
    """One dead-letter topic for several usage topics has one result."""
    facts = KafkaFacts(("1",), {}, {"a": 3, "b": 12, "dead": None}, frozenset(), "empty")
    kafka = Kafka(facts)

    results = await checked(kafka, INGESTER_TOPIC="a,b", INGESTER_DEAD_LETTER_TOPIC="dead")

    assert kafka.asked == ["a", "b", "dead", "pacspace-ingester"]
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
    facts = KafkaFacts(
        ("1 at kafka:9092",),
        {"1 at kafka:9092": "The name does not resolve."},
        {"usage": 1, "usage.dead-letters": 1},
        frozenset(),
        "not known",
    )

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
