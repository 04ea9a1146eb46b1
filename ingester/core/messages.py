"""The core's vocabulary: what the shells report (facts, past) and what they are to do (commands).

Facts come per fetch and per batch, never per record. `jitter` is a number from [0, 1) that the
shell draws, so that the core stays deterministic.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import msgspec

from ingester.core.batch import Batch, BatchLimits
from ingester.core.coverage import Proof
from ingester.core.deadletter import DeadLetter, DeadLetterLimit
from ingester.core.delivery import Acknowledged, Outcome, backoff_seconds
from ingester.core.intent import Ledger, Range
from ingester.core.record import Record, TopicPartition

InDoubtPolicy = Literal["retry", "halt"]


class Limits(msgspec.Struct, frozen=True):
    """The bounds and policies that the pipeline keeps to; each is a setting of the same name."""

    batch: BatchLimits
    requests_in_flight_max: int
    buffer_bytes_max: int
    backoff_seconds_min: float
    backoff_seconds_max: float
    commit_interval_seconds: float
    idempotency_window_seconds: float
    request_timeout_seconds: float
    session_timeout_seconds: float
    dead_letters: DeadLetterLimit
    in_doubt: InDoubtPolicy
    receipts: bool
    requests_per_second_max: float | None = None

    def backoff_seconds(self, attempts: int, jitter: float) -> float:
        """Return the wait after so many failures in a row."""
        return backoff_seconds(
            attempts,
            jitter=jitter,
            seconds_min=self.backoff_seconds_min,
            seconds_max=self.backoff_seconds_max,
        )


# -- facts ------------------------------------------------------------------------------------


class Start(msgspec.Struct, frozen=True):
    """Where an assigned partition begins, and what its former owners left there."""

    offset: int
    """To be read and committed next: the committed one, or beyond what was settled since."""
    ledger: Ledger
    """What is intended from there on."""
    settled: Mapping[Range, int]
    """Those of the intents that are settled, and where the receipts topic says so."""
    acknowledged: Collection[Range] = ()
    """Those whose items PacSpace has, as somebody found: their dead letters are still to write."""
    resent: Collection[Range] = ()
    """Those that somebody decided to have sent again, whatever the policies say."""
    committed: int | None = None
    """The committed offset where it is behind, and has to follow."""
    halt_reason: str | None = None
    """Why the partition must not be read, if so."""
    foreign_metadata: str = ""
    """What somebody else wrote where the intents go; the next commit replaces it."""
    proofs: Sequence[Proof] = ()
    """What is settled beyond the offset, and was not intended by the group's last owner."""
    unaccounted: bool = False
    """Whether it is halted because it is not known what may have been sent."""


class PartitionsAssigned(msgspec.Struct, frozen=True):
    """The group gave this worker these partitions, and no others."""

    partitions: Mapping[TopicPartition, Start]
    wall_seconds: float
    """Seconds since the epoch, now."""


class PartitionReopened(msgspec.Struct, frozen=True):
    """Somebody has judged what halted this partition, which is still assigned."""

    partition: TopicPartition
    start: Start
    wall_seconds: float


class RecordsFetched(msgspec.Struct, frozen=True):
    """Records of each partition, in offset order, following those fetched before."""

    records: Mapping[TopicPartition, Sequence[Record]]


class PositionsReached(msgspec.Struct, frozen=True):
    """Below these offsets every record was handed over; markers and gaps may follow the last."""

    positions: Mapping[TopicPartition, int]


class ReadFailed(msgspec.Struct, frozen=True):
    """What is to be read next cannot be: the log does not hold it, or nobody can decode it."""

    partition: TopicPartition
    reason: str


class AttemptEnded(msgspec.Struct, frozen=True):
    """A batch that `SendBatch` named has its answer, or certainly none."""

    batch: Batch
    outcome: Outcome
    jitter: float


class RangeRead(msgspec.Struct, frozen=True):
    """All records that the log has of the range of a batch, in offset order."""

    batch: Batch
    records: Sequence[Record]


class RangeNotRead(msgspec.Struct, frozen=True):
    """The log cannot be read now; it will be tried again."""

    batch: Batch
    jitter: float


class DeadLettersWritten(msgspec.Struct, frozen=True):
    """All dead letters of the batch are acknowledged by the broker."""

    batch: Batch


class DeadLettersNotWritten(msgspec.Struct, frozen=True):
    """At least one dead letter of the batch is not acknowledged; all will be written again."""

    batch: Batch
    jitter: float
    refused: str | None = None
    """Why the topic takes none of it until somebody changes something, if so."""


class ReceiptWritten(msgspec.Struct, frozen=True):
    """The broker has the receipt of the batch, at this offset of its partition."""

    batch: Batch
    offset: int


class ReceiptNotWritten(msgspec.Struct, frozen=True):
    """The receipt is not acknowledged; it will be written again."""

    batch: Batch
    jitter: float
    refused: str | None = None
    """Why the topic does not take it until somebody changes something, if so."""


class OffsetsCommitted(msgspec.Struct, frozen=True):
    """The coordinator stored what the last `CommitOffsets` asked for."""


class CommitFailed(msgspec.Struct, frozen=True):
    """The last commit was refused or its answer lost."""

    jitter: float
    fenced: bool = False
    """The group goes on without this member: nothing of this assignment can be committed."""


class RevocationStarted(msgspec.Struct, frozen=True):
    """All partitions are about to go: finish what is in doubt, begin nothing."""


class PartitionsRevoked(msgspec.Struct, frozen=True):
    """All partitions are gone, with whatever is unsettled."""


class DrainRequested(msgspec.Struct, frozen=True):
    """The worker is to stop: settle what has been read, read no more."""


class Tick(msgspec.Struct, frozen=True):
    """The time that `Pipeline.wake_at` named has come."""


Fact = (
    PartitionsAssigned
    | PartitionReopened
    | RecordsFetched
    | PositionsReached
    | ReadFailed
    | AttemptEnded
    | RangeRead
    | RangeNotRead
    | DeadLettersWritten
    | DeadLettersNotWritten
    | ReceiptWritten
    | ReceiptNotWritten
    | OffsetsCommitted
    | CommitFailed
    | RevocationStarted
    | PartitionsRevoked
    | DrainRequested
    | Tick
)


# -- commands ---------------------------------------------------------------------------------


class SendBatch(msgspec.Struct, frozen=True):
    """Post the batch's body under its key; `attempt` counts from 1."""

    batch: Batch
    attempt: int


class ReadRange(msgspec.Struct, frozen=True):
    """Read the batch's records again: it was refused, and they were not kept."""

    batch: Batch


class WriteDeadLetters(msgspec.Struct, frozen=True):
    """Write these dead letters of the batch and wait until the broker has them."""

    batch: Batch
    letters: Sequence[DeadLetter]


class WriteReceipt(msgspec.Struct, frozen=True):
    """Append the batch's receipt and wait until the broker has it."""

    batch: Batch
    outcome: Acknowledged | None
    """None for a batch without items, and for one of which a person says that PacSpace has it."""
    attempts: int
    in_doubt: bool = False
    """Whether an attempt before the last may have been applied, be it a former owner's."""


class Commit(msgspec.Struct, frozen=True):
    """What is stored for one partition."""

    next_offset: int
    metadata: str


class CommitOffsets(msgspec.Struct, frozen=True):
    """Commit all of these in one request; the next commit waits for its end."""

    offsets: Mapping[TopicPartition, Commit]


class PausePartitions(msgspec.Struct, frozen=True):
    """Fetch no more of these until they are resumed."""

    partitions: frozenset[TopicPartition]


class ResumePartitions(msgspec.Struct, frozen=True):
    """Fetch these again."""

    partitions: frozenset[TopicPartition]


class HaltPartition(msgspec.Struct, frozen=True):
    """Stop this partition until an operator acts; nothing past its committed offset is lost."""

    partition: TopicPartition
    reason: str


Command = (
    SendBatch
    | ReadRange
    | WriteDeadLetters
    | WriteReceipt
    | CommitOffsets
    | PausePartitions
    | ResumePartitions
    | HaltPartition
)
