"""What a worker's commands begin: requests, dead letters, receipts, commits.

What becomes of each is drawn from the seed, and so is when; it takes effect whether or not the
worker is there to hear of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ingester.core.batch import Batch
from ingester.core.deadletter import DeadLetter
from ingester.core.delivery import (
    AnswerLost,
    Blocked,
    Deferred,
    NothingSent,
    Outcome,
    Refused,
    Throttled,
    judge,
)
from ingester.core.messages import (
    AttemptEnded,
    Commit,
    CommitFailed,
    DeadLettersNotWritten,
    DeadLettersWritten,
    Fact,
    OffsetsCommitted,
    RangeNotRead,
    RangeRead,
    ReceiptNotWritten,
    ReceiptWritten,
)
from ingester.core.record import TopicPartition
from tests.simulation.plan import REQUEST_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from tests.simulation.process import Process

_NOW = datetime(2025, 6, 10, 14, 30, tzinfo=UTC)


class Errands:
    """Of one process; each ends with a fact, unless its assignment ends before."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world

    def key_of(self, batch: Batch, attempt: int) -> str:  # noqa: ARG002 -- as said
        """The key in the header, which is not to depend on the attempt."""
        return batch.idempotency_key

    def send(self, batch: Batch, attempt: int) -> None:
        latency = self._process.latency
        end = self._attempt_end(batch)
        if not self._process.is_member:  # it may have been stopped, and not know who else owns this
            end(latency(), Deferred("not in touch with the group"))
            return
        fate = self._world.endpoint.fate()
        if fate == "unreachable":
            end(latency(), judge(NothingSent("refused"), items_count=1, now=_NOW))
            return
        key = self.key_of(batch, attempt)
        self._world.oracle.sent(
            batch,
            key,
            owned=self._world.group.owns(self._process, self._process.generation, batch.partition),
            inherited=self._process.conduct.inherited(batch),
            generation=self._process.generation,
        )
        there = latency() + self._world.delay()
        back = latency()

        def arrive() -> None:
            answer = self._world.endpoint.arrive(batch, key, fate)
            waited = there + (
                self._world.random.random() * REQUEST_TIMEOUT_SECONDS
                if isinstance(answer, AnswerLost) and not self._world.kind
                else back
            )
            if waited < REQUEST_TIMEOUT_SECONDS:
                outcome = judge(answer, items_count=batch.items_count, now=_NOW)
                end(waited - there, outcome)

        self._world.later(there, arrive)
        timeout = judge(
            AnswerLost("timeout", timed_out=True), items_count=batch.items_count, now=_NOW
        )
        end(REQUEST_TIMEOUT_SECONDS, timeout)

    def _attempt_end(self, batch: Batch) -> Callable[[float, Outcome], None]:
        """What reports the end of this attempt, and passes over any second end of it."""
        attempts, term = self._process.conduct.attempts(batch), self._process.term

        def end(seconds: float, outcome: Outcome) -> None:
            def report() -> None:
                if not self._process.conduct.is_under_way(batch, attempts):
                    return
                if isinstance(outcome, Throttled | Blocked | Refused):
                    wholly = isinstance(outcome, Refused) and outcome.is_api
                    self._world.oracle.denied(batch, wholly=wholly)
                self._process.conduct.answered(batch, outcome, self._world.now)
                self._process.feed(AttemptEnded(batch, outcome, self._world.random.random()))

            self._report(seconds, report, term, stale=AttemptEnded(batch, outcome, 0.5))

        return end

    def read_range(self, batch: Batch) -> None:
        _, told = self._world.write_fate()
        fact: Fact = RangeNotRead(batch, self._world.random.random())
        if told:
            fact = RangeRead(batch, self._world.read(batch))
        self._report(
            0.04 + self._process.latency(),
            lambda: self._process.feed(fact),
            self._process.term,
            stale=fact,
        )

    def write_letters(self, batch: Batch, letters: Sequence[DeadLetter]) -> None:
        appended, told = self._world.write_fate()
        if appended:
            self._world.later(
                self._process.latency(),
                lambda: self._world.oracle.letters_appended(batch, letters),
            )

        def report() -> None:
            self._process.conduct.letters_ended(batch, written=told)
            self._process.feed(fact)

        fact: Fact = DeadLettersWritten(batch) if told else DeadLettersNotWritten(batch, 0.5)
        self._report(0.04 + self._process.latency(), report, self._process.term, stale=fact)

    def write_receipt(self, batch: Batch) -> None:
        appended, told = self._world.write_fate()
        offsets: list[int] = []
        if appended:
            self._world.later(
                self._process.latency(), lambda: offsets.append(self._world.append_receipt(batch))
            )

        def report() -> None:
            self._process.conduct.receipt_ended(batch, written=told)
            if told:
                self._process.feed(ReceiptWritten(batch, offsets[0]))
            else:
                self._process.feed(ReceiptNotWritten(batch, self._world.random.random()))

        self._report(
            0.04 + self._process.latency(),
            report,
            self._process.term,
            stale=ReceiptNotWritten(batch, 0.5),
        )

    def commit(self, offsets: Mapping[TopicPartition, Commit]) -> None:
        arrives, told = self._world.commit_fate()
        generation = self._process.generation
        stored: list[bool] = []

        def arrive() -> None:
            stored.append(self._world.store(self._process, generation, offsets))

        if arrives:
            self._world.later(self._process.latency(), arrive)

        def report() -> None:
            known = told and stored == [True]
            self._process.conduct.commit_ended(known=known)
            if known:
                self._process.feed(OffsetsCommitted())
            else:
                self._process.feed(CommitFailed(self._world.random.random(), fenced=told))

        seconds = 0.04 + self._process.latency() if told else 0.04 + self._world.random.random() * 2
        self._report(seconds, report, self._process.term, stale=None)

    def _report(
        self, seconds: float, report: Callable[[], None], term: int, *, stale: Fact | None
    ) -> None:
        """Report the end of something, unless the assignment has ended: then perhaps late."""

        def reach() -> None:
            if term == self._process.term:
                report()
            elif stale is not None and self._world.random.random() < 0.2:
                self._process.feed(stale)

        self._process.after(seconds, reach)
