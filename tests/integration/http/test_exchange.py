"""Many exchanges: what connections serve, what ends in time, and what closing leaves."""

from __future__ import annotations

import asyncio

import pytest

from ingester.core.delivery import Answer, AnswerLost, NothingSent, Response
from tests.support.exchanges import BODY, answers, exchanges
from tests.support.scripted import (
    Endpoint,
    answering,
    closing_after,
    endpoint,
    response,
    silence,
)
from tests.support.waiting import eventually_async

CHUNKED = b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (
    len(BODY),
    BODY,
)


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        (response(202, BODY), 1),
        (CHUNKED, 1),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + response(202, BODY), 1),
        (response(500, BODY), 1),
        (response(202, BODY, "Connection: close"), 3),
        (response(202, BODY).replace(b"1.1", b"1.0"), 3),
        (response(202, BODY, "Connection: keep-alive").replace(b"1.1", b"1.0"), 1),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 3),
        (response(202, BODY) + response(202, BODY), 3),
        (response(202, BODY) + b"H", 3),
    ],
    ids=[
        "plain",
        "chunked",
        "hint",
        "an error",
        "close",
        "HTTP/1.0",
        "HTTP/1.0 kept",
        "another protocol",
        "a second answer",
        "the beginning of one",
    ],
)
async def test_a_connection_serves_as_long_as_it_can(answer: bytes, connections: int) -> None:
    """Three exchanges take one, unless an answer, or what comes with it, ends each."""
    async with endpoint(answering(answer)) as found:
        got = await answers(found.url, 3)

    assert 1 == len(set(map(repr, got)))
    assert isinstance(got[0], Response)
    assert connections == found.connections


@pytest.mark.parametrize("noticed", ["with the answer", "by a look", "by the next exchange"])
async def test_after_an_answer_unasked_for_no_connection_serves_twice(noticed: str) -> None:
    """What came is no answer to a later request, and who sends it once may do so again."""
    talkative = asyncio.Event()

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await found.take(reader)
        if found.connections > 1:
            writer.write(response(202, b"%d" % found.connections))
        elif noticed == "with the answer":
            writer.write(response(202, b"1") + response(202, b"unasked"))
        else:
            writer.write(response(202, b"1"))
            await talkative.wait()
            writer.write(response(202, b"unasked"))
        await answering(response(202, b"%d" % found.connections))(found, reader, writer)

    async def first_has_ended() -> bool:
        return found.ended == 1

    async with endpoint(script) as found, exchanges(found.url) as made:
        got = [await made.exchange("GET", "/")]
        talkative.set()
        await eventually_async(first_has_ended)
        if noticed == "by a look":
            made._look()
            assert not made._kept
        got += [await made.exchange("GET", "/") for _ in range(3)]

    assert [Response(202, {}, b"%d" % number) for number in (1, 2, 3, 4)] == got


async def test_a_server_that_speaks_first_is_not_answered_for() -> None:
    """What it says before it was asked is no answer."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(response(202, BODY))
        await asyncio.sleep(0.2)

    async with endpoint(script) as found, exchanges(found.url) as made:
        connecting = await made._open(asyncio.get_running_loop().time() + 5)
        assert not isinstance(connecting, NothingSent)
        await connecting.lost
        assert connecting.unasked
        assert isinstance(await connecting.send(b"GET / HTTP/1.1\r\n\r\n"), AnswerLost)


async def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    """The next exchange opens one of its own and is answered."""

    async def both_have_ended() -> bool:
        return found.ended == 2

    async with endpoint(closing_after(response(202, BODY))) as found, exchanges(found.url) as made:
        await asyncio.gather(*(made.exchange("GET", "/") for _ in range(2)))
        await eventually_async(both_have_ended)
        await asyncio.gather(*(connection.lost for connection in set(made._connections)))
        answer = await made.exchange("GET", "/")

    assert Response(202, {}, BODY) == answer
    assert 3 == found.connections


async def test_a_request_that_met_a_closing_connection_may_have_been_applied() -> None:
    """The server has read it, or has not: nobody here can tell."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await found.take(reader)
        writer.write(response(202, BODY))
        await reader.readuntil(b"\r\n\r\n")

    async with endpoint(script) as found:
        first, second = await answers(found.url, 2)

    assert isinstance(first, Response)
    assert isinstance(second, AnswerLost)
    assert 1 == found.connections


async def test_an_answer_before_the_whole_request_ends_the_connection() -> None:
    """The rest of the request must not be read as another; it is not even sent."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response(413, b""))
        await writer.drain()
        await release.wait()
        unread.append(len(await reader.read(-1)))

    release, unread = asyncio.Event(), list[int]()
    async with endpoint(script) as found, exchanges(found.url) as made:
        large = await made.exchange("POST", "/", bytes(2**25))
        assert not made._kept
        release.set()

        async def ended() -> bool:
            return found.ended == 1

        await eventually_async(ended)

    assert Response(413, {}, b"") == large
    assert sum(unread) < 2**25


@pytest.mark.parametrize(("age_seconds", "connections"), [(31.0, 2), (29.0, 1)])
@pytest.mark.parametrize("looks", [True, False])
async def test_a_free_connection_is_kept_for_half_a_minute(
    age_seconds: float, connections: int, looks: bool
) -> None:
    """Then it is closed, and were it not, not used: most servers close it after a minute."""
    loop = asyncio.get_running_loop()
    async with (
        endpoint(answering(response(202, BODY))) as found,
        exchanges(found.url, request_timeout_seconds=120.0) as made,
    ):
        await made.exchange("GET", "/")
        (kept,) = made._kept
        assert made._next_look_at_seconds <= loop.time() + 30.0
        kept.kept_since = loop.time() - age_seconds
        if looks:
            made._look()
            assert (connections == 1) == bool(made._kept)
        await made.exchange("GET", "/")

    assert connections == found.connections


async def test_the_connection_used_last_is_used_next() -> None:
    """A burst's other connections come of age."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await answering(response(202, b"%d" % found.connections))(found, reader, writer)

    async with endpoint(script) as found, exchanges(found.url) as made:
        await asyncio.gather(*(made.exchange("GET", "/") for _ in range(3)))
        assert 3 == len(made._kept)
        served = {repr(await made.exchange("GET", "/")) for _ in range(6)}

    assert 1 == len(served)


# -- exchanges that begin at once ---------------------------------------------------------------


async def test_what_is_begun_leaves_before_anybody_waits_for_it() -> None:
    """The server has the request while nobody asks for its answer yet."""
    async with endpoint(answering(response(202, BODY))) as found, exchanges(found.url) as made:
        await made.exchange("GET", "/")

        async def arrived() -> bool:
            return len(found.requests) == 2

        begun = made.begin("POST", "/", b"begun", "X-Key: 1\r\n")
        assert begun is not None
        await eventually_async(arrived)
        answer = await begun
        later = made.begin("GET", "/")
        assert later is not None
        await later

    assert Response(202, {}, BODY) == answer
    assert (b"begun", "1") == (found.requests[1].body, found.requests[1].headers["x-key"])
    assert 1 == found.connections


async def test_nothing_begins_without_a_connection_that_is_free() -> None:
    """Neither before the first, nor while all are busy, nor after the end; and nothing is sent."""
    async with endpoint(silence) as found, exchanges(found.url) as made:
        assert made.begin("GET", "/") is None
        assert 0 == found.connections
    async with endpoint(answering(response(202, BODY))) as found:
        async with exchanges(found.url, connections_max=1) as made:
            await made.exchange("GET", "/")
            begun = made.begin("GET", "/")
            assert begun is not None
            assert made.begin("GET", "/") is None
            await begun
        assert made.begin("GET", "/") is None

    assert 2 == len(found.requests)


async def test_what_is_begun_and_given_up_ends_its_connection_and_makes_room() -> None:
    """Its answer may still come, and must not be taken for that of the next."""
    async with (
        endpoint(answering(response(202, BODY))) as found,
        exchanges(found.url, connections_max=1) as made,
    ):
        await made.exchange("GET", "/")
        begun = made.begin("GET", "/")
        assert begun is not None
        begun.cancel()
        answer = await made.exchange("GET", "/")

    assert Response(202, {}, BODY) == answer
    assert 2 == found.connections


# -- timeouts, cancellation, closing ------------------------------------------------------------


async def test_a_cancelled_exchange_ends_its_connection_and_makes_room() -> None:
    """An answer that comes later is nobody's; whoever waits for a connection has its turn."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await found.take(reader)
        if found.connections == 1:
            await reader.read()  # until the client goes
        else:
            writer.write(response(202, BODY))

    async def arrived() -> bool:
        return len(found.requests) == 1

    async def gone() -> bool:
        return found.ended >= 1

    async with endpoint(script) as found, exchanges(found.url, connections_max=1) as made:
        first, second, third = (
            asyncio.create_task(made.exchange("POST", "/", b"%d" % number)) for number in range(3)
        )
        await eventually_async(arrived)
        second.cancel()
        first.cancel()
        answer = await third
        await eventually_async(gone)
        ended = await asyncio.gather(first, second, return_exceptions=True)

    assert all(isinstance(each, asyncio.CancelledError) for each in ended)
    assert Response(202, {}, BODY) == answer
    assert [b"0", b"2"] == [request.body for request in found.requests]


async def test_whoever_gives_up_when_it_is_its_turn_passes_that_on() -> None:
    """Else one connection less would be used from then on."""
    async with (
        endpoint(answering(response(202, BODY))) as found,
        exchanges(found.url, connections_max=1) as made,
    ):

        async def answered() -> None:
            await made.exchange("GET", "/")
            second.cancel()  # its turn has come, and it has not heard of it

        first = asyncio.create_task(answered())
        await asyncio.sleep(0)
        second, third = (asyncio.create_task(made.exchange("GET", "/")) for _ in range(2))
        await asyncio.sleep(0)
        await first
        assert Response(202, {}, BODY) == await asyncio.wait_for(third, 5)

    assert second.cancelled()
    assert 0 == made._under_way


async def test_a_whole_request_is_bounded_though_nothing_was_sent_yet() -> None:
    """Whoever waits for TLS says so, and that nothing was sent."""
    async with (
        endpoint(silence) as found,
        exchanges(
            found.url.replace("http:", "https:"), request_timeout_seconds=0.3, connections_max=1
        ) as made,
    ):
        got = await asyncio.gather(*(made.exchange("GET", "/") for _ in range(3)))
        assert 0 == made._under_way

    assert [NothingSent("no connection within 0.3 s", "timeout")] * 3 == got


async def test_each_exchange_has_its_own_deadline() -> None:
    """One that is answered in time is not lost with one that is not."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            request = await found.take(reader)
            if request.body == b"slow":
                await reader.read()
            await asyncio.sleep(0.15)
            writer.write(response(202, BODY))

    lost = AnswerLost("no whole answer within 0.4 s", timed_out=True)
    async with endpoint(script) as found, exchanges(found.url, request_timeout_seconds=0.4) as made:

        async def quick() -> list[Answer]:
            return [await made.exchange("POST", "/", b"quick") for _ in range(5)]

        slow = asyncio.create_task(made.exchange("POST", "/", b"slow"))
        assert [Response(202, {}, BODY)] * 5 == await quick()
        later = asyncio.create_task(made.exchange("POST", "/", b"slow"))
        assert [lost, lost] == await asyncio.gather(slow, later)
        assert not made._deadlines


async def test_closing_ends_every_exchange_and_every_connection() -> None:
    """Sent ones are lost, those that wait were not sent, and later ones are not either."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while (await found.take(reader)).body == b"quick":
            writer.write(response(202, BODY))
        await reader.read()  # until the client goes

    async def arrived() -> bool:
        return len(found.requests) == 3

    async def gone() -> bool:
        return found.ended == found.connections == 2

    async with endpoint(script) as found, exchanges(found.url, connections_max=2) as made:
        await asyncio.gather(*(made.exchange("POST", "/", b"quick") for _ in range(2)))
        waiting = asyncio.create_task(made.exchange("POST", "/", b"hang"))
        await eventually_async(arrived)
        assert 1 == len(made._kept)
        await made.aclose()

        assert isinstance(await waiting, AnswerLost)
        assert isinstance(await made.exchange("GET", "/"), NothingSent)
        assert not made._connections
        await eventually_async(gone)


async def test_who_waits_for_a_connection_when_all_are_closed_has_sent_nothing() -> None:
    """Each exchange ends, and in the order in which they came."""
    async with endpoint(silence) as found, exchanges(found.url, connections_max=1) as made:
        tasks = [asyncio.create_task(made.exchange("GET", "/")) for _ in range(3)]

        async def connected() -> bool:
            return found.connections == 1 and bool(made._deadlines)

        await eventually_async(connected)
        await made.aclose()
        first, *others = await asyncio.wait_for(asyncio.gather(*tasks), 5)

    assert isinstance(first, AnswerLost)
    assert [NothingSent("no connection: closed here")] * 2 == others


async def test_what_connects_while_all_is_closed_sends_nothing() -> None:
    """The connection that comes about is closed at once."""
    async with endpoint(silence) as found, exchanges(found.url) as made:
        connecting = asyncio.create_task(made.exchange("POST", "/", b"body"))
        await asyncio.sleep(0)
        await made.aclose()
        assert NothingSent("no connection: closed here") == await asyncio.wait_for(connecting, 5)

    assert not found.requests
