"""What is applied, what is remembered under a key, and when a record is verified."""

from __future__ import annotations

import msgspec
import pytest

from ingester.simulator.ledger import Instant, Ledger, Standing, Write
from ingester.simulator.validation import Item

DIGEST = b"body"


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(run_id="run", verify_delay_seconds=5.0)


def item(bits: int, *, key: str = "k", account_id: str = "a", metadata: bytes = b"{}") -> Item:
    return Item(key=key, account_id=account_id, bits=bits, metadata=msgspec.Raw(metadata))


def apply(
    ledger: Ledger, *items: Item, key: str | None = None, digest: bytes = DIGEST, at: float = 0.0
) -> Write:
    return ledger.apply(
        items, idempotency_key=key, body_digest=digest, now=Instant(at, 1_000_000 + at)
    )


def test_writes_to_one_key_accumulate(ledger: Ledger) -> None:
    """Bits and items of a key add up over and within writes; the latest metadata stays."""
    apply(ledger, item(100), item(250, metadata=b'{"n":2}'), at=1)
    apply(ledger, item(-50, metadata=b'{"n":3}'), at=2)

    bucket = ledger.bucket("k")

    assert bucket is not None
    assert (bucket.bits, bucket.items, bucket.metadata) == (300, 3, b'{"n":3}')
    assert Instant(2, 1_000_002) == bucket.written_at


def test_sums_are_exact_beyond_64_bits(ledger: Ledger) -> None:
    """Not a single bit is lost to rounding or overflow."""
    apply(ledger, *[item(2**63 - 1)] * 3, item(1))

    assert ledger.report(keys=False, batch_ids=False)["bits"] == 3 * (2**63 - 1) + 1
    assert ledger.bucket("k").bits == 3 * (2**63 - 1) + 1


def test_a_key_under_two_accounts_is_one_balance_and_two_totals(ledger: Ledger) -> None:
    """The balance belongs to the first account; each account's total counts its own items."""
    apply(ledger, item(1, account_id="first"), item(2, account_id="second"))

    accounts = ledger.report(keys=True, batch_ids=False)["accounts"]

    assert (ledger.bucket("k").account_id, ledger.bucket("k").bits) == ("first", 3)
    assert {name: total.bits for name, total in accounts.items()} == {"first": 1, "second": 2}


def test_an_unknown_key_has_no_bucket(ledger: Ledger) -> None:
    """Reading does not create a balance."""
    assert ledger.bucket("k") is None
    assert ledger.report(keys=True, batch_ids=False)["keys"] == {}


def test_verification_follows_the_latest_write(ledger: Ledger) -> None:
    """A record is verified the delay after its latest write, and a new write takes that back."""
    apply(ledger, item(1), at=10)
    bucket = ledger.bucket("k")
    assert not ledger.is_verified(bucket, Instant(14.999, 0))
    assert ledger.is_verified(bucket, Instant(15.0, 0))

    apply(ledger, item(1), at=16)

    assert not ledger.is_verified(bucket, Instant(20.999, 0))
    assert ledger.is_verified(bucket, Instant(21.0, 0))


def test_a_key_goes_from_new_to_in_flight_to_completed(ledger: Ledger) -> None:
    """A key is unknown, then pending while its write is under way, then repeats that write."""
    assert ledger.lookup("key", DIGEST) is None
    ledger.begin("key", DIGEST)
    assert Standing.IN_FLIGHT is ledger.lookup("key", DIGEST)

    write = apply(ledger, item(1), key="key")

    assert write is ledger.lookup("key", DIGEST)
    report = ledger.report(keys=False, batch_ids=False)
    assert (
        report["pending"],
        report["replayed"],
        report["conflicts"],
        report["in_flight"],
    ) == (1, 1, 0, 0)


def test_another_body_under_a_key_conflicts_at_any_time(ledger: Ledger) -> None:
    """A key cannot change its body, neither in flight nor completed."""
    ledger.begin("key", DIGEST)
    assert Standing.CONFLICT is ledger.lookup("key", b"other")

    apply(ledger, item(1), key="key")

    assert Standing.CONFLICT is ledger.lookup("key", b"other")
    assert ledger.report(keys=False, batch_ids=False)["conflicts"] == 2


def test_the_report_can_leave_out_what_grows(ledger: Ledger) -> None:
    """Keys and batch ids are listed when asked for, totals always."""
    write = apply(ledger, item(1, key="x"), item(2, key="y"), key="key")

    short = ledger.report(keys=False, batch_ids=False)
    long = ledger.report(keys=True, batch_ids=True)

    assert (short["writes"], short["batches"], short["items"], short["bits"]) == (1, 1, 2, 3)
    assert {"keys", "batch_ids"} == set(long) - set(short)
    assert long["keys"] == {"x": {"bits": 1, "items": 1}, "y": {"bits": 2, "items": 1}}
    assert long["batch_ids"] == {write.batch_id: {"items": 2, "bits": 3, "idempotency_key": "key"}}
