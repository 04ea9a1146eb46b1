"""A topic that takes a dead letter or a receipt only once somebody has changed something."""

from __future__ import annotations

from msgspec.structs import replace

from ingester.core.messages import (
    DeadLettersNotWritten,
    ReceiptNotWritten,
    WriteDeadLetters,
    WriteReceipt,
)
from tests.support.records import LogRecord, usage_records
from tests.support.scenario import LIMITS, P0, P1, Scenario

TOO_LARGE = "raise its max.message.bytes."
RECEIPTS = replace(LIMITS, receipts=True)


def refused(scenario: Scenario) -> list[str | None]:
    return [scenario.pipeline.partitions[name].write_refused for name in (P0, P1)]


def test_a_refused_dead_letter_is_told_until_it_is_written() -> None:
    """Nothing is committed past it, it is tried again, and then all goes on by itself."""
    scenario = Scenario(P0, P1)
    (write,) = scenario.fetch([LogRecord(0, None), LogRecord(1, None)])
    assert isinstance(write, WriteDeadLetters)
    assert scenario.fact(DeadLettersNotWritten(write.batch, 0.5, TOO_LARGE)) == []
    assert refused(scenario) == [TOO_LARGE, None]
    assert scenario.pipeline.partitions[P0].halt_reason is None

    (again,) = scenario.wake()
    assert isinstance(again, WriteDeadLetters)
    assert scenario.committed[P0][0] == 0
    scenario.written(write.batch)

    assert refused(scenario) == [None, None]
    assert scenario.offset() == 2


def test_a_refused_receipt_is_told_until_something_else_is_wrong() -> None:
    """A broker that is away is nobody's to mend."""
    scenario = Scenario(P0, P1, limits=RECEIPTS)
    (batch,) = scenario.sent(usage_records(2))
    (write,) = scenario.answer(batch)
    assert isinstance(write, WriteReceipt)
    scenario.fact(ReceiptNotWritten(batch, 0.5, TOO_LARGE))
    assert refused(scenario) == [TOO_LARGE, None]

    scenario.wake()
    scenario.fact(ReceiptNotWritten(batch, 0.5))

    assert refused(scenario) == [None, None]
