"""Faults on demand: which requests are picked, and what becomes of them. Pure but for its counters.

Rules are tried in the order they were added, and the first that takes a request decides alone;
the rules behind it do not count that request. Every effect says whether the write is applied.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

_Status = Annotated[int, Meta(ge=200, le=599)]
_Seconds = Annotated[float, Meta(ge=0)]
_Count = Annotated[int, Meta(ge=1)]

Envelope = Literal["e1", "e2", "html", "empty"]


class Match(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which requests a rule takes: all conditions must hold, absent ones do."""

    method: Literal["GET", "POST"] | None = None
    path: str | None = None
    """A prefix of the percent-decoded path."""
    account: str | None = None
    """An account of any item in the request."""
    key: str | None = None
    """A key of any item in the request, or the key that is read."""
    every_nth: _Count = 1
    """Of the requests that match all of the above, the n-th, the 2n-th and so on."""
    probability: Annotated[float, Meta(gt=0, le=1)] = 1.0
    count: _Count | None = None
    """How many requests the rule takes before it is spent."""


class AnswerWith(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="answer"
):
    """Answer with a status, as a proxy or a failing server would, before anything is looked at."""

    status: _Status
    envelope: Envelope = "e1"
    code: str | None = None
    message: str | None = None
    retry_after: Annotated[int, Meta(ge=0)] | None = None
    """The `Retry-After` header, in seconds from now."""
    retry_after_form: Literal["seconds", "date"] = "seconds"
    retry_after_seconds: Annotated[int, Meta(ge=0)] | None = None
    """The member `retryAfterSeconds` of the body."""
    applied: bool = False


class Refuse(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="refuse"
):
    """Refuse a write as the API's own validation does; a known key may be looked up before."""

    status: Annotated[int, Meta(ge=400, le=499)] = 400
    code: str | None = None
    message: str | None = None


class Misreport(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="misreport"
):
    """Apply a write, but acknowledge it with a wrong `itemCount` or without an id."""

    flaw: Literal["wrong_item_count", "missing_id"]


class LoseAnswer(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="lose"):
    """Apply a write, then cut the connection before any answer."""


class CutBody(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="cut_body"):
    """Apply a write, then cut the connection in the middle of the answer's body."""


class Drop(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="drop"):
    """Cut the connection without applying anything."""


class Hang(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="hang"):
    """Never answer; the connection stays open until the client has enough."""

    applied: bool = False


Effect = AnswerWith | Refuse | Misreport | LoseAnswer | CutBody | Drop | Hang


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A fault: who is hit, how long it takes, and how it ends (normally, without an effect)."""

    match: Match = Match()
    latency_seconds: _Seconds = 0.0
    effect: Effect | None = None

    def __post_init__(self) -> None:
        """Refuse a rule that would do nothing."""
        if self.effect is None and not self.latency_seconds:
            raise ValueError("a rule needs an `effect`, `latency_seconds`, or both")


def is_applied(effect: Effect | None) -> bool:
    """Whether a write that meets this effect goes on to the API."""
    match effect:
        case Drop():
            return False
        case AnswerWith(applied=applied) | Hang(applied=applied):
            return applied
        case _:
            return True


def decode_rules(text: bytes) -> tuple[Rule, ...]:
    """Return the rules of a JSON document: one object, or an array of them.

    Raises msgspec.MsgspecError, whose message names the offending member.
    """
    rules = msgspec.json.decode(text, type=Rule | list[Rule])
    return (rules,) if isinstance(rules, Rule) else tuple(rules)


@dataclass(frozen=True, slots=True)
class Call:
    """A request as far as rules look at it."""

    method: str
    path: str
    keys: frozenset[str] = frozenset()
    accounts: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Armed:
    rule: Rule
    chance: random.Random
    matched: int = 0
    taken: int = 0

    def takes(self, call: Call) -> bool:
        match = self.rule.match
        if match.count is not None and self.taken >= match.count:
            return False
        if not (
            (match.method is None or match.method == call.method)
            and (match.path is None or call.path.startswith(match.path))
            and (match.account is None or match.account in call.accounts)
            and (match.key is None or match.key in call.keys)
        ):
            return False
        self.matched += 1
        if self.matched % match.every_nth or self.chance.random() >= match.probability:
            return False
        self.taken += 1
        return True


class Faults:
    """The rules in force, and how often each was met."""

    def __init__(self, rules: Iterable[Rule], *, seed: int) -> None:
        """Arm the first rules; one seed gives one sequence of decisions."""
        self._seed = seed
        self._armed: list[_Armed] = []
        self.add(rules)

    def add(self, rules: Iterable[Rule]) -> None:
        """Arm further rules, behind those in force."""
        for rule in rules:
            # A generator for each rule: adding one does not change what the others decide.
            chance = random.Random(f"{self._seed}/{len(self._armed)}")  # noqa: S311 - reproducible
            self._armed.append(_Armed(rule, chance))

    def clear(self) -> None:
        """Disarm all rules."""
        self._armed.clear()

    def take(self, call: Call) -> Rule | None:
        """Return the rule that decides on this request, if any."""
        return next((armed.rule for armed in self._armed if armed.takes(call)), None)

    def report(self) -> list[dict[str, object]]:
        """Return each rule with how many requests matched it and how many it took."""
        return [
            {"rule": armed.rule, "matched": armed.matched, "taken": armed.taken}
            for armed in self._armed
        ]
