"""How the standing of a group is told: what needs somebody, a table, a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from ingester.audit.overview import Asked, Overview, PartitionView
from ingester.commands.doubt_report import command
from ingester.core.receipt import Replay
from ingester.moments import age, age_seconds, iso
from ingester.tables import Table, counted, harmless, sentence

_HEADINGS: Final = (
    "PARTITION", "COMMITTED", "END", "LAG", "BEHIND", "OLDEST", "IN DOUBT", "WORKER", "STATE",
)  # fmt: skip
_LISTED_MAX: Final = 10  # partitions in one sentence


def needs(seen: Overview) -> Iterator[str]:
    """What needs somebody, in sentences that say what to do; nothing where all is well."""
    for worker in seen.workers:
        yield from _needs_of_worker(worker)
    unattended = [
        each
        for each in seen.partitions
        if _waits(each) and not each.standing.owner and each.awaited is None
    ]
    if unattended and seen.state in {"Empty", "Dead"}:
        yield _unattended(unattended, seen.group_id)
    elif unattended and seen.state == "Stable":
        yield (
            f"no worker has {_listed(unattended)}, though the group has members: do they read other"
            " topics (INGESTER_TOPIC)?"
        )
    for replay, views in _awaited(seen).items():
        if not seen.replay_hosts[replay.name]:
            yield _left_behind(replay, views)
    for each in seen.partitions:
        yield from _needs_of_partition(each, seen)


def _awaited(seen: Overview) -> Mapping[Replay, Sequence[PartitionView]]:
    """The replays for which partitions wait, by the first claim of each that is met."""
    found: dict[str, tuple[Replay, list[PartitionView]]] = {}
    for each in seen.partitions:
        if each.awaited is not None:
            found.setdefault(each.awaited.name, (each.awaited, []))[1].append(each)
    return dict(found.values())


def _left_behind(replay: Replay, views: Sequence[PartitionView]) -> str:
    give_up = "; ".join(
        command(each.name, each.standing.start.offset, "resend") for each in views[:_LISTED_MAX]
    )
    return (
        f"the replay {replay.name} of {_listed(views)} began at {replay.at}, has not ended, and"
        " nobody carries it out: workers wait for it. `ingester replay --plan FILE` continues it"
        f" (its plan is in {replay.name}.replay.json where it was begun, unless --save said"
        f" otherwise). To give it up: {give_up}"
    )


def _unattended(views: Sequence[PartitionView], group_id: str) -> str:
    have = f"{_listed(views)} {'has' if len(views) == 1 else 'have'} something to settle"
    claim = next((each.standing.claim for each in views if each.standing.claim), None)
    if claim is not None:
        return (
            f"nobody carries out the replay {claim.name}, and {have}: `ingester replay --plan FILE`"
            " continues it, or says why it cannot."
        )
    return (
        f"no worker is in the group {group_id}, and {have}: start one (`ingester run`), or correct"
        " INGESTER_GROUP_ID."
    )


def _needs_of_worker(worker: Asked) -> Iterator[str]:
    report = worker.report
    if worker.problem is not None:
        yield f"the worker at {worker.address}: {worker.problem}."
    elif report is not None and report.blocked is not None:
        yield (
            f"PacSpace refuses everything of the worker at {worker.address}:"
            f" {harmless(report.blocked)}. `ingester check` says what to do."
        )


def _needs_of_partition(view: PartitionView, seen: Overview) -> Iterator[str]:
    name, report, standing = view.name, view.report, view.standing
    if view.awaited is not None:
        return
    if view.halted:
        yield (
            f"{name} has halted: {sentence(view.halted)} `ingester resolve {name}` says how it goes"
            " on."
        )
        return
    if standing.commit.next_offset > standing.log_ends:
        yield (
            f"{name}: the committed offset {standing.commit.next_offset} is beyond the end of the"
            f" log, {standing.log_ends}. Was the topic made anew?"
        )
    if report is not None and report.write_refused:
        yield f"{name}: {report.write_refused}."
    if report is not None and report.stalled:
        yield (
            f"{name} is behind, and does not move: the log of its worker says what it waits for"
            " (partition.stalled)."
        )
    since = _doubts_since(view)
    if since is not None and (seen.looked_at - since).total_seconds() > seen.stall_seconds:
        yield (
            f"{name} has had batches in doubt since {iso(since, 'seconds')}:"
            f" `ingester resolve {name}` shows them. A worker that is well, with a PacSpace that"
            " answers, settles them by itself."
        )


def _waits(view: PartitionView) -> bool:
    return view.oldest_offset is not None or bool(view.in_doubt)


def _listed(views: Sequence[PartitionView]) -> str:
    shown = ", ".join(str(each.name) for each in views[:_LISTED_MAX])
    more = len(views) - _LISTED_MAX
    return f"{shown} and {more} more" if more > 0 else shown


def lines(seen: Overview) -> Iterator[str]:
    """What a person reads."""
    hosts = ", ".join(f"{each.host} ({len(each.partitions)})" for each in seen.members)
    members = f"{counted(len(seen.members), 'member')}{': ' if hosts else ''}{hosts}"
    if seen.state == "Dead":
        yield f"Group {seen.group_id}: there is none of that name in Kafka"
    else:
        yield f"Group {seen.group_id}: {seen.state.lower()}, {members}"
    yield from Table(_HEADINGS).lines([_row(each, seen) for each in seen.partitions])
    for worker in seen.workers:
        yield from _worker_lines(worker)
    for replay, views in _awaited(seen).items():
        if hosts := ", ".join(seen.replay_hosts[replay.name]):
            yield (
                f"The replay {replay.name} is at work at {hosts}, on {_listed(views)}: workers"
                " wait for its end, and go on by themselves"
            )
    yield ""
    found = [*needs(seen)]
    unknown = not_known(seen)
    if not found:
        lag = sum(each.lag for each in seen.partitions)
        are = "is" if lag == 1 else "are"
        as_far = ", as far as Kafka knows" if unknown else ""
        yield f"Nothing needs somebody{as_far}; {counted(lag, 'offset')} {are} still to be settled."
    for each in found:
        yield f"! {each}"
    if unknown:
        yield unknown


def not_known(seen: Overview) -> str | None:
    """What nobody has said because no worker of the group has answered; None where one has."""
    if not seen.members or any(each.problem is None for each in seen.workers):
        return None
    where = ", ".join(map(str, seen.unanswered))
    asked = f"none answered at {where}" if where else "none was asked (INGESTER_HTTP_LISTEN is off)"
    return (
        "Whether partitions have halted or stalled, or PacSpace refuses everything, is known to the"
        f" workers alone, and {asked}: name theirs with --worker HOST:PORT."
    )


def _row(view: PartitionView, seen: Overview) -> Sequence[str]:
    standing, doubts = view.standing, view.in_doubt
    since = _doubts_since(view)
    in_doubt = counted(len(doubts), "batch", "batches")
    items = "" if view.items is None else f", {counted(view.items, 'item')}"
    return (
        str(view.name),
        str(standing.commit.next_offset) if standing.has_committed else "-",
        str(standing.log_ends),
        str(view.lag),
        age(view.oldest_time, seen.looked_at),
        "-" if view.oldest_offset is None else str(view.oldest_offset),
        f"{in_doubt}{items}, {age(since, seen.looked_at)}" if doubts else "-",
        standing.owner or "-",
        _state(view),
    )


def _state(view: PartitionView) -> str:
    report = view.report
    if view.awaited is not None:
        return "awaits replay"
    if view.halted:
        return "halted"
    if report is not None and report.write_refused:
        return "write refused"
    if report is not None and report.stalled:
        return "stalled"
    if not _waits(view):
        return "settled"
    return "settling" if view.standing.owner else "nobody has it"


def _worker_lines(worker: Asked) -> Iterator[str]:
    report = worker.report
    if report is None or worker.problem is not None:
        yield f"Worker at {worker.address}: {worker.problem}"
        return
    yield (
        f"Worker at {worker.address}: {counted(len(report.partitions), 'partition')},"
        f" {counted(report.requests_in_flight, 'request')} in flight"
    )
    if report.blocked is not None:
        yield f"  blocked: {harmless(report.blocked)}"
    if report.held_for is not None:
        yield f"  nothing is sent before {report.held_until}: {harmless(report.held_for)}"


def document(seen: Overview) -> dict[str, object]:
    """What a program reads."""
    found = [*needs(seen)]
    return {
        "group": seen.group_id,
        "state": seen.state,
        "lookedAt": iso(seen.looked_at, "seconds"),
        "needsSomebody": found,
        "notKnown": not_known(seen),
        "replays": [
            {
                "name": replay.name,
                "startedAt": replay.at,
                "atWorkAt": seen.replay_hosts[replay.name],
                "partitions": [str(each.name) for each in views],
            }
            for replay, views in _awaited(seen).items()
        ],
        "members": [
            {
                "id": each.member_id,
                "host": each.host,
                "partitions": [str(name) for name in each.partitions],
            }
            for each in seen.members
        ],
        "partitions": [_partition(each, seen) for each in seen.partitions],
        "workers": [
            {"address": str(each.address), "problem": each.problem, "status": each.report}
            for each in seen.workers
        ],
    }


def _partition(view: PartitionView, seen: Overview) -> dict[str, object]:
    standing, report = view.standing, view.report
    since = _doubts_since(view)
    return {
        "topic": view.name.topic,
        "partition": view.name.partition,
        "committedOffset": standing.commit.next_offset if standing.has_committed else None,
        "logBegins": standing.log_begins,
        "logEnds": standing.log_ends,
        "lag": view.lag,
        "lagSeconds": age_seconds(view.oldest_time, seen.looked_at),
        "oldestUncommitted": None
        if view.oldest_offset is None
        else {"offset": view.oldest_offset, "time": iso(view.oldest_time, "seconds")},
        "inDoubt": {
            "batches": len(view.in_doubt),
            "items": view.items if view.in_doubt else 0,
            "since": iso(since, "seconds"),
        },
        "worker": standing.owner,
        "state": _state(view),
        "halted": view.halted,
        "writeRefused": report.write_refused if report else None,
        "stalled": report.stalled if report else None,
    }


def _doubts_since(view: PartitionView) -> datetime | None:
    if not view.in_doubt:
        return None
    return datetime.fromtimestamp(min(each.intended_at for each in view.in_doubt), UTC)
