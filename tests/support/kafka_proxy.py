"""A TCP proxy between clients and brokers that knows each request by its API, and its answer.

It reads Kafka's framing and nothing below it, in plain text. A test may hold, swallow or delay what
passes, kill the client at an exact step, and cut or stall the network. It runs in the test's own
event loop: whatever blocks that loop (`eventually`, `Process.wait`) stops all traffic.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, IntEnum, auto

from ingester.local_kafka.jvm import ProxyRoute

_FRAMES_MAX = 64  # of a connection and direction, read and not yet passed on
_FRAME_BYTES_MAX = 64 * 1024 * 1024  # the broker's own limit is 100 MiB; beyond it is no Kafka
_HOST = "127.0.0.1"


class Api(IntEnum):
    """The keys of https://kafka.apache.org/protocol#protocol_api_keys that tests ask about."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    INIT_PRODUCER_ID = 22


class Verdict(Enum):
    """What a hook says about a request or an answer."""

    PASS = auto()
    SWALLOW = auto()
    """It never arrives, and the connection stays: the other side goes on waiting."""
    DISCONNECT = auto()
    """It never arrives, and the connection ends on both sides."""


class Direction(Enum):
    """Which way something passes."""

    TO_BROKER = auto()
    TO_CLIENT = auto()


@dataclass(slots=True, eq=False)
class Exchange:
    """A request and, once it came, its answer."""

    broker: int
    client_port: int
    """The client's end of the connection: tells one process from another."""
    api: int
    version: int
    correlation_id: int
    client_id: str | None
    request: bytes
    """What follows the client id."""
    answer: bytes | None = None
    """What follows the correlation id; None before it came."""


Hook = Callable[[Exchange], Awaitable[Verdict]]


class KafkaProxy:
    """The proxies of all brokers of a cluster that was started with `proxied`.

    `before[api]` is awaited before a request of this API is forwarded, `after[api]` when its answer
    has come and the client does not have it yet. What follows on the same connection in the same
    direction waits meanwhile. What a hook raises ends its connection, and `running` with it.
    """

    def __init__(self, routes: Sequence[ProxyRoute]) -> None:
        assert routes, "the cluster has to be started with proxied=True"
        self.before: dict[int, Hook] = {}
        self.after: dict[int, Hook] = {}
        self.latency_seconds = 0.0
        """Added to each request and to each answer."""
        self.failure: Exception | None = None
        """The first that a hook raised; raised again at the end of `running`."""
        self.brokers = [BrokerProxy(self, index, route) for index, route in enumerate(routes)]

    @property
    def bootstrap_servers(self) -> str:
        """Where clients start from whose whole traffic is to pass here."""
        return ",".join(f"{_HOST}:{each.route.listen_port}" for each in self.brokers)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[KafkaProxy]:
        """Listen until the end of the block."""
        try:
            for broker in self.brokers:
                await broker.listen()
            yield self
        finally:
            for broker in self.brokers:
                broker.cut()
            await asyncio.gather(*(broker.closed() for broker in self.brokers))
        if self.failure is not None:
            raise self.failure

    def cut(self) -> None:
        """Cut all brokers off, as `BrokerProxy.cut` does for one."""
        for broker in self.brokers:
            broker.cut()

    def stall(self, *directions: Direction) -> None:
        """Hold the traffic of all brokers, as `BrokerProxy.stall` does for one."""
        for broker in self.brokers:
            broker.stall(*directions)

    async def heal(self) -> None:
        """End all cuts and stalls."""
        for broker in self.brokers:
            await broker.heal()


class BrokerProxy:
    """Stands before one broker."""

    def __init__(self, proxy: KafkaProxy, index: int, route: ProxyRoute) -> None:
        self.route = route
        self._proxy = proxy
        self._index = index
        self._server: asyncio.Server | None = None  # None while cut
        self._connections: set[asyncio.Task[None]] = set()
        self._passes = {direction: asyncio.Event() for direction in Direction}
        # Cleared while a direction is stalled.

    async def listen(self) -> None:
        """Accept connections, with nothing held; each adds itself to the tasks and goes by itself.

        The broker need not run: without it connections are closed as soon as they are accepted.
        """
        for passes in self._passes.values():
            passes.set()
        if self._server is None:
            self._server = await asyncio.start_server(
                self._accepted, _HOST, self.route.listen_port, limit=_FRAME_BYTES_MAX
            )

    def cut(self) -> None:
        """Drop all connections with what is on its way, and refuse new ones until `heal`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self._connections:
            connection.cancel()

    def stall(self, *directions: Direction) -> None:
        """Hold what passes until `heal`, when it arrives late; without an argument both ways.

        Connections stay, and new ones are accepted: neither side notices but by its timeouts.
        """
        for direction in directions or tuple(Direction):
            self._passes[direction].clear()

    async def heal(self) -> None:
        """End a cut and a stall."""
        await self.listen()

    async def closed(self) -> None:
        """Wait until no connection is left."""
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if self._server is None:  # accepted while the cut was made
                return
            upstream = await asyncio.open_connection(
                _HOST, self.route.target_port, limit=_FRAME_BYTES_MAX
            )
            await _Connection(self._proxy, self._index, self._passes).pass_on(
                (reader, writer), upstream
            )
        except OSError:
            pass  # the broker is gone: the client's connection ends as well
        except asyncio.CancelledError:
            writer.transport.abort()  # a cut loses what is on its way
        except Exception as error:  # noqa: BLE001 - a hook's assertion has to fail the test
            self._proxy.failure = self._proxy.failure or error
        finally:
            writer.close()
            self._connections.discard(task)


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Connection:
    """One client's connection to one broker, until either side ends it."""

    def __init__(
        self, proxy: KafkaProxy, index: int, passes: dict[Direction, asyncio.Event]
    ) -> None:
        self._proxy = proxy
        self._index = index
        self._passes = passes
        self._client_port = 0
        self._awaited: dict[int, Exchange] = {}
        # Forwarded and not answered, by correlation id.

    async def pass_on(self, client: _Stream, broker: _Stream) -> None:
        """Pass frames both ways until one side closes; what it sent before still arrives."""
        self._client_port = client[1].get_extra_info("peername")[1]
        try:
            async with asyncio.TaskGroup() as group:
                for source, sink, direction in (
                    (client[0], broker[1], Direction.TO_BROKER),
                    (broker[0], client[1], Direction.TO_CLIENT),
                ):
                    frames: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_FRAMES_MAX)
                    group.create_task(_read_frames(source, frames))
                    group.create_task(self._deliver(frames, sink, direction))
        except* (_ClosedError, ConnectionError):
            pass
        finally:
            broker[1].close()  # after what is written

    async def _deliver(
        self,
        frames: asyncio.Queue[tuple[float, bytes]],
        sink: asyncio.StreamWriter,
        direction: Direction,
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            read, frame = await frames.get()
            if not frame:
                raise _ClosedError
            await asyncio.sleep(max(0.0, read + self._proxy.latency_seconds - loop.time()))
            await self._passes[direction].wait()
            if direction is Direction.TO_BROKER:
                exchange = self._exchange_of(frame)
                hook = self._proxy.before.get(exchange.api)
            else:
                exchange = self._answered(frame)
                hook = self._proxy.after.get(exchange.api)
            verdict = await hook(exchange) if hook else Verdict.PASS
            if verdict is Verdict.DISCONNECT:
                raise _ClosedError
            if verdict is Verdict.PASS:
                if direction is Direction.TO_BROKER:
                    self._awaited[exchange.correlation_id] = exchange
                sink.write(struct.pack(">i", len(frame)) + frame)
                await sink.drain()

    def _exchange_of(self, frame: bytes) -> Exchange:
        api, version, correlation_id, length = struct.unpack_from(">hhih", frame)
        start = 10 + max(0, length)
        return Exchange(
            broker=self._index,
            client_port=self._client_port,
            api=api,
            version=version,
            correlation_id=correlation_id,
            client_id=None if length < 0 else frame[10:start].decode(),
            request=frame[start:],
        )

    def _answered(self, frame: bytes) -> Exchange:
        (correlation_id,) = struct.unpack_from(">i", frame)
        exchange = self._awaited.pop(correlation_id)
        exchange.answer = frame[4:]
        return exchange


class _ClosedError(Exception):
    """One side has closed the connection, or a hook has."""


async def _read_frames(
    source: asyncio.StreamReader, frames: asyncio.Queue[tuple[float, bytes]]
) -> None:
    """Queue each frame with the time at which it was read; an empty one is the end."""
    loop = asyncio.get_running_loop()
    try:
        while True:
            (length,) = struct.unpack(">i", await source.readexactly(4))
            assert 0 < length <= _FRAME_BYTES_MAX, f"a frame of {length} bytes is not Kafka's"
            await frames.put((loop.time(), await source.readexactly(length)))
    except (asyncio.IncompleteReadError, ConnectionError):
        await frames.put((loop.time(), b""))
