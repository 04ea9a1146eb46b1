"""What a simulator can be told at its start; frozen, without a word about where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ingester.simulator.faults import Rule

IdField = Literal["batchId", "requestId"]
Idempotency = Literal["honour", "ignore"]
KeyLookup = Literal["before", "after"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the stand-in listens and behaves; the defaults are the API as documented."""

    host: str = "127.0.0.1"
    port: int = 8099
    """0 picks a free one."""

    verify_delay_seconds: float = 0.0
    """How long after its latest write a record reads `verified: false`."""

    id_field: IdField = "batchId"
    """PacSpace's documentation has spelt the acknowledgement's id in both ways."""

    idempotency: Idempotency = "honour"
    """`ignore` is an endpoint that has never heard of `Idempotency-Key`: a retry counts twice."""

    key_lookup: KeyLookup = "before"
    """Whether `Idempotency-Key` is looked up before or after the body is validated."""

    items_max: int = 1_000
    body_bytes_max: int = 8 * 1024 * 1024
    """Both limits are ours: PacSpace documents none. The last value allowed is accepted."""

    latency_seconds: float = 0.0
    """Between receiving a request and applying it."""

    faults: tuple[Rule, ...] = ()
    seed: int = 0
    """Decides which requests a rule with a probability takes."""

    api_key: str | None = field(default=None, repr=False)
    """The only key that is let in; without one, every key of the right form is."""
