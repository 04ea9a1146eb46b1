"""`ingester statement`: what one account has used in a period, with its proof; changes nothing."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated

import typer

from ingester.arguments import AsJson, ConfigFile, moment, print_json
from ingester.audit.auditing import Audit, Auditor
from ingester.audit.books import dead_letters
from ingester.audit.comparison import AuditSettings, Comparison
from ingester.audit.doubts import halts_of, standings
from ingester.audit.under_way import of_group
from ingester.commands.statement_report import Account, document, lines, rows, write_csv
from ingester.config import load
from ingester.core.event import Decode, UsageEvent, event_decoder
from ingester.core.letters import SourceOffsets, peeked
from ingester.core.mapping import corrected_decoder, correction_of
from ingester.core.ranges import holds, merged
from ingester.core.receipt import Note, Receipt, Replay
from ingester.core.record import Record, TopicPartition
from ingester.core.statement import Occasion, Settlement, Settlements, Statement, Tally
from ingester.errors import EXIT_MISMATCH, EXIT_OK, EXIT_PENDING, ConfigurationError, UsageError
from ingester.kafka.client import offsets_since
from ingester.kafka.range import RangeReader, stream
from ingester.output import whoever_reads
from ingester.progress import bar

_EXIT_CODES = {"agreed": EXIT_OK, "discrepancy": EXIT_MISMATCH, "pending": EXIT_PENDING}


def statement(
    account: Annotated[
        str, typer.Option(metavar="ACCOUNT", help="The account, as the events name it.")
    ],
    begin: Annotated[
        datetime,
        typer.Option("--from", metavar="TIME", parser=moment, help="Where the period begins."),
    ],
    end: Annotated[
        datetime,
        typer.Option(
            "--to", metavar="TIME", parser=moment, help="Where it ends: this moment is outside."
        ),
    ],
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the lines as CSV.")] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Say what one account has used in a period.

    A line for each key: events and bits that are settled, in how many batches and when, where the
    first and the last event is, and whether PacSpace's balance of the key is what all receipts add
    up to. An event's time is its record's. Who used what is in the records alone, not in the
    receipts: what retention has taken from the log cannot be stated, and it is said so.

    \b
    Examples:
      ingester statement --account acme --from 2025-06-01 --to 2025-07-01
      ingester statement --account acme --from 2025-06-01 --to 2025-07-01 --csv > acme-2025-06.csv
      ingester statement --account acme --from 2025-06-10T00:00:00Z --to 2025-06-11T00:00:00Z --json

    Exit codes: 0 both parties agree, and nothing waits; 1 incomplete, a key's balance differs, or
    the receipts do not cover each record once; 2 some of it is not settled or not verified yet, or
    a partition has halted; 64 the command line, or no such account; 69 Kafka or PacSpace cannot be
    reached, or there are no receipts; 77 one of them refuses the credentials; 78 the settings.
    """
    if begin >= end:
        raise UsageError(f"the period is empty: --from {begin.isoformat()} --to {end.isoformat()}")
    if begin > datetime.now(UTC):
        raise UsageError(f"the period has not begun: --from {begin.isoformat()} is in the future")
    if as_csv and as_json:
        raise UsageError("name one of --csv and --json")
    settings = load(AuditSettings, environ=os.environ, config_file=config).settings
    if settings.receipts == "off":
        raise ConfigurationError(
            "INGESTER_RECEIPTS is off: nothing is written that proves what is settled."
        )
    found = asyncio.run(_stated(settings, account, begin, end))
    with whoever_reads():
        if as_json:
            print_json(document(found))
        elif as_csv:
            write_csv(rows(found), sys.stdout)
        else:
            sys.stdout.write("\n".join(lines(found)) + "\n")
    if as_csv:
        sys.stderr.writelines(f"{remark}\n" for remark in found.remarks)
    if code := _EXIT_CODES[found.verdict]:
        raise typer.Exit(code)


async def _stated(settings: AuditSettings, account: str, begin: datetime, end: datetime) -> Account:
    proofs = _Proofs(settings)
    found = await standings(settings, settings.topics)
    before = await of_group(settings)
    auditor = Auditor(settings, None, None, proofs.watch)
    audit = await auditor.audit(found, from_topic=False)
    proofs.sort()
    stated = Statement(account, _milliseconds(begin), _milliseconds(end))
    lost = await _read(settings, stated, audit, proofs)
    if stated.is_empty and not lost and not await _is_known(settings, account, audit, proofs):
        raise UsageError(
            f"no event of the account {account} is in the log of {', '.join(settings.topics)} or in"
            " its dead letters, whatever the period: is it right?"
        )
    compared = Comparison(settings, auditor, audit, None)
    await compared.compare(list(stated.lines), before)
    return Account(
        stated,
        audit.bits,
        compared.results,
        compared.not_asked,
        [*audit.findings, *compared.doubts],
        lost,
        datetime.now(UTC),
        halts=halts_of(found),
        claims=proofs.claims,
    )


class _Proofs:
    """What the notes say of what is settled: of usage topics, and of letters that were redriven."""

    def __init__(self, settings: AuditSettings) -> None:
        self.letter_topics = set(map(settings.dead_letter_topic_for, settings.topics))
        self._settled: defaultdict[TopicPartition, dict[str | None, Settlements]] = defaultdict(
            dict
        )
        # By partition, and of dead letters by the redrive: each may have corrected them otherwise.
        self._unknown_members = settings.unknown_members
        self._decode: Decode = event_decoder(settings.unknown_members)
        self._decode_redriven: dict[str | None, Decode] = {}
        self._recounted: defaultdict[TopicPartition, dict[str, Settlements]] = defaultdict(dict)
        # By replay: receipts of what was counted again by force.
        self.claims: dict[str, Replay] = {}
        """Of replays that count by force, by name."""

    def watch(self, source: TopicPartition, note: Note) -> None:
        """Take a note, in any order."""
        of_letters = source.topic in self.letter_topics
        if isinstance(note, Replay):
            if note.forced:
                self.claims.setdefault(note.name, note)
            correction = correction_of(note.sets, note.removes)
            self._decode_redriven[note.name] = corrected_decoder(self._unknown_members, correction)
        elif isinstance(note, Receipt) and (note.items or not of_letters):
            if note.forced and not of_letters:
                settlements = self._recounted[source].setdefault(note.replay or "", Settlements())
            else:
                redrive = note.replay if of_letters else None
                settlements = self._settled[source].setdefault(redrive, Settlements())
            settlements.add(Settlement(*note.range, note.settled_at_ms))

    def sort(self) -> None:
        """Make ready to be asked."""
        in_all = [each for by in self._settled.values() for each in by.values()]
        in_all += [each for by in self._recounted.values() for each in by.values()]
        for each in in_all:
            each.sort()

    def recounts_of(self, name: TopicPartition, offset: int) -> Iterator[str]:
        """Name the replays that have counted a record again by force."""
        for replay, settlements in self._recounted[name].items():
            if settlements.of(offset):
                yield replay

    def of(self, name: TopicPartition, offset: int) -> tuple[Settlement, Decode] | None:
        """Return how a record, or a dead letter, was settled and read; None while it is not."""
        for redrive, settlements in self._settled[name].items():
            if settlement := settlements.of(offset):
                return settlement, self._decode_redriven.get(redrive, self._decode)
        return None


async def _read_redriven(
    settings: AuditSettings, stated: Statement, audit: Audit, proofs: _Proofs
) -> tuple[SourceOffsets, SourceOffsets]:
    """Take the events of redriven letters, as they were sent; return what is redriven, and dead."""
    redriven, dead = SourceOffsets(), SourceOffsets()
    logs = {name: each for name, each in audit.logs.items() if name.topic in proofs.letter_topics}
    as_it_is = event_decoder(settings.unknown_members)
    async for place, record, origin in dead_letters(settings, logs, settings.topics):
        is_new = dead.add(origin.partition, origin.offset)
        proof = proofs.of(place, record.offset)
        if stated.covers(record.timestamp) and not isinstance(as_it_is(record.value), tuple):
            named, _ = peeked(record.value)
            was_counted = not is_new and not redriven.holds(origin.partition, origin.offset)
            change = int(is_new) if proof is None else -int(was_counted)
            stated.add_broken(named, origin.code, change)
        if proof is None:
            continue
        redriven.add(origin.partition, origin.offset)
        settlement, decode = proof
        decoded = decode(record.value)
        if isinstance(decoded, tuple) and _is_of(stated, decoded[0], record):
            occasion = Occasion(record.timestamp, origin.partition, origin.offset)
            stated.add(decoded[0], occasion, settlement, sent_from=place)
    return redriven, dead


def _is_of(stated: Statement, event: UsageEvent, record: Record) -> bool:
    return event.accountId == stated.account and stated.covers(record.timestamp)


async def _read(
    settings: AuditSettings, stated: Statement, audit: Audit, proofs: _Proofs
) -> list[str]:
    """Take the events of the period from the logs; return where some may be missing."""
    decode = event_decoder(settings.unknown_members)
    redriven, dead = await _read_redriven(settings, stated, audit, proofs)
    since = await offsets_since(settings, dict.fromkeys(audit.scope, stated.begin_ms))
    extents = {name: (max(since[name], audit.logs[name][0]), audit.logs[name][1]) for name in since}
    skipped = {
        name: merged(each.range for each in audit.partitions[name].skipped) for name in since
    }
    untold = {name: merged(audit.partitions[name].letters_gone) for name in since}
    dead_whole = {name: merged(audit.partitions[name].dead_whole) for name in since}
    with bar("records read", sum(end - at for at, end in extents.values())) as advance:
        async for name, records in stream(settings, extents):
            for record in records:
                offset = record.offset
                if not stated.covers(record.timestamp) or redriven.holds(name, offset):
                    continue
                decoded = decode(record.value)
                if isinstance(decoded, tuple) and _is_of(stated, decoded[0], record):
                    occasion = Occasion(record.timestamp, name, offset)
                    settlement, _ = proofs.of(name, offset) or (None, None)
                    stated.add(
                        decoded[0],
                        occasion,
                        settlement,
                        dead=dead.holds(name, offset) or holds(dead_whole[name], offset),
                        skipped=holds(skipped[name], offset),
                        untold=holds(untold[name], offset),
                    )
                    for replay in proofs.recounts_of(name, offset):
                        stated.recounted.setdefault(replay, Tally()).add(decoded[0].bits)
            advance(len(records))
    return [
        f"the log of {name} begins at offset {begins}: retention has taken what was before, and"
        " some of that may be of this period"
        for name, (begins, ends) in ((name, audit.logs[name]) for name in audit.scope)
        if 0 < begins == since[name] and await _begins_within(settings, stated, name, begins, ends)
    ]


async def _is_known(settings: AuditSettings, account: str, audit: Audit, proofs: _Proofs) -> bool:
    """Whether a record or a dead letter of any time names the account."""
    async with aclosing(stream(settings, audit.logs)) as lists:
        async for name, records in lists:
            of_letters = name.topic in proofs.letter_topics
            for record in records:
                proof = proofs.of(name, record.offset) if of_letters else None
                decoded = proof[1](record.value) if proof else None
                event = decoded[0] if isinstance(decoded, tuple) else None
                if account in {peeked(record.value)[0], event and event.accountId}:
                    return True
    return False


async def _begins_within(
    settings: AuditSettings, stated: Statement, name: TopicPartition, begins: int, ends: int
) -> bool:
    """Whether nothing in the log is older than the period: what is gone may have been of it."""
    if begins == ends:
        return True
    reader = RangeReader(settings)
    try:
        first = await reader.read(name, begins, min(ends, begins + 1))
    finally:
        await reader.stop()
    return not first or first[0].timestamp >= stated.begin_ms


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
