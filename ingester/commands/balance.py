"""`ingester balance`: read the running balances of keys, and compare them with own sums."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from ingester.arguments import AsJson, ConfigFile
from ingester.audit.balances import NotAsked
from ingester.commands.balance_keys import (
    AccountKeys,
    AccountSettings,
    Question,
    asked,
    keys_file,
    keys_of,
    lines_count,
    read_keys,
)
from ingester.commands.balance_reading import read_in_order
from ingester.commands.balance_report import (
    CsvReport,
    Found,
    JsonReport,
    Report,
    Status,
    TableReport,
    document,
)
from ingester.config import load
from ingester.errors import (
    EXIT_MISMATCH,
    EXIT_OK,
    EXIT_PENDING,
    RefusedError,
    UnavailableError,
    UsageError,
)
from ingester.output import discard, whoever_reads
from ingester.pacspace import (
    Agreement,
    Balance,
    PacspaceClient,
    ReadFailed,
    UnknownKey,
)
from ingester.progress import Advance, bar_beside_output
from ingester.settings import PacspaceSettings
from ingester.tables import harmless

_EXIT_CODES: Final[Mapping[Status, int]] = {
    "read": EXIT_OK,
    "agreed": EXIT_OK,
    "mismatch": EXIT_MISMATCH,
    "pending_verification": EXIT_PENDING,
    "unknown_key": EXIT_MISMATCH,
    "not_asked": EXIT_MISMATCH,
}


def balance(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="KEY", help="The record keys in PacSpace.")
    ] = None,
    expect: Annotated[
        int | None, typer.Option(metavar="N", help="Your own sum of bits, to be compared.")
    ] = None,
    keys_from: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Keys, one a line, or CSV of key and sum; - for stdin."),
    ] = None,
    account: Annotated[
        str | None, typer.Option(metavar="ID", help="Keys of its events, and of receipts.")
    ] = None,
    config: ConfigFile = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read the balances of keys, and compare them with your own sums.

    \b
    Examples:
      ingester balance settlement-2025-06
      ingester balance settlement-2025-06 --expect 500
      ingester balance settlement-2025-06 --expect 500 --json
      ingester balance usage-acme-2025-05 usage-acme-2025-06
      ingester balance --keys-from sums.csv --csv > compared.csv
      ingester balance --account acme

    A key that PacSpace has no record of agrees with no sum, not even with 0: it may be misspelt.
    With --json the metadata is as it came, and `status` is one of read, agreed, mismatch,
    pending_verification, unknown_key and, for a key that no request can carry, not_asked.

    A line of --keys-from is a key, or KEY,N with the sum; the line `key,expected` above them may be
    there. --account reads the topics of INGESTER_TOPIC and their receipts, and needs the settings
    of Kafka as well.

    Exit codes: 0 read, and agreed if sums were given; 1 another sum, or no record of a key; 2 none
    of these, but something not yet verified by PacSpace; 64 the command line, or no such key can
    be; 69 PacSpace cannot be reached; 77 it refuses the API key.
    """
    if as_csv and as_json:
        raise UsageError("--csv and --json: one of them")
    if not keys and keys_from is None and account is None:
        raise UsageError("name a KEY, or --keys-from FILE, or --account ID")
    questions = [asked(Question(key, expect), "KEY") for key in keys or ()]
    single = len(questions) == 1 and keys_from is None and account is None
    if expect is not None and not single:
        raise UsageError("--expect goes with one KEY; sums of several are for --keys-from")
    settings = load(PacspaceSettings, environ=os.environ, config_file=config).settings
    if single and not as_csv:
        exit_code = _print_single(settings, questions[0], as_json=as_json)
    else:
        report = CsvReport() if as_csv else JsonReport() if as_json else TableReport()
        exit_code = _print_many(settings, questions, keys_from, _found(account, config), report)
    if exit_code:
        raise typer.Exit(exit_code)


def _found(account: str | None, config: Path | None) -> AccountKeys | None:
    """The keys of an account, if one is named; says on standard error where they are from."""
    if account is None:
        return None
    settings = load(AccountSettings, environ=os.environ, config_file=config).settings
    found = asyncio.run(keys_of(settings, account))
    sys.stderr.write(
        f"ingester: {harmless(account)} has {len(found.in_log)} keys in the log of"
        f" {', '.join(settings.topics)}; its receipts have {len(found.in_receipts)} that the log"
        " does not, and of these only what PacSpace has for the account is shown\n"
    )
    return found


def _print_many(
    settings: PacspaceSettings,
    named: Sequence[Question],
    keys_from: str | None,
    account: AccountKeys | None,
    report: Report,
) -> int:
    """Ask for all, print each as it comes, and return the worst exit code."""
    with ExitStack() as stack:
        file = stack.enter_context(keys_file(keys_from)) if keys_from is not None else None
        of_account = [*account.questions()] if account else []
        total = len(named) + len(of_account) + (lines_count(file) if file else 0)
        questions = chain(named, read_keys(file) if file else (), of_account)
        statuses: Counter[Status] = Counter()
        with whoever_reads(), bar_beside_output("balances read", total) as advance:
            asyncio.run(_tell(settings, questions, report, statuses, advance))
            report.end(statuses)
    if account and not statuses:
        raise UsageError(f"none of these keys is of the account {account.account}: is it right?")
    codes = {_EXIT_CODES[status] for status in statuses}
    return next((code for code in (EXIT_MISMATCH, EXIT_PENDING) if code in codes), EXIT_OK)


async def _tell(
    settings: PacspaceSettings,
    questions: Iterable[Question],
    report: Report,
    statuses: Counter[Status],
    advance: Advance,
) -> None:
    async for question, found in read_in_order(settings, questions):
        advance(1)
        if question.account is not None and _account_of(found) != question.account:
            continue
        status = _status(found)
        statuses[status] += 1
        try:
            report.add(question.key, status, found)
        except BrokenPipeError:
            if question.expected is None:  # as with `| head`
                raise
            discard(sys.stdout)


def _print_single(settings: PacspaceSettings, question: Question, *, as_json: bool) -> int:
    found = asyncio.run(_read(settings, question.key, question.expected))
    if isinstance(found, ReadFailed):
        kind = RefusedError if found.status in {401, 403} else UnavailableError
        raise kind(
            f"no balance of {harmless(question.key)} from {settings.pacspace_url}: {found.reason}."
            " `ingester check` tries the connection and the key."
        )
    status = _status(found)
    with whoever_reads():
        if as_json:
            encoded = msgspec.json.encode(document(question.key, status, found))
            sys.stdout.buffer.write(encoded + b"\n")
        else:
            sys.stdout.write("\n".join(_lines(found)) + "\n")
    return _EXIT_CODES[status]


async def _read(
    settings: PacspaceSettings, key: str, expect: int | None
) -> Agreement | Balance | UnknownKey | ReadFailed:
    async with PacspaceClient.from_settings(settings) as client:
        if expect is None:
            return await client.get_balance(key)
        return await client.verify_agreement(key, expected=expect)


def describe(balance: Balance | UnknownKey) -> str:
    """One line a person reads."""
    if isinstance(balance, UnknownKey):
        return f"No balance for {harmless(balance.key)}: PacSpace has no record of it"
    key = harmless(balance.key)
    return f"Balance for {key}: {balance.current_bits} ({balance.total_writes} writes)"


def describe_agreement(agreement: Agreement) -> str:
    """One line that names both numbers where they differ."""
    balance, expected = agreement.balance, agreement.expected
    if isinstance(balance, UnknownKey):
        key = harmless(balance.key)
        return f"Unknown key: PacSpace has no record of {key}; {expected} is expected"
    current = balance.current_bits
    if agreement.status == "pending_verification":
        return (
            f"Pending verification: PacSpace has {current}, not verified yet;"
            f" {expected} is expected"
        )
    if agreement.status == "mismatch":
        return (
            f"Mismatch: {expected} is expected, PacSpace has {current}"
            f" (difference {current - expected:+d})"
        )
    return f"Agreement confirmed: both parties agree on {expected}"


def _status(found: Found) -> Status:
    match found:
        case Agreement():
            return found.status
        case Balance():
            return "read"
        case UnknownKey():
            return "unknown_key"
        case NotAsked():
            return "not_asked"


def _account_of(found: Found) -> str | None:
    balance = found.balance if isinstance(found, Agreement) else found
    return balance.account_id if isinstance(balance, Balance) else None


def _lines(found: Agreement | Balance | UnknownKey) -> list[str]:
    if not isinstance(found, Agreement):
        return [describe(found)]
    lines = [describe(found.balance)] if isinstance(found.balance, Balance) else []
    return [*lines, describe_agreement(found)]
