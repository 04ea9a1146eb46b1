"""What one worker's pipeline must never do, judged from its facts and commands alone.

Everything per assignment is forgotten with it; only what is known of the endpoint stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ingester.core.batch import Batch
from ingester.core.deadletter import DeadLetter
from ingester.core.delivery import Acknowledged, Blocked, InDoubt, Outcome, Refused, Throttled
from ingester.core.intent import Ledger, decode
from ingester.core.messages import Commit, Limits, Start
from ingester.core.record import TopicPartition
from tests.simulation.oracle import READ_FAILED, promise


@dataclass(slots=True)
class _Assigned:
    """What one assignment of one partition has shown so far."""

    start: Start
    fetched_next: int
    quiet_at: float
    recorded: set[tuple[int, int]] = field(default_factory=set)
    """Ranges that may be sent: inherited, or in a commit that succeeded."""
    owners: dict[int, Batch] = field(default_factory=dict)
    halted: bool = False
    ended: bool = False
    """Halted, and neither by the dead-letter limit nor by what is read next: then nothing is begun
    any more."""
    expired: bool = False
    """Halted because keys may be forgotten: then not even what is in doubt is tried again."""


@dataclass(slots=True)
class _Story:
    """What became of a batch so far."""

    attempts: int = 0
    under_way: bool = False
    in_doubt: bool = False
    over: bool = False
    acknowledged: bool = False
    refused: bool = False
    quiet_at: float = 0.0
    put_off: bool = False
    """Refused too early to be believed: it waits for `quiet_at`, and holds up nothing."""
    backoff_end: float = 0.0
    retry_after_end: float = 0.0
    letters_under_way: bool = False
    letters_written: bool = False
    receipt_under_way: bool = False
    receipt_written: bool = False


class Conduct:
    """Told of every fact and command of one process."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._assigned: dict[TopicPartition, _Assigned] = {}
        self._stories: dict[Batch, _Story] = {}
        self._revoking = False
        self._hold_until = 0.0  # a lower bound: the pipeline adds jitter to it
        self._holding = False
        self._committing: Mapping[TopicPartition, Commit] | None = None
        self.paused: set[TopicPartition] = set()
        self.requests_under_way = 0

    # -- the group ----------------------------------------------------------------------------

    def partitions_assigned(self, starts: Mapping[TopicPartition, Start], now: float) -> None:
        self._revoking = False
        for name, start in starts.items():
            self._begin(name, start, now)

    def partition_reopened(self, name: TopicPartition, start: Start, now: float) -> None:
        """What was known of a halted partition is forgotten."""
        for batch in [each for each in self._stories if each.partition == name]:
            promise(not self._stories[batch].under_way, f"{batch} is under way, and reopened")
            del self._stories[batch]
        self._begin(name, start, now)

    def _begin(self, name: TopicPartition, start: Start, now: float) -> None:
        ranges = {each.range for each in start.ledger.intents}
        quiet_at = now + self._limits.session_timeout_seconds + self._limits.request_timeout_seconds
        self._assigned[name] = _Assigned(start, start.offset, quiet_at, ranges)

    def revocation_started(self) -> None:
        """From now on only what is in doubt may be sent."""
        self._revoking = True

    def partitions_revoked(self) -> None:
        """Attempts and commits that have no answer will never have one."""
        self._assigned.clear()
        self._stories.clear()
        self.paused.clear()
        self._committing = None
        self.requests_under_way = 0

    def fetched(self, name: TopicPartition, next_offset: int) -> None:
        """Records below `next_offset` were handed over."""
        part = self._assigned[name]
        part.fetched_next = max(part.fetched_next, next_offset)

    def start(self, name: TopicPartition) -> int:
        """Where the assignment begins."""
        return self._assigned[name].start.offset

    def inherited(self, batch: Batch) -> bool:
        ledger = self._assigned[batch.partition].start.ledger
        return batch.range in {each.range for each in ledger.intents}

    # -- requests -----------------------------------------------------------------------------

    def sent(self, batch: Batch, attempt: int, now: float) -> None:
        """Check one attempt: what is in it, and whether it may be made now."""
        story = self._story(batch)
        part = self._assigned[batch.partition]
        promise(story.attempts + 1 == attempt, f"{batch}: attempts are counted one by one")
        promise(not story.under_way, f"{batch} is sent while an attempt has no answer")
        promise(not story.over, f"{batch} is sent again after its last answer")
        promise(now >= story.retry_after_end, f"{batch} is sent before Retry-After")
        promise(now >= story.backoff_end, f"{batch} is sent before the end of its backoff")
        promise(
            story.in_doubt or not (self._revoking or part.ended), f"{batch} is begun after the end"
        )
        promise(batch.items_count > 0, f"{batch} is sent without items")
        promise(batch.range in part.recorded, f"{batch} is sent before it is recorded")
        promise(batch.range not in part.start.settled, f"{batch} is sent, and is settled")
        if self._holding:
            promise(now >= self._hold_until, f"{batch} is sent before the end of a hold")
            promise(self.requests_under_way == 0, "more than one probe at a time")
        story.attempts += 1
        story.under_way = True
        self.requests_under_way += 1
        bound = self._limits.requests_in_flight_max
        promise(self.requests_under_way <= bound, "bounds: more requests than may be open")
        begun = sum(self._is_begun(name, each) for name, each in self._stories.items())
        # While others succeed, batches that wait hold no slot: each partition may have some, and
        # all those that were in flight with the last of them.
        waiting = (max(2, bound // 4) + bound) * len(self._assigned)
        promise(begun <= bound + waiting, "bounds: more requests begun than may be open or wait")

    def answered(self, batch: Batch, outcome: Outcome, now: float) -> None:
        """Note what an attempt's end allows and forbids."""
        story = self._stories[batch]
        story.under_way = False
        self.requests_under_way -= 1
        backoff_end = now + self._limits.backoff_seconds_min
        match outcome:
            case Acknowledged():
                story.over = story.acknowledged = True
                self._holding = self._holding and now < self._hold_until
                for each in self._stories.values():  # what was put off may go at once
                    each.backoff_end = 0.0
            case Refused():
                conflict = outcome.meaning == "conflict" or (story.in_doubt and not outcome.is_api)
                if conflict or now >= story.quiet_at:
                    story.over = story.refused = True
                    story.in_doubt = story.in_doubt and conflict
                else:
                    story.put_off = True
                    story.retry_after_end = story.quiet_at
            case Throttled() if outcome.retry_after_seconds:
                self._hold(now + outcome.retry_after_seconds)
            case Throttled() | Blocked():
                self._hold(backoff_end)
            case _:
                story.backoff_end = backoff_end
                if isinstance(outcome, InDoubt):
                    story.in_doubt = True
                    if outcome.timed_out:
                        quiet_at = now + self._limits.request_timeout_seconds
                        story.quiet_at = max(story.quiet_at, quiet_at)
                    story.over = self._limits.in_doubt == "halt"
                    story.retry_after_end = now + (outcome.retry_after_seconds or 0.0)
                    if outcome.retry_after_seconds and (outcome.status or 0) >= 400:
                        self._hold(story.retry_after_end)

    def attempts(self, batch: Batch) -> int:
        return self._stories[batch].attempts

    def is_under_way(self, batch: Batch, attempts: int) -> bool:
        """Whether this attempt, and no later one, has no end yet."""
        story = self._stories.get(batch)
        return story is not None and story.under_way and story.attempts == attempts

    def _is_begun(self, batch: Batch, story: _Story) -> bool:
        """Whether the batch has been tried and must be tried again."""
        part = self._assigned[batch.partition]
        in_doubt = story.in_doubt and not part.expired
        goes_on = story.under_way or in_doubt or not (self._revoking or part.ended)
        return story.attempts > 0 and not story.over and goes_on and not story.put_off

    def _hold(self, until: float) -> None:
        self._holding = True
        self._hold_until = max(self._hold_until, until)

    # -- topics -------------------------------------------------------------------------------

    def letters_begun(self, batch: Batch, letters: Sequence[DeadLetter]) -> None:
        story = self._story(batch)
        promise(letters, f"{batch}: a write without dead letters")
        promise(set(letters) <= set(batch.dead_letters), f"{batch}: letters of another batch")
        promise(not story.letters_under_way, f"{batch}: letters written twice at once")
        again = [each for each in letters if each.rejection.code != "refused"]
        promise(not story.letters_written or not again, f"{batch}: letters written again")
        story.letters_under_way = True

    def letters_ended(self, batch: Batch, *, written: bool) -> None:
        story = self._stories[batch]
        story.letters_under_way = False
        story.letters_written = written

    def receipt_begun(self, batch: Batch, outcome: Acknowledged | None, attempts: int) -> None:
        """Check that there is nothing else left to do for this batch."""
        story = self._story(batch)
        promise(not story.receipt_under_way, f"{batch}: receipts written twice at once")
        promise(not story.receipt_written, f"{batch}: a receipt written again")
        decided = batch.range in self._assigned[batch.partition].start.acknowledged
        promise(
            decided or story.acknowledged == (batch.items_count > 0) == (outcome is not None),
            f"{batch}: a receipt before the acknowledgement",
        )
        promise(
            story.letters_written or not batch.dead_letters,
            f"{batch}: a receipt before the dead letters",
        )
        promise(attempts == story.attempts, f"{batch}: a receipt with another count of attempts")
        story.receipt_under_way = True

    def receipt_ended(self, batch: Batch, *, written: bool) -> None:
        story = self._stories[batch]
        story.receipt_under_way = False
        story.receipt_written = written

    # -- commits ------------------------------------------------------------------------------

    def commit_begun(self, offsets: Mapping[TopicPartition, Commit]) -> None:
        promise(offsets, "an empty commit")
        promise(self._committing is None, "two commits at once")
        self._committing = offsets
        for name, commit in offsets.items():
            part = self._assigned[name]
            known = max([part.fetched_next, *(end for _, end in part.start.settled)])
            promise(commit.next_offset <= known, f"{name}: committed what is unread")

    def commit_ended(self, *, known: bool) -> None:
        """Note what this worker knows to be stored."""
        assert self._committing is not None
        if known:
            for name, commit in self._committing.items():
                ledger = decode(commit.next_offset, commit.metadata)
                assert isinstance(ledger, Ledger)
                self._assigned[name].recorded |= {each.range for each in ledger.intents}
        self._committing = None

    # -- partitions ---------------------------------------------------------------------------

    def partitions_paused(self, names: frozenset[TopicPartition]) -> None:
        promise(names and names <= self._assigned.keys(), "a pause of what is not assigned")
        self.paused |= names

    def partitions_resumed(self, names: frozenset[TopicPartition]) -> None:
        promise(names and names <= self.paused, "resumed without a pause")
        promise(not any(self._assigned[each].halted for each in names), "a halt is for good")
        self.paused -= names

    def partition_halted(self, name: TopicPartition, reason: str) -> None:
        promise(name in self.paused, "halted without a pause")
        promise(not self._assigned[name].halted, "halted twice")
        self._assigned[name].halted = True
        self._assigned[name].ended = not reason.startswith(READ_FAILED) and (
            "INGESTER_DEAD_LETTERS_MAX" not in reason
        )
        self._assigned[name].expired = "INGESTER_IDEMPOTENCY_WINDOW_SECONDS" in reason

    def halted(self, name: TopicPartition) -> bool:
        """Whether the partition waits for an operator."""
        return self._assigned[name].halted

    def _story(self, batch: Batch) -> _Story:
        """Return the batch's story; a new batch is compared with the others first."""
        story = self._stories.get(batch)
        if story is None:
            part = self._assigned[batch.partition]
            promise(batch.next_offset <= part.fetched_next, f"{batch} holds what is unread")
            promise(len(batch.body) <= self._limits.batch.body_bytes_max, f"{batch} is too large")
            count = batch.items_count + len(batch.dead_letters)
            promise(0 < count <= self._limits.batch.items_max, f"{batch} holds too many records")
            former: _Story | None = None
            for offset in {batch.first_offset, batch.next_offset - 1}:
                owner = self._stories.get(part.owners.get(offset, batch))
                promise(owner is None or owner.refused, f"{batch}: a record is in two batches")
                part.owners[offset] = batch
                former = former or owner
            inherited = self.inherited(batch)
            story = self._stories[batch] = _Story(
                in_doubt=inherited, quiet_at=part.quiet_at if inherited else 0.0
            )
            if former is not None:
                story.letters_written = former.letters_written
                if not batch.items_count:
                    story.attempts, story.over = former.attempts, True
        return story
