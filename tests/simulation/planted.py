"""Bugs that the simulation must find: each replaces one method of the core or of its shell.

Those that say "it was so" were in the core, and were found by reading it or by the simulation.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from ingester.core import pipeline as pipeline_module
from ingester.core.batch import BatchBuilder
from ingester.core.delivery import Acknowledged, InDoubt, Response
from ingester.core.dispatch import Dispatcher
from ingester.core.intent import Ledger
from ingester.core.messages import AttemptEnded, DeadLettersWritten, ResumePartitions, SendBatch
from ingester.core.offsets import OffsetTracker
from ingester.core.pipeline import Pipeline
from tests.simulation import errands as errands_module
from tests.simulation.errands import Errands
from tests.simulation.process import Process

BUGS: dict[str, Callable[[], AbstractContextManager[object]]] = {}
"""By name; what it returns plants the bug for as long as it is entered."""


def plant(owner: object, name: str) -> Callable[[Any], Any]:
    """Enter a replacement under its own name, in words."""

    def enter(replacement: Any) -> Any:
        words = replacement.__name__.replace("_", " ")
        BUGS[words] = lambda: patch.object(owner, name, replacement)
        return replacement

    return enter


# -- intents ------------------------------------------------------------------------------------

_commit = Pipeline._commit
_commit_failed = Pipeline._commit_failed
_assigned = Pipeline._assigned
_give_up = Pipeline._give_up
_revoked = Pipeline._revoked
_attempt_ended = Pipeline._attempt_ended
_ledger = OffsetTracker.ledger
_settle = OffsetTracker.settle
_retract = OffsetTracker.retract


@plant(Pipeline, "_commit")
def sends_before_the_intent_is_stored(self, now, commands):
    before = self._committing
    _commit(self, now, commands)
    if before is None and self._committing is not None:
        for name, (position, intended) in self._committing.items():
            for delivery in intended:
                delivery.recorded = True
                if delivery.items_pending and delivery.batch in self._deliveries:
                    self._dispatcher.add(delivery)
            self._committing[name] = (position, [])


@plant(Pipeline, "_commit_failed")
def sends_although_the_commit_failed(self, fact, now):
    self._committed([])


@plant(Pipeline, "_commit_failed")
def forgets_what_a_failed_commit_intended(self, fact, now):
    for name, (position, _) in self._committing.items():
        self._committing[name] = (position, [])
    _commit_failed(self, fact, now)


@plant(Pipeline, "_assigned")
def cuts_what_was_inherited_by_its_own_limits(self, fact, now, commands):
    _assigned(self, fact, now, commands)
    for part in self._partitions.values():
        part.builder.frozen.clear()
        part.offsets._inherited.clear()


@plant(OffsetTracker, "ledger")
def forgets_what_is_inherited_and_not_read_yet(self):
    """It was so."""
    ledger = _ledger(self)
    return Ledger(
        ledger.receipts_offset, [each for each in ledger.intents if each not in self._inherited]
    )


@plant(OffsetTracker, "retract")
def forgets_the_intents_of_forgotten_batches(self, spans):
    for span in spans:
        span.intended_at = None
    return True


@plant(Pipeline, "_give_up")
def forgets_what_a_former_owner_may_have_sent(self, name):
    part = self._partitions[name]
    inherited = [each.span for each in self._deliveries.values() if each.in_doubt]
    _give_up(self, name)
    part.offsets.retract(set(inherited))
    self._uncommitted[name] = None


@plant(OffsetTracker, "ledger")
def commits_the_ledger_of_the_commit_before(self):
    before, self._before = getattr(self, "_before", None), _ledger(self)
    return before or self._before


BUGS["intends more than the metadata has room for"] = lambda: patch.object(
    pipeline_module, "INTENTS_MAX", 10_000
)


@plant(Pipeline, "_intend")
def finds_no_room_for_what_has_its_room_already(self, part, wall_seconds):
    """It was so."""
    intended = []
    room = pipeline_module.INTENTS_MAX - part.offsets.intended_count
    while part.unintended and room > 0:
        delivery = part.unintended.popleft()
        self._unintended_count -= 1
        if delivery.span.intended_at is None:
            delivery.span.intended_at = wall_seconds
            room -= 1
        intended.append(delivery)
    return intended


@plant(Pipeline, "_give_up")
def leaves_what_it_never_sent_in_doubt(self, name):
    """It was so."""
    with patch.object(OffsetTracker, "retract", lambda *_: False):
        _give_up(self, name)


# -- frozen batches -----------------------------------------------------------------------------


BUGS["a linger cuts a frozen batch"] = lambda: patch.object(
    BatchBuilder, "may_be_cut", property(lambda self: self._first is not None)
)
BUGS["the key depends on the attempt"] = lambda: patch.object(
    Errands, "key_of", lambda _, batch, attempt: f"{batch.idempotency_key}-{attempt}"
)
BUGS["the key depends on the epoch"] = lambda: patch.object(
    Errands, "key_of", lambda self, batch, _: f"{batch.idempotency_key}-{self._process.number}"
)
BUGS["takes a frozen range for whole that is not"] = lambda: patch.object(
    BatchBuilder, "_is", lambda self, _: self._first is not None
)
BUGS["a zombie sends after it wakes"] = lambda: patch.object(
    Process, "is_member", property(lambda _: True)
)


@plant(Pipeline, "_resume")
def waits_for_room_that_a_frozen_batch_takes(self, commands):
    """It was so."""
    if self._paused and self._buffered_bytes <= self._limits.buffer_bytes_max // 2:
        commands.append(ResumePartitions(frozenset(self._paused)))
        self._paused.clear()
    if self._paused and not self._deliveries:
        self._cut_all(commands)


# -- receipts -----------------------------------------------------------------------------------

_take_inherited = Pipeline._take_inherited


@plant(Pipeline, "_advance")
def commits_before_the_receipt(self, delivery, commands):
    if delivery.done and delivery.recorded:
        if self._limits.receipts:
            self._write(delivery, commands)
        self._settle(delivery)


@plant(Pipeline, "_advance")
def writes_receipts_of_what_is_not_recorded(self, delivery, commands):
    """It was so."""
    early = self.__dict__.setdefault("_early", set())
    if delivery.done and self._limits.receipts and delivery not in early:
        early.add(delivery)
        self._write(delivery, commands)
    elif delivery.done and not self._limits.receipts:
        self._settle(delivery)


@plant(Pipeline, "_take_inherited")
def takes_all_below_a_receipt_for_settled(self, part, delivery, commands):
    offset = max(part.receipted.values(), default=None)
    if offset is not None and delivery.batch.next_offset <= max(part.receipted)[1]:
        self._settle(delivery)
    else:
        _take_inherited(self, part, delivery, commands)


@plant(Pipeline, "_take_inherited")
def sends_again_what_has_a_receipt(self, part, delivery, commands):
    part.receipted = {}
    _take_inherited(self, part, delivery, commands)


@plant(Pipeline, "_take_inherited")
def counts_the_bytes_of_receipted_batches_twice(self, part, delivery, commands):
    """It was so."""
    before = self._buffered_bytes
    _take_inherited(self, part, delivery, commands)
    self._buffered_bytes -= before - self._buffered_bytes


@plant(OffsetTracker, "ledger")
def passes_over_receipts_whose_answer_is_to_come(self):
    """It was so."""
    return Ledger(self._receipts_offset, _ledger(self).intents)


# -- doubts -------------------------------------------------------------------------------------


@plant(Pipeline, "_attempt_ended")
def takes_a_doubt_for_an_acknowledgement(self, fact, now, commands):
    if isinstance(fact.outcome, InDoubt):
        fact = AttemptEnded(fact.batch, Acknowledged("batch_0", 202), fact.jitter)
    _attempt_ended(self, fact, now, commands)


@plant(errands_module, "judge")
def takes_any_success_for_an_acknowledgement(answer, *, items_count, now):
    if isinstance(answer, Response) and answer.status < 300:
        return Acknowledged("batch_0", answer.status)
    return _judge(answer, items_count=items_count, now=now)


_judge = errands_module.judge


@plant(OffsetTracker, "settle")
def commits_past_a_batch_in_doubt(self, span):
    span.settled = True
    before = self.position
    while self._spans and self._spans[0].next_offset <= span.next_offset:
        self._spans.popleft()
    self.position = max(self.position, span.next_offset)
    return self.position != before


@plant(Pipeline, "_send")
def sends_however_long_it_was_in_doubt(self, delivery, now, commands):
    """It was so."""
    commands.append(SendBatch(delivery.batch, delivery.attempts))


@plant(Pipeline, "_not_to_be_sent_again")
def inherits_doubts_in_spite_of_halt_and_window(self, start, wall_seconds):
    return None


@plant(Pipeline, "_attempt_ended")
def retries_in_spite_of_halt(self, fact, now, commands):
    delivery = self._deliveries.get(fact.batch)
    if delivery is not None and isinstance(fact.outcome, InDoubt):
        self._dispatcher.ended(delivery, fact, now)
    else:
        _attempt_ended(self, fact, now, commands)


# -- everything else ----------------------------------------------------------------------------

_drain = Pipeline._drain


@plant(Pipeline, "_not_written")
def writes_nothing_again(self, fact, now):
    pass


@plant(Pipeline, "_not_written")
def takes_a_failed_write_for_a_success(self, fact, now):
    delivery = self._deliveries.get(fact.batch)
    if delivery is not None and delivery.dead_letters_pending:
        self.handle(DeadLettersWritten(fact.batch), now)


@plant(Pipeline, "_resume")
def resumes_never(self, commands):
    pass


@plant(Dispatcher, "_hold")
def holds_nothing(self, outcome, jitter, now):
    pass


@plant(Pipeline, "_revoked")
def keeps_deliveries_beyond_their_assignment(self):
    deliveries = dict(self._deliveries)
    _revoked(self)
    self._deliveries.update(deliveries)


@plant(Pipeline, "_revocation_started")
def begins_new_batches_in_a_revocation(self):
    self._revoking = True
    for name in self._partitions:
        self._discard(name)
