"""The settings: what there is, within which bounds, and what cannot be had together.

A name belongs to one group and repeats none of it; a command loads the groups that it needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import ByteSize, Field, FilePath, SecretStr

from ingester.option import (
    KIB,
    MIB,
    TOPIC_NAME_LENGTH_MAX,
    Address,
    ApiKey,
    BaseUrl,
    Count,
    Listen,
    Lower,
    Members,
    Number,
    Seconds,
    Server,
    Size,
    TopicName,
    Upper,
    reach,
)
from ingester.setting_group import Contradiction, Group

SANDBOX_HOST: Final = "api-sandbox-wnizuypena-uw.a.run.app"  # answers live keys with 403


class KafkaSettings(Group):
    """How to reach the brokers, and which topics are meant."""

    kafka_bootstrap_servers: Annotated[tuple[Server, ...], Members, Field(min_length=1)] = Field(
        description="Brokers to start from, as HOST:PORT, comma separated."
    )
    kafka_security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], Upper
    ] = Field("PLAINTEXT", description="How to talk to the brokers.")
    kafka_sasl_mechanism: Annotated[Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], Upper] = (
        Field("PLAIN", description="How to log in where the protocol is a SASL one.")
    )
    kafka_sasl_username: str | None = Field(None, description="User of the SASL login.")
    kafka_sasl_password: SecretStr | None = Field(None, description="Password of the SASL login.")
    kafka_ssl_ca_file: FilePath | None = Field(
        None, description="PEM file of the authorities to trust; unset means the system's."
    )
    kafka_ssl_certificate_file: FilePath | None = Field(
        None, description="PEM file of the client certificate, where brokers ask for one."
    )
    kafka_ssl_key_file: FilePath | None = Field(
        None, description="PEM file of the certificate's key, unless it is in the same file."
    )
    topic: Annotated[tuple[TopicName, ...], Members, Field(min_length=1)] = Field(
        description="Topics of usage events, comma separated."
    )

    @property
    def topics(self) -> tuple[str, ...]:
        """The usage topics, each once, in the order given."""
        return self.topic

    def contradictions(self) -> Iterator[Contradiction]:
        """Adds logins and certificates that the protocol lacks or has no use for."""
        yield from super().contradictions()
        credentials = (self.kafka_sasl_username, self.kafka_sasl_password)
        if self.kafka_security_protocol.startswith("SASL_"):
            if not all(credentials):
                yield Contradiction(
                    "sasl_without_credentials",
                    "{kafka_security_protocol} needs both {kafka_sasl_username} and "
                    "{kafka_sasl_password}",
                )
        elif any(credentials):
            yield Contradiction(
                "credentials_without_sasl",
                "{kafka_sasl_username} and {kafka_sasl_password} are not used by "
                "{kafka_security_protocol}: choose a SASL protocol, or drop them",
            )
        files = (self.kafka_ssl_ca_file, self.kafka_ssl_certificate_file, self.kafka_ssl_key_file)
        if any(files) and not self.kafka_security_protocol.endswith("SSL"):
            yield Contradiction(
                "tls_files_without_tls",
                "{kafka_ssl_ca_file}, {kafka_ssl_certificate_file} and {kafka_ssl_key_file} are "
                "not used by {kafka_security_protocol}: choose SSL or SASL_SSL, or drop them",
            )
        if self.kafka_ssl_key_file and not self.kafka_ssl_certificate_file:
            yield Contradiction(
                "tls_key_without_certificate",
                "{kafka_ssl_key_file} needs {kafka_ssl_certificate_file}",
            )


class PacspaceSettings(Group):
    """How to reach PacSpace."""

    pacspace_url: BaseUrl = Field(description="Base URL of PacSpace, without a path.")
    pacspace_api_key: ApiKey = Field(description="API key, `pk_{live,test}_PUBLIC.SECRET`.")
    # A connection takes milliseconds; after two minutes the operating system itself gives up.
    connect_timeout_seconds: Seconds = Field(
        5, ge=0.1, le=120, description="Longest wait for a connection, TLS included."
    )
    # Load balancers cut a request after ten minutes at the latest.
    request_timeout_seconds: Seconds = Field(
        30, ge=0.1, le=600, description="Longest wait for the answer to a request."
    )
    # One socket each, and 1,024 is the usual limit of open files.
    requests_in_flight_max: Count = Field(
        32,
        ge=1,
        le=512,
        description="Requests that a worker may have open at once; it has fewer while the endpoint"
        " bears no more.",
    )

    @property
    def pacspace_host(self) -> str:
        """The host of the base URL, in lower case, without brackets and port."""
        return urlsplit(self.pacspace_url).hostname or ""

    @property
    def pacspace_environment(self) -> Literal["live", "test"]:
        """The environment that the key is for."""
        live = self.pacspace_api_key.get_secret_value().startswith("pk_live_")
        return "live" if live else "test"

    def contradictions(self) -> Iterator[Contradiction]:
        """Adds timeouts that cross, and keys that must not go to the host."""
        yield from super().contradictions()
        if self.request_timeout_seconds <= self.connect_timeout_seconds:
            yield Contradiction(
                "request_timeout_not_above_connect_timeout",
                "{request_timeout_seconds} must be above {connect_timeout_seconds}",
            )
        live = self.pacspace_environment == "live"
        if live and self.pacspace_host == SANDBOX_HOST:
            yield Contradiction(
                "live_key_on_sandbox_host",
                "{pacspace_url} refuses live keys: use a pk_test_ key or the production URL",
            )
        distance = reach(self.pacspace_host)
        if self.pacspace_url.startswith("http:") and (
            distance == "public" or (live and distance == "private")
        ):
            yield Contradiction(
                "secret_over_plain_http",
                "{pacspace_api_key} would cross the network in clear text to {pacspace_url}: use "
                "https (http is for loopback, and with a test key for private hosts)",
            )


class EventSettings(Group):
    """What counts as a usage event."""

    unknown_members: Annotated[Literal["refuse", "ignore"], Lower] = Field(
        "refuse", description="What to do about members of an event that PacSpace does not know."
    )
    # Room for an item with metadata; proxies do not commonly take more than 64 MiB.
    body_bytes_max: Size = Field(
        ByteSize(MIB), ge=4 * KIB, le=64 * MIB, description="Size that fills a batch."
    )


class LedgerSettings(KafkaSettings):
    """Where a group keeps what it has settled, what it could not, and what is in doubt."""

    group_id: str = Field(
        "pacspace-ingester", min_length=1, max_length=255, description="Kafka's consumer group."
    )
    receipts: Annotated[Literal["on", "off"], Lower] = Field(
        "on",
        description="Whether each settled batch leaves a receipt; without, nothing can be explained"
        " afterwards, and a successor sends again what was acknowledged and not yet committed.",
    )
    receipts_topic: TopicName | None = Field(
        None,
        description="Topic of the receipts; unset means `<topic>.receipts` for each topic.",
    )
    dead_letter_topic: TopicName | None = Field(
        None,
        description="Topic of the records that cannot be settled; unset means "
        "`<topic>.dead-letters` for each topic.",
    )

    def receipts_topic_for(self, topic: str) -> str:
        """Where the receipts of a usage topic's batches go."""
        return self.receipts_topic or f"{topic}.receipts"

    def dead_letter_topic_for(self, topic: str) -> str:
        """Where the records of a usage topic go that cannot be settled."""
        return self.dead_letter_topic or f"{topic}.dead-letters"

    def contradictions(self) -> Iterator[Contradiction]:
        """Adds dead letters and receipts that would be read as usage."""
        yield from super().contradictions()
        dead_letter_topics = {self.dead_letter_topic_for(topic) for topic in self.topics}
        if dead_letter_topics & set(self.topics):
            yield Contradiction(
                "dead_letter_topic_is_a_source",
                "dead letters would be read again for ever: {topic} and {dead_letter_topic} must "
                "differ",
            )
        receipts_topics = {self.receipts_topic_for(topic) for topic in self.topics}
        if receipts_topics & (set(self.topics) | dead_letter_topics):
            yield Contradiction(
                "receipts_topic_is_another_topic",
                "{receipts_topic} must be neither {topic} nor {dead_letter_topic}",
            )
        if max(map(len, dead_letter_topics)) > TOPIC_NAME_LENGTH_MAX:
            yield Contradiction(
                "dead_letter_topic_name_too_long",
                f"{{topic}} leaves no room for .dead-letters within {TOPIC_NAME_LENGTH_MAX} "
                "characters: name a {dead_letter_topic}",
            )


class HealthSettings(Group):
    """Where a worker says how it is."""

    http_listen: Listen = Field(
        Address("127.0.0.1", 8080),
        description="Where health and metrics are served, as HOST:PORT, or `off`.",
    )
    # Longer than a rebalance and a few backoffs take; beyond a day nobody is told in time.
    stall_seconds: Seconds = Field(
        60,
        ge=1,
        le=86400,
        description="How long a partition may be behind and not move before that is an error in the"
        " log.",
    )


class Settings(PacspaceSettings, LedgerSettings, EventSettings, HealthSettings):
    """Everything that the worker runs by."""

    group_instance_id: TopicName | None = Field(
        None, description="Name of this worker for static membership, unique in its group."
    )
    # The broker's own limits are 6 s (which it can lower) and 30 min.
    session_timeout_seconds: Seconds = Field(
        10, ge=1, le=1800, description="Silence after which the group takes a worker's partitions."
    )
    # Below a second every hiccup is a rebalance; a day is a stuck worker by any measure.
    poll_interval_seconds_max: Seconds = Field(
        300, ge=1, le=86400, description="Longest time between two polls of a worker that is well."
    )
    # A fetch below 64 KiB spends more on requests than on records; sizes are 32 bits on the wire.
    fetch_bytes_max: Size = Field(
        ByteSize(16 * MIB), ge=64 * KIB, le=1024 * MIB, description="Most to fetch at once."
    )
    partition_fetch_bytes_max: Size = Field(
        ByteSize(MIB), ge=16 * KIB, le=1024 * MIB, description="Most to fetch of one partition."
    )
    # PacSpace's own client sends at most 100; 10,000 small items fill the default body.
    items_max: Count = Field(100, ge=1, le=10_000, description="Items that fill a batch.")
    # Zero sends what is there; an hour is as late as usage is still news.
    linger_seconds: Seconds = Field(
        0.05, ge=0, le=3600, description="Longest wait of an item for its batch to fill."
    )
    # One a minute is a trickle for tests of patience; a million is no limit.
    requests_per_second_max: Number | None = Field(
        None,
        ge=1 / 60,
        le=1_000_000,
        description="Requests that a worker may start in a second; unset means any number.",
    )
    # Below a millisecond it is no wait; beyond an hour nobody sees that it has recovered.
    backoff_seconds_min: Seconds = Field(
        0.1, ge=0.001, le=3600, description="First wait before a request is sent again."
    )
    backoff_seconds_max: Seconds = Field(
        30, ge=0.001, le=3600, description="Longest wait before a request is sent again."
    )
    # Room for two small batches; beyond 64 GiB it is no bound. The default is room for 1,100 of the
    # usual batches of 14 KiB, which take twice that in memory.
    buffer_bytes_max: Size = Field(
        ByteSize(16 * MIB),
        ge=64 * KIB,
        le=64 * 1024 * MIB,
        description="Size of the records in memory above which partitions pause.",
    )
    # A commit is a replicated write of the coordinator: at most a hundred a second and worker.
    commit_interval_seconds: Seconds = Field(
        0.1, ge=0.01, le=60, description="Shortest time between two commits of offsets."
    )
    # Bounded by the session timeout, whose own bound it shares.
    drain_timeout_seconds: Seconds | None = Field(
        None,
        ge=0,
        le=1800,
        description="Longest time to settle what is in flight before leaving; unset means four"
        " fifths of the session timeout.",
    )
    # A broker takes seconds to start; after an hour an orchestrator should be told.
    startup_timeout_seconds: Seconds = Field(
        60, ge=1, le=3600, description="Longest wait for Kafka at the start."
    )
    # Beside some bad records nobody is to be woken; none at all may be meant, too.
    dead_letters_max: Count = Field(
        1000,
        ge=0,
        le=10**9,
        description="Dead letters of a window above which a partition halts, if they are more than"
        " the share, too: bad data is some records, a bad deployment most of them.",
    )
    dead_letter_share_max: Number = Field(
        0.5, ge=0, le=1, description="Share of a window's records, see above; 1 means no limit."
    )
    dead_letter_window_seconds: Seconds = Field(
        60, ge=1, le=86400, description="Length of the window of the two limits above."
    )
    coalesce: Annotated[Literal["off"], Lower] = Field(
        "off", description="Whether events of a batch with the same key become one item."
    )
    in_doubt: Annotated[Literal["retry", "halt"], Lower] = Field(
        "retry",
        description="What to do about a batch whose answer was lost: send it again under its key,"
        " or stop its partition until somebody judges (for an endpoint that ignores the key).",
    )
    # PacSpace does not say how long it remembers a key; a month is longer than any endpoint's.
    idempotency_window_seconds: Seconds = Field(
        86400,
        ge=60,
        le=31 * 86400,
        description="How long PacSpace remembers a key: what a former owner left in doubt for"
        " longer stops its partition.",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Lower] = Field(
        "info", description="Least severe log line that is written."
    )
    log_format: Annotated[Literal["auto", "console", "json"], Lower] = Field(
        "auto", description="Shape of the log; `auto` is console on a terminal, json elsewhere."
    )

    @property
    def drain_seconds(self) -> float:
        """The drain timeout that holds, below the session timeout unless it was set higher."""
        if self.drain_timeout_seconds is None:
            return self.session_timeout_seconds * 0.8
        return self.drain_timeout_seconds

    def contradictions(self) -> Iterator[Contradiction]:
        """Adds bounds that cross each other."""
        yield from super().contradictions()
        if self.drain_seconds >= self.session_timeout_seconds:
            yield Contradiction(
                "drain_not_below_session_timeout",
                "{drain_timeout_seconds} must be below {session_timeout_seconds}, or partitions "
                "go to another worker while they are still being settled",
            )
        if self.linger_seconds >= self.poll_interval_seconds_max:
            yield Contradiction(
                "linger_not_below_poll_interval",
                "{linger_seconds} must be below {poll_interval_seconds_max}",
            )
        if self.backoff_seconds_min > self.backoff_seconds_max:
            yield Contradiction(
                "backoff_bounds_crossed",
                "{backoff_seconds_min} must not be above {backoff_seconds_max}",
            )
        if self.body_bytes_max * 2 > self.buffer_bytes_max:
            yield Contradiction(
                "body_above_buffer",
                "{buffer_bytes_max} must hold two batches of {body_bytes_max}",
            )
