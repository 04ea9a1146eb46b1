"""The two documented endpoints as decisions: a request in, an answer or an admitted write out.

A write is admitted first and settled when its latency is over; in between its key is in flight.
Never waits, and never sends anything.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ingester.simulator import answers
from ingester.simulator.answers import Answer
from ingester.simulator.faults import Effect, Misreport, Refuse
from ingester.simulator.ledger import Instant, Ledger, Standing, Write
from ingester.simulator.options import Options
from ingester.simulator.validation import Item, Refusal
from ingester.wire import API_KEY_FORM, API_KEY_HEADER, IDEMPOTENCY_KEY_HEADER


@dataclass(frozen=True, slots=True)
class Posted:
    """A write as it arrived; `content` is what validation made of the body."""

    headers: Mapping[str, str]
    body: bytes
    content: Sequence[Item] | Refusal
    effect: Effect | None


@dataclass(frozen=True, slots=True)
class Admission:
    """A write that nothing stands against; settling it applies it."""

    items: Sequence[Item]
    idempotency_key: str | None
    body_digest: bytes
    effect: Effect | None


class Api:
    """The ledger behind the API's own rules: authentication, idempotency, validation."""

    def __init__(self, options: Options) -> None:
        """Open an empty ledger."""
        self._options = options
        self.reset()

    def reset(self) -> None:
        """Forget everything that was applied; batch ids are not repeated."""
        self.ledger = Ledger(
            run_id=secrets.token_hex(4),
            verify_delay_seconds=self._options.verify_delay_seconds,
        )

    def admit(self, posted: Posted) -> Admission | Answer:
        """Return the write that may be applied, or the answer that ends it here."""
        if (unauthorised := self._unauthorised(posted.headers)) is not None:
            return unauthorised
        key = posted.headers.get(IDEMPOTENCY_KEY_HEADER)
        if self._options.idempotency == "ignore":
            key = None
        digest = hashlib.blake2b(posted.body, digest_size=16).digest()
        if self._options.key_lookup == "before":
            answer = self._known(key, digest) or _refused(posted)
        else:
            answer = _refused(posted) or self._known(key, digest)
        if answer is not None:
            return answer
        assert not isinstance(posted.content, Refusal)
        if key is not None:
            self.ledger.begin(key, digest)
        return Admission(posted.content, key, digest, posted.effect)

    def settle(self, admission: Admission, now: Instant) -> Answer:
        """Apply an admitted write and return its acknowledgement."""
        write = self.ledger.apply(
            admission.items,
            idempotency_key=admission.idempotency_key,
            body_digest=admission.body_digest,
            now=now,
        )
        return self._acknowledged(write, admission.effect)

    def read(self, headers: Mapping[str, str], key: str, now: Instant) -> Answer:
        """Return the record of a key as it is now."""
        if (unauthorised := self._unauthorised(headers)) is not None:
            return unauthorised
        if (bucket := self.ledger.bucket(key)) is None:
            return answers.refusal(404, f"No record found for key: {key}")
        return answers.record(key, bucket, verified=self.ledger.is_verified(bucket, now))

    def _unauthorised(self, headers: Mapping[str, str]) -> Answer | None:
        key = headers.get(API_KEY_HEADER)
        if key is None:
            return answers.refusal(401, f"Missing API key: send it as {API_KEY_HEADER}")
        if not API_KEY_FORM.fullmatch(key):
            return answers.refusal(401, "Malformed API key: expected pk_{live|test}_PUBLIC.SECRET")
        if self._options.api_key not in {None, key}:
            return answers.refusal(401, "Invalid or disabled API key")
        return None

    def _known(self, key: str | None, digest: bytes) -> Answer | None:
        match self.ledger.lookup(key, digest) if key is not None else None:
            case Standing.CONFLICT:
                return answers.conflict()
            case Standing.IN_FLIGHT:
                return answers.pending()
            case Write() as write:
                return self._acknowledged(write, None)
            case None:
                return None

    def _acknowledged(self, write: Write, effect: Effect | None) -> Answer:
        flaw = effect.flaw if isinstance(effect, Misreport) else None
        return answers.acknowledgement(
            write,
            id_field=self._options.id_field,
            item_count=write.items + 1 if flaw == "wrong_item_count" else None,
            with_id=flaw != "missing_id",
        )


def _refused(posted: Posted) -> Answer | None:
    if isinstance(posted.effect, Refuse):
        effect = posted.effect
        message = effect.message or "Validation failed: refused by a fault rule"
        return answers.refusal(effect.status, message, code=effect.code)
    if isinstance(posted.content, Refusal):
        return answers.refusal(400, posted.content.message)
    return None
