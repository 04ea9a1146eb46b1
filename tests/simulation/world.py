"""Logs, a group, topics and an endpoint made of lists, and workers among them, from one seed.

Time is a heap of what will happen. For a while the world is unkind; then everything succeeds, and
within a bounded time all that was ever logged must be settled and committed.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from random import Random

from ingester.core.batch import Batch
from ingester.core.intent import Intent, Ledger, Range, decode
from ingester.core.messages import Commit
from ingester.core.receipt import Decision, Note, Resolution, decode_note, encode_receipt
from ingester.core.record import TopicPartition
from tests.simulation.endpoint import Endpoint
from tests.simulation.group import Group
from tests.simulation.oracle import READ_FAILED, Oracle, promise
from tests.simulation.plan import Plan, make_plan
from tests.simulation.process import Process
from tests.simulation.trace import Step
from tests.support.records import LogRecord, make_logs

KIND_SECONDS_MAX = 300.0
_STEPS_MAX = 200_000
_WALL_SECONDS = 1_750_000_000.0


class World:
    """One run; `live` returns when all is settled, or raises what the oracle says."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.plan: Plan = make_plan(random)
        self.logs = make_logs(
            random, self.plan.partitions, self.plan.records, self.plan.limits.batch
        )
        self.now = 1000.0
        self.kind = False
        self.trace: list[tuple[float, int, Step]] = []
        self.vanished: set[tuple[TopicPartition, int]] = set()
        self.notes: dict[TopicPartition, list[Note]] = {each: [] for each in self.logs}
        self.ends = {
            name: log[-1].record.offset + 1 + random.choice([0, 0, 1, 3])
            for name, log in self.logs.items()
        }
        self.oracle = Oracle(self.logs, self.ends, self.plan)
        self._offsets = {
            name: [each.record.offset for each in log] for name, log in self.logs.items()
        }
        self._produced = {
            name: sorted(random.random() * self.plan.produce_seconds for _ in log)
            for name, log in self.logs.items()
        }
        self._agenda: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = count()
        self._started = self.now
        self._topics_away = False
        self._processes_count = 0
        self.group = Group(random, list(self.logs), lambda: self.now, self.later)
        self.endpoint = Endpoint(random, self.plan, self.oracle, lambda: self.now, self.later)
        self._items = [each.item for log in self.logs.values() for each in log if each.item]
        self._draw_mind()
        self._unreadable: set[tuple[TopicPartition, int]] = set()
        for _ in range(self.plan.unreadable):
            name = random.choice(list(self.logs))
            offset = random.choice(self._offsets[name])
            self._unreadable.add((name, offset))
            self.oracle.unreadable(name, offset)
        self.processes: list[Process] = []
        for _ in range(self.plan.workers):
            self.later(random.random() * 3, self._start)
        self._plan_incidents()

    # -- time ---------------------------------------------------------------------------------

    def later(self, seconds: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._agenda, (self.now + seconds, next(self._sequence), action))

    def live(self) -> None:
        """Be unkind for as long as the plan says, then kind until all is settled.

        First by those who saw the unkind times, halted partitions excepted; then by new ones, for
        whom only what an operator has to judge is a reason to halt.
        """
        self._until(self._started + self.plan.unkind_seconds, lambda: False)
        self._become_kind()
        self._until(self.now + KIND_SECONDS_MAX, self._settled)
        self.oracle.finished(self._halts(), judged=False)
        if self._halts():
            self._until(self.now + self.plan.delay_seconds_max, lambda: False)
            self._decide()  # once no request is on its way any more
            self._until(self.now + 60.0, self._settled)
        self._replace_everybody()
        self._until(self.now + KIND_SECONDS_MAX, self._settled)
        self.oracle.finished(self._halts(), judged=True)

    def _halts(self) -> dict[TopicPartition, str]:
        return {
            name: reason for process in self._staying() for name, reason in process.halts.items()
        }

    def _until(self, end: float, over: Callable[[], bool]) -> None:
        check_at = self.now
        for _ in range(_STEPS_MAX):
            at, _, action = self._agenda[0]
            if at > end:
                self.now = end
                return
            heapq.heappop(self._agenda)
            self.now = at
            action()
            if at >= check_at:
                self.group.tick()
                if over():
                    return
                check_at = at + 1.0
        promise(False, "liveness: far too many steps")

    def wall_seconds(self) -> float:
        """What a worker's clock shows, which is set back and forth while the world is unkind."""
        jump = 0.0 if self.kind else self.plan.clock_jump_seconds
        return _WALL_SECONDS + self.now + self.random.uniform(-jump, jump)

    def note(self, process: Process, step: Step) -> None:
        self.trace.append((self.now, process.number, step))

    # -- workers ------------------------------------------------------------------------------

    def _start(self) -> None:
        self._processes_count += 1
        self.processes = [each for each in self.processes if each.alive]
        self.processes.append(Process(self, self._processes_count))

    def _plan_incidents(self) -> None:
        plan = self.plan
        incidents: list[tuple[int, Callable[[], None]]] = [
            (plan.crashes, self._crash),
            (plan.pauses, self._pause),
            (plan.drains, self._drain),
            (plan.reads_failing, self._fail_to_read),
            (plan.vanishing, self._vanish),
            (plan.outages, self._begin_outage),
            (plan.offsets_lost if plan.limits.receipts else 0, self._lose_offsets),
            (plan.minds_changed, self._change_mind),
        ]
        for times, incident in incidents:
            for _ in range(times):
                self.later(self.random.random() * plan.unkind_seconds, self._unless_kind(incident))

    def _unless_kind(self, incident: Callable[[], None]) -> Callable[[], None]:
        return lambda: None if self.kind else incident()

    def _staying(self) -> list[Process]:
        return [each for each in self.processes if each.alive and not each.leaving]

    def _anyone(self) -> Process | None:
        living = [each for each in self.processes if each.alive]
        return self.random.choice(living) if living else None

    def _crash(self) -> None:
        process = self._anyone()
        if process is not None:
            self.oracle.rough_ends += 1
            process.die()
            self.later(self.random.choice([0.1, 2.0, 12.0]), self._start)

    def _pause(self) -> None:
        process = self._anyone()
        if process is not None:
            self.oracle.rough_ends += 1
            process.pause()
            self.later(self.random.choice([1.0, 8.0, 11.0, 15.0, 40.0]), process.wake)

    def _drain(self) -> None:
        process = self._anyone()
        if process is not None:
            process.drain()
            self.later(self.random.choice([0.1, 2.0, 12.0]), self._start)

    def _lose_offsets(self) -> None:
        """They expire where nobody is, or somebody deletes them; the receipts stay."""
        for process in self.processes:
            process.die()
            self.group.leave(process)
        self.group.stored.clear()
        self.oracle.offsets_lost()
        for _ in range(self.plan.workers):
            self.later(self.random.random() * 3, self._start)

    def _fail_to_read(self) -> None:
        process = self._anyone()
        if process is not None:
            process.fail_to_read()

    def _vanish(self) -> None:
        """The log loses the first or the last record of something that was intended."""
        for name in self.logs:
            start = self.committed(name)
            ledger = self._ledger(name)
            if ledger:
                first, next_offset = self.random.choice(ledger).range
                offset = self.random.choice([first, next_offset - 1])
                assert start.next_offset <= first
                self.vanished.add((name, offset))
                self.oracle.vanished(name, offset)

    def _begin_outage(self) -> None:
        kinds = ["unreachable", "request_lost", "failed_before", "failed_after", "answer_lost"]
        kinds += ["throttled", "blocked", "topics"]
        kind = self.random.choice(kinds)
        if kind == "topics":
            self._topics_away = True
        else:
            self.endpoint.phase = kind
        self.later(self.random.random() * self.plan.outage_seconds_max, self._end_outage)

    def _end_outage(self) -> None:
        self._topics_away = False
        self.endpoint.phase = None

    def _draw_mind(self) -> None:
        endpoint, random = self.endpoint, self.random
        endpoint.poison = {each for each in self._items if random.random() < self.plan.poison}
        if self.plan.body_limits:
            endpoint.body_bytes_max = random.choice([None, 70, 120, 300])

    def _change_mind(self) -> None:
        """The endpoint takes other items and bodies than before; more of them if it has to.

        One that looks keys up last must not refuse what it has applied.
        """
        if self.plan.looked_up_first:
            self._draw_mind()
        else:
            self._take_all()

    def _take_all(self) -> None:
        self.endpoint.poison = set()
        self.endpoint.body_bytes_max = None

    def _decide(self) -> None:
        """Somebody looks into what is halted, and decides; not all workers hear of it at once."""
        for name, reason in self._halts().items():
            if name in {each for each, _ in self.vanished}:
                continue
            self.oracle.judged(name)
            commit = self.committed(name)
            settled = {note.range for note in self.notes[name]}
            doubts = [each for each in self._ledger(name) if each.range not in settled]
            for intent in doubts:
                decision = self.oracle.truth(name, intent.range)
                self._note_decision(name, intent.range, decision, intent.intended_at)
            unreadable = self.unreadable_at(name, self.index_of(name, commit.next_offset))
            if not doubts and unreadable is not None and reason.startswith(READ_FAILED):
                self.oracle.skipped(name, unreadable)
                self._note_decision(name, (commit.next_offset, unreadable + 1), "skipped", None)
            elif not doubts:
                self.oracle.stopped_where_it_is(name, reason)
                again = (commit.next_offset, commit.next_offset + 1)
                lost = name not in self.group.stored
                self._note_decision(name, again, "resend", None, unaccounted=lost)
            for process in self._staying():
                if name in process.halts:
                    process.reopen(name)

    def _note_decision(
        self,
        name: TopicPartition,
        range_: Range,
        decision: Decision,
        intended_at: int | None,
        *,
        unaccounted: bool = False,
    ) -> None:
        """Append what somebody decides."""
        note = Resolution(*name, *range_, decision, "somebody", "", "", intended_at, unaccounted)
        self.notes[name].append(note)

    def _become_kind(self) -> None:
        if not self.plan.poison_stays:
            self._take_all()
        self.kind = self.endpoint.kind = True
        self._end_outage()
        for process in self.processes:
            process.wake()

    def _replace_everybody(self) -> None:
        for process in self._staying():
            self.oracle.rough_ends += 1
            process.die()
        for _ in range(self.plan.workers):
            self.later(self.random.random() * 3, self._start)

    def _settled(self) -> bool:
        """Whether nothing more will happen: the halts are judged at the end."""
        halted = {
            name
            for process in self._staying()
            for name in process.halts
            if process.pipeline.may_be_reopened(name)
        }
        return bool(self._staying()) and all(
            name in halted or self.committed(name).next_offset == end
            for name, end in self.ends.items()
        )

    # -- brokers ------------------------------------------------------------------------------

    def committed(self, name: TopicPartition) -> Commit:
        """What the group has stored, or would begin with."""
        return self.group.stored.get(name, Commit(self._offsets[name][0], ""))

    def _ledger(self, name: TopicPartition) -> Sequence[Intent]:
        commit = self.committed(name)
        ledger = decode(commit.next_offset, commit.metadata)
        return ledger.intents if isinstance(ledger, Ledger) else ()

    def index_of(self, name: TopicPartition, offset: int) -> int:
        return bisect_left(self._offsets[name], offset)

    def log_end(self, name: TopicPartition) -> int:
        """How many records there are by now."""
        return bisect_left(self._produced[name], self.now - self._started)

    def readable_end(self, name: TopicPartition, index: int) -> int:
        """Up to where, from an index on, there are records that can be read now."""
        end = self.log_end(name)
        offsets = self._offsets[name]
        return next(
            (at for at in range(index, end) if (name, offsets[at]) in self._unreadable), end
        )

    def unreadable_at(self, name: TopicPartition, index: int) -> int | None:
        """The offset of the record at an index, if it is there and cannot be read."""
        at = self.readable_end(name, index)
        return self._offsets[name][index] if index == at < self.log_end(name) else None

    def position(self, name: TopicPartition, index: int, start: int) -> int:
        """Where a consumer stands that has read what is below an index: behind it are markers.

        It may have passed them, or not yet.
        """
        offsets = self._offsets[name]
        passed = max(start, offsets[index - 1] + 1) if index else start
        next_offset = offsets[index] if index < len(offsets) else self.ends[name]
        return self.random.choice([passed, max(passed, next_offset)])

    def store(
        self, process: Process, generation: int, offsets: Mapping[TopicPartition, Commit]
    ) -> bool:
        if not self.group.commit(process, generation, offsets):
            return False
        self.oracle.stored(generation, offsets)
        return True

    def append_receipt(self, batch: Batch) -> int:
        note = decode_note(encode_receipt(batch, None, 1, "", in_doubt=False))
        assert note is not None
        notes = self.notes[batch.partition]
        notes.append(note)
        self.oracle.receipt_appended(batch, len(notes) - 1)
        return len(notes) - 1

    def read(self, batch: Batch) -> Sequence[LogRecord]:
        """What the log has of a batch's range now."""
        name = batch.partition
        entries = self.logs[name][
            self.index_of(name, batch.first_offset) : self.index_of(name, batch.next_offset)
        ]
        return [each.record for each in entries if (name, each.record.offset) not in self.vanished]

    # -- fates --------------------------------------------------------------------------------

    def delay(self) -> float:
        """How much longer than usual a request is on its way."""
        if self.kind or self.random.random() >= self.plan.requests_delayed:
            return 0.0
        return self.random.random() * self.plan.delay_seconds_max

    def write_fate(self) -> tuple[bool, bool]:
        """Whether a write is appended, and whether the writer is told so."""
        return self._fate(1.0 if self._topics_away else self.plan.writes_failing)

    def commit_fate(self) -> tuple[bool, bool]:
        return self._fate(self.plan.commits_failing)

    def _fate(self, failing: float) -> tuple[bool, bool]:
        if self.kind or self.random.random() >= failing:
            return True, True
        return self.random.random() < 0.5, False
