"""What a correction makes of a value, and what it leaves as it is."""

from __future__ import annotations

import pytest

from ingester.core.event import Rejection, event_decoder
from ingester.core.mapping import CorrectedDecode, correction_of


@pytest.mark.parametrize(
    ("sets", "removes", "before", "after"),
    [
        (["key=k"], [], '{"accountId":"a"}', '{"accountId":"a","key":"k"}'),
        (["key=usage-{accountId}-{m.y}"], [], '{"accountId":"a","m":{"y":7}}',
         '{"accountId":"a","m":{"y":7},"key":"usage-a-7"}'),
        (["accountId={key}", "key={accountId}"], [], '{"key":"k","accountId":"a"}',
         '{"key":"a","accountId":"k"}'),
        (["bits={bits}"], [], '{"bits":"100"}', '{"bits":100}'),
        (["bits={bits}"], [], '{"bits":1.0}', '{"bits":1}'),
        (["bits={n}00"], [], '{"n":7}', '{"n":7,"bits":700}'),
        (["bits=-5"], [], "{}", '{"bits":-5}'),
        (["metadata.a={x}"], [], '{"x":{"b":1.10},"metadata":{"z":1e400}}',
         '{"x":{"b":1.10},"metadata":{"z":1e400,"a":{"b":1.10}}}'),
        (["metadata.a.b=1"], [], "{}", '{"metadata":{"a":{"b":"1"}}}'),
        (["metadata.a=x"], [], '{"metadata":null}', '{"metadata":{"a":"x"}}'),
        (["metadata={x}"], [], '{"x":{"b":0.10}}', '{"x":{"b":0.10},"metadata":{"b":0.10}}'),
        (["metadata.region={region}"], ["region"], '{"region":"eu"}',
         '{"metadata":{"region":"eu"}}'),
        ([], ["a.b", "c", "d.e"], '{"a":{"b":1,"z":2},"c":3}', '{"a":{"z":2}}'),
        (["key={{{t}}}"], [], '{"t":true}', '{"t":true,"key":"{true}"}'),
        (["key=1"], [], '{"key":1,"key":2}', '{"key":"1"}'),
        (["key="], [], "{}", '{"key":""}'),
    ],
)  # fmt: skip
def test_members_are_set_and_removed(
    sets: list[str], removes: list[str], before: str, after: str
) -> None:
    """From the value as it was, whatever the order; the rest is as it was written."""
    assert correction_of(sets, removes).apply(before.encode()) == after.encode()


@pytest.mark.parametrize(
    "value",
    [None, b"", b"{", b"[]", b'"x"', b"\xff", b'{"key":"\xff"}', b'{"bits":1,"bits":2}',
     b'{"a":' * 5000 + b"1" + b"}" * 5000],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_what_is_no_object_is_left_to_the_decoder(value: bytes | None) -> None:
    """It is refused for the reason that it was refused for."""
    decode = CorrectedDecode("refuse", correction_of(["key=k"], []))

    assert correction_of(["key=k"], []).apply(value) == value
    assert decode(value) == event_decoder("refuse")(value)
    assert isinstance(decode(value), Rejection)


@pytest.mark.parametrize(
    ("text", "value", "code", "named"),
    [
        ("key={a}", "{}", "missing_member", "`a`"),
        ("key={a.b}", '{"a":{}}', "missing_member", "`b`"),
        ("key={a.b}", '{"a":1}', "wrong_type", "`a` must be an object"),
        ("key={a}", '{"a":{}}', "wrong_type", "`a` must be a string"),
        ("key={a}", '{"a":null}', "wrong_type", "`a` must be a string"),
        ("bits={a}", '{"a":"x"}', "wrong_type", "not 'x'"),
        ("bits={a}", '{"a":1.5}', "wrong_type", "not '1.5'"),
        ("bits={a}", '{"a":1e999999999}', "wrong_type", "not '1e999999999'"),
        ("bits={a}", '{"a":"NaN"}', "wrong_type", "not 'NaN'"),
        ("bits=", "{}", "wrong_type", "not ''"),
        ("metadata.a=1", '{"metadata":[]}', "wrong_type", "`metadata` must be an object"),
    ],
)
def test_what_cannot_be_set_is_refused(text: str, value: str, code: str, named: str) -> None:
    """With a code of the closed set, and the member that does not fit."""
    rejection = correction_of([text], []).apply(value.encode())

    assert isinstance(rejection, Rejection)
    assert rejection.code == code
    assert named in rejection.detail


@pytest.mark.parametrize(
    ("sets", "removes", "says"),
    [
        (["key"], [], "should be MEMBER=TEMPLATE"),
        (["region=x"], [], "an event has key, accountId, bits and metadata, no region"),
        (["key.x=1"], [], "`key` has no members"),
        (["metadata={a}{b}"], [], "metadata is an object"),
        (["metadata=x"], [], "metadata is an object"),
        (["key={a"], [], "a brace without its other"),
        (["key=a}"], [], "a brace without its other"),
        (["key={}"], [], "names no member"),
        (["key={a..b}"], [], "names no member"),
        (["=x"], [], "names no member"),
        (["key=a", "key=b"], [], "`key` is set more than once"),
        (["metadata={a}", "metadata.b=1"], [], "`metadata` is set more than once"),
        ([], ["a."], "names no member"),
    ],
)
def test_what_is_no_correction(sets: list[str], removes: list[str], says: str) -> None:
    """The message quotes what was written, and says how it should be."""
    with pytest.raises(ValueError, match=says.replace("{", r"\{")):
        correction_of(sets, removes)


def test_many_at_once_are_judged_as_one_by_one() -> None:
    """The fast way gives the same items as the slow one, or leaves it to that."""
    decode = CorrectedDecode("refuse", correction_of(["key={k}"], ["k"]))
    good = [b'{"k":"a","accountId":"x","bits":1}', b'{"accountId":"y","k":"b","bits":2}']

    assert decode.all_of([*good, b'{"accountId":"y","bits":2}']) is None
    found = decode.all_of(good)
    assert found is not None
    assert list(zip(found.events, found.items, strict=True)) == [decode(each) for each in good]


def test_half_of_a_pair_of_surrogates_is_never_sent() -> None:
    """Whoever finds it first, the decoder of the members or that of the text."""
    decode = CorrectedDecode("ignore", correction_of(["key={a}"], []))

    assert isinstance(decode(b'{"a":"\\ud800","accountId":"a","bits":1}'), Rejection)
