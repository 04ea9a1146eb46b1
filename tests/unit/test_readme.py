"""What the README and the docs say of settings, codes and links is what the code says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from ingester import errors
from ingester.config import updated_markdown
from ingester.core.delivery import TABLE
from ingester.core.event import RejectionCode
from ingester.core.receipt import Receipt

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_settings_tables_are_fresh(document: Path) -> None:
    """`python -m ingester.config README.md docs/settings.md` has nothing to change."""
    text = document.read_text(encoding="utf-8")
    if "<!-- settings -->" in text:
        assert updated_markdown(text) == text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link names a file, and every anchor in it a heading."""
    for target in re.findall(r"\]\(([^)#\s]*(?:#[^)\s]*)?)\)", document.read_text("utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{document.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings]
            assert anchor in anchors, f"{document.name} links to {target}"


def test_every_exit_code_is_explained() -> None:
    """The table of exit codes has each code of the error tree."""
    table = README[README.index("| exit code |") : README.index("## Events")]
    codes = {
        each.exit_code
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, errors.IngesterError)
    }
    for code in codes | {0, errors.EXIT_MISMATCH, errors.EXIT_PENDING}:
        assert re.search(rf"^\| [\d, ]*\b{code}\b", table, re.MULTILINE), code


def test_every_rejection_is_explained() -> None:
    """The table of bad input has each code that a dead letter can carry."""
    for code in get_args(RejectionCode):
        assert f"| `{code}` |" in README


def test_every_status_is_explained() -> None:
    """The table of answers has each status that the judgement knows."""
    table = README[README.index("## What an answer means") : README.index("## When it stops")]
    for row in TABLE:
        for status in row.statuses:
            assert str(status) in table, status


def test_every_member_of_a_receipt_is_named() -> None:
    """The chapter on receipts names what a receipt holds."""
    chapter = README[README.index("## Receipts") : README.index("## Settings")]
    members = set(Receipt.__struct_encode_fields__) - {"topic", "partition"}
    for member in members:
        assert f"`{member}`" in chapter, member
