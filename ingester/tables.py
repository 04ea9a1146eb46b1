"""Plain tables for people: aligned columns below a line of headings, and text made harmless."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

_ROWS_ALIGNED: Final = 200  # what is aligned together, and kept that long: a table may have no end
ELLIPSIS: Final = "…"


class Table:
    """Prints rows a page at a time; a column widens where a later page needs it."""

    def __init__(self, headings: Sequence[str]) -> None:
        self._page: list[Sequence[str]] = [headings]
        self._widths = [0] * len(headings)
        self.rows_count = 0

    def add(self, row: Sequence[str]) -> None:
        """Take the next row."""
        self._page.append(row)
        self.rows_count += 1
        if len(self._page) >= _ROWS_ALIGNED:
            self._print()

    def end(self) -> None:
        """Print what is left; a table without rows has no headings either."""
        if self.rows_count:
            self._print()

    def _print(self) -> None:
        for row in self._page:
            self._widths = [
                max(width, len(cell)) for width, cell in zip(self._widths, row, strict=True)
            ]
        for row in self._page:
            cells = (f"{cell:<{width}}" for cell, width in zip(row, self._widths, strict=True))
            sys.stdout.write("  ".join(cells).rstrip() + "\n")
        self._page = []


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
