"""Judges a round from outside: what was produced, committed, receipted, dead-lettered, applied.

Pure: it gets what Kafka and the endpoint say, and returns sentences. No sentence, no violation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

NAMED_MAX = 5  # examples in one sentence


@dataclass(frozen=True, slots=True)
class Produced:
    """One record of the usage topic; without `event` it is none that can be settled."""

    partition: int
    offset: int
    event: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Findings:
    """What there is at the end of a round."""

    produced: Sequence[Produced]
    committed: Mapping[int, int]
    """Next offsets by partition."""
    receipts: Sequence[Mapping[str, Any]]
    dead_letters: Sequence[tuple[int, int]]
    """Partition and offset of what each dead letter says it was."""
    counted: Mapping[int, Mapping[str, int]]
    """How often each event was applied, by its number, under each Idempotency-Key."""
    totals: Mapping[str, int]
    """Bits by key, as the endpoint holds them."""
    applications: Mapping[str, int]
    """How often each Idempotency-Key was applied."""
    batch_keys: Mapping[str, str]
    """The Idempotency-Key behind each batch id."""
    conflicts: Sequence[str] = ()
    in_doubt: Mapping[str, int] = field(default_factory=dict)
    """How often each Idempotency-Key was left in doubt; empty where keys are honoured."""
    halted: AbstractSet[int] = frozenset()
    """Partitions that may end unsettled."""


def violations(findings: Findings) -> list[str]:
    """Say what is wrong; empty when nothing is."""
    return [
        *_unsettled(findings),
        *_wrongly_receipted(findings),
        *_wrong_dead_letters(findings),
        *_wrongly_counted(findings),
        *_needless_doubles(findings),
        *(f"the key {key} came with two different bodies" for key in findings.conflicts),
    ]


def doubles(findings: Findings) -> dict[str, int]:
    """How often more than once each Idempotency-Key was applied."""
    return {key: times - 1 for key, times in findings.applications.items() if times > 1}


def _unsettled(findings: Findings) -> Iterable[str]:
    ends: dict[int, int] = {}
    for each in findings.produced:
        ends[each.partition] = max(each.offset + 1, ends.get(each.partition, 0))
    for partition, end in sorted(ends.items()):
        committed = findings.committed.get(partition, 0)
        if committed > end or (committed < end and partition not in findings.halted):
            yield f"partition {partition} ends at {end}, and {committed} is committed"


def _wrongly_receipted(findings: Findings) -> Iterable[str]:
    """Each offset below the committed one is in exactly one range; a range has one key."""
    log = {(each.partition, each.offset): each for each in findings.produced}
    ranges: dict[int, dict[tuple[int, int], set[str]]] = defaultdict(lambda: defaultdict(set))
    for receipt in findings.receipts:
        span = (receipt["firstOffset"], receipt["nextOffset"])
        ranges[receipt["partition"]][span].add(receipt["idempotencyKey"])
        records = [log.get((receipt["partition"], offset)) for offset in range(*span)]
        if None in records:
            yield f"a receipt covers what nobody produced: {receipt}"
            continue
        events = [each.event for each in records if each and each.event is not None]
        bits_by_key: Counter[str] = Counter()
        for event in events:
            bits_by_key[event["key"]] += event["bits"]
        expected = (len(events), len(records) - len(events), sum(bits_by_key.values()))
        said = (receipt["items"], receipt["deadLetters"], receipt["bits"])
        if said != expected or receipt["bitsByKey"] != dict(bits_by_key):
            yield f"(items, dead letters, bits) are {expected} in the log; the receipt: {receipt}"
        known = findings.batch_keys.get(receipt["batchId"] or "")
        if events and known != receipt["idempotencyKey"]:
            yield f"the endpoint gave this batch id to {known}; the receipt: {receipt}"
    for partition, committed in findings.committed.items():
        covered = 0
        for (first, next_offset), keys in sorted(ranges[partition].items()):
            if len(keys) > 1:
                span = f"[{first},{next_offset})"
                yield f"partition {partition} {span} has receipts of {sorted(keys)}"
            if first < covered:
                yield f"partition {partition} has receipts of offset {first} in two ranges"
            elif first > covered and covered < committed:
                yield f"partition {partition} has no receipt of [{covered},{first})"
            covered = max(covered, next_offset)
        if covered < committed:
            yield f"partition {partition} has no receipt of [{covered},{committed})"


def _wrong_dead_letters(findings: Findings) -> Iterable[str]:
    """Each record that is no event is there, perhaps repeatedly after a crash, and no other."""
    bad = {(each.partition, each.offset) for each in findings.produced if each.event is None}
    written = set(findings.dead_letters)
    due = {each for each in bad if each[1] < findings.committed.get(each[0], 0)}
    if missing := sorted(due - written):
        yield f"{len(missing)} dead letters are missing: {missing[:NAMED_MAX]}"
    if innocent := sorted(written - bad):
        yield f"{len(innocent)} events are in the dead letters: {innocent[:NAMED_MAX]}"


def _wrongly_counted(findings: Findings) -> Iterable[str]:
    """Each event below the committed offset is applied, each under one key, and bits add up."""
    lost: list[int] = []
    doubled: list[int] = []
    sums: dict[str, int] = defaultdict(int)
    for each in findings.produced:
        if each.event is None:
            continue
        number = each.event["metadata"]["number"]
        times = findings.counted.get(number, {})
        sums[each.event["key"]] += each.event["bits"] * sum(times.values())
        if not times and each.offset < findings.committed.get(each.partition, 0):
            lost.append(number)
        if len(times) > 1:
            doubled.append(number)
    if lost:
        yield f"{len(lost)} events are lost: {lost[:NAMED_MAX]}"
    if doubled:
        yield f"{len(doubled)} events are counted under two keys: {doubled[:NAMED_MAX]}"
    wrong = {
        key: (sums[key], findings.totals.get(key, 0))
        for key in sums
        if sums[key] != findings.totals.get(key, 0)
    }
    if wrong:
        yield f"totals differ from what was produced: {wrong}"


def _needless_doubles(findings: Findings) -> Iterable[str]:
    """No key is applied more often again than a crash left it in doubt."""
    for key, times in doubles(findings).items():
        if times > findings.in_doubt.get(key, 0):
            yield (
                f"{key} was applied {times} times too often, and left in doubt"
                f" {findings.in_doubt.get(key, 0)} times"
            )
