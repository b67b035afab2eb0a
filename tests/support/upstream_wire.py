"""One request as an upstream sees it, and the wire on which a script answers it, byte by byte.

The chunks have the shapes that were recorded from OpenRouter: a dated model slug, `content` and `role` in every delta,
`finish_reason` twice, usage with the second.
"""

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

LONGEST_HANG = 30.0

USAGE: dict[str, Any] = {
    "prompt_tokens": 18,
    "completion_tokens": 204,
    "total_tokens": 222,
    "cost": 0.00020652,
    "is_byok": False,
    "prompt_tokens_details": {"cached_tokens": 0},
    "cost_details": {"upstream_inference_cost": 0.00020652},
    "completion_tokens_details": {"reasoning_tokens": 187},
}


@dataclass(frozen=True)
class UpstreamRequest:
    """What arrived: header names in lower case, `body` decoded from JSON (None if empty)."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    generation_id: str
    """The id that the answer carries in its header and its chunks."""
    gone: asyncio.Event
    """Set when the client has closed the connection."""


async def read_request(reader: asyncio.StreamReader, generation_id: str, gone: asyncio.Event) -> UpstreamRequest:
    """The next request of a connection; `asyncio.IncompleteReadError` where the client closed it."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return UpstreamRequest(method, path, headers, json.loads(body) if body else None, generation_id, gone)


class Wire:
    """The answering side of one request.

    Every method returns when its bytes have left and one turn of the event loop has passed, so that a reader in the
    same loop gets separate sends separately. `ConnectionResetError` once the client has gone.
    """

    def __init__(self, request: UpstreamRequest, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self.gone = request.gone
        self.complete = False
        """True when the response has ended as HTTP wants it: the connection can take another request."""
        self._writer = writer
        self._head_sent = False
        self._chunked = False
        if writer.get_extra_info("sslcontext") is None:  # asyncio's TLS would wait for ever
            writer.transport.set_write_buffer_limits(high=0)

    async def head(self, status: int = 200, headers: Mapping[str, str] | None = None, *, chunked: bool = True) -> None:
        """Status and headers: those of an event stream, with `headers` over them.

        The body is chunked unless `headers` has a Content-Length or `chunked` is False (it ends with the connection).
        """
        fields = {"content-type": "text/event-stream", "x-generation-id": self.request.generation_id}
        fields |= {name.lower(): value for name, value in (headers or {}).items()}
        self._chunked = chunked and "content-length" not in fields
        if self._chunked:
            fields["transfer-encoding"] = "chunked"
        phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Unknown"
        lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in fields.items())]
        self._head_sent = True
        await self.raw("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def raw(self, octets: bytes) -> None:
        """These bytes on the socket, and nothing else."""
        if self.gone.is_set():
            raise ConnectionResetError("the client has gone")
        self._writer.write(octets)
        await self._writer.drain()
        await asyncio.sleep(0)

    async def send(self, octets: bytes) -> None:
        """These bytes of the body, as one chunk; the head goes first if it hasn't."""
        if not self._head_sent:
            await self.head()
        await self.raw(b"%x\r\n%b\r\n" % (len(octets), octets) if self._chunked and octets else octets)

    async def event(self, event: dict[str, Any] | str) -> None:
        """One event: a chunk as JSON, or a string as it is."""
        await self.send(b"data: " + (event.encode() if isinstance(event, str) else encoded(event)) + b"\n\n")

    async def comment(self, text: str = " OPENROUTER PROCESSING") -> None:
        """One comment, as upstream sends them while nothing is generated."""
        await self.send(f":{text}\n\n".encode())

    async def delta(self, text: str) -> None:
        """One chunk of content."""
        await self.event(self.chunk({"content": text}))

    async def reasoning(self, text: str) -> None:
        """One chunk of reasoning, the text doubled in `reasoning_details` as recorded."""
        details = [{"type": "reasoning.text", "text": text, "format": "unknown", "index": 0}]
        await self.event(self.chunk({"reasoning": text, "reasoning_details": details}))

    async def finish(self, reason: str = "stop", usage: dict[str, Any] | None = USAGE) -> None:
        """The finish reason, and once more with the usage; without usage it comes only once."""
        await self.event(self.chunk({"reasoning": None}, reason))
        if usage is not None:
            await self.event(self.chunk({}, reason) | {"usage": usage})

    async def error(self, code: int | str | None, message: str, **more: Any) -> None:
        """An error inside the stream, in its recorded shape: no choices, and no [DONE] should follow."""
        await self.event(self.chunk({}) | {"choices": [], "error": {"code": code, "message": message, **more}})

    async def done(self) -> None:
        """`[DONE]` and the end of the body."""
        await self.event("[DONE]")
        await self.end()

    async def end(self) -> None:
        """The end of the body, without `[DONE]`."""
        if self._chunked:
            await self.raw(b"0\r\n\r\n")
        self.complete = self._chunked

    async def respond(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        """A whole response that isn't a stream: bytes and strings as they are, anything else as JSON."""
        octets = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else encoded(body)
        length = {"content-length": str(len(octets))}
        await self.head(status, {"content-type": "application/json", **length, **(headers or {})})
        await self.raw(octets)
        self.complete = True

    async def hang(self) -> None:
        """Return when the client has gone; `TimeoutError` if it never goes."""
        async with asyncio.timeout(LONGEST_HANG):
            await self.gone.wait()

    def close(self) -> None:
        """Close the connection in order (FIN), whatever of the response is missing."""
        self._writer.close()

    def reset(self) -> None:
        """Break the connection (RST). What was sent before can still be read."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """A recorded chunk with this delta; change what a test needs."""
        choice = {"index": 0, "delta": {"content": "", "role": "assistant"} | delta, "finish_reason": finish_reason}
        return {
            "id": self.request.generation_id,
            "object": "chat.completion.chunk",
            "created": 1778452651,
            "model": f"{self.request.body['model']}-20260224",
            "provider": "DeepInfra",
            "choices": [choice | {"native_finish_reason": finish_reason}],
        }


def encoded(value: object) -> bytes:
    """JSON as upstream writes it, UTF-8; escaped where a lone surrogate leaves no other way."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()
