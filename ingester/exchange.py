"""Single exchanges with one HTTP/1.1 server: prepared bytes out, a bounded answer in.

Keeps connections for the exchanges to come, and tells what was certainly not sent from what may
have been. Redirects, cookies and proxies there are none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from math import inf
from typing import Final

from ingester.core.delivery import Answer, AnswerLost, NothingSent, Response
from ingester.dialling import Dialler
from ingester.http1 import Connection

_KEPT_SECONDS_MAX: Final = 30.0  # below the idle limits usual for load balancers (60 s and more)
_TICK_SECONDS: Final = 0.001  # of uvloop's clock and timers
_CLOSED: Final = NothingSent("no connection: closed here")


class Exchanges:
    """Makes exchanges over kept connections; more than `connections_max` at a time wait."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        connect_timeout_seconds: float,
        request_timeout_seconds: float,
        connections_max: int,
    ) -> None:
        self._dialler = Dialler(url, connect_timeout_seconds=connect_timeout_seconds)
        lines = {"Host": self._dialler.authority, **headers}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._request_timeout_seconds = request_timeout_seconds
        self._connections_max = connections_max
        self._overdue = AnswerLost(
            f"no whole answer within {request_timeout_seconds:g} s", timed_out=True
        )
        self._not_in_time = NothingSent(
            f"no connection within {request_timeout_seconds:g} s", "timeout"
        )
        self._connections: set[Connection] = set()  # all that are open; those lost take leave
        self._kept: list[Connection] = []  # the open ones that are free, the last used last
        # How many exchanges have, or are opening, a connection; and who waits until they are fewer.
        self._under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._deadlines: dict[Connection, float] = {}  # of exchanges whose answer is waited for
        self._next_look: asyncio.TimerHandle | None = None
        self._next_look_at_seconds = inf
        # Something came unasked for: from then on no connection serves two exchanges.
        self._keeps = True
        self._is_closed = False

    async def aclose(self) -> None:
        """Close all connections; exchanges under way end with their answers lost."""
        self._is_closed = True
        self._kept.clear()
        if self._next_look is not None:
            self._next_look.cancel()
        open_yet = list(self._connections)
        for connection in open_yet:
            connection.lose(AnswerLost("closed here before a whole answer came"))
        await asyncio.gather(*(connection.lost for connection in open_yet))

    async def exchange(
        self, method: str, path: str, body: bytes = b"", headers: str = ""
    ) -> Answer:
        """Send one request; `headers` are further lines, each with its line end.

        Whatever happens is an answer, nothing is raised.
        """
        begun = self.begin(method, path, body, headers)
        if begun is not None:
            return await begun
        if self._is_closed:
            return _CLOSED
        now_seconds = asyncio.get_running_loop().time()
        deadline_seconds = now_seconds + self._request_timeout_seconds
        if self._under_way < self._connections_max:
            self._under_way += 1
        else:
            await self._turn()
        connection = self._take_kept(now_seconds)
        try:
            if connection is None:
                opened = await self._open(deadline_seconds)
                if isinstance(opened, NothingSent):
                    return opened
                connection = opened
        except Exception as error:  # noqa: BLE001 -- whatever went wrong is an answer
            return AnswerLost(f"{type(error).__name__}: {error}")
        finally:
            if connection is None:
                self._pass_turn()
        request = self._request(method, path, body, headers)
        return await self._send(connection, request, deadline_seconds)

    def begin(
        self, method: str, path: str, body: bytes = b"", headers: str = ""
    ) -> asyncio.Future[Response | AnswerLost] | None:
        """Send one request at once over a connection that is kept; None, unsent, without one.

        A task that awaits `exchange` sends in its first turn of the loop, which may have read a
        bunch of answers by then.
        """
        if self._is_closed or self._under_way >= self._connections_max:
            return None
        now_seconds = asyncio.get_running_loop().time()
        connection = self._take_kept(now_seconds)
        if connection is None:
            return None
        self._under_way += 1
        request = self._request(method, path, body, headers)
        return self._send(connection, request, now_seconds + self._request_timeout_seconds)

    def _request(self, method: str, path: str, body: bytes, headers: str) -> bytes:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\n{self._head}{headers}{length}\r\n"
        return head.encode() + body

    def _send(
        self, connection: Connection, request: bytes, deadline_seconds: float
    ) -> asyncio.Future[Response | AnswerLost]:
        self._deadlines[connection] = deadline_seconds
        self._look_by(deadline_seconds)
        try:
            answer = connection.send(request)
        except Exception as error:  # noqa: BLE001 -- it may have left, whatever went wrong then
            answer = asyncio.get_running_loop().create_future()
            answer.set_result(AnswerLost(f"{type(error).__name__}: {error}"))
        # Called before whoever awaits the answer goes on, and also when nobody does any more.
        answer.add_done_callback(lambda _: self._ended(connection))
        return answer

    def _ended(self, connection: Connection) -> None:
        self._put_back(connection)
        self._pass_turn()

    # -- whose turn it is ---------------------------------------------------------------------

    async def _turn(self) -> None:
        """Wait until one exchange less is under way, and be the next.

        That is before one's own deadline: those under way came earlier, and so do theirs.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                self._pass_turn()
            raise

    def _pass_turn(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._under_way -= 1

    # -- connections --------------------------------------------------------------------------

    async def _open(self, deadline_seconds: float) -> Connection | NothingSent:
        try:
            async with asyncio.timeout_at(deadline_seconds):
                connection = await self._dialler.connect(Connection)
        except TimeoutError:
            return self._not_in_time
        if isinstance(connection, NothingSent):
            return connection
        if self._is_closed:
            connection.close()
            return _CLOSED
        self._connections.add(connection)
        connection.lost.add_done_callback(lambda _: self._connections.discard(connection))
        return connection

    def _take_kept(self, now_seconds: float) -> Connection | None:
        while self._kept:
            connection = self._kept.pop()
            if connection.unasked:
                self._keep_no_more()
            elif connection.reusable and now_seconds < connection.kept_since + _KEPT_SECONDS_MAX:
                return connection
            connection.close()
        return None

    def _put_back(self, connection: Connection) -> None:
        self._deadlines.pop(connection, None)
        if connection.unasked:
            self._keep_no_more()
        if connection.reusable and self._keeps and not self._is_closed:
            connection.kept_since = asyncio.get_running_loop().time()
            self._kept.append(connection)
            self._look_by(connection.kept_since + _KEPT_SECONDS_MAX)
        else:
            connection.close()

    def _keep_no_more(self) -> None:
        self._keeps = False
        for connection in self._kept:
            connection.close()
        self._kept.clear()

    # -- what is overdue ----------------------------------------------------------------------

    def _look_by(self, at_seconds: float) -> None:
        """See to it that there is a look by then; one timer for all, each takes 2 us of CPU."""
        if at_seconds < self._next_look_at_seconds:
            if self._next_look is not None:
                self._next_look.cancel()
            self._next_look_at_seconds = at_seconds
            self._next_look = asyncio.get_running_loop().call_at(at_seconds, self._look)

    def _look(self) -> None:
        """Lose the answers that are overdue, and close what was kept for too long."""
        due_seconds = asyncio.get_running_loop().time() + _TICK_SECONDS
        self._next_look_at_seconds = inf
        if any(connection.unasked for connection in self._kept):
            self._keep_no_more()
        for connection, deadline_seconds in self._deadlines.items():
            if deadline_seconds <= due_seconds:
                connection.lose(self._overdue)
            else:
                self._look_by(deadline_seconds)
        for connection in self._kept:
            if connection.kept_since + _KEPT_SECONDS_MAX <= due_seconds:
                connection.close()
            else:
                self._look_by(connection.kept_since + _KEPT_SECONDS_MAX)
        self._kept = [connection for connection in self._kept if connection.reusable]
