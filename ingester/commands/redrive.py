"""`ingester dlq redrive`: send what was dead-lettered, corrected, by the way of everything else.

A redrive is a replay of the dead-letter topic. Its receipts mark what was sent; a letter that is
refused again stays the letter that it is, and nothing is written about it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from ingester.arguments import AsJson, ConfigFile, announce, print_json
from ingester.audit.letters import made_anew
from ingester.backfill.plan import Plan, save
from ingester.backfill.redrive_plan import choose, plans_of, refuse_if_under_way
from ingester.backfill.redrive_report import continuing, document, lines, summary_lines
from ingester.backfill.run import carried_out
from ingester.commands.letter_options import (
    Accounts,
    Codes,
    DeadLetteredFrom,
    DeadLetteredTo,
    From,
    Keys,
    Sources,
    Statuses,
    To,
    choice_of,
)
from ingester.config import load
from ingester.core.mapping import correction_of
from ingester.errors import EXIT_MISMATCH, ConfigurationError, UsageError
from ingester.log_lines import configure_command_logging
from ingester.settings import Settings


def redrive(
    code: Codes = None,
    account: Accounts = None,
    key: Keys = None,
    status: Statuses = None,
    source: Sources = None,
    from_: From = None,
    to: To = None,
    dead_lettered_from: DeadLetteredFrom = None,
    dead_lettered_to: DeadLetteredTo = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="MEMBER=TEMPLATE", help="Correct a member; may be repeated."),
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(metavar="MEMBER", help="Leave a member out; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")
    ] = False,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why; kept with the receipts.")
    ] = "redriven",
    save_to: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Where the plan is kept.")
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Send dead letters again, corrected.

    Filters choose as those of `ingester dlq list`; ACCOUNT and KEY are those of the value as it is.
    Of a record that has several letters the first is sent, and none that a redrive has sent. What a
    receipt shows as counted is passed, and so is what a worker or a replay has still to settle.
    Whatever is no usage event still, or is refused again, stays the dead letter that it is.

    A TEMPLATE is text with {member} or {member.member} of the value in it, as it was; {{ and }} are
    braces. `bits` takes text or a number that is whole. Other members than the four of an event
    have to be removed, unless INGESTER_UNKNOWN_MEMBERS is ignore.

    \b
    Examples:
      ingester dlq redrive --code refused --account acme --dry-run
      ingester dlq redrive --code wrong_type --set bits={bits}
      ingester dlq redrive --code missing_member --set key=usage-{accountId}-2025-06
      ingester dlq redrive --set metadata.region={region} --remove region

    A plan is written to a file before anything is sent; after an interruption, kill -9 included,
    `ingester replay --plan FILE` continues it.

    Exit codes: 0 all of them sent, or nothing to send; 1 some of them are refused still; 64 the
    command line; 69 Kafka cannot be reached; 75 interrupted, or halted: continue with the plan; 77
    Kafka refuses the credentials; 78 the settings, or INGESTER_RECEIPTS is off.
    """
    choice = choice_of(
        code, account, key, status, source, from_, to, dead_lettered_from, dead_lettered_to, False,
    )  # fmt: skip
    sets, removes = set_ or [], remove or []
    try:
        correction_of(sets, removes)
    except ValueError as error:
        raise UsageError(f"--set or --remove {error}") from error
    settings = load(Settings, environ=os.environ, config_file=config).settings
    if settings.receipts == "off":
        raise ConfigurationError(
            "INGESTER_RECEIPTS is off: without receipts nobody knows what was redriven, and a"
            " second run would count everything twice. Set it to on."
        )
    configure_command_logging(settings)
    chosen, letters = uvloop.run(choose(settings, choice, sets, removes))
    plans = plans_of(settings, chosen, letters, sets, removes, reason)
    for plan in () if dry_run else plans:
        refuse_if_under_way(plan, letters)
    files = _saved(plans, save_to) if save_to or not dry_run else {}
    remark = made_anew(letters)
    if remark:
        sys.stderr.write(f"ingester: {remark}\n")
    if not as_json:
        announce([*lines(chosen), *continuing(files)])
    summaries = []
    for plan in () if dry_run else plans:
        summary = uvloop.run(carried_out(settings, plan, files[plan.name], lambda: None))
        summaries.append(summary)
        if not as_json:
            announce(summary_lines(summary))
    if as_json:
        said = document(chosen, plans, summaries)
        print_json(said)
    if chosen.refused or any(each.dead_letters for each in summaries):
        raise typer.Exit(EXIT_MISMATCH)


def _saved(plans: Sequence[Plan], save_to: Path | None) -> Mapping[str, Path]:
    """Write the plans to files; return those by the plans' names."""
    if save_to is not None and len(plans) > 1:
        topics = ", ".join(each.topic for each in plans)
        raise UsageError(
            f"the letters are in several topics ({topics}), and each has a plan: choose with"
            " --source, or leave --save out"
        )
    files = {each.name: save_to or Path(f"{each.name}.json") for each in plans}
    for plan in plans:
        save(plan, files[plan.name])
    return files
