"""The body of a write: bytes in, its items or the API's own refusal out.

Numbers are never rounded and metadata is kept as it was spelt. Of a duplicated member the last
one counts, unknown members are ignored: both as in the JSON parsers of the API's own platform.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

NO_METADATA = Raw(b"{}")

# Python converts at most 4,300 digits; what remains is room for a sum of 10^300 such numbers.
BITS_DIGITS_MAX = 4_000
_BITS_BOUND = 10**BITS_DIGITS_MAX

_OPENING_BRACE = ord("{")

_NonEmpty = Annotated[str, Meta(min_length=1)]
_ITEM = re.compile(r"\$\.items\[(?P<index>\d+)\](?:\.(?P<member>\w+))?")
_MISSING = re.compile(r"missing required field `(?P<member>\w+)`")
_RULES = {
    "key": "must be a non-empty string",
    "accountId": "must be a non-empty string",
    "bits": "must be an integer",
    "metadata": "must be an object",
}


class Item(Struct, frozen=True, gc=False, rename="camel"):
    """One element of `items`, valid but for `metadata`, which still has to be an object."""

    key: _NonEmpty
    account_id: _NonEmpty
    bits: int
    metadata: Raw = NO_METADATA


class _Body(Struct, frozen=True):
    items: Annotated[list[Item], Meta(min_length=1)]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a body was refused, in the words of the API's 400."""

    message: str


_decoder = msgspec.json.Decoder(_Body)


def parse_items(body: bytes, *, items_max: int) -> list[Item] | Refusal:
    """Return all items, or the refusal of the whole body: there is no partial acceptance."""
    try:
        body.decode()  # a skipped or raw value is not checked by the decoder
        items = _decoder.decode(body).items
    except msgspec.ValidationError as error:
        return Refusal(f"Validation failed: {_complaint(str(error))}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Refusal(f"Malformed JSON in the request body: {error}")
    if len(items) > items_max:
        return Refusal(f"Validation failed: items must contain at most {items_max} elements")
    for index, item in enumerate(items):
        if memoryview(item.metadata)[0] != _OPENING_BRACE:
            return Refusal(f"Validation failed: items[{index}].metadata {_RULES['metadata']}")
        if not -_BITS_BOUND < item.bits < _BITS_BOUND:
            return Refusal(
                f"Validation failed: items[{index}].bits must have at most {BITS_DIGITS_MAX} digits"
            )
    return items


def _complaint(error: str) -> str:
    if (place := _ITEM.search(error)) is None:
        return "items must be a non-empty array"
    index, member = place["index"], place["member"]
    if member is None and (missing := _MISSING.search(error)):
        member = missing["member"]
    if member is None:
        return f"items[{index}] must be an object"
    return f"items[{index}].{member} {_RULES[member]}"
