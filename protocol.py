"""uvicorn's HTTP protocol, with bounds on what a client may keep a connection waiting for.

Knows nothing of the app. uvicorn has a time-out between requests, but none within one, and none for what was sent.
"""

import asyncio
import logging
import math

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT = 30.0  # seconds that a client has for a request's head, and for a body that nobody reads
MAX_HEAD_BYTES = 64 * 1024  # of a request; one read may overshoot it
TAKE_TIMEOUT = 30.0  # seconds in which a client must take some of what was sent

logger = logging.getLogger("server")


class Protocol(HttpToolsProtocol):
    """Some of what was sent has to be taken in every `TAKE_TIMEOUT`, when the response has ended, too."""

    _input: asyncio.TimerHandle | None = None
    _head_bytes = 0.0
    _output: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_input()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._input is not None:  # the head hasn't ended in these bytes
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait_for_input()
        if not self.flow.write_paused:
            self._output = _cancelled(self._output)  # who asks again is reading; if not, writing will be paused

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body:  # which is thrown away, however long it is
            self._head_bytes = -math.inf
            self._wait_for_input()
        self._expect_progress()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_progress()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._output = _cancelled(self._output)

    def connection_lost(self, exc: Exception | None) -> None:
        self._input, self._output = _cancelled(self._input), _cancelled(self._output)
        super().connection_lost(exc)

    def _wait_for_input(self) -> None:
        if self._input is None:
            self._input = self.loop.call_later(HEAD_TIMEOUT, self.transport.abort)

    def _stop_waiting(self) -> None:
        self._input, self._head_bytes = _cancelled(self._input), 0

    def _expect_progress(self, before: float = math.inf) -> None:
        self._output = _cancelled(self._output)
        left = self.transport.get_write_buffer_size()
        if left >= before:
            logger.info("a client was dropped: it left unread what was sent")
            self.transport.abort()
        elif left:
            self._output = self.loop.call_later(TAKE_TIMEOUT, self._expect_progress, left)


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
