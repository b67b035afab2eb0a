"""HTTP/1.1 on one connection: `Connection` is the protocol of asyncio, `Exchange` is one request and its response.

This module knows nothing of pools and proxies. httptools (llhttp) parses the responses; RFC 9112 has the rules.
"""

import asyncio
import math
from collections.abc import AsyncIterable, AsyncIterator, Callable

import httptools
import httpx

HIGH_WATER = 256 * 1024  # bytes of a body: reading pauses while more than these wait for the caller
MAX_FRAMING = 64 * 1024  # bytes of a head, of chunk sizes or of trailers that a server may send in a row
PIECE = 64 * 1024  # bytes per write
LATE_GRACE = 0.05  # seconds past its end that a timer waits: a stopped process must read what arrived meanwhile


class Connection(asyncio.Protocol):
    """One connection, used by one exchange at a time. Bytes that arrive between two exchanges close it."""

    transport: asyncio.Transport
    exchange: "Exchange | None" = None
    is_full = False  # the write buffer has no room
    is_closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.exchange is None:
            self.abort()
        else:
            self.exchange.feed(data)

    def eof_received(self) -> None:
        self._close(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._close(httpx.ReadError(str(exc or "the connection was closed on this side")))

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        if self.exchange is not None:
            self.exchange.wake()

    def abort(self) -> None:
        """Close the connection at once. An exchange under way ends with `ReadError`."""
        self.connection_lost(None)

    def _close(self, error: httpx.ReadError | None) -> None:
        self.is_closed = True
        self.transport.abort()  # `close` would wait until the server has read everything
        if self.exchange is not None:
            self.exchange.end(error)


class Exchange(httpx.AsyncByteStream):
    """One request and its response; also the stream of the response's body. The coroutines raise httpx's errors.

    `read` returns all bytes that arrived before it raises an error. One caller at a time may wait: `patience` seconds
    for each arrival, until `deadline` (of the loop's clock) in all. `release` gets the connection if it can be kept.
    """

    def __init__(
        self,
        connection: Connection,
        method: str,
        *,
        patience: float = math.inf,
        deadline: float = math.inf,
        release: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        self.deadline = deadline
        self.status = 0  # of the response; 0 until its head has come
        self.headers: list[tuple[bytes, bytes]] = []
        self.has_begun = False  # whether a byte of the response has come
        self.is_reusable = False  # whether another exchange may use the connection
        self._is_sent = self._is_answered = self._is_over = self._is_unwanted = self._lasts_until_eof = False
        self._connection = connection
        self._method = method
        self._patience = patience
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._size = self._framing = 0  # bytes in `_body`; bytes since the last one of a body
        self._error: httpx.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._late: type[httpx.TimeoutException] = httpx.ReadTimeout
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._due = math.inf
        connection.exchange = self
        if connection.is_closed:
            self.end()

    async def send(self, head: bytes, body: AsyncIterable[bytes], length: int, patience: float) -> None:
        """Send the request no faster than the server reads it. Stop once the server has answered."""
        async for part in body:
            length -= len(part)
            if length < 0:
                break
            for start in range(0, len(part), PIECE):
                while self._connection.is_full and not self._is_answered:
                    await self._arrival(patience, httpx.WriteTimeout)
                if self._is_answered:
                    return
                self._connection.transport.write(head + part[start : start + PIECE])
                head = b""
        if length:
            raise httpx.LocalProtocolError("the body is longer or shorter than its Content-Length")
        if head and not self._is_answered:
            self._connection.transport.write(head)
        self._is_sent = True

    async def response(self) -> httpx.Response:
        """Wait for the head of the response."""
        while not self._is_answered:
            await self._arrival(self._patience, httpx.ReadTimeout)
        if self._error and not self.status:
            raise self._error
        headers, self.headers = self.headers, []
        return httpx.Response(self.status, headers=headers, stream=self)

    async def read(self) -> bytes:
        """Wait for bytes of the body and return all that have come; `b""` at the end."""
        while not (self._body or self._is_over):
            await self._arrival(self._patience, httpx.ReadTimeout)
        if self._error and not self._body:
            raise self._error
        body = b"".join(self._body)
        self._body.clear()
        if self._size > HIGH_WATER and not self._is_over:
            self._connection.transport.resume_reading()
        self._size = 0
        return body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while body := await self.read():
            yield body

    async def aclose(self) -> None:
        """Close the connection, unless the response is complete."""
        if not self._is_over:
            self._connection.abort()

    def finish(self, seconds: float) -> None:
        """Drop the rest of the body. Keep the connection if that rest ends within this time."""
        self._is_unwanted = True
        self._body.clear()
        if not self._is_over:
            self._connection.transport.resume_reading()
            self._set_timer(self._loop.time() + seconds)

    def wake(self) -> None:
        """Let the waiting caller check the state again."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # Called by the connection

    def feed(self, data: bytes) -> None:
        """Parse bytes of the response."""
        self.has_begun = True
        size = self._size
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.is_reusable = False
            self.end(httpx.RemoteProtocolError("the response is not HTTP/1.1, or it changes the protocol"))
            return
        self._framing = 0 if self._size > size else self._framing + len(data)
        if self._is_over:
            self.end()
        elif self._framing > MAX_FRAMING:
            self.end(httpx.RemoteProtocolError("the head, the chunk sizes or the trailers are too long"))
        elif self._size > HIGH_WATER and not self._is_unwanted:
            self._connection.transport.pause_reading()
        self.wake()

    def end(self, error: httpx.TransportError | None = None) -> None:
        """End the exchange: the response is complete, `error` broke it, or the server closed the connection."""
        if not self._is_over:
            if error is None and not self._lasts_until_eof:
                error = httpx.RemoteProtocolError("the connection was closed before the end")
            self._is_over, self._is_answered, self._error = True, True, error
        self._connection.exchange = None  # so that `end` is not called again
        del self._parser  # else the two would refer to each other
        if self._timer is not None:
            self._timer.cancel()
        if self.is_reusable and not self._connection.is_closed:
            self._release(self._connection)
        else:
            self._connection.abort()
        self.wake()

    # Called by the parser

    def on_message_begin(self) -> None:
        self.is_reusable = False  # a second response is one that nobody asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # afterwards, headers are trailers
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 100:
            raise ValueError("this is no status")  # the parser turns this into its own error
        if status < 200:  # another head follows; after 101 the parser raises
            self.headers.clear()
            return
        self.status, self._is_answered = status, True
        names = {name.lower() for name, _ in self.headers}
        self._lasts_until_eof = names.isdisjoint((b"content-length", b"transfer-encoding"))
        if self._method in ("HEAD", "CONNECT"):  # llhttp can't know that these responses have no body
            self._is_over = True
            self.is_reusable = self._method == "CONNECT" and status < 300

    def on_body(self, body: bytes) -> None:
        if self._is_over:
            self.is_reusable = False
            return
        self._size += len(body)
        if not self._is_unwanted:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self.status and not self._is_over:
            self._is_over = True
            self.is_reusable = self._is_sent and self._parser.should_keep_alive()  # false after this call

    # Timers

    def _arrival(self, patience: float, late: type[httpx.TimeoutException]) -> asyncio.Future[None]:
        # An arrival moves `_due`, not the timer, which costs more: when the timer fires, it is set to `_due` again.
        self._late = late
        self._due = min(self._loop.time() + patience, self.deadline)
        if self._due < self._timer_at:
            self._set_timer(self._due)
        self._waiter = self._loop.create_future()
        return self._waiter

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._check_time)

    def _check_time(self) -> None:
        is_last_look, self._timer_at = self._timer_at == -math.inf, math.inf
        if self._is_unwanted:
            self._connection.abort()
        elif self._waiter is None or self._waiter.done():
            return
        elif self._loop.time() < self._due:
            self._set_timer(self._due)
        elif not is_last_look:
            self._set_timer(self._loop.time() + LATE_GRACE)
            self._timer_at = -math.inf  # so that no arrival moves the timer
        else:
            self._waiter.set_exception(self._late("too long without a byte"))
