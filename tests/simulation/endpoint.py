"""The API with every ambiguity: what it applies, what it says, and when, are three things."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ingester.core.batch import Batch
from ingester.core.delivery import Answer, AnswerLost, Response
from tests.simulation.oracle import Oracle
from tests.simulation.plan import Plan

_PROCESSING_SECONDS_MAX = 5.0


@dataclass(slots=True)
class _Known:
    """What the endpoint remembers of a key."""

    body: bytes
    batch_id: str
    applied_at: float | None
    """None while it is processed."""


class Endpoint:
    """Holds the keys; the sums are the oracle's."""

    def __init__(
        self,
        random: Random,
        plan: Plan,
        oracle: Oracle,
        clock: Callable[[], float],
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._random = random
        self._plan = plan
        self._oracle = oracle
        self._clock = clock
        self._later = later
        self._known: dict[str, _Known] = {}
        self._batches_count = 0
        self.kind = False
        self.poison: set[bytes] = set()  # items that it does not take
        self.body_bytes_max: int | None = None
        self.phase: str | None = None  # what happens to every request, while there is an outage

    def fate(self) -> str:
        """Draw what will happen to a request."""
        if self.kind:
            return "acknowledged"
        if self.phase is not None:
            return self.phase
        answers = self._plan.answers
        return self._random.choices(list(answers), list(answers.values()))[0]

    def arrive(self, batch: Batch, key: str, fate: str) -> Answer:
        """Take a request and say what its sender hears, if its answer comes in time."""
        if fate != "pending":
            self._oracle.arrived(batch)
        if fate == "request_lost":
            return AnswerLost("the request was lost")
        if fate == "proxied":
            self._oracle.refused(batch)
            return Response(self._random.choice([400, 413, 422]), {}, b"<html>no</html>")
        if fate == "failed_before":
            return _error(self._random.choice([500, 503]), self._wait())
        known = self._look_up(key)
        if known is not None and self._plan.looked_up_first:
            return self._answer_known(known, batch, fate)
        refusal = 400 if fate == "refused" else self._refusal(batch)
        if refusal is not None:
            self._arrived_if_pending(batch, fate)
            self._oracle.refused(batch)
            return _error(refusal, None)
        if fate in _REFUSALS:
            return _error(_REFUSALS[fate], self._wait() if fate == "throttled" else None)
        if known is not None:
            return self._answer_known(known, batch, fate)
        return self._take(batch, key, fate)

    def _refusal(self, batch: Batch) -> int | None:
        if self.body_bytes_max is not None and len(batch.body) > self.body_bytes_max:
            return 413
        if any(item in batch.body for item in self.poison):
            return self._random.choice([400, 422])
        return None

    def _arrived_if_pending(self, batch: Batch, fate: str) -> None:
        if fate == "pending":
            self._oracle.arrived(batch)

    def _look_up(self, key: str) -> _Known | None:
        if self._plan.keys == "ignored":
            return None
        known = self._known.get(key)
        if known is None or known.applied_at is None:
            return known
        if self._plan.keys == "forgotten":
            age = self._clock() - known.applied_at
            return known if age <= self._plan.key_memory_seconds else None
        return known

    def _answer_known(self, known: _Known, batch: Batch, fate: str) -> Answer:
        self._arrived_if_pending(batch, fate)
        if known.body != batch.body:
            return _error(409, None)
        if known.applied_at is None:
            return _pending(self._wait())
        return self._say(known.batch_id, batch, fate)

    def _take(self, batch: Batch, key: str, fate: str) -> Answer:
        self._batches_count += 1
        known = _Known(batch.body, f"batch_{self._batches_count}", None)
        self._known[key] = known
        if fate == "pending":

            def process() -> None:
                self._oracle.arrived(batch)
                self._apply(batch, known)

            self._later(self._random.random() * _PROCESSING_SECONDS_MAX, process)
            return _pending(self._wait())
        self._apply(batch, known)
        return self._say(known.batch_id, batch, fate)

    def _apply(self, batch: Batch, known: _Known) -> None:
        known.applied_at = self._clock()
        self._oracle.applied(batch)

    def _say(self, batch_id: str, batch: Batch, fate: str) -> Answer:
        match fate:
            case "answer_lost":
                return AnswerLost("the answer was lost")
            case "failed_after":
                return _error(self._random.choice([500, 502, 504]), self._wait())
            case "nonsense":
                return Response(202, {}, b'{"data":{"status":"queued"}}')
        member = self._random.choice(["batchId", "requestId"])
        data = {member: batch_id, "itemCount": batch.items_count}
        return Response(202, {}, json.dumps({"statusCode": 202, "data": data}).encode())

    def _wait(self) -> float | None:
        return None if self.kind else self._random.choice([None, None, 0.0, 0.5, 8.0])


_REFUSALS = {"throttled": 429, "blocked": 401}


def _error(status: int, retry_after_seconds: float | None) -> Response:
    details: dict[str, object] = {"statusCode": status, "message": "unkind"}
    if retry_after_seconds is not None:
        details["retryAfterSeconds"] = retry_after_seconds
    return Response(status, {}, json.dumps(details).encode())


def _pending(retry_after_seconds: float | None) -> Response:
    details: dict[str, object] = {"code": "IDEMPOTENCY_PENDING", "message": "wait"}
    if retry_after_seconds is not None:
        details["retryAfterSeconds"] = retry_after_seconds
    return Response(202, {}, json.dumps({"error": details}).encode())
