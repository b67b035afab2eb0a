"""The scripted upstream: OpenRouter's wire protocol as cheaply as Python can speak it.

A request's last message holds a mark: `[[7]]` opens stream 7 and holds it until the benchmark sets its pace;
`[[7:5]]` answers five tokens by itself, the first one at once. Lives in the benchmark's own process and loop, so that
"sent" here and "received" in `readers.py` are read from one clock.
"""

import asyncio
import re
import time
from array import array
from collections.abc import Callable
from typing import cast

from benchmarks import script

_MARK = re.compile(rb"\[\[(\d+)(?::(\d+))?\]\]")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Generation:
    """One stream under way. A token is a chunk and a write; `sent_at` holds when each was handed to the socket."""

    def __init__(self, key: int, transport: asyncio.Transport) -> None:
        self.key, self.sent, self.paused, self.ended = key, 0, False, False
        self.asked_at, self.sent_at = time.monotonic(), array("d")
        self._transport, self._loop = transport, asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._flood = 0
        transport.write(script.HEAD)

    def send(self) -> None:
        """Send the next token now."""
        frame = script.frame(self.key, self.sent)
        self.sent_at.append(time.monotonic())
        self._transport.write(frame)
        self.sent += 1

    def hold(self) -> None:
        """Send nothing until told otherwise."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def pace(self, rate: float, phase: float) -> None:
        """From `phase` seconds on, `rate` tokens a second."""
        self.hold()
        self._tick_at(self._loop.time() + phase, 1 / rate)

    def flood(self, tokens: int) -> None:
        """As fast as the relay takes them, up to `tokens`, then the end."""
        self._flood = tokens
        self._flow()

    def finish(self, end: bytes = script.END) -> None:
        """Send the end of the stream; nothing comes after it."""
        self.hold()
        if not self.ended:
            self.ended = True
            self._transport.write(end)

    def resume(self) -> None:
        """The relay takes bytes again."""
        self.paused = False
        if self._flood:
            self._flow()

    def abandon(self) -> None:
        """The relay has gone: send no more."""
        self.hold()
        self.ended = True

    def _flow(self) -> None:
        """One token, and the next one when the other streams and the readers have had their turn."""
        if self.sent >= self._flood:
            self.finish()
        elif not self.ended:
            self.send()
            if not self.paused:
                self._loop.call_soon(self._flow)

    def _tick_at(self, due: float, gap: float) -> None:
        self._timer = self._loop.call_at(due, self._tick, due, gap)

    def _tick(self, due: float, gap: float) -> None:
        self.send()
        self._tick_at(due + gap, gap)


class Upstream:
    """Every stream that was asked for, by its key, and the server that was asked."""

    def __init__(self) -> None:
        self.generations: dict[int, Generation] = {}
        self.asked_twice: set[int] = set()
        self.models = script.models_body()
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def listen(self) -> str:
        """Start listening on a free loopback port and return the base URL, `/api/v1` included."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, "127.0.0.1", 0, backlog=4096)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/api/v1"

    def close(self) -> None:
        """Stop listening and close every connection."""
        if self._server:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()

    def _connection(self) -> "_Connection":
        return _Connection(self._answer, self._connections)

    def _answer(self, connection: "_Connection", line: bytes, body: bytes) -> None:
        if b"/chat/completions" in line:
            self._open(connection, body)
        elif b"/models" in line:
            connection.reply(b"200 OK", self.models)
        else:
            connection.reply(b"404 Not Found", b'{"error": {"code": 404, "message": "Not found"}}')

    def _open(self, connection: "_Connection", body: bytes) -> None:
        mark = _MARK.match(body, max(0, body.rfind(b"[[")))
        if not mark:
            connection.reply(b"400 Bad Request", b'{"error": {"code": 400, "message": "No mark in the last message"}}')
            return
        key, tokens = int(mark[1]), int(mark[2] or 0)
        if key in self.generations:
            self.asked_twice.add(key)
        connection.generation = self.generations[key] = Generation(key, connection.transport)
        if tokens:
            connection.generation.send()
            asyncio.get_running_loop().call_later(0.01, _complete, connection.generation, tokens - 1)


def _complete(generation: Generation, tokens: int) -> None:
    while tokens and not generation.ended:
        generation.send()
        tokens -= 1
    generation.finish()


class _Connection(asyncio.Protocol):
    """One keep-alive connection from the relay; its requests have a `Content-Length`."""

    transport: asyncio.Transport

    def __init__(self, answer: "Callable[[_Connection, bytes, bytes], None]", all_of_them: "set[_Connection]") -> None:
        self._answer, self._all, self._buffer = answer, all_of_them, bytearray()
        self.generation: Generation | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._all.add(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (head_end := self._buffer.find(b"\r\n\r\n") + 4) > 3:
            length = _LENGTH.search(self._buffer, 0, head_end)
            end = head_end + (int(length[1]) if length else 0)
            if len(self._buffer) < end:
                return
            line, body = bytes(self._buffer[: self._buffer.find(b"\r\n")]), bytes(self._buffer[head_end:end])
            del self._buffer[:end]
            self._answer(self, line, body)

    def pause_writing(self) -> None:
        if self.generation:
            self.generation.paused = True

    def resume_writing(self) -> None:
        if self.generation:
            self.generation.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.discard(self)
        if self.generation:
            self.generation.abandon()

    def reply(self, status: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        self.transport.write(head + body)

    def abort(self) -> None:
        self.transport.abort()
