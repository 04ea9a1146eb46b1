"""`ingester resolve`: show what is in doubt, and take a person's decision about it.

A decision is a note in the receipts topic; whoever owns the partition acts upon it. Nothing else is
written, and no offset is moved from here.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, NamedTuple

import msgspec
import typer

from ingester.arguments import AsJson, ConfigFile, print_json, who
from ingester.audit.doubts import (
    DoubtSettings,
    Standing,
    formed,
    looked_into,
    replay_group_id,
    standings,
)
from ingester.commands.doubt_report import (
    behind,
    decided,
    details,
    document,
    foreign,
    nothing_at,
    nothing_in_doubt,
    remarks,
    shown,
    table,
)
from ingester.config import load
from ingester.core.intent import Range
from ingester.core.receipt import Decision, Resolution
from ingester.errors import ConfigurationError, RefusedError, UsageError
from ingester.kafka.admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.kafka.receipts import Receipts
from ingester.settings import LedgerSettings
from ingester.tables import counted

_TARGET = re.compile(
    r"(?P<topic>[^:]+)(:(?P<partition>\d{1,9})(:(?P<offset>\d{1,18}))?)?", re.ASCII
)


class Target(NamedTuple):
    """What of the group is meant; None is all of it."""

    topic: str | None = None
    partition: int | None = None
    offset: int | None = None


def resolve(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TOPIC[:PARTITION[:OFFSET]]",
            help="What to show; with the offset, what to decide about.",
            show_default=False,
        ),
    ] = None,
    decision: Annotated[
        Decision | None, typer.Option("--as", help="The decision.", show_default=False)
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Why; kept with the decision.", show_default=False),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Who decides; USER@HOST unless given."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what is in doubt, or take a decision about it.

    In doubt is a batch that was recorded as about to be sent and has no receipt. A worker that is
    well settles it by itself; decide where one has halted the partition. A running worker acts on
    the decision within seconds, another at its start. Another decision about the same batch
    replaces one that nobody has acted on yet, but `skipped`: that stands (try --dry-run before).

    \b
    --as acknowledged  PacSpace has counted the batch at OFFSET (see `ingester balance`): pass it
    --as resend        send it again under its key, whatever INGESTER_IN_DOUBT and the window say;
                       where nothing is in doubt, and OFFSET is the next to be settled, try again
    --as skipped       go on without what the log has lost (retention), or without a batch that
                       cannot be formed again as it was

    \b
    Examples:
      ingester resolve
      ingester resolve usage:3
      ingester resolve usage:3:4100
      ingester resolve usage:3:4100 --as acknowledged --reason "in the balance, ticket 4711"
      ingester resolve usage:3:4100 --as skipped --reason "estimated" --dry-run

    Exit codes: 0 shown, or written; 64 the command line, or there is nothing of the kind to decide;
    69 Kafka or the topic cannot be reached; 77 Kafka refuses the credentials or lacks a permission;
    78 the settings, or INGESTER_RECEIPTS is off.
    """
    asked = _parse(target)
    if decision is None and (reason or by or dry_run):
        raise UsageError("--reason, --by and --dry-run go with a decision: --as")
    if decision is not None and asked.offset is None:
        raise UsageError("a decision is about one place: name TOPIC:PARTITION:OFFSET")
    reason = (reason or "").strip()
    if decision is not None and not reason:
        raise UsageError("say why: --reason TEXT is kept with the decision")
    settings = load(DoubtSettings, environ=os.environ, config_file=config).settings
    if asked.topic not in {None, *settings.topics}:
        raise UsageError(
            f"{asked.topic} is none of INGESTER_TOPIC ({', '.join(settings.topics)}): no worker"
            " with these settings would hear of it"
        )
    if decision is None:
        asyncio.run(_show(settings, asked, as_json=as_json))
        return
    if settings.receipts == "off":
        raise ConfigurationError(
            "INGESTER_RECEIPTS is off: decisions are kept with the receipts, and the workers would"
            " not look for them. Set it to on for both."
        )
    asyncio.run(
        _decide(settings, asked, decision, by or who(), reason, dry_run=dry_run, as_json=as_json)
    )


def _parse(target: str | None) -> Target:
    found = _TARGET.fullmatch(target or "-")
    if found is None:
        raise UsageError(f"{target!r} should be TOPIC, TOPIC:PARTITION or TOPIC:PARTITION:OFFSET")
    partition, offset = found["partition"], found["offset"]
    return Target(
        found["topic"] if target else None,
        int(partition) if partition else None,
        int(offset) if offset else None,
    )


# -- showing --------------------------------------------------------------------------------------


async def _show(settings: DoubtSettings, asked: Target, *, as_json: bool) -> None:
    found = await _standings(settings, asked)
    if asked.partition is not None:
        found = [await looked_into(settings, each) for each in found]
    batches = {each.name: await formed(settings, each) for each in found}
    now = time.time()
    if as_json:
        partitions = [document(each, batches[each.name], now, asked.offset) for each in found]
        print_json({"group": settings.group_id, "partitions": partitions})
        return
    lines = [*table(found, batches, now, asked.offset)]
    for each in found:
        lines += remarks(each)
    lines += details(found, batches, asked.offset)
    if asked.partition is None:
        if not lines:
            where = asked.topic or ", ".join(settings.topics)
            lines.append(f"Nothing of {where} is in doubt in the group {settings.group_id}.")
        lines += behind(found)
    elif not found[0].doubts_at(asked.offset):
        lines += nothing_in_doubt(found[0], asked.offset)
    sys.stdout.write("\n".join(lines) + "\n")


async def _standings(settings: LedgerSettings, asked: Target) -> Sequence[Standing]:
    topics = settings.topics if asked.topic is None else (asked.topic,)
    found = await standings(settings, topics, asked.partition)
    if not found:
        what = ", ".join(topics)
        if asked.partition is not None:
            what = f"{what}:{asked.partition}"
        raise UsageError(
            f"the group {settings.group_id} has no committed offset of {what}, so that nothing of"
            " it can be in doubt: is INGESTER_GROUP_ID right, and has a worker run?"
        )
    return found


# -- deciding -------------------------------------------------------------------------------------


async def _decide(
    settings: DoubtSettings,
    asked: Target,
    decision: Decision,
    by: str,
    reason: str,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    (standing,) = await _standings(settings, asked)
    offset = asked.offset
    assert offset is not None, "looked at before"
    if decision == "skipped":
        standing = await looked_into(settings, standing)
    range_, summary = decide(standing, offset, decision)
    if decision == "skipped" and range_ in await formed(settings, standing):
        raise UsageError(
            f"{standing.name}{shown(range_)} is in the log and can be formed again as it was:"
            " decide --as acknowledged, or --as resend"
        )
    warnings = [*_warnings(standing, range_)]
    intended_at = {each.range: each.intended_at for each in standing.in_doubt}
    resolution = Resolution(
        topic=standing.name.topic,
        partition=standing.name.partition,
        first_offset=range_[0],
        next_offset=range_[1],
        decision=decision,
        by=by,
        reason=reason,
        decided_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        intended_at=intended_at.get(range_),
        unaccounted=standing.start.unaccounted and range_ not in intended_at,
    )
    if resolution.unaccounted:
        await _refuse_beside_replays(settings, standing)
    place = Receipts(settings).partition_for(standing.name)
    written = None if dry_run else await _write(settings, resolution)
    for warning in warnings:
        sys.stderr.write(f"warning: {warning}\n")
    if as_json:
        document = msgspec.to_builtins(resolution)
        document |= {"receiptsTopic": place.topic, "receiptsOffset": written, "summary": summary}
        print_json(document | {"warnings": warnings})
        return
    said = (
        f"Nothing is written (--dry-run). {place} would get the decision of {resolution.by}."
        if written is None
        else f"Written to {place} at offset {written}, as the decision of {resolution.by}. A worker"
        " that has halted the partition acts on it within seconds, another at its start."
    )
    sys.stdout.write(f"{summary}\n{said}\n")


async def _refuse_beside_replays(settings: LedgerSettings, standing: Standing) -> None:
    """UsageError while a replay is at work that the decision would give up."""
    admin = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)
    for claim in standing.claims:
        group = replay_group_id(settings.group_id, claim.name)
        _, members = await admin.members(group)
        if members:
            hosts = ", ".join(dict.fromkeys(member.host for member in members))
            raise UsageError(
                f"the replay {claim.name} is at work on {standing.name}, at {hosts}: workers would"
                " send the same. Let it end, or stop it (SIGINT settles what it has in flight), and"
                f" decide then. Of one that was killed Kafka hears within the session timeout:"
                f" until then the group {group} has members"
            )


def decide(standing: Standing, offset: int, decision: Decision) -> tuple[Range, str]:
    """Return the range that a decision is about, and in words what becomes of it.

    UsageError where there is nothing of the kind to decide.
    """
    name = standing.name
    if standing.unreadable:
        raise UsageError(f"{name}: {standing.unreadable}.")
    if decision == "skipped":
        return _skip(standing, offset)
    intent = next(iter(standing.doubts_at(offset)), None)
    if decision == "resend" and (intent.first_offset if intent else offset) < standing.log_begins:
        raise UsageError(
            f"the log of {name} begins at offset {standing.log_begins}: what was before it cannot"
            " be sent again. To go on without it: --as skipped"
        )
    if intent is not None:
        earlier = standing.decision_on(intent)
        if earlier is not None and earlier.decision == decision == "acknowledged":
            raise UsageError(f"{decided(earlier)} Whoever has the partition acts on that.")
        fate = (
            "is passed without being sent again: PacSpace has counted it."
            if decision == "acknowledged"
            else "is sent again under its key."
        )
        return intent.range, f"{name}{shown(intent.range)} {fate}"
    if decision == "resend" and offset == standing.start.offset and not standing.in_doubt:
        if standing.owner is None and standing.start.halt_reason is None:
            raise UsageError(
                f"no worker has {name}, so that none has halted it, and nothing of it is in doubt:"
                f" whoever gets it next begins at offset {offset} without a decision"
            )
        return (offset, offset + 1), f"{name} is tried again from offset {offset} on."
    raise UsageError(nothing_at(standing, offset))


def _skip(standing: Standing, offset: int) -> tuple[Range, str]:
    gap, unreadable = standing.gap, standing.unreadable_records
    if unreadable is not None and unreadable[0] <= offset < unreadable[1]:
        return unreadable, (
            f"{standing.name}{shown(unreadable)} is passed without being settled: its records"
            " cannot be read, and PacSpace has counted none of them."
        )
    intent = next(iter(standing.doubts_at(offset)), None)
    if gap is None and intent is not None:
        return intent.range, (
            f"{standing.name}{shown(intent.range)} is passed without being sent: PacSpace may have"
            " counted it, or not, and its records become no dead letters."
        )
    if gap is None or not gap[0] <= offset < gap[1]:
        if gap is None and standing.note_on(offset):
            raise UsageError(nothing_at(standing, offset))
        missing = f"missing is {shown(gap)}" if gap else "nothing is missing"
        raise UsageError(
            f"{standing.name}:{offset} cannot be skipped: the log begins at"
            f" {standing.log_begins}, {standing.start.offset} is the next offset to be settled, so"
            f" {missing}"
        )
    were, them = ("is", "it") if standing.missing_offsets == 1 else ("are", "them")
    missing = (
        f"{counted(standing.missing_offsets, 'offset')} {were} missing, and it is not known what"
        f" was in {them}."
    )
    sentences = [f"{standing.name}{shown(gap)} is passed without being settled: {missing}"]
    if gap[1] > standing.log_begins:
        rest = shown((standing.log_begins, gap[1]))
        sentences.append(f"{rest} is in the log still, and passed with the batch it is a part of.")
    in_doubt = [
        each
        for each in standing.in_doubt
        if each.first_offset < gap[1] and each.range not in standing.start.acknowledged
    ]
    if in_doubt:
        ranges = ", ".join(shown(each.range) for each in in_doubt)
        sentences.append(f"In doubt in it: {ranges}; PacSpace may have counted that, or not.")
    elif standing.has_ledger:
        sentences.append("Nothing in it was in doubt: PacSpace has not counted what is missing.")
    else:
        sentences.append("Whether something in it was in doubt is not known.")
    return gap, " ".join(sentences)


def _warnings(standing: Standing, range_: Range) -> Iterator[str]:
    """What whoever decides should know beside it."""
    intent = next((each for each in standing.in_doubt if each.range == range_), None)
    earlier = standing.decision_on(intent) if intent else None
    if standing.owner and standing.gap is None:
        yield (
            f"a worker at {standing.owner} has {standing.name}. Unless it has halted the partition"
            " (partition.halted in its log, /status), there is nothing to decide: what is in doubt"
            " may simply be in flight"
        )
    if intent and intent.first_offset < standing.log_begins:
        yield (
            f"the log of {standing.name} begins at offset {standing.log_begins}: the partition goes"
            " on when what is missing is passed, too (--as skipped)"
        )
    if earlier:
        yield f"{decided(earlier)} A worker may have acted on that"
    if standing.start.foreign_metadata:
        yield f"{standing.name}: {foreign(standing)}"


async def _write(settings: LedgerSettings, resolution: Resolution) -> int:
    """Append the decision to the receipts; return its offset there."""
    receipts = Receipts(settings)
    admin = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)
    await receipts.ensure_topics(admin, {resolution.topic: resolution.partition + 1})
    try:
        await receipts.start()
        return await receipts.write_note(resolution)
    except RefusedError as error:
        topic = settings.receipts_topic_for(resolution.topic)
        raise RefusedError(
            f"the decision is not written: that takes WRITE on the topic {topic}. {error}"
        ) from error
    finally:
        await receipts.stop()
