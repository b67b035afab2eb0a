"""uvicorn's HTTP protocol, with bounds on what a client may keep a connection waiting for.

Knows nothing of the app. uvicorn has a time-out between requests, but none within one, and none for what was sent.
Offers to speak another protocol are ignored.
"""

import asyncio
import logging
import math
from collections import deque
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_CONNECTIONS = 10_000  # beyond them requests are refused
HEAD_TIMEOUT = 30.0  # seconds that a client has for a request's head, once the connection is open or something has come
MAX_HEAD_BYTES = 64 * 1024  # of a request; one read may overshoot it
MAX_PIPELINED = 16  # requests that wait for the response to the one before them
TAKE_TIMEOUT = 30.0  # seconds in which a client must take some of what was sent

logger = logging.getLogger("server")


class ClientConnection(HttpToolsProtocol):
    """Some of what was sent has to be taken in every `TAKE_TIMEOUT`, when the response has ended, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser: Parser = Parser(self)
        self._unanswered: deque[RequestResponseCycle] = deque()
        self._in_head = False
        self._head_bytes = 0
        self._input: asyncio.TimerHandle | None = None
        self._output: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:  # it hasn't ended in these bytes
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.abort()
        elif not self._unanswered and self._input is None:  # line ends, or the rest of a body that nobody reads
            self._wait_for_head()

    def on_message_begin(self) -> None:
        if len(self._unanswered) > MAX_PIPELINED:
            self.transport.abort()
            raise ConnectionAbortedError  # for the parser, which would go on with what it has
        super().on_message_begin()
        self._in_head = True
        self._wait_for_head()
        if not self.flow.write_paused:
            _cancel(self._output)  # who asks again is reading; if not, writing will be paused

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers, which may have no end, are of no use
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.makes_offer:
            return  # it comes again without
        _cancel(self._input)
        self._input, self._in_head, self._head_bytes = None, False, 0
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
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
        super().connection_lost(exc)  # tells the last request alone
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        self._unanswered.clear()
        self.pipeline.clear()

    def _wait_for_head(self) -> None:
        _cancel(self._input)
        self._input = self.loop.call_later(HEAD_TIMEOUT, self.transport.abort)

    def _expect_progress(self, before: float = math.inf) -> None:
        _cancel(self._output)
        left = self.transport.get_write_buffer_size()
        if left >= before:
            logger.info("a client was dropped: it left unread what was sent")
            self.transport.abort()
        elif left:
            self._output = self.loop.call_later(TAKE_TIMEOUT, self._expect_progress, left)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class Parser(httptools.HttpRequestParser):
    """A request with an offer is parsed again as if it had none.

    Its `on_headers_complete` and `on_message_complete` come twice: `makes_offer` is true the first time.
    """

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        super().__init__(protocol)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._protocol = protocol

    @property
    def makes_offer(self) -> bool:
        """Whether the head that is complete offers another protocol; a CONNECT is no offer."""
        return self.should_upgrade() and self.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # uvicorn has nothing else
        """As httptools has it; `HttpParserUpgrade` is raised for a CONNECT alone."""
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
