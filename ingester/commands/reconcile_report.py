"""How a reconciliation is told: tables for people, a document for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ingester.audit.auditing import Audit
from ingester.commands.doubt_report import shown
from ingester.core.agreement import KeyResult, KeyTrail
from ingester.core.audit import DISCREPANCIES, Finding
from ingester.core.intent import Range
from ingester.core.ranges import intersected, length
from ingester.core.record import TopicPartition
from ingester.tables import Table, counted, harmless, sentence

_LOG_END: Final = 2**63 - 1  # beyond every offset
_SHOWN_MAX: Final = 50  # findings, and keys; --json has all
_KEY_SHOWN_MAX: Final = 100  # of the characters of one that cannot be asked for


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """All that was found; of the keys only those that do not agree."""

    group: str
    audit: Audit
    doubts: Sequence[Finding]
    """What was in doubt from the beginning to the end, of partitions in scope."""
    agreed: int
    results: Sequence[KeyResult]
    trails: Mapping[str, KeyTrail]
    """Where to look, for the keys that differ."""
    halts: Sequence[str]
    """Partitions that no worker goes on with, and why."""
    not_asked: Mapping[str, str]
    """Keys whose balance cannot be asked for, and why."""

    @property
    def findings(self) -> Sequence[Finding]:
        """About the partitions in scope, and what replays have under way."""
        return [*self.audit.findings, *self.doubts]

    @property
    def verdict(self) -> Literal["agreed", "discrepancy", "pending"]:
        """The worst of all."""
        statuses = {each.status for each in self.results}
        kinds = {each.kind for each in self.findings}
        if kinds & DISCREPANCIES or statuses & {"mismatch", "unknown_key"}:
            return "discrepancy"
        return "pending" if statuses or "in_doubt" in kinds or self.halts else "agreed"


def lines(found: Reconciliation) -> Iterator[str]:
    """Say everything: coverage, totals, and the verdict at the end."""
    yield from coverage_lines(found.audit, found.findings)
    yield from _totals(found)
    yield from _remarks(found)
    yield _verdict(found)


def coverage_lines(audit: Audit, findings: Sequence[Finding]) -> Iterator[str]:
    """Say what Kafka alone proves."""
    headings = ("PARTITION", "COMMITTED", "LOG", "RECEIPTS", "COVERED", "DEAD LETTERS")
    yield from Table(headings).lines([*_coverage_rows(audit)])
    yield from _findings(findings)


def _coverage_rows(audit: Audit) -> Iterator[tuple[str, ...]]:
    for name in audit.scope:
        partition = audit.partitions[name]
        committed = audit.committed.get(name)
        yield (
            str(name),
            "-" if committed is None else str(committed),
            shown(audit.logs[name]),
            str(partition.receipts),
            str(_covered(audit, name)),
            str(len(partition.dead_letters)),
        )


def _covered(audit: Audit, name: TopicPartition) -> int:
    """What receipts cover below the committed offset, or where replays were, if there is none."""
    below: list[Range] = [(0, audit.committed.get(name, _LOG_END))]
    return length(intersected(audit.partitions[name].covered.ranges, below))


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    wrong = [each for each in findings if each.kind in DISCREPANCIES]
    others = [each for each in findings if each.kind not in DISCREPANCIES]
    yield ""
    if wrong:
        yield f"Coverage: {counted(len(wrong), 'discrepancy', 'discrepancies')}."
    else:
        yield "Coverage: every record below the committed offsets is accounted for, once."
    for each in [*wrong, *others][:_SHOWN_MAX]:
        yield f"  {each.kind:<28}{each.partition}{shown(each.range)}  {harmless(each.detail)}"
    if len(findings) > _SHOWN_MAX:
        yield f"  and {len(findings) - _SHOWN_MAX} more (--json has all)"


def _totals(found: Reconciliation) -> Iterator[str]:
    results = found.results
    yield ""
    if not results:
        keys = counted(found.agreed, "key")
        yield f"Totals: {keys}, and PacSpace has of each what the receipts say."
        return
    keys = counted(found.agreed + len(results), "key")
    do = "does" if len(results) == 1 else "do"
    yield f"Totals: {len(results):,} of {keys} {do} not agree (yet)."
    kafka = () if found.audit.log_bits is None else ("KAFKA", "COUNTED AGAIN")
    headings = ("KEY", "ACCOUNT", *kafka, "RECEIPTS", "PACSPACE", "DIFFERENCE", "STATUS")
    yield from Table(headings).lines([*_key_rows(found)])
    if len(results) > _SHOWN_MAX:
        yield f"  and {len(results) - _SHOWN_MAX} more (--json has all)"
    for key, trail in [*found.trails.items()][:_SHOWN_MAX]:
        places = ", ".join(f"{name}{shown(range_)}" for name, range_ in trail.extents.items())
        receipts = counted(trail.receipts, "receipt")
        yield f"{harmless(key)} is in {receipts}{' of ' if places else ''}{places}"
        if trail.is_in_gaps:
            yield "  the difference is what the gaps above hold of it"
        for each in trail.suspects:
            yield f"  look at {each.partition}{shown(each.range)}: {each.bits} bits; {each.reason}"


def _key_rows(found: Reconciliation) -> Iterator[tuple[str, ...]]:
    for each in found.results[:_SHOWN_MAX]:
        yield (
            harmless(each.key),
            harmless(each.account or "-"),
            *(() if each.log is None else (str(each.log), str(each.again))),
            str(each.receipts),
            "-" if each.balance is None else str(each.balance),
            f"{each.difference:+d}",
            _words(each),
        )


def _words(result: KeyResult) -> str:
    if result.status == "pending":
        return "pending: under way" if result.verified else "pending: not verified yet"
    return result.status


def _remarks(found: Reconciliation) -> Iterator[str]:
    for halt in found.halts:
        yield sentence(halt)
    for key, reason in sorted(found.not_asked.items())[:_SHOWN_MAX]:
        yield (
            f"The balance of the key {harmless(key, _KEY_SHOWN_MAX)!r} cannot be asked for, and is"
            f" not compared: {harmless(reason)}."
        )
    if len(found.not_asked) > _SHOWN_MAX:
        yield f"  and {len(found.not_asked) - _SHOWN_MAX} more (--json has all)"
    for place, count in found.audit.foreign.items():
        are, were = ("is", "it was") if count == 1 else ("are", "they were")
        yield f"{counted(count, 'record')} of {place} {are} no receipt; {were} left aside."


def _verdict(found: Reconciliation) -> str:
    if found.verdict == "agreed":
        again = any(each.kind == "counted_again" for each in found.findings)
        kafka = "Kafka with what was counted again by force" if again else "Kafka"
        if any(each.kind == "letters_gone" for each in found.findings):
            return f"Nothing differs, as far as it can be told: {kafka}, the receipts and PacSpace."
        if found.not_asked:
            return f"What can be compared agrees: {kafka}, the receipts and PacSpace."
        return f"All agree: {kafka}, the receipts and PacSpace."
    if found.verdict == "pending":
        return "Nothing differs, and something is pending: run it again later."
    return "They do not agree. `ingester explain` says what became of a record at an offset above."


# -- documents ------------------------------------------------------------------------------------


def document(found: Reconciliation) -> dict[str, object]:
    """Everything for a program."""
    audit = found.audit
    return {
        "group": found.group,
        "verdict": found.verdict,
        "partitions": [
            {
                "topic": name.topic,
                "partition": name.partition,
                "committedOffset": audit.committed.get(name),
                "logBegins": audit.logs[name][0],
                "logEnds": audit.logs[name][1],
                "receipts": audit.partitions[name].receipts,
                "coveredOffsets": _covered(audit, name),
                "deadLetters": len(audit.partitions[name].dead_letters),
            }
            for name in audit.scope
        ],
        "findings": [
            {
                "kind": each.kind,
                "discrepancy": each.kind in DISCREPANCIES,
                "topic": each.partition.topic,
                "partition": each.partition.partition,
                "firstOffset": each.range[0],
                "nextOffset": each.range[1],
                "detail": each.detail,
            }
            for each in found.findings
        ],
        "keysAgreed": found.agreed,
        "keys": [_key_document(each, found.trails.get(each.key)) for each in found.results],
        "foreignRecords": sum(audit.foreign.values()),
        "halted": found.halts,
        "keysNotAsked": sorted(found.not_asked),
    }


def _key_document(result: KeyResult, trail: KeyTrail | None) -> dict[str, object]:
    return {
        "key": result.key,
        "accountId": result.account,
        "status": result.status,
        "receiptsBits": result.receipts,
        "kafkaBits": result.log,
        "countedAgainBits": result.again,
        "currentBits": result.balance,
        "difference": result.difference,
        "isInGaps": trail is not None and trail.is_in_gaps,
        "verified": result.verified,
        "ranges": [
            {
                "topic": name.topic,
                "partition": name.partition,
                "firstOffset": range_[0],
                "nextOffset": range_[1],
            }
            for name, range_ in (trail.extents if trail else {}).items()
        ],
        "suspects": [
            {
                "topic": each.partition.topic,
                "partition": each.partition.partition,
                "firstOffset": each.range[0],
                "nextOffset": each.range[1],
                "bits": each.bits,
                "reason": each.reason,
            }
            for each in (trail.suspects if trail else ())
        ],
    }
