"""Values of any kind: nothing raises, and what is accepted is sent as it was meant."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ingester.core.event import (
    BITS_MAX,
    BITS_MIN,
    NESTING_MAX,
    Rejection,
    UnknownMembers,
    UsageEvent,
    event_decoder,
)

REFUSE = event_decoder("refuse")
IGNORE = event_decoder("ignore")
MEMBERS = ("key", "accountId", "bits", "metadata")

# Lone surrogates can be escaped in JSON and carried by no UTF-8: refused, and shown elsewhere.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=5)
SPELLINGS = st.sampled_from(
    [{"separators": (",", ":")}, {}, {"indent": 2}, {"ensure_ascii": False}, {"indent": "\t"}]
)
EVENTS = st.fixed_dictionaries(
    {
        "key": TEXT.filter(bool),
        "accountId": TEXT.filter(bool),
        "bits": st.integers(BITS_MIN, BITS_MAX),
    },
    optional={"metadata": OBJECTS | st.none()},
)
# Right, or nearly: every member may be missing, of any type, or one that nobody knows.
ALMOST_EVENTS = st.dictionaries(
    st.sampled_from(MEMBERS) | TEXT, VALUES | st.sampled_from(["", "k", 1]), max_size=6
) | st.tuples(EVENTS, st.dictionaries(st.sampled_from(MEMBERS) | TEXT, VALUES, max_size=1)).map(
    lambda pair: pair[0] | pair[1]
)


def shuffled(draw: st.DrawFn, members: dict[str, object]) -> dict[str, object]:
    return dict(draw(st.permutations(list(members.items()))))


def members_of(text: bytes) -> dict[str, Any]:
    """Read JSON with its numbers as they were written."""
    document: dict[str, Any] = json.loads(text, parse_float=str, parse_int=str)
    return document


def meant_by(text: bytes) -> dict[str, Any]:
    """The members that a value means to be sent, numbers as written; null metadata is absent."""
    members = {name: value for name, value in members_of(text).items() if name in MEMBERS}
    if members.get("metadata", "") is None:
        del members["metadata"]
    members["bits"] = str(int(members["bits"]))
    return members


def check_accepted(value: bytes, accepted: tuple[UsageEvent, bytes]) -> None:
    event, encoded = accepted
    meant = meant_by(value)
    assert meant == members_of(encoded)
    assert (meant["key"], meant["accountId"]) == (event.key, event.accountId)
    assert meant["bits"] == str(event.bits)


@st.composite
def spelled(draw: st.DrawFn, documents: st.SearchStrategy[dict[str, object]]) -> bytes:
    """A document with its members in any order, in one of the usual spellings of JSON."""
    return json.dumps(shuffled(draw, draw(documents)), **draw(SPELLINGS)).encode()


@given(spelled(EVENTS))
def test_every_event_is_accepted_and_sent_as_it_was_meant(value: bytes) -> None:
    """Any order of members, any spacing, any escapes: the item says what the value said."""
    accepted = REFUSE(value)

    assert not isinstance(accepted, Rejection), accepted
    check_accepted(value, accepted)


def oracle_accepts(value: bytes, unknown_members: UnknownMembers) -> bool:
    """Say by the standard library whether a value is an event."""
    try:
        document = json.loads(value.decode())
    except (ValueError, RecursionError):
        return False
    if not isinstance(document, dict):
        return False
    metadata = document.get("metadata")
    return (
        (unknown_members == "ignore" or document.keys() <= set(MEMBERS))
        and all(isinstance(document.get(n), str) and document[n] for n in ("key", "accountId"))
        and type(document.get("bits")) is int
        and BITS_MIN <= document["bits"] <= BITS_MAX
        and (metadata is None or isinstance(metadata, dict))
    )


@pytest.mark.parametrize("unknown_members", ["refuse", "ignore"])
@settings(max_examples=400)
@given(value=spelled(ALMOST_EVENTS))
def test_the_standard_library_agrees_on_what_is_an_event(
    unknown_members: UnknownMembers, value: bytes
) -> None:
    """Well-formed values are accepted exactly when a reading by `json.loads` finds an event."""
    decoded = event_decoder(unknown_members)(value)

    assert oracle_accepts(value, unknown_members) == (not isinstance(decoded, Rejection)), decoded


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """An event of which some bytes are others, gone, or there twice."""
    value = bytearray(draw(spelled(EVENTS)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(value)))
        end = min(len(value), start + draw(st.integers(0, 12)))
        piece = draw(
            st.binary(max_size=4)
            | st.sampled_from([b'"', b"\\", b"{", b"}", b",", b'"bits":1,', b"\\u0062", b"null"])
        )
        value[start:end] = draw(st.sampled_from([piece, bytes(value[start:end]) * 2]))
    return bytes(value)


@settings(max_examples=1000)
@given(st.binary(max_size=600) | mutated())
@example(b'{"key":"k","accountId":"a","bits":1,"metadata":{"a":"\x01\\n"}           }')
@example(b'{"key":"\\udc00","accountId":"a","bits":1}')
@example(b'{"key":"k","accountId":"a","bits":1,"metadata":{"a":"\xff"}}')
@example(b'{"key":"k","accountId":"a","bits":1,"bits":1}')
@example(b"[" * 600)
@example(b'{"a":' * 200 + b'"' + b"[" * 200)
def test_no_bytes_raise_and_what_is_accepted_is_json(value: bytes) -> None:
    """Garbage gets a code, and a detail that UTF-8 can carry; what passes means one thing only."""
    for decode in (REFUSE, IGNORE):
        decoded = decode(value)
        if isinstance(decoded, Rejection):
            assert decoded.detail.encode()
        else:
            check_accepted(value, decoded)
            pairs = json.loads(value, object_pairs_hook=lambda pairs: pairs)
            names = [name for name, _ in pairs if name in MEMBERS]
            assert len(names) == len(set(names)), "a member that occurs twice has passed"


def escaped(name: str, positions: set[int]) -> str:
    return "".join(
        f"\\u{ord(letter):04x}" if position in positions else letter
        for position, letter in enumerate(name)
    )


@given(
    event=EVENTS,
    name=st.sampled_from(MEMBERS),
    positions=st.sets(st.integers(0, 8)),
    again=st.data(),
    spelling=SPELLINGS,
)
def test_a_member_that_occurs_twice_is_refused_by_name(
    event: dict[str, Any],
    name: str,
    positions: set[int],
    again: st.DataObject,
    spelling: dict[str, Any],
) -> None:
    """Whatever escapes spell the second occurrence, and whatever its valid value."""
    assume(name in event)
    value = again.draw(
        {"bits": st.just(1), "metadata": st.just({})}.get(name, st.just("k")), label="second value"
    )
    text = json.dumps(event, **spelling)
    second = f'"{escaped(name, positions)}":{json.dumps(value)}'

    decoded = REFUSE((text.rstrip()[:-1] + "," + second + "}").encode())

    assert Rejection("duplicated_member", f"`{name}` occurs more than once") == decoded


@settings(max_examples=50)
@given(
    st.integers(1, 400) | st.integers(NESTING_MAX - 4, NESTING_MAX),
    st.sampled_from(["[", '{"a":']),
    st.sampled_from(["", "[{]}", '\\"[']),
)
def test_nesting_is_bounded_where_it_is_said(depth: int, opening: str, text: str) -> None:
    """Metadata of any depth is accepted up to the bound, whatever brackets its strings hold."""
    closing = "]" if opening == "[" else "}"
    deep = f'{opening * depth}"{text}"{closing * depth}'
    value = f'{{"key":"k","accountId":"a","bits":1,"metadata":{{"a":{deep}}}}}'.encode()

    decoded = REFUSE(value)

    if depth + 2 <= NESTING_MAX:
        assert not isinstance(decoded, Rejection)
    else:
        assert isinstance(decoded, Rejection)
        assert decoded.code == "nesting_too_deep"


ITEM = b'{"key":"k","accountId":"a","bits":1}'


@st.composite
def torn(draw: st.DrawFn) -> list[bytes]:
    """Events put together and torn apart again, not always where one ends."""
    whole = b"".join(
        draw(spelled(EVENTS) | mutated()) + draw(st.sampled_from([b"", b"\n", b" ", b","]))
        for _ in range(draw(st.integers(1, 4)))
    )
    braces = [place for place, byte in enumerate(whole) if byte in b"{}"]
    places = draw(st.lists(st.sampled_from([*braces, len(whole)]), max_size=4))
    cuts = sorted(place + draw(st.integers(0, 1)) for place in places)
    return [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)])]


@settings(max_examples=1000)
@given(st.lists(spelled(EVENTS) | mutated(), min_size=1, max_size=4) | torn())
@example([ITEM + ITEM])
@example([ITEM + ITEM, b""])
@example([ITEM + b'{"a":', b'{},"key":"k","accountId":"a","bits":1}'])
@example([ITEM + b'{"a":{}', b',"key":"k","accountId":"a","bits":1}'])
@example([b'{"key":"k","accountId":"a","bits":1,"metadata":{"a":"}', b'{"}}'])
@example([b'{"key":"k","accountId":"a","bits":1, "metadata":{"a":\n1}}'])
@example([b'{"key":"k","accountId":"a","bits":1,"metadata":{"a":"\xff"}}'])
@example([b'{"key":"k","accountId":"a","bits":1,"metadata":5}'])
@example([b'{"key":"k","accountId":"a","bits":1,"bits":1}'])
@example(
    [b'{"key":"k","accountId":"a","bits":1,"metadata":{"a":' + b"[" * 200 + b"]" * 200 + b"}}"]
)
def test_many_values_at_once_are_judged_as_each_alone(values: list[bytes]) -> None:
    """Wherever one value ends and the next begins, nothing is read across."""
    for decode in (REFUSE, IGNORE):
        together = decode.all_of(values)
        if together is not None:
            assert [decode(value) for value in values] == list(
                zip(together.events, together.items, strict=True)
            )


@given(
    st.lists(st.tuples(TEXT.filter(str.isalnum), st.integers(BITS_MIN, BITS_MAX), OBJECTS)),
    st.sampled_from([(",", ":"), (", ", ": ")]),
)
def test_what_producers_usually_write_is_taken_at_once(
    events: list[tuple[str, int, dict[str, object]]], separators: tuple[str, str]
) -> None:
    """The long way is for odd values only: with or without spaces, whatever the metadata."""
    values = [
        json.dumps(
            {"key": key, "accountId": key, "bits": bits, "metadata": metadata},
            separators=separators,
            ensure_ascii=False,
        ).encode()
        for key, bits, metadata in events
    ]

    assert REFUSE.all_of(values) is not None
