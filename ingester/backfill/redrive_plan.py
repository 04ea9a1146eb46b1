"""Chooses the dead letters that a redrive sends, and knows of the others why it does not."""

from __future__ import annotations

import secrets
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple

from msgspec.structs import replace

from ingester.arguments import who
from ingester.audit.letters import Letters, opened
from ingester.backfill.plan import Counts, Plan, Redrive
from ingester.core.batch import BatchBuilder, BatchLimits
from ingester.core.event import Rejection, UsageEvent
from ingester.core.intent import Range
from ingester.core.letters import Choice, Letter
from ingester.core.mapping import CorrectedDecode, correction_of
from ingester.core.record import TopicPartition
from ingester.errors import IncompleteError, UsageError
from ingester.settings import Settings

_SHOWN_MAX: Final = 20
_REASONS_MAX: Final = 1000  # what is told apart: a detail may quote what differs each time
_OTHERS: Final = "(others)"
_REPEATED_MAX: Final = 5000  # of one partition: they have to fit one record of the receipts topic
_NOT_CORRECTED: Final = "not_corrected"  # in place of the code: a template does not fit the value
_SETTLED: Final = "its record became an item all the same: a receipt says that PacSpace has it"

Repeated = tuple[int, str, int, int]  # as of `core.receipt.Replay.repeated`


class Refusal(NamedTuple):
    """Why letters stay what they are."""

    code: str
    detail: str


@dataclass(slots=True)
class Chosen:
    """What was found: ranges to be sent by partition, and what is refused still."""

    ranges: defaultdict[TopicPartition, list[Range]] = field(
        default_factory=lambda: defaultdict(list)
    )
    counts: defaultdict[str, Counts] = field(default_factory=lambda: defaultdict(Counts))
    """By dead-letter topic."""
    refused: Counter[Refusal] = field(default_factory=Counter)
    shown: list[tuple[Letter, UsageEvent]] = field(default_factory=list)
    """The first of what is to be sent, as it will be."""
    repeats: int = 0
    """Letters of records that have an earlier one."""
    passed: Counter[str] = field(default_factory=Counter)
    """Letters whose records are counted, or may still be: how many, by the reason."""
    repeated: defaultdict[TopicPartition, list[Repeated]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """Of what is to be sent, by partition: letters that are not the only ones of their records."""

    def add(self, letter: Letter, event: UsageEvent) -> None:
        """Take a letter that is to be sent."""
        ranges, offset = self.ranges[letter.place], letter.record.offset
        if ranges and ranges[-1][1] == offset:
            ranges[-1] = (ranges[-1][0], offset + 1)
        else:
            ranges.append((offset, offset + 1))
        self.counts[letter.place.topic].add(event)
        if len(self.shown) < _SHOWN_MAX:
            self.shown.append((letter, event))

    def refuse(self, refusal: Refusal) -> None:
        """Count a letter that is refused still."""
        known = refusal in self.refused or len(self.refused) < _REASONS_MAX
        self.refused[refusal if known else Refusal(refusal.code, _OTHERS)] += 1


async def choose(
    settings: Settings, choice: Choice, sets: Sequence[str], removes: Sequence[str]
) -> tuple[Chosen, Letters]:
    """Read all letters, and judge those that are wanted as the worker will."""
    letters = await opened(settings, choice, to_send=True)
    correction = correction_of(sets, removes)
    decode = CorrectedDecode(settings.unknown_members, correction)
    limits = BatchLimits(sys.maxsize, settings.body_bytes_max, linger_seconds=0)
    chosen = Chosen()
    async for letter in letters.read(replace(choice, redriven=False)):
        if letter.repeats:
            chosen.repeats += 1
            continue
        reason = _SETTLED if letter.settled else letters.settlements.settled_by(letter.origin)
        if reason is not None:
            chosen.passed[reason] += 1
            continue
        corrected = correction.apply(letter.record.value)
        if isinstance(corrected, Rejection):
            chosen.refuse(Refusal(_NOT_CORRECTED, corrected.detail))
            continue
        batch = BatchBuilder(letter.place, 0, limits, decode).form([letter.record])
        for dead in batch.dead_letters:
            chosen.refuse(Refusal(dead.rejection.code, dead.rejection.detail))
        decoded = decode(letter.record.value)
        if batch.items_count and isinstance(decoded, tuple):
            chosen.add(letter, decoded[0])
            name, offset = letter.origin.partition, letter.origin.offset
            if letters.repeated.holds(name, offset):
                chosen.repeated[letter.place].append((letter.record.offset, *name, offset))
    return chosen, letters


def plans_of(
    settings: Settings,
    chosen: Chosen,
    letters: Letters,
    sets: list[str],
    removes: list[str],
    reason: str,
) -> Sequence[Plan]:
    """Return a plan for each dead-letter topic that something is to be sent of."""
    now = datetime.now(UTC)
    plans = []
    for topic, counts in chosen.counts.items():
        partitions = {
            name.partition: ranges for name, ranges in chosen.ranges.items() if name.topic == topic
        }
        repeated = {number: chosen.repeated[TopicPartition(topic, number)] for number in partitions}
        if any(len(each) > _REPEATED_MAX for each in repeated.values()):
            raise UsageError(
                f"more than {_REPEATED_MAX:,} letters of one partition of {topic} have others of"
                " the same record beside them, and a plan has no room for so many: choose fewer,"
                " as with --from and --to"
            )
        before = {
            number: letters.redrives.batches[TopicPartition(topic, number)] for number in partitions
        }
        plans.append(
            Plan(
                name=f"redrive-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
                topic=topic,
                group_id=settings.group_id,
                created_at=now.isoformat(timespec="seconds"),
                by=who(),
                reason=reason,
                forced=True,
                partitions=partitions,
                receipted=0,
                skipped=0,
                left_to_worker={},
                counts=counts,
                redrive=Redrive(
                    sets,
                    removes,
                    before,
                    {number: each for number, each in repeated.items() if each},
                    settings.unknown_members,
                    int(settings.body_bytes_max),
                ),
            )
        )
    return plans


def refuse_if_under_way(plan: Plan, letters: Letters) -> None:
    """IncompleteError where another redrive has some of these letters, and has not ended."""
    other = letters.redrives.under_way(plan.replaying().extents())
    if other is not None:
        raise IncompleteError(
            f"the redrive {other.name} by {other.by} has letters of"
            f" {other.topic}:{other.partition}[{other.first_offset},{other.next_offset}) since"
            f" {other.at}, and has not ended. Let it end, or continue it with its own plan"
            f" (ingester replay --plan {other.name}.json, unless --save named another file), and"
            " repeat this one; nothing was sent"
        )
