"""What a run of a plan has to itself: notes that keep others from the same ranges, and the reasons
to give them up again before anything is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NoReturn

from ingester.backfill.beside_letters import redriven, settled_since
from ingester.backfill.plan import Plan, Redrive
from ingester.backfill.scope import intended, unaccounted
from ingester.core.intent import Range
from ingester.core.messages import Commit
from ingester.core.ranges import intersected, length
from ingester.core.receipt import Note, Receipt, Replay
from ingester.core.record import TopicPartition
from ingester.core.start import is_given_up
from ingester.errors import UsageError
from ingester.kafka.admin import KafkaAdmin
from ingester.kafka.client import end_offsets
from ingester.kafka.receipts import Receipts
from ingester.settings import Settings
from ingester.tables import counted


class Claim:
    """The ranges of one plan, and who else settles, has settled or may settle something of them."""

    def __init__(
        self,
        live: Settings,
        settings: Settings,
        plan: Plan,
        admin: KafkaAdmin,
        receipts: Receipts,
        again: str,
    ) -> None:
        """`live` are the settings of the workers' group, `again` the command that continues it."""
        self._live = live
        self._settings = settings
        self._plan = plan
        self._admin = admin
        self._receipts = receipts
        self._again = again
        self._replaying = plan.replaying()
        self._extents = self._replaying.extents()

    @property
    def as_its_group(self) -> str:
        """The settings with which another command sees what it sees, as they are typed."""
        topic = self._plan.topic
        said = f"INGESTER_TOPIC={topic} INGESTER_GROUP_ID={self._settings.group_id}"
        if self._live.dead_letter_topic == topic:  # which no source may be
            said += f" INGESTER_DEAD_LETTER_TOPIC={topic}.dead-letters"
        return said

    async def take(self) -> bool:
        """Let nobody else settle these ranges; return whether there is something left to send.

        UsageError when somebody else settles them, or may have begun to.
        """
        found = await self.notes()
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
            await self.note("ended", {name: self._extents[name] for name in left})
            if await self._is_carried_out():
                return False
            raise UsageError(
                f"the replay {self._plan.name} has ended: it was withdrawn. Make another plan"
            )
        self.refuse_if_given_up(found)
        await self.refuse_if_cut()
        if not unclaimed and await self._admin.committed_offsets(self._settings.group_id):
            return True  # what follows was found in order before the first commit
        await self._look_beside({name: self._extents[name] for name in own if own[name]})
        await self.note("started", unclaimed)
        # Workers that had joined before do not know of the claim; who joins from now on does.
        await self._look_beside(self._extents)
        await self._refuse_if_counted()
        return True

    def refuse_if_given_up(self, found: Mapping[TopicPartition, Sequence[Note]]) -> None:
        """UsageError where somebody has decided that workers go on without it."""
        given_up = [name for name in found if is_given_up(self._plan.name, found[name])]
        if given_up:
            raise UsageError(
                f"somebody has decided since it began that workers go on with"
                f" {', '.join(map(str, given_up))} (ingester resolve --as resend): they would send"
                " the same. Decide so about its other partitions, too, and make another plan"
            )

    async def refuse_if_cut(self) -> None:
        """UsageError where the log ends before the plan: nobody can send what is missing.

        The claims end with it, unless something is in doubt that workers would send as well.
        """
        cut = await self.cut()
        if not cut:
            return
        claimed = {
            name: self._extents[name]
            for name, notes in (await self.notes()).items()
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
                f" ({self.as_its_group} ingester resolve), so that workers"
                " wait as before. When you have compared the balances, let them go on (ingester"
                " resolve TOPIC:PARTITION:OFFSET --as resend), and make another plan"
            )
        await self._give_up(claimed, f"{what} What was sent has receipts. Make the plan again")

    async def cut(self) -> Sequence[str]:
        """Name the partitions whose log ends before the plan does."""
        ends = await end_offsets(self._settings, self._extents)
        return [
            f"{name} ends at offset {ends[name]}, and the plan at {next_offset}"
            for name, (_, next_offset) in self._extents.items()
            if ends[name] < next_offset
        ]

    async def note(
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

    async def _give_up(self, claimed: Mapping[TopicPartition, Range], why: str) -> NoReturn:
        """End the claims, so that nobody waits for what is not to be sent; UsageError."""
        await self.note("ended", claimed)
        raise UsageError(why)

    async def notes(self) -> Mapping[TopicPartition, list[Note]]:
        notes = await self._receipts.notes({}, dict.fromkeys(self._extents, 0))
        return {name: [note for _, note in notes[name]] for name in self._extents}

    async def _refuse_if_counted(self) -> None:
        """UsageError where its letters were counted as records since it was made, or the reverse.

        It is looked for behind the claim, which whoever plans from now on sees.
        """
        if self._plan.redrive is not None:
            settled = await settled_since(self._live, self._plan)
            if settled is not None:
                await self._give_up(
                    self._extents,
                    f"a letter is not to be sent any more since the plan was made, that of"
                    f" {settled}. Make the plan again",
                )
        elif not self._plan.forced:
            sent = await redriven(self._live, self._plan.topic, self._extents)
            counted_twice = [
                str(name)
                for name, selected in self._replaying.selected.items()
                if intersected(selected, sent.get(name, ()))
            ]
            if counted_twice:
                await self._give_up(
                    self._extents,
                    f"dead letters of {', '.join(counted_twice)} were redriven since the plan was"
                    " made, or are about to be, and it has their records. Make the plan again",
                )

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
            await self._give_up(
                claimed,
                f"a worker of {group} has begun to send {', '.join(doubtful)} since the plan was"
                " made, and has left it in doubt. Make the plan again",
            )
        if not self._plan.forced:
            await self._refuse_if_passed(stored, claimed)

    async def _refuse_if_passed(
        self, stored: Mapping[TopicPartition, Commit], claimed: Mapping[TopicPartition, Range]
    ) -> None:
        """UsageError where the group has committed past a part of it since, without receipts."""
        found = await self.notes()
        for name, selected in self._replaying.selected.items():
            then = self._plan.committed.get(name.partition, 0)
            now = stored[name].next_offset if name in stored else 0
            passed = await unaccounted(
                self._live, name, selected, found[name], (then, max(then, now))
            )
            if passed:
                await self._give_up(
                    claimed,
                    f"{self._plan.group_id} has committed past {counted(length(passed), 'offset')}"
                    f" of {name} since the plan was made, without a receipt: workers with"
                    " INGESTER_RECEIPTS=off may have settled them. Make the plan again",
                )

    async def _refuse_if_overtaken(
        self, redrive: Redrive, claimed: Mapping[TopicPartition, Range]
    ) -> None:
        for name, notes in (await self.notes()).items():
            others = [
                note
                for note in notes
                if isinstance(note, Receipt) and note.items and note.replay != self._plan.name
            ]
            if len(others) != redrive.redrives.get(name.partition, 0):
                await self._give_up(
                    claimed,
                    f"letters of {name} were sent since the plan was made, perhaps some of these:"
                    " make it again",
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
