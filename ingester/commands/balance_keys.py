"""Where the keys come from whose balances are asked for: the command line, a file, an account.

An account's keys are those of its events in the log. What retention has taken is known by the
receipts alone, which name keys and no accounts: whose those are is for PacSpace to say.
"""

from __future__ import annotations

import csv
import io
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Final, NamedTuple

from ingester.audit.books import extents, notes
from ingester.core.event import UsageEvent, event_decoder
from ingester.core.receipt import Receipt
from ingester.errors import UsageError
from ingester.kafka.admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.kafka.range import stream
from ingester.pacspace import PATHLESS_KEYS
from ingester.progress import bar
from ingester.settings import EventSettings, LedgerSettings

_HEADER: Final = ["key", "expected"]


class Question(NamedTuple):
    """A key, what is expected of it, and whose it has to be to matter."""

    key: str
    expected: int | None = None
    account: str | None = None


class AccountSettings(LedgerSettings, EventSettings):
    """Where the events of an account are."""


@dataclass(frozen=True, slots=True)
class AccountKeys:
    """The keys of one account, by where they were found."""

    account: str
    in_log: frozenset[str]
    in_receipts: frozenset[str]
    """Of which the log has no event: perhaps of the account."""

    def questions(self) -> Iterator[Question]:
        """Yield all of them, in order."""
        yield from (Question(key) for key in sorted(self.in_log))
        yield from (Question(key, None, self.account) for key in sorted(self.in_receipts))


def asked(question: Question, where: str) -> Question:
    """Return a question that can be asked; UsageError for a key that no path can carry."""
    if question.key in PATHLESS_KEYS:
        raise UsageError(
            f"{where} is {question.key!r}, under which no balance can be asked for: name another"
        )
    return question


@contextmanager
def keys_file(name: str) -> Iterator[IO[bytes]]:
    """Open a file of keys, or for `-` what standard input has until its end."""
    if name == "-":
        with tempfile.TemporaryFile() as spooled:
            shutil.copyfileobj(sys.stdin.buffer, spooled)
            spooled.seek(0)
            yield spooled
        return
    try:
        file = open(name, "rb")  # noqa: PTH123, SIM115 -- `name` is what somebody typed, closed below
    except OSError as error:
        raise UsageError(f"--keys-from {name} cannot be read: {error.strerror}") from error
    with file:
        yield file


def lines_count(file: IO[bytes]) -> int:
    """How many lines a file has; it is read from its beginning afterwards."""
    count = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    file.seek(0)
    return count


def read_keys(file: IO[bytes]) -> Iterator[Question]:
    """Yield what each line asks: a key, or CSV of a key and what is expected of it."""
    rows = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    while True:
        try:
            row = next(rows, None)
        except (csv.Error, UnicodeDecodeError) as error:
            raise UsageError(f"line {rows.line_num + 1} of the keys: {error}") from error
        if row is None:
            return
        if not row or (rows.line_num == 1 and row == _HEADER):
            continue
        yield _question(row, f"line {rows.line_num} of the keys")


def _question(row: list[str], where: str) -> Question:
    if len(row) == 1:
        return asked(Question(row[0]), where)
    try:
        key, expected = row
        return asked(Question(key, int(expected) if expected else None), where)
    except ValueError:
        raise UsageError(
            f"{where} should be KEY, or KEY,N with an integer; a key with a comma in it goes into"
            ' double quotes: "a,b"'
        ) from None


async def keys_of(settings: AccountSettings, account: str) -> AccountKeys:
    """Look for the keys of an account; UsageError where there are none.

    UnavailableError for a missing topic.
    """
    own, others = await _keys_in_log(settings, account)
    elsewhere: set[str] = set()
    topics = settings.topics
    places = await extents(settings, map(settings.receipts_topic_for, topics))
    async for entry in notes(settings, places, topics):
        if isinstance(entry.note, Receipt):
            elsewhere |= entry.note.bits_by_key.keys() - own - others
    if not own and not elsewhere:
        raise UsageError(
            f"no key of the account {account} is in the log of {', '.join(topics)} or in its"
            " receipts"
        )
    return AccountKeys(account, frozenset(own), frozenset(elsewhere))


async def _keys_in_log(settings: AccountSettings, account: str) -> tuple[set[str], set[str]]:
    decode = event_decoder(settings.unknown_members)
    own: set[str] = set()
    others: set[str] = set()
    logs = await extents(settings, settings.topics)
    for topic in settings.topics:
        if not any(name.topic == topic for name in logs):
            raise KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS).missing_topic(topic)
    with bar("records read", sum(end - at for at, end in logs.values())) as advance:
        async for _, records in stream(settings, logs):
            for event in _events(decode(record.value) for record in records):
                (own if event.accountId == account else others).add(event.key)
            advance(len(records))
    return own, others - own


def _events(decoded: Iterable[object]) -> Iterator[UsageEvent]:
    for each in decoded:
        if isinstance(each, tuple):
            yield each[0]
