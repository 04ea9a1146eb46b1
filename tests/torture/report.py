"""What a torture came to: two Markdown tables, and the same as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from tests.torture.outcome import Outcome

_POINT_COLUMNS = (
    "killed at",
    "kills",
    "batches in doubt",
    "resent",
    "doubles, keys honoured",
    "doubles, keys ignored",
    "seconds from start to kill (mean)",
)
_ROUND_COLUMNS = (
    "round",
    "keys",
    "in doubt",
    "kills",
    "events",
    "requests",
    "doubles",
    "halted",
    "seconds",
    "violations",
)


def by_point(outcomes: Iterable[Outcome]) -> dict[str, dict[str, float]]:
    """The figures of each point over all rounds, in the order in which they came up."""
    figures: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        kind = "doubles_honoured" if outcome.honours_keys else "doubles_ignored"
        for death in outcome.deaths:
            point = figures.setdefault(death.point, Counter())
            point["kills"] += 1
            point["seconds"] += death.seconds
        for name, of in (
            ("in_doubt", outcome.in_doubt),
            ("resent", outcome.resent),
            (kind, outcome.doubles),
        ):
            for point_name, number in of.items():
                figures[point_name][name] += number
    return {name: dict(point) for name, point in figures.items()}


def as_markdown(outcomes: Sequence[Outcome]) -> str:
    """The table by point and the table by round, and what went wrong in words."""
    points = [
        (
            name,
            int(each["kills"]),
            int(each.get("in_doubt", 0)),
            int(each.get("resent", 0)),
            int(each.get("doubles_honoured", 0)),
            int(each.get("doubles_ignored", 0)),
            f"{each['seconds'] / each['kills']:.1f}",
        )
        for name, each in by_point(outcomes).items()
    ]
    rounds = [
        (
            each.name,
            "honoured" if each.honours_keys else "ignored",
            each.in_doubt_policy,
            each.kills,
            each.events,
            each.requests,
            sum(each.doubles.values()),
            each.halted,
            f"{each.seconds:.0f}",
            len(each.violations),
        )
        for each in outcomes
    ]
    together = (
        "together",
        "",
        "",
        sum(each.kills for each in outcomes),
        sum(each.events for each in outcomes),
        sum(each.requests for each in outcomes),
        sum(sum(each.doubles.values()) for each in outcomes),
        sum(each.halted for each in outcomes),
        f"{sum(each.seconds for each in outcomes):.0f}",
        sum(len(each.violations) for each in outcomes),
    )
    parts = [_table(_POINT_COLUMNS, points), _table(_ROUND_COLUMNS, [*rounds, together])]
    exits: Counter[int] = Counter()
    for each in outcomes:
        exits.update(each.own_exits)
    if exits:
        codes = ", ".join(f"{code} ({number} times)" for code, number in sorted(exits.items()))
        parts.append(f"Workers ended by themselves, or with something unsettled: {codes}.")
    if tracebacks := sum(each.tracebacks for each in outcomes):
        parts.append(f"Log lines of workers that carry a traceback: {tracebacks}.")
    parts += [
        f"VIOLATION in {each.name}: {violation}"
        for each in outcomes
        for violation in each.violations
    ]
    return "\n\n".join(parts)


def as_data(outcomes: Sequence[Outcome], *, seed: int, kills: int) -> dict[str, Any]:
    """Everything, for a JSON file."""
    return {
        "seed": seed,
        "kills": kills,
        "violations": sum(len(each.violations) for each in outcomes),
        "points": by_point(outcomes),
        "rounds": [
            {
                **asdict(each),
                "deaths": [
                    {"point": death.point, "worker": death.worker, "seconds": death.seconds}
                    for death in each.deaths
                ],
            }
            for each in outcomes
        ],
    }


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
