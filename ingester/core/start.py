"""Where an assigned partition begins: what the committed offset, its metadata, the log and the
receipts topic say together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from ingester.core.coverage import Proof
from ingester.core.intent import Intent, Ledger, Range, Unreadable, decode
from ingester.core.messages import Commit, Start
from ingester.core.receipt import Note, Receipt, Replay, Resolution
from ingester.core.record import TopicPartition


def start_of(
    name: TopicPartition,
    commit: Commit | None,
    *,
    log_begins: int,
    receipts_end: int,
    notes: Sequence[tuple[int, Note]],
) -> Start:
    """Return where a worker begins, what is settled beyond it and what is in doubt.

    Where the group has no offset, there is no `commit`, and it begins where the log does. `notes`
    are those of this partition with their offsets in the receipts topic, oldest first, as far as
    they can concern what is above the committed offset. `receipts_end` is where the receipts will
    go on, for a partition without a ledger.
    """
    begun = start_at(
        name,
        commit or Commit(log_begins, ""),
        log_begins=log_begins,
        receipts_end=receipts_end,
        notes=notes,
    )
    if begun.halt_reason is not None:
        return begun
    if commit is None and is_to_be_judged(notes):
        settled = max(note.next_offset for _, note in notes if isinstance(note, Receipt))
        reason = _forgotten(name, begun.offset, settled, log_begins)
        return replace(begun, halt_reason=reason, unaccounted=True)
    claim = _claim_on(begun.offset, notes)
    if claim is not None:
        reason = _claimed(name, begun.offset, claim)
        return replace(begun, halt_reason=reason, unaccounted=True)
    return begun


def start_at(
    name: TopicPartition,
    commit: Commit,
    *,
    log_begins: int,
    receipts_end: int,
    notes: Sequence[tuple[int, Note]],
) -> Start:
    """Return where whoever committed this goes on, a worker or a replay; see `start_of`."""
    offset = commit.next_offset
    ledger = decode(offset, commit.metadata)
    if isinstance(ledger, Unreadable):
        return Start(offset, Ledger(0, ()), {}, halt_reason=_unreadable(commit, ledger.reason))
    foreign_metadata = commit.metadata if ledger is None else ""
    ledger = ledger or Ledger(receipts_end, ())
    settled: dict[Range, int] = {}
    decisions: dict[Range, Resolution] = {}
    for note_offset, note in notes:
        if isinstance(note, Receipt):
            settled[note.range] = note_offset
        elif isinstance(note, Resolution):
            decisions[note.range] = note
            if note.decision == "skipped":
                settled[note.range] = note_offset
                if note.first_offset <= offset:
                    offset = max(offset, note.next_offset)
    cut = [each for each in ledger.intents if each.first_offset < offset < each.next_offset]
    if cut:  # of a batch in doubt the rest is no batch of its own
        offset = cut[0].first_offset
    intents = [each for each in ledger.intents if each.first_offset >= offset]
    while intents and intents[0].range in settled:
        offset = intents.pop(0).next_offset
    return Start(
        offset,
        Ledger(ledger.receipts_offset, intents),
        {each.range: settled[each.range] for each in intents if each.range in settled},
        acknowledged={
            range_ for range_, each in decisions.items() if each.decision == "acknowledged"
        },
        resent={each.range for each in intents if _is_to_be_resent(each, decisions)},
        committed=commit.next_offset if offset != commit.next_offset else None,
        halt_reason=_overtaken(name, offset, log_begins) if offset < log_begins else None,
        foreign_metadata=foreign_metadata,
        proofs=_proofs(offset, intents, notes),
    )


def _is_to_be_resent(intent: Intent, decisions: Mapping[Range, Resolution]) -> bool:
    decided = decisions.get(intent.range)
    if decided is None or decided.decision != "resend":
        return False
    return decided.intended_at == intent.intended_at


def is_to_be_judged(notes: Sequence[tuple[int, Note]]) -> bool:
    """Whether a group has settled something, and nobody said since that another may go on."""
    for _, note in reversed(notes):
        if isinstance(note, Receipt) and note.replay is None:
            return True
        if is_to_go_on(note):
            break
    return False


def is_to_go_on(note: Note) -> bool:
    """Whether somebody decided that everything is to be sent that has no receipt.

    Not so one who had too many dead letters tried again: he did not mean what nobody knew of then.
    """
    return isinstance(note, Resolution) and note.decision == "resend" and note.unaccounted


def is_given_up(replay: str, notes: Iterable[Note]) -> bool:
    """Whether somebody decided, since a replay's claim, that workers go on without it."""
    is_claimed = False
    for note in notes:
        if is_claimed and is_to_go_on(note):
            return True
        is_claimed = is_claimed or (isinstance(note, Replay) and note.name == replay)
    return False


def _claim_on(offset: int, notes: Sequence[tuple[int, Note]]) -> Replay | None:
    """Return a replay that has begun beyond an offset, and neither ended nor was given up."""
    ended: set[str] = set()
    for _, note in reversed(notes):
        if is_to_go_on(note):
            break
        if isinstance(note, Replay):
            if note.state == "started" and note.name not in ended and note.next_offset > offset:
                return note
            ended.add(note.name)
    return None


def _proofs(
    offset: int, intents: Sequence[Intent], notes: Iterable[tuple[int, Note]]
) -> Sequence[Proof]:
    """Return what has receipts above the offset; of what is intended, its own notes decide."""
    return tuple(
        Proof(
            note.first_offset,
            note.next_offset,
            note.idempotency_key,
            receipt_offset,
            note.namespace,
        )
        for receipt_offset, note in notes
        if isinstance(note, Receipt)
        and note.next_offset > offset
        and not any(
            each.first_offset < note.next_offset and note.first_offset < each.next_offset
            for each in intents
        )
    )


def _unreadable(commit: Commit, reason: str) -> str:
    return (
        f"the metadata of the committed offset {commit.next_offset} says which batches were in"
        f" doubt, and cannot be read: {reason}. Let the version that wrote it settle them and stop;"
        " or find out what was sent, and commit the offset without metadata"
        " (kafka-consumer-groups.sh --reset-offsets)"
    )


def _overtaken(name: TopicPartition, offset: int, log_begins: int) -> str:
    return (
        f"the log of {name} begins at offset {log_begins}, and {offset} is the next to be settled:"
        " retention overtook the committed offset. To go on without what is missing:"
        f" ingester resolve {name}:{offset} --as skipped --reason ..."
    )


def _forgotten(name: TopicPartition, offset: int, settled: int, log_begins: int) -> str:
    beyond = (
        f"; the log begins at offset {log_begins} by now, and what was between is not settled"
        if settled < log_begins
        else ""
    )
    return (
        f"the group has no committed offset for {name}, and receipts show that records up to offset"
        f" {settled} were settled{beyond}. The group is another than before (INGESTER_GROUP_ID), or"
        " its offsets expired or were deleted, and with them what was in doubt. To go on with"
        " everything that has no receipt:"
        f" ingester resolve {name}:{offset} --as resend --reason ..."
    )


def _claimed(name: TopicPartition, offset: int, claim: Replay) -> str:
    return (
        f"the replay {claim.name} has {name}[{claim.first_offset},{claim.next_offset}) since"
        f" {claim.at}, and has not ended. Let it end, or continue it; the partition goes on by"
        " itself then. To go on without it, and perhaps count twice what it had in flight:"
        f" ingester resolve {name}:{offset} --as resend --reason ..."
    )
