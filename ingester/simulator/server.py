"""The simulator on a socket: reads requests, waits out latencies, sends or spoils the answers."""

from __future__ import annotations

import asyncio
import errno
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import assert_never

from aiohttp import web

from ingester import __version__
from ingester.errors import UnavailableError
from ingester.simulator import answers
from ingester.simulator.admin import Admin
from ingester.simulator.answers import Answer
from ingester.simulator.api import Admission, Api, Posted
from ingester.simulator.faults import (
    AnswerWith,
    Call,
    CutBody,
    Drop,
    Effect,
    Faults,
    Hang,
    LoseAnswer,
    Misreport,
    Refuse,
    is_applied,
)
from ingester.simulator.ledger import Instant
from ingester.simulator.options import Options
from ingester.simulator.validation import Refusal, parse_items
from ingester.wire import BUCKET_PATH, SIMULATOR_HEADER, WRITES_PATH

# A client that keeps a connection longer than this meets a reset: the API documents no value.
KEEPALIVE_SECONDS = 75.0

# What a stopping simulator grants to requests that are being answered, hanging ones included.
SHUTDOWN_SECONDS = 0.5

_DISCONNECT_POLL_SECONDS = 0.1


async def serve(options: Options) -> None:
    """Serve until SIGTERM or SIGINT, and print one line as soon as connections are accepted.

    Raises UnavailableError when the address cannot be listened on.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    async with running(options) as url:
        sys.stdout.write(f"simulator listening on {url}\n")
        sys.stdout.flush()
        await stop.wait()


@asynccontextmanager
async def running(options: Options) -> AsyncIterator[str]:
    """Serve within the calling event loop, and yield the base URL.

    Raises UnavailableError when the address cannot be listened on.
    """
    runner = web.AppRunner(
        Simulator(options).application(),
        access_log=None,
        keepalive_timeout=KEEPALIVE_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, options.host, options.port)
        try:
            await site.start()
        except OSError as error:
            raise UnavailableError(_explain(error, options)) from error
        port = runner.addresses[0][1]
        host = f"[{options.host}]" if ":" in options.host else options.host
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def _explain(error: OSError, options: Options) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"cannot listen on {options.host}:{options.port}: the port is in use; "
            "stop what holds it, or choose another with --listen (port 0 picks a free one)"
        )
    return (
        f"cannot listen on {options.host}:{options.port}: {error.strerror or error}; "
        "choose an address of this machine with --listen"
    )


class Simulator:
    """One API, its faults, and the requests it is answering."""

    def __init__(self, options: Options) -> None:
        """Start with an empty ledger and the rules of the options."""
        self._options = options
        self._api = Api(options)
        self._faults = Faults(options.faults, seed=options.seed)

    def application(self) -> web.Application:
        """Return the endpoints; whatever they do not know is answered as the API answers it."""
        application = web.Application(client_max_size=self._options.body_bytes_max)
        application.on_response_prepare.append(_sign)
        application.add_routes(Admin(self._api, self._faults).routes())
        application.add_routes(
            [
                web.post(WRITES_PATH, self._write),
                web.get(BUCKET_PATH + "{key}", self._read, allow_head=False),
                web.route("*", "/{unknown:.*}", self._unknown),
            ]
        )
        return application

    async def _write(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            limit = self._options.body_bytes_max
            answer = answers.refusal(413, f"Request body is larger than {limit} bytes")
            return await self._deliver(request, answer, None)
        content = parse_items(body, items_max=self._options.items_max)
        items = () if isinstance(content, Refusal) else content
        call = Call(
            request.method,
            request.path,
            keys=frozenset([item.key for item in items]),
            accounts=frozenset([item.account_id for item in items]),
        )
        return await self._answer(
            request,
            call,
            lambda effect: self._api.admit(Posted(request.headers, body, content, effect)),
        )

    async def _read(self, request: web.Request) -> web.StreamResponse:
        key = request.match_info["key"]
        call = Call(request.method, request.path, keys=frozenset((key,)))
        return await self._answer(
            request, call, lambda _: self._api.read(request.headers, key, _now())
        )

    async def _unknown(self, request: web.Request) -> web.StreamResponse:
        answer = answers.refusal(404, f"Cannot {request.method} {request.path}")
        return await self._answer(request, Call(request.method, request.path), lambda _: answer)

    async def _answer(
        self,
        request: web.Request,
        call: Call,
        decide: Callable[[Effect | None], Admission | Answer],
    ) -> web.StreamResponse:
        rule = self._faults.take(call)
        effect = rule.effect if rule else None
        decision = decide(effect) if is_applied(effect) else None
        latency_seconds = self._options.latency_seconds + (rule.latency_seconds if rule else 0)
        if latency_seconds:
            await asyncio.sleep(latency_seconds)
        if isinstance(decision, Admission):
            decision = self._api.settle(decision, _now())
        return await self._deliver(request, decision, effect)

    async def _deliver(
        self, request: web.Request, answer: Answer | None, effect: Effect | None
    ) -> web.StreamResponse:
        """Send what the effect makes of an answer; None is a request that was not looked at."""
        match effect:
            case LoseAnswer() | Drop():
                self._api.ledger.count_request("cut")
                return _cut(request)
            case Hang():
                self._api.ledger.count_request("hung")
                await _disconnection(request)
                return _cut(request)
            case AnswerWith():
                answer = answers.injected(effect, epoch_seconds=time.time())
            case None | CutBody() | Misreport() | Refuse():
                pass
            case _:
                assert_never(effect)
        assert answer is not None
        if isinstance(effect, CutBody):
            self._api.ledger.count_request("cut")
            await _send_half(request, answer)
            return _cut(request)
        self._api.ledger.count_request(str(answer.status))
        return web.Response(
            status=answer.status,
            body=answer.body,
            headers=answer.headers,
            content_type=answer.content_type,
        )


async def _sign(_: web.Request, response: web.StreamResponse) -> None:
    response.headers[SIMULATOR_HEADER] = __version__


async def _send_half(request: web.Request, answer: Answer) -> None:
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_type = answer.content_type
    response.content_length = len(answer.body)
    await response.prepare(request)
    await response.write(answer.body[: len(answer.body) // 2])


async def _disconnection(request: web.Request) -> None:
    """Return when the client has gone: a handler is not told of it, and polls."""
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110 - aiohttp has no event for it
        await asyncio.sleep(_DISCONNECT_POLL_SECONDS)


def _cut(request: web.Request) -> web.StreamResponse:
    """Close the connection behind what was sent; the response returned finds it closed."""
    if request.transport is not None:
        request.transport.close()
    return web.Response()


def _now() -> Instant:
    return Instant(time.monotonic(), time.time())
