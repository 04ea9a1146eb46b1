"""The bytes of every kind of answer."""

from __future__ import annotations

import json

import pytest

from ingester.simulator import answers
from ingester.simulator.faults import AnswerWith
from ingester.simulator.ledger import Bucket, Instant, Write

WRITE = Write("0001", items=2, bits=3, idempotency_key=None, body_digest=b"")


@pytest.mark.parametrize(
    ("id_field", "id_"), [("batchId", "batch_0001"), ("requestId", "req_0001")]
)
def test_an_acknowledgement_has_the_documented_members(id_field: str, id_: str) -> None:
    """Both spellings of the id come in the envelope that the documentation shows."""
    answer = answers.acknowledgement(WRITE, id_field=id_field)

    assert answer.status == 202
    assert json.loads(answer.body) == {
        "statusCode": 202,
        "data": {
            id_field: id_,
            "itemCount": 2,
            "status": "queued",
            "message": "Write accepted. Items are queued for verification.",
        },
    }


def test_a_record_keeps_numbers_and_metadata_exact() -> None:
    """Bits beyond 64 bits are integers, metadata is the text that was written, time has a Z."""
    written_at = Instant(0, 1_749_565_800.0)
    bucket = Bucket("a", 2**70, 4, written_at, b'{"amount":250.00}')

    answer = answers.record("k", bucket, verified=True)

    assert answer.body.decode() == (
        '{"statusCode":200,"data":{"key":"k","accountId":"a","currentBits":1180591620717411303424,'
        '"totalWrites":4,"lastWriteAt":"2025-06-10T14:30:00.000Z","verified":true,'
        '"metadata":{"amount":250.00}}}'
    )


@pytest.mark.parametrize(
    ("status", "phrase"),
    [
        (400, "Bad Request"),
        (413, "Payload Too Large"),
        (422, "Unprocessable Entity"),
        (599, "Error"),
    ],
)
def test_the_error_envelope_has_the_status_in_words(status: int, phrase: str) -> None:
    """`error` is a string and the same on every Python version."""
    assert json.loads(answers.refusal(status, "why").body) == {
        "statusCode": status,
        "error": phrase,
        "message": "why",
    }


def test_a_conflict_adds_its_code_to_the_envelope() -> None:
    """The 409 can be told from any other by its code."""
    content = json.loads(answers.conflict().body)

    assert (content["code"], content["error"]) == ("IDEMPOTENCY_CONFLICT", "Conflict")


def test_pending_is_a_202_without_an_acknowledgement() -> None:
    """A write in flight is told apart by its code, and has neither id nor count."""
    answer = answers.pending()
    content = json.loads(answer.body)

    assert answer.status == 202
    assert {"code", "retryAfterSeconds", "message"} == set(content)
    assert content["code"] == "IDEMPOTENCY_PENDING"
    assert content["retryAfterSeconds"] > 0


@pytest.mark.parametrize(
    ("effect", "content_type", "body"),
    [
        (
            AnswerWith(status=503, retry_after_seconds=9),
            "application/json",
            (
                '{"statusCode":503,"error":"Service Unavailable","message":"Service Unavailable",'
                '"retryAfterSeconds":9}'
            ),
        ),
        (
            AnswerWith(
                status=429,
                envelope="e2",
                code="CADENCE_LIMIT",
                message="m",
                retry_after_seconds=120,
            ),
            "application/json",
            '{"error":{"code":"CADENCE_LIMIT","message":"m","retryAfterSeconds":120}}',
        ),
        (
            AnswerWith(status=502, envelope="html"),
            "text/html",
            "<html><head><title>502 Bad Gateway</title></head></html>\r\n",
        ),
        (AnswerWith(status=202, envelope="empty"), "application/json", ""),
    ],
    ids=["e1", "e2", "html", "empty"],
)
def test_an_injected_answer_wears_the_envelope_asked_for(
    effect: AnswerWith, content_type: str, body: str
) -> None:
    """Each envelope is reproduced byte for byte."""
    answer = answers.injected(effect, epoch_seconds=0)

    assert (effect.status, content_type, body) == (
        answer.status,
        answer.content_type,
        answer.body.decode(),
    )


def test_retry_after_is_seconds_or_a_date() -> None:
    """The header has either form that HTTP allows; a date counts from the moment of answering."""
    seconds = AnswerWith(status=429, retry_after=120)
    date = AnswerWith(status=429, retry_after=120, retry_after_form="date")

    actual = [
        answers.injected(effect, epoch_seconds=1_749_565_800).headers["Retry-After"]
        for effect in (seconds, date)
    ]

    assert actual == ["120", "Tue, 10 Jun 2025 14:32:00 GMT"]
