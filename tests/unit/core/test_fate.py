"""What became of one offset, by what is written about it."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from ingester.core.fate import Fate, Place, covering, evidence, fate_of
from ingester.core.intent import Intent
from ingester.core.receipt import Note, Receipt, Replay, Resolution


def receipt(
    items: int = 10, first_offset: int = 10, next_offset: int = 20, dead_letters: int = 0
) -> Receipt:
    return Receipt(
        topic="usage",
        partition=0,
        first_offset=first_offset,
        next_offset=next_offset,
        idempotency_key="k",
        batch_id="b",
        http_status=202,
        items=items,
        dead_letters=dead_letters,
        bits=0,
        bits_by_key={},
        body_digest="",
        attempts=1,
        in_doubt=False,
        settled_at="",
    )


def resolution(decision: Literal["acknowledged", "resend", "skipped"]) -> Resolution:
    return Resolution("usage", 0, 10, 20, decision, "ann", "why", "then")


def replay(state: Literal["started", "ended"], name: str = "july") -> Replay:
    return Replay("usage", 0, 10, 20, name, state, "ann", "why", "then")


INTENT = Intent(10, 20, 0, 0)
BELOW: dict[str, Any] = {"next_offset": 50}
ABOVE: dict[str, Any] = {"next_offset": 5}


@pytest.mark.parametrize(
    ("fate", "place", "found"),
    [
        ("settled", BELOW, {"notes": [receipt()]}),
        ("settled", ABOVE, {"notes": [receipt()]}),
        ("settled", BELOW | {"log_begins": 30}, {"notes": [receipt()]}),
        ("settled", BELOW, {"notes": [resolution("skipped"), receipt()]}),
        ("dead_lettered", BELOW, {"notes": [receipt(dead_letters=1)], "dead_letters": 1}),
        ("settled", BELOW, {"notes": [receipt(items=0), receipt()], "dead_letters": 1}),
        ("dead_lettered", BELOW, {"notes": [receipt(items=0)]}),
        ("dead_lettered", BELOW, {"notes": [receipt(dead_letters=1)], "is_event": False}),
        ("settled", BELOW, {"notes": [receipt(dead_letters=1)], "is_event": True}),
        ("dead_lettered", BELOW, {"notes": [], "dead_letters": 2}),
        ("no_record", BELOW, {"notes": [receipt()], "holds_record": False}),
        ("no_record", BELOW, {"notes": [], "holds_record": False}),
        ("skipped", BELOW, {"notes": [resolution("skipped")]}),
        ("skipped", BELOW | {"log_begins": 30}, {"notes": [resolution("skipped")]}),
        ("in_doubt", ABOVE, {"notes": [resolution("resend")], "intent": INTENT}),
        ("in_doubt", ABOVE, {"notes": [replay("started")], "intent": INTENT}),
        ("waiting", ABOVE, {"notes": []}),
        ("waiting", ABOVE | {"next_offset": None}, {"notes": []}),
        ("beyond_end", ABOVE | {"log_ends": 15}, {"notes": []}),
        ("beyond_end", BELOW | {"log_ends": 12}, {"notes": []}),
        ("lost", ABOVE | {"log_begins": 30}, {"notes": []}),
        ("unexplained", BELOW, {"notes": []}),
        ("unexplained", BELOW, {"notes": [replay("ended"), resolution("acknowledged")]}),
        ("unexplained", BELOW | {"log_begins": 30}, {"notes": []}),
    ],
)
def test_the_fate_follows_from_what_is_written(
    fate: Fate, place: dict[str, Any], found: dict[str, Any]
) -> None:
    """Proof goes before sight, sight before decisions; what is missing is said to be."""
    facts = {"log_begins": 0, "log_ends": 100, "holds_record": True, **place}
    facts["holds_record"] = found.pop("holds_record", facts["holds_record"])

    assert fate_of(Place(15, **facts), evidence(**found)) == fate


def test_a_claim_ends_with_its_replay() -> None:
    """Of two replays only the one that has not ended has the offset."""
    notes: list[Note] = [replay("started"), replay("ended"), replay("started", "august")]

    assert [each.name for each in evidence(notes).claims] == ["august"]


def test_a_range_ends_before_its_next_offset() -> None:
    """A note covers its first offset, and not its next one."""
    notes = [receipt(first_offset=10, next_offset=20), receipt(first_offset=20, next_offset=30)]

    assert [covering(offset, notes) for offset in (9, 10, 19, 20)] == [
        [],
        notes[:1],
        notes[:1],
        notes[1:],
    ]
