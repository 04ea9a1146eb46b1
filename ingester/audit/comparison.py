"""Compares what the books say of each key with its balance, beside workers that go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from ingester.audit.auditing import Audit, Auditor
from ingester.audit.balances import Answered, NotAsked, read_balances
from ingester.audit.books import notes
from ingester.audit.doubts import DoubtSettings
from ingester.audit.under_way import Attempt, UnderWay, of_group, of_replays
from ingester.core.agreement import KeyResult, KeyTrail
from ingester.core.audit import Finding
from ingester.core.batch import Batch
from ingester.core.receipt import Receipt
from ingester.core.record import TopicPartition
from ingester.pacspace import Balance
from ingester.progress import bar
from ingester.settings import PacspaceSettings

_LOOKS_MAX: Final = 3  # at what differs, while receipts keep coming
_TRAILS_MAX: Final = 100


class AuditSettings(DoubtSettings, PacspaceSettings):
    """Where a group keeps what it has settled, and whom to ask for balances."""


class Comparison:
    """Of what the books say of each key with its balance; only what does not agree is kept."""

    def __init__(
        self, settings: AuditSettings, auditor: Auditor, audit: Audit, account: str | None
    ) -> None:
        self._settings = settings
        self._auditor = auditor
        self._audit = audit
        self._account = account
        self.agreed = 0
        self.results: dict[str, KeyResult] = {}
        self.not_asked: dict[str, str] = {}
        """Keys whose balance cannot be asked for, and why."""
        self.doubts: list[Finding] = []

    async def compare(self, keys: Sequence[str], before: UnderWay) -> None:
        """Read all balances, and again those that differ while there is news of them.

        `before` is what the group had under way before the books were read.
        """
        before = {**before, **await of_replays(self._settings, self._audit.open_replays)}
        await self._read(keys)
        now: UnderWay = {}
        for look in range(_LOOKS_MAX):
            # A replay may have begun, whose claim has to be known; and what is settled while it is
            # looked at what is under way has its receipts afterwards, so that nothing is missed.
            receipts = [*await self._auditor.catch_up(self._audit)]
            now = await self._under_way()
            receipts += await self._auditor.catch_up(self._audit)
            self._excuse(receipts, now)
            again = [key for key, each in self.results.items() if each.may_settle]
            if not receipts or not again or look + 1 == _LOOKS_MAX:
                break
            for key in again:
                del self.results[key]
            await self._read(again)
        self.doubts = [doubt(each, now[each]) for each in now if each in before]

    async def _under_way(self) -> UnderWay:
        replays = await of_replays(self._settings, self._audit.open_replays)
        return {**await of_group(self._settings), **replays}

    async def _read(self, keys: Sequence[str]) -> None:
        with bar("balances read", len(keys)) as advance:

            def take(key: str, balance: Answered) -> None:
                advance(1)
                self._take(key, balance)

            await read_balances(self._settings, keys, take)

    def _take(self, key: str, balance: Answered) -> None:
        if isinstance(balance, NotAsked):
            self.not_asked[key] = balance.reason
            return
        audit = self._audit
        known = balance if isinstance(balance, Balance) else None
        if known is not None and self._account not in {None, known.account_id}:
            return
        result = KeyResult(
            key,
            known.account_id if known else None,
            audit.bits.get(key, 0),
            None if audit.log_bits is None else audit.log_bits.get(key, 0),
            known.current_bits if known else None,
            known.verified if known else False,
            again=audit.bits_again.get(key, 0),
        )
        if result.status == "agreed":
            self.agreed += 1
        else:
            self.results[key] = result

    def _excuse(self, receipts: Sequence[Receipt], now: UnderWay) -> None:
        """Widen what each key may differ by, and count what has come to be receipted."""
        moved = {
            (each.partition, each.intent.range, each.replay): batch.bits_by_key
            for each, batch in now.items()
            if batch is not None
        }
        for receipt in receipts:
            name = TopicPartition(receipt.topic, receipt.partition)
            moved[name, receipt.range, receipt.replay] = receipt.bits_by_key
        for bits_by_key in moved.values():
            for key in bits_by_key.keys() & self.results.keys():
                self.results[key] = self.results[key].widened(bits_by_key[key])
        audit = self._audit
        for receipt in receipts:
            beside = audit.bits_again if receipt.forced else audit.log_bits or {}
            for key, bits in receipt.bits_by_key.items():
                if receipt.forced:
                    beside.setdefault(key, 0)
                for each in (audit.bits, beside):
                    if key in each:
                        each[key] += bits


async def trails(
    settings: AuditSettings, audit: Audit, results: Sequence[KeyResult]
) -> Mapping[str, KeyTrail]:
    """Read all receipts once more, for those of the keys that differ."""
    differing = [each for each in results if each.status in {"mismatch", "unknown_key"}]
    trails = {
        each.key: KeyTrail(
            each.key, each.difference, audit.gap_bits.get(each.key) == each.difference
        )
        for each in differing[:_TRAILS_MAX]
    }
    if not trails:
        return trails
    topics = {*settings.topics, *map(settings.dead_letter_topic_for, settings.topics)}
    async for entry in notes(settings, audit.books, topics):
        if isinstance(entry.note, Receipt):
            for key in entry.note.bits_by_key.keys() & trails.keys():
                trails[key].add(entry.note)
    return trails


def doubt(attempt: Attempt, batch: Batch | None) -> Finding:
    """Say what is known of a batch in doubt."""
    name, intent, replay = attempt
    since = datetime.fromtimestamp(intent.intended_at, UTC).isoformat()
    holds = (
        f"{batch.items_count} items, {batch.bits} bits" if batch else "it cannot be formed again"
    )
    by, what_next = "", f"`ingester resolve {name}` shows it"
    if replay is not None:
        by, what_next = f" by {replay}", "let that end, or continue it: `ingester replay --plan`"
    return Finding(
        "in_doubt",
        name,
        intent.range,
        f"intended{by} at {since}, without a receipt: {holds}; {what_next}",
    )
