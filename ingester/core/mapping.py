"""Corrections of what producers wrote: members of a value set from its other members, or removed.

A template is text with `{member.member}` in it and nothing more: no arithmetic, no conditions. All
of them refer to the value as it was, so that their order does not matter. What is not touched
passes character by character. What is no object stays as it is, for the decoder to refuse.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Final

import msgspec

from ingester.core.event import (
    Decode,
    Decoded,
    Rejection,
    UnknownMembers,
    UsageEvent,
    event_decoder,
)

Path = tuple[str, ...]

_TOKEN: Final = re.compile(r"\{\{|\}\}|\{(?P<path>[^{}]*)\}|(?P<text>[^{}]+)|[{}]")
_TEXTS: Final = {"key", "accountId"}
_BITS_DIGITS_MAX: Final = 20  # one more than 64 bits have: the decoder says what is out of range
_QUOTED_MAX: Final = 100  # characters of a producer's text in a sentence of ours

Members = dict[str, msgspec.Raw]
_decode_members = msgspec.json.Decoder(Members).decode
_encode = msgspec.json.Encoder().encode


class _RefusedError(Exception):
    """Why a value cannot be corrected as it was asked for."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.detail)
        self.rejection = rejection


class Assignment(msgspec.Struct, frozen=True):
    """A member, and what it is set to: pieces of text, and paths of members in between."""

    target: Path
    template: tuple[str | Path, ...]

    def value(self, members: Members) -> bytes:
        """Return it as JSON; `_RefusedError` where a member that it refers to does not fit."""
        (name, *inner), template = self.target, self.template
        if name == "metadata" and len(template) == 1 and isinstance(template[0], tuple):
            return _found(members, template[0])
        text = "".join(each if isinstance(each, str) else _text(members, each) for each in template)
        if name == "bits" and not inner:
            return _integer(text)
        return _encode(text)


class Correction(msgspec.Struct, frozen=True):
    """What is set and removed in each value; nothing where it is empty."""

    assignments: tuple[Assignment, ...] = ()
    removals: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.assignments or self.removals)

    def apply(self, value: bytes | None) -> bytes | Rejection | None:
        """Return the corrected value, or why it cannot be."""
        members = self._members(value)
        if members is None:
            return value
        try:
            settled = [(each.target, each.value(members)) for each in self.assignments]
            corrected = dict(members)
            for path in self.removals:
                _remove(corrected, path)
            for path, encoded in settled:
                _set(corrected, path, encoded)
        except _RefusedError as refused:
            return refused.rejection
        return _encode(corrected)

    def _members(self, value: bytes | None) -> Members | None:
        """Return the members of an object; None for what is none, or says a member twice."""
        if not self or value is None:
            return None
        try:
            value.decode()
            members = _decode_members(value)
            repeated = _repeated(value)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError):
            return None
        decided = {each.target[0] for each in self.assignments if len(each.target) == 1}
        decided |= {path[0] for path in self.removals if len(path) == 1}
        return None if repeated - decided else members


NO_CORRECTION: Final = Correction()


class CorrectedDecode(Decode):
    """Tells usage events from other values, once these are corrected."""

    def __init__(self, unknown_members: UnknownMembers, correction: Correction) -> None:
        super().__init__(unknown_members)
        self._correction = correction

    def __call__(self, value: bytes | None) -> tuple[UsageEvent, bytes] | Rejection:
        """Turn a value, corrected, into (event, encoded item), or say why it is none."""
        corrected = self._correction.apply(value)
        return corrected if isinstance(corrected, Rejection) else super().__call__(corrected)

    def all_of(self, values: Sequence[bytes | None]) -> Decoded | None:
        """Decode all values, corrected; None if one may be no event."""
        corrected: list[bytes | None] = []
        for value in values:
            found = self._correction.apply(value)
            if isinstance(found, Rejection):
                return None
            corrected.append(found)
        return super().all_of(corrected)


def corrected_decoder(unknown_members: UnknownMembers, correction: Correction) -> Decode:
    """Return what tells usage events from other values, once these are corrected."""
    if not correction:
        return event_decoder(unknown_members)
    return CorrectedDecode(unknown_members, correction)


def correction_of(sets: Sequence[str], removes: Sequence[str]) -> Correction:
    """Read `PATH=TEMPLATE` and `PATH`; ValueError says what is wrong with which."""
    assignments = tuple(_assignment(each) for each in sets)
    targets = Counter(each.target for each in assignments)
    for target, count in targets.items():
        inside = [each for each in targets if each[: len(target)] == target]
        if count > 1 or len(inside) > 1:
            raise ValueError(f"`{'.'.join(target)}` is set more than once")
    return Correction(assignments, tuple(_path(each, each) for each in removes))


def _assignment(text: str) -> Assignment:
    name, separator, template = text.partition("=")
    if not separator:
        raise ValueError(f"{text!r} should be MEMBER=TEMPLATE")
    target = _path(name, text)
    if target[0] not in {*_TEXTS, "bits", "metadata"}:
        raise ValueError(f"{text!r}: an event has key, accountId, bits and metadata, no {name}")
    if target[0] != "metadata" and len(target) > 1:
        raise ValueError(f"{text!r}: `{target[0]}` has no members")
    pieces: list[str | Path] = []
    for token in _TOKEN.finditer(template):
        found = token.group()
        if token["path"] is not None:
            pieces.append(_path(token["path"], text))
        elif found in {"{", "}"}:
            raise ValueError(f"{text!r}: a brace without its other; write {{{{ or }}}} for one")
        else:
            pieces.append({"{{": "{", "}}": "}"}.get(found, found))
    if target == ("metadata",) and not (len(pieces) == 1 and isinstance(pieces[0], tuple)):
        raise ValueError(f"{text!r}: metadata is an object; set it from one, or set metadata.x")
    return Assignment(target, tuple(pieces))


def _path(text: str, whole: str) -> Path:
    path = tuple(text.split("."))
    if not all(path):
        raise ValueError(f"{whole!r}: {text!r} names no member; write member or member.member")
    return path


def _repeated(value: bytes) -> set[str]:
    """The members that occur twice at the top level, however they are escaped."""

    def look(pairs: list[tuple[str, object]]) -> set[str]:
        # Called for every object, the outermost last: what it says of that one is the result.
        return {name for name, count in Counter(name for name, _ in pairs).items() if count > 1}

    # Numbers are not looked at, and need not fit anything.
    found: set[str] = json.loads(value, object_pairs_hook=look, parse_int=str, parse_float=str)
    return found


def _inner(raw: msgspec.Raw, path: Path) -> Members:
    """The members of a nested object; null counts as none."""
    if bytes(raw).strip() == b"null":
        return {}
    try:
        return _decode_members(raw)
    except msgspec.DecodeError:
        raise _RefusedError(
            Rejection("wrong_type", f"`{_shown(path)}` must be an object")
        ) from None


def _found(members: Members, path: Path) -> bytes:
    name, *inner = path
    if name not in members:
        detail = f"`{_shown(path)}` is missing, from which another member is to be set"
        raise _RefusedError(Rejection("missing_member", detail))
    if inner:
        return _found(_inner(members[name], (name,)), tuple(inner))
    return bytes(members[name]).strip()


def _text(members: Members, path: Path) -> str:
    """A string, number or boolean as text: numbers as they are written."""
    encoded = _found(members, path)
    if encoded[:1] == b'"':
        try:
            return msgspec.json.decode(encoded, type=str)
        except msgspec.DecodeError as error:  # half of a pair of surrogates
            detail = f"`{_shown(path)}` is no JSON: {error}"
            raise _RefusedError(Rejection("invalid_json", detail)) from None
    if encoded[:1] in {b"{", b"["} or encoded == b"null":
        raise _RefusedError(
            Rejection("wrong_type", f"`{_shown(path)}` must be a string, a number or a boolean")
        )
    return encoded.decode()


def _integer(text: str) -> bytes:
    """A whole number, however it is written: `7`, `7.0`, `7e2`."""
    try:
        number = Decimal(text.strip())
        if number.is_finite() and number.adjusted() < _BITS_DIGITS_MAX and number % 1 == 0:
            return str(int(number)).encode()
    except (InvalidOperation, ValueError):
        pass
    detail = f"`bits` must be of type integer, not {text[:_QUOTED_MAX]!r}"
    raise _RefusedError(Rejection("wrong_type", detail))


def _set(members: Members, path: Path, encoded: bytes) -> None:
    name, *inner = path
    if inner:
        below = _inner(members.get(name, msgspec.Raw(b"null")), (name,))
        _set(below, tuple(inner), encoded)
        encoded = _encode(below)
    members[name] = msgspec.Raw(encoded)


def _remove(members: Members, path: Path) -> None:
    name, *inner = path
    if name not in members:
        return
    if not inner:
        del members[name]
        return
    below = _inner(members[name], (name,))
    _remove(below, tuple(inner))
    members[name] = msgspec.Raw(_encode(below))


def _shown(path: Path) -> str:
    return ".".join(path)[:_QUOTED_MAX]
