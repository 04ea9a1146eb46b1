"""Rows of CSV."""

from __future__ import annotations

import csv
import io

from ingester.tables import CsvTable


def test_a_cell_is_read_back_as_it_was() -> None:
    """A bare carriage return, too, which Python does not put in quotes before 3.13."""
    rows = [["a\rb", "a\nb", "a\r\nb"], ['a"b', "a,b", "\r\n"], ["", "5", "last\r"]]
    out = io.StringIO(newline="")
    table = CsvTable(out)

    for row in rows:
        table.add(row)

    assert rows == list(csv.reader(io.StringIO(out.getvalue(), newline=""), strict=True))
    assert out.getvalue().endswith('\n,5,"last\r"\n')
