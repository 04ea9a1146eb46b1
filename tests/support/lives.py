"""Workers that own one partition one after the other, and the world that outlasts them.

Every effect on the world, and every report of one to the pipeline, is a step: a life may end after
any of them, and the next begins from the stored commit and the notes. The world is kind otherwise:
nothing fails, and PacSpace looks a key up before it judges a body.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import assert_never

from ingester.core.batch import Batch
from ingester.core.deadletter import DeadLetter
from ingester.core.delivery import Outcome, Refused
from ingester.core.event import event_decoder
from ingester.core.intent import METADATA_BYTES_MAX, Ledger, Range, decode
from ingester.core.messages import (
    AttemptEnded,
    Command,
    Commit,
    CommitOffsets,
    DeadLettersWritten,
    Fact,
    HaltPartition,
    Limits,
    OffsetsCommitted,
    PartitionsAssigned,
    PausePartitions,
    RangeRead,
    ReadRange,
    ReceiptWritten,
    RecordsFetched,
    ResumePartitions,
    SendBatch,
    Tick,
    WriteDeadLetters,
    WriteReceipt,
)
from ingester.core.pipeline import Pipeline
from ingester.core.receipt import Note, Receipt, decode_note, encode_receipt
from ingester.core.start import start_of
from tests.support.records import LogRecord, in_range
from tests.support.scenario import ACKNOWLEDGED, P0, REFUSED, WALL_SECONDS, ranges_of

CONFLICT = Refused("HTTP 409: no", 409, "conflict", is_api=True)
TOO_LARGE = Refused("HTTP 413: no", 413, "too_large", is_api=True)


class World:
    """A log, what the group has committed, receipts, dead letters, and PacSpace."""

    def __init__(
        self, log: Sequence[LogRecord], limits: Limits, *, refused: Sequence[int] = ()
    ) -> None:
        self.log = log
        self.limits = limits
        self.refused = frozenset(refused)
        # Offsets of the items that PacSpace does not take.
        self.body_bytes_max = 10**6
        self.now = 1000.0
        self.commit = Commit(0, "")
        self.notes: list[Note] = []
        self.letters: list[DeadLetter] = []
        self.requests: list[Range] = []
        self.repeated: set[Range] = set()
        # Those that came again after they were applied.
        self.bodies: dict[str, bytes] = {}
        self.counted: Counter[int] = Counter()
        # By offset: what the bits of `usage_records` tell.

    def post(self, batch: Batch) -> Outcome:
        """Answer as PacSpace does; nothing may come that the next owner would not know of."""
        ledger = decode(self.commit.next_offset, self.commit.metadata)
        assert isinstance(ledger, Ledger)
        assert batch.range in ranges_of(ledger), f"{batch} is sent, and nobody has recorded it"
        self.requests.append(batch.range)
        known = self.bodies.get(batch.idempotency_key)
        if known is not None:
            self.repeated.add(batch.range)
            return ACKNOWLEDGED if known == batch.body else CONFLICT
        offsets = [item["bits"] - 1 for item in json.loads(batch.body)["items"]]
        if len(batch.body) > self.body_bytes_max:
            return TOO_LARGE
        if self.refused.intersection(offsets):
            return REFUSED
        self.bodies[batch.idempotency_key] = batch.body
        self.counted.update(offsets)
        return ACKNOWLEDGED

    def check(self) -> None:
        """All is committed, and each record counted once, or else a dead letter and no more."""
        assert self.commit.next_offset == self.log[-1].offset + 1
        assert max(self.counted.values(), default=1) == 1, "counted twice"
        lettered = {letter.record.offset for letter in self.letters}
        for record in self.log:
            assert record.offset in self.counted or record.offset in lettered, record.offset
            assert record.value is not None or record.offset in lettered
        if self.limits.receipts:
            receipts = [note for note in self.notes if isinstance(note, Receipt)]
            for each in receipts:
                if each.batch_id is not None and each.range in self.repeated:
                    assert each.in_doubt, f"{each.range} was applied before"
            ranges = sorted({each.range for each in receipts})
            assert [first for first, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
            assert ranges[-1][1] == self.commit.next_offset


def first(_: int) -> int:
    """What came first is done first."""
    return 0


class Life:
    """One worker, from its assignment on; it ends where it is left."""

    def __init__(self, world: World, pick: Callable[[int], int] = first) -> None:
        self.world = world
        self.pipeline = Pipeline(world.limits, event_decoder("refuse"))
        self.halts: list[str] = []
        self._pick = pick
        # Which of so many things that are due is done next.
        self._due: deque[Callable[[], None]] = deque()
        start = start_of(
            P0,
            world.commit,
            log_begins=0,
            receipts_end=len(world.notes),
            notes=list(enumerate(world.notes)),
        )
        self._position = start.offset
        self._report(PartitionsAssigned({P0: start}, WALL_SECONDS + world.now))

    def step(self) -> bool:
        """Do one thing that is due, or read on, or let time pass; return whether there was one."""
        wake_at = self.pipeline.wake_at()
        if self._due:
            self._due.rotate(-self._pick(len(self._due)))
            self._due.popleft()()
        elif records := in_range(self.world.log, self._position, self._position + 100):
            self._position = records[-1].offset + 1
            self._report(RecordsFetched({P0: records}))
        elif wake_at is not None:
            self.world.now = max(self.world.now, wake_at)
            self._report(Tick())
        else:
            return False
        return True

    def run(self, steps_max: int = 100_000) -> int:
        """Go on until nothing is left to do; return the number of steps."""
        steps = 0
        while self.step():
            steps += 1
            assert steps < steps_max, "it comes to no end"
        return steps

    def _report(self, fact: Fact) -> None:
        for command in self.pipeline.handle(fact, self.world.now):
            self._begin(command)

    def _begin(self, command: Command) -> None:
        match command:
            case PausePartitions() | ResumePartitions():
                pass
            case HaltPartition():
                self.halts.append(command.reason)
            case _:
                self._due.append(partial(self._carry_out, command))

    def _carry_out(self, command: Command) -> None:
        """Change the world, and leave it to another step to say so."""
        self._due.append(partial(self._report, self._effect(command)))

    def _effect(self, command: Command) -> Fact:
        world = self.world
        match command:
            case SendBatch(batch):
                return AttemptEnded(batch, world.post(batch), 0.5)
            case ReadRange(batch):
                records = in_range(world.log, batch.first_offset, batch.next_offset)
                return RangeRead(batch, records)
            case WriteDeadLetters(batch, letters):
                world.letters += letters
                return DeadLettersWritten(batch)
            case WriteReceipt(batch, outcome, attempts, in_doubt):
                settled_at = "2025-06-10T14:30:00Z"
                note = decode_note(
                    encode_receipt(batch, outcome, attempts, settled_at, in_doubt=in_doubt)
                )
                assert note is not None
                world.notes.append(note)
                return ReceiptWritten(batch, len(world.notes) - 1)
            case CommitOffsets(offsets):
                assert len(offsets[P0].metadata) <= METADATA_BYTES_MAX
                world.commit = offsets[P0]
                return OffsetsCommitted()
            case PausePartitions() | ResumePartitions() | HaltPartition():
                raise AssertionError("nothing in the world changes by it")
            case _:
                assert_never(command)
