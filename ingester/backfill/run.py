"""Carries a plan out: claims its ranges, runs a worker over them, and notes the end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from ingester.backfill.beside_letters import redriven, settled_since
from ingester.backfill.plan import Plan, Redrive
from ingester.backfill.replay_report import Summary
from ingester.backfill.scope import intended, unaccounted
from ingester.core.intent import Range
from ingester.core.messages import Commit
from ingester.core.ranges import Ruler, intersected, length
from ingester.core.receipt import Note, Receipt, Replay
from ingester.core.record import TopicPartition
from ingester.core.start import is_given_up
from ingester.errors import IncompleteError, UnavailableError, UsageError
from ingester.kafka.admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.kafka.client import end_offsets
from ingester.kafka.receipts import Receipts
from ingester.progress import bar
from ingester.settings import Settings
from ingester.tables import counted
from ingester.worker.loop import Worker, stop_by_signal
from ingester.worker.telemetry import Telemetry

_WATCH_SECONDS: Final = 0.2  # between looks at how far the worker is
_LOG_LOOK_SECONDS: Final = 10.0  # without progress, before a look whether the log has its end
_GROUP_LOOK_SECONDS: Final = 2.0  # between looks at how far others are that carry out the same plan


class ReplayRun:
    """One process that carries out a plan; several share its partitions as a group does."""

    def __init__(self, settings: Settings, plan: Plan, again: str) -> None:
        """`again` is the command that continues it."""
        self._live = settings
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
        self._worker: Worker | None = None  # made once the ranges are claimed
        self._signal_name: str | None = None  # of whoever interrupts it
        self._extents = self._replaying.extents()
        self._rulers = {name: Ruler(each) for name, each in self._replaying.selected.items()}
        self._ended = False  # everything is settled and committed

    @property
    def _as_its_group(self) -> str:
        """The settings with which another command sees what it sees, as they are typed."""
        topic = self._plan.topic
        said = f"INGESTER_TOPIC={topic} INGESTER_GROUP_ID={self._settings.group_id}"
        if self._live.dead_letter_topic == topic:  # which no source may be
            said += f" INGESTER_DEAD_LETTER_TOPIC={topic}.dead-letters"
        return said

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
            if not await self._claim():
                return await self._summary()
            begun()
            self._worker = worker = Worker(self._settings, Telemetry(), self._replaying)
            if self._signal_name is not None:
                worker.request_stop(self._signal_name)
            with bar("sending", self._plan.offsets_count) as progressed:
                await self._work(worker, progressed)
            if not self._ended:
                if self._signal_name is None:
                    await self._refuse_if_cut()
                raise IncompleteError(
                    f"interrupted; nothing is lost or sent twice. {self._what_to_do()}"
                )
            await self._note("ended", self._extents)
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
                self._refuse_if_given_up(await self._notes())
            raise IncompleteError(
                f"{error} {self._what_to_do()}\nWhat of it is in doubt, if it halted:"
                f" {self._as_its_group} ingester resolve"
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

    async def _claim(self) -> bool:
        """Let nobody else settle these ranges; return whether there is something left to send.

        UsageError when somebody else settles them, or may have begun to.
        """
        found = await self._notes()
        own = {
            name: [
                each for each in notes if isinstance(each, Replay) and each.name == self._plan.name
            ]
            for name, notes in found.items()
        }
        unclaimed = {name: each for name, each in self._extents.items() if not own[name]}
        states = {name: {each.state for each in notes} for name, notes in own.items()}
        if any(self._is_changed(name, note) for name, notes in own.items() for note in notes):
            raise UsageError(
                f"the plan of {self._plan.name} was changed after it had begun, or another one had"
                " that name. Continue it as it was, and make another plan for the rest"
            )
        if any("ended" in each for each in states.values()):
            # Whoever ended it may have been killed before it had said so of all partitions.
            left = [name for name, each in states.items() if each == {"started"}]
            await self._note("ended", {name: self._extents[name] for name in left})
            if await self._is_carried_out():
                return False
            raise UsageError(
                f"the replay {self._plan.name} has ended: it was withdrawn. Make another plan"
            )
        self._refuse_if_given_up(found)
        await self._refuse_if_cut()
        if not unclaimed and await self._admin.committed_offsets(self._settings.group_id):
            return True  # what follows was found in order before the first commit
        await self._look_beside({name: self._extents[name] for name in own if own[name]})
        await self._note("started", unclaimed)
        # Workers that had joined before do not know of the claim; who joins from now on does.
        await self._look_beside(self._extents)
        await self._refuse_if_counted()
        return True

    async def _refuse_if_counted(self) -> None:
        """UsageError where its letters were counted as records since it was made, or the reverse.

        It is looked for behind the claim, which whoever plans from now on sees.
        """
        if self._plan.redrive is not None:
            settled = await settled_since(self._live, self._plan)
            if settled is not None:
                await self._note("ended", self._extents)  # in vain: nothing of it was sent
                raise UsageError(
                    f"a letter is not to be sent any more since the plan was made, that of"
                    f" {settled}. Make the plan again"
                )
        elif not self._plan.forced:
            sent = await redriven(self._live, self._plan.topic, self._extents)
            counted_twice = [
                str(name)
                for name, selected in self._replaying.selected.items()
                if intersected(selected, sent.get(name, ()))
            ]
            if counted_twice:
                await self._note("ended", self._extents)
                raise UsageError(
                    f"dead letters of {', '.join(counted_twice)} were redriven since the plan was"
                    " made, and it has their records. Make the plan again"
                )

    async def _is_carried_out(self) -> bool:
        stored = await self._admin.committed_offsets(self._settings.group_id)
        return all(
            name in stored and stored[name].next_offset >= next_offset
            for name, (_, next_offset) in self._extents.items()
        )

    def _is_changed(self, name: TopicPartition, note: Replay) -> bool:
        claim = (note.first_offset, note.next_offset, note.forced, note.sets, note.removes)
        return claim != (*self._extents[name], self._plan.forced, *self._plan.corrections)

    def _refuse_if_given_up(self, found: Mapping[TopicPartition, Sequence[Note]]) -> None:
        """UsageError where somebody has decided that workers go on without it."""
        given_up = [name for name in found if is_given_up(self._plan.name, found[name])]
        if given_up:
            raise UsageError(
                f"somebody has decided since it began that workers go on with"
                f" {', '.join(map(str, given_up))} (ingester resolve --as resend): they would send"
                " the same. Decide so about its other partitions, too, and make another plan"
            )

    async def _refuse_if_cut(self) -> None:
        """UsageError where the log ends before the plan: nobody can send what is missing.

        The claims end with it, unless something is in doubt that workers would send as well.
        """
        cut = await self._cut()
        if not cut:
            return
        claimed = {
            name: self._extents[name]
            for name, notes in (await self._notes()).items()
            if any(isinstance(each, Replay) and each.name == self._plan.name for each in notes)
        }
        stored = await self._admin.committed_offsets(self._settings.group_id)
        doubtful = [str(name) for name in claimed if intended(stored.get(name))]
        what = (
            f"the log of {', '.join(cut)}: it was cut, or the topic was made anew, and what is"
            " missing cannot be sent."
        )
        if doubtful:
            raise UsageError(
                f"{what} In doubt are batches of {', '.join(doubtful)}"
                f" ({self._as_its_group} ingester resolve), so that workers"
                " wait as before. When you have compared the balances, let them go on (ingester"
                " resolve TOPIC:PARTITION:OFFSET --as resend), and make another plan"
            )
        await self._note("ended", claimed)
        raise UsageError(f"{what} What was sent has receipts. Make the plan again")

    async def _cut(self) -> Sequence[str]:
        """Name the partitions whose log ends before the plan does."""
        ends = await end_offsets(self._settings, self._extents)
        return [
            f"{name} ends at offset {ends[name]}, and the plan at {next_offset}"
            for name, (_, next_offset) in self._extents.items()
            if ends[name] < next_offset
        ]

    async def _look_beside(self, claimed: Mapping[TopicPartition, Range]) -> None:
        """UsageError where the group is at work, or has left a doubt, in what is to be sent.

        No worker reads dead letters: there it is another redrive that is not to have sent any.
        """
        if self._plan.redrive is not None:
            await self._refuse_if_overtaken(self._plan.redrive, claimed)
            return
        group = self._plan.group_id
        has_members = await self._admin.members_count(group) > 0
        stored = await self._admin.committed_offsets(group)
        beyond = [
            name
            for name, (_, next_offset) in self._extents.items()
            if name not in stored or stored[name].next_offset < next_offset
        ]
        if beyond and has_members:
            raise UsageError(
                f"workers have joined {group} since the plan was made, and come to what is beyond"
                f" their offsets ({', '.join(map(str, beyond))}). "
                + (f"Stop them, and continue: {self._again}" if claimed else "Make the plan again")
            )
        doubtful = [
            f"{name}[{first_offset},{next_offset})"
            for name, selected in self._replaying.selected.items()
            for first_offset, next_offset in intersected(selected, intended(stored.get(name)))
        ]
        if doubtful:
            await self._note("ended", claimed)  # in vain: nothing of it was sent
            raise UsageError(
                f"a worker of {group} has begun to send {', '.join(doubtful)} since the plan was"
                " made, and has left it in doubt. Make the plan again"
            )
        if not self._plan.forced:
            await self._refuse_if_passed(stored, claimed)

    async def _refuse_if_passed(
        self, stored: Mapping[TopicPartition, Commit], claimed: Mapping[TopicPartition, Range]
    ) -> None:
        """UsageError where the group has committed past a part of it since, without receipts."""
        found = await self._notes()
        for name, selected in self._replaying.selected.items():
            then = self._plan.committed.get(name.partition, 0)
            now = stored[name].next_offset if name in stored else 0
            passed = await unaccounted(
                self._live, name, selected, found[name], (then, max(then, now))
            )
            if passed:
                await self._note("ended", claimed)  # in vain: nothing of it was sent
                raise UsageError(
                    f"{self._plan.group_id} has committed past {counted(length(passed), 'offset')}"
                    f" of {name} since the plan was made, without a receipt: workers with"
                    " INGESTER_RECEIPTS=off may have settled them. Make the plan again"
                )

    async def _refuse_if_overtaken(
        self, redrive: Redrive, claimed: Mapping[TopicPartition, Range]
    ) -> None:
        for name, notes in (await self._notes()).items():
            others = [
                note
                for note in notes
                if isinstance(note, Receipt) and note.items and note.replay != self._plan.name
            ]
            if len(others) != redrive.redrives.get(name.partition, 0):
                await self._note("ended", claimed)  # in vain: nothing of it was sent
                raise UsageError(
                    f"letters of {name} were sent since the plan was made, perhaps some of these:"
                    " make it again"
                )

    async def _note(
        self, state: Literal["started", "ended"], extents: Mapping[TopicPartition, Range]
    ) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        for name, extent in extents.items():
            plan = self._plan
            sets, removes = plan.corrections
            note = Replay(
                *name,
                *extent,
                plan.name,
                state,
                plan.by,
                plan.reason,
                at,
                plan.forced,
                sets,
                removes,
                repeated=tuple(plan.redrive.repeated.get(name.partition, ()))
                if plan.redrive and state == "started"
                else (),
            )
            await self._receipts.write_note(note)

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
                    if await self._cut():
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

    async def _notes(self) -> Mapping[TopicPartition, list[Note]]:
        notes = await self._receipts.notes({}, dict.fromkeys(self._extents, 0))
        return {name: [note for _, note in notes[name]] for name in self._extents}

    async def _summary(self) -> Summary:
        """Count the receipts that it has left, of all its runs."""
        summary = Summary(
            self._plan.name, self._plan.topic, self._plan.forced and not self._plan.redrive
        )
        counted: set[tuple[int, Range]] = set()
        for notes in (await self._notes()).values():
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
        facts = await self._admin.describe([topic], self._plan.group_id)
        count = facts.partitions.get(topic) or 0
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
