"""Records positions and intents in the group's committed offsets, in one request at a time.

One request carries all partitions. A worker with enough to send makes it at intervals, and the
intents of the next batches travel with the positions of the former ones; one that runs short of
intended batches makes it at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ingester.core.dispatch import Delivery
from ingester.core.intent import INTENTS_MAX, encode
from ingester.core.messages import Commit, CommitOffsets, Limits
from ingester.core.partition import Partition

_INTENTS_SPACING_SECONDS = 0.0005
"""Between two commits of a busy worker, for each batch that the first of them intended: a commit
takes 0.5 ms of CPU, a batch all in all 0.2."""
_INTENTS_SPACING_SECONDS_MIN = 0.005
_INTENTS_SPACING_SECONDS_MAX = 0.01  # in which 40 of a partition's 80 batches may be sent
_SPLITS_RESERVE = 20
"""Intents kept for splits. Batches are halved in any order while there is other room; beyond that
only the first of a partition, which takes one intent a level: 2^14 items are more than any."""


class Committer:
    """Knows which partitions have something to record, and what the commit under way records."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._changed: dict[Partition, None] = {}
        # Those with a new position or new batches; emptied by commits, filled if one fails.
        # The keys are a set with an order, so that the same facts give the same commands.
        self._committing: dict[Partition, tuple[int, list[Delivery]]] | None
        # What the commit under way stores: the position, and the batches it intends.
        self.clear()

    def clear(self) -> None:
        """Forget everything, the commit under way included."""
        self._changed.clear()
        self._committing = None
        self._due = 0.0
        self._intents_due = 0.0  # before `_due`, for a worker that has too little to send
        self._unintended_count = 0
        self._has_splits = False  # from a split to the commit that takes its halves
        self._failures = 0  # in a row

    @property
    def idle(self) -> bool:
        """Whether everything is recorded."""
        return not self._changed and self._committing is None

    def concerns(self, part: Partition) -> bool:
        """Whether something of a partition is, or is to be, recorded."""
        return part in self._changed or part in (self._committing or ())

    def changed(self, part: Partition) -> None:
        """Hear that the next commit has something to say about a partition."""
        self._changed[part] = None

    def intend(self, part: Partition, delivery: Delivery) -> None:
        """Queue a new batch for the next commit that has room for it."""
        part.unintended.append(delivery)
        self._unintended_count += 1
        self.changed(part)

    def may_split(self, part: Partition, delivery: Delivery) -> bool:
        """Whether there is room for one intent more."""
        count = part.offsets.intended_count
        if count < INTENTS_MAX - _SPLITS_RESERVE:
            return True
        return count < INTENTS_MAX and part.offsets.is_next(delivery.span)

    def intend_halves(self, part: Partition, halves: Sequence[Delivery]) -> None:
        """Let the next commit record what takes the place of an intended batch."""
        part.unintended.extendleft(reversed(halves))
        self._unintended_count += len(halves)
        self._has_splits = True
        self.changed(part)

    def give_up(self, part: Partition) -> list[Delivery]:
        """Return what is in no commit, and forget it."""
        unsent = list(part.unintended)
        self._unintended_count -= len(unsent)
        part.unintended.clear()
        return unsent

    def next_at(self, *, runs_short: bool, hurried: bool) -> float | None:
        """When the next commit may begin, if there is to be one; after a failure, its backoff."""
        if self._committing is not None or not self._changed:
            return None
        if self._failures:
            return self._due
        if hurried:
            return 0.0
        if self._has_splits or (self._unintended_count and runs_short):
            return min(self._due, self._intents_due)
        return self._due

    def begin(self, now: float, wall_seconds: int) -> CommitOffsets:
        """Put all that changed into one commit; the next waits for its end."""
        assert self._committing is None, "one commit at a time"
        self._committing = {}
        self._has_splits = False
        offsets = {}
        intended_count = 0
        for part in self._changed:
            intended = self._intend(part, wall_seconds)
            intended_count += len(intended)
            position = part.offsets.position
            offsets[part.name] = Commit(position, encode(position, part.offsets.ledger()))
            self._committing[part] = (position, intended)
        self._changed.clear()
        self._due = now + self._limits.commit_interval_seconds
        spacing_seconds = max(
            _INTENTS_SPACING_SECONDS_MIN, intended_count * _INTENTS_SPACING_SECONDS
        )
        self._intents_due = now + min(spacing_seconds, _INTENTS_SPACING_SECONDS_MAX)
        return CommitOffsets(offsets)

    def _intend(self, part: Partition, wall_seconds: int) -> list[Delivery]:
        """Take the batches that the next commit records, as many as its metadata has room for."""
        intended: list[Delivery] = []
        room = INTENTS_MAX - _SPLITS_RESERVE - part.offsets.intended_count
        while part.unintended:
            span = part.unintended[0].span
            if span.intended_at is None:  # halves and those of a failed commit have their room
                if room <= 0:
                    break
                room -= 1
                span.intended_at = wall_seconds
            intended.append(part.unintended.popleft())
            self._unintended_count -= 1
        return intended

    def succeeded(self) -> Iterable[tuple[Partition, list[Delivery]]]:
        """Take the end of a commit; return what it has intended."""
        committing = self._end()
        self._failures = 0
        for part, (position, _) in committing.items():
            part.committed = position
        return [(part, intended) for part, (_, intended) in committing.items()]

    def failed(self, now: float, jitter: float) -> Iterable[Partition]:
        """Put back what the commit would have recorded; return whose it was."""
        committing = self._end()
        for part, (_, intended) in committing.items():
            self.changed(part)
            part.unintended.extendleft(reversed(intended))
            self._unintended_count += len(intended)
        self._failures += 1
        self._due = now + self._limits.backoff_seconds(self._failures, jitter)
        return committing

    def _end(self) -> dict[Partition, tuple[int, list[Delivery]]]:
        assert self._committing is not None, "a commit ends once"
        committing, self._committing = self._committing, None
        return committing
