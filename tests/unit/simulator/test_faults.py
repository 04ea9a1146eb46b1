"""Which requests the rules take, and how a wrong rule is refused."""

from __future__ import annotations

import msgspec
import pytest

from ingester.simulator.faults import (
    AnswerWith,
    Call,
    CutBody,
    Drop,
    Effect,
    Faults,
    Hang,
    LoseAnswer,
    Match,
    Misreport,
    Refuse,
    Rule,
    decode_rules,
    is_applied,
)

WRITE = Call("POST", "/api/v1/writes", keys=frozenset("xy"), accounts=frozenset("a"))
READ = Call("GET", "/api/v1/reads/bucket/x", keys=frozenset("x"))


def taken(faults: Faults, call: Call, times: int) -> list[int]:
    return [number for number in range(1, times + 1) if faults.take(call)]


def faults(*rules: Rule, seed: int = 0) -> Faults:
    return Faults(rules, seed=seed)


@pytest.mark.parametrize(
    ("match", "calls"),
    [
        (Match(), [WRITE, READ]),
        (Match(method="POST"), [WRITE]),
        (Match(path="/api/v1/reads/"), [READ]),
        (Match(account="a"), [WRITE]),
        (Match(account="b"), []),
        (Match(key="y"), [WRITE]),
        (Match(key="x"), [WRITE, READ]),
        (Match(key="x", method="GET"), [READ]),
    ],
)
def test_all_conditions_have_to_hold(match: Match, calls: list[Call]) -> None:
    """A rule takes the requests that fulfil every condition it names, and no others."""
    rule = Rule(match=match, effect=Drop())

    assert calls == [call for call in (WRITE, READ) if faults(rule).take(call) is rule]


def test_every_nth_counts_only_what_matches() -> None:
    """The n-th matching request is taken, however many others come in between."""
    armed = faults(Rule(match=Match(method="POST", every_nth=3), effect=Drop()))

    actual = [(armed.take(READ), armed.take(WRITE))[1] is not None for _ in range(7)]

    assert actual == [False, False, True, False, False, True, False]


def test_count_spends_a_rule() -> None:
    """A rule with a count takes that many requests and then none."""
    assert taken(faults(Rule(match=Match(count=2), effect=Drop())), WRITE, 5) == [1, 2]


def test_count_and_every_nth_combine() -> None:
    """The count is of requests taken, not of requests seen."""
    rule = Rule(match=Match(every_nth=2, count=2), effect=Drop())

    assert taken(faults(rule), WRITE, 9) == [2, 4]


def test_probability_is_decided_by_the_seed() -> None:
    """One seed gives one sequence, another seed another, both near the probability."""
    rule = Rule(match=Match(probability=0.25), effect=Drop())

    first, again, other = (taken(faults(rule, seed=seed), WRITE, 1_000) for seed in (7, 7, 8))

    assert first == again
    assert first != other
    assert 200 < len(first) < 300


def test_the_first_rule_that_takes_a_request_decides_alone() -> None:
    """Rules behind the one that took a request neither act on it nor count it."""
    first = Rule(match=Match(count=1), effect=Drop())
    second = Rule(match=Match(every_nth=2), effect=Hang())
    armed = faults(first, second)

    assert [first, None, second] == [armed.take(WRITE) for _ in range(3)]
    assert [(row["matched"], row["taken"]) for row in armed.report()] == [(1, 1), (2, 1)]


def test_clearing_disarms_everything() -> None:
    """After clear() nothing is taken and nothing is listed."""
    armed = faults(Rule(effect=Drop()))
    armed.clear()

    assert armed.take(WRITE) is None
    assert armed.report() == []


@pytest.mark.parametrize(
    ("effect", "applied"),
    [
        (None, True),
        (AnswerWith(status=503), False),
        (AnswerWith(status=503, applied=True), True),
        (Hang(), False),
        (Hang(applied=True), True),
        (Drop(), False),
        (LoseAnswer(), True),
        (CutBody(), True),
        (Misreport(flaw="missing_id"), True),
        (Refuse(), True),
    ],
)
def test_every_effect_says_whether_the_write_reaches_the_api(
    effect: Effect | None, applied: bool
) -> None:
    """Only a drop, and an answer or a hang that is not marked, keep a write from the API."""
    assert applied == is_applied(effect)


def test_rules_survive_a_round_trip_through_json() -> None:
    """What is listed can be added again."""
    rules = (
        Rule(match=Match(method="POST", every_nth=10), effect=LoseAnswer()),
        Rule(latency_seconds=0.5),
        Rule(effect=AnswerWith(status=429, retry_after=2, retry_after_form="date")),
    )

    assert rules == decode_rules(msgspec.json.encode(rules))
    assert rules[:1] == decode_rules(msgspec.json.encode(rules[0]))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b'[{"effect":{"kind":"answer","status":99}}]', "$[...].effect.status"),
        (b'[{"effect":{"kind":"explode"}}]', "explode"),
        (b'[{"effect":{"kind":"drop","applied":true}}]', "unknown field `applied`"),
        (b'[{"match":{"every":3},"effect":{"kind":"drop"}}]', "unknown field `every`"),
        (b'[{"match":{"probability":1.5},"effect":{"kind":"drop"}}]', "match.probability"),
        (b'[{"latency_seconds":-1}]', "latency_seconds"),
        (b'[{"match":{"method":"POST"}}]', "needs an `effect`"),
        (b"[", "truncated"),
    ],
)
def test_a_wrong_rule_is_refused_by_name(text: bytes, complaint: str) -> None:
    """The error names the member that is wrong."""
    with pytest.raises(msgspec.MsgspecError) as refused:
        decode_rules(text)

    assert complaint.replace("[...]", "[0]") in str(refused.value).replace("[...]", "[0]")
