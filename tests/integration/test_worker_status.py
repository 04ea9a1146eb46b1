"""What answers where a worker should be, over real connections."""

from __future__ import annotations

import pytest

from ingester.audit.worker_status import worker_status
from tests.support.scripted import answering, endpoint, response


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"\xff", b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"], ids=len
)
async def test_whatever_is_no_status_is_said_to_be_none(body: bytes) -> None:
    """Even what nests without end."""
    async with endpoint(answering(response(200, body))) as found:
        assert await worker_status(found.url) == "what answers there is no worker"
