"""What a pipeline must never do, judged from its commands and the logs alone.

Knows the logs and what became of each attempt; keeps none of the core's bookkeeping and reads none
of its state. Everything per assignment is forgotten with it: what a former owner settled has to be
settled again before it is committed, unless it was committed then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from ingester.core.batch import Batch
from ingester.core.delivery import (
    Acknowledged,
    Blocked,
    Deferred,
    InDoubt,
    Outcome,
    Refused,
    Throttled,
)
from ingester.core.messages import Limits
from ingester.core.record import TopicPartition
from tests.support.records import Logs


@dataclass(slots=True)
class _Assigned:
    """What one assignment of one partition has shown so far."""

    fetched_next: int
    settled: set[int] = field(default_factory=set)
    owners: dict[int, Batch] = field(default_factory=dict)
    halted: bool = False


@dataclass(slots=True)
class _Story:
    """What became of a batch so far."""

    attempts: int = 0
    under_way: bool = False
    in_doubt: bool = False
    over: bool = False
    backoff_end: float = 0.0
    retry_after_end: float = 0.0
    letters_ever: bool = False
    letters_under_way: bool = False
    letters_written: bool = False


class Oracle:
    """Told of every fact and command; raises AssertionError where a promise is broken."""

    def __init__(self, logs: Logs, limits: Limits) -> None:
        self._logs = logs
        self._limits = limits
        self.stored = {name: log[0].record.offset for name, log in logs.items()}
        # Committed offsets as the coordinator has them; outlives assignments and processes.
        self._bodies: dict[str, bytes] = {}  # of every key ever sent, by any process
        self._assigned: dict[TopicPartition, _Assigned] = {}
        self._stories: dict[Batch, _Story] = {}
        self._revoking = False
        self._hold_until = 0.0  # a lower bound: the pipeline adds jitter to it
        self._holding = False
        self._committing: Mapping[TopicPartition, int] | None = None
        self._commit_backoff_end = 0.0
        self.paused: set[TopicPartition] = set()
        self.requests_under_way = 0

    # -- the group ----------------------------------------------------------------------------

    def process_started(self) -> None:
        """A new process knows nothing of the endpoint."""
        self.partitions_revoked()
        self._revoking = self._holding = False
        self._hold_until = 0.0

    def partitions_assigned(self, names: Sequence[TopicPartition]) -> None:
        """Everything below the stored offset is settled, nothing else is."""
        self._revoking = False
        for name in names:
            self._assigned[name] = _Assigned(fetched_next=self.stored[name])

    def revocation_started(self) -> None:
        """From now on only what is in doubt may be sent."""
        self._revoking = True

    def partitions_revoked(self) -> None:
        """Attempts and commits that have no answer will never have one."""
        self._assigned.clear()
        self._stories.clear()
        self.paused.clear()
        self._committing = None
        self._commit_backoff_end = 0.0
        self.requests_under_way = 0

    def fetched(self, name: TopicPartition, next_offset: int) -> None:
        """Records below `next_offset` were handed over."""
        self._assigned[name].fetched_next = next_offset

    # -- requests -----------------------------------------------------------------------------

    def sent(self, batch: Batch, attempt: int, now: float) -> None:
        """Check one attempt: what is in it, and whether it may be made now."""
        story = self._story(batch)
        assert story.attempts + 1 == attempt
        assert not story.under_way, "sent while an attempt has no answer"
        assert not story.over, "sent again after its last answer"
        assert now >= story.retry_after_end, "sent before Retry-After"
        assert now >= story.backoff_end, "sent before the end of its backoff"
        assert story.in_doubt or not self._given_up(batch), "begun after the end"
        assert batch.items_count > 0, "a request without items"
        assert self._bodies.setdefault(batch.idempotency_key, batch.body) == batch.body
        if self._holding:
            assert now >= self._hold_until, "sent before the end of a hold"
            assert self.requests_under_way == 0, "more than one probe at a time"
        story.attempts += 1
        story.under_way = True
        self.requests_under_way += 1
        assert self.requests_under_way <= self._limits.requests_in_flight_max
        begun = sum(self._is_begun(name, each) for name, each in self._stories.items())
        assert begun <= self._limits.requests_in_flight_max, "more begun than may be open"

    def answered(self, batch: Batch, outcome: Outcome, now: float) -> None:
        """Note what an attempt's end allows and forbids."""
        story = self._stories[batch]
        story.under_way = False
        self.requests_under_way -= 1
        backoff_end = now + self._limits.backoff_seconds_min
        match outcome:
            case Acknowledged():
                story.over = True
                self._settle(batch, letters=False)
                self._holding = self._holding and now < self._hold_until
                for each in self._stories.values():  # what was put off may go at once
                    each.backoff_end = 0.0
            case Refused():
                story.over = True
            case Throttled() if outcome.retry_after_seconds:
                self._hold(now + outcome.retry_after_seconds)
            case Throttled() | Blocked():
                self._hold(backoff_end)
            case InDoubt():
                story.in_doubt = True
                story.backoff_end = backoff_end
                story.retry_after_end = now + (outcome.retry_after_seconds or 0.0)
                if outcome.retry_after_seconds and outcome.status != 202:
                    self._hold(story.retry_after_end)  # the service asks, not the batch
            case Deferred():
                story.backoff_end = backoff_end
            case _:
                assert_never(outcome)

    def _is_begun(self, batch: Batch, story: _Story) -> bool:
        """Whether the batch has been tried and must be tried again."""
        goes_on = story.under_way or story.in_doubt or not self._given_up(batch)
        return story.attempts > 0 and not story.over and goes_on

    def _given_up(self, batch: Batch) -> bool:
        """Whether what was not sent, or certainly not applied, is left to the next owner."""
        return self._revoking or self._assigned[batch.partition].halted

    def _hold(self, until: float) -> None:
        self._holding = True
        self._hold_until = max(self._hold_until, until)

    # -- dead letters -------------------------------------------------------------------------

    def letters_begun(self, batch: Batch) -> None:
        """Check that these letters are to be written now, and are those of the range."""
        story = self._story(batch)
        given_up = self._given_up(batch) and batch.items_count and not story.over
        untried = not (story.under_way or story.in_doubt)
        assert not story.letters_ever or not (given_up and untried), "written for the next owner"
        story.letters_ever = True
        assert batch.dead_letters, "a write without dead letters"
        assert not story.letters_under_way, "written while a write has no answer"
        assert not story.letters_written, "written again"
        story.letters_under_way = True

    def letters_ended(self, batch: Batch, *, written: bool) -> None:
        """Note the end of a write of dead letters."""
        story = self._stories[batch]
        story.letters_under_way = False
        story.letters_written = written
        if written:
            self._settle(batch, letters=True)

    # -- commits ------------------------------------------------------------------------------

    def commit_begun(self, offsets: Mapping[TopicPartition, int], now: float) -> None:
        """Check that all below each offset is settled, and that no other commit is under way."""
        assert offsets, "an empty commit"
        assert now >= self._commit_backoff_end, "committed before the end of its backoff"
        assert self._committing is None, "two commits at once"
        self._committing = offsets
        for name, offset in offsets.items():
            part = self._assigned[name]
            # Not above: a commit whose answer was lost is made again.
            assert offset >= self.stored[name], "a commit that goes back"
            unsettled = [
                entry.record.offset
                for entry in self._logs[name]
                if self.stored[name] <= entry.record.offset < offset
                and entry.record.offset not in part.settled
            ]
            assert unsettled == [], f"{name}: {offset} is committed past unsettled records"
            assert offset <= part.fetched_next, "committed past what was read"

    def commit_ended(self, now: float, *, failed: bool, stored: bool) -> None:
        """Note what the coordinator has; an answer that was lost may have been a success."""
        assert self._committing is not None
        if failed:
            self._commit_backoff_end = now + self._limits.backoff_seconds_min
        if stored:
            self.stored.update(self._committing)
        self._committing = None

    def drained(self) -> None:
        """Check what a pipeline claims that has nothing left: no doubts, nothing uncommitted."""
        doubts = [str(name) for name, each in self._stories.items() if each.in_doubt]
        resolved = [str(name) for name, each in self._stories.items() if each.over]
        assert set(doubts) <= set(resolved), "something may have been applied, nobody knows"
        for name, part in self._assigned.items():
            offsets = (entry.record.offset for entry in self._logs[name])
            first = next((each for each in offsets if each >= self.stored[name]), -1)
            batch = part.owners.get(first)
            assert batch is None or not self._offsets(batch) <= part.settled, f"{batch} is settled"

    # -- partitions ---------------------------------------------------------------------------

    def partitions_paused(self, names: frozenset[TopicPartition]) -> None:
        """Only what is assigned can be paused."""
        assert names
        assert names <= self._assigned.keys()
        self.paused |= names

    def partitions_resumed(self, names: frozenset[TopicPartition]) -> None:
        """Only what is paused, and not halted, can be resumed."""
        assert names
        assert names <= self.paused, "resumed without a pause"
        assert not any(self._assigned[name].halted for name in names), "a halt is for good"
        self.paused -= names

    def partition_halted(self, name: TopicPartition) -> None:
        """A partition is paused before it is halted, and halted once."""
        assert name in self.paused
        assert not self._assigned[name].halted
        self._assigned[name].halted = True

    def halted(self, name: TopicPartition) -> bool:
        """Whether the partition waits for an operator."""
        return self._assigned[name].halted

    # -- what all of it rests on --------------------------------------------------------------

    def _story(self, batch: Batch) -> _Story:
        """Return the batch's story; a new batch is compared with the log first."""
        story = self._stories.get(batch)
        if story is None:
            self._compare(batch)
            story = self._stories[batch] = _Story()
        return story

    def _compare(self, batch: Batch) -> None:
        part = self._assigned[batch.partition]
        entries = [
            entry
            for entry in self._logs[batch.partition]
            if batch.first_offset <= entry.record.offset < batch.next_offset
        ]
        items = [entry.item for entry in entries if entry.item is not None]
        assert batch.body == b'{"items":[' + b",".join(items) + b"]}"
        assert batch.items_count == len(items)
        assert batch.bits == sum(json.loads(item)["bits"] for item in items)
        letters = [letter.record for letter in batch.dead_letters]
        assert letters == [entry.record for entry in entries if entry.item is None]
        assert len(batch.body) <= self._limits.batch.body_bytes_max
        assert 0 < len(entries) <= self._limits.batch.items_max
        assert entries[0].record.offset == batch.first_offset
        assert entries[-1].record.offset + 1 == batch.next_offset
        assert batch.next_offset <= part.fetched_next
        for entry in entries:
            owner = part.owners.setdefault(entry.record.offset, batch)
            assert owner is batch, "a record is in two batches"

    def _settle(self, batch: Batch, *, letters: bool) -> None:
        items = {
            entry.record.offset for entry in self._logs[batch.partition] if entry.item is not None
        }
        offsets = self._offsets(batch)
        self._assigned[batch.partition].settled |= offsets - items if letters else offsets & items

    def _offsets(self, batch: Batch) -> set[int]:
        log = self._logs[batch.partition]
        offsets = (entry.record.offset for entry in log)
        return {each for each in offsets if batch.first_offset <= each < batch.next_offset}
