"""`ingester replay`: send a part of a topic that nobody has settled, once, and end.

It is a worker of a group of its own, which passes what it is not to send. It never moves the
offsets of the live group; a note among the receipts claims its ranges before the first request.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop

from ingester.arguments import AsJson, ConfigFile, announce, moment, print_json
from ingester.backfill.plan import Plan, described, read, save
from ingester.backfill.replay_report import plan_lines, summary_lines
from ingester.backfill.run import carried_out
from ingester.backfill.scope import Scope, Selection
from ingester.config import load
from ingester.core.intent import Range
from ingester.errors import ConfigurationError, UsageError
from ingester.log_lines import configure_command_logging
from ingester.settings import Settings

_NAME = re.compile(r"[A-Za-z0-9._-]{1,60}")
_TARGET = re.compile(
    r"(?P<topic>[^:]+)(:(?P<partition>\d{1,9})(:(?P<first>\d{1,18})-(?P<next>\d{1,18}))?)?",
    re.ASCII,
)


def replay(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TOPIC[:PARTITION[:FIRST-NEXT]]",
            help="What to replay; NEXT is the first offset that is not. Without it the first topic"
            " of INGESTER_TOPIC, of which --from, --to or --unreceipted say what.",
            show_default=False,
        ),
    ] = None,
    begin: Annotated[
        datetime | None,
        typer.Option(
            "--from", metavar="TIME", parser=moment, help="Records from this time on, ISO 8601."
        ),
    ] = None,
    end: Annotated[
        datetime | None,
        typer.Option("--to", metavar="TIME", parser=moment, help="Records before this time."),
    ] = None,
    unreceipted: Annotated[
        bool,
        typer.Option("--unreceipted", help="Everything in the log that has no receipt."),
    ] = False,
    below_committed: Annotated[
        bool,
        typer.Option(
            "--below-committed",
            help="Send also what the group has committed past without a receipt, which workers"
            " without receipts may have settled; needs --reason.",
        ),
    ] = False,
    account: Annotated[
        str | None, typer.Option(metavar="ID", help="Only events of this account.")
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="Only events of this key.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be sent, and send nothing.")
    ] = False,
    save_to: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Where the plan is kept.")
    ] = None,
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="Carry out, or continue, a plan."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the replay; made from the time if not.")
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the receipts.")] = "",
    force: Annotated[
        bool,
        typer.Option("--force", help="Count once more what has receipts; needs --reason."),
    ] = False,
    requests_per_second: Annotated[
        float | None, typer.Option(metavar="N", help="For INGESTER_REQUESTS_PER_SECOND_MAX.")
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Send once what nobody has settled of a topic, and end.

    A replay passes what has a receipt, what is in doubt, and what is beyond the committed offsets
    of a group that has members: their workers come to it. What is below them without a receipt is
    left out as well, and named: workers with INGESTER_RECEIPTS=off may have settled it. A second
    run sends nothing. It moves no offsets of the group. The plan is written to a file before
    anything is sent; after an interruption, kill -9 included, --plan continues it.

    With --force it counts AGAIN what PacSpace has counted, under keys of its own.

    \b
    Examples:
      ingester replay usage --unreceipted --dry-run --save june.json
      ingester replay --plan june.json
      ingester replay usage:3:4100-9000
      ingester replay usage --from 2025-06-01 --to 2025-06-02T12:00:00Z --account customer-acme
      ingester replay usage:3:4100-4200 --force --reason "PacSpace has lost them, ticket 4711"

    Exit codes: 0 sent, or nothing to send; 64 the command line or the plan; 69 Kafka cannot be
    reached; 75 interrupted, or halted: continue with --plan; 77 Kafka refuses the credentials; 78
    the settings, or INGESTER_RECEIPTS is off.
    """
    settings = load(Settings, environ=os.environ, config_file=config).settings
    if settings.receipts == "off":
        raise ConfigurationError(
            "INGESTER_RECEIPTS is off: without receipts nobody knows what was settled, and a second"
            " run would count everything twice. Set it to on."
        )
    if requests_per_second is not None:
        if requests_per_second <= 0:
            raise UsageError("--requests-per-second must be above 0")
        settings = settings.model_copy(update={"requests_per_second_max": requests_per_second})
    configure_command_logging(settings)
    if plan_file is not None:
        others = (target, begin, end, account, key, name, save_to)
        flags = (unreceipted, below_committed, force, reason)
        if any(each is not None for each in others) or any(flags):
            raise UsageError("--plan carries out what is in the file: name nothing else beside it")
        plan = read(plan_file)
    else:
        scope = _scope(
            settings, target, begin, end, account, key, name, reason,
            force=force, below_committed=below_committed,
        )  # fmt: skip
        if not (target or begin or end or unreceipted):
            raise UsageError(
                "say what to replay: a topic, --from and --to, or --unreceipted for all of it"
            )
        plan = uvloop.run(Selection(settings, scope).plan(count=dry_run))
    is_new = plan_file is None
    if is_new and plan.partitions and (save_to or not dry_run):
        plan_file = save_to or Path(f"{plan.name}.replay.json")
        save(plan, plan_file)
    if dry_run or not plan.partitions:
        _show(plan, plan_file, as_json=as_json)
        return
    _carry_out(settings, plan, plan_file, is_new=is_new, as_json=as_json)


def _carry_out(
    settings: Settings, plan: Plan, plan_file: Path | None, *, is_new: bool, as_json: bool
) -> None:
    """Say what is sent, unless the plan turns out to have ended before, and what became of it."""
    began = False

    def begun() -> None:
        nonlocal began
        began = True
        if not (is_new or as_json):
            announce(plan_lines(plan, plan_file))

    if is_new and not as_json:
        announce(plan_lines(plan, plan_file))
    summary = uvloop.run(carried_out(settings, plan, plan_file, begun))
    if as_json:
        print_json(msgspec.to_builtins(summary))
    else:
        sys.stdout.write("\n".join(summary_lines(summary, ended_before=not began)) + "\n")


def _show(plan: Plan, plan_file: Path | None, *, as_json: bool) -> None:
    if as_json:
        print_json(described(plan))
    else:
        sys.stdout.write("\n".join(plan_lines(plan, plan_file)) + "\n")


def _scope(
    settings: Settings,
    target: str | None,
    begin: datetime | None,
    end: datetime | None,
    account: str | None,
    key: str | None,
    name: str | None,
    reason: str,
    *,
    force: bool,
    below_committed: bool,
) -> Scope:
    if force and not reason.strip():
        raise UsageError("--force counts again what PacSpace has: say why, with --reason TEXT")
    if below_committed and not reason.strip():
        raise UsageError(
            "--below-committed may count again what workers without receipts have settled: say why,"
            " with --reason TEXT"
        )
    if begin is not None and end is not None and begin >= end:
        raise UsageError(f"the period is empty: --from {begin.isoformat()} --to {end.isoformat()}")
    if name is not None and not _NAME.fullmatch(name):
        raise UsageError("--name should be 1 to 60 of letters, digits, '.', '_' and '-'")
    found = _TARGET.fullmatch(target or settings.topics[0])
    if found is None:
        raise UsageError(
            f"{target!r} should be TOPIC, TOPIC:PARTITION or TOPIC:PARTITION:FIRST-NEXT"
        )
    offsets = _offsets(found["first"], found["next"])
    now = datetime.now(UTC)
    return Scope(
        topic=found["topic"],
        name=name or f"replay-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        reason=reason.strip(),
        partition=int(found["partition"]) if found["partition"] else None,
        offsets=offsets,
        begin=_past("--from", begin, now),
        end=_past("--to", end, now),
        account=account,
        key=key,
        forced=force,
        below_committed=below_committed,
    )


def _offsets(first: str | None, next_: str | None) -> Range | None:
    if first is None or next_ is None:
        return None
    if int(next_) <= int(first):
        raise UsageError(f"{first}-{next_} holds no offset: NEXT is the first that is not replayed")
    return int(first), int(next_)


def _past(option: str, moment: datetime | None, now: datetime) -> datetime | None:
    if moment is not None and moment > now:
        raise UsageError(
            f"{option} {moment.isoformat()} is in the future: nothing of it is in the log yet"
        )
    return moment
