"""Tables for people, and rows of CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from ingester.tables import CsvTable, Table, counted

README = Path(__file__).parents[2] / "README.md"


def test_a_cell_is_read_back_as_it_was() -> None:
    """A bare carriage return, too, which Python does not put in quotes before 3.13."""
    rows = [["a\rb", "a\nb", "a\r\nb"], ['a"b', "a,b", "\r\n"], ["", "5", "last\r"]]
    out = io.StringIO(newline="")
    table = CsvTable(out)

    for row in rows:
        table.add(row)

    assert rows == list(csv.reader(io.StringIO(out.getvalue(), newline=""), strict=True))
    assert out.getvalue().endswith('\n,5,"last\r"\n')


def printed() -> Iterator[list[str]]:
    """The tables of the README's samples, line by line."""
    lines = iter(README.read_text().splitlines())
    for line in lines:
        headings = re.split("  +", line)
        if len(headings) > 4 and all(re.fullmatch("[A-Z ]+", each) for each in headings):
            table = [line]
            for row in lines:
                if len(re.split("  +", row)) != len(headings):
                    break
                table.append(row)
            yield table


def test_the_samples_of_the_readme_are_aligned_as_the_commands_print_them() -> None:
    """Numbers to the right, and each column as wide as it needs."""
    samples = [*printed()]
    assert len(samples) >= 5
    for sample in samples:
        headings, *rows = [re.split("  +", line) for line in sample]
        assert sample == [*Table(headings).lines(rows)]


def test_one_of_a_thing_is_told_in_the_singular() -> None:
    """And a thousand with a comma."""
    assert counted(1, "batch", "batches") == "1 batch"
    assert counted(1000, "offset") == "1,000 offsets"
