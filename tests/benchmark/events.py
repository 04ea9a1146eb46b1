"""The usage events of the benchmark: any number, the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

ACCOUNTS = 10_000
BITS_MAX = 1_000
VALUE_BYTES_MEAN = 144
SEED = 20250601
_METERS = ("api_calls", "input_tokens", "output_tokens", "storage_gigabytes")


class Event(NamedTuple):
    """One record to be: its account's number, its bits, and its value as JSON."""

    account: int
    bits: int
    value: bytes


def generate(count: int, seed: int = SEED) -> Iterator[Event]:
    """Yield `count` events; a longer sequence of the same seed begins with a shorter one."""
    random_bits = random.Random(seed).getrandbits
    for _ in range(count):
        drawn = random_bits(64)
        account = drawn % ACCOUNTS
        bits = (drawn >> 20) % BITS_MAX + 1
        meter = _METERS[(drawn >> 40) % len(_METERS)]
        value = (
            f'{{"key":"usage-acct_{account:06d}-2025-06","accountId":"acct_{account:06d}",'
            f'"bits":{bits},"metadata":{{"meter":"{meter}","requestId":"req_{drawn:016x}"}}}}'
        )
        yield Event(account, bits, value.encode())
