"""Single connections to a cluster, and words for what fails on the way to one.

aiokafka's own clients retry in the background, and only log why a broker could not be reached.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final, Protocol

from aiokafka import errors as kafka_errors
from aiokafka.conn import create_conn

from ingester.errors import ConfigurationError, IngesterError, RefusedError, UnavailableError
from ingester.option import Address, parse_address
from ingester.settings import KafkaSettings

REQUEST_TIMEOUT_SECONDS: Final = 40  # the broker's own waits (replication: 30 s) end before
RETRY_BACKOFF_SECONDS: Final = 0.1
METADATA_AGE_SECONDS_MAX: Final = 60  # new partitions are read within a minute
CONNECTION_IDLE_SECONDS_MAX: Final = 540  # below connections.max.idle.ms of brokers, ten minutes
CLIENT_ID: Final = "pacspace-ingester"

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


def _is_wanted(_: logging.LogRecord) -> bool:
    return not _quiet.get()


# What goes wrong here is raised, in words; aiokafka would log it as well, with tracebacks.
logging.getLogger("aiokafka.conn").addFilter(_is_wanted)


class Connection(Protocol):
    def send(self, request: object) -> Awaitable[Any]: ...
    def close(self) -> object: ...


_create_connection: Callable[..., Awaitable[Connection]] = create_conn


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


class Connections:
    """Makes connections to a cluster's brokers."""

    def __init__(self, settings: KafkaSettings, timeout_seconds: float) -> None:
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

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Connection]:
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

    async def _first_connection(self) -> tuple[str, Connection]:
        failures: list[IngesterError] = []
        for server in self._servers:
            try:
                return server, await self._connect(parse_address(server))
            except (OSError, kafka_errors.KafkaError) as error:
                failures.append(self._explained(error, server))
        refused = any(isinstance(failure, RefusedError) for failure in failures)
        kind = RefusedError if refused else UnavailableError
        raise kind("\n".join(map(str, failures)))

    async def _connect(self, address: Address) -> Connection:
        async with asyncio.timeout(self._connect_timeout_seconds):
            return await _create_connection(*address, **self._connection_options)

    @asynccontextmanager
    async def connected(self, address: Address) -> AsyncIterator[Connection]:
        """A connection to a broker that another one named, and words for what fails."""
        try:
            connection = await self._connect(address)
            try:
                yield connection
            finally:
                connection.close()
        except (OSError, kafka_errors.KafkaError) as error:
            raise self._explained(error, str(address)) from error

    async def why_unreachable(self, address: Address) -> str | None:
        """Say why a broker that another one named cannot be reached, if it cannot."""
        try:
            async with self.connected(address):
                return None
        except IngesterError as error:
            return str(error)

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
