"""How the fate of a record is told: lines for people, a document for programs."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from ingester.audit.accounts import Account
from ingester.audit.books import Entry, LetterEntry
from ingester.audit.worker_status import WorkerStatus
from ingester.commands.doubt_report import decided, shown
from ingester.core.fate import FINAL
from ingester.core.receipt import Receipt
from ingester.core.record import Record
from ingester.tables import harmless

_NAME_WIDTH: Final = 17


def headline(account: Account) -> str:
    """Say in one sentence what became of it."""
    where = f"{account.name}:{account.place.offset}"
    place, found = account.place, account.evidence
    match account.fate:
        case "settled":
            settled = _settled((found.counted or found.receipts)[0])
            if account.letters_gone and not found.counted:
                return (
                    f"{where} is settled, or was one of {account.letters_gone} dead letters of its"
                    f" batch that were deleted, which cannot be told: {settled}."
                )
            return f"{where} is settled: {settled}."
        case "dead_lettered":
            if not account.letters:
                return (
                    f"{where} is a dead letter, says the receipt of its batch;"
                    " the dead-letter topic does not hold it (any more)."
                )
            origin = account.letters[0].origin
            return f"{where} is a dead letter: {origin.code}, {origin.detail}."
        case "skipped":
            decision = next(each for each in found.decisions if each.decision == "skipped")
            return f"{where} was passed without being settled. {decided(decision)}"
        case "no_record":
            return (
                f"{where} holds no record: it is a transaction's marker, or was aborted, compacted"
                " or unreadable. There is nothing to settle."
            )
        case "in_doubt":
            assert found.intent is not None
            return (
                f"{where} is in doubt: its batch {found.intent} was recorded as about to be sent,"
                f" and has no receipt. `ingester resolve {where}` shows it."
            )
        case "waiting":
            return f"{where} is not settled yet."
        case "beyond_end":
            return f"{where} is not written yet: {place.log_ends} is the next offset of its log."
        case "lost":
            return (
                f"{where} was not settled, and the log has lost it to retention: it begins at"
                f" {place.log_begins}. `ingester resolve {where}` shows the gap."
            )
        case "unexplained":
            return (
                f"{where} is below the committed offset {place.next_offset}, and neither a receipt"
                " nor a dead letter nor a decision says what became of it. `ingester reconcile`"
                " shows all such gaps."
            )


def _settled(receipt: Receipt) -> str:
    if receipt.batch_id is None:
        return "somebody decided that PacSpace has its batch"
    return (
        f"PacSpace acknowledged its batch as {receipt.batch_id} (HTTP {receipt.http_status}) at"
        f" {receipt.settled_at}"
    )


def lines(account: Account, worker: WorkerStatus | str | None, url: str | None) -> Iterator[str]:
    """Say everything, the sentence first."""
    yield harmless(headline(account))
    for entry in account.entries:
        if isinstance(entry.note, Receipt):
            yield from receipt_lines(entry)
    for entry in account.mistaken:
        yield _line(
            "no proof",
            f"the receipt {entry.place}:{entry.offset} is of other records that were there: the"
            " topic was made anew, or its log cut short",
        )
    yield from _letters(account)
    for decision in account.evidence.decisions:
        if account.fate != "skipped":
            yield _line("decision", decided(decision))
    for claim in account.evidence.claims:
        yield _line("claimed by", f"the replay {claim.name} since {claim.at}; it has not ended")
    if account.batch is not None:
        batch = account.batch
        yield _line("batch", f"{batch}, {batch.items_count} items, {batch.bits} bits")
        yield _line("idempotency key", batch.idempotency_key)
    if _waits(account):
        for reason in waits_for(account, worker, url):
            yield _line("waits for", reason)


def _letters(account: Account) -> Iterator[str]:
    for letter in account.letters:
        yield from _letter_lines(letter)
    for entry in account.redrives:
        yield _line("redriven", "the dead letter was settled in its turn:")
        yield from receipt_lines(entry, is_redrive=True)
        yield from _correction_lines(account, entry)
    if account.letters and not account.redrives:
        yield _line("redriven", "no")


def _correction_lines(account: Account, entry: Entry) -> Iterator[str]:
    """Say how a redrive has corrected the letter, and why."""
    name = entry.note.replay if isinstance(entry.note, Receipt) else None
    claim = account.redrive_claims.get(name or "")
    if claim is None:
        return
    made = [f"--set {each}" for each in claim.sets] + [f"--remove {each}" for each in claim.removes]
    yield _line("corrected", " ".join(made) or "nothing: it was sent as it is")
    yield _line("by", f"{claim.by}: {claim.reason}")


def receipt_lines(entry: Entry, *, is_redrive: bool = False) -> Iterator[str]:
    """Say what a receipt says."""
    receipt = entry.note
    assert isinstance(receipt, Receipt)
    range_ = shown(receipt.range)
    yield _line(
        "batch",
        f"{entry.source}{range_}, {receipt.items} items, {receipt.dead_letters} dead letters,"
        f" {receipt.bits} bits",
    )
    yield _line("batch id", receipt.batch_id or "none")
    yield _line("idempotency key", receipt.idempotency_key)
    doubt = "; PacSpace may have had it before" if receipt.in_doubt else ", none in doubt"
    yield _line("attempts", f"{receipt.attempts}{doubt}")
    yield _line("settled at", receipt.settled_at)
    if receipt.replay is not None:
        forced = ", forced: what had a receipt was counted again" if receipt.forced else ""
        yield _line("replay", f"{receipt.replay}{'' if is_redrive else forced}")
    yield _line("receipt", f"{entry.place}:{entry.offset}")


def _letter_lines(letter: LetterEntry) -> Iterator[str]:
    origin = letter.origin
    yield _line("dead letter", f"{letter.place}:{letter.record.offset}, {origin.code}")
    if origin.http_status is not None:
        body = origin.http_body.decode("utf-8", "replace")
        yield _line("answer", f"HTTP {origin.http_status} {body}")


def record_lines(record: Record | None) -> Iterator[str]:
    """Show a record as it was read from the log."""
    if record is None:
        yield _line("record", "the log does not hold it")
        return
    yield _line("record", f"offset {record.offset}, made at {_moment(record)}")
    yield _line("key", _text(record.key))
    yield from (_line("header", f"{name}: {_text(content)}") for name, content in record.headers)
    yield _line("value", _text(record.value))


def _line(name: str, content: str) -> str:
    return f"  {name:<{_NAME_WIDTH}}{harmless(content)}".rstrip()


def _text(content: bytes | None) -> str:
    """Text as it is; other bytes in Python's notation."""
    if content is None:
        return "none"
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return repr(content)
    return text if text.isprintable() else repr(text)


def _moment(record: Record) -> str:
    return datetime.fromtimestamp(record.timestamp / 1000, UTC).isoformat(timespec="milliseconds")


def _waits(account: Account) -> bool:
    """Whether something more may become of it; of what is committed nothing will."""
    return account.fate not in FINAL and not account.place.is_committed


def waits_for(
    account: Account, worker: WorkerStatus | str | None, url: str | None
) -> Iterator[str]:
    """Say what stands before what is not final, as far as Kafka and the worker tell."""
    standing, place, intent = account.standing, account.place, account.evidence.intent
    if standing is None:
        if account.fate != "beyond_end":
            yield "a worker: the group has committed nothing of the partition"
        return
    if intent is not None:
        since = datetime.fromtimestamp(intent.intended_at, UTC).isoformat()
        yield f"the answer to its batch, intended at {since}"
    elif account.fate == "waiting":
        ahead = max(0, place.offset - standing.start.offset)
        yield f"its turn: {standing.start.offset} is the next to be settled, {ahead} offsets before"
    if standing.start.halt_reason:
        yield f"a person: {standing.start.halt_reason}"
    if standing.owner is None:
        yield "a worker: none has the partition now"
    if isinstance(worker, WorkerStatus):
        yield from _worker_says(account, worker)
    elif worker is not None:
        yield f"(the worker was asked at {url}, and says nothing: {worker})"


def _worker_says(account: Account, worker: WorkerStatus) -> Iterator[str]:
    status = worker.of(account.name)
    if status is None:
        yield f"(the worker that was asked does not have {account.name})"
        return
    if status.halted and (
        account.standing is None or status.halted != account.standing.start.halt_reason
    ):
        yield f"a person, because the partition has halted: {status.halted}"
    if worker.blocked:
        yield f"PacSpace, which refuses everything: {worker.blocked}"
    if worker.held_for:
        yield f"{worker.held_until}, because of: {worker.held_for}"


# -- documents ------------------------------------------------------------------------------------


def document(
    account: Account, worker: WorkerStatus | str | None, url: str | None, *, with_record: bool
) -> dict[str, object]:
    """Everything for a program."""
    place, found, standing = account.place, account.evidence, account.standing
    intent = found.intent
    return {
        "topic": account.name.topic,
        "partition": account.name.partition,
        "offset": place.offset,
        "fate": account.fate,
        "summary": headline(account),
        "committedOffset": place.next_offset,
        "logBegins": place.log_begins,
        "logEnds": place.log_ends,
        "receipts": [receipt_document(each) for each in account.entries if _is_receipt(each)],
        "receiptsOfOtherRecords": [receipt_document(each) for each in account.mistaken],
        "decisions": found.decisions,
        "replays": found.claims,
        "deadLetters": [_letter_document(letter) for letter in account.letters],
        "redrives": [receipt_document(each) for each in account.redrives],
        "inDoubt": intent
        and {
            "firstOffset": intent.first_offset,
            "nextOffset": intent.next_offset,
            "intendedAt": datetime.fromtimestamp(intent.intended_at, UTC).isoformat(),
            "idempotencyKey": account.batch and account.batch.idempotency_key,
        },
        "waitsFor": list(waits_for(account, worker, url)) if _waits(account) else [],
        "worker": standing and standing.owner,
    } | ({"record": record_document(account.record)} if with_record else {})


def _is_receipt(entry: Entry) -> bool:
    return isinstance(entry.note, Receipt)


def receipt_document(entry: Entry) -> dict[str, object]:
    """A receipt as it was written, with where it is."""
    said: Mapping[str, object] = msgspec.to_builtins(entry.note)
    where = {"receiptsTopic": entry.place.topic, "receiptsPartition": entry.place.partition}
    return {**said, **where, "receiptsOffset": entry.offset}


def _letter_document(letter: LetterEntry) -> dict[str, object]:
    origin = letter.origin
    return {
        "topic": letter.place.topic,
        "partition": letter.place.partition,
        "offset": letter.record.offset,
        "code": origin.code,
        "detail": origin.detail,
        "httpStatus": origin.http_status,
        "httpBody": origin.http_body.decode("utf-8", "replace") or None,
    }


def record_document(record: Record | None) -> dict[str, object] | None:
    """A record as it was read from the log: text where it is some, base64 where it is not."""
    if record is None:
        return None
    return {
        "offset": record.offset,
        "timestamp": _moment(record),
        "key": _content(record.key),
        "value": _content(record.value),
        "headers": [{"name": name, **_content_of(content)} for name, content in record.headers],
    }


def _content(content: bytes | None) -> dict[str, str] | None:
    return None if content is None else _content_of(content)


def _content_of(content: bytes | None) -> dict[str, str]:
    try:
        return {"text": (content or b"").decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content or b"").decode()}


def batch_document(entries: Sequence[Entry]) -> dict[str, object]:
    """What receipts name a batch, for a program."""
    return {"receipts": [receipt_document(each) for each in entries]}
