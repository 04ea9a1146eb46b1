"""How notes are written to the receipts topic, and which are read back."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from ingester.core.batch import BatchBuilder, BatchLimits
from ingester.core.event import event_decoder
from ingester.core.receipt import (
    Receipt,
    Replay,
    decode_note,
    encode_note,
    encode_receipt,
)
from tests.support.bookkeeping import receipt
from tests.support.records import PARTITION, LogRecord, usage_records
from tests.support.scenario import ACKNOWLEDGED, resolution_of

SETTLED_AT = "2025-06-10T14:30:00.000+00:00"


def test_a_receipt_says_what_was_acknowledged() -> None:
    """Range, key, batch id, items, bits and digest are those of the batch."""
    limits = BatchLimits(9, 1000, 1.0)
    records = [*usage_records(2), LogRecord(2, None)]
    batch = BatchBuilder(PARTITION, 1, limits, event_decoder("refuse")).form(records)
    value = encode_receipt(batch, ACKNOWLEDGED, 3, SETTLED_AT, in_doubt=True)

    assert decode_note(value) == Receipt(
        topic="usage",
        partition=0,
        first_offset=0,
        next_offset=3,
        idempotency_key=batch.idempotency_key,
        batch_id="batch_1",
        http_status=202,
        items=2,
        dead_letters=1,
        bits=3,
        bits_by_key={"settlement-2025-06": 3},
        body_digest=batch.body_digest.hex(),
        attempts=3,
        in_doubt=True,
        settled_at=SETTLED_AT,
    )
    assert json.loads(value)["kind"] == "receipt"
    assert json.loads(value)["inDoubt"] is True


def test_a_decision_is_read_as_it_was_written() -> None:
    """With who took it, why and when, and about which attempt."""
    resolution = resolution_of((3, 9), "skipped")
    value = encode_note(resolution)

    assert decode_note(value) == resolution
    assert json.loads(value) == {
        "kind": "resolution",
        "topic": "usage",
        "partition": 0,
        "firstOffset": 3,
        "nextOffset": 9,
        "decision": "skipped",
        "by": "ada",
        "reason": "asked PacSpace",
        "decidedAt": "2025-06-10T14:30:00.000+00:00",
        "intendedAt": 1_700_000_000,
        "unaccounted": False,
    }


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{}",
        b"null",
        b"[]",
        b"\xff",
        b'{"kind":"receipt"}',
        b'{"kind":"note","topic":"usage","partition":0,"firstOffset":0,"nextOffset":2}',
        encode_note(resolution_of((0, 2), "forgotten")),
        encode_note(resolution_of((0, 2**63), "skipped")),
        b'{"kind":"receipt","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_note_is_passed_over(value: bytes | None) -> None:
    """Whoever wrote it; a decision that nobody knows decides nothing."""
    assert decode_note(value) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"firstOffset": 9, "nextOffset": 3},
        {"firstOffset": 3, "nextOffset": 3},
        {"firstOffset": -5, "nextOffset": -1},
        {"firstOffset": 10**30, "nextOffset": 10**30 + 1},
        {"partition": -1},
        {"partition": 2**31},
    ],
    ids=str,
)
def test_a_receipt_of_what_no_log_can_hold_is_none(changed: Mapping[str, int]) -> None:
    """The same is one with offsets and a partition as Kafka has them."""
    sound = receipt("usage", 3, 9, {"k": 6})

    assert decode_note(json.dumps(sound).encode()) is not None
    assert decode_note(json.dumps(sound | changed).encode()) is None


@pytest.mark.parametrize(
    ("settled_at", "milliseconds"),
    [("1970-01-01T00:00:01.500+00:00", 1500), ("yesterday", None), ("", None)],
)
def test_a_receipt_says_when_it_was_settled_if_that_is_a_time(
    settled_at: str, milliseconds: int | None
) -> None:
    """It proves what it covers all the same."""
    note = decode_note(json.dumps(receipt("usage", 3, 9, {}, settledAt=settled_at)).encode())

    assert isinstance(note, Receipt)
    assert note.settled_at_ms == milliseconds


def test_a_claim_of_a_redrive_says_how_letters_are_corrected() -> None:
    """So that what it has in flight can be formed again; one that says nothing corrects nothing."""
    claim = Replay(
        "usage.dead-letters", 0, 3, 9, "redrive-1", "started", "me", "why", SETTLED_AT, True,
        ("bits={bits}",), ("region",),
    )  # fmt: skip
    older = {
        name: said
        for name, said in json.loads(encode_note(claim)).items()
        if name not in {"sets", "removes"}
    }

    assert decode_note(encode_note(claim)) == claim
    assert decode_note(json.dumps(older).encode()) == replace(claim, sets=(), removes=())
