"""`ingester reconcile`: whether Kafka, the receipts and PacSpace agree; changes nothing."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Collection, Sequence
from typing import Annotated

import typer

from ingester.arguments import AsJson, ConfigFile, print_json
from ingester.audit.auditing import Audit, Auditor
from ingester.audit.comparison import AuditSettings, Comparison, trails
from ingester.audit.doubts import Standing, all_standings, halts_of
from ingester.audit.under_way import of_group
from ingester.commands.reconcile_report import Reconciliation, coverage_lines, document, lines
from ingester.config import load
from ingester.core.receipt import Receipt
from ingester.core.record import TopicPartition
from ingester.core.start import is_to_be_judged
from ingester.errors import (
    EXIT_MISMATCH,
    EXIT_OK,
    EXIT_PENDING,
    ConfigurationError,
    IngesterError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from ingester.kafka.admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.output import whoever_reads
from ingester.pacspace import PATHLESS_KEYS
from ingester.tables import counted

_SCOPE = re.compile(r"(?P<topic>[^:]+)(:(?P<partition>\d{1,9}))?", re.ASCII)
_EXIT_CODES = {"agreed": EXIT_OK, "discrepancy": EXIT_MISMATCH, "pending": EXIT_PENDING}


def reconcile(
    scope: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TOPIC[:PARTITION]",
            help="Whose offsets to judge, and whose keys; everything unless given.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Compare this key alone; may be repeated."),
    ] = None,
    account: Annotated[
        str | None,
        typer.Option(
            metavar="ACCOUNT", help="Compare the keys that are this account's, says PacSpace."
        ),
    ] = None,
    from_topic: Annotated[
        bool, typer.Option("--from-topic", help="Add the events up from Kafka itself, too.")
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Compare Kafka, the receipts and PacSpace.

    Coverage: each offset below the committed one is in exactly one receipt, and what a receipt
    counts as dead letters is in the dead-letter topic. Totals: for each key, the bits of all
    receipts are PacSpace's balance. What is in doubt, in flight or not verified yet is pending.
    Totals are always over all topics of INGESTER_TOPIC, for a balance knows no partitions.

    \b
    Examples:
      ingester reconcile
      ingester reconcile --from-topic --json
      ingester reconcile usage:3 usage:4
      ingester reconcile --key usage-acme-2025-06
      ingester reconcile --account acme

    Exit codes: 0 all agree; 1 a discrepancy; 2 something is pending: try again later; 64 the
    command line, or the group has committed nothing; 69 Kafka or PacSpace cannot be reached, there
    are no receipts, or the group is at work and has committed nothing yet; 77 one of
    them refuses the credentials; 78 the settings.
    """
    settings = load(AuditSettings, environ=os.environ, config_file=config).settings
    if settings.receipts == "off":
        raise ConfigurationError(
            "INGESTER_RECEIPTS is off: nothing is written that Kafka and PacSpace could be compared"
            " by."
        )
    asked = [_parse(settings, each) for each in scope or ()]
    found = asyncio.run(
        _reconcile(settings, asked, key or None, account, from_topic=from_topic, as_json=as_json)
    )
    with whoever_reads():
        if as_json:
            print_json(document(found))
        else:
            sys.stdout.write("\n".join(lines(found)) + "\n")
    if code := _EXIT_CODES[found.verdict]:
        raise typer.Exit(code)


def _parse(settings: AuditSettings, scope: str) -> tuple[str, int | None]:
    found = _SCOPE.fullmatch(scope)
    if found is None:
        raise UsageError(f"{scope!r} should be TOPIC or TOPIC:PARTITION")
    if found["topic"] not in settings.topics:
        raise UsageError(
            f"{found['topic']} is none of INGESTER_TOPIC ({', '.join(settings.topics)})"
        )
    return found["topic"], int(found["partition"]) if found["partition"] else None


async def _reconcile(
    settings: AuditSettings,
    asked: Sequence[tuple[str, int | None]],
    keys: Sequence[str] | None,
    account: str | None,
    *,
    from_topic: bool,
    as_json: bool,
) -> Reconciliation:
    admin = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)
    everything = await all_standings(settings, settings.topics)
    _refuse_missing({each.name for each in everything}, asked)
    found = [each for each in everything if each.has_committed or each.start.halt_reason]
    committed = await admin.committed_offsets(settings.group_id)
    settled = [each for each in everything if each.name in committed or _was_replayed(each)]
    chosen = _chosen([each.name for each in settled], asked)
    if not chosen:
        raise await _nothing_committed(settings, admin, asked)
    scope = chosen if asked else None
    before = await of_group(settings)
    auditor = Auditor(settings, scope, keys)
    audit = await auditor.audit(found, from_topic=from_topic)
    compared = Comparison(settings, auditor, audit, account)
    try:
        await compared.compare(_keys_of(audit, scope, keys), before)
    except (RefusedError, UnavailableError):
        if not as_json:
            with whoever_reads():
                sys.stdout.write("\n".join([*coverage_lines(audit, audit.findings), "", ""]))
        raise
    results = sorted(compared.results.values())
    if account is not None and not results and not compared.agreed:
        raise UsageError(
            f"no key of the receipts is the account {account}'s, says PacSpace: is it right?"
        )
    return Reconciliation(
        settings.group_id,
        audit,
        [each for each in compared.doubts if scope is None or each.partition in scope],
        compared.agreed,
        results,
        await trails(settings, audit, results),
        halts=halts_of(found),
        not_asked=compared.not_asked,
    )


def _refuse_missing(
    names: Collection[TopicPartition], asked: Sequence[tuple[str, int | None]]
) -> None:
    for topic, number in asked:
        if number is not None and TopicPartition(topic, number) not in names:
            last = max(each.partition for each in names if each.topic == topic)
            raise UsageError(f"{topic} has no partition {number}; it has 0 to {last}")


def _was_replayed(standing: Standing) -> bool:
    """Whether only replays have settled something of it: then its receipts are what there is."""
    notes = [*enumerate(standing.notes)]
    return not is_to_be_judged(notes) and any(isinstance(each, Receipt) for _, each in notes)


def _chosen(
    settled: Sequence[TopicPartition], asked: Sequence[tuple[str, int | None]]
) -> Collection[TopicPartition]:
    """Return the partitions that are asked about, of those of which something is settled."""
    return {
        name
        for name in settled
        for topic, partition in asked or [(name.topic, None)]
        if name.topic == topic and partition in {None, name.partition}
    }


async def _nothing_committed(
    settings: AuditSettings, admin: KafkaAdmin, asked: Sequence[tuple[str, int | None]]
) -> IngesterError:
    """Say that there is nothing to look at, or nothing yet."""
    where = ", ".join(
        f"{topic}:{number}" if number is not None else topic for topic, number in asked
    )
    nothing = f"has committed nothing of {where or ', '.join(settings.topics)}"
    if members := await admin.members_count(settings.group_id):
        return UnavailableError(
            f"the group {settings.group_id} {nothing} yet, and is at work with"
            f" {counted(members, 'member')}: repeat the command when something is settled."
            " `ingester status` shows how far it is."
        )
    return UsageError(
        f"the group {settings.group_id} {nothing}: is that right, and INGESTER_GROUP_ID?"
    )


def _keys_of(
    audit: Audit, scope: Collection[TopicPartition] | None, keys: Sequence[str] | None
) -> list[str]:
    if keys is not None:
        if not set(keys) - set(PATHLESS_KEYS):
            raise UsageError(f"PacSpace cannot be asked for the balance of {keys[0]!r}")
        return list(dict.fromkeys(keys))
    known = dict.fromkeys([*audit.bits, *(audit.log_bits or ())])
    return [key for key in known if scope is None or key in audit.keys_in_scope]
