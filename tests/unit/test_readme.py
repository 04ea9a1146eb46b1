"""What the README and the docs say of settings, codes and links is what the code says."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import get_args

import pytest

from ingester import errors
from ingester.config import updated_markdown
from ingester.core.batch import BatchBuilder, BatchLimits
from ingester.core.delivery import TABLE
from ingester.core.event import RejectionCode, event_decoder
from ingester.core.receipt import Note
from ingester.settings import Settings
from tests.support.records import PARTITION, usage_records

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OTHER_VARIABLES = {"INGESTER_CONFIG_FILE", "INGESTER_SERVICE_HOST"}  # the latter is Kubernetes' own
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_table_of_settings_is_fresh() -> None:
    """`python -m ingester.config docs/settings.md` has nothing to change."""
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert updated_markdown(text) == text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_settings_exist(document: Path) -> None:
    """Every INGESTER_* name in a document is a setting, or one of the few other variables."""
    named = set(re.findall(r"\bINGESTER_[A-Z_]*[A-Z]\b", document.read_text("utf-8")))
    known = {f"INGESTER_{name.upper()}" for name in Settings.model_fields}
    assert named <= known | OTHER_VARIABLES


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


@pytest.mark.parametrize("note", get_args(Note))
def test_every_member_of_a_note_is_explained(note: type[Note]) -> None:
    """docs/receipts.md lists what each kind of note holds, and nothing else."""
    document = (ROOT / "docs" / "receipts.md").read_text("utf-8")
    tables = dict(zip(get_args(Note), document.split("\n## ")[1:], strict=True))
    rows = re.findall(r"^\| (`.*?) \|", tables[note], re.MULTILINE)
    named = [member for row in rows for member in re.findall(r"`(\w+)`", row)]

    assert named == ["kind", *note.__struct_encode_fields__]
    assert f"| `kind` | string | `{note.__struct_config__.tag}` |" in document


def test_the_digest_of_a_receipt_is_as_explained() -> None:
    """Whoever forms the body again can compute the digest by what docs/receipts.md says."""
    limits = BatchLimits(10, body_bytes_max=2**20, linger_seconds=0)
    batch = BatchBuilder(PARTITION, 0, limits, event_decoder("refuse")).form(usage_records(3))

    assert batch.body_digest == hashlib.blake2b(batch.body, digest_size=20).digest()
    assert re.fullmatch("ingester-[0-9a-f]{40}", batch.idempotency_key)
