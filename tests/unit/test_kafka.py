"""Errors of the Kafka client in an operator's words, and what is written beside a dead letter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from aiokafka import errors as kafka_errors

from ingester.core.deadletter import DeadLetter
from ingester.core.event import Rejection
from ingester.errors import ConfigurationError, IngesterError, RefusedError, UnavailableError
from ingester.kafka import _dead_letter_headers, translate


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


class Consumed(NamedTuple):
    """A record as the client hands it over."""

    topic: str = "usage"
    partition: int = 3
    offset: int = 41
    timestamp: int = 1_700_000_000_000
    key: bytes | None = None
    value: bytes | None = b"{}"
    headers: Sequence[tuple[str, bytes | None]] = (("trace", b"1"), ("empty", None))


@pytest.mark.parametrize("refused", [False, True], ids=["rejected", "refused"])
def test_a_dead_letter_says_why_and_where_from(refused: bool) -> None:
    """Behind the record's own headers; what PacSpace answered is there if it was asked."""
    rejection = Rejection("refused" if refused else "invalid_json", "no such account: é")
    answer = (422, b'{"message":"no"}') if refused else ()
    headers = _dead_letter_headers(DeadLetter(Consumed(), rejection, *answer))

    assert headers[:2] == [("trace", b"1"), ("empty", None)]
    assert dict(headers[2:]) == {
        "ingester-error-code": rejection.code.encode(),
        "ingester-error-detail": "no such account: é".encode(),
        "ingester-source-topic": b"usage",
        "ingester-source-partition": b"3",
        "ingester-source-offset": b"41",
    } | (
        {"ingester-http-status": b"422", "ingester-http-body": b'{"message":"no"}'}
        if refused
        else {}
    )
