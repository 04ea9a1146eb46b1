"""What a round of the torture came to, as data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Death:
    """A worker that was stopped in mid-step, or killed, and what it left."""

    point: str
    worker: str
    receipts: int
    """How many Idempotency-Keys had a receipt by then."""
    seconds: float
    """From its start to its end."""
    arrivals: int | None
    """Requests that the endpoint had seen by then; None for a kill, after which all are its."""

    @property
    def killed(self) -> bool:
        """False for what was suspended, or ended by itself or when it was asked to."""
        return self.arrivals is None


@dataclass(slots=True)
class Outcome:
    """What a round came to."""

    name: str
    honours_keys: bool
    in_doubt_policy: str
    seconds: float = 0.0
    events: int = 0
    requests: int = 0
    deaths: list[Death] = field(default_factory=list)
    in_doubt: dict[str, int] = field(default_factory=dict)
    """By point: batches that had reached the endpoint and had no receipt."""
    resent: dict[str, int] = field(default_factory=dict)
    """By point: those of them that came again."""
    doubles: dict[str, int] = field(default_factory=dict)
    """By point: those of them that were counted again."""
    own_exits: dict[int, int] = field(default_factory=dict)
    """Exit codes of workers that nobody had asked to end."""
    halted: int = 0
    tracebacks: int = 0
    """Log lines that carry one, and should not."""
    violations: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """How many workers were killed."""
        return sum(death.killed for death in self.deaths)
