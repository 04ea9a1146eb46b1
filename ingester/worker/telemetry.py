"""What the operator sees: each event is one call that writes a log line and counts it.

Event names are `<noun>.<past_verb>`. debug is per batch, info is lifecycle, warning will be
retried, error needs somebody. Values of records and secrets never appear.
"""

from __future__ import annotations

import logging
from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ingester.core.batch import Batch
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
from ingester.core.messages import Commit, HaltPartition, Start
from ingester.core.receipt import Replay, Resolution
from ingester.core.record import TopicPartition

_OUTCOME_LABELS: dict[type[Outcome], str] = {
    Acknowledged: "acknowledged",
    Deferred: "deferred",
    InDoubt: "in_doubt",
    Throttled: "throttled",
    Blocked: "blocked",
    Refused: "refused",
}
_LISTED_MAX = 20  # of what a line would otherwise have no end of
_QUOTED_MAX = 100  # characters of somebody else's text
_REQUEST_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Telemetry:
    """The worker's log and metrics, one method for each thing that happens."""

    def __init__(self) -> None:
        self._log: Any = structlog.get_logger()
        self._debug = self._log.is_enabled_for(logging.DEBUG)  # else nobody would read the facts
        self.registry = CollectorRegistry()
        self._records = _ByTopic("ingester_records", "Records read from Kafka.", self.registry)
        self._items = _ByTopic("ingester_items", "Items acknowledged by PacSpace.", self.registry)
        self._bits = _ByTopic(
            "ingester_bits",
            "Bits acknowledged by PacSpace, credits and debits by their size (a float: for rates,"
            " not for invoices).",
            self.registry,
        )
        self._batches = _ByTopic(
            "ingester_batches", "Batches acknowledged by PacSpace.", self.registry
        )
        self._requests = Counter(
            "ingester_requests",
            "Requests to PacSpace by what their end meant.",
            ["outcome"],
            registry=self.registry,
        )
        # Now, because an alert on what never happened must find a zero.
        self._requests_by_outcome = {
            kind: self._requests.labels(label) for kind, label in _OUTCOME_LABELS.items()
        }
        self._request_seconds = Histogram(
            "ingester_request_seconds",
            "Seconds from sending a batch to its answer.",
            registry=self.registry,
            buckets=_REQUEST_SECONDS_BUCKETS,
        )
        self._dead_letters = Counter(
            "ingester_dead_letters",
            "Records written to the dead-letter topic.",
            ["topic", "code"],
            registry=self.registry,
        )
        self._commits = Counter(
            "ingester_commits",
            "Offset commits by their end.",
            ["outcome"],
            registry=self.registry,
        )
        self._rebalances = Counter(
            "ingester_rebalances",
            "Assignments received from the group.",
            registry=self.registry,
        )
        self._halts = Counter(
            "ingester_partition_halts",
            "Partitions stopped until an operator acts.",
            registry=self.registry,
        )
        self._is_blocked = False  # what the last call of `blocked_now` was told
        self.halted = Gauge(
            "ingester_partitions_halted",
            "Partitions of this worker that wait for an operator.",
            registry=self.registry,
        )
        self.write_refused = Gauge(
            "ingester_partitions_write_refused",
            "Partitions of which a topic refuses a dead letter or a receipt until somebody acts.",
            registry=self.registry,
        )
        self.stalled = Gauge(
            "ingester_partitions_stalled",
            "Partitions of this worker that are behind and have not moved for a while.",
            registry=self.registry,
        )
        self.blocked = Gauge(
            "ingester_blocked",
            "1 while PacSpace refuses everything (key, credit, permission), else 0.",
            registry=self.registry,
        )
        self.held_seconds = Gauge(
            "ingester_held_seconds",
            "Seconds until the next request, while PacSpace wants none (429, 503) or refuses all.",
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "ingester_requests_in_flight",
            "Requests without an answer.",
            registry=self.registry,
        )
        self.buffered_bytes = Gauge(
            "ingester_buffer_bytes",
            "Bytes of record values read and not settled.",
            registry=self.registry,
        )

    def worker_started(self, **facts: object) -> None:
        self._log.info("worker.started", **facts)

    def worker_stopped(self, *, drained: bool, halted: Sequence[str]) -> None:
        if halted:
            self._log.error("worker.stopped", drained=drained, halted=halted)
            return
        if drained:
            self._log.info("worker.stopped", drained=True)
        else:
            self._log.warning(
                "worker.stopped",
                drained=False,
                detail="the drain deadline passed; what is unsettled is not committed and will be"
                " read again",
            )

    def drain_started(self, signal_name: str, timeout_seconds: float) -> None:
        self._log.info("drain.started", signal=signal_name, timeout_seconds=timeout_seconds)

    def start_retried(self, reason: str, retry_seconds: float) -> None:
        self._log.warning("start.retried", reason=reason, retry_seconds=retry_seconds)

    def look_up_retried(self, reason: str, retry_seconds: float) -> None:
        self._log.warning("look_up.retried", reason=reason, retry_seconds=retry_seconds)

    def poll_retried(self, reason: str, retry_seconds: float) -> None:
        self._log.warning("poll.retried", reason=reason, retry_seconds=retry_seconds)

    def topic_created(self, topic: str) -> None:
        self._log.info("topic.created", topic=topic)

    def partitions_assigned(self, starts: Mapping[TopicPartition, Start]) -> None:
        self._rebalances.inc()
        self._log.info("partitions.assigned", partitions=_listed(starts))
        for name, start in starts.items():
            doubts = [each for each in start.ledger.intents if each.range not in start.settled]
            if doubts:
                self._log.warning(
                    "doubts.inherited",
                    partition=str(name),
                    batches=len(doubts),
                    ranges=[str(each) for each in doubts[:_LISTED_MAX]],
                    detail="perhaps sent by a former owner, and without a receipt: sent again under"
                    " the same keys, unless the partition halts",
                )
            if start.foreign_metadata:
                self._log.warning(
                    "metadata.replaced",
                    partition=str(name),
                    metadata=start.foreign_metadata[:_QUOTED_MAX],
                    detail="somebody else wrote it to the committed offset, where this group keeps"
                    " what is in doubt; is another program using the group?",
                )

    def decisions_retried(self, reason: str) -> None:
        self._log.warning("decisions.read_retried", reason=reason)

    def partition_stalled(
        self, partition: TopicPartition, seconds: float, behind: int, held_for: str | None
    ) -> None:
        self._log.error(
            "partition.stalled",
            partition=str(partition),
            seconds=round(seconds),
            unread_offsets=behind,
            held_for=held_for,
            detail="it is behind and does not move; nothing of it is lost. The lines before this"
            " one, /status and `ingester resolve` say what it waits for; if nothing does, restart"
            " this worker and report it",
        )

    def partition_moved(self, partition: TopicPartition, seconds: float) -> None:
        self._log.info("partition.moved", partition=str(partition), stalled_seconds=round(seconds))

    def partition_reopened(
        self, partition: TopicPartition, start: Start, decisions: Sequence[Resolution | Replay]
    ) -> None:
        self._log.info(
            "partition.reopened",
            partition=str(partition),
            offset=start.offset,
            decisions=[
                {
                    "first_offset": each.first_offset,
                    "next_offset": each.next_offset,
                    "decision": (
                        each.decision
                        if isinstance(each, Resolution)
                        else f"replay {each.name} {each.state}"
                    ),
                    "by": each.by,
                    "reason": each.reason,
                }
                for each in decisions[:_LISTED_MAX]
            ],
        )

    def partitions_revoked(self, partitions: Iterable[TopicPartition], *, drained: bool) -> None:
        log = self._log.info if drained else self._log.warning
        log("partitions.revoked", partitions=_listed(partitions), drained=drained)

    def records_fetched(self, topic: str, records_count: int) -> None:
        self._records[topic].inc(records_count)

    def attempt_ended(self, batch: Batch, attempt: int, outcome: Outcome, seconds: float) -> None:
        """The canonical line of an attempt; the metrics of a batch once it is acknowledged."""
        self._requests_by_outcome[type(outcome)].inc()
        self._request_seconds.observe(seconds)
        if isinstance(outcome, Acknowledged):
            topic = batch.partition.topic
            self._items[topic].inc(batch.items_count)
            self._bits[topic].inc(abs(batch.bits))
            self._batches[topic].inc()
            if self._debug:
                self._log.debug(
                    "batch.acknowledged",
                    **_range(batch),
                    items=batch.items_count,
                    bits=batch.bits,
                    batch_id=outcome.batch_id,
                    idempotency_key=batch.idempotency_key,
                    attempt=attempt,
                    seconds=round(seconds, 6),
                )
            return
        self._log.warning(
            f"batch.{_OUTCOME_LABELS[type(outcome)]}",
            **_range(batch),
            items=batch.items_count,
            attempt=attempt,
            idempotency_key=batch.idempotency_key,
            reason=outcome.reason,
            seconds=round(seconds, 6),
        )

    def range_read_retried(self, batch: Batch, reason: str) -> None:
        self._log.warning("range.read_retried", **_range(batch), reason=reason)

    def dead_letters_written(self, batch: Batch, letters: Sequence[DeadLetter], topic: str) -> None:
        tally = Tally(letter.rejection.code for letter in letters)
        for code, letters_count in tally.items():
            self._dead_letters.labels(batch.partition.topic, code).inc(letters_count)
        self._log.error(
            "dead_letters.written",
            **_range(batch),
            dead_letter_topic=topic,
            codes=dict(tally),
            offsets=[letter.record.offset for letter in letters][:20],
            detail=letters[0].rejection.detail,
        )

    def letters_kept(self, batch: Batch, letters: Sequence[DeadLetter]) -> None:
        self._log.warning(
            "letters.kept",
            **_range(batch),
            codes=dict(Tally(letter.rejection.code for letter in letters)),
            http_status=letters[0].http_status,
            detail=letters[0].rejection.detail,
        )

    def dead_letters_retried(self, batch: Batch, topic: str, reason: str, *, refused: bool) -> None:
        log = self._log.error if refused else self._log.warning
        log(
            "dead_letters.retried",
            **_range(batch),
            dead_letter_topic=topic,
            reason=reason,
            detail="nothing is committed past them",
        )

    def receipt_retried(self, batch: Batch, reason: str, *, refused: bool) -> None:
        log = self._log.error if refused else self._log.warning
        log(
            "receipt.retried",
            **_range(batch),
            reason=reason,
            detail="nothing is committed past it",
        )

    def offsets_committed(self, offsets: Mapping[TopicPartition, Commit]) -> None:
        self._commits.labels("committed").inc()
        if self._debug:
            self._log.debug(
                "offsets.committed", offsets={str(k): v.next_offset for k, v in offsets.items()}
            )

    def commit_failed(self, reason: str) -> None:
        self._commits.labels("failed").inc()
        self._log.warning("commit.retried", reason=reason)

    def blocked_now(self, blocked: Blocked | None) -> None:
        """Say once that PacSpace refuses everything, and once that it has stopped to."""
        if blocked is not None and not self._is_blocked:
            self._log.error(
                "pacspace.blocked",
                reason=blocked.reason,
                detail="nothing is sent but single probes, and nothing is lost; `ingester check`"
                " says what to do, and it goes on by itself when that is done",
            )
        elif blocked is None and self._is_blocked:
            self._log.info("pacspace.unblocked")
        self._is_blocked = blocked is not None

    def partition_halted(self, halt: HaltPartition) -> None:
        self._halts.inc()
        self._log.error(
            "partition.halted",
            partition=str(halt.partition),
            reason=halt.reason,
            detail="nothing of it is lost or committed past, and the other partitions go on; mend"
            f" the cause: `ingester resolve {halt.partition}` says by which command it goes on",
        )


class _ByTopic(dict[str, Counter]):
    """A counter for each topic, kept: the client takes 0.7 us to find it, and a batch has three."""

    def __init__(self, name: str, help_text: str, registry: CollectorRegistry) -> None:
        super().__init__()
        self._all = Counter(name, help_text, ["topic"], registry=registry)

    def __missing__(self, topic: str) -> Counter:
        self[topic] = self._all.labels(topic)
        return self[topic]


def _range(batch: Batch) -> dict[str, object]:
    return {
        "partition": str(batch.partition),
        "first_offset": batch.first_offset,
        "next_offset": batch.next_offset,
    }


def _listed(partitions: Iterable[TopicPartition]) -> list[str]:
    return [str(partition) for partition in partitions]
