"""httpx on asyncio's protocols: TLS, back pressure, timers, and hosts with several addresses; on both event loops."""

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
import trustme

from openrouter import Delta, OpenRouter, Timers, UpstreamError
from tests.support.upstream import ScriptedUpstream, answer
from tests.support.waiting import bounded, eventually
from upstream import client as accelerator
from upstream import transport as network
from upstream.transport import STAGGER, Transport

MEGABYTE = 1024 * 1024
QUICK = httpx.Timeout(0.3)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops: the service runs on uvloop where there is one, most tests on asyncio's own."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """A certificate authority that this process trusts alone."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    return authority


def identity(authority: trustme.CA, name: str) -> ssl.SSLContext:
    """What a server with this name shows."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


async def read(base_url: str) -> str:
    """The answer to one question, without another try."""
    timers = Timers(retries=())
    openrouter = OpenRouter(base_url, "sk-key", app_url="http://localhost", app_title="Test", timers=timers)
    try:
        async with aclosing(openrouter.stream("test/one", [("user", "Hi")])) as values:
            return "".join([value.text async for value in values if isinstance(value, Delta)])
    finally:
        await openrouter.aclose()


@contextlib.asynccontextmanager
async def served_by(handler: Handler, port: int = 0) -> AsyncIterator[int]:
    """A port whose connections are handled so, and closed when that has ended, or with the server."""
    handling: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(handler(reader, writer))
        handling[task] = writer
        task.add_done_callback(lambda _: writer.close())

    async with await asyncio.start_server(accept, "127.0.0.1", port) as server:
        yield server.sockets[0].getsockname()[1]
        for task in handling:
            task.cancel()
        await asyncio.gather(*handling, return_exceptions=True)


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """A port that completes no connection: its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.2", 0), backlog=0))
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=Transport(ssl.create_default_context(), httpx.Limits()), trust_env=False
    ) as client:
        yield client


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name have these addresses."""

    def getaddrinfo(*_: object, **__: object) -> list[tuple[object, ...]]:
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [(family, 1, 6, "", (address, 0)) for family, address in zip(families, addresses, strict=True)]

    monkeypatch.setattr("upstream.transport.socket.getaddrinfo", getaddrinfo)


async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")


# TLS


async def test_an_answer_comes_over_tls(authority: trustme.CA) -> None:
    text = "ü😀 " * 100_000
    async with ScriptedUpstream(identity(authority, "127.0.0.1")) as upstream:
        upstream.play(answer(text, pieces=50))
        assert await bounded(read(upstream.base_url)) == text


@pytest.mark.parametrize("name", ["elsewhere.example", "127.0.0.2"])
async def test_a_certificate_of_another_name_is_not_taken(authority: trustme.CA, name: str) -> None:
    async with ScriptedUpstream(identity(authority, name)) as upstream:
        with pytest.raises(UpstreamError, match="can't be reached"):
            await bounded(read(upstream.base_url))
        assert upstream.requests == []


async def test_a_certificate_of_an_unknown_authority_is_not_taken(authority: trustme.CA) -> None:
    async with ScriptedUpstream(identity(trustme.CA(), "127.0.0.1")) as upstream:
        with pytest.raises(UpstreamError, match="can't be reached"):
            await bounded(read(upstream.base_url))
        assert upstream.requests == []
        await eventually(lambda: upstream.connections == 0)


async def test_a_handshake_that_never_ends_times_out_and_closes_the_connection() -> None:
    async def listen_only(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        received = b""
        while chunk := await reader.read(1000):
            received += chunk
        left.append(received[:1])

    left: list[bytes] = []
    async with served_by(listen_only) as port:
        stream = await network.Backend().connect_tcp("127.0.0.1", port)
        with pytest.raises(httpcore.ConnectTimeout):
            await bounded(stream.start_tls(ssl.create_default_context(), "localhost", 0.3))
        await eventually(lambda: left == [b"\x16"])  # a handshake's record, and the end


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"\x15\x03\x03"])
async def test_a_server_that_does_not_speak_tls_is_not_believed(first: bytes) -> None:
    async def speak_in_clear(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)

    async with served_by(speak_in_clear) as port:
        for _ in range(20):  # for what comes earlier and later
            with pytest.raises(UpstreamError, match="can't be reached"):
                await bounded(read(f"https://127.0.0.1:{port}"))


async def test_bytes_that_came_before_the_handshake_end_the_connection() -> None:
    async def speak_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        left.append(await reader.read())

    left: list[bytes] = []
    async with served_by(speak_first) as port:
        stream = await network.Backend().connect_tcp("127.0.0.1", port)
        await eventually(lambda: stream.get_extra_info("is_readable"))
        with pytest.raises(httpcore.ConnectError):
            await bounded(stream.start_tls(ssl.create_default_context(), "localhost", 5.0))
        await eventually(lambda: left == [b""])


# Back pressure and timers


async def test_a_long_request_goes_out_no_faster_than_upstream_reads_it(client: httpx.AsyncClient) -> None:
    body = bytes(range(256)) * (20 * MEGABYTE // 256)
    received = bytearray()

    async def read_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        while len(received) < len(body):
            received.extend(await reader.read(100_000))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with served_by(read_slowly) as port:
        response = await bounded(client.post(f"http://127.0.0.1:{port}/", content=body))
    assert (response.status_code, bytes(received) == body) == (204, True)


async def test_a_request_that_is_not_read_times_out(client: httpx.AsyncClient) -> None:
    async def stand_still(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async with served_by(stand_still) as port:
        with pytest.raises(httpx.WriteTimeout):
            await bounded(client.post(f"http://127.0.0.1:{port}/", content=bytes(50 * MEGABYTE), timeout=QUICK))


async def test_a_response_that_is_not_read_is_not_taken_into_memory(client: httpx.AsyncClient) -> None:
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for number in range(50):
            writer.write(bytes(MEGABYTE))
            try:
                await asyncio.wait_for(writer.drain(), 0.5)
            except TimeoutError:
                blocked.append(number)
                await writer.drain()

    blocked: list[int] = []
    async with served_by(pour) as port, client.stream("GET", f"http://127.0.0.1:{port}/") as response:
        chunks = response.aiter_raw()
        first = await bounded(anext(chunks))
        await eventually(lambda: blocked)
        assert blocked[0] < 20
        assert len(first) + sum([len(chunk) async for chunk in chunks]) == 50 * MEGABYTE


async def test_the_timer_counts_from_the_last_byte(client: httpx.AsyncClient) -> None:
    async def drip_then_fall_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        for _ in range(8):
            writer.write(b".")
            await asyncio.sleep(0.2)
        await asyncio.Event().wait()

    async with (
        served_by(drip_then_fall_silent) as port,
        client.stream("GET", f"http://127.0.0.1:{port}/", timeout=1.0) as response,
    ):
        received = b""
        with pytest.raises(httpx.ReadTimeout):
            async for chunk in response.aiter_raw():
                received += chunk
        assert received == b"........"


async def test_what_came_before_a_reset_is_read_before_the_error(client: httpx.AsyncClient) -> None:
    async def reset_in_the_middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf")  # an end in order would make it whole
        await released.wait()
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    released = asyncio.Event()
    async with (
        served_by(reset_in_the_middle) as port,
        client.stream("GET", f"http://127.0.0.1:{port}/") as response,
    ):
        chunks = response.aiter_raw()
        assert await bounded(anext(chunks)) == b"half"
        released.set()
        with pytest.raises(httpx.ReadError):
            await bounded(anext(chunks))


async def test_a_connection_that_the_server_closed_while_idle_is_not_used_again(client: httpx.AsyncClient) -> None:
    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await released.wait()

    async with served_by(answer_once) as port:
        for _ in range(3):
            released = asyncio.Event()
            assert (await bounded(client.get(f"http://127.0.0.1:{port}/"))).text == "hello"
            released.set()
            await asyncio.sleep(0.05)  # for the end to arrive: nothing tells of it


# Connecting


async def test_an_address_that_does_not_answer_costs_a_quarter_of_a_second(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 8305: a host's broken IPv6 must not keep its IPv4 waiting."""
    with deaf() as deaf_port:
        async with served_by(hello, deaf_port):
            resolve_to(monkeypatch, "127.0.0.2", "127.0.0.1")
            started = time.monotonic()
            assert (await bounded(client.get(f"http://two.example:{deaf_port}/"))).text == "hello"
            assert STAGGER <= time.monotonic() - started < 3.0


async def test_an_address_that_refuses_costs_no_time(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served_by(hello) as port:
        monkeypatch.setattr("upstream.transport.STAGGER", 60.0)
        resolve_to(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.1")
        assert (await bounded(client.get(f"http://three.example:{port}/"))).text == "hello"


async def test_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1")
    assert await network.Backend()._addresses("host.example") == ["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"]


async def test_a_name_is_looked_up_once_however_many_ask_and_again_when_it_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, answer = [], threading.Event()

    def getaddrinfo(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host)
        answer.wait(10)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("upstream.transport.socket.getaddrinfo", getaddrinfo)
    backend = network.Backend()
    together = [asyncio.create_task(backend._addresses("host.example")) for _ in range(5)]
    await eventually(lambda: asked)
    answer.set()
    errors = await bounded(asyncio.gather(*together, return_exceptions=True))
    assert [type(error) for error in errors] == [socket.gaierror] * 5
    with pytest.raises(socket.gaierror):
        await backend._addresses("host.example")
    assert asked == ["host.example"] * 2


async def test_callers_who_share_a_lookup_are_all_connected(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served_by(hello) as port:
        resolve_to(monkeypatch, "127.0.0.1")
        asking = (client.get(f"http://one.example:{port}/") for _ in range(10))
        assert [response.text for response in await bounded(asyncio.gather(*asking))] == ["hello"] * 10


async def test_a_host_that_only_refuses_is_an_error(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served_by(hello) as port:
        resolve_to(monkeypatch, "127.0.0.2", "127.0.0.3")
        with pytest.raises(httpx.ConnectError):
            await bounded(client.get(f"http://two.example:{port}/"))


async def test_a_host_that_never_answers_times_out(client: httpx.AsyncClient) -> None:
    with deaf() as port, pytest.raises(httpx.ConnectTimeout):
        await bounded(client.get(f"http://127.0.0.2:{port}/", timeout=QUICK))


async def test_a_connection_that_comes_about_as_its_caller_leaves_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = asyncio.Event()

    async def wait_for_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()
        writer.close()

    async def connect_and_leave(address: str, port: int) -> network.Stream:
        stream = await connect(address, port)
        asyncio.get_running_loop().call_soon(connecting.cancel)
        return stream

    connect = network._connect
    monkeypatch.setattr(network, "_connect", connect_and_leave)
    async with served_by(wait_for_the_end) as port:
        connecting = asyncio.create_task(network._first_to_connect(["127.0.0.1"], port))
        await asyncio.wait([connecting])
        assert connecting.cancelled()
        await bounded(ended.wait())


# Proxies


async def test_a_reply_that_is_given_up_in_a_tunnels_handshake_leaves_no_connection(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy is asked for the tunnel by a request of its own: that it is out doesn't mean that the reply's is."""
    tunnelled, ended = asyncio.Event(), asyncio.Event()

    async def tunnel_to_nowhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await reader.readexactly(1)  # of the handshake, which isn't answered
        tunnelled.set()
        await reader.read()
        ended.set()
        writer.close()

    async with served_by(tunnel_to_nowhere) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        timers = Timers(connect=0.5, retries=())
        openrouter = OpenRouter(
            "https://upstream.example", "sk-key", app_url="http://localhost", app_title="Test", timers=timers
        )
        asking = asyncio.create_task(anext(openrouter.stream("m", [("user", "Hi")])))
        await bounded(tunnelled.wait())
        asking.cancel()
        await asyncio.wait([asking])
        await bounded(ended.wait())
        await openrouter.aclose()


async def test_a_proxy_of_the_environment_is_used_for_elsewhere_and_not_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with served_by(hello) as port, served_by(proxy_says_hello) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy}")
        for base_url, said in ((f"http://127.0.0.1:{port}", "hello"), ("http://elsewhere.example", "by proxy")):
            async with accelerator.client(base_url, timeout=5.0) as client:
                assert (await bounded(client.get(f"{base_url}/"))).text == said


async def proxy_says_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET http://elsewhere.example/ ")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nby proxy")
