"""The group's coordinator: members and their sessions, generations, and the stored offsets.

Rebalances are eager. A commit is stored only when it comes from a member, of this generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Literal, Protocol

from ingester.core.messages import Commit
from ingester.core.record import TopicPartition
from tests.simulation.plan import SESSION_TIMEOUT_SECONDS

REBALANCE_SECONDS_MAX = 30.0

Heartbeat = Literal["well", "rebalancing", "unknown"]


class Member(Protocol):
    """Who can be in a group."""

    number: int

    def assigned(self, generation: int, names: Sequence[TopicPartition]) -> None:
        """Hear of one's share; may be paused or dead by then."""


class Group:
    """Told of everything at the moment when the coordinator hears of it."""

    def __init__(
        self,
        random: Random,
        names: Sequence[TopicPartition],
        clock: Callable[[], float],
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._random = random
        self._names = names
        self._clock = clock
        self._later = later
        self._sessions: dict[Member, float] = {}  # when each member was last heard of
        self._joined: list[Member] = []  # those that wait for the next generation
        self._preparing = 0  # the number of the rebalance under way; 0 when there is none
        self._rebalances = 0
        self.generation = 0
        self.owners: dict[TopicPartition, Member] = {}
        self.stored: dict[TopicPartition, Commit] = {}

    def join(self, member: Member) -> None:
        """Wait for the next generation."""
        self._sessions[member] = self._clock()
        if member not in self._joined:
            self._joined.append(member)
        self._prepare()
        self._complete_when_all_joined()

    def leave(self, member: Member) -> None:
        if self._sessions.pop(member, None) is not None:
            if member in self._joined:
                self._joined.remove(member)
            self._prepare()
            self._complete_when_all_joined()

    def heartbeat(self, member: Member, generation: int) -> Heartbeat:
        self._expire()
        if member not in self._sessions or generation != self.generation:
            return "unknown"
        self._sessions[member] = self._clock()
        return "rebalancing" if self._preparing else "well"

    def commit(
        self, member: Member, generation: int, offsets: Mapping[TopicPartition, Commit]
    ) -> bool:
        """Store all of it or nothing."""
        self._expire()
        if member not in self._sessions or generation != self.generation:
            return False
        self.stored.update(offsets)
        return True

    def owns(self, member: Member, generation: int, name: TopicPartition) -> bool:
        self._expire()
        return generation == self.generation and self.owners.get(name) is member

    def _expire(self) -> None:
        """Drop the members that were not heard of; those that wait for a generation are."""
        deadline = self._clock() - SESSION_TIMEOUT_SECONDS
        gone = [
            member
            for member, heard in self._sessions.items()
            if heard < deadline and member not in self._joined
        ]
        for member in gone:
            self.leave(member)

    def tick(self) -> None:
        """Time passes at the coordinator, too."""
        self._expire()

    def _prepare(self) -> None:
        if not self._preparing:
            self._rebalances += 1
            self._preparing = number = self._rebalances
            self._later(REBALANCE_SECONDS_MAX, lambda: self._complete_without(number))

    def _complete_without(self, number: int) -> None:
        """Those that have not joined in time are out."""
        if self._preparing == number:
            for member in [each for each in self._sessions if each not in self._joined]:
                del self._sessions[member]
            self._complete_when_all_joined()

    def _complete_when_all_joined(self) -> None:
        if not self._preparing or any(each not in self._joined for each in self._sessions):
            return
        self._preparing = 0
        self.generation += 1
        self.owners.clear()
        members, self._joined = self._joined, []
        names = list(self._names)
        self._random.shuffle(names)
        shares: dict[Member, list[TopicPartition]] = {member: [] for member in members}
        for position, name in enumerate(names if members else []):
            owner = members[position % len(members)]
            self.owners[name] = owner
            shares[owner].append(name)
        for member, share in shares.items():
            self._sessions[member] = self._clock()
            member.assigned(self.generation, sorted(share))
