"""Asks PacSpace for one balance after the other, some at a time, and answers in their order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Final

from ingester.audit.balances import BalanceReader, NotAsked
from ingester.commands.balance_keys import Question
from ingester.commands.balance_report import Found
from ingester.pacspace import PacspaceClient, compare
from ingester.settings import PacspaceSettings

_AHEAD: Final = 4  # questions for each request in flight: a slow one does not hold up the others


async def read_in_order(
    settings: PacspaceSettings, questions: Iterable[Question]
) -> AsyncIterator[tuple[Question, Found]]:
    """Yield the answers in the order of the questions, few of which are kept.

    UnavailableError, or RefusedError, for the first question without an answer.
    """
    requests = settings.requests_in_flight_max
    window: deque[tuple[Question, asyncio.Task[Found]]] = deque()
    async with PacspaceClient.from_settings(settings, connections_max=requests) as client:
        reader = BalanceReader(client, settings.pacspace_url)
        turns = asyncio.Semaphore(requests)  # waiting for a connection would count as an answer's

        async def answer(question: Question) -> Found:
            async with turns:
                found = await reader.balance_of(question.key)
            if question.expected is None or isinstance(found, NotAsked):
                return found
            return compare(found, question.expected)

        try:
            for question in questions:
                if len(window) >= requests * _AHEAD:
                    first, task = window.popleft()
                    yield first, await task
                window.append((question, asyncio.create_task(answer(question))))
            while window:
                first, task = window.popleft()
                yield first, await task
            reader.end()
        finally:
            for _, task in window:
                task.cancel()
            await asyncio.gather(*(task for _, task in window), return_exceptions=True)
