"""httpx's transport on asyncio's protocols: one timer a connection, and reading that pauses above `HIGH_WATER` only.

Knows nothing of upstream's protocol. httpcore pools connections and speaks HTTP/1.1; what it gets here is a network
backend (https://www.encode.io/httpcore/network-backends/). httpcore's own sets a timer and a cancel scope for every
read, and stops and starts the socket's reading: a fifth of all that a token costs.
"""

import asyncio
import ipaddress
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import chain, zip_longest
from typing import Any

import httpcore
import httpx

STAGGER = 0.25  # seconds until the next of a host's addresses is tried, too (RFC 8305, 8)
HIGH_WATER = 256 * 1024  # bytes that may wait for their reader

if find_spec("sniffio") is None:
    # httpcore looks for it in every folder of sys.path, several times a request, unless this says that it isn't there.
    sys.modules["sniffio"] = None  # type: ignore[assignment]

_Timeout = type[httpcore.ReadTimeout] | type[httpcore.WriteTimeout]


class Transport(httpx.AsyncBaseTransport):
    """What httpx's own transport is, without proxies, local addresses and Unix sockets."""

    def __init__(self, ssl_context: ssl.SSLContext, limits: httpx.Limits) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=Backend(),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises httpx's errors."""
        with _as_httpx():
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    request.method,
                    httpcore.URL(
                        scheme=request.url.raw_scheme,
                        host=request.url.raw_host,
                        port=request.url.port,
                        target=request.url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            response.status, headers=response.headers, stream=_Body(response), extensions=response.extensions
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx():
            async for chunk in self._response.aiter_stream():
                yield chunk

    async def aclose(self) -> None:
        await self._response.aclose()


@contextmanager
def _as_httpx() -> Iterator[None]:
    try:
        yield
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error  # both call them the same


class Backend(httpcore.AsyncNetworkBackend):
    """Connections by TCP."""

    def __init__(self) -> None:
        self._lookups: dict[str, asyncio.Future[list[str] | OSError]] = {}  # under way

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> "Stream":
        """Raises `httpcore.ConnectTimeout`, `httpcore.ConnectError`."""
        with _connecting():
            async with asyncio.timeout(timeout):
                return await _first_to_connect(await self._addresses(host), port)

    async def _addresses(self, host: str) -> list[str]:
        """The addresses of a host, its families taking turns; looked up once however many ask at once."""
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._lookups[host] = _looked_up(host)
            lookup.add_done_callback(lambda _: self._lookups.pop(host))
        await asyncio.wait({lookup})
        found = lookup.result()
        if isinstance(found, OSError):
            raise found
        return list(found)  # each caller's own: they are used up


@contextmanager
def _connecting() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise httpcore.ConnectTimeout from error
    except OSError as error:  # TLS's errors, too
        raise httpcore.ConnectError from error


class Stream(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """One connection; one caller at a time reads or writes. Received bytes come first, then an error or the end."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._received: list[bytes] = []
        self._size = 0  # of that, in bytes
        self._is_full = False  # what is sent has to wait
        self._saw_end = False  # nothing more comes
        self._is_closed = False  # nor goes
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None  # of the caller who waits
        self._deadline = 0.0  # of that caller
        self._timeout_error: _Timeout
        self._timer: asyncio.TimerHandle | None = None

    # What httpcore calls

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """All that has come, empty at the end. Raises `httpcore.ReadError`, `httpcore.ReadTimeout`."""
        while not self._received and not self._saw_end:
            await self._wait(timeout, httpcore.ReadTimeout)
        if not self._received and self._error is not None:
            raise httpcore.ReadError from self._error
        received = b"".join(self._received)
        self._received, self._size = [], 0
        if len(received) > HIGH_WATER:
            self._transport.resume_reading()
        return received

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Raises `httpcore.WriteError`, `httpcore.WriteTimeout`."""
        if not self._saw_end:
            self._transport.write(buffer)
        while self._is_full and not self._saw_end:
            await self._wait(timeout, httpcore.WriteTimeout)
        if self._saw_end:
            raise httpcore.WriteError from self._error

    async def aclose(self) -> None:
        """Close it, whatever is under way."""
        if not self._is_closed:
            self._transport.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> "Stream":
        """Raises `httpcore.ConnectTimeout`, `httpcore.ConnectError`."""
        with _connecting():
            try:
                if self._received or self._saw_end:  # what came in clear must not pass for what comes by TLS
                    raise ConnectionAbortedError("the server spoke before the handshake")
                async with asyncio.timeout(timeout):
                    transport = await self._loop.start_tls(
                        self._transport, self, ssl_context, server_hostname=server_hostname
                    )
            except BaseException:
                if not self._transport.is_closing():
                    self._transport.abort()
                raise
        assert transport is not None
        self._transport = transport
        return self

    def get_extra_info(self, info: str) -> Any:
        """`is_readable` tells the pool that an idle connection is of no use any more."""
        return bool(self._received) or self._saw_end if info == "is_readable" else self._transport.get_extra_info(info)

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER:
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closed = True
        self._end(exc)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._wake()

    def _end(self, error: Exception | None) -> None:
        self._error = self._error or error
        self._saw_end = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()

    # Waiting

    async def _wait(self, timeout: float | None, late: _Timeout) -> None:
        self._waiter = self._loop.create_future()
        if timeout is not None:
            self._timeout_error, self._deadline = late, self._loop.time() + timeout
            if self._timer is None:
                self._timer = self._loop.call_at(self._deadline, self._check_time)
        await self._waiter

    def _check_time(self) -> None:
        # The timer isn't moved with each read: when it fires it looks how far the deadline has moved meanwhile.
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._check_time)
        else:
            self._waiter.set_exception(self._timeout_error())

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _looked_up(host: str) -> "asyncio.Future[list[str] | OSError]":
    """Addresses, or the error, from a daemon thread: asyncio's own ones hold up the exit while a resolver is silent."""
    loop = asyncio.get_running_loop()
    lookup: asyncio.Future[list[str] | OSError] = loop.create_future()

    def look_up() -> None:
        found: list[str] | OSError
        try:
            found = _in_turns(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found = error if isinstance(error, OSError) else OSError("the name can't be looked up")
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lookup.set_result, found)

    threading.Thread(target=look_up, name=f"lookup of {host}", daemon=True).start()
    return lookup


def _in_turns(found: list[tuple[Any, ...]]) -> list[str]:
    new = [str(address[0]) for family, *_, address in found if family == socket.AF_INET6]
    old = [str(address[0]) for family, *_, address in found if family != socket.AF_INET6]
    return [address for address in chain.from_iterable(zip_longest(new, old)) if address]


async def _first_to_connect(addresses: list[str], port: int) -> Stream:
    """The first connection that comes about, each address being tried a little after the one before (RFC 8305)."""
    trying: set[asyncio.Task[Stream]] = set()
    failures: list[BaseException] = [OSError("the host has no address")]
    connected: list[Stream] = []
    try:
        while (addresses or trying) and not connected:
            if addresses:
                trying.add(asyncio.create_task(_connect(addresses.pop(0), port)))
            done, trying = await asyncio.wait(
                trying, timeout=STAGGER if addresses else None, return_when=asyncio.FIRST_COMPLETED
            )
            failures += [failure for task in done if (failure := task.exception())]
            connected += [task.result() for task in done if not task.exception()]
        if not connected:
            raise failures[-1]
        return connected.pop(0)
    finally:  # what isn't returned is closed, when the caller is cancelled, too
        for task in trying:
            if not task.cancel() and not task.exception():
                connected.append(task.result())
        for late in connected:
            await late.aclose()


async def _connect(address: str, port: int) -> Stream:
    _, stream = await asyncio.get_running_loop().create_connection(Stream, address, port)
    return stream
