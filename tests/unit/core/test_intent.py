"""How intents are written into an offset's metadata."""

from __future__ import annotations

import base64

import pytest

from ingester.core.intent import INTENTS_MAX, METADATA_BYTES_MAX, Intent, Ledger, decode, encode


def test_as_many_intents_as_are_allowed_fit_whatever_their_numbers_are() -> None:
    """Offsets up to the last, the largest steps, and a clock that jumps with every one of them."""
    step = 2**63 // (2 * INTENTS_MAX)
    intents = [
        Intent((2 * number + 1) * step, (2 * number + 2) * step, number % 2 * (2**32 - 1))
        for number in range(INTENTS_MAX)
    ]
    metadata = encode(0, Ledger(2**63 - 1, intents))

    assert len(metadata) <= METADATA_BYTES_MAX
    assert decode(0, metadata) == Ledger(2**63 - 1, intents)


def test_usual_intents_are_small() -> None:
    """Thirty-two batches of a hundred records, cut within a second, take some 130 bytes."""
    at, moment = 10**9, 1_800_000_000
    intents = [Intent(at + 100 * n, at + 100 * n + 100, moment + n // 20) for n in range(32)]

    assert len(encode(at, Ledger(10**7, intents))) <= 160


def test_the_spelling_is_pinned() -> None:
    """A worker of another version reads it: whoever changes it has to change the version."""
    metadata = encode(1000, Ledger(300, [Intent(1000, 1100, 1_700_000_000), Intent(1107, 1108, 1)]))

    assert metadata == "pacspace1:rAICAGSAxJ/VDAcB/cOf1Qw="


@pytest.mark.parametrize(
    "numbers",
    [b"", b"\x00", b"\x00\x01", b"\x00\x01\x00\x05", b"\x00\x00\x07", b"\x00\x01\x03\x00\x07"],
    ids=["nothing", "no count", "no intent", "half an intent", "more than counted", "empty range"],
)
def test_numbers_that_make_no_sense_are_no_ledger(numbers: bytes) -> None:
    """A count that does not fit what follows, or a range of nothing."""
    assert decode(5, "pacspace1:" + base64.b64encode(numbers).decode()) is None
