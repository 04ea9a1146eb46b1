"""`ingester balance`: read the running balance of a key, and compare it with an own sum."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ingester.config import load
from ingester.errors import EXIT_MISMATCH, EXIT_PENDING, RefusedError, UnavailableError
from ingester.pacspace import Agreement, Balance, PacspaceClient, ReadFailed, UnknownKey
from ingester.settings import PacspaceSettings


def balance(
    key: Annotated[str, typer.Argument(help="The record key in PacSpace.")],
    expect: Annotated[
        int | None, typer.Option(metavar="N", help="Your own sum of bits, to be compared.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Read the running balance of a key; with --expect, say whether both parties agree.

    \b
    Examples:
      ingester balance settlement-2025-06
      ingester balance settlement-2025-06 --expect 500
      ingester balance settlement-2025-06 --expect 500 --json

    Exit codes: 0 read, and agreed if a sum was given; 1 another sum, or no such key; 2 not yet
    verified by PacSpace; 69 PacSpace cannot be reached; 77 it refuses the key.
    """
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
        sys.stdout.write(json.dumps(_document(key, status, found)) + "\n")
    else:
        sys.stdout.write("\n".join(lines) + "\n")
    if exit_code:
        raise typer.Exit(exit_code)


async def _read(
    settings: PacspaceSettings, key: str, expect: int | None
) -> Agreement | Balance | UnknownKey | ReadFailed:
    client = PacspaceClient(
        settings.pacspace_url,
        settings.pacspace_api_key.get_secret_value(),
        connect_timeout_seconds=settings.connect_timeout_seconds,
        request_timeout_seconds=settings.request_timeout_seconds,
    )
    async with client:
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
    current = balance.current_bits if isinstance(balance, Balance) else 0
    match agreement.status:
        case "agreed":
            return f"Agreement confirmed: both parties agree on {expected}"
        case "pending_verification":
            return (
                f"Pending verification: PacSpace has {current}, not verified yet;"
                f" {expected} is expected"
            )
        case "mismatch":
            return (
                f"Mismatch: {expected} is expected, PacSpace has {current}"
                f" (difference {current - expected:+d})"
            )


def _judge(found: Agreement | Balance | UnknownKey) -> tuple[int, str, list[str]]:
    if isinstance(found, Balance):
        return 0, "read", [describe(found)]
    if isinstance(found, UnknownKey):
        return EXIT_MISMATCH, "unknown_key", [describe(found)]
    lines = [describe(found.balance), describe_agreement(found)]
    codes = {"agreed": 0, "mismatch": EXIT_MISMATCH, "pending_verification": EXIT_PENDING}
    return codes[found.status], found.status, lines


def _document(key: str, status: str, found: Agreement | Balance | UnknownKey) -> dict[str, object]:
    balance = found.balance if isinstance(found, Agreement) else found
    document: dict[str, object] = {"key": key, "status": status}
    if isinstance(found, Agreement):
        document["expected"] = found.expected
    document["balance"] = (
        balance.model_dump(by_alias=True) if isinstance(balance, Balance) else None
    )
    return document
