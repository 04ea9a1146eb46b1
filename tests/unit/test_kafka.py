"""Errors of the Kafka client in an operator's words."""

from __future__ import annotations

import pytest
from aiokafka import errors as kafka_errors

from ingester.errors import ConfigurationError, IngesterError, RefusedError, UnavailableError
from ingester.kafka.client import translate


@pytest.mark.parametrize(
    ("error", "kind", "part"),
    [
        (
            kafka_errors.InvalidSessionTimeoutError(),
            ConfigurationError,
            "INGESTER_SESSION_TIMEOUT_SECONDS is outside of what the brokers allow",
        ),
        (kafka_errors.GroupAuthorizationFailedError("g"), RefusedError, "permissions of that user"),
        (kafka_errors.NodeNotReadyError(), UnavailableError, "`ingester check` says why"),
    ],
)
def test_an_error_is_told_by_what_is_to_be_done(
    error: kafka_errors.KafkaError, kind: type[IngesterError], part: str
) -> None:
    """A wrong setting, refused credentials and an outage end with different exit codes."""
    told = translate(error, "Kafka")

    assert type(told) is kind
    assert part in str(told)
