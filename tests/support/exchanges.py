"""Exchanges with a scripted server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ingester.core.delivery import Answer
from ingester.exchange import Exchanges

BODY = b'{"data":{"batchId":"batch_1"}}'


@asynccontextmanager
async def exchanges(
    url: str,
    *,
    connect_timeout_seconds: float = 5.0,
    request_timeout_seconds: float = 20.0,
    connections_max: int = 4,
) -> AsyncIterator[Exchanges]:
    made = Exchanges(
        url,
        {"X-Test": "1"},
        connect_timeout_seconds=connect_timeout_seconds,
        request_timeout_seconds=request_timeout_seconds,
        connections_max=connections_max,
    )
    try:
        yield made
    finally:
        await made.aclose()


async def answers(url: str, count: int = 1) -> list[Answer]:
    """What one client gets for so many exchanges, one after the other."""
    async with exchanges(url) as made:
        return [await made.exchange("POST", "/", b"body") for _ in range(count)]
