"""Clients that misbehave: they neither slow others nor leave a task, a connection or a descriptor behind."""

import asyncio
import contextlib
import resource
import select
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import uvicorn.protocols.http.auto
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api import requests
from serving import connections
from tests.support.engines import on_each_engine
from tests.support.process import ROOT, process
from tests.support.relay import Relay, client, serving
from tests.support.sockets import Leftovers, address, connected, exchange, request, resident
from tests.support.upstream import ANSWER, Gate, ScriptedUpstream, answer, gated
from tests.support.waiting import bounded, eventually

LOCAL = [("Host", "localhost")]
JSON = [*LOCAL, ("Content-Type", "application/json")]
MEGABYTE = 1024 * 1024
LONG = "x" * (4 * MEGABYTE)
FROZEN = 4096
"""Bytes that a frozen reader's socket takes before it is full."""
SOON = 0.7
"""Seconds that stand in for the 30 s a client has."""


class Narrow(connections.ClientConnection):
    """HTTP as `python server.py` speaks it, on sockets that hold little: a client that reads nothing is felt soon."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, FROZEN)
        super().connection_made(transport)


@pytest.fixture
async def ready(upstream: ScriptedUpstream, relay: Relay) -> AsyncIterator[Relay]:
    """A relay that has answered before; at the end there is no more than there was."""
    assert (await relay.read(await relay.ask())).content == ANSWER
    before = Leftovers.now(upstream)
    yield relay
    upstream.play(answer())
    assert (await relay.read(await relay.ask())).content == ANSWER
    await before.are_all(upstream)


@pytest.fixture
async def hurried(upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Relay]:
    """The same with a long reply allowed and clients' times cut short."""
    monkeypatch.setattr(requests, "BODY_TIMEOUT", SOON)
    monkeypatch.setattr(connections, "TAKE_TIMEOUT", SOON)
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", SOON)
    monkeypatch.setattr(uvicorn.protocols.http.auto, "AutoHTTPProtocol", Narrow)
    async with serving(upstream, max_reply_chars=len(LONG)) as relay:
        assert (await relay.read(await relay.ask())).content == ANSWER
        before = Leftovers.now(upstream)
        yield relay
        await before.are_all(upstream)


def stream_of(conversation_id: str) -> bytes:
    return request("GET", f"/conversations/{conversation_id}/stream", LOCAL)


@contextlib.contextmanager
def many_descriptors() -> Iterator[None]:
    """Room for thousands of sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 6000)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.asynccontextmanager
async def frozen(relay: Relay, requests: list[bytes]) -> AsyncIterator[None]:
    """Clients that ask, each for one of these, and read nothing of the answer that has come."""
    with contextlib.ExitStack() as stack:
        clients = [connected(relay, sending=asking, receive_buffer=FROZEN) for asking in requests]
        sockets = [stack.enter_context(client) for client in clients]
        await eventually(lambda: len(select.select(sockets, [], [], 0)[0]) == len(sockets))
        yield


@contextlib.asynccontextmanager
async def other(relay: Relay) -> AsyncIterator[Relay]:
    """The same relay over connections of their own, which are closed at the end."""
    async with client(relay.url) as connections:
        yield Relay(relay.url, connections)


# Frozen readers


@on_each_engine
async def test_frozen_readers_slow_nobody_hold_no_copies_and_are_dropped(
    upstream: ScriptedUpstream, hurried: Relay
) -> None:
    upstream.play(answer(LONG))
    conversation_id = await hurried.ask()
    before = resident()
    async with frozen(hurried, [stream_of(conversation_id)] * 20):
        descriptors = Leftovers.now(upstream).descriptors
        assert (await hurried.read(conversation_id)).content == LONG
        assert resident() - before < 45 * MEGABYTE  # copies would be 80; a file takes 11 for writing it
        await eventually(lambda: Leftovers.now(upstream).descriptors <= descriptors - 18)


async def test_a_frozen_reader_of_a_reply_in_progress_is_dropped_and_the_reply_goes_on(
    upstream: ScriptedUpstream, hurried: Relay
) -> None:
    gate = Gate()
    upstream.play(gated(gate, LONG[:-7], "the end"))
    conversation_id = await hurried.ask()
    gate.open()
    async with frozen(hurried, [stream_of(conversation_id)] * 5):
        await gate.reached(2)
        descriptors = Leftovers.now(upstream).descriptors
        await eventually(lambda: Leftovers.now(upstream).descriptors <= descriptors - 5)
        gate.open_wide()
        assert (await hurried.read(conversation_id)).content == LONG[:-7] + "the end"


@pytest.mark.parametrize("path", ["/models", "/conversations/{}/messages"])
async def test_a_client_that_does_not_read_a_long_response_is_dropped(
    upstream: ScriptedUpstream, hurried: Relay, path: str
) -> None:
    """All of it is in the server's buffer: nothing of the service waits for the client any more."""
    upstream.play(answer(LONG))
    upstream.models = [{"id": LONG * 2}]
    conversation_id = await hurried.ask()
    assert (await hurried.read(conversation_id)).content == LONG
    before = Leftovers.now(upstream).descriptors
    async with frozen(hurried, [request("GET", path.format(conversation_id), LOCAL)] * 5):
        await eventually(lambda: Leftovers.now(upstream).descriptors <= before + 5)


async def test_a_reader_that_freezes_anywhere_is_dropped(upstream: ScriptedUpstream, hurried: Relay) -> None:
    """Each has another part of the reply left, so that one is full before the last event and one just after it."""
    text = LONG[:160_000]
    upstream.play(answer(text))
    conversation_id = await hurried.ask()
    message_id = (await hurried.read(conversation_id)).start["message_id"]
    path = f"/conversations/{conversation_id}/stream"
    ids = [f"{message_id}:{place}" for place in range(0, len(text), 400)]
    before = Leftovers.now(upstream).descriptors
    with many_descriptors():
        async with frozen(hurried, [request("GET", path, [*LOCAL, ("Last-Event-ID", id)]) for id in ids]):
            await eventually(lambda: Leftovers.now(upstream).descriptors <= before + len(ids))


# Readers that come and go


async def test_a_thousand_readers_that_open_and_drop_leave_nothing_and_one_reply(
    upstream: ScriptedUpstream, ready: Relay
) -> None:
    gate, asked = Gate(), len(upstream.requests)
    upstream.play(gated(gate, "one"))
    conversation_id = await ready.ask()
    leave = struct.pack("ii", 1, 0)

    async def come_and_go(number: int) -> None:
        reader, writer = await asyncio.open_connection(*address(ready))
        writer.write(stream_of(conversation_id))
        if number % 4:
            await bounded(reader.readuntil(b"event: start"))
        if number % 2:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, leave)
        writer.transport.abort()

    async with ready.stream(conversation_id) as stays:
        for some in range(0, 1000, 50):
            await asyncio.gather(*map(come_and_go, range(some, some + 50)))
        gate.open_wide()
        assert (await stays.whole()).content == "one"
    assert len(upstream.requests) - asked == 1


@on_each_engine
async def test_a_reply_that_nobody_waits_for_is_finished(upstream: ScriptedUpstream, ready: Relay) -> None:
    gate = Gate()
    upstream.play(gated(gate, "one"))
    conversation_id = await ready.ask()
    with connected(ready, sending=stream_of(conversation_id)):
        await gate.reached()
    gate.open_wide()
    await ready.idle()
    assert (await ready.messages(conversation_id))[-1]["status"] == "complete"


# Slow and endless requests


@pytest.mark.parametrize(
    "start", [b"", b"G", b"GET / HTTP/1.1\r\nHost: localh", b"GET / HTTP/1.1\r\nHost: localhost\r\n"]
)
async def test_a_head_that_does_not_come_is_not_waited_for(
    upstream: ScriptedUpstream, hurried: Relay, start: bytes
) -> None:
    reader, writer = await asyncio.open_connection(*address(hurried))
    with contextlib.closing(writer):
        writer.write(start)
        with contextlib.suppress(ConnectionResetError):
            assert await bounded(reader.read()) == b""


async def dripping(connection: asyncio.StreamWriter, octets: bytes) -> None:
    """Send these again and again, slowly, for ever."""
    while True:
        connection.write(octets)
        await connection.drain()
        await asyncio.sleep(SOON / 10)


async def assert_dropped(relay: Relay, start: bytes, again: bytes) -> bytes:
    """What came before the service closed the connection of a client that sends this, then that again and again."""
    reader, writer = await asyncio.open_connection(*address(relay))
    with contextlib.closing(writer):
        writer.write(start)
        drip = asyncio.create_task(dripping(writer, again))
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := await bounded(reader.read(4096)):
                received += piece
        drip.cancel()
        await asyncio.wait([drip])
    return received


async def test_a_head_that_comes_too_slowly_is_not_waited_for(upstream: ScriptedUpstream, hurried: Relay) -> None:
    assert await assert_dropped(hurried, b"GET / HTTP/1.1\r\nX: ", b"x") == b""


UNREAD = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("start", "again"),
    [
        pytest.param(UNREAD + b"Content-Length: 1000000\r\n\r\n", b"x", id="declared"),
        pytest.param(UNREAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", id="chunked"),
    ],
)
async def test_a_body_that_nobody_reads_is_not_waited_for(
    upstream: ScriptedUpstream, hurried: Relay, start: bytes, again: bytes
) -> None:
    assert (await assert_dropped(hurried, start, again)).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("stray", [b"\r\n", b"\r\n\r\n"])
async def test_a_connection_that_goes_on_with_line_ends_alone_is_not_kept(
    upstream: ScriptedUpstream, hurried: Relay, stray: bytes
) -> None:
    health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    reader, writer = await asyncio.open_connection(*address(hurried))
    with contextlib.closing(writer):
        writer.write(health)
        assert b'"ok"' in await bounded(reader.readuntil(b'"ok"'))
        writer.write(stray)
        with contextlib.suppress(ConnectionResetError):
            await bounded(reader.read())
    assert b'"ok"' in await assert_dropped(hurried, health, stray)


async def test_trailers_without_end_take_no_memory(
    upstream: ScriptedUpstream, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(upstream) as relay:
        reader, writer = await asyncio.open_connection(*address(relay))
        with contextlib.closing(writer):
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
            before = resident()
            for _ in range(20):
                writer.write(b"a: b\r\n" * 40_000)
                await bounded(writer.drain())
            assert resident() - before < 20 * MEGABYTE
            writer.write(b"\r\n" + request("GET", "/health", LOCAL))
            assert (await bounded(reader.read())).count(b'"status":"ok"') == 2


async def test_requests_pipelined_without_end_are_not_collected(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.play(gated(gate := Gate(), "one"))
    async with serving(upstream) as relay:
        path = f"/conversations/{await relay.ask()}/stream"
        reader, writer = await asyncio.open_connection(*address(relay))
        with contextlib.closing(writer):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await gate.reached()
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
            with contextlib.suppress(ConnectionResetError):
                while await bounded(reader.read(2**16)):
                    pass
        gate.open_wide()
        await relay.idle()
        assert (await relay.read(await relay.ask())).content == "one"


async def test_a_client_that_pipelines_behind_a_stream_and_leaves_leaves_nothing(
    upstream: ScriptedUpstream, hurried: Relay
) -> None:
    """uvicorn tells the last request alone that its client has gone."""
    upstream.play(gated(gate := Gate(), "one"))
    conversation_id = await hurried.ask()
    async with hurried.stream(conversation_id) as reader:
        await reader.next()
        await gate.reached()
        before = Leftovers.now(upstream)
        stream = f"GET /conversations/{conversation_id}/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        connection = await asyncio.open_connection(*address(hurried))
        connection[1].write(stream + request("GET", "/", LOCAL) * 3)
        assert b"event: start" in await bounded(connection[0].readuntil(b"event: start"))
        connection[1].transport.abort()
        await before.are_all(upstream)
        gate.open_wide()
        assert (await reader.whole()).content == "one"


async def test_a_long_body_that_nobody_reads_takes_the_connection_from_no_other_request(
    upstream: ScriptedUpstream, hurried: Relay
) -> None:
    reader, writer = await asyncio.open_connection(*address(hurried))
    with contextlib.closing(writer):
        writer.write(UNREAD + b"Content-Length: 1000000\r\n\r\n")
        assert b" 404 " in await bounded(reader.readuntil(b"\r\n\r\n"))
        writer.write(b"x" * 1_000_000 + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b'"ok"' in await bounded(reader.readuntil(b'"ok"'))


CROWDED = """
import server
server.MAX_CONNECTIONS = 10
server.serve(server.load_settings())
"""

HURRIED = """
from serving import connections
import server

connections.HEAD_TIMEOUT = 0.3
server.main()
"""


async def test_a_silent_connection_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "hurried.py"
    file.write_text(HURRIED)
    async with process("python", str(file), env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as relay:
        reader, writer = await asyncio.open_connection(*address(relay))
        with contextlib.closing(writer), contextlib.suppress(ConnectionResetError):
            assert await bounded(reader.read()) == b""


async def test_connections_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "crowded.py"
    file.write_text(CROWDED)
    async with process("python", str(file), env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as relay:
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                stack.enter_context(connected(relay))
            await eventually(lambda: is_refused(relay))
        await eventually(lambda: is_answered(relay))


async def is_refused(relay: Relay) -> bool:
    return (await relay.client.get("/")).status_code == 503


async def is_answered(relay: Relay) -> bool:
    return (await relay.client.get("/")).status_code == 200


async def test_a_second_request_on_a_connection_has_its_time_too(upstream: ScriptedUpstream, hurried: Relay) -> None:
    reader, writer = await asyncio.open_connection(*address(hurried))
    with contextlib.closing(writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await bounded(reader.readuntil(b"}"))
        writer.write(b"GET / HTTP/1.1\r\nHost: local")
        with contextlib.suppress(ConnectionResetError):
            assert await bounded(reader.read()) == b""


async def test_slow_clients_take_nothing_from_others(upstream: ScriptedUpstream, ready: Relay) -> None:
    start = b"POST /conversations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connected(ready, sending=start))
            stack.enter_context(connected(ready, sending=start[:20]))
        assert (await ready.read(await ready.ask())).content == ANSWER
        started = time.monotonic()
        assert (await ready.health())["status"] == "ok"
        assert time.monotonic() - started < 1


@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\nX: ", b"GET /", b"GET /?", b"GET / HTTP/1.1\r\n"])
async def test_a_head_without_end_is_cut_off_before_memory_is_used(
    upstream: ScriptedUpstream, hurried: Relay, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 30)
    more = b"X-Header: x\r\n" * 5000 if head.endswith(b"\n") else b"x" * 65_536
    assert await taken(hurried, head, more, 32 * MEGABYTE) < 16 * MEGABYTE


@pytest.mark.parametrize("length", [None, 64 * MEGABYTE, 1])
async def test_a_body_without_end_is_cut_off_at_the_limit(
    upstream: ScriptedUpstream, ready: Relay, length: int | None
) -> None:
    before = resident()
    framing = ("Content-Length", str(length)) if length else ("Transfer-Encoding", "chunked")
    head = request("POST", "/conversations", [*JSON, framing])
    more = b"x" * 65_536 if length else b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    await taken(ready, head, more, 64 * MEGABYTE)
    assert resident() - before < 16 * MEGABYTE


async def taken(relay: Relay, head: bytes, more: bytes, most: int) -> int:
    """How many bytes the service took of a request that goes on and on, until it closed the connection."""
    reader, writer = await asyncio.open_connection(*address(relay))
    sent = 0
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        writer.write(head)
        while sent < most and not reader.at_eof():
            writer.write(more)
            sent += len(more)
            await bounded(writer.drain())
    return sent


# Connections of other kinds


async def test_pipelined_requests_are_answered_in_order(upstream: ScriptedUpstream, ready: Relay) -> None:
    plain = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n"
    reader, writer = await asyncio.open_connection(*address(ready))
    with contextlib.closing(writer):
        writer.write(
            b"".join(plain % path for path in (b"/", b"/health", b"/nowhere")) + request("GET", "/docs", LOCAL)
        )
        octets = await bounded(reader.read())
    starts = [
        octets.index(word)
        for word in (
            b"chat-relay",
            b'"status": "ok"' if b'"status": "ok"' in octets else b'"ok"',
            b"nothing at this path",
            b"<!doctype",
        )
    ]
    assert starts == sorted(starts)
    assert octets.count(b"HTTP/1.1 200 OK") == 3 and octets.count(b"HTTP/1.1 404") == 1


async def test_requests_pipelined_behind_a_stream_wait_for_its_end(upstream: ScriptedUpstream, ready: Relay) -> None:
    gate = Gate()
    upstream.play(gated(gate, "one"))
    path = f"/conversations/{await ready.ask()}/stream".encode()
    reader, writer = await asyncio.open_connection(*address(ready))
    with contextlib.closing(writer):
        writer.write(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path + request("GET", "/", LOCAL))
        await gate.reached()
        gate.open_wide()
        octets = await bounded(reader.read())
    assert 0 < octets.index(b'"done"') < octets.index(b"chat-relay")


async def test_a_half_closed_connection_is_ended_and_its_reply_goes_on(
    upstream: ScriptedUpstream, ready: Relay
) -> None:
    gate = Gate()
    upstream.play(gated(gate, "one"))
    conversation_id = await ready.ask()
    reader, writer = await asyncio.open_connection(*address(ready))
    with contextlib.closing(writer):
        writer.write(stream_of(conversation_id))
        await gate.reached()
        writer.write_eof()
        assert b"event: start" in await bounded(reader.read())
    gate.open_wide()
    await ready.idle()
    assert (await ready.messages(conversation_id))[-1]["content"] == "one"


async def test_two_thousand_idle_connections_are_borne(upstream: ScriptedUpstream, ready: Relay) -> None:
    descriptors = Leftovers.now(upstream).descriptors
    with many_descriptors(), contextlib.ExitStack() as stack:
        for number in range(2000):
            stack.enter_context(connected(ready))
            if not number % 100:
                await ready.health()
        await eventually(lambda: Leftovers.now(upstream).descriptors >= descriptors + 4000)
        started = time.monotonic()
        assert (await ready.read(await ready.ask())).content == ANSWER
        assert time.monotonic() - started < 2


async def test_a_connection_that_asks_for_another_protocol_gets_http(upstream: ScriptedUpstream, ready: Relay) -> None:
    upgrade = [*LOCAL, ("Upgrade", "websocket"), ("Sec-WebSocket-Key", "x" * 16), ("Sec-WebSocket-Version", "13")]
    octets = request("GET", "/", upgrade).replace(b"Connection: close", b"Connection: Upgrade, close")
    assert (await exchange(ready, octets)).status_code == 200
    assert (await exchange(ready, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")).status_code == 400


# Noise

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "MKCOL", "PURGE", "SEARCH"]
ID = "3f333df6-90a4-4fda-8dd3-9485d27cee36"
PATHS = [
    *("/", "/health", "/models", "/docs", "/redoc", "/openapi.json", "/conversations", f"/conversations/{ID}"),
    *(f"/conversations/{ID}/{rest}" for rest in ("messages", f"messages/{ID}", "stream", "nowhere", "")),
    *(
        "/nowhere",
        "//",
        "/conversations/",
        "/%00",
        "/%ff",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/" + "x" * 8000,
        "/\u00fc",
        "/?",
    ),
]
REFUSALS = {400, 401, 403, 404, 405, 408, 409, 413, 415, 422}


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_on_every_path_is_answered_as_documented(
    upstream: ScriptedUpstream, ready: Relay, method: str
) -> None:
    for path in PATHS:
        response = await exchange(ready, request(method, path, LOCAL))
        assert response.status_code in REFUSALS | {200, 201}, path
        if response.status_code in REFUSALS and method != "HEAD" and path != "/\u00fc":
            assert response.headers["content-type"] == "application/problem+json"
            assert (response.status_code == 405) == ("allow" in response.headers)


@pytest.mark.parametrize("line", ["get / HTTP/1.1", "FOO / HTTP/1.1", "GET / HTTP/9.9", "GET  HTTP/1.1", ""])
async def test_what_is_no_request_is_refused(upstream: ScriptedUpstream, ready: Relay, line: str) -> None:
    octets = await bounded(all_of(ready, f"{line}\r\nHost: localhost\r\n\r\n".encode()))
    assert octets == b"" or octets.startswith(b"HTTP/1.1 400 ")


async def test_connect_is_refused(upstream: ScriptedUpstream, ready: Relay) -> None:
    octets = await bounded(all_of(ready, b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    assert octets.startswith(b"HTTP/1.1 4")


async def all_of(relay: Relay, octets: bytes) -> bytes:
    """What comes back when these bytes are sent, and then no more."""
    reader, writer = await asyncio.open_connection(*address(relay))
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        writer.write(octets)
        writer.write_eof()
        return await reader.read()
    return b""


WORDS = [
    b"GET",
    b"POST",
    b" ",
    b"/",
    b"/health",
    b"/conversations",
    b"HTTP/1.1",
    b"\r\n",
    b"\r\n\r\n",
    b"Host: localhost",
]
WORDS += [
    b"Content-Length: 5",
    b"Content-Length: -1",
    b"Transfer-Encoding: chunked",
    b"0\r\n\r\n",
    b"\x00",
    b"\xff",
    b": ",
]
noise = st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(WORDS), max_size=20).map(b"".join))


@pytest.fixture(scope="module")
async def steady() -> AsyncIterator[tuple[ScriptedUpstream, Relay]]:
    async with ScriptedUpstream() as upstream, serving(upstream) as relay:
        assert (await relay.read(await relay.ask())).content == ANSWER
        yield upstream, relay


@given(st.lists(noise, min_size=1, max_size=10))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_noise_is_refused_and_leaves_nothing(
    steady: tuple[ScriptedUpstream, Relay], requests: list[bytes]
) -> None:
    upstream, relay = steady
    before = Leftovers.now(upstream)
    for octets in await bounded(asyncio.gather(*(all_of(relay, octets) for octets in requests))):
        assert octets == b"" or octets[:10] in (b"HTTP/1.1 2", b"HTTP/1.1 4", b"HTTP/1.1 1")
    await before.are_all(upstream)


anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(
    st.dictionaries(st.sampled_from(["limit", "cursor", "model", "last_event_id", "x"]), anything), st.integers(0, 2)
)
@settings(max_examples=80)
async def test_any_value_of_a_parameter_is_taken_or_refused(
    steady: tuple[ScriptedUpstream, Relay], params: dict[str, str], number: int
) -> None:
    _, relay = steady
    path = ["/conversations", f"/conversations/{ID}/stream", f"/conversations/{ID}/messages"][number]
    response = await relay.client.get(path, params=params)
    assert response.status_code in (200, 400, 404, 422)
