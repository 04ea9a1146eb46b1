"""The torture's judgement finds each kind of wrong, and nothing in a round where all is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.torture.audit import Findings, Produced, doubles, violations

KEYS = {"first": (0, 2), "second": (2, 5)}
"""Idempotency-Keys and their ranges; offset 3 is no event."""


def event(offset: int) -> dict[str, Any] | None:
    if offset == 3:
        return None
    return {"key": f"usage-{offset % 2}", "bits": 2**53 + offset, "metadata": {"number": offset}}


def receipt(name: str) -> dict[str, Any]:
    first, next_offset = KEYS[name]
    events = [each for each in map(event, range(first, next_offset)) if each]
    bits_by_key: Counter[str] = Counter()
    for each in events:
        bits_by_key[each["key"]] += each["bits"]
    return {
        "partition": 0,
        "firstOffset": first,
        "nextOffset": next_offset,
        "idempotencyKey": name,
        "batchId": f"batch-{name}",
        "items": len(events),
        "deadLetters": next_offset - first - len(events),
        "bits": sum(each["bits"] for each in events),
        "bitsByKey": dict(bits_by_key),
        "attempts": 1,
    }


def counted(**times: int) -> dict[str, Any]:
    """What the endpoint holds when it applied each key so often."""
    by_number: dict[int, dict[str, int]] = {}
    totals: Counter[str] = Counter()
    for name, applied in times.items():
        for each in filter(None, map(event, range(*KEYS[name]))):
            by_number[each["metadata"]["number"]] = {name: applied} if applied else {}
            totals[each["key"]] += each["bits"] * applied
    return {"counted": by_number, "totals": dict(totals), "applications": times}


RIGHT = Findings(
    produced=[Produced(0, offset, event(offset)) for offset in range(5)],
    committed={0: 5},
    receipts=[receipt("first"), receipt("second")],
    dead_letters=[(0, 3)],
    batch_keys={"batch-first": "first", "batch-second": "second"},
    **counted(first=1, second=1),
)


def test_a_round_where_all_is_right_has_no_violation() -> None:
    """Exact totals, whole coverage and everything committed leave nothing to say."""
    assert violations(RIGHT) == []
    assert doubles(RIGHT) == {}


def test_what_a_crash_may_repeat_is_no_violation() -> None:
    """A range may have a second receipt under its key, and a dead letter a second copy."""
    again = replace(RIGHT, receipts=[*RIGHT.receipts, receipt("first")], dead_letters=[(0, 3)] * 2)
    assert violations(again) == []


def test_a_double_of_what_was_in_doubt_is_none_where_keys_are_ignored() -> None:
    """As many doubles of a key are excused as crashes left it in doubt, and not one more."""
    twice = replace(RIGHT, **counted(first=2, second=1))
    assert doubles(twice) == {"first": 1}
    assert violations(replace(twice, in_doubt={"first": 1})) == []
    for in_doubt in ({}, {"second": 1}):
        (said,) = violations(replace(twice, in_doubt=in_doubt))
        assert said.startswith("first was applied 1 times too often")
    assert violations(replace(RIGHT, **counted(first=3, second=1), in_doubt={"first": 1}))


def test_a_halted_partition_may_end_unsettled() -> None:
    """What is below the committed offset is judged as ever, what is above may be missing."""
    halted = replace(
        RIGHT,
        committed={0: 2},
        receipts=[receipt("first")],
        dead_letters=[],
        **counted(first=1, second=0),
    )
    assert violations(replace(halted, halted={0})) == []
    assert violations(halted) == ["partition 0 ends at 5, and 2 is committed"]
    assert violations(replace(halted, halted={0}, **counted(first=2, second=0)))


def change_receipt(**members: Any) -> Findings:
    return replace(RIGHT, receipts=[receipt("first") | members, receipt("second")])


WRONG: dict[str, tuple[Callable[[], Findings], str]] = {
    "not committed": (lambda: replace(RIGHT, committed={0: 4}), "ends at 5, and 4 is committed"),
    "never committed": (lambda: replace(RIGHT, committed={}), "ends at 5, and 0 is committed"),
    "committed beyond": (lambda: replace(RIGHT, committed={0: 6}), "ends at 5, and 6 is committed"),
    "lost": (lambda: replace(RIGHT, **counted(first=1, second=0)), "2 events are lost"),
    "doubled": (lambda: replace(RIGHT, **counted(first=2, second=1)), "1 times too often"),
    "under two keys": (
        lambda: replace(RIGHT, counted={**RIGHT.counted, 1: {"first": 1, "second": 1}}),
        "counted under two keys",
    ),
    "a bit": (lambda: replace(RIGHT, totals={**RIGHT.totals, "usage-1": 1}), "totals differ"),
    "no receipt": (lambda: replace(RIGHT, receipts=[receipt("second")]), "no receipt of [0,2)"),
    "no last receipt": (lambda: replace(RIGHT, receipts=[receipt("first")]), "no receipt of [2,5)"),
    "two ranges": (
        lambda: replace(
            RIGHT, receipts=[*RIGHT.receipts, receipt("second") | {"firstOffset": 1, "items": 3}]
        ),
        "receipts of offset 1 in two ranges",
    ),
    "two keys": (
        lambda: replace(
            RIGHT, receipts=[*RIGHT.receipts, receipt("first") | {"idempotencyKey": "x"}]
        ),
        "has receipts of ['first', 'x']",
    ),
    "receipt of nothing": (lambda: change_receipt(partition=1), "covers what nobody produced"),
    "items": (lambda: change_receipt(items=1), "are (2, 0, "),
    "bits": (lambda: change_receipt(bits=0), "are (2, 0, "),
    "bits by key": (lambda: change_receipt(bitsByKey={}), "are (2, 0, "),
    "batch id": (lambda: change_receipt(batchId="batch-second"), "gave this batch id to second"),
    "no batch id": (lambda: change_receipt(batchId=None), "gave this batch id to None"),
    "no dead letter": (lambda: replace(RIGHT, dead_letters=[]), "1 dead letters are missing"),
    "innocent": (lambda: replace(RIGHT, dead_letters=[(0, 3), (0, 1)]), "1 events are in the dead"),
    "conflict": (lambda: replace(RIGHT, conflicts=["first"]), "first came with two different"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_finds_what_is_wrong(wrong: str) -> None:
    """Each planted wrong is named."""
    findings, expected = WRONG[wrong]
    assert any(expected in each for each in violations(findings())), violations(findings())
