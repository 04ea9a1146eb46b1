"""Carries a plan out: runs a worker over what it has claimed, to the end of it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from ingester.backfill.claim import Claim
from ingester.backfill.plan import Plan
from ingester.backfill.replay_report import Summary
from ingester.core.intent import Range
from ingester.core.ranges import Ruler
from ingester.core.receipt import Receipt, Replay
from ingester.core.record import TopicPartition
from ingester.errors import IncompleteError, UnavailableError, UsageError
from ingester.kafka.admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.kafka.receipts import Receipts
from ingester.progress import bar
from ingester.settings import Settings
from ingester.worker.loop import Worker, stop_by_signal
from ingester.worker.telemetry import Telemetry

_WATCH_SECONDS: Final = 0.2  # between looks at how far the worker is
_LOG_LOOK_SECONDS: Final = 10.0  # without progress, before a look whether the log has its end
_GROUP_LOOK_SECONDS: Final = 2.0  # between looks at how far others are that carry out the same plan


class ReplayRun:
    """One process that carries out a plan; several share its partitions as a group does."""

    def __init__(self, settings: Settings, plan: Plan, again: str) -> None:
        """`again` is the command that continues it."""
        self._plan = plan
        self._again = again
        self._replaying = plan.replaying()
        # A redrive sends what was refused before: that it is refused again is no bad deployment.
        own: dict[str, object] = {"dead_letters_max": sys.maxsize} if plan.redrive else {}
        if plan.redrive and plan.redrive.unknown_members is not None:
            own["unknown_members"] = plan.redrive.unknown_members
        if plan.redrive and plan.redrive.body_bytes_max is not None:
            own["body_bytes_max"] = plan.redrive.body_bytes_max
        self._settings = settings.model_copy(
            update={
                "topic": (plan.topic,),
                **own,
                "group_id": plan.replay_group_id,
                "group_instance_id": None,
                "http_listen": None,
            }
        )
        self._admin = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)
        self._receipts = Receipts(self._settings, self._replaying)
        self._claim = Claim(settings, self._settings, plan, self._admin, self._receipts, again)
        self._worker: Worker | None = None  # made once the ranges are claimed
        self._signal_name: str | None = None  # of whoever interrupts it
        self._extents = self._replaying.extents()
        self._rulers = {name: Ruler(each) for name, each in self._replaying.selected.items()}
        self._ended = False  # everything is settled and committed

    def interrupt(self, signal_name: str) -> None:
        """Settle what is in flight, and leave the rest for another run."""
        self._signal_name = signal_name
        if self._worker is not None:
            self._worker.request_stop(signal_name)

    async def run(self, begun: Callable[[], None]) -> Summary:
        """Send everything; IncompleteError when something halts it, or somebody ends it.

        `begun` is called when there is something left to send, and nobody else has it.
        """
        await self._receipts.ensure_topics(self._admin, await self._partition_counts())
        await self._receipts.start()
        try:
            if not await self._claim.take():
                return await self._summary()
            begun()
            self._worker = worker = Worker(self._settings, Telemetry(), self._replaying)
            if self._signal_name is not None:
                worker.request_stop(self._signal_name)
            with bar("sending", self._plan.offsets_count) as progressed:
                await self._work(worker, progressed)
            if not self._ended:
                if self._signal_name is None:
                    await self._claim.refuse_if_cut()
                raise IncompleteError(
                    f"interrupted; nothing is lost or sent twice. {self._what_to_do()}"
                )
            await self._claim.note("ended", self._extents)
            return await self._summary()
        finally:
            await self._receipts.stop()

    async def _work(self, worker: Worker, progressed: Callable[[int], None]) -> None:
        """Run the worker to the end of the plan, or until it stops; `progressed` as `_watch`."""
        watching = asyncio.create_task(self._watch(worker, progressed))
        try:
            await worker.run()
        except IncompleteError as error:
            with suppress(UnavailableError):
                self._claim.refuse_if_given_up(await self._claim.notes())
            raise IncompleteError(
                f"{error} {self._what_to_do()}\nWhat of it is in doubt, if it halted:"
                f" {self._claim.as_its_group} ingester resolve"
            ) from error
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def _what_to_do(self) -> str:
        """Say how it is continued, and how workers go on without it; they read no dead letters."""
        if self._plan.redrive is not None:
            return f"To continue: {self._again}"
        return (
            f"To continue: {self._again}\nUntil it ends, workers wait for it. To give it up:"
            f" `ingester resolve {self._plan.topic}:PARTITION` says how, for each of its partitions"
        )

    async def _watch(self, worker: Worker, progressed: Callable[[int], None]) -> None:
        """Let partitions rest that are done, and end the run with the last of them.

        `progressed` is told how many of the plan's offsets are settled more than before.
        """
        loop = asyncio.get_running_loop()
        done: dict[TopicPartition, int] = {}
        look_at = loop.time()
        settled = 0
        moved_at = loop.time()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            own = worker.partitions
            done |= {name: state.committed for name, state in own.items()}
            if loop.time() >= look_at and not self._extents.keys() <= own.keys():
                look_at = loop.time() + _GROUP_LOOK_SECONDS
                with suppress(UnavailableError):  # it is asked again
                    stored = await self._admin.committed_offsets(self._settings.group_id)
                    done |= {name: each.next_offset for name, each in stored.items()}
            now_settled = sum(self._settled(name, done.get(name, 0)) for name in self._extents)
            progressed(now_settled - settled)
            if now_settled != settled:
                settled, moved_at = now_settled, loop.time()
            elif loop.time() >= moved_at + _LOG_LOOK_SECONDS:
                moved_at = loop.time()
                with suppress(UnavailableError):  # it is looked at again
                    if await self._claim.cut():
                        worker.request_stop("the end of the log")
                        return
            finished = [name for name in own if not self._is_open(name, done)]
            if finished:
                worker.rest(finished)
            if not any(self._is_open(name, done) for name in self._extents):
                self._ended = True
                worker.request_stop("the end of the plan")
                return
            halted = [name for name in own if own[name].halt_reason]
            if halted and own.keys() <= {*halted, *finished}:
                worker.request_stop("a halt of every partition")
                return

    def _is_open(self, name: TopicPartition, done: Mapping[TopicPartition, int]) -> bool:
        return name in self._extents and done.get(name, 0) < self._extents[name][1]

    def _settled(self, name: TopicPartition, committed: int) -> int:
        return self._rulers[name].below(committed)

    async def _summary(self) -> Summary:
        """Count the receipts that it has left, of all its runs."""
        summary = Summary(
            self._plan.name, self._plan.topic, self._plan.forced and not self._plan.redrive
        )
        counted: set[tuple[int, Range]] = set()
        for notes in (await self._claim.notes()).values():
            for note in notes:
                if isinstance(note, Replay) and (note.name, note.state) == (
                    self._plan.name,
                    "ended",
                ):
                    summary.ended_at = note.at
                if not isinstance(note, Receipt) or note.replay != self._plan.name:
                    continue
                if (note.partition, note.range) not in counted:
                    counted.add((note.partition, note.range))
                    summary.add(note)
        return summary

    async def _partition_counts(self) -> Mapping[str, int]:
        """How many partitions the plan needs; UsageError where the topic has fewer."""
        topic, needed = self._plan.topic, max(self._plan.partitions) + 1
        count = (await self._admin.partition_counts([topic]))[topic]
        if count < needed:
            raise UsageError(
                f"the plan has partition {needed - 1} of {topic}, which has {count} partitions:"
                " the topic was made anew, or the plan was changed. Make the plan again"
            )
        return {topic: needed}


async def carried_out(
    settings: Settings, plan: Plan, plan_file: Path | None, begun: Callable[[], None]
) -> Summary:
    """Run it to its end, or to the first signal; a second one exits at once.

    `begun` is called when there is something left to send, and nobody else has it.
    """
    run = ReplayRun(settings, plan, f"ingester replay --plan {plan_file}")
    stop_by_signal(run.interrupt)
    return await run.run(begun)
