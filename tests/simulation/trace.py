"""Facts and commands as a reader wants them: one line each, without bodies."""

from __future__ import annotations

from collections.abc import Iterable

from ingester.core.intent import Ledger, decode
from ingester.core.messages import (
    AttemptEnded,
    Command,
    Commit,
    CommitOffsets,
    Fact,
    PartitionReopened,
    PartitionsAssigned,
    PausePartitions,
    ReadFailed,
    RecordsFetched,
    ResumePartitions,
    SendBatch,
    Start,
    WriteReceipt,
)

Step = Fact | Command | str


def lines(trace: Iterable[tuple[float, int, Step]]) -> list[str]:
    """One line for each step; commands are indented under the fact that they follow."""
    return [f"{now:9.3f}  worker {number:<2}  {describe(step)}" for now, number, step in trace]


def describe(step: Step) -> str:
    if isinstance(step, str):
        return step
    name = type(step).__name__
    match step:
        case RecordsFetched(records):
            ranges = [
                f"{each}[{found[0].offset},{found[-1].offset + 1})"
                for each, found in records.items()
                if found
            ]
            return f"{name} {' '.join(ranges)}"
        case PartitionReopened(partition, start, _):
            return f"{name} {partition} {_start(start)}"
        case PartitionsAssigned(partitions, _):
            starts = [f"{each} {_start(start)}" for each, start in partitions.items()]
            return f"{name} {'; '.join(starts)}"
        case CommitOffsets(offsets):
            commits = [f"{each} {_commit(commit)}" for each, commit in offsets.items()]
            return f"    {name} {'; '.join(commits)}"
        case PausePartitions(names) | ResumePartitions(names):
            return f"    {name} {' '.join(sorted(map(str, names)))}"
        case SendBatch(batch, attempt):
            return f"    {name} {batch} attempt {attempt}"
        case WriteReceipt(batch, outcome, attempts):
            return f"    {name} {batch} {outcome} after {attempts}"
        case AttemptEnded(batch, outcome, _):
            return f"{name} {batch} {outcome}"
        case ReadFailed(partition, _):
            return f"{name} {partition}"
    batch = getattr(step, "batch", None)
    indent = "    " if name.startswith(("Write", "Halt", "ReadRange")) else ""
    if batch is not None:
        return f"{indent}{name} {batch}"
    return f"{indent}{step}"


def _start(start: Start) -> str:
    settled = " ".join(f"[{first},{after})" for first, after in start.settled)
    return f"at {start.offset}, {_ledger(start.ledger)}, settled {settled or 'nothing'}"


def _commit(commit: Commit) -> str:
    ledger = decode(commit.next_offset, commit.metadata)
    readable = isinstance(ledger, Ledger)
    return f"at {commit.next_offset}, {_ledger(ledger) if readable else commit.metadata!r}"


def _ledger(ledger: Ledger) -> str:
    ranges = " ".join(f"[{each.first_offset},{each.next_offset})" for each in ledger.intents)
    return f"intended {ranges or 'nothing'}, receipts from {ledger.receipts_offset}"
