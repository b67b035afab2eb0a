"""A reply as a stream, of events or of bare text: https://html.spec.whatwg.org/multipage/server-sent-events.html

Knows nothing of requests or upstream.
"""

import json
import re
from collections.abc import AsyncGenerator, Awaitable
from json.encoder import encode_basestring_ascii

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response, StreamingResponse
from starlette.types import Message as ASGIMessage
from starlette.types import Receive, Scope, Send

from api.shapes import last_event_fields
from replies import Reply
from store import Kind, Message

KEEP_ALIVE = 15  # seconds between comments on a silent stream
RETRY_MS = 1_000  # after which an EventSource that was cut off comes back
SLICE_CHARS = 16_384  # at most in one event, so that a reader who lags needs little memory
STREAM_HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}

_EVENT_ID = re.compile(r"([0-9a-f-]{36}):(end|[0-9]{1,9})")


def place_of(event_id: str) -> tuple[str, int | None] | None:
    """The message's id in an event's id, and the position there, None behind the last event; None if it isn't one."""
    match = _EVENT_ID.fullmatch(event_id)
    return (match[1], None if match[2] == "end" else int(match[2])) if match else None


def reply_response(reply: Reply, position: int, accept: str) -> Response:
    """The reply from `position` (in characters) on, live: events, or bare text for who accepts nothing but that."""
    headers = {**STREAM_HEADERS, "X-Message-Id": reply.message.id, "X-Model": reply.message.model or ""}
    if "text/plain" in accept and "text/event-stream" not in accept:
        return StreamingResponse(_parts(reply, position, _Text()), headers=headers, media_type="text/plain")
    parts = _parts(reply, position, _Events(reply.message))
    return _EventStream(parts, headers=headers, ping=KEEP_ALIVE, ping_message_factory=_keep_alive)


class _EventStream(EventSourceResponse):
    """Sends its body straight to the server: the wrappers of `send` care for the head alone.

    `_send_with_timeout` opens a cancel scope for each event, for a time-out that isn't set.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._straight_send: Send = scope["straight_send"]
        await super().__call__(scope, receive, send)

    def _send_with_timeout(self, send: Send, message: ASGIMessage) -> Awaitable[None]:  # type: ignore[override]
        return self._straight_send(message)


def _keep_alive() -> ServerSentEvent:
    return ServerSentEvent(comment="keep-alive", sep="\n")


class _Events:
    """The blocks of an event stream. Each one's id says how much of the message its reader has by then."""

    def __init__(self, message: Message) -> None:
        self._message = message
        self._id_line = f"id: {message.id}:"

    def start(self, position: int) -> bytes:
        data = json.dumps({"message_id": self._message.id, "model": self._message.model})
        return f"event: start\n{self._id_line}{position}\nretry: {RETRY_MS}\ndata: {data}\n\n".encode()

    def text(self, kind: Kind, text: str, position: int) -> bytes:
        event = "event: reasoning\n" if kind == "reasoning" else ""
        # JSON in ASCII, as json.dumps writes a string: clients exist that split lines at U+2028.
        return f'{event}{self._id_line}{position}\ndata: {{"{kind}": {encode_basestring_ascii(text)}}}\n\n'.encode()

    def end(self, message: Message) -> bytes:
        return f"{self._id_line}end\ndata: {json.dumps(last_event_fields(message))}\n\n".encode()


class _Text:
    """The bare content, for a terminal; a failure is told in its last line."""

    def start(self, position: int) -> bytes:
        return b""

    def text(self, kind: Kind, text: str, position: int) -> bytes:
        return text.encode() if kind == "content" else b""

    def end(self, message: Message) -> bytes:
        return f"\n[{message.error.message}]\n".encode() if message.error else b"\n"


async def _parts(reply: Reply, position: int, form: _Events | _Text) -> AsyncGenerator[bytes, None]:
    transcript = reply.message.transcript
    yield form.start(position)
    while not reply.ended or position < transcript.length:
        if position == transcript.length:
            await reply.change()
        for kind, text in transcript.read(position, SLICE_CHARS):
            position += len(text)
            yield form.text(kind, text, position)
    yield form.end(reply.message)
