"""Corrections of whatever may lie in a dead-letter topic."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from ingester.core.event import Rejection, event_decoder
from ingester.core.mapping import CorrectedDecode, correction_of

NAMES = st.sampled_from(["key", "accountId", "bits", "metadata", "a", "b"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=6).map(json.dumps).map(str.encode)
PATHS = st.lists(NAMES, min_size=1, max_size=2).map(".".join)
TEMPLATES = st.lists(st.sampled_from(["x", "7", "{{"]) | PATHS.map("{{{}}}".format), max_size=3)
SETS = st.tuples(
    st.sampled_from(["key", "accountId", "bits", "metadata.a", "metadata.b.a"]),
    TEMPLATES.map("".join),
).map("=".join)


@given(OBJECTS | st.binary(), st.lists(SETS, max_size=3, unique_by=lambda each: each.split("=")[0]),
       st.lists(PATHS, max_size=2))  # fmt: skip
def test_every_value_is_an_event_or_refused(
    value: bytes, sets: list[str], removes: list[str]
) -> None:
    """Whatever it is, and whatever is asked; what is an event afterwards stays one."""
    decode = CorrectedDecode("ignore", correction_of(sets, removes))

    found = decode(value)

    if isinstance(found, Rejection):
        assert found.detail
    else:
        assert event_decoder("refuse")(found[1]) == found


@given(OBJECTS | st.binary())
def test_members_set_to_themselves_change_no_event(value: bytes) -> None:
    """A value that is an event has the same item after it; one that is not may become one."""
    same = correction_of(["key={key}", "accountId={accountId}", "bits={bits}"], ["nothing"])
    before = event_decoder("ignore")(value)

    if not isinstance(before, Rejection):
        assert CorrectedDecode("ignore", same)(value) == before


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.sampled_from([0.1, 1e22, 10**30]))
def test_metadata_is_left_as_it_was_written(metadata: dict[str, object], number: float) -> None:
    """Character by character, spaces included, beside what is set."""
    written = json.dumps({**metadata, "n": number}, indent=1)
    value = f'{{"key":"k", "accountId":"a", "bits":"1", "metadata":{written}}}'.encode()

    corrected = correction_of(["bits={bits}"], []).apply(value)

    assert isinstance(corrected, bytes)
    assert f'"metadata":{written}}}'.encode() in corrected
