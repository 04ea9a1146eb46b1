"""What a replay is to send: decided once, shown, kept in a file, and carried out as it is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from ingester.audit.doubts import replay_group_id
from ingester.core.event import UnknownMembers, UsageEvent
from ingester.core.intent import Range
from ingester.core.mapping import correction_of
from ingester.core.ranges import length, merged
from ingester.core.record import TopicPartition
from ingester.core.replaying import Replaying
from ingester.errors import UsageError

_VERSION: Final = 1
USD_PER_DELTA: Final = (0.008, 0.020)
"""The lowest and the highest price of an item in PacSpace's plans."""


class Counts(msgspec.Struct, rename="camel"):
    """What is in the selected ranges, as the worker would take it."""

    records: int = 0
    items: int = 0
    """Usage events, each of which is a delta to PacSpace."""
    dead_letters: int = 0
    """Records that are no usage events."""
    bits: int = 0
    items_by_account: dict[str, int] = msgspec.field(default_factory=dict)
    bits_by_account: dict[str, int] = msgspec.field(default_factory=dict)

    def add(self, event: UsageEvent) -> None:
        """Count one usage event."""
        self.records += 1
        self.items += 1
        self.bits += event.bits
        account = event.accountId
        self.items_by_account[account] = self.items_by_account.get(account, 0) + 1
        self.bits_by_account[account] = self.bits_by_account.get(account, 0) + event.bits


class Redrive(msgspec.Struct, frozen=True, rename="camel"):
    """What a plan of dead letters has beside its ranges."""

    sets: list[str]
    """As on the command line; so are `removes`."""
    removes: list[str]
    redrives: dict[int, int]
    """By partition: batches that redrives had sent before. If others have come since, it is not
    known any more that nobody has sent these letters."""
    repeated: dict[int, list[tuple[int, str, int, int]]] = {}
    """By partition: see `core.receipt.Replay.repeated`."""
    unknown_members: UnknownMembers | None = None
    """What decided which letters can be sent, whatever the settings are later; so does
    `body_bytes_max`. None in plans of older versions."""
    body_bytes_max: int | None = None


class Plan(msgspec.Struct, frozen=True, rename="camel"):
    """A named choice of ranges of one topic."""

    name: str
    topic: str
    group_id: str
    """The group beside which it runs, and whose offsets it never touches."""
    created_at: str
    by: str
    reason: str
    forced: bool
    partitions: dict[int, list[Range]]
    """To be sent, ascending."""
    receipted: int
    """Offsets of the scope that have receipts, and are left out unless it is forced."""
    skipped: int
    """Offsets that somebody decided to skip, or that are in doubt: left out as well."""
    left_to_worker: dict[int, Range]
    """Beyond the committed offsets of a group that has members: theirs."""
    committed: dict[int, int] = msgspec.field(default_factory=dict)
    """The group's offsets when the plan was made, of the partitions that had one."""
    unaccounted: dict[int, list[Range]] = msgspec.field(default_factory=dict)
    """Below those, without a receipt, and left out: workers without any may have settled it."""
    below_committed: bool = False
    """Whether that is sent nevertheless, because somebody said so."""
    counts: Counts | None = None
    """None where nobody looked into the records."""
    redrive: Redrive | None = None
    """None where the topic is none of dead letters."""
    version: int = _VERSION

    @property
    def replay_group_id(self) -> str:
        return replay_group_id(self.group_id, self.name)

    @property
    def offsets_count(self) -> int:
        """Offsets to be sent; markers and gaps among them hold no record."""
        return sum(map(length, self.partitions.values()))

    @property
    def corrections(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What is set and removed in dead letters, as on the command line."""
        return (tuple(self.redrive.sets), tuple(self.redrive.removes)) if self.redrive else ((), ())

    def replaying(self) -> Replaying:
        """What the core has to know of it."""
        return Replaying(
            self.name,
            {TopicPartition(self.topic, number): each for number, each in self.partitions.items()},
            forced=self.forced,
            correction=correction_of(*self.corrections) if self.redrive else None,
        )


def save(plan: Plan, path: Path) -> None:
    """Write the file, which must not be there yet; UsageError where that cannot be."""
    text = msgspec.json.format(msgspec.json.encode(plan), indent=2)
    try:
        with path.open("xb") as file:
            try:
                file.write(text + b"\n")
                file.flush()
            except OSError:
                path.unlink()  # half a plan would be in the way of the next attempt
                raise
    except OSError as error:
        raise UsageError(
            f"the plan cannot be written to {path}: {error.strerror}. Name another file: --save"
        ) from error


def read(path: Path) -> Plan:
    """Read a plan back; UsageError where the file is none."""
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no plan of a replay: {error}") from error
    if plan.version != _VERSION:
        raise UsageError(f"{path} is a plan of another version of this program: make it again")
    for number, ranges in plan.partitions.items():
        if number < 0 or not ranges or merged(ranges) != ranges or ranges[0][0] < 0:
            raise UsageError(
                f"{path} was changed: the ranges of partition {number} are not ascending. Make the"
                " plan again"
            )
    return plan


def described(plan: Plan) -> Mapping[str, object]:
    """Return the plan as `--json` shows it."""
    document: dict[str, object] = msgspec.to_builtins(plan, str_keys=True)
    # That of a redrive has keys of its own, and counts nothing once more.
    document["forced"] = plan.forced and not plan.redrive
    if plan.counts is not None:
        document["usd"] = [round(plan.counts.items * price, 2) for price in USD_PER_DELTA]
    return document
