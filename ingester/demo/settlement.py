"""The two sides of PacSpace's "Basic Settlement" example, with Kafka in between."""

from __future__ import annotations

from typing import Final

import msgspec

from ingester.commands.balance import describe, describe_agreement
from ingester.core.event import UsageEvent
from ingester.demo.stage import ACCOUNT, KEY, START_SECONDS_MAX, Stage, wait_for
from ingester.kafka.writing import Written
from ingester.pacspace import Agreement, Balance

AMOUNTS: Final = (100, 250, 150)


async def settle_three(stage: Stage) -> bool:
    """Record three amounts, agree on their sum, invoice it; whether both parties agreed."""
    for bits in AMOUNTS:
        value = msgspec.json.encode(UsageEvent(KEY, ACCOUNT, bits))
        written = await (await stage.writer.send(stage.topic, value, ACCOUNT.encode()))
        batch_id = await _acknowledgement(stage, written)
        stage.console.print(f"Recorded: {bits} for {KEY} → batch {batch_id}", markup=False)
    total = sum(AMOUNTS)
    balance = await stage.pacspace.get_balance(KEY)
    if isinstance(balance, Balance):
        stage.console.print(describe(balance))
    stage.console.print(f"Total usage recorded: {total}")
    agreement = await _verified_agreement(stage, total)
    stage.console.print(describe(agreement.balance))
    stage.console.print(describe_agreement(agreement))
    if agreement.status != "agreed":
        return False
    stage.console.print(f"Settlement complete. Generating invoice for {total}")
    return True


async def _acknowledgement(stage: Stage, written: Written) -> str:
    async def look() -> str | None:
        stage.assert_running()
        stage.settled.look()
        return stage.settled.batch_id_of(written)

    return await wait_for(look, START_SECONDS_MAX, "the first events were not settled")


async def _verified_agreement(stage: Stage, expected: int) -> Agreement:
    async def look() -> Agreement | None:
        found = await stage.pacspace.verify_agreement(KEY, expected=expected)
        if isinstance(found, Agreement) and found.status != "pending_verification":
            return found
        return None

    return await wait_for(look, START_SECONDS_MAX, "the balance was not verified")
