"""`ingester balance`: read the running balance of a key, and compare it with an own sum."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Annotated

import msgspec
import typer

from ingester.arguments import AsJson, ConfigFile
from ingester.config import load
from ingester.errors import (
    EXIT_MISMATCH,
    EXIT_OK,
    EXIT_PENDING,
    RefusedError,
    UnavailableError,
    UsageError,
)
from ingester.pacspace import (
    PATHLESS_KEYS,
    Agreement,
    Balance,
    PacspaceClient,
    ReadFailed,
    UnknownKey,
)
from ingester.settings import PacspaceSettings

_EXIT_CODES = {
    "agreed": EXIT_OK,
    "mismatch": EXIT_MISMATCH,
    "pending_verification": EXIT_PENDING,
    "unknown_key": EXIT_MISMATCH,
}


def balance(
    key: Annotated[str, typer.Argument(help="The record key in PacSpace.")],
    expect: Annotated[
        int | None, typer.Option(metavar="N", help="Your own sum of bits, to be compared.")
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Read the balance of a key, and compare it with your own sum.

    \b
    Examples:
      ingester balance settlement-2025-06
      ingester balance settlement-2025-06 --expect 500
      ingester balance settlement-2025-06 --expect 500 --json

    A key that PacSpace has no record of agrees with no sum, not even with 0: it may be misspelt.
    With --json the metadata is as it came, and `status` is one of read, agreed, mismatch,
    pending_verification and unknown_key.

    Exit codes: 0 read, and agreed if a sum was given; 1 another sum, or no record of the key; 2 not
    yet verified by PacSpace; 64 no such key can be; 69 PacSpace cannot be reached; 77 it refuses
    the API key.
    """
    if key in PATHLESS_KEYS:
        raise UsageError(f"KEY is {key!r}, under which no balance can be asked for: name another")
    settings = load(PacspaceSettings, environ=os.environ, config_file=config).settings
    found = asyncio.run(_read(settings, key, expect))
    if isinstance(found, ReadFailed):
        kind = RefusedError if found.status in {401, 403} else UnavailableError
        raise kind(
            f"no balance of {key} from {settings.pacspace_url}: {found.reason}."
            " `ingester check` tries the connection and the key."
        )
    exit_code, status, lines = _judge(found)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(_document(key, status, found)) + b"\n")
    else:
        sys.stdout.write("\n".join(lines) + "\n")
    if exit_code:
        raise typer.Exit(exit_code)


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
        return f"No balance for {balance.key}: PacSpace has no record of it"
    return f"Balance for {balance.key}: {balance.current_bits} ({balance.total_writes} writes)"


def describe_agreement(agreement: Agreement) -> str:
    """One line that names both numbers where they differ."""
    balance, expected = agreement.balance, agreement.expected
    if isinstance(balance, UnknownKey):
        return f"Unknown key: PacSpace has no record of {balance.key}; {expected} is expected"
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


def _judge(found: Agreement | Balance | UnknownKey) -> tuple[int, str, list[str]]:
    if isinstance(found, Balance):
        return 0, "read", [describe(found)]
    if isinstance(found, UnknownKey):
        return EXIT_MISMATCH, "unknown_key", [describe(found)]
    lines = [describe(found.balance)] if isinstance(found.balance, Balance) else []
    return _EXIT_CODES[found.status], found.status, [*lines, describe_agreement(found)]


def _document(key: str, status: str, found: Agreement | Balance | UnknownKey) -> dict[str, object]:
    balance = found.balance if isinstance(found, Agreement) else found
    document: dict[str, object] = {"key": key, "status": status}
    if isinstance(found, Agreement):
        document["expected"] = found.expected
    document["balance"] = balance if isinstance(balance, Balance) else None
    return document
