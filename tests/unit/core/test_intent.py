"""How intents are written into an offset's metadata."""

from __future__ import annotations

import base64

import pytest

from ingester.core.intent import (
    INTENTS_MAX,
    METADATA_BYTES_MAX,
    Intent,
    Ledger,
    Unreadable,
    decode,
    encode,
)

DIGEST_MAX = 2**32 - 1


def written(numbers: bytes) -> str:
    return "pacspace2:" + base64.b64encode(numbers).decode()


def test_as_many_intents_as_are_allowed_fit_whatever_their_numbers_are() -> None:
    """Offsets up to the last, the largest steps and digests, and a clock that jumps each time."""
    step = 2**63 // (2 * INTENTS_MAX)
    intents = [
        Intent(
            (2 * number + 1) * step, (2 * number + 2) * step, number % 2 * DIGEST_MAX, DIGEST_MAX
        )
        for number in range(INTENTS_MAX)
    ]
    metadata = encode(0, Ledger(2**63 - 1, intents))

    assert len(metadata) <= METADATA_BYTES_MAX
    assert decode(0, metadata) == Ledger(2**63 - 1, intents)


def test_every_intent_may_take_the_most_that_one_can() -> None:
    """The bound does not rest on steps adding up to the last offset: 28 bytes each, as it says."""
    ledger = Ledger(2**63 - 1, [])
    for number in range(INTENTS_MAX):
        at = ledger.intents[-1].next_offset if ledger.intents else 0
        moment = number % 2 * DIGEST_MAX
        intent = Intent(at + 2**63 - 1, at + 2**64 - 2, moment, DIGEST_MAX)
        ledger = Ledger(ledger.receipts_offset, [*ledger.intents, intent])

    assert len(encode(0, ledger)) <= METADATA_BYTES_MAX


def test_usual_intents_are_small() -> None:
    """Thirty-two batches of a hundred records, cut within a second, take some 350 bytes."""
    at, moment = 10**9, 1_800_000_000
    intents = [
        Intent(at + 100 * n, at + 100 * n + 100, moment + n // 20, DIGEST_MAX - n)
        for n in range(32)
    ]

    assert len(encode(at, Ledger(10**7, intents))) <= 370


def test_the_spelling_is_pinned() -> None:
    """A worker of another version reads it: whoever changes it has to change the version."""
    intents = [Intent(1000, 1100, 1_700_000_000, 0xDEADBEEF), Intent(1107, 1108, 1, 0)]

    assert encode(1000, Ledger(300, intents)) == "pacspace2:rAICAGSAxJ/VDO/9tvUNBwH9w5/VDAA="


@pytest.mark.parametrize("offset", [0, 7, 2**62])
def test_a_ledger_without_intents_is_one(offset: int) -> None:
    """It says from where on receipts are looked for; nothing is in doubt."""
    assert decode(offset, encode(offset, Ledger(12, []))) == Ledger(12, [])


# -- what is not read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers",
    [
        b"",
        b"\x00",
        b"\x00\x01",
        b"\x00\x01\x00\x05\x00",
        b"\x00\x00\x07",
        b"\x00\x01\x03\x00\x07\x01",
        b"\x00\x01\x00\x05\x00\x81",
        b"\x00\x80",
        b"\x00\x00\x80",
    ],
    ids=[
        "nothing",
        "no count",
        "no intent",
        "no digest",
        "more than counted",
        "empty range",
        "digest without an end",
        "count without an end",
        "more without an end",
    ],
)
def test_numbers_that_make_no_sense_are_damage(numbers: bytes) -> None:
    """A count that does not fit what follows, or a range of nothing: ours, and not readable."""
    assert decode(5, written(numbers)) == Unreadable("it is damaged")


@pytest.mark.parametrize("text", ["", "AAA", "é", "AA A=", "AAA=\n", "AAA=AAA=", "****"], ids=repr)
def test_what_is_no_base64_is_damage(text: str) -> None:
    """With our name in front it can only have been a ledger."""
    assert decode(7, "pacspace2:" + text) == Unreadable("it is damaged")


@pytest.mark.parametrize(
    "metadata",
    ["pacspace1:AAA=", "pacspace3:AAA=", "pacspace22:AAA=", "pacspace2", "pacspace"],
    ids=repr,
)
def test_another_version_is_not_taken_for_nobody(metadata: str) -> None:
    """An older or newer one wrote what is in doubt: to forget that would count it twice."""
    assert decode(7, metadata) == Unreadable("another version of this program wrote it")


@pytest.mark.parametrize("metadata", ["", "4", "Pacspace2:AAA=", " pacspace2:AAA=", "connect-1"])
def test_what_others_wrote_is_nobodys_ledger(metadata: str) -> None:
    """Other consumers put there what they like."""
    assert decode(7, metadata) is None
