"""Reaching a server: names, addresses and TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from dataclasses import dataclass, field

import pytest

from ingester.core.delivery import AnswerLost, NothingSent, Response
from ingester.dialling import Dialler
from tests.support.exchanges import BODY, answers, exchanges
from tests.support.scripted import (
    Endpoint,
    Script,
    answering,
    closing_after,
    endpoint,
    response,
    silence,
)
from tests.support.tls import SELF_SIGNED, server_context
from tests.support.waiting import eventually_async


@pytest.fixture
def certified(monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What a server for localhost needs, and clients that trust it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(SELF_SIGNED))
    return server_context()


async def test_tls_serves_many_exchanges(certified: ssl.SSLContext) -> None:
    """Over one connection, with bodies beyond one record of TLS, and closed in order."""
    async with endpoint(answering(response(202, bytes(2**18))), tls=certified) as found:
        got = await answers(f"https://localhost:{found.port}", 3)

        async def gone() -> bool:
            return found.ended == 1

        await eventually_async(gone)

    assert [Response(202, {}, bytes(2**18))] * 3 == got
    assert 1 == found.connections
    assert [b"body"] * 3 == [request.body for request in found.requests]
    assert f"localhost:{found.port}" == found.requests[0].headers["host"]


@pytest.mark.parametrize(
    "script",
    [
        closing_after(b""),
        closing_after(b"", reset=True),
        closing_after(response(202, BODY)[:-1]),
        closing_after(response(202, BODY)[:-1], reset=True),
    ],
    ids=["closed", "reset", "cut", "cut and reset"],
)
async def test_an_answer_can_be_lost_within_tls(script: Script, certified: ssl.SSLContext) -> None:
    """As it can without."""
    async with endpoint(script, tls=certified) as found:
        (lost,) = await answers(f"https://localhost:{found.port}")

    assert isinstance(lost, AnswerLost)


async def test_a_server_that_hangs_up_within_the_handshake_was_sent_nothing() -> None:
    """It is said in words, though the loop has none for it."""

    async def script(
        found: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.read(1)

    async with endpoint(script) as found:
        (answer,) = await answers(found.url.replace("http:", "https:"))

    assert isinstance(answer, NothingSent)
    assert answer.reason.startswith(f"no connection to 127.0.0.1:{found.port}: ")
    assert not answer.reason.endswith(": ")


async def test_an_address_of_ipv6_is_one() -> None:
    """It stands in brackets where a port may follow."""
    async with endpoint(answering(response(202, BODY)), host="::1") as found:
        assert [Response(202, {}, BODY)] == await answers(found.url)

    assert f"[::1]:{found.port}" == found.requests[0].headers["host"]


@dataclass
class Names:
    """What the system's resolver finds, for whichever name it is asked."""

    addresses: tuple[str, ...] = ()
    lookups: list[str] = field(default_factory=list)

    def getaddrinfo(self, host: str, port: int, *_: object, **__: object) -> list[object]:
        self.lookups.append(host)
        time.sleep(0.05)  # in a thread, as the real one
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (address, port)) for address in self.addresses]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Stands for the system's resolver where the loop asks that of Python."""
    found = Names()
    monkeypatch.setattr(socket, "getaddrinfo", found.getaddrinfo)
    return found


resolved = pytest.mark.asyncio(loop_factories=["asyncio"])  # uvloop asks the system itself


@resolved
async def test_every_address_of_a_name_is_tried(names: Names) -> None:
    """One at which nobody listens keeps nothing from being sent to the next."""
    names.addresses = ("127.0.0.3", "127.0.0.4", "127.0.0.2")
    async with endpoint(answering(response(202, BODY)), host="127.0.0.2") as found:
        got = await answers(f"http://pacspace.test:{found.port}", 2)
    (refused,) = await answers(f"http://pacspace.test:{found.port}")

    assert [Response(202, {}, BODY)] * 2 == got
    assert NothingSent(f"nothing listens on pacspace.test:{found.port}", "refused") == refused


@resolved
async def test_a_silent_address_holds_up_the_next_for_a_moment(names: Names) -> None:
    """Not until the timeout, which is for all of them."""
    names.addresses = ("127.0.0.3", "127.0.0.2")
    async with (
        endpoint(answering(response(202, BODY)), host="127.0.0.2") as found,
        exchanges(f"http://pacspace.test:{found.port}", connect_timeout_seconds=3.0) as made,
    ):
        silent = ("127.0.0.3", found.port)
        # One connection is queued, and the system drops whoever comes behind that.
        with socket.create_server(silent, backlog=0), socket.create_connection(silent):
            assert Response(202, {}, BODY) == await made.exchange("GET", "/")

    assert 1 == found.connections


@resolved
@pytest.mark.parametrize("other", [closing_after(b""), silence], ids=["no TLS", "silent"])
async def test_an_address_without_tls_is_passed_over(
    other: Script, names: Names, certified: ssl.SSLContext
) -> None:
    """Whoever answers there first is not the server, or is on its way out."""
    names.addresses = ("127.0.0.2", "127.0.0.3")
    async with (
        endpoint(answering(response(202, BODY)), host="127.0.0.3", tls=certified) as found,
        endpoint(other, host="127.0.0.2", port=found.port) as passed,
        exchanges(f"https://localhost:{found.port}", connect_timeout_seconds=0.5) as made,
    ):
        assert Response(202, {}, BODY) == await made.exchange("GET", "/")

    assert 1 == passed.connections


@resolved
async def test_a_full_name_is_that_of_its_certificate(
    names: Names, certified: ssl.SSLContext
) -> None:
    """The dot at its end is for the resolver alone."""
    names.addresses = ("127.0.0.1",)
    async with endpoint(answering(response(202, BODY)), tls=certified) as found:
        assert [Response(202, {}, BODY)] == await answers(f"https://localhost.:{found.port}")

    assert ["localhost."] == names.lookups
    assert f"localhost:{found.port}" == found.requests[0].headers["host"]


@resolved
async def test_a_name_is_looked_up_once_for_all_that_connect(names: Names) -> None:
    """What was found is used in turn, and for a while; what was not is asked for again."""
    url = "http://pacspace.test"
    async with exchanges(url, connections_max=8) as made:
        got = await asyncio.gather(*(made.exchange("GET", "/") for _ in range(8)))
    assert [NothingSent("the name pacspace.test does not resolve", "dns")] * 8 == got
    assert ["pacspace.test"] == names.lookups

    names.addresses = ("127.0.0.2", "127.0.0.3")
    closing = answering(response(202, BODY, "Connection: close"))
    async with (
        endpoint(closing, host="127.0.0.2") as one,
        endpoint(closing, host="127.0.0.3", port=one.port) as other,
        exchanges(f"{url}:{one.port}", connections_max=8) as made,
    ):
        await asyncio.gather(*(made.exchange("GET", "/") for _ in range(8)))
        await asyncio.gather(*(made.exchange("GET", "/") for _ in range(8)))

    assert ["pacspace.test"] * 2 == names.lookups
    assert 8 == one.connections == other.connections


@pytest.mark.parametrize("url", ["", "pacspace.io", "ftp://pacspace.io", "https://", "//x"])
async def test_what_is_no_base_url_is_a_mistake_of_the_caller(url: str) -> None:
    """It is refused before anything could be sent elsewhere."""
    with pytest.raises(ValueError, match="no base URL of a server"):
        async with exchanges(url):
            pass


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://app.pacspace.io", "app.pacspace.io"),
        ("HTTPS://App.PacSpace.io:443/", "app.pacspace.io"),
        ("http://app.pacspace.io:443", "app.pacspace.io:443"),
        ("http://[::1]:80", "[::1]"),
        ("http://[::1]:8080", "[::1]:8080"),
        ("http://127.0.0.1:80", "127.0.0.1"),
        ("https://faß.example", "xn--fa-hia.example"),
        ("https://pacspace.io.", "pacspace.io"),
    ],
)
def test_the_host_header_is_that_of_the_url(url: str, authority: str) -> None:
    """Without the scheme's own port, in ASCII, and without the dot that ends a full name."""
    assert authority == Dialler(url, connect_timeout_seconds=1).authority
