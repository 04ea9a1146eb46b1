"""Plain tables: aligned columns for people, CSV; numbers of things, and text made harmless."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TextIO

_ROWS_ALIGNED: Final = 200  # what is aligned together, and kept that long: a table may have no end
ELLIPSIS: Final = "…"
_OF_NUMBERS: Final = frozenset({
    "AGE", "BALANCE", "BATCHES", "BEHIND", "BITS", "COMMITTED", "COUNTED AGAIN", "COVERED",
    "DEAD LETTERS", "DIFFERENCE", "END", "EVENTS", "EXPECTED", "FROM", "ITEMS", "KAFKA", "LAG",
    "LETTERS", "OFFSETS", "OLDEST", "PACSPACE", "RANGES", "RECEIPTS", "TO", "WRITES",
})  # fmt: skip
"""Headings of columns that are aligned to the right."""


class Table:
    """Lines of aligned columns, a page of rows at a time; a column widens where a page needs."""

    def __init__(self, headings: Sequence[str]) -> None:
        self._headings: Sequence[Sequence[str]] = [headings]
        self._widths = [0] * len(headings)
        self._signs = [">" if each in _OF_NUMBERS else "<" for each in headings]

    def lines(self, rows: Sequence[Sequence[str]]) -> Iterator[str]:
        """Return those of some rows, the first of all below the headings; none for none."""
        if not rows:
            return
        page = [*self._headings, *rows]
        self._headings = ()
        for row in page:
            self._widths = [
                max(width, len(cell)) for width, cell in zip(self._widths, row, strict=True)
            ]
        for row in page:
            cells = (
                f"{cell:{sign}{width}}"
                for cell, sign, width in zip(row, self._signs, self._widths, strict=True)
            )
            yield "  ".join(cells).rstrip()


class PrintedTable:
    """Prints any number of rows as they come, and keeps few of them."""

    def __init__(self, headings: Sequence[str]) -> None:
        self._table = Table(headings)
        self._page: list[Sequence[str]] = []
        self.rows_count = 0

    def add(self, row: Sequence[str]) -> None:
        """Take the next row."""
        self._page.append(row)
        self.rows_count += 1
        if len(self._page) >= _ROWS_ALIGNED:
            self.end()

    def end(self) -> None:
        """Print what is left."""
        sys.stdout.writelines(f"{line}\n" for line in self._table.lines(self._page))
        self._page = []


class CsvTable:
    """Writes rows of CSV, each cell so that it is read back as it was."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        # Python below 3.13 puts quotes around what ends lines here, and not around a bare return.
        self._writer = csv.writer(self, lineterminator="\r\n")

    def add(self, row: Iterable[object]) -> None:
        """Write the next row."""
        self._writer.writerow(row)

    def write(self, line: str) -> None:
        """Take a line of CSV."""
        self._out.write(line.removesuffix("\r\n") + "\n")


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return how many there are of something, in words; the plural takes an s unless given."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def sentence(text: str) -> str:
    """Return a text that ends with a full stop, be it that of `--reason ...`."""
    return text if text.endswith(".") else f"{text}."


def harmless(text: str, characters_max: int | None = None) -> str:
    """Return somebody else's text in one line, without what would steer a terminal."""
    if characters_max is not None and len(text) > characters_max:
        text = text[: characters_max - 1] + ELLIPSIS
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )
