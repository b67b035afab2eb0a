"""uvicorn's HTTP protocol, with bounds on what a client may keep a connection waiting for.

Knows nothing of the app. uvicorn has a time-out between requests, but none for a request's head or for what was sent.
"""

import asyncio
import logging
import math

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT = 30.0  # seconds that a client has for a request's head
MAX_HEAD_BYTES = 64 * 1024  # of a request; one read may overshoot it
TAKE_TIMEOUT = 30.0  # seconds in which a client must take some of what was sent

logger = logging.getLogger("server")


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP with bounds on what a client may keep it waiting for.

    A request's head has `HEAD_TIMEOUT` and `MAX_HEAD_BYTES`; what was sent has to be taken, some of it in every
    `TAKE_TIMEOUT`, when the response has ended too.
    """

    _head: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _unsent: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head is not None:  # it hasn't ended in these bytes
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait_for_head()
        if not self.flow.write_paused:
            self._unsent = _cancelled(self._unsent)  # whoever asks again reads, or will be paused

    def on_headers_complete(self) -> None:
        self._head, self._head_bytes = _cancelled(self._head), 0
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_progress()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_progress()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unsent = _cancelled(self._unsent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._unsent = _cancelled(self._head), _cancelled(self._unsent)
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(HEAD_TIMEOUT, self.transport.abort)

    def _expect_progress(self, before: float = math.inf) -> None:
        self._unsent = _cancelled(self._unsent)
        left = self.transport.get_write_buffer_size()
        if left >= before:
            logger.info("a client was dropped: it left unread what was sent")
            self.transport.abort()
        elif left:
            self._unsent = self.loop.call_later(TAKE_TIMEOUT, self._expect_progress, left)


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
