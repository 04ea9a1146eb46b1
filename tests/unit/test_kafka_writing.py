"""What is written beside a dead letter."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ingester.core.deadletter import DeadLetter
from ingester.core.event import Rejection
from ingester.core.record import TopicPartition
from ingester.kafka.writing import _dead_letter_headers
from tests.support.records import LogRecord

RECORD = LogRecord(
    41, b"{}", timestamp=1_700_000_000_000, headers=(("trace", b"1"), ("empty", None))
)


@pytest.mark.parametrize("refused", [False, True], ids=["rejected", "refused"])
def test_a_dead_letter_says_why_and_where_from(refused: bool) -> None:
    """Behind the record's own headers; what PacSpace answered is there if it was asked."""
    rejection = Rejection("refused" if refused else "invalid_json", "no such account: é")
    answer = (422, b'{"message":"no"}') if refused else ()
    headers = _dead_letter_headers(
        TopicPartition("usage", 3), DeadLetter(RECORD, rejection, *answer)
    )

    assert headers[:2] == [("trace", b"1"), ("empty", None)]
    added = dict(headers[2:])
    written_at = datetime.fromisoformat((added.pop("ingester-dead-lettered-at") or b"").decode())
    assert timedelta(0) <= datetime.now(UTC) - written_at < timedelta(seconds=60)
    assert added == {
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
