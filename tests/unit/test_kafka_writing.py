"""What is written beside a dead letter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest

from ingester.core.deadletter import DeadLetter
from ingester.core.event import Rejection
from ingester.kafka_writing import _dead_letter_headers


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
