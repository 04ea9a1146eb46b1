"""Who is in a consumer group with which share, and a first rebalance that waits for all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    MemberIdRequired,
    NotCoordinatorForGroupError,
    for_code,
)
from aiokafka.protocol.group import JoinGroupRequest, LeaveGroupRequest

from tests.support.waiting import eventually_async

_HELD_MS_MAX = 120_000  # longer than workers take to start; after it the group goes on by itself
_PASSING = (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    MemberIdRequired,
    NotCoordinatorForGroupError,
)


@asynccontextmanager
async def rebalance_held(
    kafka: AIOKafkaAdminClient, group_id: str, topic: str
) -> AsyncIterator[None]:
    """Until the end of the block nobody gets a partition, then all that have joined get theirs.

    The first member of the group is one that never answers; before it assigns anything, the
    coordinator waits until that one leaves.
    """
    metadata = RoundRobinPartitionAssignor.metadata([topic]).encode()
    member_id = JoinGroupRequest.UNKNOWN_MEMBER_ID

    async def joined() -> bool:
        nonlocal member_id
        request = JoinGroupRequest(
            group_id,
            _HELD_MS_MAX,
            _HELD_MS_MAX,
            member_id,
            None,
            ConsumerProtocol.PROTOCOL_TYPE,
            [(RoundRobinPartitionAssignor.name, metadata)],
        )
        try:
            answer = await kafka._send_request(request, await kafka.find_coordinator(group_id))
            member_id = answer.member_id
            if answer.error_code:
                raise for_code(answer.error_code)
        except _PASSING:
            return False
        return True

    await eventually_async(joined)
    yield
    coordinator = await kafka.find_coordinator(group_id)
    await kafka._send_request(LeaveGroupRequest(group_id, member_id), coordinator)


async def shares(kafka: AIOKafkaAdminClient, group_id: str) -> list[int]:
    """How many partitions each member has, in ascending order; none while it waits for them."""
    (answer,) = await kafka.describe_consumer_groups([group_id])
    ((_, _, _, _, _, members, *_),) = answer.groups
    return sorted(
        len(ConsumerProtocol.ASSIGNMENT.decode(assigned).partitions()) if assigned else 0
        for *_, assigned in members
    )
