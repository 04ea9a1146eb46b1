"""What a run brings to the endpoint: events, their size, their places, and workers to do it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from tests.benchmark.events import ACCOUNTS, ACCOUNTS_MAX, VALUE_BYTES_MEAN, VALUE_BYTES_MIN

_PARTITIONS_MAX = 4096
_VALUE_BYTES_MAX = 100_000
_WORKERS_MAX = 64


@dataclass(frozen=True)
class Workload:
    """A topic to be; without `value_bytes` the values are as long as they come out."""

    events: int
    partitions: int = 8
    accounts: int = ACCOUNTS
    value_bytes: int | None = None
    workers: int = 1
    """Members of the group that share the topic."""

    @property
    def value_bytes_mean(self) -> int:
        return self.value_bytes or VALUE_BYTES_MEAN

    def named(self, varied: Iterable[str]) -> str:
        """Name it among others by the properties in which they differ."""
        words = {
            "partitions": f"{self.partitions:,} partitions",
            "accounts": f"{self.accounts:,} accounts",
            "value_bytes": f"{self.value_bytes_mean:,} bytes",
            "workers": "1 worker" if self.workers == 1 else f"{self.workers:,} workers",
        }
        return ", ".join(words[name] for name in words if name in set(varied))


def varied(workloads: Iterable[Workload]) -> list[str]:
    """The properties in which workloads differ, their number of events aside."""
    kinds = set(workloads)
    return [
        name
        for name in ("partitions", "accounts", "value_bytes", "workers")
        if len({getattr(each, name) for each in kinds}) > 1
    ]


def workloads(
    events: int,
    partitions: Sequence[int],
    accounts: Sequence[int],
    value_bytes: Sequence[int],
    workers: Sequence[int] = (1,),
) -> Iterator[Workload]:
    """Yield one for each combination; no `value_bytes` at all is the usual mixture."""
    for each in product(partitions, accounts, value_bytes or (None,), workers):
        yield Workload(events, *each)


def parse_partitions(text: str) -> tuple[int, ...]:
    """Read `1,8,64`; ValueError says which part is no number of partitions."""
    return _counts(text, "a number of partitions", 1, _PARTITIONS_MAX)


def parse_accounts(text: str) -> tuple[int, ...]:
    """Read `10,10000`; ValueError says which part is no number of accounts."""
    return _counts(text, "a number of accounts", 1, ACCOUNTS_MAX)


def parse_value_bytes(text: str) -> tuple[int, ...]:
    """Read `100,1000`, or nothing; ValueError says which part is no size of a value."""
    if not text:
        return ()
    return _counts(text, "a number of bytes", VALUE_BYTES_MIN, _VALUE_BYTES_MAX)


def parse_workers(text: str) -> tuple[int, ...]:
    """Read `1,2,4`; ValueError says which part is no number of workers."""
    return _counts(text, "a number of workers", 1, _WORKERS_MAX)


def _counts(text: str, what: str, least: int, most: int) -> tuple[int, ...]:
    counts = []
    for part in text.split(","):
        digits = part.strip().replace("_", "")
        if not digits.isdecimal() or not least <= int(digits) <= most:
            raise ValueError(f"{part!r} is not {what} from {least:,} to {most:,}")
        counts.append(int(digits))
    return tuple(dict.fromkeys(counts))
