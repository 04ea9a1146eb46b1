"""Decides which batch is sent when: turns between partitions, attempts, backoff, holds.

At most as many requests are open as the endpoint bears (see `Concurrency`), and as many start in a
second as the settings allow. While nothing succeeds, batches that wait for another attempt count as
open, so an endpoint that is down sees that many requests per backoff and no more; while others
succeed they do not, and a partition whose batches keep failing starts no new ones. A hold (429, or
a sink that refuses everything) stops all of them; after it one request goes alone until one
succeeds.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from itertools import count
from typing import assert_never

import msgspec

from ingester.core.batch import Batch
from ingester.core.concurrency import Concurrency
from ingester.core.deadletter import DeadLetter
from ingester.core.delivery import (
    Acknowledged,
    Blocked,
    Deferred,
    InDoubt,
    Outcome,
    Refused,
    Throttled,
)
from ingester.core.messages import AttemptEnded, Limits
from ingester.core.offsets import Span
from ingester.core.rate import Rate
from ingester.core.record import Record, TopicPartition

_FAILING_SHARE = 4  # a partition may have this part of all requests failing before it is parked
_RETRY_AFTER_SPREAD = 0.05  # of the backoff, added to Retry-After: workers do not return at once
_PROBE_ATTEMPTS = 4  # where the backoff of a hold begins: about 16 times the minimum


class Delivery(msgspec.Struct, eq=False):
    """A batch on its way, from its cut until it is settled or forgotten."""

    batch: Batch
    span: Span
    attempts: int = 0
    started_at: float = 0.0
    """When its last attempt began."""
    failing: bool = False
    """From its first failed attempt until it is acknowledged or given up."""
    not_before: float = 0.0
    """When the endpoint wants it again at the earliest; written by each failed attempt."""
    in_doubt_since: float | None = None
    """Set by the first attempt that may have been applied; such a batch is not given up."""
    quiet_at: float = 0.0
    """When no attempt whose answer is unknown can arrive any more: before it no refusal is the
    last word."""
    recorded: bool = False
    """Set by the commit that stored its intent; before it there is neither request nor receipt."""
    items_pending: bool = True
    """Until the acknowledgement; False from the start when there are no items."""
    dead_letters_pending: bool = True
    """Until they are written; False from the start when there are none."""
    letters: Sequence[DeadLetter] = ()
    """Those that are to be written."""
    refused: Refused | None = None
    """Set when it is refused for good; something smaller will take its place."""
    records: Sequence[Record] = ()
    """The batch's, of those alone that were refused and read again, and of their halves."""
    acknowledged: Acknowledged | None = None
    """Written by the acknowledgement, read by the receipt."""
    topic_attempts: int = 0
    """Writes of its dead letters or its receipt, or reads of its range, that failed."""
    write_refused: str | None = None
    """Why the last of these writes failed, if it will fail until somebody changes something."""

    @property
    def in_doubt(self) -> bool:
        return self.in_doubt_since is not None

    @property
    def done(self) -> bool:
        """Whether there is nothing left but its receipt."""
        return not self.items_pending and not self.dead_letters_pending


class Hold(msgspec.Struct, frozen=True):
    """A time in which nothing is sent, because PacSpace asked for it or refuses everything."""

    until: float
    """By the clock that the facts are told by; it may have passed."""
    reason: str


class Dispatcher:
    """Holds every batch whose items are not acknowledged; each is ready, in flight or waiting."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._ready_count = 0
        self._ready: OrderedDict[TopicPartition, deque[Delivery]] = OrderedDict()
        # Filled by `add`; the first partition has the next turn. No deque is empty.
        self._parked: dict[TopicPartition, deque[Delivery]] = {}
        # The same, of partitions with too many failing batches; they have no turns until one ends.
        self._failing: Counter[TopicPartition] = Counter()
        # How many batches of a partition have failed and are not acknowledged.
        self._failing_max = max(2, limits.requests_in_flight_max // _FAILING_SHARE)
        self._retries: deque[Delivery] = deque()
        # Tried before and due again: they go ahead of all that is ready.
        self._waiting: list[tuple[float, int, Delivery]] = []
        # A heap by due time; emptied into `_retries` when due.
        self._sequence = count()  # breaks ties in the heap: first come, first served
        self._in_flight: set[Delivery] = set()
        self._concurrency = Concurrency(limits.requests_in_flight_max)
        self._rate = Rate(limits.requests_per_second_max)
        self._failures_in_row = 0  # attempts without a success between them, of any batch
        self._held_until = 0.0
        self.hold: Hold | None = None
        # The latest; its end is `_held_until`. Set by the answers, never emptied.
        self._holds = 0  # in a row without a success between them; above 0 one request goes alone
        self.blocked: Blocked | None = None
        # Why the endpoint refuses everything; set and emptied by the answers.

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def runs_short(self) -> bool:
        """Whether the next answers may find nothing to send."""
        return self._ready_count < self._limits.requests_in_flight_max

    def wake_at(self) -> float | None:
        """Return when something can start that cannot start now."""
        times = [self._waiting[0][0]] if self._waiting else []
        if (self._retries or self._ready) and self._slots():
            times.append(max(self._held_until, self._rate.start_at))
        return min(times, default=None)

    def add(self, delivery: Delivery) -> None:
        """Queue a batch behind those of its partition, or a part of a refused one ahead of them."""
        name = delivery.batch.partition
        parked = self._failing[name] >= self._failing_max
        queue = (self._parked if parked else self._ready).setdefault(name, deque())
        if delivery.records:  # the committed offset waits for it
            behind = (index for index, each in enumerate(queue) if not each.records)
            queue.insert(next(behind, len(queue)), delivery)
        else:
            queue.append(delivery)
        self._ready_count += not parked

    def start(self, now: float) -> Iterator[Delivery]:
        """Take every delivery that may start now; each is in flight and one attempt older."""
        while self._waiting and self._waiting[0][0] <= now:
            self._retries.append(heapq.heappop(self._waiting)[2])
        while (self._retries or self._ready) and self._may_start(now) and self._slots():
            delivery = self._retries.popleft() if self._retries else self._next_turn()
            delivery.attempts += 1
            delivery.started_at = now
            self._rate.take(now)
            self._in_flight.add(delivery)
            yield delivery

    def _may_start(self, now: float) -> bool:
        return now >= self._held_until and now >= self._rate.start_at

    def ended(self, delivery: Delivery, fact: AttemptEnded, now: float) -> None:
        """Take the end of an attempt: put it off, hold everything, or let it go."""
        outcome = fact.outcome
        self._learn(outcome, now, now - delivery.started_at)
        self._in_flight.remove(delivery)
        backoff = self._limits.backoff_seconds(delivery.attempts, fact.jitter)
        match outcome:
            case Acknowledged():
                self._recovered(delivery)
                self._succeeded(now)
            case Deferred():
                self._failed(delivery, now + backoff, not_before=now)
            case InDoubt():
                if delivery.in_doubt_since is None:
                    delivery.in_doubt_since = now
                if outcome.timed_out:
                    delivery.quiet_at = max(
                        delivery.quiet_at, now + self._limits.request_timeout_seconds
                    )
                not_before = now + (outcome.retry_after_seconds or 0.0)
                self._failed(delivery, max(now + backoff, not_before), not_before)
                # A 503 that asks for a wait speaks for the service, a 202 (pending) for the batch.
                if outcome.retry_after_seconds and (outcome.status or 0) >= 400:
                    self._hold(outcome, fact.jitter, now)
            case Throttled() | Blocked():
                self._hold(outcome, fact.jitter, now)
                self._retries.append(delivery)
            case Refused():
                self._recovered(delivery)  # what becomes of it, the pipeline says
            case _:
                assert_never(outcome)

    def _learn(self, outcome: Outcome, now: float, seconds: float) -> None:
        """Tell what the answer says of how many requests the endpoint bears."""
        open_count = len(self._in_flight)
        match outcome:
            case Acknowledged() | Refused():
                self._concurrency.answered(now, seconds, open_count)
            case Throttled():
                self._concurrency.refused(now, seconds, open_count)
            case Blocked():
                self._concurrency.held(now)
            case InDoubt(status=status) if status is not None and status < 300:
                self._concurrency.answered(now, seconds, open_count)
            case InDoubt() | Deferred():
                self._concurrency.failed(now, seconds, open_count)
            case _:
                assert_never(outcome)

    def put_off(self, delivery: Delivery, due: float) -> None:
        """Try a batch again that was let go, and not before that time."""
        delivery.not_before = due
        heapq.heappush(self._waiting, (due, next(self._sequence), delivery))

    def forget_unsent(self, partition: TopicPartition) -> list[Delivery]:
        """Drop and return what no attempt can have written of a partition."""

        def goes(delivery: Delivery) -> bool:
            return delivery.batch.partition == partition and not delivery.in_doubt

        forgotten = list(self._ready.pop(partition, ()))
        self._ready_count -= len(forgotten)
        forgotten += self._parked.pop(partition, ())
        forgotten += [delivery for delivery in self._retries if goes(delivery)]
        forgotten += [delivery for _, _, delivery in self._waiting if goes(delivery)]
        self._retries = deque(delivery for delivery in self._retries if not goes(delivery))
        self._waiting = [entry for entry in self._waiting if not goes(entry[2])]
        heapq.heapify(self._waiting)
        for delivery in forgotten:
            self._recovered(delivery)
        return forgotten

    def forget(self, delivery: Delivery) -> None:
        """Drop a delivery that was just started, or waits for another attempt."""
        self._recovered(delivery)
        self._in_flight.discard(delivery)
        self._waiting = [entry for entry in self._waiting if entry[2] is not delivery]
        heapq.heapify(self._waiting)

    def clear(self) -> None:
        """Drop everything; answers that are still to come belong to nobody."""
        self._ready_count = 0
        self._ready.clear()
        self._parked.clear()
        self._failing.clear()
        self._retries.clear()
        self._waiting.clear()
        self._in_flight.clear()

    def _slots(self) -> int:
        """Requests that may start; one at a time while nothing has succeeded since a hold."""
        slots = self._concurrency.limit
        if self._holds:
            slots = 1
        bound = self._limits.requests_in_flight_max
        if self._failures_in_row >= max(2, bound):
            slots = min(slots, bound - len(self._waiting))
        return max(0, slots - len(self._in_flight))

    def _next_turn(self) -> Delivery:
        partition, queue = self._ready.popitem(last=False)
        delivery = queue.popleft()
        self._ready_count -= 1
        if queue:
            self._ready[partition] = queue
        return delivery

    def _failed(self, delivery: Delivery, due: float, not_before: float) -> None:
        self._failures_in_row += 1
        delivery.not_before = not_before
        if not delivery.failing:
            name = delivery.batch.partition
            delivery.failing = True
            self._failing[name] += 1
            if self._failing[name] >= self._failing_max and name in self._ready:
                self._parked[name] = self._ready.pop(name)
                self._ready_count -= len(self._parked[name])
        heapq.heappush(self._waiting, (due, next(self._sequence), delivery))

    def _recovered(self, delivery: Delivery) -> None:
        """Take a batch out of the count of those that fail; its partition may have turns again."""
        if not delivery.failing:
            return
        name = delivery.batch.partition
        delivery.failing = False
        self._failing[name] -= 1
        if name in self._parked and self._failing[name] < self._failing_max:
            self._ready[name] = self._parked.pop(name)
            self._ready_count += len(self._ready[name])

    def _succeeded(self, now: float) -> None:
        """After an outage try at once what was put off; a batch failing alone stays backed off."""
        was_outage = self._failures_in_row > len(self._waiting)
        self._failures_in_row = 0
        if now >= self._held_until:  # an answer from before the hold does not lift it
            self._holds = 0
            self.blocked = None
        if was_outage:
            self._waiting = [(entry.not_before, tie, entry) for _, tie, entry in self._waiting]
            heapq.heapify(self._waiting)

    def _hold(self, outcome: Throttled | InDoubt | Blocked, jitter: float, now: float) -> None:
        if isinstance(outcome, Blocked):
            self.blocked = outcome
        # Requests that were in flight together all bring the same news: it counts once.
        if now >= self._held_until:
            self._holds += 1
        wait = self._limits.backoff_seconds(self._holds + _PROBE_ATTEMPTS, jitter)
        if not isinstance(outcome, Blocked) and outcome.retry_after_seconds:  # 0 asks for no wait
            wait = outcome.retry_after_seconds + wait * _RETRY_AFTER_SPREAD
        if now + wait > self._held_until:
            self._held_until = now + wait
            self.hold = Hold(self._held_until, outcome.reason)
