"""One worker process: what a shell does around a pipeline, with every wait drawn from the seed.

It may be stopped and continued at any moment: what reaches it meanwhile waits. It may die: what it
has begun goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, assert_never

from ingester.core.event import event_decoder
from ingester.core.intent import Ledger, decode
from ingester.core.messages import (
    Command,
    Commit,
    CommitOffsets,
    DrainRequested,
    Fact,
    HaltPartition,
    PartitionReopened,
    PartitionsAssigned,
    PartitionsRevoked,
    PausePartitions,
    PositionsReached,
    ReadFailed,
    ReadRange,
    RecordsFetched,
    ResumePartitions,
    RevocationStarted,
    SendBatch,
    Start,
    Tick,
    WriteDeadLetters,
    WriteReceipt,
)
from ingester.core.pipeline import Pipeline
from ingester.core.record import TopicPartition
from ingester.core.start import start_of
from tests.simulation.conduct import Conduct
from tests.simulation.errands import Errands
from tests.simulation.oracle import READ_FAILED, promise
from tests.simulation.plan import (
    DRAIN_SECONDS_MAX,
    SESSION_TIMEOUT_SECONDS,
)
from tests.support.records import LogRecord

if TYPE_CHECKING:
    from tests.simulation.world import World

_HEARTBEAT_SECONDS = 3.0
_RECORD_BYTES = 700  # about what a dead letter of the generated logs may count for

_decode = event_decoder("refuse")


class Process:
    """Lives from its start to its death; a restart is another process."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.plan = world.plan
        self.random = world.random
        self.pipeline = Pipeline(self.plan.limits, _decode)
        self.conduct = Conduct(self.plan.limits)
        self.errands = Errands(self)
        self.alive = True
        self.leaving = False  # from the request to drain on
        self.halts: dict[TopicPartition, str] = {}
        self._paused = False
        self._inbox: list[Callable[[], None]] = []  # what waits for a stopped process
        self.generation = 0
        self._contact = float("-inf")  # when the last request was sent that the group answered
        self.term = 0  # counts assignments and their ends: what belongs to another is stale
        self._assigned = False
        self._revoking = False
        self._positions: dict[TopicPartition, int] = {}  # indices into the logs
        self._largest_fetch_bytes = 0
        self._frozen_bytes = 0
        self._tick_at: float | None = None
        self._join()
        self.after(_HEARTBEAT_SECONDS, self._heartbeat)
        self.after(0.0, self._poll)

    # -- time ---------------------------------------------------------------------------------

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Act later, if the process lives by then and when it is not stopped."""
        self.world.later(seconds, lambda: self._reach(action))

    def _reach(self, action: Callable[[], None]) -> None:
        if self._paused:
            self._inbox.append(action)
        elif self.alive:
            action()

    def latency(self) -> float:
        return 0.001 + 0.03 * self.random.random() ** 3

    def pause(self) -> None:
        if self.alive and not self._paused:
            self.world.note(self, "-- is stopped --")
            self._paused = True

    def wake(self) -> None:
        """Go on: everything that waited is there at once, in whatever order a loop takes it."""
        if self._paused:
            self.world.note(self, "-- goes on --")
            self._paused = False
            inbox, self._inbox = self._inbox, []
            if self.random.random() < 0.5:
                self.random.shuffle(inbox)
            for action in inbox:
                self._reach(action)

    def die(self) -> None:
        self.world.note(self, "-- dies --")
        self.alive = False
        self._inbox.clear()

    # -- the group ----------------------------------------------------------------------------

    @property
    def is_member(self) -> bool:
        """Whether nobody else can have the partitions by now."""
        return self.world.now - self._contact < SESSION_TIMEOUT_SECONDS

    def _join(self) -> None:
        self.world.later(self.latency(), lambda: self.alive and self.world.group.join(self))

    def assigned(self, generation: int, names: Sequence[TopicPartition]) -> None:
        sent = self.world.now
        self.after(self.latency(), lambda: self._look_up(generation, names, sent))

    def _look_up(self, generation: int, names: Sequence[TopicPartition], sent: float) -> None:
        """Read the stored offsets, then the receipts; meanwhile anything may happen."""
        self.generation = generation
        self._contact = sent

        def read_offsets() -> None:
            commits = {name: self.world.group.stored.get(name) for name in names}
            self.after(self.latency(), lambda: read_receipts(commits))

        def read_receipts(commits: Mapping[TopicPartition, Commit | None]) -> None:
            if self.generation == generation and not self._assigned:
                self._begin({name: self._start(name, each) for name, each in commits.items()})

        self.after(self.latency(), read_offsets)

    def _start(self, name: TopicPartition, commit: Commit | None) -> Start:
        ledger = decode(commit.next_offset, commit.metadata) if commit else None
        notes = self.world.notes[name]
        lowest = ledger.receipts_offset if isinstance(ledger, Ledger) else 0
        return start_of(
            name,
            commit,
            log_begins=self.world.committed(name).next_offset,
            receipts_end=len(notes),
            notes=list(enumerate(notes))[lowest:],
        )

    def _begin(self, starts: Mapping[TopicPartition, Start]) -> None:
        self.term += 1
        self._assigned = True
        self._revoking = False
        self.halts.clear()
        for name, start in starts.items():
            self._go_to(name, start)
        self.conduct.partitions_assigned(starts, self.world.now)
        self.feed(PartitionsAssigned(starts, self.world.wall_seconds()))

    def _go_to(self, name: TopicPartition, start: Start) -> None:
        self._positions[name] = self.world.index_of(name, start.offset)
        for intent in start.ledger.intents:
            entries = self.world.logs[name]
            first = self.world.index_of(name, intent.first_offset)
            last = self.world.index_of(name, intent.next_offset)
            size = sum(
                len(each.record.value or b"") + _RECORD_BYTES for each in entries[first:last]
            )
            self._frozen_bytes = max(self._frozen_bytes, size)

    def reopen(self, name: TopicPartition) -> None:
        """Look again where a halted partition begins: somebody has decided about it."""
        term = self.term

        def begin() -> None:
            if term == self.term and self.pipeline.may_be_reopened(name):
                start = self._start(name, self.world.group.stored.get(name))
                del self.halts[name]
                self._go_to(name, start)
                self.conduct.partition_reopened(name, start, self.world.now)
                self.feed(PartitionReopened(name, start, self.world.wall_seconds()))

        self.after(self.latency(), begin)

    def _heartbeat(self) -> None:
        self.after(_HEARTBEAT_SECONDS, self._heartbeat)
        sent, generation = self.world.now, self.generation

        def arrive() -> None:
            answer = self.world.group.heartbeat(self, generation)
            self.after(self.latency(), lambda: hear(answer))

        def hear(answer: str) -> None:
            if generation != self.generation:
                return
            if answer == "unknown":
                self._contact = float("-inf")
            else:
                self._contact = max(self._contact, sent)
            if answer != "well" and self._assigned and not self._revoking:
                self._start_revocation()

        if self._assigned:
            self.world.later(self.latency(), arrive)

    def _start_revocation(self) -> None:
        self._revoking = True
        self.conduct.revocation_started()
        term = self.term
        self.after(DRAIN_SECONDS_MAX, lambda: term == self.term and self._revoke(rough=True))
        self.feed(RevocationStarted())

    def _revoke(self, *, rough: bool = False) -> None:
        self.world.oracle.rough_ends += rough
        self.term += 1
        self._assigned = self._revoking = False
        self._positions.clear()
        self.conduct.partitions_revoked()
        self._fact(PartitionsRevoked())
        promise(self.pipeline.buffered_bytes == 0, "bounds: bytes are left after a revocation")
        promise(self.pipeline.in_flight == 0, "bounds: requests are left after a revocation")
        if not self.leaving:
            self._join()

    def drain(self) -> None:
        """Settle what was read, and leave; as a rule in time."""
        self.leaving = True
        self.after(DRAIN_SECONDS_MAX, self._finish)
        self.after(DRAIN_SECONDS_MAX * 2, lambda: self._leave(rough=True))
        self.feed(DrainRequested())

    def _finish(self) -> None:
        """Begin nothing more, so as not to be cut off in the middle of it."""
        if self._assigned and not self._revoking:
            self.conduct.revocation_started()
            self.feed(RevocationStarted())

    def _leave(self, *, rough: bool = False) -> None:
        if self.alive:
            self.world.oracle.rough_ends += rough
            self.die()
            self.world.later(self.latency(), lambda: self.world.group.leave(self))

    # -- fetches ------------------------------------------------------------------------------

    def _poll(self) -> None:
        self.after(0.05 + self.random.random() * 0.5, self._poll)
        if not self._assigned:
            return
        if (self._revoking or self.leaving) and self.random.random() < 0.3:
            return  # a worker may poll on, or not
        records: dict[TopicPartition, Sequence[LogRecord]] = {}
        for name in self._positions:
            late = name in self.halts and self.random.random() < 0.1
            if name not in self.conduct.paused or late:
                found = self._read(name, self.random.randrange(self.plan.fetch_records_max))
                if found:
                    records[name] = found
        if records:
            self.feed(RecordsFetched(records))
        if self._positions:
            self.feed(PositionsReached({name: self._reached(name) for name in self._positions}))
        for name in list(self._positions):
            offset = self.world.unreadable_at(name, self._positions.get(name, 0))
            if offset is not None and name not in self.conduct.paused:
                self.feed(ReadFailed(name, f"{READ_FAILED} {offset}"))

    def _reached(self, name: TopicPartition) -> int:
        position = self.world.position(name, self._positions[name], self.conduct.start(name))
        self.conduct.fetched(name, position)
        return position

    def _read(self, name: TopicPartition, count: int) -> list[LogRecord]:
        position = self._positions[name]
        end = min(position + count, self.world.readable_end(name, position))
        if end <= position:
            return []
        self._positions[name] = end
        gone = self.world.vanished
        entries = self.world.logs[name][position:end]
        found = [
            each.record for each in entries if not gone or (name, each.record.offset) not in gone
        ]
        self.conduct.fetched(name, entries[-1].record.offset + 1)
        size = sum(len(record.value or b"") + _RECORD_BYTES for record in found)
        self._largest_fetch_bytes = max(self._largest_fetch_bytes, size)
        return found

    def fail_to_read(self) -> None:
        if self._assigned and self._positions:
            name = self.random.choice(list(self._positions))
            self.feed(ReadFailed(name, f"{READ_FAILED} unknown"))

    # -- facts in, commands out ---------------------------------------------------------------

    def feed(self, fact: Fact) -> None:
        self._fact(fact)
        if self._revoking and self.pipeline.drained:
            self._revoke()
        elif self.leaving and self.pipeline.drained:
            self._leave()

    def _fact(self, fact: Fact) -> None:
        commands = self.pipeline.handle(fact, self.world.now)
        if commands or not isinstance(fact, PositionsReached):  # which are many
            self.world.note(self, fact)
        for command in commands:
            self.world.note(self, command)
            self._carry_out(command)
        self._watch()
        self._set_timer()

    def _set_timer(self) -> None:
        wake_at = self.pipeline.wake_at()
        if wake_at == self._tick_at:
            return
        self._tick_at = wake_at
        if wake_at is not None:
            self.world.later(
                max(0.0, wake_at - self.world.now), lambda: self._reach(lambda: self._tick(wake_at))
            )

    def _tick(self, due: float) -> None:
        if due != self._tick_at:
            return
        self._tick_at = None
        self.feed(Tick())
        wake_at = self.pipeline.wake_at()
        promise(
            wake_at is None or wake_at > self.world.now or not self.alive,
            "liveness: a busy loop: the next tick is due at once",
        )

    def _carry_out(self, command: Command) -> None:
        match command:
            case SendBatch(batch, attempt):
                self.conduct.sent(batch, attempt, self.world.now)
                self.errands.send(batch, attempt)
            case ReadRange(batch):
                self.errands.read_range(batch)
            case WriteDeadLetters(batch, letters):
                self.conduct.letters_begun(batch, letters)
                self.errands.write_letters(batch, letters)
            case WriteReceipt(batch, outcome, attempts):
                self.conduct.receipt_begun(batch, outcome, attempts)
                self.errands.write_receipt(batch)
            case CommitOffsets(offsets):
                self.conduct.commit_begun(offsets)
                self.errands.commit(offsets)
            case PausePartitions(names):
                self.conduct.partitions_paused(names)
            case ResumePartitions(names):
                self.conduct.partitions_resumed(names)
            case HaltPartition(name, reason):
                self.conduct.partition_halted(name, reason)
                self.halts[name] = reason
                self.world.oracle.halted(name, reason)
            case _:
                assert_never(command)

    def _watch(self) -> None:
        """What must hold between any two facts."""
        pipeline = self.pipeline
        promise(
            pipeline.in_flight == self.conduct.requests_under_way, "bounds: requests are miscounted"
        )
        states = pipeline.partitions.values()
        promise(
            pipeline.buffered_bytes == sum(state.buffered_bytes for state in states),
            "bounds: bytes are miscounted",
        )
        most = 2 * self.plan.limits.buffer_bytes_max
        most += len(self.world.logs) * (self._largest_fetch_bytes + self._frozen_bytes)
        promise(0 <= pipeline.buffered_bytes <= most, "bounds: more in memory than allowed")
