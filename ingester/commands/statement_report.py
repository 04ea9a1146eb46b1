"""How a statement is told: a table or CSV for people, a document for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

from ingester.core.agreement import Agreement, KeyResult
from ingester.core.audit import DISCREPANCIES, Finding
from ingester.core.receipt import Replay
from ingester.core.statement import Line, Statement, Tally
from ingester.tables import CsvTable, Table, harmless, sentence

_KEY_SHOWN_MAX: Final = 100  # of the characters of one that cannot be asked for
_COLUMNS: Final = (
    "key",
    "events",
    "bits",
    "batches",
    "first_event",
    "last_event",
    "first_settled_at",
    "last_settled_at",
    "balance",
    "agreement",
)


@dataclass(frozen=True, slots=True)
class Account:
    """A statement with what proves it."""

    statement: Statement
    bits: Mapping[str, int]
    """By key, whenever it was: what all receipts add up to."""
    results: Mapping[str, KeyResult]
    """Keys whose balance does not agree."""
    not_asked: Mapping[str, str]
    """Keys whose balance cannot be asked for, and why."""
    findings: Sequence[Finding]
    """What is to be said of the receipts altogether, and of what is in doubt."""
    lost: Sequence[str]
    """Where retention may have taken events of the period."""
    made_at: datetime
    halts: Sequence[str] = ()
    """Partitions that no worker goes on with, and why."""
    claims: Mapping[str, Replay] = field(default_factory=dict)
    """Of replays that count by force, by name."""

    @property
    def verdict(self) -> Literal["agreed", "discrepancy", "pending"]:
        """The worst of all."""
        statuses = {each.status for each in self.results.values()}
        kinds = {each.kind for each in self.findings}
        gone = self.lost or self.statement.untold.events
        if gone or kinds & DISCREPANCIES or statuses & {"mismatch", "unknown_key"}:
            return "discrepancy"
        waits = self.statement.waiting.events or self.halts or "in_doubt" in kinds
        return "pending" if statuses or waits else "agreed"

    @property
    def remarks(self) -> Sequence[str]:
        """What a reader has to know beside the lines."""
        statement = self.statement
        said = [f"Incomplete: {each}." for each in self.lost]
        if statement.untold.events:
            said.append(
                f"Incomplete: {_counted(statement.untold)} are in no line, for they are in batches"
                " of which dead letters were deleted, and may have been among these; `ingester"
                " reconcile` names the batches."
            )
        if statement.waiting.events:
            said.append(f"Not settled yet, and in no line: {_counted(statement.waiting)}.")
        if statement.refused.events:
            said.append(
                f"In the dead-letter topic, and in no line: {_counted(statement.refused)};"
                " `ingester dlq list` shows them."
            )
        said += self._letters_said()
        if statement.skipped.events:
            said.append(
                f"Passed by somebody's decision, and in no line: {_counted(statement.skipped)};"
                " `ingester reconcile` says who decided."
            )
        said += map(self._recount_said, statement.recounted)
        if any(each.kind in DISCREPANCIES for each in self.findings):
            said.append(
                "The receipts do not cover each record once: `ingester reconcile` says where."
            )
        said += [f"Halted: {sentence(each)}" for each in self.halts]
        if any(each.kind == "in_doubt" for each in self.findings):
            said.append("A batch is in doubt: `ingester reconcile` says which.")
        for key, reason in sorted(self.not_asked.items()):
            said.append(
                f"The balance of the key {harmless(key, _KEY_SHOWN_MAX)!r} cannot be asked for, and"
                f" is not compared: {harmless(reason)}."
            )
        if statement.end_ms > self.made_at.timestamp() * 1000:
            said.append("The period has not ended yet.")
        return list(map(harmless, said))

    def _letters_said(self) -> Iterator[str]:
        statement = self.statement
        if broken := statement.broken.total():
            codes = ", ".join(f"{count} {code}" for code, count in (+statement.broken).items())
            yield (
                f"In the dead-letter topic, and in no line: {broken} records that are no usage"
                f" event ({codes}); `ingester dlq list` shows them."
            )
        if statement.nameless:
            yield (
                f"In the dead-letter topic: {statement.nameless} records of the period that are no"
                " usage event and name no account; `ingester dlq list` shows them."
            )

    def _recount_said(self, replay: str) -> str:
        claim = self.claims.get(replay)
        why = f"; by {claim.by}: {claim.reason}" if claim else ""
        counted = _counted(self.statement.recounted[replay])
        return f"Counted again by force, beside the lines, by the replay {replay}: {counted}{why}."

    def agreement_on(self, key: str) -> Agreement | Literal["not_asked"]:
        """Whether PacSpace's balance of a key is what its receipts add up to."""
        if key in self.not_asked:
            return "not_asked"
        result = self.results.get(key)
        return result.status if result else "agreed"

    def balance_of(self, key: str) -> int | None:
        """What PacSpace has of a key, whenever it was."""
        if key in self.not_asked:
            return None
        result = self.results.get(key)
        return result.balance if result else self.bits[key]

    @property
    def lines(self) -> Sequence[Line]:
        """Those of the statement, by key."""
        return [line for _, line in sorted(self.statement.lines.items())]


def _counted(tally: Tally) -> str:
    return f"{tally.events} events, {tally.bits} bits"


def lines(found: Account) -> Iterator[str]:
    """Say it as a table with its totals, then what is to be known beside it."""
    statement = found.statement
    period = f"{_moment(statement.begin_ms)} to {_moment(statement.end_ms)}"
    yield f"Statement of {harmless(statement.account)}, {period}, made at {_second(found.made_at)}"
    yield ""
    totals = statement.totals
    table = [[harmless(cell) for cell in row] for row in rows(found)]
    total = ["TOTAL", str(totals.events), str(totals.bits), *[""] * (len(_COLUMNS) - 3)]
    headings = [name.replace("_", " ").upper() for name in _COLUMNS]
    yield from Table(headings).lines([*table, total])
    yield ""
    yield from found.remarks
    if found.verdict == "agreed":
        complete = "Complete, and both" if statement.is_whole else "Both"
        asked = " that can be asked for" if found.not_asked else ""
        yield f"{complete} parties agree on the balance of each key{asked}."
    elif found.verdict == "pending" and not found.results:
        yield "Nothing differs, and something is pending: run it again later."
    elif found.results:
        yield "The balances do not all agree (yet): `ingester reconcile` says more."


def rows(found: Account) -> Iterator[list[str]]:
    """One for each key; the balance is that of all time, and so is the agreement."""
    for line in found.lines:
        balance = found.balance_of(line.key)
        yield [
            line.key,
            str(line.events),
            str(line.bits),
            str(line.batches),
            str(line.first),
            str(line.last),
            _settled_at(line.first_settled_at_ms) or "",
            _settled_at(line.last_settled_at_ms) or "",
            "" if balance is None else str(balance),
            found.agreement_on(line.key),
        ]


def write_csv(table: Iterator[list[str]], out: TextIO) -> None:
    """Write the rows below their headings."""
    written = CsvTable(out)
    written.add(_COLUMNS)
    for row in table:
        written.add(row)


def _moment(milliseconds: int) -> str:
    return _second(datetime.fromtimestamp(milliseconds / 1000, UTC))


def _settled_at(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else _moment(milliseconds)


def _second(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def document(found: Account) -> dict[str, object]:
    """Everything for a program."""
    statement = found.statement
    totals = statement.totals
    return {
        "accountId": statement.account,
        "from": _moment(statement.begin_ms),
        "to": _moment(statement.end_ms),
        "madeAt": _second(found.made_at),
        "verdict": found.verdict,
        "complete": statement.is_whole and not found.lost,
        "untold": {"events": statement.untold.events, "bits": statement.untold.bits},
        "lines": [
            {
                "key": line.key,
                "events": line.events,
                "bits": line.bits,
                "batches": line.batches,
                "firstEvent": str(line.first),
                "lastEvent": str(line.last),
                "firstSettledAt": _settled_at(line.first_settled_at_ms),
                "lastSettledAt": _settled_at(line.last_settled_at_ms),
                "currentBits": found.balance_of(line.key),
                "agreement": found.agreement_on(line.key),
            }
            for line in found.lines
        ],
        "totals": {"events": totals.events, "bits": totals.bits},
        "waiting": {"events": statement.waiting.events, "bits": statement.waiting.bits},
        "deadLetters": {"events": statement.refused.events, "bits": statement.refused.bits},
        "deadLettersThatAreNoEvent": {**+statement.broken},
        "deadLettersWithoutAccount": statement.nameless,
        "skipped": {"events": statement.skipped.events, "bits": statement.skipped.bits},
        "countedAgain": [
            {"replay": replay, "events": tally.events, "bits": tally.bits}
            for replay, tally in statement.recounted.items()
        ],
        "halted": found.halts,
        "remarks": found.remarks,
    }
