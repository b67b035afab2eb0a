"""The HTTP client: an `httpx.AsyncBaseTransport` that costs a streamed token three calls.

This module knows nothing of upstream's protocol. A request may be cancelled at any moment, even twice: one synchronous
call gives up its connection. Its extensions are httpx's `timeout` and `deadline`, a time of the loop's clock.
"""

import asyncio
import math
import re
import selectors
import ssl
import weakref
from functools import partial

import httpx

from upstream.http.addresses import Dialer
from upstream.http.connection import Connection, Exchange
from upstream.http.proxies import authorization, proxy_for

IDLE_TIMEOUT = 5.0  # seconds that an idle connection is kept

_FIRST_LINE = re.compile(rb"[\w!#$%&'*+.^`|~-]+ [^\s\0]+ HTTP/1\.1")
_HEADER = re.compile(rb"[\w!#$%&'*+.^`|~-]+: [^\r\n\0]*")

Headers = list[tuple[bytes, bytes]]
Origin = tuple[bytes, bytes, int | None]


class Transport(httpx.AsyncBaseTransport):
    """Opens a connection for each request that finds no idle one. Raises httpx's errors, and no others."""

    def __init__(self, tls: ssl.SSLContext | None, proxy: httpx.URL | None = None) -> None:
        self._tls = tls
        self._proxy = proxy
        self._dialer = Dialer()
        self._idle: dict[Origin, dict[Connection, asyncio.TimerHandle]] = {}
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()

    @classmethod
    def for_base_url(cls, base_url: str) -> "Transport":
        """Make a transport with the proxy and the certificates that the environment has for this URL.

        Raises `ValueError` with a sentence that names the variable.
        """
        url = httpx.URL(base_url)
        proxy = proxy_for(url)
        needs_tls = "https" in (url.scheme, proxy and proxy.scheme)
        try:
            tls = httpx.create_ssl_context() if needs_tls else None
        except OSError:
            raise ValueError(
                "SSL_CERT_FILE must be a readable PEM file, SSL_CERT_DIR a folder of such, SSLKEYLOGFILE writable."
            ) from None
        return cls(tls, proxy)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and wait for the head of its response. The response's `stream` is an `Exchange`."""
        seconds = {name: limit for name, limit in request.extensions.get("timeout", {}).items() if limit is not None}
        is_last = "close" in request.headers.get("connection", "").lower()
        head, length = self._head(request), _length(request.headers)
        origin = request.url.raw_scheme, request.url.raw_host, request.url.port
        while True:
            kept = self._kept(origin)
            connection = kept or await self._connect(request.url, seconds.get("connect", math.inf))
            exchange = Exchange(
                connection,
                request.method,
                patience=seconds.get("read", math.inf),
                deadline=request.extensions.get("deadline", math.inf),
                release=Connection.abort if is_last else partial(self._keep, origin),
            )
            try:
                assert isinstance(request.stream, httpx.AsyncByteStream)
                await exchange.send(head, request.stream, length, seconds.get("write", math.inf))
                return await exchange.response()
            except BaseException as error:
                connection.abort()
                # The server closed an idle connection while the request was on its way, and hasn't seen the request.
                was_idle = kept and not exchange.has_begun and isinstance(error, httpx.ReadError | httpx.ProtocolError)
                if not (was_idle and request.method in ("GET", "HEAD")):
                    raise

    async def aclose(self) -> None:
        """Close all connections, even those in use."""
        for connection in list(self._open):
            connection.abort()
        for idle in self._idle.values():
            while idle:
                idle.popitem()[1].cancel()

    def _kept(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin, {})
        while idle:
            connection, expiry = idle.popitem()
            expiry.cancel()
            if not connection.is_closed and not _is_readable(connection):
                return connection
            connection.abort()
        return None

    def _keep(self, origin: Origin, connection: Connection) -> None:
        expiry = asyncio.get_running_loop().call_later(IDLE_TIMEOUT, self._expire, origin, connection)
        self._idle.setdefault(origin, {})[connection] = expiry

    def _expire(self, origin: Origin, connection: Connection) -> None:
        del self._idle[origin][connection]
        connection.abort()

    async def _connect(self, url: httpx.URL, seconds: float) -> Connection:
        if url.scheme not in ("http", "https") or not url.host:
            raise httpx.UnsupportedProtocol("the URL must begin with http:// or https://")
        try:
            async with asyncio.timeout(seconds):
                return await self._connected(url)
        except TimeoutError as error:
            raise httpx.ConnectTimeout("connecting took too long") from error
        # TLS raises OSError. TLS in TLS raises TypeError before Python 3.11.8 and 3.12.2 (gh-113214).
        except (OSError, ValueError, OverflowError, TypeError) as error:
            raise httpx.ConnectError("no connection came about") from error

    async def _connected(self, url: httpx.URL) -> Connection:
        hop = self._proxy or url
        connection = await self._dialer.connect(hop.raw_host.decode(), _port(hop))
        self._open.add(connection)
        try:
            if hop.scheme == "https":
                await self._start_tls(connection, hop.raw_host.decode())
            if self._proxy and url.scheme == "https":
                await self._tunnel(connection, url, authorization(self._proxy))
                await self._start_tls(connection, url.raw_host.decode())
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _tunnel(self, connection: Connection, url: httpx.URL, headers: Headers) -> None:
        host = url.raw_host if b":" not in url.raw_host else b"[%s]" % url.raw_host
        target = b"%s:%d" % (host, _port(url))
        exchange = Exchange(connection, "CONNECT")
        head = _joined(b"CONNECT", target, [(b"Host", target), *headers])
        await exchange.send(head, httpx.ByteStream(b""), 0, math.inf)
        response = await exchange.response()
        if not exchange.is_reusable:
            raise httpx.ProxyError(f"the proxy answered with status {response.status_code}")

    async def _start_tls(self, connection: Connection, host: str) -> None:
        if connection.is_closed:  # bytes in clear must not pass for bytes that came over TLS
            raise ConnectionAbortedError("the server spoke, or left, before the handshake")
        assert self._tls is not None
        loop = asyncio.get_running_loop()
        transport = await loop.start_tls(connection.transport, connection, self._tls, server_hostname=host)
        if transport is None:
            raise ConnectionAbortedError("the server left in the handshake")
        connection.transport = transport

    def _head(self, request: httpx.Request) -> bytes:
        target, headers = request.url.raw_path, request.headers.raw
        if "host" not in request.headers:  # httpx adds none if the body is a stream
            headers = [(b"Host", request.url.netloc), *headers]
        if self._proxy and request.url.scheme == "http":
            target = b"http://" + request.url.netloc + target
            headers = [*headers, *authorization(self._proxy)]
        return _joined(request.method.encode(), target, headers)


def _joined(method: bytes, target: bytes, headers: Headers) -> bytes:
    first, others = b"%s %s HTTP/1.1" % (method, target), [b"%s: %s" % header for header in headers]
    if not (_FIRST_LINE.fullmatch(first) and all(map(_HEADER.fullmatch, others))):
        raise httpx.LocalProtocolError("the method, the target or a header has a character that can't be sent")
    return b"\r\n".join([first, *others, b"", b""])


def _length(headers: httpx.Headers) -> int:
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not length.isdecimal():
        raise httpx.LocalProtocolError("a request must have a Content-Length, and no Transfer-Encoding")
    return int(length)


def _is_readable(connection: Connection) -> bool:
    """Tell whether bytes, or the end, have come to an idle connection that the event loop hasn't read yet."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.transport.get_extra_info("socket").fileno(), selectors.EVENT_READ)
        return bool(selector.select(0))


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)
