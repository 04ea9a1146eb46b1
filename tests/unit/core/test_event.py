"""Which values are usage events, what is sent for them, and how the others are called."""

from __future__ import annotations

import time

import pytest

from ingester.core.event import (
    BITS_MAX,
    BITS_MIN,
    NESTING_MAX,
    Rejection,
    UnknownMembers,
    event_decoder,
)

START = b'{"key":"k","accountId":"a"'
BARE = START + b',"bits":1}'


def reject(value: bytes | None, unknown_members: UnknownMembers = "refuse") -> Rejection:
    decoded = event_decoder(unknown_members)(value)
    assert isinstance(decoded, Rejection), decoded
    return decoded


def accept(value: bytes, unknown_members: UnknownMembers = "refuse") -> bytes:
    decoded = event_decoder(unknown_members)(value)
    assert not isinstance(decoded, Rejection), decoded
    return decoded[1]


def with_bits(bits: bytes) -> bytes:
    return START + b',"bits":' + bits + b"}"


def with_metadata(metadata: bytes) -> bytes:
    return START + b',"bits":1,"metadata":' + metadata + b"}"


# -- what is no event ---------------------------------------------------------------------------


def test_a_tombstone_has_a_code_of_its_own() -> None:
    """A record without a value is told from one whose value is broken."""
    assert reject(None) == Rejection("tombstone", "the record has no value (a tombstone)")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"nonsense",
        b"{'key':'k'}",
        BARE + b"x",
        BARE + BARE,
        b"\xef\xbb\xbf" + BARE,
        with_bits(b"NaN"),
        with_bits(b"Infinity"),
        with_bits(b"-Infinity"),
        with_bits(b"01"),
        with_bits(b"+1"),
        with_metadata(b'{"a":NaN}'),
        with_metadata(b'{"a":Infinity}'),
        with_metadata(b'{"a":[1,]}'),
        with_metadata(b'{"a":"\\q"}'),
        with_metadata(b'{"a":"line\nbreak"}'),
        with_metadata(b'{"a":.5}'),
        with_metadata(b'{"a":"\\udc00"}'),
        b'{"key":"\\ud800","accountId":"a","bits":1}',
    ],
    ids=repr,
)
def test_what_is_not_json_is_called_so(value: bytes) -> None:
    """Broken JSON is one code, wherever it is broken, in metadata too; NaN is no JSON."""
    rejection = reject(value)

    assert rejection.code == "invalid_json"
    assert rejection.detail.startswith("the value is not JSON: ")
    assert ("it is empty" in rejection.detail) == (not value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"[]", "array"),
        (b"null", "null"),
        (b"3", "integer"),
        (b"3.5", "number"),
        (b'"text"', "string"),
        (b"true", "boolean"),
    ],
    ids=repr,
)
def test_a_value_has_to_be_an_object(value: bytes, kind: str) -> None:
    """JSON that is no object is of the wrong type, and says of which in JSON's words."""
    assert reject(value) == Rejection("wrong_type", f"the value must be an object, not {kind}")


@pytest.mark.parametrize(
    ("bits", "kind"),
    [
        (b"true", "boolean"),
        (b"false", "boolean"),
        (b"1.0", "number"),
        (b"1.5", "number"),
        (b"1e3", "number"),
        (b'"1"', "string"),
        (b"null", "null"),
        (b"[1]", "array"),
        (b"{}", "object"),
    ],
    ids=repr,
)
def test_only_a_json_integer_is_bits(bits: bytes, kind: str) -> None:
    """A bool, a float (integral ones too), a string or null is not taken for an integer."""
    assert reject(with_bits(bits)) == Rejection(
        "wrong_type", f"`bits` must be of type integer, not {kind}"
    )


@pytest.mark.parametrize(
    "bits",
    [BITS_MAX + 1, BITS_MIN - 1, 2**64 - 1, 2**64, 10**4000, -(10**4000)],
    ids=["max+1", "min-1", "2^64-1", "2^64", "10^4000", "-10^4000"],
)
def test_bits_beyond_64_bits_are_out_of_range(bits: int) -> None:
    """However far beyond, the code is the same and the bounds are said."""
    assert reject(with_bits(b"%d" % bits)) == Rejection(
        "out_of_range", f"`bits` must be from {BITS_MIN} to {BITS_MAX}"
    )


def test_bits_of_more_digits_than_python_converts_are_out_of_range() -> None:
    """Five thousand digits are beyond the decoder's own limit, and called the same."""
    assert reject(with_bits(b"9" * 5000)).code == "out_of_range"


@pytest.mark.parametrize("bits", [BITS_MIN, BITS_MAX, -1, 0], ids=str)
def test_bits_may_be_any_64_bit_integer(bits: int) -> None:
    """Both bounds belong to the range, and a delta may be negative or nothing."""
    assert accept(with_bits(b"%d" % bits)) == with_bits(b"%d" % bits)


@pytest.mark.parametrize("member", ["key", "accountId", "bits"])
def test_a_missing_member_is_named(member: str) -> None:
    """An event without one of the three says which."""
    members = {"key": b'"key":"k"', "accountId": b'"accountId":"a"', "bits": b'"bits":1'}
    del members[member]
    value = b"{" + b",".join(members.values()) + b"}"

    assert reject(value) == Rejection("missing_member", f"`{member}` is missing")


@pytest.mark.parametrize("member", ["key", "accountId"])
def test_an_empty_string_is_named(member: str) -> None:
    """A key or an account of no characters belongs to nobody."""
    value = BARE.replace(b'"k"' if member == "key" else b'"a"', b'""')

    assert reject(value) == Rejection("empty_string", f"`{member}` must not be empty")


@pytest.mark.parametrize("member", ["key", "accountId"])
@pytest.mark.parametrize("other", [b"null", b"1", b"true", b"[]", b"{}"], ids=repr)
def test_names_have_to_be_strings(member: str, other: bytes) -> None:
    """A key or an account of another type, null included, is refused by name."""
    rejection = reject(BARE.replace(b'"k"' if member == "key" else b'"a"', other))

    assert rejection.code == "wrong_type"
    assert rejection.detail.startswith(f"`{member}` must be of type string, not ")


@pytest.mark.parametrize("metadata", [b"[]", b"[{}]", b'"}"', b"1", b"true", b"1.5"], ids=repr)
def test_metadata_has_to_be_an_object(metadata: bytes) -> None:
    """Any other value but null is of the wrong type, even one that ends like an object."""
    assert reject(with_metadata(metadata)) == Rejection(
        "wrong_type", "`metadata` must be an object"
    )


# -- encodings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf"], ids=repr)
@pytest.mark.parametrize(
    "template",
    [
        b'{"key":"?","accountId":"a","bits":1}',
        b'{"key":"k","accountId":"a?","bits":1}',
        b'{"key":"k","accountId":"a","bits":1,"?":1}',
        b'{"key":"k","accountId":"a","bits":1,"metadata":{"a":"?"}}',
        b'{"key":"k","accountId":"a","bits":1,"metadata":{"?":1}}',
        b'{"bits":true,"key":"?"}',
    ],
    ids=repr,
)
def test_invalid_utf8_is_found_anywhere(template: bytes, bad: bytes) -> None:
    """In names and texts, raw metadata too; the detail counts bytes of the value."""
    rejection = reject(template.replace(b"?", bad))

    assert rejection == Rejection(
        "invalid_utf8", f"the value is not UTF-8 at byte {template.index(b'?')}"
    )


def test_text_in_any_script_is_kept() -> None:
    """Escapes and raw characters are the same text, and are sent as UTF-8."""
    value = b'{"key":"caf\\u00e9 \\ud83d\\ude00","accountId":"\xe6\x9d\xb1\xe4\xba\xac","bits":1}'

    expected = '{"key":"café 😀","accountId":"東京","bits":1}'.encode()
    assert accept(value) == expected


# -- members that are there too often, or nobody knows ------------------------------------------


@pytest.mark.parametrize(
    "again",
    [
        b'"bits":1',
        b'"bits":2',
        b'"b\\u0069ts":1',
        b'"\\u0062\\u0069\\u0074\\u0073":1',
        b' "bits" : 1 ',
    ],
    ids=repr,
)
def test_a_member_that_occurs_twice_is_refused(again: bytes) -> None:
    """One reader takes the first and another the last: neither is sent, escaped or not."""
    expected = Rejection("duplicated_member", "`bits` occurs more than once")

    assert reject(BARE[:-1] + b"," + again + b"}") == expected
    assert reject(b"{" + again + b"," + BARE[1:]) == expected


def test_duplicated_metadata_is_refused_even_as_null() -> None:
    """Null stands for absent, but not for one of two."""
    twice = with_metadata(b"null")[:-1] + b',"metadata":{"a":1}}'

    assert reject(twice) == Rejection("duplicated_member", "`metadata` occurs more than once")


def test_names_of_members_may_occur_in_texts_and_metadata() -> None:
    """Only members of the event itself can be there too often."""
    value = (
        b'{"key":"\\"bits\\":2","accountId":"bits","bits":1,'
        b'"metadata":{"bits":1,"key":"\\"key\\"","bits":2}}          '
    )

    assert accept(value) == value.rstrip()


def test_an_unknown_member_is_refused_by_name() -> None:
    """A misspelt member is noticed, and the sentence says how to let it pass."""
    assert reject(BARE[:-1] + b',"metdata":{}}') == Rejection(
        "unknown_member",
        "`metdata` is not a member of an item (INGESTER_UNKNOWN_MEMBERS=ignore lets it pass)",
    )


def test_an_unknown_member_may_be_ignored() -> None:
    """By setting it is left out of the item, however often it occurs."""
    assert accept(BARE[:-1] + b',"region":"eu","region":{"bits":2}}', "ignore") == BARE


def test_the_name_of_an_unknown_member_is_quoted_in_part() -> None:
    """A detail stays short, whatever a producer calls its members."""
    rejection = reject(BARE[:-1] + b',"' + b"x" * 100_000 + b'":1}')

    assert rejection.code == "unknown_member"
    assert len(rejection.detail) < 250


# -- metadata -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata",
    [
        b"{}",
        b'{ "a" : [ 1 , 2 ] }',
        b'{"amount":12345678901234567890.1234567890}',
        b'{"large":123456789012345678901234567890,"exponent":1E400,"zero":-0.0}',
        b'{"digits":' + b"9" * 5000 + b"}",
        b'{"a":1,"a":2}',
        b'{"text":"\\u00e9\\/\\ud83d\\ude00"}',
        '{"café":"東京"}'.encode(),
    ],
    ids=lambda metadata: repr(metadata[:40]),
)
def test_metadata_passes_character_by_character(metadata: bytes) -> None:
    """Large integers, decimals, repetitions, spaces and escapes stay as the producer wrote them."""
    assert accept(with_metadata(metadata)) == with_metadata(metadata)


@pytest.mark.parametrize("spelling", [b"null", b" null "], ids=repr)
def test_metadata_null_is_absent(spelling: bytes) -> None:
    """Null is what some producers write for nothing; it is not sent."""
    assert accept(with_metadata(spelling)) == BARE


def test_metadata_of_a_megabyte_passes_unchanged() -> None:
    """Whether it fits a request is for the batch to say."""
    value = with_metadata(b'{"blob":"' + b"x" * 2**20 + b'"}')

    assert accept(value) == value


# -- nesting and hostile values -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")], ids=["arrays", "objects"]
)
def test_nesting_is_accepted_up_to_the_bound(opening: bytes, closing: bytes) -> None:
    """The event, its metadata and 126 levels more pass; one more does not."""

    def nested(levels: int) -> bytes:
        return with_metadata(b'{"a":' + opening * levels + b"1" + closing * levels + b"}")

    levels_max = NESTING_MAX - 2
    assert accept(nested(levels_max)) == nested(levels_max)
    assert reject(nested(levels_max + 1)) == Rejection(
        "nesting_too_deep", f"the value nests deeper than {NESTING_MAX} levels"
    )


@pytest.mark.parametrize(
    "value",
    [
        b"[" * 2**20,
        b'{"a":' * 2**17,
        with_metadata(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        BARE[:-1] + b',"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
    ids=["arrays", "objects", "metadata", "unknown"],
)
@pytest.mark.parametrize("unknown_members", ["refuse", "ignore"])
def test_no_depth_exhausts_the_stack(value: bytes, unknown_members: UnknownMembers) -> None:
    """Closed or not, the bound is found before anything descends."""
    assert reject(value, unknown_members).code == "nesting_too_deep"


@pytest.mark.parametrize("pair", [b"[]", b"{}"])
def test_brackets_beside_each_other_do_not_nest(pair: bytes) -> None:
    """A wide value is no deep one, and hides none that comes after it."""
    wide = b"[" + b",".join([pair] * 2 * NESTING_MAX) + b"]"
    deep = b"[" * NESTING_MAX + b"]" * NESTING_MAX
    value = with_metadata(b'{"a":' + wide + b"}")

    assert accept(value) == value
    assert reject(with_metadata(b'{"a":' + wide + b',"b":' + deep + b"}")).code == (
        "nesting_too_deep"
    )


def test_brackets_in_texts_do_not_nest() -> None:
    """A text may hold any number of brackets, and quotes with a backslash before them."""
    value = with_metadata(b'{"a":"' + b'[{\\"' * 1000 + b'"}')

    assert accept(value) == value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"[]" * 200 + b'"' + b'\\"' * 2**19, id="quotes that never close"),
        pytest.param(b"[]" * 200 + b'"' * 2**20, id="quotes"),
        pytest.param(b"[]" * 200 + b"\\" * 2**20, id="backslashes"),
        pytest.param(b"{" + b'"bits":1,' * 2**17 + BARE[1:], id="one member many times"),
        pytest.param(BARE[:-1] + b',"\\u0062its":1' * 2**16 + b"}", id="escaped many times"),
        pytest.param(with_metadata(b"{" + b'"key":1,' * 2**17 + b'"a":1}'), id="in metadata"),
        pytest.param(
            with_metadata(b'{"a":[' + b"[]," * 2**18 + b"1]}"), id="brackets side by side"
        ),
    ],
)
def test_no_megabyte_takes_long(value: bytes) -> None:
    """A megabyte of the worst kind is judged in well under the second that others can wait."""
    decode = event_decoder("refuse")
    started = time.process_time()
    decode(value)

    assert time.process_time() - started < 2.0
