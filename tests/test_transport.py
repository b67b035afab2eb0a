"""The HTTP client against raw sockets: framing, bounds, timers, reuse, and cancelling; on both event loops."""

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.peers import HELLO, OK, Peer, Script, Wire, hello, served_by, turns
from tests.support.sockets import Leftovers
from tests.support.waiting import bounded, eventually
from upstream.connection import HIGH_WATER, Exchange
from upstream.transport import Transport

MEGABYTE = 1024 * 1024
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
UNTIL_THE_END = OK + b"\r\n"


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops: the service runs on uvloop where there is one, most tests on asyncio's own."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with Transport(None) as transport:
        yield transport


async def ask(
    transport: Transport,
    peer: Peer,
    method: str = "GET",
    *,
    body: bytes = b"",
    read: float = 10.0,
    url: str = "",
    **more: Any,
) -> tuple[httpx.Response, Exchange]:
    """The response's head, and its exchange."""
    timeout = {"connect": 10.0, "read": read, "write": read}
    request = httpx.Request(method, url or peer.url, content=body or None, extensions={"timeout": timeout, **more})
    response = await transport.handle_async_request(request)
    assert isinstance(response.stream, Exchange)
    return response, response.stream


async def body(exchange: Exchange) -> bytes:
    return b"".join([part async for part in exchange])


async def get(transport: Transport, peer: Peer) -> bytes:
    return await body((await ask(transport, peer))[1])


def kept(transport: Transport) -> int:
    """Connections that wait for another request."""
    return sum(not connection.is_closed for idle in transport._idle.values() for connection in idle)


def in_use(transport: Transport) -> int:
    return sum(not connection.is_closed for connection in transport._open) - kept(transport)


def saying(*pieces: bytes, then: str = "close") -> Script:
    """Answer each request of a connection so; `then` is `close`, `reset` or `stay`."""

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.write(*pieces)
        if then == "stay":
            await wire.gone()
        elif then == "reset":
            wire.reset()

    return script


# Framing

RECORDED: dict[str, tuple[bytes, int, bytes, bool]] = {  # status, body, whether the connection is kept
    "a length": (OK + b"Content-Length: 5\r\n\r\nhello", 200, b"hello", True),
    "a length, and close": (OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", False),
    "no body": (OK + b"content-length:0\r\nX-Empty:\r\n\r\n", 200, b"", True),
    "chunks": (CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", 200, b"hello", True),
    "extensions": (CHUNKED + b'2;a=b;c="d"\r\nhe\r\n003;e\r\nllo\r\n0;f\r\n\r\n', 200, b"hello", True),
    "trailers": (CHUNKED + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-Y:\r\n\r\n", 200, b"hello", True),
    "chunks, and close": (
        OK + b"Connection: close\r\nTransfer-Encoding: Chunked \r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        200,
        b"hello",
        False,
    ),
    "no length": (UNTIL_THE_END + b"hello", 200, b"hello", False),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, b"", True),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", False),
    "HTTP/1.0 kept": (
        b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 5\r\n\r\nhello",
        200,
        b"hello",
        True,
    ),
    "HTTP/1.0 without a length": (b"HTTP/1.0 200 OK\r\n\r\nhello", 200, b"hello", False),
    "100 and 103 before": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + HELLO,
        200,
        b"hello",
        True,
    ),
    "no reason": (b"HTTP/1.1 418\r\nContent-Length: 0\r\n\r\n", 418, b"", True),
}


@pytest.mark.parametrize(("octets", "status", "said", "is_kept"), RECORDED.values(), ids=RECORDED)
async def test_a_response_is_the_same_wherever_it_is_cut(
    octets: bytes, status: int, said: bytes, is_kept: bool
) -> None:
    ends_it = octets.startswith((UNTIL_THE_END, b"HTTP/1.0 200 OK\r\n\r\n"))
    async with served_by(hello) as peer:
        for pieces in ([octets[:cut], octets[cut:]] for cut in range(len(octets) + 1)):
            peer.script = saying(*filter(None, pieces), then="close" if ends_it else "stay")
            async with Transport(None) as transport:
                response, exchange = await bounded(ask(transport, peer))
                assert (response.status_code, await bounded(body(exchange))) == (status, said)
                assert (kept(transport), in_use(transport)) == (int(is_kept), 0)
                assert "link" not in response.headers and "x-sum" not in response.headers
        peer.script = saying(*(octets[at : at + 1] for at in range(len(octets))), then="close" if ends_it else "stay")
        async with Transport(None) as transport:
            assert await bounded(get(transport, peer)) == said


FRAGMENTS = st.sampled_from(
    [
        OK,
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n",
        b"HTTP/1.1 000 \r\n",
        b"Connection: upgrade\r\nUpgrade: h2c\r\n",
        b"Connection: close\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 18446744073709551616\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"X: \xff\r\n",
        b"\r\n",
        b"5\r\nhello\r\n",
        b"5;x=y\r\nhello\r\n",
        b"0\r\n\r\n",
        b"0\r\nX: y\r\n\r\n",
        b"fffffffffffffffff\r\n",
    ]
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(FRAGMENTS | st.binary(min_size=1, max_size=40), max_size=12), resets=st.booleans())
@example(pieces=[b"HTTP/1.1 000 \r\n", b"\r\n", b"hello"], resets=False)
async def test_whatever_a_server_says_is_a_response_or_an_error_of_httpx(pieces: list[bytes], resets: bool) -> None:
    async with served_by(saying(*pieces, then="reset" if resets else "close")) as peer, Transport(None) as transport:
        for method in ("GET", "POST"):
            try:
                response, exchange = await bounded(ask(transport, peer, method))
                assert 100 <= response.status_code < 1000
                await bounded(body(exchange))
            except httpx.TransportError:
                pass
            assert in_use(transport) == 0
        await eventually(lambda: peer.connections == 0)


@settings(max_examples=100)
@given(
    said=st.binary(max_size=200),
    chunks=st.lists(st.integers(1, 50), min_size=1),
    framing=st.sampled_from(["length", "chunked", "end"]),
    cuts=st.sets(st.integers(1, 400), max_size=8),
)
async def test_a_body_comes_as_it_was_sent_in_any_framing(
    said: bytes, chunks: list[int], framing: str, cuts: set[int]
) -> None:
    octets = OK + b"Content-Length: %d\r\n\r\n" % len(said) + said if framing == "length" else UNTIL_THE_END + said
    if framing == "chunked":
        octets, rest = CHUNKED, said
        for size in chunks * len(said):
            if rest:
                octets += b"%x\r\n%b\r\n" % (min(size, len(rest)), rest[:size])
            rest = rest[size:]
        octets += b"0\r\n\r\n"
    at = [0, *sorted(cut for cut in cuts if cut < len(octets)), len(octets)]
    pieces = [octets[start:stop] for start, stop in pairwise(at)]
    async with served_by(saying(*pieces)) as peer, Transport(None) as transport:
        assert await bounded(get(transport, peer)) == said


REFUSED = {
    "a length and chunks": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "two lengths in one": OK + b"Content-Length: 5, 6\r\n\r\nhello!",
    "a length with a sign": OK + b"Content-Length: +5\r\n\r\nhello",
    "a folded header": OK + b"X: a\r\n b\r\nContent-Length: 5\r\n\r\nhello",
    "NUL in a header": OK + b"X: a\0b\r\nContent-Length: 5\r\n\r\nhello",
    "CR in a header": OK + b"X: a\rb\r\nContent-Length: 5\r\n\r\nhello",
    "a header that ends in LF alone": OK + b"X: a\nContent-Length: 5\r\n\r\nhello",
    "a blank before the colon": OK + b"Content-Length : 5\r\n\r\nhello",
    "a size with a sign": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "a size with a prefix": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "a size with a blank": CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n",
    "a size that is too large": CHUNKED + b"fffffffffffffffff\r\n",
    "no size": CHUNKED + b"\r\nhello\r\n0\r\n\r\n",
    "a chunk that is longer than its size": CHUNKED + b"4\r\nhello\r\n0\r\n\r\n",
    "a length in a trailer": CHUNKED + b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    "another coding than chunks": OK + b"Transfer-Encoding: gzip\r\n\r\nhello",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    "another protocol, unnamed": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "no status": b"HTTP/1.1 099 OK\r\nContent-Length: 5\r\n\r\nhello",
    "no HTTP": b"220 mail.example ESMTP\r\n",
    "TLS": b"\x15\x03\x03\x00\x02\x02\x28",
}


@pytest.mark.parametrize("octets", REFUSED.values(), ids=REFUSED)
async def test_a_response_that_can_be_read_in_two_ways_is_refused(transport: Transport, octets: bytes) -> None:
    then = "close" if b"gzip" in octets else "stay"
    async with served_by(saying(octets, then=then)) as peer:
        with pytest.raises(httpx.RemoteProtocolError):
            await bounded(get(transport, peer))
        assert (kept(transport), in_use(transport)) == (0, 0)
        await eventually(lambda: peer.connections == 0)


ENDLESS = {
    "a line": (b"HTTP/1.1 200 ", b"x" * 10_000),
    "a header": (OK + b"X: ", b"x" * 10_000),
    "headers": (OK, b"X: y\r\n" * 2000),
    "other responses first": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 500),
    "an extension": (CHUNKED + b"5;", b"x" * 10_000),
    "trailers": (CHUNKED + b"5\r\nhello\r\n0\r\n", b"X: y\r\n" * 2000),
    "a trailer": (CHUNKED + b"5\r\nhello\r\n0\r\nX: ", b"x" * 10_000),
}


@pytest.mark.parametrize(("first", "more"), ENDLESS.values(), ids=ENDLESS)
async def test_what_comes_beside_a_body_is_bounded(transport: Transport, first: bytes, more: bytes) -> None:
    async def flood(wire: Wire) -> None:
        await wire.request()
        await wire.write(first)
        for _ in range(1000):
            sent.append(len(more))
            await wire.write(more)

    sent: list[int] = []
    async with served_by(flood) as peer:
        with pytest.raises(httpx.RemoteProtocolError):
            await bounded(get(transport, peer))
        await eventually(lambda: peer.connections == 0)
        assert sum(sent) < MEGABYTE


# Requests


async def test_a_request_says_its_host_once_and_its_length(transport: Transport) -> None:
    async def note(wire: Wire) -> None:
        while request := await wire.request():
            requests.append(request)
            await wire.write(HELLO)

    requests: list[bytes] = []
    async with served_by(note) as peer:
        stream, length = httpx.ByteStream(b"Hi"), [(b"Content-Length", b"2")]
        for headers in (length, [*length, (b"host", b"elsewhere.example")]):
            response = await transport.handle_async_request(
                httpx.Request("POST", f"{peer.url}a%20b?c#d", headers=headers, stream=stream)
            )
            assert await response.aread() == b"hello"
    here = b"POST /a%%20b?c HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 2\r\n\r\nHi" % peer.port
    assert requests == [
        here,
        b"POST /a%20b?c HTTP/1.1\r\nContent-Length: 2\r\nhost: elsewhere.example\r\n\r\nHi",
    ]


async def parts() -> AsyncIterator[bytes]:
    yield b"Hi"


class Raw(httpx.URL):
    """A URL whose target nobody has escaped."""

    @property
    def raw_path(self) -> bytes:
        return b"/ HTTP/1.1\r\nX: y"


UNSENT: dict[str, dict[str, Any]] = {
    "CR in a value": {"headers": [(b"X", b"a\rb")]},
    "LF in a value": {"headers": [(b"X", b"a\nY: b")]},
    "NUL in a value": {"headers": [(b"X", b"a\0b")]},
    "a line end in a name": {"headers": [(b"X: a\r\nY", b"b")]},
    "a colon in a name": {"headers": [(b"X:", b"b")]},
    "no name": {"headers": [(b"", b"b")]},
    "a line end in the method": {"method": "GET / HTTP/1.1\r\nX:"},
    "a blank in the method": {"method": "GET /"},
    "a body of unknown length": {"method": "POST", "content": parts()},
    "a body without a length": {"method": "POST", "stream": httpx.ByteStream(b"Hi")},
    "a body that is too long": {"stream": httpx.ByteStream(b"Hi"), "headers": {"Content-Length": "1"}},
    "a body that is too short": {"stream": httpx.ByteStream(b"Hi"), "headers": {"Content-Length": "3"}},
    "two lengths": {"stream": httpx.ByteStream(b""), "headers": [("Content-Length", "0"), ("Content-Length", "1")]},
    "no number for a length": {"stream": httpx.ByteStream(b""), "headers": {"Content-Length": "-1"}},
}


@pytest.mark.parametrize("wrong", UNSENT.values(), ids=UNSENT)
async def test_a_request_that_could_be_read_as_another_is_not_sent(transport: Transport, wrong: dict[str, Any]) -> None:
    async def listen(wire: Wire) -> None:
        received.append(await wire.reader.read())

    received: list[bytes] = []
    async with served_by(listen) as peer:
        request = httpx.Request(**{"method": "GET", "url": peer.url, **wrong})
        with pytest.raises(httpx.LocalProtocolError):
            await bounded(transport.handle_async_request(request))
        await eventually(lambda: len(received) == peer.accepted)
    assert in_use(transport) == 0 and all(b"Hi" not in octets for octets in received if len(octets) < 50)


async def test_a_target_with_a_line_end_is_not_sent(transport: Transport) -> None:
    async with served_by(hello) as peer:
        request = httpx.Request("GET", peer.url)
        request.url = Raw(peer.url)
        with pytest.raises(httpx.LocalProtocolError):
            await bounded(transport.handle_async_request(request))
    assert peer.accepted == 0


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http:///x", "/x", "http://127.0.0.1:99999/"])
async def test_a_url_that_leads_nowhere_is_an_error_of_httpx(transport: Transport, url: str) -> None:
    with pytest.raises((httpx.UnsupportedProtocol, httpx.ConnectError)):
        await bounded(transport.handle_async_request(httpx.Request("GET", url)))


@pytest.mark.parametrize("then", ["close", "reset", "stay"])
async def test_an_answer_before_the_request_is_out_is_given_and_ends_the_connection(
    transport: Transport, then: str
) -> None:
    async def refuse(wire: Wire) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        await wire.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno!")
        if then == "reset":
            await answered.wait()
            wire.reset()
        if then == "stay":
            await wire.gone()

    answered = asyncio.Event()
    async with served_by(refuse) as peer:
        response, exchange = await bounded(ask(transport, peer, "POST", body=bytes(20 * MEGABYTE)))
        assert (response.status_code, await bounded(body(exchange))) == (413, b"no!")
        answered.set()
        assert (kept(transport), in_use(transport)) == (0, 0)


# Back pressure and timers


async def test_a_long_request_goes_out_no_faster_than_the_server_reads_it(transport: Transport) -> None:
    sent, received = bytes(range(256)) * (20 * MEGABYTE // 256), bytearray()

    async def read_slowly(wire: Wire) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        while len(received) < len(sent):
            received.extend(await wire.reader.read(100_000))
            most.append(max(connection.transport.get_write_buffer_size() for connection in transport._open))
        await wire.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await wire.gone()

    most: list[int] = []
    async with served_by(read_slowly) as peer:
        response, _ = await bounded(ask(transport, peer, "POST", body=sent))
        assert (response.status_code, bytes(received) == sent, kept(transport)) == (204, True, 1)
        assert max(most) < MEGABYTE


async def test_a_request_that_is_not_read_times_out(transport: Transport) -> None:
    async def stand_still(wire: Wire) -> None:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async with served_by(stand_still) as peer:
        with pytest.raises(httpx.WriteTimeout):
            await bounded(ask(transport, peer, "POST", body=bytes(50 * MEGABYTE), read=0.3))
        assert in_use(transport) == 0


async def test_a_response_that_is_not_read_is_not_taken_into_memory(transport: Transport) -> None:
    async def pour(wire: Wire) -> None:
        await wire.request()
        wire.writer.write(UNTIL_THE_END)
        for number in range(50):
            wire.writer.write(bytes(MEGABYTE))
            try:
                await asyncio.wait_for(wire.writer.drain(), 0.3)
            except TimeoutError:
                blocked.append(number)
                await wire.writer.drain()

    blocked: list[int] = []
    async with served_by(pour) as peer:
        _, exchange = await bounded(ask(transport, peer))
        await eventually(lambda: blocked)
        assert blocked[0] < 20 and exchange._size <= 3 * HIGH_WATER
        assert len(await bounded(body(exchange))) == 50 * MEGABYTE


@pytest.mark.parametrize("octets", [b"", b"HTTP/1.1 200", OK + b"X: y\r\n", CHUNKED, CHUNKED + b"5\r\nhe"])
async def test_silence_ends_in_a_time_out_wherever_it_begins(transport: Transport, octets: bytes) -> None:
    async with served_by(saying(octets, then="stay")) as peer:
        with pytest.raises(httpx.ReadTimeout):
            _, exchange = await bounded(ask(transport, peer, read=0.1))
            await bounded(body(exchange))
        await exchange.aclose() if octets.startswith(CHUNKED) else None
        assert in_use(transport) == 0
        await eventually(lambda: peer.connections == 0)


async def test_the_timer_counts_from_the_last_byte(transport: Transport) -> None:
    async def drip_then_fall_silent(wire: Wire) -> None:
        await wire.request()
        await wire.write(OK + b"Content-Length: 100\r\n\r\n")
        for _ in range(6):
            await wire.write(b".")
            await asyncio.sleep(0.15)
        await wire.gone()

    received = b""
    async with served_by(drip_then_fall_silent) as peer:
        _, exchange = await bounded(ask(transport, peer, read=0.6))
        with pytest.raises(httpx.ReadTimeout):
            async for part in exchange:
                received += part
        assert received == b"......"


async def test_a_deadline_ends_a_response_however_much_comes(transport: Transport) -> None:
    async def drip(wire: Wire) -> None:
        await wire.request()
        await wire.write(UNTIL_THE_END)
        while True:
            await wire.write(b".")
            await asyncio.sleep(0.01)

    async with served_by(drip) as peer:
        started = asyncio.get_running_loop().time()
        _, exchange = await bounded(ask(transport, peer, deadline=started + 30))
        await bounded(exchange.read())
        exchange.deadline = started + 0.2  # earlier than what the timer is set to
        with pytest.raises(httpx.ReadTimeout):
            await bounded(body(exchange))
        assert 0.2 <= asyncio.get_running_loop().time() - started < 3


@pytest.mark.parametrize("octets", [[HELLO], [OK + b"Content-Length: 5\r\n\r\n", b"hello"]], ids=["head", "body"])
async def test_what_arrived_while_the_process_was_paused_is_read_instead_of_a_time_out(
    transport: Transport, octets: Sequence[bytes]
) -> None:
    async def stop_the_process(wire: Wire) -> None:
        await wire.request()
        *first, last = octets
        await wire.write(*first)
        await asyncio.sleep(0.1)  # of the timer's 0.2
        wire.writer.write(last)
        time.sleep(0.5)  # noqa: ASYNC251  # as SIGSTOP and SIGCONT do
        await wire.gone()

    async with served_by(stop_the_process) as peer:
        _, exchange = await bounded(ask(transport, peer, read=0.2))
        assert await bounded(body(exchange)) == b"hello"


# Ends

MOMENTS: dict[str, tuple[list[bytes], bytes]] = {  # what comes, and what of it is a body
    "before the status line": ([], b""),
    "in the status line": ([b"HTTP/1.1 20"], b""),
    "in the head": ([OK + b"Content-Le"], b""),
    "after the head": ([OK + b"Content-Length: 5\r\n\r\n"], b""),
    "in the body": ([OK + b"Content-Length: 5\r\n\r\n", b"hel"], b"hel"),
    "in the body, at once": ([OK + b"Content-Length: 5\r\n\r\nhel"], b"hel"),
    "in a chunk": ([CHUNKED + b"5\r\nhel"], b"hel"),
    "in a size": ([CHUNKED + b"5\r\nhello\r\n1"], b"hello"),
    "before the last chunk": ([CHUNKED + b"5\r\nhello\r\n"], b"hello"),
    "after the last chunk": ([CHUNKED + b"5\r\nhello\r\n0\r\n"], b"hello"),
    "in a trailer": ([CHUNKED + b"5\r\nhello\r\n0\r\nX: "], b"hello"),
    "after another response": ([b"HTTP/1.1 100 Continue\r\n\r\n"], b""),
}


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize(("pieces", "said"), MOMENTS.values(), ids=MOMENTS)
async def test_what_came_before_a_connection_died_is_read_before_the_error(
    transport: Transport, pieces: list[bytes], said: bytes, then: str
) -> None:
    received = b""
    async with served_by(saying(*pieces, then=then)) as peer:
        with pytest.raises(httpx.ReadError if then == "reset" else httpx.RemoteProtocolError):
            _, exchange = await bounded(ask(transport, peer, "POST", body=b"Hi"))
            while part := await bounded(exchange.read()):
                received += part
        assert received == said
        assert (kept(transport), in_use(transport), peer.accepted) == (0, 0, 1)


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize("until", [b"", b"\r\n\r\n"], ids=["at once", "after the head"])
async def test_a_connection_that_dies_while_a_request_is_sent_is_an_error(
    transport: Transport, until: bytes, then: str
) -> None:
    async def die(wire: Wire) -> None:
        if until:
            await wire.reader.readuntil(until)
        if then == "reset":
            wire.reset()

    async with served_by(die) as peer:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await bounded(ask(transport, peer, "POST", body=bytes(20 * MEGABYTE)))
        assert in_use(transport) == 0


async def test_a_body_that_lasts_until_the_end_is_cut_short_by_a_reset(transport: Transport) -> None:
    async with served_by(saying(UNTIL_THE_END + b"half", then="reset")) as peer:
        _, exchange = await bounded(ask(transport, peer))
        assert await bounded(exchange.read()) == b"half"
        with pytest.raises(httpx.ReadError):
            await bounded(exchange.read())


async def test_a_body_that_lasts_until_the_end_is_not_whole_if_it_is_closed_on_this_side(transport: Transport) -> None:
    async with served_by(saying(UNTIL_THE_END + b"half", then="stay")) as peer:
        _, exchange = await bounded(ask(transport, peer))
        assert await bounded(exchange.read()) == b"half"
        reading = asyncio.create_task(exchange.read())
        await turns(2)
        await transport.aclose()
        with pytest.raises(httpx.ReadError):
            await bounded(reading)


async def test_closing_the_client_ends_a_request_that_is_being_sent(transport: Transport) -> None:
    async def stand_still(wire: Wire) -> None:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async with served_by(stand_still) as peer:
        asking = asyncio.create_task(ask(transport, peer, "POST", body=bytes(20 * MEGABYTE)))
        await eventually(lambda: any(connection.is_full for connection in transport._open))
        await transport.aclose()
        with pytest.raises(httpx.ReadError):
            await bounded(asking)


# The next request


async def test_a_connection_is_used_again(transport: Transport) -> None:
    async with served_by(hello) as peer:
        assert [await bounded(get(transport, peer)) for _ in range(3)] == [b"hello"] * 3
        assert (peer.accepted, kept(transport)) == (1, 1)
        together = await bounded(asyncio.gather(*(get(transport, peer) for _ in range(3))))
        assert (together, peer.accepted, kept(transport)) == ([b"hello"] * 3, 3, 3)


async def test_an_idle_connection_is_closed_after_a_while(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upstream.transport.KEPT_SECONDS", 0.3)
    async with served_by(hello) as peer:
        await bounded(asyncio.gather(*(get(transport, peer) for _ in range(5))))
        assert kept(transport) == 5
        await eventually(lambda: peer.connections == 0)
        assert not any(transport._idle.values())


EVIL = OK + b"Content-Length: 4\r\n\r\nevil"


@pytest.mark.parametrize("more", [EVIL, b"x", b"HTTP/1.1 100 Continue\r\n\r\n", b"\0" * 1000])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
async def test_a_connection_that_sends_more_than_its_response_is_never_used_again(
    transport: Transport, more: bytes, at_once: bool
) -> None:
    async with served_by(saying(*([HELLO + more] if at_once else [HELLO, more]), then="stay")) as peer:
        assert await bounded(get(transport, peer)) == b"hello"
        await eventually(lambda: kept(transport) == 0)
        assert await bounded(get(transport, peer)) == b"hello"
        assert peer.accepted == 2


@pytest.mark.parametrize("more", [EVIL, b"\r\n", b""], ids=["a response", "a blank line", "the end"])
async def test_a_connection_with_something_to_read_is_not_used_again(transport: Transport, more: bytes) -> None:
    """Before the loop has turned to see it."""

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.write(HELLO)
        wires.append(wire)
        await wire.gone()

    wires: list[Wire] = []
    async with served_by(script) as peer:
        for number in range(1, 4):
            assert await bounded(get(transport, peer)) == b"hello"
            await eventually(lambda number=number: len(wires) == number)  # type: ignore[misc]
            wires[-1].writer.write(more) if more else wires[-1].writer.write_eof()
            assert kept(transport) == 1
        assert peer.accepted == 3


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_get_is_repeated_if_a_kept_connection_closed_before_a_byte_came_and_a_post_is_not(
    transport: Transport, then: str
) -> None:
    async def close_at_the_second(wire: Wire) -> None:
        await wire.request()
        await wire.write(HELLO)
        await wire.request()
        if then == "reset":
            wire.reset()

    async with served_by(close_at_the_second) as peer:
        assert [await bounded(get(transport, peer)) for _ in range(3)] == [b"hello"] * 3
        assert peer.accepted == 3
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await bounded(ask(transport, peer, "POST", body=b"Hi"))
        assert peer.accepted == 3


async def test_a_get_is_not_repeated_once_a_byte_came_nor_on_a_fresh_connection(transport: Transport) -> None:
    async def stammer(wire: Wire) -> None:
        await wire.request()
        await wire.write(HELLO)
        await wire.request()
        await wire.write(b"H")

    async with served_by(stammer) as peer:
        assert await bounded(get(transport, peer)) == b"hello"
        with pytest.raises(httpx.RemoteProtocolError):
            await bounded(get(transport, peer))
        assert peer.accepted == 1
        peer.script = saying()
        with pytest.raises(httpx.RemoteProtocolError):
            await bounded(get(transport, peer))
        assert peer.accepted == 2


async def test_a_head_has_no_body(transport: Transport) -> None:
    async with served_by(saying(OK + b"Content-Length: 5\r\n\r\n", then="stay")) as peer:
        response, exchange = await bounded(ask(transport, peer, "HEAD"))
        assert (response.headers["content-length"], await bounded(body(exchange))) == ("5", b"")
        assert in_use(transport) == 0


# The rest of a response that nobody wants


async def test_a_finished_response_leaves_its_connection_to_the_next_request(transport: Transport) -> None:
    async def end_when_told(wire: Wire) -> None:
        await wire.request()
        await wire.write(CHUNKED + b"4\r\ndone\r\n")
        await told.wait()
        await wire.write(b"4\r\nmore\r\n", b"0\r\n\r\n")
        await wire.answer(HELLO)

    told = asyncio.Event()
    async with served_by(end_when_told) as peer:
        _, exchange = await bounded(ask(transport, peer))
        assert await bounded(exchange.read()) == b"done"
        exchange.finish(10)
        assert kept(transport) == 0
        told.set()
        await eventually(lambda: kept(transport) == 1)
        assert await bounded(get(transport, peer)) == b"hello"
        assert peer.accepted == 1


async def test_a_finished_response_that_goes_on_is_closed_and_not_kept_meanwhile(transport: Transport) -> None:
    async def pour(wire: Wire) -> None:
        await wire.request()
        await wire.write(CHUNKED)
        while not wire.reader.at_eof():
            await wire.write(b"10000\r\n" + bytes(65536) + b"\r\n")
            sent.append(65536)

    sent: list[int] = []
    async with served_by(pour) as peer:
        _, exchange = await bounded(ask(transport, peer))
        await eventually(lambda: exchange._size > HIGH_WATER)
        exchange.finish(0.3)
        before = len(sent)
        await eventually(lambda: peer.connections == 0)
        assert not exchange._body and len(sent) > before + 10 and in_use(transport) == 0


async def test_a_response_that_is_complete_is_finished_at_once(transport: Transport) -> None:
    async with served_by(hello) as peer:
        _, exchange = await bounded(ask(transport, peer))
        await eventually(lambda: kept(transport) == 1)
        exchange.finish(0.0)
        await exchange.aclose()
        await turns(3)
        assert await bounded(get(transport, peer)) == b"hello"
        assert peer.accepted == 1


# Cancelling


@asynccontextmanager
async def nothing_left_of(peer: Peer) -> AsyncIterator[None]:
    """No connection, task, descriptor, or timer that refers to an exchange."""
    before = Leftovers.now(peer)
    yield
    await before.are_all(peer)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, Exchange)]


async def cancelled_at_every_turn(transport: Transport, peer: Peer, times: int, **how: Any) -> None:
    """Cancel a whole request, its body read, at random turns of the loop; every other time twice."""

    async def whole() -> None:
        _, exchange = await ask(transport, peer, **how)
        try:
            await body(exchange)
        finally:
            await exchange.aclose()

    chance = random.Random(times)
    whole_task, most = asyncio.create_task(whole()), 0
    while not whole_task.done():
        await turns(1)
        most += 1
    await whole_task
    for number in range(times):
        for idle in transport._idle.values():
            for connection in list(idle):
                connection.abort()
        task = asyncio.create_task(whole())
        await turns(chance.randint(0, most))
        task.cancel()
        if number % 2:
            await turns(1)
            task.cancel()
        await bounded(asyncio.wait([task]))
        assert task.cancelled() or not task.exception()
        assert in_use(transport) == 0
    await transport.aclose()


async def test_cancelling_at_any_turn_leaves_nothing(transport: Transport) -> None:
    async def script(wire: Wire) -> None:
        while await wire.request():
            await wire.write(CHUNKED, b"5\r\n", b"hello", b"\r\n", b"0\r\n\r\n")

    async with served_by(script) as peer, nothing_left_of(peer):
        await cancelled_at_every_turn(transport, peer, 200)


async def test_cancelling_while_a_long_request_is_sent_leaves_nothing(transport: Transport) -> None:
    async with served_by(hello) as peer, nothing_left_of(peer):
        await cancelled_at_every_turn(transport, peer, 50, method="POST", body=bytes(4 * MEGABYTE))
