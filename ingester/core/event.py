"""Decides whether a record's value is a usage event, and encodes the item that is sent for it.

What was validated is what is sent: an item is encoded from the decoded event, never copied from
the record, and the same value gives the same bytes on every worker. Metadata is the producer's own
and is passed on character by character: large integers and decimals stay as they were written.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, cast

import msgspec
from msgspec import UNSET, UnsetType

BITS_MIN = -(2**63)
BITS_MAX = 2**63 - 1
NESTING_MAX = 128
"""Levels of objects and arrays in one value. A bound of our own, because the decoder's depends on
how deep the caller's stack is, and two workers must judge a record alike."""

RejectionCode = Literal[
    "duplicated_member",
    "empty_string",
    "invalid_json",
    "invalid_utf8",
    "item_too_large",
    "missing_member",
    "nesting_too_deep",
    "out_of_range",
    "refused",
    "tombstone",
    "unknown_member",
    "wrong_type",
]
UnknownMembers = Literal["refuse", "ignore"]

_NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]
_Bits = Annotated[int, msgspec.Meta(ge=BITS_MIN, le=BITS_MAX)]


class UsageEvent(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One use of a metered thing, in the API's item shape; `bits` is a signed delta."""

    key: _NonEmpty
    accountId: _NonEmpty  # noqa: N815 -- the API's own spelling, so that encoding needs no mapping
    bits: _Bits
    metadata: msgspec.Raw | UnsetType = UNSET


class _StrictUsageEvent(UsageEvent, frozen=True, gc=False, forbid_unknown_fields=True):
    """Refuses members that the API does not document."""


class Rejection(msgspec.Struct, frozen=True):
    """Why a value is not a usage event: a closed code, and a sentence that names the member."""

    code: RejectionCode
    detail: str


class Decoded(NamedTuple):
    """Values that are all events: each event, and its encoded item, in the same order."""

    events: Sequence[UsageEvent]
    items: Sequence[bytes]
    items_bytes: int
    """Of all items together."""


_encoder = msgspec.json.Encoder()
_encode, _encode_lines = _encoder.encode, _encoder.encode_lines

# The shortest text a repeated member can take: `"bits":1,`. Encoding drops repetitions and never
# lengthens anything, so a value less than this much longer than its encoding has none. It spares
# 0.4 us an event the search for them; the usual ", " and ": " of other encoders stay below it.
_REPETITION_BYTES_MIN = 9
_QUOTED_MAX = 100  # characters of a producer's text in a sentence of ours
_EVENT_MEMBERS = UsageEvent.__struct_fields__
_MEMBER_TOKENS = tuple(f'"{name}"'.encode() for name in _EVENT_MEMBERS)
_OBJECT_START, _OBJECT_END = b"{}"
# A value of 256 bytes cannot nest deeper than 128 levels: most are spared the look.
_SHALLOW_BYTES_MAX = 2 * NESTING_MAX


class Decode:
    """Tells usage events from other values: called with one value, or asked about many."""

    def __init__(self, unknown_members: UnknownMembers) -> None:
        self._type = _StrictUsageEvent if unknown_members == "refuse" else UsageEvent
        decoder = msgspec.json.Decoder(self._type)
        self._decode, self._decode_lines = decoder.decode, decoder.decode_lines

    def __call__(self, value: bytes | None) -> tuple[UsageEvent, bytes] | Rejection:
        """Turn a record's value into (event, encoded item), or say why it is none."""
        if value is None:
            return Rejection("tombstone", "the record has no value (a tombstone)")
        if len(value) > _SHALLOW_BYTES_MAX and _nests_too_deep(value):
            return Rejection(
                "nesting_too_deep", f"the value nests deeper than {NESTING_MAX} levels"
            )
        try:
            # The decoder checks the encoding of the strings it builds, not of raw metadata.
            if not value.isascii():
                value.decode()
            event = self._decode(value)
        except UnicodeDecodeError as error:
            return Rejection("invalid_utf8", f"the value is not UTF-8 at byte {error.start}")
        except msgspec.ValidationError as error:
            return _violation(str(error))
        except msgspec.DecodeError as error:
            problem = error if value else "it is empty"
            return Rejection("invalid_json", f"the value is not JSON: {problem}")
        encoded = _encode(event)
        if event.metadata is not UNSET and not encoded.endswith(b"}}"):
            if bytes(event.metadata) != b"null":
                return Rejection("wrong_type", "`metadata` must be an object")
            event = self._type(event.key, event.accountId, event.bits)
            encoded = _encode(event)
        if len(value) - len(encoded) >= _REPETITION_BYTES_MIN:
            repeated = _repeated_member(value)
            if repeated is not None:
                return Rejection("duplicated_member", f"`{repeated}` occurs more than once")
        return event, encoded

    def all_of(self, values: Sequence[bytes | None]) -> Decoded | None:
        """Decode all values, and encode their items; None if one of them may be no event.

        A hundred at once take 0.25 us each, where one after the other takes 1.0. The decoder gets
        them as lines. Each line is one text or more: no string goes on over a line feed, and where
        one object ends and the next begins it finds no comma, as it would have to inside of both.
        """
        whole = cast("Sequence[bytes]", values)
        try:
            # One look at each: nearly all are short, and end as their metadata does.
            unusual = [v for v in whole if len(v) > _SHALLOW_BYTES_MAX or v[-2] != _OBJECT_END]
            lines = b"\n".join(whole)
        except (TypeError, IndexError):  # a tombstone, or too short for an object
            return None
        if unusual and any(_nests_too_deep(v) for v in unusual if len(v) > _SHALLOW_BYTES_MAX):
            return None
        try:
            if not lines.isascii():
                lines.decode()
            events = self._decode_lines(lines)
        except (UnicodeDecodeError, msgspec.DecodeError):
            return None
        if len(events) != len(whole) or b"\n" in b"".join(whole):
            return None
        items, encoded = whole, _encode_lines(events)[:-1]
        if encoded != lines:  # else each value is the line of its event, and so its item
            # `any(True for ... if ...)` resumes only for what is found: 3 us a hundred, and not 4.
            if any(True for v in whole if v[0] != _OBJECT_START or v[-1] != _OBJECT_END):
                return None
            items = encoded.split(b"\n")
            pairs = zip(whole, items, strict=True)
            if any(True for v, item in pairs if len(v) - len(item) >= _REPETITION_BYTES_MIN):
                return None
        if unusual or items is not whole:  # metadata that is no object ends an item otherwise
            decoded = zip(items, events, strict=True)
            if any(True for i, e in decoded if i[-2] != _OBJECT_END and e.metadata is not UNSET):
                return None
        return Decoded(events, items, len(encoded) - max(0, len(items) - 1))


def event_decoder(unknown_members: UnknownMembers) -> Decode:
    """Return what tells usage events from other values."""
    return Decode(unknown_members)


# A bracket, or a string up to its end or the value's. It gives back nothing it has matched, or a
# megabyte of quotes that never close would be read again from each of them: half an hour.
_BRACKET_OR_STRING = re.compile(rb'[][{}]|"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def _nests_too_deep(value: bytes) -> bool:
    """Count brackets outside strings; text that is no JSON may be judged either way."""
    if not _has_openings(value, NESTING_MAX + 1):
        return False
    depth = 0
    for token in _BRACKET_OR_STRING.finditer(value):
        first = token.group()[0]
        if first in b"{[":
            depth += 1
            if depth > NESTING_MAX:
                return True
        elif first in b"}]":
            depth -= 1
    return False


def _has_openings(value: bytes, count: int) -> bool:
    """Whether so many brackets open: 0.4 us for 10 kB with two, 5.6 to count them."""
    for bracket in (b"{", b"["):
        found = value.find(bracket)
        while found >= 0:
            count -= 1
            if not count:
                return True
            found = value.find(bracket, found + 1)
    return False


def _repeated_member(value: bytes) -> str | None:
    """Name an event member that occurs twice at the top level, however it is escaped."""
    if b"\\" not in value and all(value.count(token) <= 1 for token in _MEMBER_TOKENS):
        return None

    def look(pairs: list[tuple[str, object]]) -> str | None:
        # Called for every object, the outermost last: what it says of that one is the result.
        counts = Counter(name for name, _ in pairs)
        return next((name for name in _EVENT_MEMBERS if counts[name] > 1), None)

    # Numbers are not looked at, and need not fit anything.
    found: str | None = json.loads(value, object_pairs_hook=look, parse_int=str, parse_float=str)
    return found


_VIOLATIONS: tuple[tuple[re.Pattern[str], RejectionCode, str], ...] = (
    (
        re.compile(r"Object missing required field `(?P<member>.*)`$"),
        "missing_member",
        "`{member}` is missing",
    ),
    (
        re.compile(r"Object contains unknown field `(?P<member>.*)`$", re.DOTALL),
        "unknown_member",
        "`{member}` is not a member of an item (INGESTER_UNKNOWN_MEMBERS=ignore lets it pass)",
    ),
    (
        re.compile(r"Expected `str` of length >= 1 - at `\$\.(?P<member>.*)`$"),
        "empty_string",
        "`{member}` must not be empty",
    ),
    (
        re.compile(
            r"(?:Expected `int` [<>]= -?\d+|Integer value out of range) - at `\$\.(?P<member>.*)`$"
        ),
        "out_of_range",
        f"`{{member}}` must be from {BITS_MIN} to {BITS_MAX}",
    ),
    (
        re.compile(r"Expected `(?P<want>.*)`, got `(?P<got>.*)` - at `\$\.(?P<member>.*)`$"),
        "wrong_type",
        "`{member}` must be of type {want}, not {got}",
    ),
    (
        re.compile(r"Expected `object`, got `(?P<got>.*)`$"),
        "wrong_type",
        "the value must be an object, not {got}",
    ),
)


# What the decoder calls the types of JSON.
_JSON_TYPES = {"int": "integer", "str": "string", "bool": "boolean", "float": "number"}


def _violation(message: str) -> Rejection:
    """Translate the decoder's sentence into a code of ours and a sentence that names the member."""
    for pattern, code, sentence in _VIOLATIONS:
        found = pattern.match(message)
        if found:
            parts = {name: part[:_QUOTED_MAX] for name, part in found.groupdict().items()}
            for name in parts.keys() & {"want", "got"}:
                parts[name] = _JSON_TYPES.get(parts[name], parts[name])
            return Rejection(code, sentence.format(**parts))
    return Rejection("wrong_type", message)
