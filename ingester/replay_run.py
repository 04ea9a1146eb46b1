"""Carries a plan out: claims its ranges, runs a worker over them, and notes the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, Literal

from ingester.core.intent import Range
from ingester.core.ranges import intersected, length
from ingester.core.receipt import Note, Receipt, Replay
from ingester.core.record import TopicPartition
from ingester.errors import IncompleteError, UnavailableError, UsageError
from ingester.kafka_admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.receipts import Receipts
from ingester.replay_plan import Plan
from ingester.replay_report import Summary
from ingester.settings import Settings
from ingester.telemetry import Telemetry
from ingester.worker import Worker

_WATCH_SECONDS: Final = 0.2  # between looks at how far the worker is
_GROUP_LOOK_SECONDS: Final = 2.0  # between looks at how far others are that carry out the same plan


class ReplayRun:
    """One process that carries out a plan; several share its partitions as a group does."""

    def __init__(self, settings: Settings, plan: Plan, again: str) -> None:
        """`again` is the command that continues it."""
        self._live = settings
        self._plan = plan
        self._again = again
        self._replaying = plan.replaying()
        self._settings = settings.model_copy(
            update={
                "topics": (plan.topic,),
                "group_id": plan.replay_group_id,
                "group_instance_id": None,
                "http_listen": None,
            }
        )
        self._admin = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)
        self._receipts = Receipts(self._settings, self._replaying)
        self._worker = Worker(self._settings, Telemetry(), self._replaying)
        self._extents = self._replaying.extents()
        self._ended = False  # everything is settled and committed

    def interrupt(self, signal_name: str) -> None:
        """Settle what is in flight, and leave the rest for another run."""
        self._worker.request_stop(signal_name)

    async def run(self, progressed: Callable[[int], None]) -> Summary:
        """Send everything; IncompleteError when something halts it, or somebody ends it.

        `progressed` is told how many of the plan's offsets are settled more than before.
        """
        await self._receipts.ensure_topics(self._admin, self._partition_counts())
        await self._receipts.start()
        try:
            await self._claim()
            watching = asyncio.create_task(self._watch(progressed))
            try:
                await self._worker.run()
            except IncompleteError as error:
                raise IncompleteError(f"{error} To continue: {self._again}") from error
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            if not self._ended:
                raise IncompleteError(
                    f"interrupted; nothing is lost or sent twice. To continue: {self._again}"
                )
            await self._note("ended", self._extents)
            return await self._summary()
        finally:
            await self._receipts.stop()

    async def _claim(self) -> None:
        """Let nobody else settle these ranges; UsageError when somebody does, or has."""
        notes = await self._notes()
        own = [
            note
            for each in notes.values()
            for note in each
            if isinstance(note, Replay) and note.name == self._plan.name
        ]
        ended = {note.partition for note in own if note.state == "ended"}
        if ended:
            raise UsageError(
                f"the replay {self._plan.name} has ended: it was carried out, or withdrawn. Make"
                " another plan"
            )
        claimed = {note.partition for note in own}
        extents = {
            name: each for name, each in self._extents.items() if name.partition not in claimed
        }
        await self._note("started", extents)
        beyond = await self._beyond_live_offsets(extents)
        if beyond and await self._admin.members_count(self._plan.group_id):
            await self._note("ended", extents)
            raise UsageError(
                f"workers have joined {self._plan.group_id} since the plan was made, and will come"
                f" to what is beyond their offsets ({', '.join(map(str, beyond))}). Make the plan"
                " again"
            )

    async def _beyond_live_offsets(
        self, extents: Mapping[TopicPartition, Range]
    ) -> list[TopicPartition]:
        stored = await self._admin.committed_offsets(self._plan.group_id)
        return [
            name
            for name, (_, next_offset) in extents.items()
            if name not in stored or stored[name].next_offset < next_offset
        ]

    async def _note(
        self, state: Literal["started", "ended"], extents: Mapping[TopicPartition, Range]
    ) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        for name, extent in extents.items():
            plan = self._plan
            note = Replay(
                *name, *extent, plan.name, state, plan.by, plan.reason, at, forced=plan.forced
            )
            await self._receipts.write_note(note)

    async def _watch(self, progressed: Callable[[int], None]) -> None:
        """Let partitions rest that are done, and end the run with the last of them."""
        loop = asyncio.get_running_loop()
        done: dict[TopicPartition, int] = {}
        look_at = loop.time()
        settled = 0
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            own = self._worker.partitions
            done |= {name: state.committed for name, state in own.items()}
            if loop.time() >= look_at and not self._extents.keys() <= own.keys():
                look_at = loop.time() + _GROUP_LOOK_SECONDS
                with suppress(UnavailableError):  # it is asked again
                    stored = await self._admin.committed_offsets(self._settings.group_id)
                    done |= {name: each.next_offset for name, each in stored.items()}
            now_settled = sum(self._settled(name, done.get(name, 0)) for name in self._extents)
            progressed(now_settled - settled)
            settled = now_settled
            finished = [name for name in own if not self._is_open(name, done)]
            if finished:
                self._worker.rest(finished)
            if not any(self._is_open(name, done) for name in self._extents):
                self._ended = True
                self._worker.request_stop("the end of the plan")
                return
            if own and all(own[name].halt_reason or name in finished for name in own):
                self._worker.request_stop("a halt of every partition")
                return

    def _is_open(self, name: TopicPartition, done: Mapping[TopicPartition, int]) -> bool:
        return name in self._extents and done.get(name, 0) < self._extents[name][1]

    def _settled(self, name: TopicPartition, committed: int) -> int:
        return length(intersected(self._replaying.selected[name], [(0, max(committed, 0))]))

    async def _notes(self) -> Mapping[TopicPartition, list[Note]]:
        notes = await self._receipts.notes({}, dict.fromkeys(self._extents, 0))
        return {name: [note for _, note in notes[name]] for name in self._extents}

    async def _summary(self) -> Summary:
        """Count the receipts that it has left, of all its runs."""
        summary = Summary(self._plan.name, self._plan.topic, self._plan.forced)
        counted: set[tuple[int, Range]] = set()
        for notes in (await self._notes()).values():
            for note in notes:
                if not isinstance(note, Receipt) or note.replay != self._plan.name:
                    continue
                if (note.partition, note.range) not in counted:
                    counted.add((note.partition, note.range))
                    summary.add(note)
        return summary

    def _partition_counts(self) -> Mapping[str, int]:
        return {self._plan.topic: max(self._plan.partitions) + 1}
