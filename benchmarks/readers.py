"""One reader of one stream: it asks, and keeps every byte with the time at which it came.

Nothing is parsed while a stream runs; `text.py` reads the bytes afterwards.
"""

import asyncio
import time
from array import array
from typing import cast

from benchmarks import script
from benchmarks.errors import UnexpectedAnswer

_END = b"\r\n0\r\n\r\n"


class Reader(asyncio.Protocol):
    """`first` and `done` are futures; `asked_at`, `first_at` and `came_at`, one a piece, are monotonic seconds."""

    def __init__(self, key: int, payload: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.key, self.asked_at, self.first_at = key, 0.0, 0.0
        self.pieces: list[bytes] = []
        self.came_at = array("d")
        self.first: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
        self._payload, self._tail = payload, b""

    def ask(self) -> None:
        """Send the request; the connection is open already."""
        self.asked_at = time.monotonic()
        self._transport.write(self._payload)

    def close(self) -> None:
        """Leave, whether the stream has ended or not."""
        self.first.cancel()
        self.done.cancel()
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.came_at.append(now)
        self.pieces.append(data)
        seen = self._tail + data
        if not self.first_at and script.FIRST in seen:
            self._note_first(now)
        self._tail = seen[-len(_END) :]
        if self._tail == _END:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _note_first(self, now: float) -> None:
        self.first_at = now
        if not self.first.done():
            self.first.set_result(None)

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
            self._transport.close()
        if not self.first.done():
            start = b"".join(self.pieces)[:500]
            self.first.set_exception(UnexpectedAnswer(f"Stream {self.key} ended without a token: {start!r}"))
            self.first.exception()  # told to whoever waits; if nobody does, `text.check` tells


async def open_reader(port: int, key: int, payload: bytes) -> Reader:
    """A reader whose connection is open and who hasn't asked yet."""
    loop = asyncio.get_running_loop()
    _, reader = await loop.create_connection(lambda: Reader(key, payload), "127.0.0.1", port)
    return reader
