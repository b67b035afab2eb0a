"""uvicorn's HTTP protocol, with limits on how long a client may keep a connection waiting.

This module knows nothing about the app. uvicorn has a time-out between requests, but none within a request, and none
for a client that doesn't read. The protocol ignores offers to switch to another one.
"""

import asyncio
import logging
import math
from collections import deque
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_CONNECTIONS = 10_000  # requests on further connections get a 503
HEAD_TIMEOUT = 30.0  # seconds from the opening of a connection, or a request's first byte, to the end of the head
MAX_HEAD_BYTES = 64 * 1024  # of a request's head; one read may exceed it
MAX_PIPELINED = 16  # requests that may wait for the response to an earlier one
TAKE_TIMEOUT = 30.0  # seconds within which a client must take some of its unsent bytes

logger = logging.getLogger("server")


class ClientConnection(HttpToolsProtocol):
    """A client's connection. In every `TAKE_TIMEOUT` the client must take unsent bytes, even after the response."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser: Parser = Parser(self)
        self._unanswered: deque[RequestResponseCycle] = deque()
        self._in_head, self._head_bytes = False, 0
        self._input: asyncio.TimerHandle | None = None
        self._output: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:  # these bytes don't end the head
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.abort()
        elif not self._unanswered and self._input is None:  # stray line ends, or the rest of an unread body
            self._wait_for_head()

    def on_message_begin(self) -> None:
        if len(self._unanswered) > MAX_PIPELINED:
            self.transport.abort()
            raise ConnectionAbortedError  # stops the parser, which would go on with the next request
        super().on_message_begin()
        self._in_head = True
        self._wait_for_head()
        if not self.flow.write_paused:
            _cancel(self._output)  # a client that sends a request probably reads; if not, writing will pause

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are ignored: they are of no use and may never end
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.makes_offer:
            return  # the parser calls this again, without the offer
        _cancel(self._input)
        self._input, self._in_head, self._head_bytes = None, False, 0
        previous = self.cycle
        super().on_headers_complete()
        if self.cycle is not previous:
            self._unanswered.append(self.cycle)

    def on_message_complete(self) -> None:
        if not self.parser.makes_offer:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._unanswered.popleft()
        super().on_response_complete()
        self._expect_progress()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_progress()

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._output)

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._input)
        _cancel(self._output)
        super().connection_lost(exc)  # uvicorn notifies only the last request
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        self._unanswered.clear()
        self.pipeline.clear()

    def _wait_for_head(self) -> None:
        _cancel(self._input)
        self._input = self.loop.call_later(HEAD_TIMEOUT, self.transport.abort)

    def _expect_progress(self, previous: float = math.inf) -> None:
        _cancel(self._output)
        unsent = self.transport.get_write_buffer_size()
        if unsent >= previous:
            logger.info("Dropped a client that didn't read its response for %g s", TAKE_TIMEOUT)
            self.transport.abort()
        elif unsent:
            self._output = self.loop.call_later(TAKE_TIMEOUT, self._expect_progress, unsent)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class Parser(httptools.HttpRequestParser):
    """If a request offers another protocol, this parser parses it again without the offer.

    It then calls `on_headers_complete` and `on_message_complete` twice: `makes_offer` is true the first time.
    """

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        super().__init__(protocol)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as in uvicorn
        self._protocol = protocol

    @property
    def makes_offer(self) -> bool:
        """Whether the complete head offers another protocol; a CONNECT is no offer."""
        return self.should_upgrade() and self.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # uvicorn passes only bytes
        """Parse the next bytes. Raises `HttpParserUpgrade` only for a CONNECT."""
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if not self.makes_offer:
                raise
            rest = data[offer.args[0] :]
        else:
            return
        head = self._head_without_offer()
        self._protocol.parser = Parser(self._protocol)
        self._protocol.parser.feed_data(head + rest)

    def _head_without_offer(self) -> bytes:
        line = b"%b %b HTTP/%b" % (self.get_method(), self._protocol.url, self.get_http_version().encode())
        fields = [b"%b: %b" % field for field in self._protocol.headers if field[0] != b"upgrade"]
        return b"\r\n".join([line, *fields, b"", b""])
