"""How the balances of many keys are told, as they come: a table, CSV, or one JSON document."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Final, Literal, Protocol

import msgspec

from ingester.audit.balances import NotAsked
from ingester.pacspace import Agreement, Balance, UnknownKey
from ingester.tables import CsvTable, PrintedTable, harmless

Found = Agreement | Balance | UnknownKey | NotAsked
Status = Literal["read", "agreed", "mismatch", "pending_verification", "unknown_key", "not_asked"]

_COLUMNS: Final = (
    "key", "accountId", "status", "currentBits", "expected", "difference", "totalWrites",
    "verified", "lastWriteAt",
)  # fmt: skip
_HEADINGS: Final = ("KEY", "ACCOUNT", "BITS", "WRITES", "EXPECTED", "DIFFERENCE", "STATUS")


class Report(Protocol):
    """What is told of each balance, and at the end."""

    def add(self, key: str, status: Status, found: Found) -> None: ...

    def end(self, statuses: Counter[Status]) -> None: ...


class TableReport:
    """Rows for people, and a sentence behind them."""

    def __init__(self) -> None:
        self._table = PrintedTable(_HEADINGS)

    def add(self, key: str, status: Status, found: Found) -> None:
        """Print a row."""
        balance = _balance(found)
        expected = found.expected if isinstance(found, Agreement) else None
        self._table.add(
            (
                harmless(key),
                harmless(balance.account_id) if balance else "-",
                str(balance.current_bits) if balance else "-",
                str(balance.total_writes) if balance else "-",
                "-" if expected is None else str(expected),
                "-" if (difference := _difference(found)) is None else f"{difference:+d}",
                status.replace("_", " "),
            )
        )

    def end(self, statuses: Counter[Status]) -> None:
        """Print how many are how."""
        self._table.end()
        parts = [f"{count} {status.replace('_', ' ')}" for status, count in statuses.most_common()]
        sys.stdout.write(f"{statuses.total()} keys{': ' if parts else ''}{', '.join(parts)}\n")


class CsvReport:
    """A line for each key below a line of columns."""

    def __init__(self) -> None:
        self._table = CsvTable(sys.stdout)
        self._table.add(_COLUMNS)

    def add(self, key: str, status: Status, found: Found) -> None:
        """Write a line; what is not known is empty."""
        balance = _balance(found)
        self._table.add(
            (
                key,
                balance.account_id if balance else None,
                status,
                balance.current_bits if balance else None,
                found.expected if isinstance(found, Agreement) else None,
                _difference(found),
                balance.total_writes if balance else None,
                str(balance.verified).lower() if balance else None,
                balance.last_write_at if balance else None,
            )
        )

    def end(self, statuses: Counter[Status]) -> None:
        """Nothing follows."""


class JsonReport:
    """One document, an element of which is what the balance of one key prints."""

    def __init__(self) -> None:
        self._before = b'{"balances":['

    def add(self, key: str, status: Status, found: Found) -> None:
        """Write an element."""
        sys.stdout.buffer.write(self._before + msgspec.json.encode(document(key, status, found)))
        self._before = b",\n"

    def end(self, statuses: Counter[Status]) -> None:
        """Close the document."""
        before = self._before if not statuses else b""
        counts = msgspec.json.encode(dict(statuses))
        sys.stdout.buffer.write(before + b'],"statuses":' + counts + b"}\n")


def document(key: str, status: Status, found: Found) -> dict[str, object]:
    """A balance as `--json` has it."""
    balance = _balance(found)
    document: dict[str, object] = {"key": key, "status": status}
    if isinstance(found, Agreement):
        document["expected"] = found.expected
    document["balance"] = balance
    return document


def _balance(found: Found) -> Balance | None:
    balance = found.balance if isinstance(found, Agreement) else found
    return balance if isinstance(balance, Balance) else None


def _difference(found: Found) -> int | None:
    balance = _balance(found)
    if balance is None or not isinstance(found, Agreement):
        return None
    return balance.current_bits - found.expected
