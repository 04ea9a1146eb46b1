"""A pipeline whose commits succeed, and the clock: what tests of the core are told in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ingester.core.batch import Batch, BatchLimits
from ingester.core.deadletter import DeadLetterLimit
from ingester.core.delivery import Acknowledged, Outcome, Refused
from ingester.core.event import event_decoder
from ingester.core.intent import Intent, Ledger, Range, decode
from ingester.core.messages import (
    AttemptEnded,
    Command,
    Commit,
    CommitFailed,
    CommitOffsets,
    DeadLettersNotWritten,
    DeadLettersWritten,
    DrainRequested,
    Fact,
    HaltPartition,
    Limits,
    OffsetsCommitted,
    PartitionsAssigned,
    PartitionsRevoked,
    RangeNotRead,
    RangeRead,
    ReceiptNotWritten,
    ReceiptWritten,
    RecordsFetched,
    RevocationStarted,
    SendBatch,
    Start,
    Tick,
)
from ingester.core.pipeline import Pipeline
from ingester.core.receipt import Decision, Note, Receipt, Resolution
from ingester.core.record import TopicPartition
from ingester.core.start import start_of
from tests.support.records import LogRecord, digest_of, in_range, usage_records

P0, P1, P2 = (TopicPartition("usage", number) for number in range(3))
WALL_SECONDS = 1_700_000_000
ACKNOWLEDGED = Acknowledged("batch_1", 202)
REFUSED = Refused("HTTP 400: no", 400, "invalid", is_api=True, body=b'{"message":"no"}')
NOTHING = Ledger(0, [])
LIMITS = Limits(
    batch=BatchLimits(items_max=2, body_bytes_max=10_000, linger_seconds=5.0),
    requests_in_flight_max=10,
    buffer_bytes_max=1_000_000,
    backoff_seconds_min=0.1,
    backoff_seconds_max=30.0,
    commit_interval_seconds=1.0,
    idempotency_window_seconds=86_400.0,
    request_timeout_seconds=30.0,
    session_timeout_seconds=10.0,
    dead_letters=DeadLetterLimit(count_max=1000, share_max=0.5, window_seconds=60.0),
    in_doubt="retry",
    receipts=False,
)


class Scenario:
    """Commits end well as soon as they are asked for, unless a test takes them in its hand."""

    def __init__(
        self, *partitions: TopicPartition, limits: Limits = LIMITS, namespace: str = ""
    ) -> None:
        self.pipeline = Pipeline(limits, event_decoder("refuse"), namespace)
        self.now = 1000.0
        self.stored: dict[TopicPartition, Commit] = {}
        # What the coordinator has of each partition.
        self.committed: dict[TopicPartition, tuple[int, Ledger]] = {}
        # The same, read.
        assert self.assign(*(partitions or (P0,))) == []

    def assign(
        self,
        *partitions: TopicPartition,
        wall_seconds: float = WALL_SECONDS,
        notes: Sequence[Note] = (),
    ) -> list[Command]:
        """Hand partitions over as the coordinator has them, and with these notes."""
        return self.begin({name: self.start(name, *notes) for name in partitions}, wall_seconds)

    def start(self, name: TopicPartition = P0, *notes: Note) -> Start:
        """Where a partition begins for its next owner."""
        commit = self.stored.get(name)
        numbered = list(enumerate(notes))
        return start_of(name, commit, log_begins=0, receipts_end=0, notes=numbered)

    def begin(
        self, starts: Mapping[TopicPartition, Start], wall_seconds: float = WALL_SECONDS
    ) -> list[Command]:
        return self.raw(PartitionsAssigned(starts, wall_seconds))

    def raw(self, fact: Fact) -> list[Command]:
        """Report a fact and return the commands, commits among them."""
        return self.pipeline.handle(fact, self.now)

    def fact(self, fact: Fact) -> list[Command]:
        """Report a fact and return what else than commits comes of it and of their success."""
        return self.through(self.raw(fact))

    def through(self, commands: list[Command]) -> list[Command]:
        """Let the commits succeed; return the other commands, and those that follow."""
        others: list[Command] = []
        for each in commands:
            if isinstance(each, CommitOffsets):
                self.store(each)
                others += self.fact(OffsetsCommitted())
            else:
                others.append(each)
        return others

    def store(self, command: CommitOffsets) -> None:
        for name, commit in command.offsets.items():
            ledger = decode(commit.next_offset, commit.metadata)
            assert isinstance(ledger, Ledger)
            self.stored[name] = commit
            self.committed[name] = (commit.next_offset, ledger)

    def fetched(
        self, records: Mapping[TopicPartition, Sequence[LogRecord]] | Sequence[LogRecord]
    ) -> RecordsFetched:
        return RecordsFetched(records if isinstance(records, Mapping) else {P0: records})

    def fetch(
        self, records: Mapping[TopicPartition, Sequence[LogRecord]] | Sequence[LogRecord]
    ) -> list[Command]:
        """Fetch, and let what is cut be recorded, which takes a moment after another commit."""
        commands = self.fact(self.fetched(records))
        self.now += 0.01
        return commands + self.fact(Tick())

    def sent(self, records: Sequence[LogRecord], partition: TopicPartition = P0) -> list[Batch]:
        """Fetch records and return the batches that were sent for them."""
        return batches_sent(self.fetch({partition: records}))

    def answer(self, batch: Batch, outcome: Outcome = ACKNOWLEDGED) -> list[Command]:
        return self.fact(AttemptEnded(batch, outcome, 0.5))

    def read(self, batch: Batch, log: Sequence[LogRecord]) -> list[Command]:
        """Hand over what this log has of the range of a batch."""
        return self.fact(RangeRead(batch, in_range(log, batch.first_offset, batch.next_offset)))

    def not_read(self, batch: Batch) -> list[Command]:
        return self.fact(RangeNotRead(batch, 0.5))

    def written(self, batch: Batch) -> list[Command]:
        return self.fact(DeadLettersWritten(batch))

    def not_written(self, batch: Batch) -> list[Command]:
        return self.fact(DeadLettersNotWritten(batch, 0.5))

    def receipted(self, batch: Batch, offset: int = 0) -> list[Command]:
        return self.fact(ReceiptWritten(batch, offset))

    def not_receipted(self, batch: Batch) -> list[Command]:
        return self.fact(ReceiptNotWritten(batch, 0.5))

    def commit_failed(self, *, fenced: bool = False) -> list[Command]:
        return self.raw(CommitFailed(0.5, fenced))

    def revocation_started(self) -> list[Command]:
        return self.fact(RevocationStarted())

    def revoked(self) -> list[Command]:
        return self.raw(PartitionsRevoked())

    def drain(self) -> list[Command]:
        return self.fact(DrainRequested())

    def wake(self) -> list[Command]:
        """Let the time come that the pipeline has named; commits succeed."""
        return self.through(self.wake_raw())

    def wake_raw(self) -> list[Command]:
        wake_at = self.pipeline.wake_at()
        assert wake_at is not None, "nobody is to be woken"
        assert wake_at > self.now, "a busy loop"
        self.now = wake_at
        return self.raw(Tick())

    def rest(self) -> None:
        """Let the time pass until nothing is due; nothing but commits may come of it."""
        while self.pipeline.wake_at() is not None:
            assert self.wake() == []

    def offset(self, partition: TopicPartition = P0) -> int:
        """The committed offset, after the commits that are due."""
        self.rest()
        return self.committed[partition][0]

    def intended(self, partition: TopicPartition = P0) -> list[tuple[int, int]]:
        """The ranges that the coordinator knows to be intended."""
        return ranges_of(self.committed[partition][1])


def batches_sent(commands: Sequence[Command]) -> list[Batch]:
    return [each.batch for each in commands if isinstance(each, SendBatch)]


def halts(commands: Sequence[Command]) -> list[str]:
    return [each.reason for each in commands if isinstance(each, HaltPartition)]


def ranges_of(ledger: Ledger) -> list[Range]:
    return [each.range for each in ledger.intents]


def ledger_of(
    *ranges: Range,
    log: Sequence[LogRecord] | None = None,
    intended_at: int = WALL_SECONDS,
    receipts_offset: int = 0,
) -> Ledger:
    """The intents of these ranges of a log; of usual records, if it does not matter of which."""
    records = usage_records(ranges[-1][1]) if log is None and ranges else log or ()
    intents = [Intent(*each, intended_at, digest_of(in_range(records, *each))) for each in ranges]
    return Ledger(receipts_offset, intents)


def receipt_of(range_: Range, partition: TopicPartition = P0) -> Receipt:
    """What is left of a settled batch."""
    return Receipt(
        *partition,
        *range_,
        idempotency_key="ingester-1",
        batch_id="batch_1",
        http_status=202,
        items=1,
        dead_letters=0,
        bits=1,
        bits_by_key={"k": 1},
        body_digest="00",
        attempts=1,
        in_doubt=False,
        settled_at="2025-06-10T14:30:00.000+00:00",
    )


def resolution_of(
    range_: Range,
    decision: Decision,
    partition: TopicPartition = P0,
    intended_at: int | None = WALL_SECONDS,
    *,
    unaccounted: bool = False,
) -> Resolution:
    """What somebody has decided about a range, and about which attempt at it."""
    return Resolution(
        *partition,
        *range_,
        decision=decision,
        by="ada",
        reason="asked PacSpace",
        decided_at="2025-06-10T14:30:00.000+00:00",
        intended_at=intended_at,
        unaccounted=unaccounted,
    )
