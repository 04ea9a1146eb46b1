"""Whether what receipts say of a key is what PacSpace has, and where to look if it is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ingester.core.intent import Range
from ingester.core.receipt import Receipt
from ingester.core.record import TopicPartition

_SUSPECTS_MAX = 10  # of one key: enough to look at


class Slack(NamedTuple):
    """By how much a balance may differ from the receipts because of what is under way."""

    least: int = 0
    most: int = 0

    def widened(self, bits: int) -> Slack:
        """Allow for one more batch that may have been counted or not."""
        return Slack(self.least + min(0, bits), self.most + max(0, bits))

    def allows(self, difference: int) -> bool:
        """Whether what is under way can be the reason."""
        return self.least <= difference <= self.most


Agreement = Literal["agreed", "pending", "mismatch", "unknown_key"]


def agreement_of(expected: int, balance: int | None, *, verified: bool, slack: Slack) -> Agreement:
    """Compare what receipts add up to with a balance, which is None where PacSpace has none."""
    if balance is None:
        return "unknown_key"
    if balance != expected:
        return "pending" if not verified or slack.allows(balance - expected) else "mismatch"
    return "agreed" if verified else "pending"


class KeyResult(NamedTuple):
    """What there is of one key on each side."""

    key: str
    account: str | None
    """The one that PacSpace names."""
    receipts: int
    log: int | None
    """What the log adds up to; None where it was not read."""
    balance: int | None
    """None for a key that PacSpace does not know."""
    verified: bool
    slack: Slack = Slack()
    again: int = 0
    """What of the receipts' sum replays have counted again by force: no part of the log's."""

    def widened(self, bits: int) -> KeyResult:
        """Allow for a batch that is, or was meanwhile, under way."""
        return self._replace(slack=self.slack.widened(bits))

    @property
    def difference(self) -> int:
        """PacSpace's less that of the receipts."""
        return (self.balance or 0) - self.receipts

    @property
    def status(self) -> Agreement:
        """Whether it agrees; so must receipts and log, where that was read."""
        if self.log is not None and self.log + self.again != self.receipts:
            return "mismatch"
        return agreement_of(self.receipts, self.balance, verified=self.verified, slack=self.slack)

    @property
    def may_settle(self) -> bool:
        """Whether a look at the balance may find that it agrees by now."""
        return self.balance is not None and self.balance != self.receipts


class Suspect(NamedTuple):
    """A receipt that a difference may come from, and why."""

    partition: TopicPartition
    range: Range
    bits: int
    """Those of the key in question."""
    reason: str


@dataclass(slots=True)
class KeyTrail:
    """Where a key occurs, and which receipts can be why its balance differs."""

    key: str
    difference: int
    """PacSpace's less the receipts'."""
    is_in_gaps: bool = False
    """Whether records without a receipt hold as much: then no receipt is suspected."""
    extents: dict[TopicPartition, Range] = field(default_factory=dict)
    """From its first receipt to its last."""
    receipts: int = 0
    suspects: list[Suspect] = field(default_factory=list)

    def add(self, receipt: Receipt) -> None:
        """Take a receipt that names the key."""
        name = TopicPartition(receipt.topic, receipt.partition)
        range_ = receipt.range
        known = self.extents.get(name, range_)
        self.extents[name] = (min(known[0], range_[0]), max(known[1], range_[1]))
        self.receipts += 1
        bits = receipt.bits_by_key[self.key]
        reason = None if self.is_in_gaps else self._reason(receipt, bits)
        if reason is not None and len(self.suspects) < _SUSPECTS_MAX:
            self.suspects.append(Suspect(name, range_, bits, reason))

    def _reason(self, receipt: Receipt, bits: int) -> str | None:
        if bits == self.difference and receipt.in_doubt:
            return "holds as much, and may have been applied before it was acknowledged"
        if bits == -self.difference:
            return "holds as much as PacSpace lacks"
        if bits == self.difference:
            return "holds as much as PacSpace has too much"
        if receipt.in_doubt:
            return "may have been applied before it was acknowledged"
        return None
