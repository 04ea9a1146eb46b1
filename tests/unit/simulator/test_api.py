"""The order in which a write meets authentication, idempotency and validation."""

from __future__ import annotations

import json

import pytest

from ingester.simulator.answers import Answer
from ingester.simulator.api import Admission, Api, Posted
from ingester.simulator.faults import Effect, Misreport, Refuse
from ingester.simulator.ledger import Instant
from ingester.simulator.options import Options
from ingester.simulator.validation import parse_items

API_KEY = "pk_test_public.secret"
NOW = Instant(0, 0)


def posted(
    *bits: object,
    api_key: str | None = API_KEY,
    idempotency_key: str | None = None,
    effect: Effect | None = None,
) -> Posted:
    items = [{"key": "k", "accountId": "a", "bits": value} for value in bits]
    body = json.dumps({"items": items}).encode()
    headers = {"X-Api-Key": api_key, "Idempotency-Key": idempotency_key}
    return Posted(
        {name: value for name, value in headers.items() if value is not None},
        body,
        parse_items(body, items_max=10),
        effect,
    )


def write(api: Api, request: Posted) -> Answer:
    decision = api.admit(request)
    return api.settle(decision, NOW) if isinstance(decision, Admission) else decision


def bits(api: Api) -> object:
    return api.ledger.report(keys=False, batch_ids=False)["bits"]


@pytest.mark.parametrize(
    "api_key",
    [
        None,
        "",
        "secret",
        "pk_test_public",
        "pk_test_public.",
        "pk_test_.secret",
        "pk_prod_public.secret",
        "sk_live_public.secret",
        "pk_live_public.sec ret",
    ],
)
def test_a_missing_or_malformed_api_key_is_unauthorised(api_key: str | None) -> None:
    """Neither endpoint lets such a key in, and nothing is applied."""
    api = Api(Options())
    headers = {} if api_key is None else {"X-Api-Key": api_key}

    assert write(api, posted(1, api_key=api_key)).status == 401
    assert api.read(headers, "k", NOW).status == 401
    assert bits(api) == 0


@pytest.mark.parametrize("api_key", ["pk_live_abc.sk_789", "pk_test_a-b_c.x.y.z"])
def test_any_key_of_the_right_form_is_let_in(api_key: str) -> None:
    """Without a key of its own the simulator takes all well-formed ones."""
    assert write(Api(Options()), posted(1, api_key=api_key)).status == 202


def test_a_configured_api_key_is_the_only_one_let_in() -> None:
    """Another key, however well formed, is unauthorised."""
    api = Api(Options(api_key="pk_live_right.key"))

    assert write(api, posted(1, api_key="pk_live_wrong.key")).status == 401
    assert write(api, posted(1, api_key="pk_live_right.key")).status == 202


def test_the_options_never_show_the_api_key() -> None:
    """Printing the options does not print the secret."""
    assert "right" not in repr(Options(api_key="pk_live_right.key"))


def test_a_repeated_write_gets_the_original_answer_and_is_applied_once() -> None:
    """Same key, same body: byte for byte the first answer, and the balance does not move."""
    api = Api(Options())

    first = write(api, posted(5, idempotency_key="key"))
    second = write(api, posted(5, idempotency_key="key"))

    assert first == second
    assert bits(api) == 5


def test_a_write_in_flight_is_pending_and_applied_once() -> None:
    """Between admission and settlement the same request is told to come back."""
    api = Api(Options())
    admission = api.admit(posted(5, idempotency_key="key"))
    assert isinstance(admission, Admission)

    pending = api.admit(posted(5, idempotency_key="key"))
    acknowledged = api.settle(admission, NOW)

    assert json.loads(pending.body)["code"] == "IDEMPOTENCY_PENDING"
    assert acknowledged == api.admit(posted(5, idempotency_key="key"))
    assert bits(api) == 5


def test_another_body_under_a_known_key_is_a_conflict() -> None:
    """The second body is not applied."""
    api = Api(Options())
    write(api, posted(5, idempotency_key="key"))

    answer = write(api, posted(6, idempotency_key="key"))

    assert (answer.status, json.loads(answer.body)["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert bits(api) == 5


def test_a_refused_write_does_not_use_its_key_up() -> None:
    """A corrected body may follow under the same key: only applied writes are remembered."""
    api = Api(Options())

    assert write(api, posted("five", idempotency_key="key")).status == 400
    assert write(api, posted(5, idempotency_key="key")).status == 202


def test_an_endpoint_that_ignores_keys_counts_a_repeated_write_twice() -> None:
    """That is what the switch is for."""
    api = Api(Options(idempotency="ignore"))

    first = write(api, posted(5, idempotency_key="key"))
    second = write(api, posted(5, idempotency_key="key"))

    assert first.body != second.body
    assert bits(api) == 10


@pytest.mark.parametrize(("key_lookup", "status"), [("before", 202), ("after", 422)])
def test_the_order_of_lookup_decides_what_a_changed_mind_answers(
    key_lookup: str, status: int
) -> None:
    """A write applied earlier and refused now is replayed or refused, as the switch says."""
    api = Api(Options(key_lookup=key_lookup))
    write(api, posted(5, idempotency_key="key"))

    answer = write(api, posted(5, idempotency_key="key", effect=Refuse(status=422)))

    assert status == answer.status
    assert bits(api) == 5


@pytest.mark.parametrize(("key_lookup", "status"), [("before", 409), ("after", 400)])
def test_the_order_of_lookup_holds_for_invalid_bodies_too(key_lookup: str, status: int) -> None:
    """A known key with an invalid body is a conflict or a refusal, as the switch says."""
    api = Api(Options(key_lookup=key_lookup))
    write(api, posted(5, idempotency_key="key"))

    assert status == write(api, posted("five", idempotency_key="key")).status


def test_a_misreported_write_is_applied_and_replayed_correctly() -> None:
    """The flaw is in one answer, not in the ledger."""
    api = Api(Options())
    flawed = [
        write(api, posted(5, idempotency_key=flaw, effect=Misreport(flaw=flaw)))
        for flaw in ("wrong_item_count", "missing_id")
    ]
    counts, ids = zip(
        *[
            (data["itemCount"], data.get("batchId"))
            for data in (json.loads(answer.body)["data"] for answer in flawed)
        ],
        strict=True,
    )

    assert counts == (2, 1)
    assert ids[0] is not None
    assert ids[1] is None
    assert "batchId" in json.loads(write(api, posted(5, idempotency_key="missing_id")).body)["data"]
    assert bits(api) == 10


def test_reset_forgets_balances_and_keys_but_repeats_no_batch_id() -> None:
    """A key of before the reset is new again, under another batch id."""
    api = Api(Options())
    before = write(api, posted(5, idempotency_key="key"))
    api.reset()

    after = write(api, posted(5, idempotency_key="key"))

    assert before.body != after.body
    assert bits(api) == 5
