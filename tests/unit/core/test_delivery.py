"""What each answer means, row by row."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from ingester.core.delivery import (
    RETRY_AFTER_SECONDS_MAX,
    TABLE,
    Acknowledged,
    Answer,
    AnswerLost,
    Blocked,
    Deferred,
    InDoubt,
    NothingSent,
    Outcome,
    Refused,
    Response,
    Throttled,
    backoff_seconds,
    judge,
    read_envelope,
)

NOW = datetime(2025, 6, 10, 14, 30, tzinfo=UTC)


def judged(answer: Answer, items_count: int = 2) -> Outcome:
    return judge(answer, items_count=items_count, now=NOW)


def answered(status: int, document: object = None, retry_after: str | None = None) -> Outcome:
    body = b"" if document is None else json.dumps(document).encode()
    return judged(Response(status, {"retry-after": retry_after} if retry_after else {}, body))


# -- acknowledgements ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 299])
@pytest.mark.parametrize("member", ["batchId", "requestId"])
def test_a_batch_id_acknowledges(status: int, member: str) -> None:
    """Any 2xx with either spelling of the id and the right count is an acknowledgement."""
    document = {"statusCode": status, "data": {member: "batch_1", "itemCount": 2}}

    assert answered(status, document) == Acknowledged("batch_1", status)


def test_an_answer_without_a_count_acknowledges_what_was_sent() -> None:
    """The count is checked where it is given."""
    assert answered(202, {"data": {"batchId": "batch_1"}}) == Acknowledged("batch_1", 202)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "ok",
        {},
        {"data": None},
        {"data": []},
        {"success": True, "data": {}},
        {"batchId": "batch_1", "itemCount": 2},
        {"data": {"batchId": ""}},
        {"data": {"batchId": "  "}},
        {"data": {"batchId": 7}},
        {"data": {"batchId": None, "requestId": None}},
        {"data": {"batchId": "batch_1", "itemCount": 1}},
        {"data": {"batchId": "batch_1", "itemCount": 3}},
        {"data": {"batchId": "batch_1", "itemCount": "2"}},
        {"data": {"batchId": "batch_1", "itemCount": 2.0}},
        {"data": {"batchId": "batch_1", "itemCount": True}},
        {"data": {"batchId": "batch_1", "itemCount": None}},
        {"statusCode": 400, "error": "Bad Request", "message": "no"},
    ],
    ids=repr,
)
def test_a_success_that_names_no_batch_is_in_doubt(document: object) -> None:
    """Without an id, or with another count, nobody knows what was taken: the same goes again."""
    outcome = answered(202, document)

    assert isinstance(outcome, InDoubt)
    assert outcome.status == 202
    assert outcome.retry_after_seconds is None


@pytest.mark.parametrize(
    "body", [b"<html>", b"{", b"\xff", b"[" * 100_000], ids=lambda b: repr(b[:9])
)
def test_a_success_that_is_no_json_is_in_doubt(body: bytes) -> None:
    """A proxy's page under 200 acknowledges nothing."""
    assert isinstance(judged(Response(200, {}, body)), InDoubt)


@pytest.mark.parametrize("nested", [True, False], ids=["under error", "on top"])
def test_a_key_that_is_being_processed_is_in_doubt_for_as_long_as_it_says(nested: bool) -> None:
    """A 202 of the other kind names its own wait, in either envelope."""
    details = {"code": "IDEMPOTENCY_PENDING", "message": "wait", "retryAfterSeconds": 7}
    outcome = answered(202, {"error": details} if nested else details)

    assert isinstance(outcome, InDoubt)
    assert outcome.retry_after_seconds == 7.0
    assert "IDEMPOTENCY_PENDING: wait" in outcome.reason


def test_a_success_without_an_id_keeps_the_wait_it_asks_for() -> None:
    """Retry-After counts wherever the answer went wrong."""
    outcome = answered(202, {"data": {"status": "queued"}}, retry_after="9")

    assert outcome == InDoubt("HTTP 202 without a batch id", 202, 9.0)


# -- the table ----------------------------------------------------------------------------------


def test_no_answer_is_told_from_no_request() -> None:
    """What was never sent is deferred, what may have arrived is in doubt."""
    assert judged(NothingSent("connection refused")) == Deferred("connection refused")
    assert judged(AnswerLost("reset")) == InDoubt("reset", None)
    assert judged(AnswerLost("slow", timed_out=True)) == InDoubt("slow", None, timed_out=True)


@pytest.mark.parametrize(
    ("statuses", "kind"),
    [
        ([408, 500, 502, 503, 504], InDoubt),
        ([429], Throttled),
        ([401, 402, 403, 412], Blocked),
        ([400, 409, 413, 422], Refused),
        ([300, 301, 302, 304, 307, 308, 404, 405, 406, 410, 418, 501, 505, 599, 199], Blocked),
    ],
)
def test_each_status_has_one_meaning(statuses: list[int], kind: type[Outcome]) -> None:
    """With a body of the API, of a proxy or without any, the kind of outcome is the same."""
    for status in statuses:
        for document in ({"message": "no"}, {"error": {"code": "X"}}, [], None):
            outcome = answered(status, document)
            assert isinstance(outcome, kind)
            assert f"HTTP {status}: " in outcome.reason


def test_no_status_has_two_rows() -> None:
    """The table is a function."""
    statuses = [status for row in TABLE for status in row.statuses]

    assert len(statuses) == len(set(statuses))


@pytest.mark.parametrize(
    ("status", "meaning"),
    [(409, "conflict"), (413, "too_large"), (400, "invalid"), (422, "invalid")],
)
def test_refusals_say_what_is_refused(status: int, meaning: str) -> None:
    """The key, the size or an item, and the answer as it came."""
    assert answered(status, {"message": "no"}) == Refused(
        f"HTTP {status}: no",
        status,
        meaning,
        is_api=True,
        body=b'{"message": "no"}',
    )


def test_a_refusal_of_somebody_else_is_told_from_the_apis() -> None:
    """A proxy's page, an empty body: whoever wrote it has not looked the key up."""
    for body in (b"<html>too large</html>", b"", b"[]"):
        outcome = judged(Response(413, {}, body))
        assert isinstance(outcome, Refused)
        assert not outcome.is_api
        assert outcome.body == body


def test_of_a_long_refusal_the_beginning_is_kept() -> None:
    """As much as a dead letter carries, a few hundred times."""
    outcome = judged(Response(400, {}, b'{"message":"' + b"x" * 2**20))

    assert isinstance(outcome, Refused)
    assert outcome.body == b'{"message":"' + b"x" * (2048 - 12)


@pytest.mark.parametrize("status", [302, 404, 405])
def test_an_answer_of_somebody_else_asks_for_the_url(status: int) -> None:
    """Whoever answers a write with it is not the writes endpoint."""
    outcome = answered(status, {"message": "Cannot POST /"})

    assert isinstance(outcome, Blocked)
    assert outcome.reason.endswith("(is INGESTER_PACSPACE_URL right?)")


@pytest.mark.parametrize("status", [401, 402, 403, 412])
def test_an_answer_of_the_endpoint_does_not(status: int) -> None:
    """The key, the credit or the permission is at fault, and the address is not doubted."""
    assert answered(status, {"message": "no"}) == Blocked(f"HTTP {status}: no", status)


# -- Retry-After --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 3 ", 3.0),
        ("9" * 400, RETRY_AFTER_SECONDS_MAX),
        ("Tue, 10 Jun 2025 14:31:30 GMT", 90.0),
        ("Tue, 10 Jun 2025 14:31:30 -0000", 90.0),
        ("Tue, 10 Jun 2025 16:31:30 +0200", 90.0),
        ("Tuesday, 10-Jun-25 14:31:30 GMT", 90.0),
        ("Wed, 10 Jun 2015 14:30:00 GMT", 0.0),
        ("Thu, 10 Jun 2055 14:30:00 GMT", RETRY_AFTER_SECONDS_MAX),
        ("-5", None),
        ("soon", None),
        ("²", None),
        ("", None),
        ("Mon, 01 Jan 99999999999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2025 99999999999:00:00 GMT", None),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 -2359", RETRY_AFTER_SECONDS_MAX),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("status", [429, 503])
def test_the_header_is_seconds_or_a_date(status: int, header: str, expected: float | None) -> None:
    """Both forms count, within bounds, for throttling and for failures; nonsense is passed over."""
    outcome = answered(status, {"message": "later"}, retry_after=header)

    assert isinstance(outcome, Throttled | InDoubt)
    assert outcome.retry_after_seconds == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (3, 3.0),
        (0, 0.0),
        (2.5, 2.5),
        (-1, 0.0),
        (10**6, RETRY_AFTER_SECONDS_MAX),
        (10**400, RETRY_AFTER_SECONDS_MAX),
        (-(10**400), 0.0),
        (1e308, RETRY_AFTER_SECONDS_MAX),
    ],
    ids=lambda value: str(value)[:20],
)
@pytest.mark.parametrize("nested", [True, False], ids=["under error", "on top"])
def test_the_body_goes_before_the_header(nested: bool, seconds: float, expected: float) -> None:
    """`retryAfterSeconds` counts in either envelope, whatever the header says."""
    details = {"code": "CADENCE_LIMIT", "message": "later", "retryAfterSeconds": seconds}
    outcome = answered(429, {"error": details} if nested else details, retry_after="77")

    assert outcome == Throttled("HTTP 429: CADENCE_LIMIT: later", 429, expected)


@pytest.mark.parametrize("seconds", [True, "3", None, [3], {"a": 1}], ids=repr)
def test_a_body_that_names_no_number_leaves_the_header(seconds: object) -> None:
    """What is no number is no wait."""
    outcome = answered(429, {"message": "later", "retryAfterSeconds": seconds}, retry_after="77")

    assert outcome == Throttled("HTTP 429: later", 429, 77.0)


# -- envelopes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"statusCode": 400, "error": "Bad Request", "message": "items"}, "items"),
        ({"statusCode": 400, "error": "Bad Request", "message": ["a", "b"]}, "a; b"),
        ({"error": {"code": "CADENCE_LIMIT", "message": "slow"}}, "CADENCE_LIMIT: slow"),
        ({"code": "X", "message": "y"}, "X: y"),
        ({"message": "Too many requests"}, "Too many requests"),
        ({"error": "Not Found"}, "Not Found"),
        ({"error": {"code": "X"}}, "X"),
        ({"error": {"code": "X"}, "message": "outer"}, "X: outer"),
    ],
    ids=repr,
)
def test_every_envelope_of_the_api_is_read(document: object, sentence: str) -> None:
    """`error` as a string or an object, members on top or under it, messages as a list."""
    body = json.dumps(document).encode()
    envelope = read_envelope(body)

    assert envelope.is_api
    assert sentence == envelope.sentence(body)


@pytest.mark.parametrize(
    "body",
    [b"<html>502</html>", b"[]", b"{}", b'{"data":{}}', b'{"message":5}', b"\xff", b"[" * 9999],
    ids=lambda body: repr(body[:20]),
)
def test_a_foreign_body_is_quoted_as_such(body: bytes) -> None:
    """A proxy's page is not taken for the API's word."""
    envelope = read_envelope(body)

    assert not envelope.is_api
    assert envelope.sentence(body).startswith("not PacSpace's envelope: ")


def test_an_empty_body_is_called_so() -> None:
    """There is nothing to quote."""
    assert read_envelope(b"").sentence(b"") == "an empty body"


@pytest.mark.parametrize("member", ["code", "message"])
def test_a_long_envelope_is_quoted_in_part(member: str) -> None:
    """A megabyte of message does not become a megabyte of log."""
    body = json.dumps({member: "x" * 2**20}).encode()

    assert len(read_envelope(body).sentence(body)) <= 300
    assert len(read_envelope(b"<" + b"y" * 2**20).sentence(b"<" + b"y" * 2**20)) < 400


# -- backoff ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempts", "jitter", "expected"),
    [(1, 0.0, 0.1), (1, 0.5, 0.15), (2, 0.5, 0.25), (5, 1.0, 3.2), (9, 1.0, 30), (10**9, 1.0, 30)],
)
def test_the_backoff_doubles_up_to_its_bound(attempts: int, jitter: float, expected: float) -> None:
    """Full jitter above the minimum, and no attempt is too many."""
    actual = backoff_seconds(attempts, jitter=jitter, seconds_min=0.1, seconds_max=30)

    assert actual == pytest.approx(expected)


def test_equal_bounds_are_a_constant_wait() -> None:
    """The bound holds for the first attempt already."""
    assert backoff_seconds(1, jitter=0.9, seconds_min=5, seconds_max=5) == 5


@pytest.mark.parametrize(
    "beside",
    [
        {"statusCode": 199},
        {"statusCode": 300},
        {"statusCode": 500},
        {"statusCode": "202"},
        {"success": False},
        {"error": {"code": "IDEMPOTENCY_PENDING"}},
        {"code": "IDEMPOTENCY_PENDING"},
        {"error": "Service Unavailable"},
    ],
)
def test_a_body_that_contradicts_itself_acknowledges_nothing(beside: dict[str, object]) -> None:
    """A batch id beside an error, or beside another status, leaves the batch in doubt."""
    body = json.dumps({**beside, "data": {"batchId": "batch_1", "itemCount": 3}}).encode()

    assert isinstance(judge(Response(202, {}, body), items_count=3, now=NOW), InDoubt)


@pytest.mark.parametrize(
    ("header", "seconds"), [("7, 7", 7.0), ("7, 9", 9.0), ("7.5", 7.5), ("+7", 7.0), ("7.", 7.0)]
)
def test_retry_after_in_odd_spellings(header: str, seconds: float) -> None:
    """What some proxies make of the header is still a wait, the longest of several."""
    outcome = judge(Response(429, {"retry-after": header}, b""), items_count=1, now=NOW)

    assert isinstance(outcome, Throttled)
    assert outcome.retry_after_seconds == seconds
