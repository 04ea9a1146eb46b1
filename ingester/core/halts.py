"""When a partition has to halt, and what is said of it to whoever has to judge.

Each function returns the reason, or None where there is none. What a partition cannot even begin
with, its start says.
"""

from __future__ import annotations

from ingester.core.batch import Batch
from ingester.core.delivery import InDoubt, Outcome, Refused
from ingester.core.dispatch import Delivery
from ingester.core.messages import Limits, Start
from ingester.core.partition import Partition

_LISTED_MAX = 5  # ranges in a sentence; `ingester resolve` shows all of them


def inherited_doubt(start: Start, wall_seconds: float, limits: Limits) -> str | None:
    """What a former owner left in doubt, and must not be sent again unless somebody says so."""
    in_doubt = [
        each
        for each in start.ledger.intents
        if not any(
            each.range in ranges for ranges in (start.settled, start.acknowledged, start.resent)
        )
    ]
    if not in_doubt:
        return None
    ranges = ", ".join(map(str, in_doubt[:_LISTED_MAX]))
    if len(in_doubt) > _LISTED_MAX:
        ranges += f" and {len(in_doubt) - _LISTED_MAX} more"
    if limits.in_doubt == "halt":
        return f"in doubt, and INGESTER_IN_DOUBT is halt: {ranges}"
    since = min(each.intended_at for each in in_doubt)
    if wall_seconds - since > limits.idempotency_window_seconds:
        return _perhaps_forgotten(ranges, limits)
    return None


def forgotten_key(delivery: Delivery, now: float, limits: Limits) -> str | None:
    """A key that PacSpace may have forgotten would protect nothing."""
    since = delivery.in_doubt_since
    if since is None or now - since <= limits.idempotency_window_seconds:
        return None
    return _perhaps_forgotten(str(delivery.batch), limits)


def doubtful_answer(batch: Batch, outcome: Outcome, limits: Limits) -> str | None:
    """An attempt whose end is not known, where no other may follow it."""
    if isinstance(outcome, InDoubt) and limits.in_doubt == "halt":
        return f"{batch} is in doubt, and INGESTER_IN_DOUBT is halt: {outcome.reason}"
    return None


def doubtful_refusal(delivery: Delivery, refused: Refused) -> str | None:
    """A refusal after which something may have been applied under the key, or was."""
    if delivery.in_doubt and not refused.is_api:
        detail = "after an attempt whose end is not known, and not by PacSpace itself"
    elif refused.meaning == "conflict":
        detail = "the key was used before with another body"
    else:
        return None
    return f"{delivery.batch} is in doubt ({detail}): {refused.reason}"


def other_records(part: Partition) -> str | None:
    """A log that does not hold what was sent, or settled, before."""
    lost, proof = part.builder.lost, part.coverage.mistaken
    if lost is not None:
        return (
            f"in doubt: {lost} was sent by a former"
            " owner, and cannot be formed again as it was: the log does not hold all of its"
            " records any more, or INGESTER_UNKNOWN_MEMBERS or INGESTER_BODY_BYTES_MAX"
            " were changed. To go on without it:"
            f" ingester resolve {part.name}:{lost.first_offset} --as skipped"
        )
    if proof is not None:
        return (
            f"the receipts say that {part.name}{proof} is settled, and the log holds other records"
            " there than those that were: the topic was made anew. Give it another receipts topic"
            " (INGESTER_RECEIPTS_TOPIC), or delete the old one once nobody needs it"
        )
    return None


def refused_and_gone(batch: Batch) -> str:
    """A refused batch whose records cannot be looked into."""
    return (
        f"{batch} was refused, and the log does not hold all of its records any more, or"
        " they cannot be read, so that the one at fault cannot be found"
    )


def _perhaps_forgotten(ranges: str, limits: Limits) -> str:
    return (
        f"in doubt for longer than {limits.idempotency_window_seconds:g} s, after which"
        f" PacSpace may have forgotten its key (INGESTER_IDEMPOTENCY_WINDOW_SECONDS): {ranges}"
    )
