"""Whether Kafka, its topics and the group are as the worker needs them; looks only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from ingester.config import Settings
from ingester.errors import EXIT_OK, IngesterError, RefusedError, UnavailableError
from ingester.kafka.admin import KafkaFacts
from ingester.kafka.topics import (
    DEAD_LETTER_PARTITIONS,
    KEPT_TOPIC_CONFIG,
    dead_letter_bytes_max,
    flaws,
)

Status = Literal["ok", "warning", "failed"]


class KafkaProbe(Protocol):
    """What a check asks of Kafka; UnavailableError and RefusedError say what stood in the way."""

    async def describe(self, topics: Iterable[str], group_id: str) -> KafkaFacts: ...

    async def ensure_topic(
        self, name: str, partitions: int, config: Mapping[str, str], *, validate_only: bool
    ) -> Literal["created", "exists"]: ...

    async def topic_configs(
        self, topics: Iterable[str]
    ) -> Mapping[str, Mapping[str, str] | None]: ...

    def alter_command(self, name: str, config: Mapping[str, str]) -> str: ...

    def missing_topic(self, name: str) -> UnavailableError: ...


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What was looked at, what was found, and what to do when that is not as it should be."""

    subject: str
    status: Status
    detail: str
    remedy: str = ""
    exit_code: int = EXIT_OK


class _OwnTopic(NamedTuple):
    """A topic that the worker writes to."""

    name: str
    kind: str
    operations: str
    partitions: int
    record_bytes_max: int


async def check_kafka(settings: Settings, kafka: KafkaProbe) -> list[CheckResult]:
    """Check brokers, topics and group; one that fails does not keep another from its check."""
    topics = [
        *settings.topics,
        *map(settings.dead_letter_topic_for, settings.topics),
        *(map(settings.receipts_topic_for, settings.topics) if settings.receipts == "on" else ()),
    ]
    try:
        facts = await kafka.describe(dict.fromkeys(topics), settings.group_id)
        configs = await kafka.topic_configs(
            [name for name, width in facts.partitions.items() if width]
        )
    except IngesterError as error:
        return [_failed("kafka", error)]
    results = [CheckResult("kafka", "ok", f"broker {', '.join(facts.brokers)}")]
    for broker, reason in facts.unreachable_brokers.items():
        results.append(
            CheckResult(
                f"kafka broker {broker}",
                "failed",
                f"this advertised address does not work from here. {reason}",
                "Or correct advertised.listeners of the broker.",
                UnavailableError.exit_code,
            )
        )
    results += [_check_topic(topic, facts, kafka) for topic in settings.topics]
    for own in _own_topics(settings, facts, configs):
        results.append(await _check_own_topic(own, facts, configs, kafka))
    results.append(_check_group(settings.group_id, facts))
    return results


def _own_topics(
    settings: Settings, facts: KafkaFacts, configs: Mapping[str, Mapping[str, str] | None]
) -> Iterator[_OwnTopic]:
    """What the usage topics that exist need beside them, each once."""
    widths = {topic: facts.partitions.get(topic) or 0 for topic in settings.topics}
    existing = [topic for topic in settings.topics if widths[topic]]
    for name, topics in _grouped(existing, settings.dead_letter_topic_for).items():
        largest = dead_letter_bytes_max([configs.get(topic) for topic in topics])
        yield _OwnTopic(
            name, "dead-letter topic", "WRITE and DESCRIBE", DEAD_LETTER_PARTITIONS, largest
        )
    if settings.receipts == "on":
        for name, topics in _grouped(existing, settings.receipts_topic_for).items():
            width = max(widths[topic] for topic in topics)
            yield _OwnTopic(
                name,
                "receipts topic",
                "READ, WRITE and DESCRIBE",
                width,
                settings.body_bytes_max,  # a receipt names each key of its batch, and little else
            )


def _grouped(topics: Iterable[str], name_for: Callable[[str], str]) -> Mapping[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for topic in topics:
        groups.setdefault(name_for(topic), []).append(topic)
    return groups


def _check_topic(topic: str, facts: KafkaFacts, kafka: KafkaProbe) -> CheckResult:
    subject = f"topic {topic}"
    if topic in facts.refused_topics:
        return _not_permitted(subject, f"grant READ and DESCRIBE on the topic {topic}")
    partitions = facts.partitions[topic]
    if partitions is None:
        return _failed(subject, kafka.missing_topic(topic))
    return CheckResult(subject, "ok", _counted(partitions))


async def _check_own_topic(
    own: _OwnTopic,
    facts: KafkaFacts,
    configs: Mapping[str, Mapping[str, str] | None],
    kafka: KafkaProbe,
) -> CheckResult:
    name, subject = own.name, f"{own.kind} {own.name}"
    if name in facts.refused_topics:
        return _not_permitted(subject, f"grant {own.operations} on the topic {name}")
    existing = facts.partitions[name]
    if existing is None or existing < own.partitions:
        try:
            await kafka.ensure_topic(name, own.partitions, KEPT_TOPIC_CONFIG, validate_only=True)
        except IngesterError as error:
            return _failed(subject, error)
        width = _counted(own.partitions)
        if existing is None:
            detail = f"does not exist yet; the worker creates it with {width}"
            return CheckResult(subject, "ok", detail)
    counted = _counted(existing)
    if existing < own.partitions:
        counted += f"; the worker makes them {own.partitions}, one for each of the usage topic"
    config = configs.get(name)
    if config is None:
        return CheckResult(
            subject,
            "warning",
            f"{counted}; the login may not see its settings",
            f"Grant DESCRIBE_CONFIGS on the topic {name}, or see to it that it has"
            f" {_listed(KEPT_TOPIC_CONFIG)}.",
        )
    found = [*flaws(config, own.record_bytes_max)]
    if not found:
        return CheckResult(subject, "ok", counted)
    loses = any(flaw.loses for flaw in found)
    return CheckResult(
        subject,
        "failed" if loses else "warning",
        f"{counted}; " + "; ".join(flaw.text for flaw in found),
        "Unless that is meant so: " + kafka.alter_command(name, {f.name: f.value for f in found}),
        UnavailableError.exit_code if loses else EXIT_OK,
    )


def _check_group(group_id: str, facts: KafkaFacts) -> CheckResult:
    subject = f"group {group_id}"
    if facts.group is None:
        return _not_permitted(subject, f"grant READ and DESCRIBE on the group {group_id}")
    return CheckResult(subject, "ok", facts.group)


def _counted(partitions: int) -> str:
    return f"{partitions} partition{'s' if partitions > 1 else ''}"


def _failed(subject: str, error: IngesterError) -> CheckResult:
    return CheckResult(subject, "failed", str(error), exit_code=error.exit_code)


def _not_permitted(subject: str, remedy: str) -> CheckResult:
    return CheckResult(
        subject,
        "failed",
        "the login may not see it",
        f"Have the cluster's administrator {remedy}.",
        RefusedError.exit_code,
    )


def _listed(config: Mapping[str, str]) -> str:
    return ", ".join("=".join(item) for item in config.items())
