"""Which bodies are items, and what the others are told."""

from __future__ import annotations

import json

import msgspec
import pytest

from ingester.simulator.validation import BITS_DIGITS_MAX, Refusal, parse_items

VALID = {"key": "k", "accountId": "a", "bits": 1}


def parse(items: object, *, items_max: int = 100) -> object:
    return parse_items(json.dumps({"items": items}).encode(), items_max=items_max)


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[]", b"null", b'{"items":[]}', b'{"items":null}', b'{"items":"x"}', b'{"items":{}}'],
)
def test_items_have_to_be_a_non_empty_array(body: bytes) -> None:
    """Whatever stands in the place of items is refused by that name."""
    actual = parse_items(body, items_max=100)

    assert Refusal("Validation failed: items must be a non-empty array") == actual


@pytest.mark.parametrize("bits", [True, False, 1.0, 1e3, 1.5, "1", None, [1], {}], ids=repr)
def test_only_a_json_integer_is_bits(bits: object) -> None:
    """A bool, a float (integral ones too), a string or null is refused, with its place."""
    actual = parse([VALID, VALID, VALID, VALID | {"bits": bits}])

    assert Refusal("Validation failed: items[3].bits must be an integer") == actual


@pytest.mark.parametrize("member", ["key", "accountId"])
@pytest.mark.parametrize("value", ["", 7, None, True, ["x"]], ids=repr)
def test_names_have_to_be_non_empty_strings(member: str, value: object) -> None:
    """An empty or non-string key or account is refused, with its place."""
    actual = parse([VALID, VALID | {member: value}])

    assert Refusal(f"Validation failed: items[1].{member} must be a non-empty string") == actual


@pytest.mark.parametrize(
    ("member", "rule"),
    [
        ("key", "must be a non-empty string"),
        ("accountId", "must be a non-empty string"),
        ("bits", "must be an integer"),
    ],
)
def test_a_missing_member_is_named(member: str, rule: str) -> None:
    """An item without a required member is refused as if the member were wrong."""
    item = {name: value for name, value in VALID.items() if name != member}

    assert Refusal(f"Validation failed: items[0].{member} {rule}") == parse([item])


@pytest.mark.parametrize("metadata", [None, 1, "x", [], True], ids=repr)
def test_metadata_has_to_be_an_object(metadata: object) -> None:
    """Metadata of any other type, null included, is refused, with its place."""
    actual = parse([VALID, VALID | {"metadata": metadata}])

    assert Refusal("Validation failed: items[1].metadata must be an object") == actual


@pytest.mark.parametrize("item", [1, None, "x", []], ids=repr)
def test_an_item_has_to_be_an_object(item: object) -> None:
    """An element of another type is refused, with its place."""
    assert Refusal("Validation failed: items[0] must be an object") == parse([item])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"items":[{"key":"k","accountId":"a","bits":NaN}]}',
        b'{"items":[{"key":"k","accountId":"a","bits":1}]} x',
        b'{"items":[{"key":"\xff","accountId":"a","bits":1}]}',
        b'{"items":[{"key":"k","accountId":"a","bits":1,"metadata":{"x":"\xff"}}]}',
        b'{"items":[{"key":"k","accountId":"a","bits":1,"metadata":' + b'{"x":' * 99_999,
    ],
    ids=["empty", "truncated", "nan", "trailing", "utf8", "utf8-in-metadata", "deep"],
)
def test_a_body_that_is_not_json_is_refused(body: bytes) -> None:
    """Broken syntax, encoding or nesting is one refusal, never an exception."""
    actual = parse_items(body, items_max=100)

    assert isinstance(actual, Refusal)
    assert actual.message.startswith("Malformed JSON in the request body: ")


def test_unknown_members_are_ignored() -> None:
    """What the API does not know stands in nobody's way."""
    [item] = parse([VALID | {"referenceId": "r", "extra": {"deep": [1]}}])

    assert (item.key, item.account_id, item.bits) == ("k", "a", 1)


def test_the_last_of_a_duplicated_member_counts() -> None:
    """Duplicates mean here what they mean to the JSON parser of the API's platform."""
    body = b'{"items":[{"key":"first","key":"last","accountId":"a","bits":1}]}'

    [item] = parse_items(body, items_max=1)

    assert item.key == "last"


def test_bits_are_exact_whatever_their_size() -> None:
    """The largest number that is let in arrives digit for digit, and one digit more is refused."""
    largest = 10**BITS_DIGITS_MAX - 1

    [positive, negative] = parse([VALID | {"bits": largest}, VALID | {"bits": -largest}])

    assert (largest, -largest) == (positive.bits, negative.bits)
    assert isinstance(parse([VALID | {"bits": largest + 1}]), Refusal)
    assert isinstance(parse([VALID | {"bits": -largest - 1}]), Refusal)


def test_metadata_keeps_its_spelling() -> None:
    """Decimals and large integers in metadata are not turned into floats."""
    metadata = b'{"amount": 250.00, "serial": 123456789012345678901234567890}'
    body = b'{"items":[{"key":"k","accountId":"a","bits":1,"metadata":%s}]}' % metadata

    [item] = parse_items(body, items_max=1)

    assert metadata == bytes(item.metadata)
    assert isinstance(item.metadata, msgspec.Raw)


def test_items_max_is_the_last_number_accepted() -> None:
    """As many items as allowed are accepted; one more refuses the whole body."""
    assert len(parse([VALID] * 3, items_max=3)) == 3
    assert Refusal("Validation failed: items must contain at most 3 elements") == parse(
        [VALID] * 4, items_max=3
    )
