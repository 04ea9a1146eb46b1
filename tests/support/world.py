"""A broker, a coordinator and an endpoint made of lists, driven by one seed, around a pipeline.

Whatever a shell would wait for is a task that ends when and how the seed says, or never. The
oracle watches every fact and command. `run` is unkind, `settle` is kind: after it everything that
was ever logged must be settled and committed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import assert_never

from ingester.core.batch import Batch
from ingester.core.delivery import (
    Acknowledged,
    Blocked,
    Deferred,
    InDoubt,
    Outcome,
    Refused,
    Throttled,
)
from ingester.core.event import event_decoder
from ingester.core.messages import (
    AttemptEnded,
    Command,
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
    PausePartitions,
    PositionLost,
    RecordsFetched,
    ResumePartitions,
    RevocationStarted,
    SendBatch,
    Tick,
    WriteDeadLetters,
)
from ingester.core.pipeline import Pipeline
from ingester.core.record import TopicPartition
from tests.support.oracle import Oracle
from tests.support.records import LogRecord, Logs

_SETTLE_STEPS_MAX = 20_000
_RECORD_BYTES = 700  # about what a dead letter of the generated logs may count for
_FETCH_RECORDS_MAX = 12

_Task = SendBatch | WriteDeadLetters | CommitOffsets  # what a command started and has not ended


@dataclass(frozen=True, slots=True)
class Climate:
    """How unkind the world is."""

    outcomes: Mapping[str, float]
    """Weights of how attempts end, by the names in `World._outcome`."""
    writes_failing: float
    """Share of the dead-letter writes that fail."""
    commits_failing: float
    """Share of the commits that fail; half of these are stored all the same."""
    rebalances: float
    """Weight of a step, beside 6 for a fetch; so are the following."""
    crashes: float
    drains: float
    positions_lost: float


@dataclass(slots=True)
class World:
    """One worker at a time, and everything around it."""

    random: Random
    logs: Logs
    limits: Limits
    climate: Climate
    now: float = 1000.0
    trace: list[str] = field(default_factory=list)
    oracle: Oracle = field(init=False)
    pipeline: Pipeline = field(init=False)
    _tasks: list[_Task] = field(default_factory=list)
    _stale: list[Batch] = field(default_factory=list)
    _positions: dict[TopicPartition, int] = field(default_factory=dict)
    _largest_fetch_bytes: int = 0
    _assigned: bool = False
    _revoking: bool = False
    _draining: bool = False

    def __post_init__(self) -> None:
        self.oracle = Oracle(self.logs, self.limits)
        self.pipeline = Pipeline(self.limits, event_decoder("refuse"))

    # -- the unkind world ---------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """Take steps that the seed chooses, in any order that shells could show."""
        climate = self.climate
        for _ in range(steps):
            steps_possible: list[tuple[float, Callable[[], None]]] = [
                (6, self._fetch),
                (4, self._pass_time),
                (1, self._stale_fact),
                (climate.crashes, self._crash),
                (climate.drains, self._drain),
            ]
            if self._tasks:
                steps_possible.append((10, self._end_a_task))
            if not self._assigned:
                steps_possible.append((5, self._assign))
            elif self._revoking:
                steps_possible.append((2, self._revoke))
            else:
                steps_possible.append((climate.rebalances, self._start_revocation))
                steps_possible.append((climate.positions_lost, self._lose_position))
            weights = [weight for weight, _ in steps_possible]
            self.random.choices(steps_possible, weights)[0][1]()

    def _fetch(self) -> None:
        """Poll: some of what is assigned and not paused; a halted partition may come late."""
        records: dict[TopicPartition, Sequence[LogRecord]] = {}
        for name in self._positions:
            late = name in self.oracle.paused and self.oracle.halted(name)
            if name in self.oracle.paused and not (late and self.random.random() < 0.2):
                continue
            if self.random.random() < 0.7:
                records[name] = self._read(name, self.random.randrange(_FETCH_RECORDS_MAX))
        self._feed(RecordsFetched(records))

    def _read(self, name: TopicPartition, count: int) -> list[LogRecord]:
        log = self.logs[name]
        position = self._positions[name]
        entries = log[position : position + count]
        self._positions[name] = position + len(entries)
        if entries and not (self._revoking or self._draining):  # otherwise it is not to be taken
            self.oracle.fetched(name, entries[-1].record.offset + 1)
        found = [entry.record for entry in entries]
        size = sum(len(record.value or b"") + _RECORD_BYTES for record in found)
        self._largest_fetch_bytes = max(self._largest_fetch_bytes, size)
        return found

    def _pass_time(self) -> None:
        wake_at = self.pipeline.wake_at()
        kind = self.random.random()
        if kind < 0.6 and wake_at is not None:
            self.now = max(self.now, wake_at)
        elif kind < 0.9:
            self.now += self.random.random() * 0.1
        else:
            self.now += self.random.random() * 100
        if self.random.random() < 0.8:
            self._tick()

    def _tick(self) -> None:
        self._feed(Tick())
        wake_at = self.pipeline.wake_at()
        assert wake_at is None or wake_at > self.now, "a busy loop: the next tick is due at once"

    def _end_a_task(self) -> None:
        task = self._tasks.pop(self.random.randrange(len(self._tasks)))
        match task:
            case SendBatch(batch, _):
                self._answer(batch, self._outcome())
            case WriteDeadLetters(batch):
                self._end_letters(
                    batch, written=self.random.random() >= self.climate.writes_failing
                )
            case CommitOffsets(offsets):
                failed = self.random.random() < self.climate.commits_failing
                self._end_commit(offsets, failed=failed, stored=self.random.random() < 0.5)

    def _outcome(self) -> Outcome:
        kinds = list(self.climate.outcomes)
        kind = self.random.choices(kinds, [self.climate.outcomes[each] for each in kinds])[0]
        wait = self.random.choice([None, 0.0, 0.5, 20.0])
        outcomes: dict[str, Outcome] = {
            "acknowledged": Acknowledged("batch_1", 202),
            "deferred": Deferred("connection refused"),
            "in_doubt": InDoubt("no id, or HTTP 503", self.random.choice([202, 503]), wait),
            "throttled": Throttled("HTTP 429", 429, wait),
            "blocked": Blocked("HTTP 401", 401),
            "refused": Refused("HTTP 400", 400, "invalid"),
        }
        return outcomes[kind]

    def _answer(self, batch: Batch, outcome: Outcome) -> None:
        self.oracle.answered(batch, outcome, self.now)
        self._feed(AttemptEnded(batch, outcome, self.random.random()))

    def _end_letters(self, batch: Batch, *, written: bool) -> None:
        self.oracle.letters_ended(batch, written=written)
        if written:
            self._feed(DeadLettersWritten(batch))
        else:
            self._feed(DeadLettersNotWritten(batch, self.random.random()))

    def _end_commit(
        self, offsets: Mapping[TopicPartition, int], *, failed: bool, stored: bool
    ) -> None:
        self.oracle.commit_ended(self.now, failed=failed, stored=stored or not failed)
        if failed:
            self._feed(CommitFailed(self.random.random()))
        else:
            self._feed(OffsetsCommitted(offsets))

    def _stale_fact(self) -> None:
        """An answer to what a former assignment began: nobody may care."""
        if self._stale:
            batch = self.random.choice(self._stale)
            jitter = self.random.random()
            facts: list[Fact] = [
                AttemptEnded(batch, self._outcome(), jitter),
                DeadLettersWritten(batch),
                DeadLettersNotWritten(batch, jitter),
            ]
            self._feed(self.random.choice(facts))

    def _lose_position(self) -> None:
        self._feed(PositionLost(self.random.choice(list(self.logs)), 7))

    def _drain(self) -> None:
        self._draining = True
        self._feed(DrainRequested())

    # -- the group ----------------------------------------------------------------------------

    def _assign(self) -> None:
        names = [name for name in self.logs if self.random.random() < 0.7]
        self._assign_these(names)

    def _assign_these(self, names: Sequence[TopicPartition]) -> None:
        self._assigned = True
        self._revoking = False
        self.oracle.partitions_assigned(names)
        for name in names:
            stored = self.oracle.stored[name]
            log = self.logs[name]
            self._positions[name] = sum(entry.record.offset < stored for entry in log)
        self._feed(PartitionsAssigned(names))

    def _start_revocation(self) -> None:
        self._revoking = True
        self.oracle.revocation_started()
        self._feed(RevocationStarted())

    def _revoke(self) -> None:
        self._forget_tasks()
        self._revoking = self._assigned = False
        self.oracle.partitions_revoked()
        self._feed(PartitionsRevoked())
        assert self.pipeline.buffered_bytes == 0
        assert self.pipeline.in_flight == 0

    def _crash(self) -> None:
        """The process dies at once, and another takes its place."""
        self._forget_tasks()
        self._stale.clear()
        self._revoking = self._assigned = self._draining = False
        self.oracle.process_started()
        self.pipeline = Pipeline(self.limits, event_decoder("refuse"))
        self.trace.append("-- a new process --")

    def _forget_tasks(self) -> None:
        """Cancel everything; a commit that is under way may have arrived all the same."""
        for task in self._tasks:
            if isinstance(task, CommitOffsets):
                stored = self.random.random() < 0.5
                self.oracle.commit_ended(self.now, failed=True, stored=stored)
            else:
                self._stale.append(task.batch)
        self._tasks.clear()
        self._positions.clear()

    # -- the kind world -----------------------------------------------------------------------

    def settle(self) -> None:
        """Let everything succeed; assert that all is settled, by this process or by the next."""
        if self._revoking:
            self._until_quiet()
            self._revoke()
        if not self._assigned:
            self._assign_these(list(self.logs))
        self._until_quiet()
        if self._draining:
            self._crash()
        else:
            self._start_revocation()
            self._until_quiet()
            self._revoke()
        self._assign_these(list(self.logs))
        self._until_quiet()
        self._drain()
        self._until_quiet()
        ends = {name: log[-1].record.offset + 1 for name, log in self.logs.items()}
        assert self.oracle.stored == ends

    def _until_quiet(self) -> None:
        """Read what can be read, end every task well, and wait, until nothing is left to do."""
        for _ in range(_SETTLE_STEPS_MAX):
            if self._tasks:
                self._end_well(self._tasks.pop(0))
                continue
            if not (self._revoking or self._draining):
                readable = [
                    name
                    for name, position in self._positions.items()
                    if position < len(self.logs[name]) and name not in self.oracle.paused
                ]
                if readable:
                    self._feed(RecordsFetched({name: self._read(name, 5) for name in readable}))
                    continue
            wake_at = self.pipeline.wake_at()
            if wake_at is None:
                break
            self.now = max(self.now, wake_at)
            self._tick()
        assert self.pipeline.drained, "something is left, and nothing will happen"
        assert self.pipeline.buffered_bytes == 0
        assert self.pipeline.in_flight == 0
        assert all(self.oracle.halted(name) for name in self.oracle.paused)

    def _end_well(self, task: _Task) -> None:
        match task:
            case SendBatch(batch, _):
                self._answer(batch, Acknowledged("batch_1", 202))
            case WriteDeadLetters(batch):
                self._end_letters(batch, written=True)
            case CommitOffsets(offsets):
                self._end_commit(offsets, failed=False, stored=True)

    # -- facts in, commands out ---------------------------------------------------------------

    def _feed(self, fact: Fact) -> None:
        self.trace.append(f"{self.now:.3f} {fact}"[:300])
        for command in self.pipeline.handle(fact, self.now):
            self.trace.append(f"    -> {command}"[:300])
            self._carry_out(command)
        self._watch()

    def _carry_out(self, command: Command) -> None:
        match command:
            case SendBatch(batch, attempt):
                self.oracle.sent(batch, attempt, self.now)
                self._tasks.append(command)
            case WriteDeadLetters(batch):
                self.oracle.letters_begun(batch)
                self._tasks.append(command)
            case CommitOffsets(offsets):
                self.oracle.commit_begun(offsets, self.now)
                self._tasks.append(command)
            case PausePartitions(names):
                self.oracle.partitions_paused(names)
            case ResumePartitions(names):
                self.oracle.partitions_resumed(names)
            case HaltPartition(name, _):
                self.oracle.partition_halted(name)
            case _:
                assert_never(command)

    def _watch(self) -> None:
        """What must hold between any two facts."""
        pipeline = self.pipeline
        assert pipeline.in_flight == self.oracle.requests_under_way
        states = pipeline.partitions.values()
        assert pipeline.buffered_bytes == sum(state.buffered_bytes for state in states)
        bound = 2 * self.limits.buffer_bytes_max + len(self.logs) * self._largest_fetch_bytes
        assert 0 <= pipeline.buffered_bytes <= bound, "more in memory than the bound allows"
        if pipeline.drained:
            self.oracle.drained()
        elif not self._tasks:
            assert pipeline.wake_at() is not None, "a stall: nothing under way, nobody is woken"
