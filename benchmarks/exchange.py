"""One keep-alive HTTP/1.1 connection to a subject: a request, its whole answer, the next request."""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from benchmarks.errors import UnexpectedAnswer

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """A whole answer: its status, the bytes of its head, its body."""

    status: int
    head: bytes
    body: bytes

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


def request(method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> bytes:
    """A request's bytes, with `body` as JSON if there is one."""
    payload = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(payload)}"]
    return "\r\n".join([*lines, "", ""]).encode() + payload


class Exchange(asyncio.Protocol):
    """Ask one thing at a time with `ask`; open with `connect`."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._waiting: asyncio.Future[Answer] | None = None
        self._loop = asyncio.get_running_loop()

    async def ask(self, payload: bytes) -> Answer:
        """The answer to a request's bytes, whatever its status. ConnectionError if the connection goes."""
        self._waiting = self._loop.create_future()
        self._transport.write(payload)
        return await self._waiting

    async def expect(self, status: int, payload: bytes) -> Answer:
        """The answer, which must have this status. UnexpectedAnswer if it hasn't."""
        answer = await self.ask(payload)
        if answer.status != status:
            line = payload.partition(b"\r\n")[0].decode()
            raise UnexpectedAnswer(f"{line}: {answer.status} instead of {status}: {answer.body[:300]!r}")
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n") + 4
        if head_end < 4 or not self._waiting or self._waiting.done():
            return
        body = self._body(head_end)
        if body is not None:
            head = bytes(self._buffer[:head_end])
            self._buffer.clear()
            self._waiting.set_result(Answer(int(head[9:12]), head, body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(ConnectionError("The connection was closed before the answer was whole"))

    def _body(self, head_end: int) -> bytes | None:
        """The body if it is whole, else None."""
        if length := _LENGTH.search(self._buffer, 0, head_end):
            end = head_end + int(length[1])
            return bytes(self._buffer[head_end:end]) if len(self._buffer) >= end else None
        if _CHUNKED.search(self._buffer, 0, head_end):
            rest = bytes(self._buffer[head_end:])
            return dechunked(rest) if (b"\r\n" + rest).endswith(b"\r\n0\r\n\r\n") else None
        return b""


def dechunked(raw: bytes) -> bytes:
    """The payload of a chunked body; of a body that is cut short, what is there."""
    return b"".join(raw[start:end] for start, end in chunks(raw))


def chunks(raw: bytes, at: int = 0) -> Iterator[tuple[int, int]]:
    """Where each chunk's payload starts and ends in a chunked body that begins `at`."""
    while (line_end := raw.find(b"\r\n", at)) >= 0:
        size = int(raw[at:line_end].split(b";")[0], 16)
        if not size:
            return
        yield line_end + 2, line_end + 2 + size
        at = line_end + 2 + size + 2


async def connect(port: int) -> Exchange:
    """A connection to a loopback port."""
    _, exchange = await asyncio.get_running_loop().create_connection(Exchange, "127.0.0.1", port)
    return exchange
