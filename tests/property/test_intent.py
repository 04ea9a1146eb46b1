"""Metadata of any ledger, of anybody else, and of nobody."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingester.core.intent import METADATA_BYTES_MAX, Intent, Ledger, decode, encode

MOMENTS = st.integers(0, 2**33)


@st.composite
def ledgers(draw: st.DrawFn) -> tuple[int, Ledger]:
    """Any committed offset, and any ranges above it: with gaps, long, and clocks stepping back."""
    committed = draw(st.integers(0, 2**62))
    at = committed
    intents = []
    sizes = st.integers(0, 9) | st.integers(0, 2**40)
    for gap, length, moment in draw(st.lists(st.tuples(sizes, sizes, MOMENTS), max_size=120)):
        intents.append(Intent(at + gap, at + gap + length + 1, moment))
        at += gap + length + 1
    return committed, Ledger(draw(st.integers(0, 2**63)), intents)


@given(ledgers())
def test_what_is_written_is_read_back(scenario: tuple[int, Ledger]) -> None:
    """Every range and every moment, at the offset it was written for, within Kafka's limit."""
    committed, ledger = scenario
    metadata = encode(committed, ledger)

    assert ledger == decode(committed, metadata)
    assert len(metadata.encode()) <= METADATA_BYTES_MAX


@given(st.text(max_size=40))
@example("")
@example("4")
@example("pacspace2:AAA=")
@example("pacspace1:")
@example("pacspace1:é")
@example("pacspace1:AAA")
def test_foreign_text_is_nobodys_ledger(text: str) -> None:
    """Whatever others write there is told from ours, and never raises."""
    assert decode(7, text) is None


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

    if found is not None:
        at = committed
        for intent in found.intents:
            assert at <= intent.first_offset < intent.next_offset
            at = intent.next_offset


@given(ledgers(), st.integers(1, 40))
def test_a_text_that_was_cut_off_is_no_ledger(
    scenario: tuple[int, Ledger], characters: int
) -> None:
    """Some of the intents alone would be worse than none: the count is in front."""
    committed, ledger = scenario
    metadata = encode(committed, ledger)

    assert decode(committed, metadata[:-characters]) is None
