"""Questions to a Kafka cluster and topics made in it; never a record read or written.

Works on single connections rather than on aiokafka's admin client: that one creates the topics it
is asked about, retries in the background, and only logs why a broker could not be reached.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol

from aiokafka import errors as kafka_errors
from aiokafka.conn import create_conn
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.protocol.admin import (
    CreatePartitionsRequest,
    CreateTopicsRequest,
    DescribeGroupsRequest,
)
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.metadata import MetadataRequest

from ingester.core.messages import Commit
from ingester.core.record import TopicPartition
from ingester.errors import ConfigurationError, IngesterError, RefusedError, UnavailableError
from ingester.option import Address, parse_address
from ingester.settings import KafkaSettings

ADMIN_TIMEOUT_SECONDS: Final = 10.0  # for one question of a command or of a start
REQUEST_TIMEOUT_SECONDS: Final = 40  # the broker's own waits (replication: 30 s) end before
RETRY_BACKOFF_SECONDS: Final = 0.1
METADATA_AGE_SECONDS_MAX: Final = 60  # new partitions are read within a minute
CONNECTION_IDLE_SECONDS_MAX: Final = 540  # below connections.max.idle.ms of brokers, ten minutes
CLIENT_ID: Final = "pacspace-ingester"
BROKER_DEFAULT: Final = -1  # as the replication factor of a new topic
USAGE_PARTITIONS_ADVISED: Final = 8  # as many workers at most share a topic

# A dead letter is money until somebody has looked at it: it never expires. And it is larger than
# the record it holds, by its headers.
DEAD_LETTER_TOPIC_CONFIG: Final = MappingProxyType(
    {"cleanup.policy": "delete", "retention.ms": "-1", "max.message.bytes": str(16 * 1024 * 1024)}
)
DEAD_LETTER_PARTITIONS: Final = 1  # dead letters are few, and read by people

_GROUP = 0  # the coordinator type, as against transactions
# The first group ever makes the broker create the topic of the offsets.
_COORDINATOR_COMING = {
    kafka_errors.GroupCoordinatorNotAvailableError.errno,
    kafka_errors.GroupLoadInProgressError.errno,
    kafka_errors.NotCoordinatorForGroupError.errno,
}
_THERE: Final[Mapping[int, Literal["created", "exists"]]] = {
    kafka_errors.NoError.errno: "created",
    kafka_errors.TopicAlreadyExistsError.errno: "exists",
}
_NOT_PERMITTED = {
    kafka_errors.TopicAuthorizationFailedError.errno,
    kafka_errors.ClusterAuthorizationFailedError.errno,
    kafka_errors.PolicyViolationError.errno,
}
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


def _is_wanted(_: logging.LogRecord) -> bool:
    return not _quiet.get()


# What goes wrong here is raised, in words; aiokafka would log it as well, with tracebacks.
logging.getLogger("aiokafka.conn").addFilter(_is_wanted)


class _Connection(Protocol):
    def send(self, request: object) -> Awaitable[Any]: ...
    def close(self) -> object: ...


_create_connection: Callable[..., Awaitable[_Connection]] = create_conn


@dataclass(frozen=True, slots=True)
class KafkaFacts:
    """What a cluster said about itself, some topics and a group."""

    brokers: tuple[str, ...]
    unreachable_brokers: Mapping[str, str]
    """Brokers whose advertised address does not work from here, each with the reason."""
    partitions: Mapping[str, int | None]
    """Number of partitions by topic, None where it is missing; only topics that may be seen."""
    refused_topics: frozenset[str]
    group: str | None
    """State and members of the group; None when it may not be read."""


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """What consumer, producer and admin client have in common; ConfigurationError for a bad PEM."""
    password = settings.kafka_sasl_password
    return {
        "bootstrap_servers": list(settings.kafka_bootstrap_servers),
        "client_id": CLIENT_ID,
        "request_timeout_ms": REQUEST_TIMEOUT_SECONDS * 1000,
        "retry_backoff_ms": int(RETRY_BACKOFF_SECONDS * 1000),
        "metadata_max_age_ms": METADATA_AGE_SECONDS_MAX * 1000,
        "connections_max_idle_ms": CONNECTION_IDLE_SECONDS_MAX * 1000,
        "security_protocol": settings.kafka_security_protocol,
        "ssl_context": _ssl_context(settings),
        "sasl_mechanism": settings.kafka_sasl_mechanism,
        "sasl_plain_username": settings.kafka_sasl_username,
        "sasl_plain_password": password.get_secret_value() if password else None,
    }


class KafkaAdmin:
    """Asks a cluster and makes topics; every call ends within the timeout, whatever happens."""

    def __init__(self, settings: KafkaSettings, *, timeout_seconds: float) -> None:
        options = client_options(settings)
        self._connection_options = {
            name: options[name]
            for name in options
            if name.startswith(("sasl_", "security_", "ssl_", "client_"))
        } | {"request_timeout_ms": int(timeout_seconds * 1000), "max_idle_ms": None}
        self._servers = settings.kafka_bootstrap_servers
        self._mechanism = settings.kafka_sasl_mechanism
        self._timeout_seconds = timeout_seconds
        # So that with all servers but the last one dead there is time left for the questions.
        self._connect_timeout_seconds = timeout_seconds / (len(self._servers) + 2)

    async def describe(self, topics: Iterable[str], group_id: str) -> KafkaFacts:
        """Look at the cluster without changing it, not even by automatic topic creation."""
        async with self._session() as connection:
            metadata = await connection.send(MetadataRequest(sorted(topics), False))
            addresses = {node: Address(host, port) for node, host, port, *_ in metadata.brokers}
            brokers = tuple(f"{node} at {address}" for node, address in addresses.items())
            reasons = await asyncio.gather(*map(self._why_unreachable, addresses.values()))
            unreachable = {
                broker: reason
                for broker, reason in zip(brokers, reasons, strict=True)
                if reason is not None
            }
            group = (
                "not known while a broker is out of reach"
                if unreachable
                else await self._describe_group(connection, group_id)
            )
        found = {topic: (error, partitions) for error, topic, _, partitions in metadata.topics}
        refused = frozenset(topic for topic in found if found[topic][0] in _NOT_PERMITTED)
        return KafkaFacts(
            brokers=brokers,
            unreachable_brokers=unreachable,
            partitions={
                topic: len(partitions) or None
                for topic, (_, partitions) in found.items()
                if topic not in refused
            },
            refused_topics=refused,
            group=group,
        )

    async def committed_offsets(self, group_id: str) -> Mapping[TopicPartition, Commit]:
        """What a group has committed, with its metadata; empty when it has committed nothing."""
        async with self._session() as connection:
            error, response = await self._ask_coordinator(
                connection,
                group_id,
                OffsetFetchRequest(group_id, None),
                lambda each: each.error_code,
            )
            if error:
                raise kafka_errors.for_code(error)(f"the offsets of {group_id} cannot be read")
        return {
            TopicPartition(topic, partition): Commit(next_offset, metadata or "")
            for topic, partitions in response.topics
            for partition, next_offset, metadata, _ in partitions
        }

    async def owners(self, group_id: str) -> Mapping[TopicPartition, str]:
        """The host of the member that has each partition now; empty when the group has none."""
        return {
            TopicPartition(*partition): host.removeprefix("/")
            for _, _, host, _, assignment in await self._members(group_id)
            if assignment  # none yet while the group is being rebalanced
            for partition in ConsumerProtocolMemberAssignment.decode(assignment).partitions()
        }

    async def ensure_topic(
        self,
        name: str,
        partitions: int,
        config: Mapping[str, str],
        *,
        validate_only: bool = False,
    ) -> Literal["created", "exists"]:
        """Create a topic, or the partitions it lacks; RefusedError carries the command for others.

        On return the brokers know the topic. With `validate_only` nothing is created, and "created"
        means that it would have been.
        """
        async with self._session() as connection:
            metadata = await connection.send(MetadataRequest([name], False))
            there = _partitions_of(metadata, name)
            if there >= partitions:
                return "exists"
            timeout_ms = int(self._timeout_seconds * 1000)
            topic: Any = (name, partitions, BROKER_DEFAULT, [], list(config.items()))
            grown: Any = (name, (partitions, None))
            request: Any = (
                CreatePartitionsRequest([grown], timeout_ms, validate_only)
                if there
                else CreateTopicsRequest([topic], timeout_ms, validate_only)
            )
            controller = next(
                (broker for broker in metadata.brokers if broker[0] == metadata.controller_id),
                metadata.brokers[0],
            )
            async with self._connected(Address(controller[1], controller[2])) as other:
                response = await other.send(request)
            _, error, reason = response.topic_errors[0]
            if error in _THERE:
                while not validate_only and _partitions_of(metadata, name) < partitions:
                    await asyncio.sleep(RETRY_BACKOFF_SECONDS)
                    metadata = await connection.send(MetadataRequest([name], False))
                return _THERE[error]
        kind = RefusedError if error in _NOT_PERMITTED else UnavailableError
        raise kind(
            f"Kafka did not create the topic {name}: "
            f"{reason or kafka_errors.for_code(error).__name__}. Have it created:\n"
            f"  {self.create_command(name, partitions, config)}"
        )

    def create_command(self, name: str, partitions: int, config: Mapping[str, str]) -> str:
        """What somebody with the permission types to create a topic."""
        words = ["kafka-topics.sh", "--bootstrap-server", ",".join(self._servers), "--create"]
        words += ["--topic", name, "--partitions", str(partitions)]
        for item in config.items():
            words += ["--config", "=".join(item)]
        return shlex.join(words)

    def missing_topic(self, name: str, *, named_by: str = "INGESTER_TOPIC") -> UnavailableError:
        """What to raise about a usage topic that is missing; `named_by` is where it was named."""
        command = self.create_command(name, USAGE_PARTITIONS_ADVISED, {})
        return UnavailableError(
            f"Kafka at {', '.join(self._servers)} has no topic {name}: correct {named_by}, or"
            f" create it: {command}"
        )

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[_Connection]:
        """A connection to the first bootstrap server that works, and words for what fails."""
        token = _quiet.set(True)
        asked = ", ".join(self._servers)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                asked, connection = await self._first_connection()
                try:
                    yield connection
                finally:
                    connection.close()
        except (OSError, kafka_errors.KafkaError) as error:
            raise self._explained(error, asked) from error
        finally:
            _quiet.reset(token)

    async def _first_connection(self) -> tuple[str, _Connection]:
        failures: list[IngesterError] = []
        for server in self._servers:
            try:
                return server, await self._connect(parse_address(server))
            except (OSError, kafka_errors.KafkaError) as error:
                failures.append(self._explained(error, server))
        refused = any(isinstance(failure, RefusedError) for failure in failures)
        kind = RefusedError if refused else UnavailableError
        raise kind("\n".join(map(str, failures)))

    async def _connect(self, address: Address) -> _Connection:
        async with asyncio.timeout(self._connect_timeout_seconds):
            return await _create_connection(*address, **self._connection_options)

    @asynccontextmanager
    async def _connected(self, address: Address) -> AsyncIterator[_Connection]:
        """A connection to a broker that another one named, and words for what fails."""
        try:
            connection = await self._connect(address)
            try:
                yield connection
            finally:
                connection.close()
        except (OSError, kafka_errors.KafkaError) as error:
            raise self._explained(error, str(address)) from error

    async def _why_unreachable(self, address: Address) -> str | None:
        try:
            async with self._connected(address):
                return None
        except IngesterError as error:
            return str(error)

    async def _describe_group(self, connection: _Connection, group_id: str) -> str | None:
        error, response = await self._ask_coordinator(
            connection, group_id, DescribeGroupsRequest([group_id]), _group_error
        )
        if error == kafka_errors.GroupAuthorizationFailedError.errno:
            return None
        if error:
            raise kafka_errors.for_code(error)(f"the group {group_id} cannot be described")
        _, _, state, _, _, members, *_ = response.groups[0]
        if state == "Dead":
            return "does not exist yet"
        return f"{state.lower()}, {len(members)} member{'' if len(members) == 1 else 's'}"

    async def member_hosts(self, group_id: str) -> Mapping[str, str]:
        """The host of each member of a group, by the id that the coordinator gave it."""
        members = await self._members(group_id)
        return {member_id: host.removeprefix("/") for member_id, _, host, *_ in members}

    async def _members(self, group_id: str) -> Any:
        async with self._session() as connection:
            error, response = await self._ask_coordinator(
                connection, group_id, DescribeGroupsRequest([group_id]), _group_error
            )
            if error:
                raise kafka_errors.for_code(error)(f"the group {group_id} cannot be described")
        return response.groups[0][5]

    async def _ask_coordinator(
        self, connection: _Connection, group_id: str, request: Any, error_of: Callable[[Any], int]
    ) -> tuple[int, Any]:
        """The group's own broker's answer, as soon as there is such a broker, and its error."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_seconds / 2
        # From then on one that is out of reach is not waited for: saying which takes time as well.
        while True:  # ended by the session's timeout
            response = await connection.send(FindCoordinatorRequest(group_id, _GROUP))
            error = response.error_code
            if not error:
                try:
                    async with self._connected(
                        Address(response.host, response.port)
                    ) as coordinator:
                        response = await coordinator.send(request)
                    error = error_of(response)
                except UnavailableError:
                    # The others name a broker that has gone until they miss it.
                    if loop.time() > deadline:
                        raise
                    error = kafka_errors.GroupCoordinatorNotAvailableError.errno
            if error not in _COORDINATOR_COMING:
                return error, response
            await asyncio.sleep(RETRY_BACKOFF_SECONDS)

    def _explained(self, error: BaseException, server: str) -> IngesterError:
        """What a failed connection means, and what to do about it."""
        where = f"Kafka at {server}"
        match error:
            case socket.gaierror():
                return UnavailableError(
                    f"{where}: the name does not resolve. Correct INGESTER_KAFKA_BOOTSTRAP_SERVERS "
                    "or the name service."
                )
            case ConnectionRefusedError():
                return UnavailableError(
                    f"{where} refuses connections. Is a broker running there, on that port?"
                )
            case ssl.SSLCertVerificationError():
                return UnavailableError(
                    f"{where} shows a certificate that is not trusted ({error.verify_message}). "
                    "Name its authority in INGESTER_KAFKA_SSL_CA_FILE."
                )
            case ssl.SSLError():
                return UnavailableError(
                    f"{where} does not agree on TLS ({error.reason}). Does that port speak "
                    "INGESTER_KAFKA_SECURITY_PROTOCOL?"
                )
            case TimeoutError():
                return UnavailableError(
                    f"{where} did not answer in time. Is there a firewall between, or a TLS port "
                    "behind a PLAINTEXT setting?"
                )
            case kafka_errors.SaslAuthenticationFailed() | kafka_errors.AuthenticationFailedError():
                return RefusedError(
                    f"{where} refuses the login. Check INGESTER_KAFKA_SASL_USERNAME, "
                    "INGESTER_KAFKA_SASL_PASSWORD and INGESTER_KAFKA_SASL_MECHANISM."
                )
            case kafka_errors.GroupAuthorizationFailedError():
                return RefusedError(
                    f"{where}: the login may not see the group ({error}). Have the cluster's "
                    "administrator grant READ and DESCRIBE on it."
                )
            case kafka_errors.UnsupportedSaslMechanismError():
                return RefusedError(
                    f"{where} does not take logins by {self._mechanism}. Choose another "
                    "INGESTER_KAFKA_SASL_MECHANISM."
                )
            case kafka_errors.IllegalSaslStateError():
                return UnavailableError(
                    f"{where} takes no logins. Does that port speak "
                    "INGESTER_KAFKA_SECURITY_PROTOCOL?"
                )
            case kafka_errors.KafkaConnectionError() | ConnectionError():
                return UnavailableError(
                    f"{where} closed the connection. Has the broker just gone, or does that port "
                    "not speak INGESTER_KAFKA_SECURITY_PROTOCOL?"
                )
            case _:
                return UnavailableError(
                    f"{where}: {str(error) or type(error).__name__}. Try again."
                )


def _group_error(response: Any) -> int:
    error: int = response.groups[0][0]
    return error


def _partitions_of(metadata: Any, name: str) -> int:
    """Number of partitions, 0 where the topic is missing."""
    return next(
        (len(found) for error, topic, _, found in metadata.topics if topic == name and not error), 0
    )


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    if not settings.kafka_security_protocol.endswith("SSL"):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ssl_ca_file)
        if settings.kafka_ssl_certificate_file:
            # An empty password: OpenSSL would ask the terminal for that of an encrypted key.
            context.load_cert_chain(
                settings.kafka_ssl_certificate_file, settings.kafka_ssl_key_file, password=""
            )
    except OSError as error:  # includes ssl.SSLError
        raise ConfigurationError(
            f"the certificates for Kafka cannot be used: {error}. INGESTER_KAFKA_SSL_CA_FILE, "
            "..._CERTIFICATE_FILE and ..._KEY_FILE name PEM files, the key without a password."
        ) from error
    return context
