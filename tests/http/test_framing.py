"""What the HTTP client takes for a response, and what it sends as a request; on both event loops."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.http.peers import CHUNKED, HELLO, OK, UNTIL_THE_END, Wire, hello, saying, served_by
from tests.http.transports import ask, body, get, in_use, kept
from tests.support.waiting import bounded, eventually
from upstream.http.transport import Transport

MEGABYTE = 1024 * 1024


# Responses

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


@settings(max_examples=150)
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
