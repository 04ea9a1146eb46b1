from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from ingester.commands.check import CheckResult, run_checks
from ingester.config import KafkaSettings, Settings, load
from ingester.errors import ConfigurationError, RefusedError, UnavailableError
from ingester.kafka.admin import KafkaAdmin
from ingester.kafka.topics import KEPT_TOPIC_CONFIG
from ingester.local_kafka import LocalKafka, free_ports
from ingester.pacspace import PacspaceClient
from tests.conftest import TopicFactory
from tests.support.kafka import admin
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.tls import SELF_SIGNED, server_context

TIMEOUT_SECONDS = 5.0
SECRET = "hunter2hunter2"


def asking(servers: str, **settings: Any) -> KafkaAdmin:
    known = {"kafka_bootstrap_servers": servers, "topic": "usage"}
    return KafkaAdmin(
        KafkaSettings.model_validate(known | settings), timeout_seconds=TIMEOUT_SECONDS
    )


def logged_in(user: str, password: str = SECRET, mechanism: str = "PLAIN") -> dict[str, str]:
    return {
        "kafka_security_protocol": "SASL_PLAINTEXT",
        "kafka_sasl_mechanism": mechanism,
        "kafka_sasl_username": user,
        "kafka_sasl_password": password,
    }


@asynccontextmanager
async def server(say: bytes | None, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Something that listens and is no broker: it answers with `say`, or with nothing at all."""
    waiting = asyncio.Event()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if say is not None:
            writer.write(say)
        await waiting.wait()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    try:
        yield "127.0.0.1:{1}".format(*listening.sockets[0].getsockname())
    finally:
        waiting.set()
        listening.close()
        await listening.wait_closed()


async def test_a_cluster_is_described(kafka: LocalKafka, topic: TopicFactory) -> None:
    """Topics are told with their partitions, missing ones as missing, an unknown group as such."""
    name = await topic(3)

    facts = await asking(kafka.bootstrap_servers).describe([name, "absent"], f"{name}-group")

    assert facts.partitions == {name: 3, "absent": None}
    assert facts.group == "does not exist yet"
    assert len(facts.brokers) == 1
    assert not facts.unreachable_brokers
    assert not facts.refused_topics


async def test_topics_are_counted(kafka: LocalKafka, topic: TopicFactory) -> None:
    """Each with its partitions; one that is missing, or has too few, lacks something."""
    name = await topic(3)
    asked = asking(kafka.bootstrap_servers)

    assert await asked.partition_counts([name, "absent"]) == {name: 3, "absent": 0}
    assert await asked.lacking({name: 3}) == []
    assert await asked.lacking({"absent": 1, name: 4}) == ["absent", name]


async def test_a_group_of_one_is_counted_in_the_singular(
    kafka: LocalKafka, topic: TopicFactory
) -> None:
    """A group is told with its state and how many members it has."""
    name = await topic(1)
    async with AIOKafkaConsumer(
        name, bootstrap_servers=kafka.bootstrap_servers, group_id=f"{name}-group"
    ) as consumer:
        await consumer.getmany(timeout_ms=0)

        facts = await asking(kafka.bootstrap_servers).describe([], f"{name}-group")

    assert facts.group == "stable, 1 member"


async def test_a_topic_is_created_once(kafka: LocalKafka) -> None:
    """A missing topic is created with its settings, given what partitions it lacks, or left."""
    name = f"check-{time.time_ns()}.dead-letters"
    asked = asking(kafka.bootstrap_servers)
    try:
        outcomes = [
            await asked.ensure_topic(name, 3, KEPT_TOPIC_CONFIG, validate_only=True),
            await asked.ensure_topic(name, 3, KEPT_TOPIC_CONFIG),
            await asked.ensure_topic(name, 2, {}),
            await asked.ensure_topic(name, 5, {}),
        ]
        partitions = (await asked.describe([name], "group")).partitions
        config = await _topic_config(kafka.bootstrap_servers, name)
    finally:
        async with admin(kafka.bootstrap_servers) as client:
            await client.delete_topics([name])

    assert outcomes == ["created", "created", "exists", "created"]
    assert partitions == {name: 5}
    assert KEPT_TOPIC_CONFIG.items() <= config.items()


class StrictAdmin(KafkaAdmin):
    """Of a cluster that takes no size of an index: here, because it is one that no broker takes."""

    requests = 0

    async def ensure_topic(
        self,
        name: str,
        partitions: int,
        config: Mapping[str, str],
        *,
        validate_only: bool = False,
    ) -> Literal["created", "exists"]:
        self.requests += 1
        sized = {each: "0" if each == "segment.index.bytes" else config[each] for each in config}
        return await super().ensure_topic(name, partitions, sized, validate_only=validate_only)


@pytest.mark.parametrize(("kind", "small"), [(KafkaAdmin, True), (StrictAdmin, False)])
async def test_a_topic_of_our_own_is_made_as_the_cluster_allows(
    kafka: LocalKafka, kind: type[KafkaAdmin], *, small: bool
) -> None:
    """With small indexes, or else with nothing but what keeps its records."""
    name = f"check-{time.time_ns()}.receipts"
    asked = kind(
        KafkaSettings(kafka_bootstrap_servers=(kafka.bootstrap_servers,), topic=("usage",)),
        timeout_seconds=TIMEOUT_SECONDS,
    )
    try:
        outcomes = [await asked.ensure_kept_topic(name, 3) for _ in range(2)]
        config = await _topic_config(kafka.bootstrap_servers, name)
    finally:
        async with admin(kafka.bootstrap_servers) as client:
            await client.delete_topics([name])

    assert outcomes == ["created", "exists"]
    assert KEPT_TOPIC_CONFIG.items() <= config.items()
    for setting in ("segment.index.bytes", "index.interval.bytes"):
        assert (config[setting] == "131072") == small


async def test_only_a_cluster_that_refuses_small_indexes_is_asked_for_large_ones() -> None:
    """One that does not answer is asked again later: a topic keeps what it was made with."""
    (port,) = free_ports(1)
    asked = StrictAdmin(
        KafkaSettings(kafka_bootstrap_servers=(f"127.0.0.1:{port}",), topic=("usage",)),
        timeout_seconds=TIMEOUT_SECONDS,
    )

    with pytest.raises(UnavailableError, match="refuses connections"):
        await asked.ensure_kept_topic("usage.receipts", 3)

    assert 1 == asked.requests


async def test_settings_of_topics_are_told(kafka: LocalKafka, topic: TopicFactory) -> None:
    """Those that a topic has from its brokers included; what does not exist is left out."""
    name = await topic(config={"cleanup.policy": "compact", "max.message.bytes": "2000000"})

    configs = await asking(kafka.bootstrap_servers).topic_configs([name, "absent"])

    assert list(configs) == [name]
    config = configs[name]
    assert config is not None
    assert (config["cleanup.policy"], config["max.message.bytes"]) == ("compact", "2000000")
    assert config["retention.bytes"] == "-1"


async def test_a_validation_creates_nothing(kafka: LocalKafka) -> None:
    """A topic whose creation was only validated does not exist afterwards."""
    asked = asking(kafka.bootstrap_servers)

    assert await asked.ensure_topic("only-asked", 1, {}, validate_only=True) == "created"

    assert (await asked.describe(["only-asked"], "group")).partitions == {"only-asked": None}


async def test_a_topic_that_kafka_refuses_comes_with_the_reason(kafka: LocalKafka) -> None:
    """The broker's own reason and the command for another attempt are in the error."""
    with pytest.raises(RefusedError, match=r"(?s)retention\.ms.*--topic bad --partitions 1"):
        await asking(kafka.bootstrap_servers).ensure_topic("bad", 1, {"retention.ms": "soon"})


async def test_one_server_that_answers_is_enough(kafka: LocalKafka) -> None:
    """A dead bootstrap server before a live one does not matter."""
    (port,) = free_ports(1)

    facts = await asking(f"127.0.0.1:{port},{kafka.bootstrap_servers}").describe([], "group")

    assert facts.brokers


async def test_nobody_listens() -> None:
    """A port where nobody listens is told as refused, for every server that was tried."""
    one, other = free_ports(2)

    with pytest.raises(UnavailableError) as failure:
        await asking(f"127.0.0.1:{one},127.0.0.1:{other}").describe([], "group")

    assert [f"Kafka at 127.0.0.1:{port} refuses connections." for port in (one, other)] == [
        line.partition(" Is ")[0] for line in str(failure.value).splitlines()
    ]


async def test_a_name_that_does_not_resolve() -> None:
    """A name that nobody knows is told as such."""
    with pytest.raises(UnavailableError, match=r"kafka\.invalid:9092: the name does not resolve"):
        await asking("kafka.invalid:9092").describe([], "group")


@pytest.mark.parametrize(
    ("say", "reason"),
    [
        (None, "did not answer in time"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "did not answer in time"),
        (b"\0\0\0\0", "did not answer in time|closed the connection"),
        (b"\0\0\0\4\0\0\0\1", "did not answer in time|closed the connection"),
    ],
    ids=["silent", "http", "empty frame", "cut frame"],
)
async def test_a_server_that_is_no_broker_is_left_in_time(
    say: bytes | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever listens there, the question ends within its timeout, in words and without noise."""
    started = time.monotonic()

    async with server(say) as address:
        with caplog.at_level(logging.DEBUG), pytest.raises(UnavailableError, match=reason):
            await asking(address).describe([], "group")

    assert time.monotonic() - started < TIMEOUT_SECONDS + 1
    assert [record for record in caplog.records if record.name.startswith("aiokafka")] == []


async def test_tls_where_there_is_none(kafka: LocalKafka) -> None:
    """A TLS client at a plain port is told to compare protocol and port."""
    with pytest.raises(UnavailableError, match="INGESTER_KAFKA_SECURITY_PROTOCOL"):
        await asking(kafka.bootstrap_servers, kafka_security_protocol="SSL").describe([], "group")


async def test_a_certificate_that_is_not_trusted() -> None:
    """A broker's certificate of an unknown authority is told with the setting that names one."""
    async with server(None, tls=server_context()) as address:
        with pytest.raises(UnavailableError, match="INGESTER_KAFKA_SSL_CA_FILE"):
            await asking(address, kafka_security_protocol="SSL").describe([], "group")


async def test_a_certificate_that_is_trusted_by_its_file() -> None:
    """With its authority named, the connection gets past TLS (to a server that is no broker)."""
    async with server(None, tls=server_context()) as address:
        trusting = asking(
            address, kafka_security_protocol="SSL", kafka_ssl_ca_file=str(SELF_SIGNED)
        )
        with pytest.raises(UnavailableError, match="did not answer in time"):
            await trusting.describe([], "group")


async def test_a_login_where_there_is_none(kafka: LocalKafka) -> None:
    """A login at a port that takes none is told as such."""
    with pytest.raises(UnavailableError, match="takes no logins"):
        await asking(kafka.bootstrap_servers, **logged_in("ingester")).describe([], "group")


def test_certificates_that_are_none() -> None:
    """A file that is no PEM file is a matter of the settings."""
    with pytest.raises(ConfigurationError, match="INGESTER_KAFKA_SSL_CA_FILE"):
        asking("kafka:9092", kafka_security_protocol="SSL", kafka_ssl_ca_file=__file__)


@pytest.fixture(scope="module")
def guarded(report: Callable[[str], None]) -> Iterator[tuple[str, str]]:
    """A broker with logins, permissions and automatic topic creation: its address, and one more
    whose advertised name resolves nowhere.
    """
    from tests.support.guarded_kafka import GuardedKafka  # noqa: PLC0415 - needs the engine's client

    report("starting a Kafka with logins in a container")
    with GuardedKafka(SECRET) as container:
        yield container.bootstrap_servers, container.misleading_servers


@pytest.mark.container
async def test_a_login_that_is_refused(guarded: tuple[str, str]) -> None:
    """A wrong password is a refusal that names the settings and not the password."""
    with pytest.raises(RefusedError, match="INGESTER_KAFKA_SASL_PASSWORD") as refusal:
        await asking(guarded[0], **logged_in("reader", "wrong-password")).describe([], "group")

    assert "wrong-password" not in str(refusal.value)


@pytest.mark.container
async def test_a_login_of_a_kind_that_the_broker_does_not_take(guarded: tuple[str, str]) -> None:
    """A mechanism that the broker has not enabled is a refusal that names it."""
    with pytest.raises(RefusedError, match=r"by SCRAM-SHA-256\. .*INGESTER_KAFKA_SASL_MECHANISM"):
        await asking(guarded[0], **logged_in("reader", SECRET, "SCRAM-SHA-256")).describe([], "g")


@pytest.mark.container
async def test_a_port_that_asks_for_a_login(guarded: tuple[str, str]) -> None:
    """Without a login, a broker that asks for one is told as a matter of the protocol."""
    with pytest.raises(UnavailableError, match="INGESTER_KAFKA_SECURITY_PROTOCOL"):
        await asking(guarded[0]).describe([], "group")


@pytest.mark.container
async def test_what_a_login_may_not_see(guarded: tuple[str, str]) -> None:
    """Topics and groups that are hidden from a login are told apart from missing ones."""
    await asking(guarded[0], **logged_in("admin")).ensure_topic("hidden", 1, {})

    asked = asking(guarded[0], **logged_in("reader"))
    facts = await asked.describe(["hidden"], "group")

    assert facts.refused_topics == {"hidden"}
    assert facts.group is None
    with pytest.raises(RefusedError, match="grant READ and DESCRIBE on it"):
        await asked.partition_counts(["hidden"])


@pytest.mark.container
async def test_a_topic_that_a_login_may_not_create(guarded: tuple[str, str]) -> None:
    """A creation that is not permitted is a refusal with the command for somebody who may."""
    command = (
        f"kafka-topics.sh --bootstrap-server {guarded[0]} --create --topic usage.dead-letters "
        "--partitions 8 --config retention.ms=-1"
    )

    for validate_only in (True, False):
        with pytest.raises(RefusedError) as refusal:
            await asking(guarded[0], **logged_in("reader")).ensure_topic(
                "usage.dead-letters", 8, {"retention.ms": "-1"}, validate_only=validate_only
            )
        assert command in str(refusal.value)


@pytest.mark.container
async def test_asking_creates_nothing(guarded: tuple[str, str]) -> None:
    """Where brokers create topics by themselves, a question about one still does not."""
    asked = asking(guarded[0], **logged_in("admin"))

    for _ in range(2):
        assert (await asked.describe(["asked-about"], "group")).partitions == {"asked-about": None}


@pytest.mark.container
async def test_an_advertised_name_that_does_not_resolve(guarded: tuple[str, str]) -> None:
    """A broker that can be reached and then sends clients elsewhere is told with that address."""
    facts = await asking(guarded[1]).describe([], "group")

    ((broker, reason),) = facts.unreachable_brokers.items()
    assert broker == "1 at nowhere.invalid:9096"
    assert "the name does not resolve" in reason


async def test_all_parts_together(
    kafka: LocalKafka, topic: TopicFactory, simulator: Simulator
) -> None:
    """Against a real Kafka and PacSpace's stand-in every part is well."""
    name = await topic(2)

    results = await _checked(kafka, name, simulator.url, "pk_test_public.secret")

    assert {result.status for result in results} == {"ok"}
    assert results[-1].detail.endswith("the test key is accepted")


async def test_a_receipts_topic_that_is_compacted_fails(
    kafka: LocalKafka, topic: TopicFactory, simulator: Simulator
) -> None:
    """Of a real topic, with the command that mends it."""
    name = await topic(2)
    await topic(2, name=f"{name}.receipts", config={"cleanup.policy": "compact"})

    results = await _checked(kafka, name, simulator.url, "pk_test_public.secret")

    (failed,) = (result for result in results if result.status == "failed")
    assert failed.subject == f"receipts topic {name}.receipts"
    assert failed.exit_code == 69
    assert f"kafka-configs.sh --bootstrap-server {kafka.bootstrap_servers}" in failed.remedy
    assert f"--topic {name}.receipts --add-config cleanup.policy=delete" in failed.remedy


@pytest.mark.parametrize(
    ("status", "exit_code"), [(401, 77), (402, 69), (403, 77), (412, 69), (429, 0), (503, 69)]
)
async def test_a_real_refusal_has_its_verdict(
    kafka: LocalKafka, topic: TopicFactory, simulator: Simulator, status: int, exit_code: int
) -> None:
    """A refusal over HTTP comes through the client to the verdict that its status has."""
    simulator.add_faults(
        {"match": {"path": "/api/v1/reads"}, "effect": {"kind": "answer", "status": status}}
    )

    result = (await _checked(kafka, await topic(), simulator.url, "pk_test_public.secret"))[-1]

    assert (result.subject, result.exit_code) == ("pacspace", exit_code)
    assert f"HTTP {status}" in result.detail


async def test_what_keeps_a_request_from_leaving(kafka: LocalKafka, topic: TopicFactory) -> None:
    """Names, refused connections and TLS are told apart by what to do about them."""
    name = await topic()
    (port,) = free_ports(1)
    remedies: dict[str, str] = {}
    async with (
        server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as plain,
        server(None, tls=server_context()) as untrusted,
    ):
        for kind, url in {
            "name": "https://pacspace.invalid",
            "refused": f"http://127.0.0.1:{port}",
            "tls": f"https://{plain}",
            "certificate": f"https://{untrusted}",
        }.items():
            result = (await _checked(kafka, name, url, "pk_test_public.secret"))[-1]
            assert (result.status, result.exit_code) == ("failed", 69)
            remedies[kind] = result.remedy

    assert "name service" in remedies["name"]
    assert "Is it running there" in remedies["refused"]
    assert "Does that port speak TLS" in remedies["tls"]
    assert "SSL_CERT_FILE" in remedies["certificate"]


async def test_the_command(
    kafka: LocalKafka, topic: TopicFactory, simulator: Simulator, ingesters: Ingesters
) -> None:
    """`ingester check` ends with 0 when all is well, and its JSON has everything but secrets, each
    value with its type.
    """
    name = await topic()
    settings = {
        "INGESTER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "INGESTER_TOPIC": name,
        **simulator.settings(),
        "PACSPACE_API_KEY": f"pk_test_public.{SECRET}",
    }

    text = await asyncio.to_thread(ingesters.run, "check", settings=settings)
    document = await asyncio.to_thread(ingesters.run, "check", "--json", settings=settings)

    assert (text.returncode, text.stderr) == (0, "")
    assert f"ok       topic {name}: 1 partition\n" in text.stdout
    assert (document.returncode, document.stderr) == (0, "")
    said = json.loads(document.stdout)
    assert said["exit_code"] == 0
    shown = said["settings"]
    assert shown["INGESTER_TOPIC"] == {"value": [name], "origin": "environment INGESTER_TOPIC"}
    assert shown["INGESTER_DRAIN_TIMEOUT_SECONDS"] == {
        "value": None,
        "effective": 8,
        "origin": "default",
    }
    assert shown["INGESTER_DEAD_LETTER_TOPIC"]["effective"] == {name: f"{name}.dead-letters"}
    assert {
        "INGESTER_BODY_BYTES_MAX": 2**20,
        "INGESTER_LINGER_SECONDS": 0.05,
        "INGESTER_KAFKA_SASL_USERNAME": None,
        "INGESTER_HTTP_LISTEN": "127.0.0.1:8080",
        "PACSPACE_API_KEY": "pk_test_public.***",
    }.items() <= {name: each["value"] for name, each in shown.items()}.items()
    assert {each["status"] for each in said["checks"]} == {"ok"}
    assert SECRET not in text.stdout + document.stdout


def test_the_command_without_its_surroundings(ingesters: Ingesters) -> None:
    """Nothing in reach ends with 69, wrong settings with 78, either way without a traceback."""
    one, other = free_ports(2)
    settings = {
        "INGESTER_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{one}",
        "INGESTER_TOPIC": "usage",
        "INGESTER_PACSPACE_URL": f"http://127.0.0.1:{other}",
        "PACSPACE_API_KEY": f"pk_test_public.{SECRET}",
    }

    nothing = ingesters.run("check", settings=settings)
    wrong = ingesters.run("check", settings={**settings, "INGESTER_TOPICS": "usage"})

    assert (nothing.returncode, wrong.returncode) == (69, 78)
    assert "did you mean INGESTER_TOPIC?" in wrong.stdout
    for run in (nothing, wrong):
        assert run.stderr == ""
        assert "Traceback" not in run.stdout
        assert SECRET not in run.stdout


async def _checked(kafka: LocalKafka, topic: str, url: str, key: str) -> list[CheckResult]:
    environ = {
        "INGESTER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "INGESTER_TOPIC": topic,
        "INGESTER_PACSPACE_URL": url,
        "PACSPACE_API_KEY": key,
    }
    loaded = load(Settings, environ=environ, config_file=None)
    asked = KafkaAdmin(loaded.settings, timeout_seconds=TIMEOUT_SECONDS)
    async with PacspaceClient(url, key) as pacspace:
        return await run_checks(loaded, asked, pacspace)


async def _topic_config(servers: str, name: str) -> dict[str, str]:
    client: AIOKafkaAdminClient
    async with admin(servers) as client:
        (answer,) = await client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
    ((_, _, _, _, entries),) = answer.resources
    return {entry[0]: entry[1] for entry in entries}
