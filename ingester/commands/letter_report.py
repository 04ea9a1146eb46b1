"""How dead letters are told: lines for people, documents and rows for programs."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from ingester.core.letters import Letter
from ingester.moments import age, iso
from ingester.tables import harmless

HEADINGS: Final = (
    "LETTER", "SOURCE", "CODE", "STATUS", "ACCOUNT", "KEY", "AGE", "STATE", "DETAIL",
)  # fmt: skip
_NAME_SHOWN_MAX: Final = 40  # characters of an account or a key in a table
_DETAIL_SHOWN_MAX: Final = 100
_DISTINCT_MAX: Final = 10_000  # what is counted apart: a detail may quote what differs each time
_COUNTS_SHOWN_MAX: Final = 20
OTHERS: Final = "(others)"


def row(letter: Letter, now: datetime) -> Sequence[str]:
    """A letter as a line of the table below `HEADINGS`."""
    origin = letter.origin
    return (
        f"{letter.place}:{letter.record.offset}",
        f"{origin.partition}:{origin.offset}",
        harmless(origin.code),
        "-" if origin.http_status is None else str(origin.http_status),
        "-" if letter.account is None else harmless(letter.account, _NAME_SHOWN_MAX),
        "-" if letter.key is None else harmless(letter.key, _NAME_SHOWN_MAX),
        age(letter.record_time, now),
        _state(letter),
        harmless(origin.detail, _DETAIL_SHOWN_MAX),
    )


def _state(letter: Letter) -> str:
    if letter.redriven:
        return "redriven"
    return "settled" if letter.settled else "repeats" if letter.repeats else "-"


def document(letter: Letter) -> dict[str, object]:
    """A letter as `--json` has it, without its contents."""
    origin = letter.origin
    return {
        "deadLetterTopic": letter.place.topic,
        "deadLetterPartition": letter.place.partition,
        "deadLetterOffset": letter.record.offset,
        "topic": origin.partition.topic,
        "partition": origin.partition.partition,
        "offset": origin.offset,
        "code": origin.code,
        "detail": origin.detail,
        "httpStatus": origin.http_status,
        "accountId": letter.account,
        "key": letter.key,
        "recordTime": iso(letter.record_time),
        "deadLetteredAt": iso(letter.dead_lettered_at),
        "redriven": letter.redriven,
        "repeats": letter.repeats,
        "settled": letter.settled,
    }


def whole(letter: Letter) -> dict[str, object]:
    """A letter with its contents: text where it is UTF-8, base64 under another name where not."""
    record = letter.record
    return {
        **document(letter),
        **_content("httpBody", letter.origin.http_body if letter.origin.http_status else None),
        **_content("recordKey", record.key),
        "headers": [
            {"name": name, **_content("value", content)} for name, content in record.headers
        ],
        **_content("value", record.value),
    }


_CONTENTS: Final = ("httpBody", "recordKey", "value")
CSV_COLUMNS: Final = (
    "deadLetterTopic", "deadLetterPartition", "deadLetterOffset", "topic", "partition", "offset",
    "code", "detail", "httpStatus", "accountId", "key", "recordTime", "deadLetteredAt", "redriven",
    "repeats", "settled", "headers",
    *(each + form for each in _CONTENTS for form in ("", "Base64")),
)  # fmt: skip


def csv_row(letter: Letter) -> Sequence[str]:
    """A letter with its contents in the order of `CSV_COLUMNS`; the headers are JSON."""
    found = whole(letter)
    return [_cell(found.get(name)) for name in CSV_COLUMNS]


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case _:
            return msgspec.json.encode(value).decode()


def _content(name: str, content: bytes | None) -> Mapping[str, str | None]:
    if content is None:
        return {name: None}
    try:
        return {name: content.decode()}
    except UnicodeDecodeError:
        return {f"{name}Base64": base64.b64encode(content).decode("ascii")}


def details(letter: Letter) -> Iterator[str]:
    """Everything of a letter, line by line."""
    origin = letter.origin
    yield f"{letter.place}:{letter.record.offset}"
    said = {
        "source": f"{origin.partition}:{origin.offset}",
        "code": origin.code,
        "detail": origin.detail,
        "HTTP status": origin.http_status,
        "record time": iso(letter.record_time),
        "dead-lettered": iso(letter.dead_lettered_at),
        "account": letter.account,
        "key": letter.key,
        "redriven": "yes" if letter.redriven else "no",
        "settled": "yes, its record became an item all the same" if letter.settled else None,
    }
    for name, value in said.items():
        yield f"  {name:<14} {'-' if value is None else harmless(str(value))}"
    if origin.http_status is not None:
        yield from _shown("HTTP body", origin.http_body)
    yield from _shown("record key", letter.record.key)
    for name, content in letter.record.headers:
        yield from _shown(f"header {name}", content)
    yield from _shown("value", letter.record.value)


def _shown(name: str, content: bytes | None) -> Iterator[str]:
    name = harmless(name)
    if content is None:
        yield f"  {name}: none"
        return
    ((form, text),) = _content("text", content).items()
    assert text is not None
    if form == "text" and "\n" not in text:
        yield f"  {name}: {harmless(text)}"
        return
    form = "text" if form == "text" else "base64"
    yield f"  {name}, {len(content)} bytes, {form}:"
    yield from (f"    {harmless(line)}" for line in text.split("\n"))


class Counts:
    """Tallies of letters by what they have in common; bounded, whatever comes."""

    def __init__(self) -> None:
        self.letters = 0
        self.records = 0
        """Without those letters that repeat an earlier one; all that follows counts these."""
        self.redriven = 0
        self.tallies: dict[str, Counter[str]] = {
            name: Counter() for name in ("topic", "code", "detail", "account", "status", "day")
        }

    def add(self, letter: Letter) -> None:
        """Count a letter, its record only once."""
        self.letters += 1
        if letter.repeats:
            return
        self.records += 1
        self.redriven += letter.redriven
        origin, day = letter.origin, letter.record_time
        self._count("topic", origin.partition.topic)
        self._count("code", origin.code)
        self._count("detail", origin.detail)
        self._count("account", letter.account)
        self._count("status", origin.http_status)
        self._count("day", day.date() if day else None)

    def _count(self, name: str, value: object) -> None:
        tally = self.tallies[name]
        text = "-" if value is None else str(value)
        tally[text if text in tally or len(tally) < _DISTINCT_MAX else OTHERS] += 1

    def document(self) -> dict[str, object]:
        """The tallies as `--json` has them, the largest first; days in their order."""
        by = {f"by{name.capitalize()}": dict(self._ordered(name)) for name in self.tallies}
        return {
            "letters": self.letters,
            "records": self.records,
            "redriven": self.redriven,
            **by,
        }

    def lines(self) -> Iterator[str]:
        """The tallies as a person reads them."""
        yield (
            f"{self.letters} dead letters of {self.records} records, of which {self.redriven} were"
            " redriven"
        )
        for name in self.tallies:
            ordered = self._ordered(name)
            yield ""
            yield f"{'RECORDS':>9}  {name.upper()}"
            for text, count in ordered[:_COUNTS_SHOWN_MAX]:
                yield f"{count:>9}  {harmless(text, _DETAIL_SHOWN_MAX)}"
            if len(ordered) > _COUNTS_SHOWN_MAX:
                rest = ordered[_COUNTS_SHOWN_MAX:]
                yield f"{sum(count for _, count in rest):>9}  of {len(rest)} more (--json has all)"

    def _ordered(self, name: str) -> list[tuple[str, int]]:
        tally = self.tallies[name]
        return sorted(tally.items()) if name == "day" else tally.most_common()
