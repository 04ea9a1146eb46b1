"""An independent PacSpace: written against the published API, sharing no code with what it tests.

It keeps every request it gets and what it has counted of each. A request meets, in this order: the
test's `react`, size limits, the API key, the Idempotency-Key, validation, the sums. It runs in a
thread of its own, so that a test that waits holds up no answer.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from aiohttp import web

API_KEY = "pk_test_ledger.secret"
START_SECONDS_MAX = 30.0
_BODY_BYTES_MAX = 64 * 1024 * 1024
_HTML = {"Content-Type": "text/html"}
_REQUIRED = {"key": str, "accountId": str, "bits": int}


@dataclass(slots=True, eq=False)
class Write:
    """One request as it came; times are of the monotonic clock."""

    idempotency_key: str
    body: bytes
    items: list[dict[str, Any]]
    """Empty when the body is nothing that the API takes."""
    arrived_seconds: float
    answered_seconds: float | None = None
    """When the answer, or what there was of it, left; None while the request is open."""
    status: int | None = None
    counted: bool = False
    """Whether this very request added its items to the sums."""

    def has(self, key: str) -> bool:
        """Whether one of its items is for this key."""
        return any(item["key"] == key for item in self.items)


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back over the wire."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """What a request meets beside the API, before it, instead of its answer, or behind it.

    `cut` ends the connection in the middle of the body, `lost` before its first byte, and `hang`
    keeps it open until the client gives up.
    """

    delay_seconds: float = 0.0
    """The API works on the write for so long; its key is pending meanwhile."""
    reaches_api: bool = True
    """Without, nothing is counted: something in front of the API answers, or nobody."""
    answer: Answer | None = None
    """Instead of the API's own."""
    end: Literal["whole", "cut", "lost", "hang"] = "whole"


React = Callable[[Write], Awaitable[Reaction | None]]
Refuse = Callable[[Mapping[str, Any]], Answer | None]


def error(status: int, message: str | list[str], *, error: str = "Error") -> Answer:
    """The API's older envelope: `error` is a string, `message` a sentence or a list of them."""
    return Answer(status, _json({"statusCode": status, "error": error, "message": message}))


def coded_error(
    status: int, code: str, message: str, retry_after_seconds: float | None = None
) -> Answer:
    """The API's newer envelope: `error` is an object with a code."""
    inner: dict[str, Any] = {"code": code, "message": message}
    if retry_after_seconds is not None:
        inner["retryAfterSeconds"] = retry_after_seconds
    return Answer(status, _json({"error": inner}))


def accepted(**data: Any) -> Answer:
    """A success with these members of `data`, whatever they leave out."""
    return Answer(202, _json({"statusCode": 202, "data": data}))


class LedgerServer:
    """Serves `POST /api/v1/writes` on a free port of the loopback interface, within `with`.

    The switches may be changed at any time, `react` and `refuse` run in the server's thread.
    """

    def __init__(self) -> None:
        self.react: React | None = None
        self.refuse: Refuse | None = None  # asked for each item; one answer refuses the whole write
        self.honours_keys = True
        self.items_max: int | None = None
        self.body_bytes_max: int | None = None
        self.writes: list[Write] = []  # every request, in the order of arrival
        self.counted: list[Write] = []  # those that added to the sums, in that order
        self.items_count = 0  # in the sums
        self.url = ""
        self._known: dict[str, tuple[bytes, Answer | None]] = {}
        # By Idempotency-Key: the body, and the answer once there is one; only of what was counted.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(START_SECONDS_MAX), "the ledger server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    def settings(self) -> dict[str, str]:
        """The settings that make an ingester talk to it."""
        return {"INGESTER_PACSPACE_URL": self.url, "PACSPACE_API_KEY": API_KEY}

    def sums(self) -> dict[str, dict[str, int]]:
        """The bits and the number of items counted of each key."""
        sums: dict[str, dict[str, int]] = {}
        for write in list(self.counted):
            for item in write.items:
                total = sums.setdefault(item["key"], {"bits": 0, "items": 0})
                total["bits"] += item["bits"]
                total["items"] += 1
        return sums

    def times_counted(self) -> Counter[str]:
        """How often the write of each Idempotency-Key was counted."""
        return Counter(write.idempotency_key for write in list(self.counted))

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        application = web.Application(client_max_size=_BODY_BYTES_MAX)
        application.router.add_post("/api/v1/writes", self._take)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._stopped.wait()
        await runner.cleanup()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        key = request.headers.get("Idempotency-Key", "")
        write = Write(key, body, _items(body), time.monotonic())
        self.writes.append(write)
        reaction = (await self.react(write) if self.react else None) or Reaction()
        answer = reaction.answer
        if reaction.reaches_api:
            own = await self._api_answer(request, write, reaction.delay_seconds)
            answer = answer or own
        try:
            if reaction.end == "hang" or answer is None:
                await self._stopped.wait()
                return web.Response(status=503)
            write.status = answer.status
            return await self._send(request, answer, reaction.end)
        finally:
            write.answered_seconds = time.monotonic()

    async def _api_answer(self, request: web.Request, write: Write, delay_seconds: float) -> Answer:
        if self.body_bytes_max is not None and len(write.body) > self.body_bytes_max:
            return Answer(413, b"<h1>413 Request Entity Too Large</h1>", _HTML)  # as proxies do
        if self.items_max is not None and len(write.items) > self.items_max:
            return error(413, f"items must contain no more than {self.items_max} elements")
        if request.headers.get("X-Api-Key") != API_KEY:
            return error(401, "Missing or invalid API key")
        if self.honours_keys and write.idempotency_key in self._known:
            return self._replay(write)
        self._known[write.idempotency_key] = (write.body, None)
        await asyncio.sleep(delay_seconds)
        answer = self._judge(write)
        if write.counted:
            self._known[write.idempotency_key] = (write.body, answer)
        else:
            self._known.pop(write.idempotency_key, None)
        return answer

    def _replay(self, write: Write) -> Answer:
        body, answer = self._known[write.idempotency_key]
        if body != write.body:
            return coded_error(409, "IDEMPOTENCY_CONFLICT", "the key came with another body")
        pending = {"code": "IDEMPOTENCY_PENDING", "retryAfterSeconds": 1, "message": "in progress"}
        return answer or Answer(202, _json(pending))

    def _judge(self, write: Write) -> Answer:
        """Refuse the write as a whole, or count all of it."""
        if not write.items:
            return error(400, ["items must be a non-empty array of writes"], error="Bad Request")
        if self.refuse is not None:
            for refusal in map(self.refuse, write.items):
                if refusal is not None:
                    return refusal
        write.counted = True
        self.counted.append(write)
        self.items_count += len(write.items)
        return accepted(
            batchId=f"batch_{len(self.counted)}", itemCount=len(write.items), status="queued"
        )

    async def _send(
        self, request: web.Request, answer: Answer, end: Literal["whole", "cut", "lost", "hang"]
    ) -> web.StreamResponse:
        headers = {"Content-Type": "application/json", **answer.headers}
        if end == "whole":
            return web.Response(status=answer.status, body=answer.body, headers=headers)
        response = web.StreamResponse(
            status=answer.status, headers={**headers, "Content-Length": str(len(answer.body))}
        )
        if end == "cut":
            await response.prepare(request)
            await response.write(answer.body[: len(answer.body) // 2])
        assert request.transport is not None
        request.transport.close()
        return response


def _items(body: bytes) -> list[dict[str, Any]]:
    """The items of a body that the API would take, or none of them."""
    try:
        items = json.loads(body)["items"]
    except (ValueError, KeyError, TypeError):
        return []
    return items if isinstance(items, list) and all(map(_is_item, items)) else []


def _is_item(item: object) -> bool:
    return isinstance(item, dict) and all(
        type(item.get(name)) is kind for name, kind in _REQUIRED.items()
    )


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode()
