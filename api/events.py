"""A reply as a stream of events (https://html.spec.whatwg.org/multipage/server-sent-events.html) or of bare text.

An event's id names a message and how much of it the reader has; clients send it back unchanged. This module knows
nothing about requests or upstream.
"""

import json
import re
from collections.abc import AsyncGenerator, Awaitable
from json.encoder import encode_basestring_ascii
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response, StreamingResponse
from starlette.types import Message as ASGIMessage
from starlette.types import Receive, Scope, Send

from result import OBJECTS, Failure, Report
from stores.records import Kind, Message
from stores.reply import Reply
from stores.steps import Steps

PING_INTERVAL = 15  # seconds between pings on a silent stream
RECONNECT_INTERVAL_MS = 1_000  # milliseconds until an EventSource reconnects
SLICE_CHARS = 4_900  # of text in an event: up to 60,000 bytes as ASCII JSON; some clients refuse longer lines
SLICE_RUNS = 32  # events between two turns of the loop, if content and reasoning alternate
STREAM_HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}

_EVENT_ID = re.compile(r"([0-9a-f-]{36}):(end|[0-9]{1,9})")


def reply_response(reply: Reply, position: int, steps: Steps, *, as_text: bool = False) -> Response:
    """Stream the reply live from `position` (in characters), as events or as bare text."""
    headers = {**STREAM_HEADERS, "X-Message-Id": reply.id, "X-Model": reply.message.model or ""}
    if as_text:
        return _TextStream(_parts(reply, position, steps, _Text()), headers=headers, media_type="text/plain")
    parts = _parts(reply, position, steps, _Events(reply.message))
    return _EventStream(parts, headers=headers, ping=PING_INTERVAL, ping_message_factory=_ping)


class _Stream(Response):
    """A response that counts as a reader while the server sends it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._straight_send: Send = scope["straight_send"]
        scope["state"]["metrics"].readers += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            scope["state"]["metrics"].readers -= 1


class _TextStream(_Stream, StreamingResponse):
    """A stream of bare text."""


class _EventStream(_Stream, EventSourceResponse):
    """Sends its body straight to the server: the wrappers of `send` only act on the head.

    sse-starlette's `_send_with_timeout` would open a cancel scope for each event, for a time-out that isn't set.
    """

    def _send_with_timeout(self, send: Send, message: ASGIMessage) -> Awaitable[None]:  # type: ignore[override]
        return self._straight_send(message)


def _ping() -> ServerSentEvent:
    # A ping isn't a comment: some clients turn a comment into an event without data and can't parse it.
    return ServerSentEvent(event="ping", data="{}", sep="\n")


class _Events:
    """Formats the reply as events. `id:` is last: a client that applies it at once would lose a block cut off."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def start(self, position: int) -> bytes:
        message = self._message
        data = {"message_id": message.id, "model": message.model, "question_id": message.question_id}
        head = f"event: start\nretry: {RECONNECT_INTERVAL_MS}\n"
        return f"{head}data: {json.dumps(data)}\nid: {event_id(message.id, position)}\n\n".encode()

    def text(self, kind: Kind, text: str, position: int) -> bytes:
        event = "event: reasoning\n" if kind == "reasoning" else ""
        # The JSON is ASCII, as json.dumps writes it: some clients split lines at U+2028.
        data = f'data: {{"{kind}": {encode_basestring_ascii(text)}}}'
        return f"{event}{data}\nid: {self._message.id}:{position}\n\n".encode()

    def lost(self) -> bytes:
        return b""  # the reader reconnects with its last id

    def end(self, message: Message) -> bytes:
        return f"data: {json.dumps(last_event_fields(message))}\nid: {event_id(message.id, None)}\n\n".encode()


class _Text:
    """Formats the reply as its bare content, for a terminal; a failure is the last line."""

    def start(self, position: int) -> bytes:
        return b""

    def text(self, kind: Kind, text: str, position: int) -> bytes:
        return text.encode() if kind == "content" else b""

    def lost(self) -> bytes:
        return b"\n[The connection to the reply was lost: ask for it again.]\n"

    def end(self, message: Message) -> bytes:
        return f"\n[{message.error.message}]\n".encode() if message.error else b"\n"


async def _parts(reply: Reply, position: int, steps: Steps, form: _Events | _Text) -> AsyncGenerator[bytes, None]:
    transcript = reply.transcript
    yield form.start(position)
    while not reply.ended or position < transcript.kept:
        if position >= transcript.kept:
            if reply.is_lost:
                yield form.lost()
                return
            await reply.change()
        else:
            await steps.next()  # a disconnect ends the stream here: sending itself never waits
        for kind, text in transcript.read(position, SLICE_CHARS, SLICE_RUNS):
            position += len(text)
            yield form.text(kind, text, position)
    yield form.end(reply.message)


def event_id(message_id: str, position: int | None) -> str:
    """Return the id of the event that ends at `position` (in characters), or of the last event for None."""
    return f"{message_id}:{'end' if position is None else position}"


def parse_event_id(event_id: str) -> tuple[str, int | None] | None:
    """Return the message's id and the position that an event's id names; None if the id is malformed."""
    match = _EVENT_ID.fullmatch(event_id)
    return (match[1], None if match[2] == "end" else int(match[2])) if match else None


def last_event_fields(message: Message) -> dict[str, Any]:
    """Return the data of a stream's last event."""
    if message.error is not None:
        return {"error": failure_fields(message.error), "message_id": message.id}
    report = report_fields(message.report)
    del report["generation_id"]  # only the message has it, to look up a charge
    return {
        "done": True,
        "message_id": message.id,
        "model": message.model,
        "status": message.status,
        "finish_reason": message.finish_reason,
        **report,
    }


def report_fields(report: Report) -> dict[str, Any]:
    fields = {name: getattr(report, name) for name in Report.__slots__}
    return fields | {name: decoded(fields[name]) for name in OBJECTS}


def decoded(text: str | None) -> Any:
    """Decode a value that the store keeps as JSON."""
    return json.loads(text) if text else None


def failure_fields(failure: Failure) -> dict[str, Any]:
    return {name: getattr(failure, name) for name in Failure.__slots__}
