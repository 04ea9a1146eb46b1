"""Metadata of any ledger, of anybody else, and of nobody."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingester.core.intent import METADATA_BYTES_MAX, Intent, Ledger, Unreadable, decode, encode

MOMENTS = st.integers(0, 2**33)
DIGESTS = st.integers(0, 2**32 - 1)


@st.composite
def ledgers(draw: st.DrawFn) -> tuple[int, Ledger]:
    """Any committed offset, and any ranges above it: with gaps, long, and clocks stepping back."""
    committed = draw(st.integers(0, 2**62))
    at = committed
    intents = []
    sizes = st.integers(0, 9) | st.integers(0, 2**40)
    steps = st.lists(st.tuples(sizes, sizes, MOMENTS, DIGESTS), max_size=100)
    for gap, length, moment, digest in draw(steps):
        intents.append(Intent(at + gap, at + gap + length + 1, moment, digest))
        at += gap + length + 1
    return committed, Ledger(draw(st.integers(0, 2**63)), intents)


@given(ledgers())
def test_what_is_written_is_read_back(scenario: tuple[int, Ledger]) -> None:
    """Every range, moment and digest, at the offset it was written for, within Kafka's limit."""
    committed, ledger = scenario
    metadata = encode(committed, ledger)

    assert ledger == decode(committed, metadata)
    assert len(metadata.encode()) <= METADATA_BYTES_MAX


@given(st.text(max_size=40).filter(lambda text: not text.startswith("pacspace")))
@example("")
@example("4")
def test_foreign_text_is_nobodys_ledger(text: str) -> None:
    """Whatever others write there is told from ours, and never raises."""
    assert decode(7, text) is None


@given(st.text(max_size=40).filter(lambda text: not text.startswith("2:")))
@example("1:AAA=")
@example("")
def test_what_another_version_wrote_is_not_read(text: str) -> None:
    """It may say that something is in doubt, whatever it looks like."""
    assert isinstance(decode(7, "pacspace" + text), Unreadable)


@settings(max_examples=500)
@given(ledgers(), st.data())
def test_damage_is_noticed_or_harmless(scenario: tuple[int, Ledger], data: st.DataObject) -> None:
    """A text that lost or changed characters gives no ledger, or one in order; nothing raises."""
    committed, ledger = scenario
    metadata = encode(committed, ledger)
    start = data.draw(st.integers(0, len(metadata) - 1))
    end = data.draw(st.integers(start, len(metadata)))
    damaged = metadata[:start] + data.draw(st.text(max_size=3)) + metadata[end:]

    found = decode(committed, damaged)

    assert (found is None) == (not damaged.startswith("pacspace"))
    if isinstance(found, Ledger):
        at = committed
        for intent in found.intents:
            assert at <= intent.first_offset < intent.next_offset
            at = intent.next_offset


@given(ledgers(), st.data())
def test_a_text_that_was_cut_off_is_damaged(
    scenario: tuple[int, Ledger], data: st.DataObject
) -> None:
    """Some of the intents alone would be worse than none: the count is in front."""
    committed, ledger = scenario
    metadata = encode(committed, ledger)
    end = data.draw(st.integers(len("pacspace"), len(metadata) - 1))

    assert isinstance(decode(committed, metadata[:end]), Unreadable)
