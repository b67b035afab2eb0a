"""How the HTTP client comes to a connection: addresses, TLS, proxies of the environment; on both event loops."""

import asyncio
import base64
import contextlib
import datetime
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.http.peers import HELLO, OK, Peer, Refusal, Script, Wire, deaf, hello, served_by, turns
from tests.http.transports import ask, cancelled_at_every_turn, in_use, nothing_left_of
from tests.support.waiting import bounded, eventually
from upstream.http import addresses
from upstream.http.addresses import ATTEMPT_INTERVAL, Dialer
from upstream.http.connection import HIGH_WATER, Connection, Exchange
from upstream.http.proxies import proxy_for
from upstream.http.transport import Transport

ELSEWHERE = "https://upstream.example"
PROXIES = [name for kind in ("http", "https", "all", "no") for name in (f"{kind}_proxy", f"{kind}_proxy".upper())]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """A certificate authority that this process trusts alone."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return authority


def identity(authority: trustme.CA, *names: str, **more: Any) -> ssl.SSLContext:
    """What a server with these names shows."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names, **more).configure_cert(context)
    return context


def expired(authority: trustme.CA) -> ssl.SSLContext:
    long_ago = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    return identity(authority, "127.0.0.1", not_before=long_ago, not_after=long_ago + datetime.timedelta(days=90))


def self_signed(folder: Path) -> ssl.SSLContext:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("upstream.example")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1), [])
    certificate = builder.add_extension(names, critical=True).sign(key, hashes.SHA256())
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(pem, form, serialization.NoEncryption())
    (folder / "self.pem").write_bytes(secret + certificate.public_bytes(pem))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "self.pem")
    return context


def proxy_to(peer: Peer, requests: list[bytes] | None = None) -> Script:
    """A proxy that has one other end, and notes what it is asked."""

    async def script(wire: Wire) -> None:
        request = await wire.request()
        if requests is not None:
            requests.append(request)
        await wire.tunnel(peer.port)

    return script


async def fetch(url: str, transport: Transport | None = None, connect: float = 10.0) -> bytes:
    """A response's body; by a client of the environment if there is no other."""
    timeout = {"connect": connect, "read": 10.0, "write": 10.0}
    async with contextlib.AsyncExitStack() as stack:
        client = transport if transport else await stack.enter_async_context(Transport.for_base_url(url))
        request = httpx.Request("GET", url, extensions={"timeout": timeout})
        response = await bounded(client.handle_async_request(request))
        return await bounded(response.aread())


def resolve_to(monkeypatch: pytest.MonkeyPatch, *found: str) -> None:
    """Let every name have these addresses."""

    def getaddrinfo(*_: object, **__: object) -> list[tuple[object, ...]]:
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in found]
        return [(family, 1, 6, "", (address, 0)) for family, address in zip(families, found, strict=True)]

    monkeypatch.setattr("upstream.http.addresses.socket.getaddrinfo", getaddrinfo)


# Addresses


async def test_an_address_that_does_not_answer_costs_a_quarter_of_a_second(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 8305: a host's broken IPv6 must not keep its IPv4 waiting."""
    with deaf() as port:
        async with served_by(hello, port=port):
            resolve_to(monkeypatch, "127.0.0.2", "127.0.0.1")
            started = time.monotonic()
            assert await fetch(f"http://two.example:{port}/", transport) == b"hello"
            assert ATTEMPT_INTERVAL <= time.monotonic() - started < 3.0


async def test_an_address_that_refuses_costs_no_time(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served_by(hello) as peer:
        monkeypatch.setattr("upstream.http.addresses.ATTEMPT_INTERVAL", 60.0)
        resolve_to(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.1")
        assert await fetch(f"http://three.example:{peer.port}/", transport) == b"hello"


async def test_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1")
    found = await Dialer()._look_up("host.example")
    assert found == ["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"]


async def test_a_name_is_looked_up_once_however_many_ask_and_again_when_it_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, answer = [], threading.Event()

    def getaddrinfo(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host)
        answer.wait(10)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("upstream.http.addresses.socket.getaddrinfo", getaddrinfo)
    dialer = Dialer()
    together = [asyncio.create_task(dialer.connect("host.example", 80)) for _ in range(5)]
    await eventually(lambda: asked)
    together[0].cancel()
    await asyncio.wait(together[:1])
    answer.set()
    errors = await bounded(asyncio.gather(*together[1:], return_exceptions=True))
    assert [type(error) for error in errors] == [socket.gaierror] * 4
    with pytest.raises(socket.gaierror):
        await dialer.connect("host.example", 80)
    assert asked == ["host.example"] * 2


async def test_callers_who_share_a_lookup_are_all_connected(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served_by(hello) as peer:
        resolve_to(monkeypatch, "127.0.0.1")
        asking = (fetch(f"http://one.example:{peer.port}/", transport) for _ in range(10))
        assert await bounded(asyncio.gather(*asking)) == [b"hello"] * 10


@pytest.mark.parametrize("name", ["two.example", "x" * 70 + ".example"])
async def test_a_host_that_cannot_be_reached_is_an_error(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async with served_by(hello) as peer:
        if name == "two.example":
            resolve_to(monkeypatch, "127.0.0.2", "127.0.0.3")
        with pytest.raises(httpx.ConnectError) as caught:
            await fetch(f"http://{name}:{peer.port}/", transport)
        assert isinstance(caught.value.__cause__, OSError)


async def test_a_host_that_never_answers_times_out(transport: Transport) -> None:
    with deaf() as port, pytest.raises(httpx.ConnectTimeout):
        await fetch(f"http://127.0.0.2:{port}/", transport, connect=0.3)


async def test_a_connection_that_comes_about_as_its_caller_leaves_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect_and_leave(address: str, port: int) -> Connection:
        connection = await connect(address, port)
        asyncio.get_running_loop().call_soon(connecting.cancel)
        return connection

    connect = addresses._connect
    monkeypatch.setattr(addresses, "_connect", connect_and_leave)
    async with served_by(Wire.gone) as peer:
        connecting = asyncio.create_task(addresses._first_to_connect(["127.0.0.1"], peer.port))
        await asyncio.wait([connecting])
        assert connecting.cancelled()
        await eventually(lambda: peer.accepted and not peer.connections)


# TLS


async def test_a_response_comes_over_tls_and_its_connection_is_used_again(authority: trustme.CA) -> None:
    text = bytes(range(256)) * 4000

    async def answer(wire: Wire) -> None:
        await wire.answer(OK + b"Content-Length: %d\r\n\r\n" % len(text), text[:1000], text[1000:])

    async with served_by(answer, identity(authority, "127.0.0.1")) as peer, Transport.for_base_url(peer.url) as client:
        assert [await fetch(peer.url, client) == text for _ in range(3)] == [True] * 3
        assert peer.accepted == 1


async def test_a_response_that_is_not_read_is_not_taken_into_memory_over_tls(authority: trustme.CA) -> None:
    async def pour(wire: Wire) -> None:
        await wire.request()
        wire.writer.write(OK + b"\r\n" + bytes(20_000_000))
        await wire.writer.drain()

    async with served_by(pour, identity(authority, "127.0.0.1")) as peer, Transport.for_base_url(peer.url) as client:
        response = await bounded(client.handle_async_request(httpx.Request("GET", peer.url)))
        exchange = response.stream
        assert isinstance(exchange, Exchange)
        await eventually(lambda: exchange._size > HIGH_WATER)
        await turns(200)
        assert exchange._size <= 3 * HIGH_WATER
        assert len(await bounded(response.aread())) == 20_000_000


async def test_encrypted_bytes_are_not_taken_for_an_answer_when_the_connection_breaks(authority: trustme.CA) -> None:
    refusal = Refusal(identity(authority, "127.0.0.1"))
    async with Transport.for_base_url(refusal.url) as client:
        with pytest.raises(httpx.ReadError):
            await bounded(ask(client, refusal.url, "POST", body=refusal, headers={"Content-Length": "2"}))


def showing(wrong: str, authority: trustme.CA, folder: Path) -> ssl.SSLContext:
    match wrong:
        case "name":
            return identity(authority, "elsewhere.example")
        case "address":
            return identity(authority, "127.0.0.2")
        case "authority":
            return identity(trustme.CA(), "127.0.0.1", "upstream.example")
        case "expired":
            return expired(authority)
    return self_signed(folder)


WRONG = ["name", "address", "authority", "expired", "self-signed"]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("by_proxy", [False, True], ids=["direct", "by proxy"])
async def test_a_certificate_that_is_wrong_is_not_taken(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, by_proxy: bool
) -> None:
    received: list[bytes] = []

    async def listen(wire: Wire) -> None:
        received.append(await wire.reader.read())

    async with served_by(listen, showing(wrong, authority, tmp_path)) as peer, served_by(proxy_to(peer)) as proxy:
        if by_proxy:
            monkeypatch.setenv("https_proxy", proxy.url)
        with pytest.raises(httpx.ConnectError) as caught:
            await fetch(ELSEWHERE if by_proxy else peer.url)
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        await eventually(lambda: peer.connections + proxy.connections == 0)
        assert proxy.accepted == int(by_proxy)
    assert not any(received)


@pytest.mark.parametrize("whose", ["proxy", "upstream"])
async def test_the_certificates_of_both_ends_of_a_tunnel_are_checked(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    good, bad = identity(authority, "127.0.0.1", "upstream.example"), identity(trustme.CA(), "127.0.0.1")
    async with (
        served_by(hello, bad if whose == "upstream" else good) as peer,
        served_by(proxy_to(peer), bad if whose == "proxy" else good) as proxy,
    ):
        monkeypatch.setenv("https_proxy", proxy.url)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)  # asyncio's own error in one, before Python 3.11.8 and 3.12.2
        with pytest.raises(httpx.ConnectError):
            await fetch(ELSEWHERE)
        await eventually(lambda: peer.connections + proxy.connections == 0)


@pytest.mark.parametrize("by_proxy", [False, True], ids=["direct", "by proxy"])
async def test_a_handshake_that_never_ends_times_out_and_closes_the_connection(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, by_proxy: bool
) -> None:
    async def listen_only(wire: Wire) -> None:
        if by_proxy:
            await wire.request()
            await wire.write(OK + b"\r\n")
        received.append((await wire.reader.read())[:1])

    received: list[bytes] = []
    async with served_by(listen_only) as peer:
        if by_proxy:
            monkeypatch.setenv("https_proxy", peer.url)
        with pytest.raises(httpx.ConnectTimeout):
            await fetch(ELSEWHERE if by_proxy else f"https://127.0.0.1:{peer.port}/", connect=0.3)
        await eventually(lambda: received == [b"\x16"])  # a handshake's record, and the end


@pytest.mark.parametrize("first", [b"", HELLO, b"\x15\x03\x03", b"\x16\x03\x03\x00\x05"])
async def test_a_server_that_does_not_speak_tls_is_not_believed(authority: trustme.CA, first: bytes) -> None:
    async def speak_in_clear(wire: Wire) -> None:
        await wire.write(first)

    async with served_by(speak_in_clear) as peer:
        for _ in range(20):  # for what comes earlier and later
            with pytest.raises(httpx.ConnectError):
                await fetch(f"https://127.0.0.1:{peer.port}/")
        await eventually(lambda: peer.connections == 0)


async def test_bytes_that_came_before_the_handshake_end_the_connection(authority: trustme.CA) -> None:
    async def speak_first(wire: Wire) -> None:
        await wire.write(HELLO)
        left.append(await wire.reader.read())

    left: list[bytes] = []
    async with served_by(speak_first) as peer, Transport.for_base_url(ELSEWHERE) as client:
        connection = await client._dialer.connect("127.0.0.1", peer.port)
        await eventually(lambda: connection.is_closed)
        with pytest.raises(ConnectionAbortedError):
            await bounded(client._start_tls(connection, "localhost"))
        await eventually(lambda: left == [b""])


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSLKEYLOGFILE"])
def test_a_file_that_tls_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "none" / "file"))
    with pytest.raises(ValueError, match=variable):
        Transport.for_base_url("https://upstream.example")
    Transport.for_base_url("http://upstream.example")  # needs none


# Which proxy

NAMED = [
    ("upstream.example", "http://upstream.example"),
    ("UPSTREAM.example", "http://upstream.example"),
    ("example", "http://upstream.example"),
    (".example", "http://upstream.example"),
    ("*.example", "http://upstream.example"),
    (".upstream.example", "http://upstream.example"),
    ("*", "http://upstream.example"),
    (" a.test , upstream.example ", "http://upstream.example"),
    (",,upstream.example,", "http://upstream.example"),
    ("upstream.example:80", "http://upstream.example"),
    ("upstream.example:443", "https://upstream.example"),
    ("upstream.example:8000", "http://upstream.example:8000"),
    (".example:8000", "http://upstream.example:8000"),
    ("http://upstream.example", "http://upstream.example"),
    ("https://upstream.example:8443", "https://upstream.example:8443"),
    ("10.1.2.3", "http://10.1.2.3"),
    ("10.1.2.3:8000", "http://10.1.2.3:8000"),
    ("10.0.0.0/8", "http://10.1.2.3:8000"),
    ("10.1.2.3/8", "http://10.1.2.4"),
    ("fe80::/10", "http://[fe80::1]"),
    ("[fe80::1]", "http://[fe80::1]"),
    ("[fe80::1]:8000", "http://[fe80::1]:8000"),
    ("FE80:0::1", "http://[fe80::1]"),
    ("2001:db8::1", "http://[2001:db8::1]:8000"),
    ("", "http://127.0.0.1:11434"),
    ("", "http://127.1.2.3"),
    ("", "http://[::1]:11434"),
    ("", "http://localhost:11434"),
]
NOT_NAMED = [
    ("", "http://upstream.example"),
    (" , ", "http://upstream.example"),
    (".", "http://upstream.example"),
    ("stream.example", "http://upstream.example"),
    ("a.upstream.example", "http://upstream.example"),
    ("upstream.example:81", "http://upstream.example"),
    ("upstream.example:80", "http://upstream.example:8000"),
    ("upstream.example:80", "https://upstream.example"),
    ("http://upstream.example", "https://upstream.example"),
    ("10.0.0.0/8", "http://11.1.2.3"),
    ("10.0.0.0/8", "http://upstream.example"),
    ("10.1.2.3:81", "http://10.1.2.3"),
    ("fe80::/10", "http://[2001:db8::1]"),
    ("[fe80::1]:81", "http://[fe80::1]"),
    ("::1", "http://[2001:db8::1]"),
    ("10.0.0.0/99", "http://10.1.2.3"),
]


@pytest.mark.parametrize(("no_proxy", "url"), NAMED)
def test_a_host_that_no_proxy_names_is_asked_without_one(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy.example")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_for(httpx.URL(url)) is None


@pytest.mark.parametrize(("no_proxy", "url"), NOT_NAMED)
def test_a_host_that_no_proxy_does_not_name_is_asked_by_proxy(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", "proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_for(httpx.URL(url)) == httpx.URL("http://proxy.example:3128")


def test_a_scheme_has_a_proxy_of_its_own_and_else_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    http, https = httpx.URL("http://upstream.example"), httpx.URL("https://upstream.example")
    monkeypatch.setenv("HTTP_PROXY", "http://one.example")
    assert (proxy_for(http), proxy_for(https)) == (httpx.URL("http://one.example"), None)
    monkeypatch.setenv("ALL_PROXY", "https://all.example")
    assert (proxy_for(http), proxy_for(https)) == (httpx.URL("http://one.example"), httpx.URL("https://all.example"))
    monkeypatch.setenv("https_proxy", "")
    assert proxy_for(https) == httpx.URL("https://all.example")


@pytest.mark.parametrize(
    "unusable", ["socks5://proxy.example", "ftp://proxy.example", "http://", "http://a b:x", "//", "http://p:99999"]
)
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"])
def test_a_proxy_that_cannot_be_used_is_named_only_where_it_applies(
    monkeypatch: pytest.MonkeyPatch, unusable: str, variable: str
) -> None:
    monkeypatch.setenv(variable, unusable)
    scheme = "http" if variable == "HTTP_PROXY" else "https"
    with pytest.raises(ValueError, match=f"^{variable.upper()} .*NO_PROXY=upstream.example"):
        proxy_for(httpx.URL(f"{scheme}://upstream.example"))
    assert proxy_for(httpx.URL(f"{scheme}://127.0.0.1")) is None
    monkeypatch.setenv("NO_PROXY", "upstream.example")
    assert proxy_for(httpx.URL(f"{scheme}://upstream.example")) is None
    monkeypatch.delenv("NO_PROXY")
    if variable.lower() == "all_proxy":
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
        assert proxy_for(httpx.URL("https://upstream.example")) == httpx.URL("http://proxy.example")
    else:
        other = "https" if scheme == "http" else "http"
        assert proxy_for(httpx.URL(f"{other}://upstream.example")) is None


# By proxy

USER = "us%40er:p%3Ass%2525"
CREDENTIALS = b"Proxy-Authorization: Basic " + base64.b64encode(b"us@er:p:ss%25")


def proxy_url(peer: Peer, user: str = "") -> str:
    return f"{peer.scheme}://{user}{'@' if user else ''}127.0.0.1:{peer.port}"


@pytest.mark.parametrize("secure", [False, True], ids=["http proxy", "https proxy"])
async def test_http_goes_to_a_proxy_with_its_whole_url(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    async def script(wire: Wire) -> None:
        while request := await wire.request():
            requests.append(request)
            await wire.write(HELLO)

    requests: list[bytes] = []
    async with served_by(script, identity(authority, "127.0.0.1") if secure else None) as peer:
        monkeypatch.setenv("http_proxy", proxy_url(peer, USER))
        async with Transport.for_base_url("http://upstream.example") as client:
            for path in ("a?b", ""):
                assert await fetch(f"http://upstream.example:8000/{path}", client) == b"hello"
        assert peer.accepted == 1
    first, second = requests
    assert first.startswith(b"GET http://upstream.example:8000/a?b HTTP/1.1\r\nHost: upstream.example:8000\r\n")
    assert second.startswith(b"GET http://upstream.example:8000/ HTTP/1.1\r\n")
    assert first.count(b"\r\n" + CREDENTIALS + b"\r\n") == 1


@pytest.mark.parametrize("url", ["https://upstream.example", "https://10.1.2.3:8443", "https://[2001:db8::1]"])
@pytest.mark.parametrize("secure", [False, True], ids=["http proxy", "https proxy"])
async def test_https_goes_through_a_tunnel_and_tells_the_proxy_nothing(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, secure: bool, url: str
) -> None:
    asked, tunnels = [], list[bytes]()

    async def upstream(wire: Wire) -> None:
        while request := await wire.request():
            asked.append(request)
            await wire.write(HELLO)

    async with (
        served_by(upstream, identity(authority, httpx.URL(url).host)) as peer,
        served_by(proxy_to(peer, tunnels), identity(authority, "127.0.0.1") if secure else None) as proxy,
    ):
        monkeypatch.setenv("https_proxy", proxy_url(proxy, USER))
        async with Transport.for_base_url(url) as client:
            for _ in range(2):
                assert await fetch(url, client) == b"hello"
        await eventually(lambda: peer.connections + proxy.connections == 0)
    host = url.removeprefix("https://") + ("" if url.endswith(":8443") else ":443")
    assert tunnels == [f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n".encode() + CREDENTIALS + b"\r\n\r\n"]
    assert len(asked) == 2 and all(b"Proxy-Authorization" not in request for request in asked)


REFUSALS = {
    "407": b'HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 5\r\n\r\nlogin',
    "502 without an end": b"HTTP/1.1 502 Bad Gateway\r\n\r\n<html>",
    "502 in chunks": b"HTTP/1.1 502 Bad Gateway\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n<html\r\n0\r\n\r\n",
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n",
    "a tunnel and a body": OK + b"Content-Length: 5\r\n\r\nhello",
    "a tunnel and what nobody asked for": OK + b"\r\n\x16\x03\x03\x00\x05",
}


@pytest.mark.parametrize("octets", REFUSALS.values(), ids=REFUSALS)
async def test_a_proxy_that_makes_no_tunnel_is_an_error(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, octets: bytes
) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.write(octets)
        received.append(await wire.reader.read())

    received: list[bytes] = []
    async with served_by(script) as peer:
        monkeypatch.setenv("https_proxy", peer.url)
        with pytest.raises(httpx.ProxyError):
            await fetch(ELSEWHERE)
        await eventually(lambda: received == [b""])


@pytest.mark.parametrize("octets", [b"", OK, b"no HTTP\r\n", OK + b"\r\n"], ids=["none", "half", "no HTTP", "a head"])
async def test_a_proxy_that_leaves_is_an_error(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, octets: bytes
) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.write(octets)

    async with served_by(script) as peer:
        monkeypatch.setenv("https_proxy", peer.url)
        with pytest.raises((httpx.ConnectError, httpx.RemoteProtocolError)):
            await fetch(ELSEWHERE)
        await eventually(lambda: peer.connections == 0)


async def test_a_proxy_that_speaks_before_the_handshake_is_an_error(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.write(OK + b"\r\n", HELLO)
        await wire.gone()

    async with served_by(script) as peer:
        monkeypatch.setenv("https_proxy", peer.url)
        for _ in range(10):
            with pytest.raises((httpx.ConnectError, httpx.ProxyError)):
                await fetch(ELSEWHERE)
        await eventually(lambda: peer.connections == 0)


async def test_a_proxy_that_never_answers_times_out(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served_by(Wire.gone) as peer:
        monkeypatch.setenv("https_proxy", peer.url)
        with pytest.raises(httpx.ConnectTimeout):
            await fetch(ELSEWHERE, connect=0.2)
        await eventually(lambda: peer.connections == 0)


# Cancelling


async def test_cancelling_at_any_turn_of_a_handshake_leaves_nothing(authority: trustme.CA) -> None:
    async with (
        served_by(hello, identity(authority, "127.0.0.1")) as peer,
        Transport.for_base_url(peer.url) as client,
        nothing_left_of(peer),
    ):
        await cancelled_at_every_turn(client, peer, 125)


@pytest.mark.parametrize("secure", [False, True], ids=["http proxy", "https proxy"])
async def test_cancelling_at_any_turn_of_a_tunnel_leaves_nothing(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    context = identity(authority, "127.0.0.1", "upstream.example")
    async with served_by(hello, context) as peer, served_by(proxy_to(peer), context if secure else None) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        async with Transport.for_base_url(ELSEWHERE) as client, nothing_left_of(proxy):
            await cancelled_at_every_turn(client, ELSEWHERE, 65)


async def test_cancelling_while_two_addresses_are_tried_leaves_nothing(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upstream.http.addresses.ATTEMPT_INTERVAL", 0.0)
    resolve_to(monkeypatch, "127.0.0.2", "127.0.0.1", "127.0.0.3")
    async with served_by(hello) as peer, nothing_left_of(peer):
        await cancelled_at_every_turn(transport, f"http://three.example:{peer.port}", 60)
    assert in_use(transport) == 0
