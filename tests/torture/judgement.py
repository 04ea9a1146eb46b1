"""Brings together what a round left in Kafka, at the endpoint and in logs, and has it judged."""

from __future__ import annotations

import json
from collections import Counter

from tests.support.kafka import read_all
from tests.torture.audit import Findings, doubles, violations
from tests.torture.stage import Round

_EXIT_BUG = 70


async def judge(round_: Round, servers: str) -> None:
    """Add to the round's outcome what it came to, and every violation."""
    receipts = [
        json.loads(record.value) for record in await read_all(servers, f"{round_.topic}.receipts")
    ]
    letters = [
        dict(record.headers) for record in await read_all(servers, f"{round_.topic}.dead-letters")
    ]
    outcome, endpoint = round_.outcome, round_.endpoint
    may_double = not outcome.honours_keys and outcome.in_doubt_policy == "retry"
    findings = Findings(
        produced=round_.produced,
        committed=await round_.committed(),
        receipts=receipts,
        dead_letters=[
            (int(each["ingester-source-partition"]), int(each["ingester-source-offset"]))
            for each in letters
        ],
        counted=endpoint.counted,
        totals=endpoint.totals,
        applications=endpoint.applications,
        batch_keys=endpoint.batch_keys,
        conflicts=endpoint.conflicts,
        in_doubt=_taken_over(round_) if may_double else {},
        halted=round_.halted_at_end,
    )
    outcome.violations += violations(findings)
    outcome.halted = len(round_.halted_at_end)
    again = set(doubles(findings))
    times = Counter(arrival.idempotency_key for arrival in endpoint.arrivals)
    outcome.in_doubt = _by_point(round_, set(times))
    outcome.resent = _by_point(round_, {key for key in times if times[key] > 1})
    outcome.doubles = _by_point(round_, again)
    outcome.violations += [
        f"{key} was counted twice, and no receipt says that it was in doubt"
        for key in sorted(again - {each["idempotencyKey"] for each in receipts if each["inDoubt"]})
    ]
    for name, worker in round_.workers.items():
        log = worker.process.log()
        outcome.tracebacks += log.count('"exception":')
        if worker.process.exit_code == _EXIT_BUG or "\nTraceback" in log:
            outcome.violations.append(f"{name} ended by a bug:\n{log[-2000:]}")
        if outcome.in_doubt_policy == "retry" and worker.events("partition.halted"):
            reason = worker.events("partition.halted")[0]["reason"]
            outcome.violations.append(f"{name} halted a partition: {reason}")


def _taken_over(round_: Round) -> Counter[str]:
    """At how many assignments each key had reached the endpoint and had no receipt.

    Each member that is assigned anything counts, so that the number is a bound and no more.
    """
    receipted = round_.steps.receipted
    first: dict[str, int] = {}
    for number, arrival in enumerate(round_.endpoint.arrivals):
        first.setdefault(arrival.idempotency_key, number)
    return Counter(
        key
        for arrivals, receipts in round_.takeovers
        for key, number in first.items()
        if number < arrivals and receipted.get(key, receipts) >= receipts
    )


def _by_point(round_: Round, keys: set[str]) -> dict[str, int]:
    """Count keys by the point of the first death that left each in doubt, if one did."""
    counts: Counter[str] = Counter()
    rest = set(keys)
    for death in round_.outcome.deaths:
        left = {
            arrival.idempotency_key
            for arrival in round_.endpoint.arrivals[: death.arrivals]
            if arrival.worker == death.worker
            and round_.steps.receipted.get(arrival.idempotency_key, death.receipts)
            >= death.receipts
        }
        counts[death.point] += len(rest & left)
        rest -= left
    return dict(+counts)
