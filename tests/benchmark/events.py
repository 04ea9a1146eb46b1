"""The usage events of the benchmark: any number, the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

ACCOUNTS = 10_000
ACCOUNTS_MAX = 1_000_000  # six digits name them
BITS_MAX = 1_000
VALUE_BYTES_MEAN = 144
VALUE_BYTES_MIN = 100  # with the least of a note
SEED = 20250601
_METERS = ("api_calls", "input_tokens", "output_tokens", "storage_gigabytes")


class Event(NamedTuple):
    """One record to be: its account's number, its bits, and its value as JSON."""

    account: int
    bits: int
    value: bytes


def generate(
    count: int, *, accounts: int = ACCOUNTS, value_bytes: int | None = None, seed: int = SEED
) -> Iterator[Event]:
    """Yield `count` events; a longer sequence of the same seed begins with a shorter one.

    With `value_bytes` each value has exactly this length, by a note in its metadata.
    """
    random_bits = random.Random(seed).getrandbits
    for _ in range(count):
        drawn = random_bits(64)
        account = drawn % accounts
        bits = (drawn >> 20) % BITS_MAX + 1
        event = (
            f'{{"key":"usage-acct_{account:06d}-2025-06","accountId":"acct_{account:06d}",'
            f'"bits":{bits},"metadata":{{'
        )
        if value_bytes is None:
            meter = _METERS[(drawn >> 40) % len(_METERS)]
            event += f'"meter":"{meter}","requestId":"req_{drawn:016x}"}}}}'
        else:
            event += f'"note":"{"x" * (value_bytes - len(event) - len(_NOTE))}"}}}}'
        yield Event(account, bits, event.encode())


_NOTE = '"note":""}}'
