"""Server-Sent Events without I/O: bytes in, the data of each event out.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream, and what servers make of it:

- each line that is JSON by itself is an event, with a blank line after it or without;
- a field `error`, and an event of that name, are errors (llama.cpp, Groq);
- JSON without a field's name is an event, too: a whole line of it, or the whole body.

The bytes tell what they are; how a response is declared doesn't count.
"""

import json

from upstream.errors import NO_STREAM, UpstreamUnreadable

MAX_EVENT_BYTES = 16 * 1024 * 1024  # images arrive as data URLs in one line
MAX_STRAY_BYTES = 2000

_FIELDS = (b":", b"event:", b"id:", b"retry:")
_BARE_FIELDS = (b"event", b"id", b"retry", b"error")
_JSON_BEGINS, _JSON_ENDS = (b"{", b"["), (b"}", b"]")


class ErrorData(bytes):
    """The data of an event that is an error by its name or its field."""


class EventParser:
    """An incremental parser that keeps what a completion needs of an event stream."""

    def __init__(self) -> None:
        self.is_stream = False  # a field or a comment of an event stream has come
        self.stray = b""  # the lines that belong to no event, as far as they are kept
        self._line: list[bytes] = []  # pieces of a line that hasn't ended
        self._data: list[bytes] = []  # the data lines of an event that hasn't ended
        self._line_size = self._data_size = 0  # bytes
        self._is_first = True
        self._after_cr = False
        self._is_error = False  # the next event
        self._is_seen = False  # whether the first line of the event is whole by itself was looked at: it isn't
        self._is_body = False  # all that has come is one JSON document that hasn't ended

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that ends in `chunk`. Raises `UpstreamUnreadable` for a page and an endless event."""
        if not chunk:
            return []
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        self._line.append(chunk)
        self._line_size += len(chunk)
        events: list[bytes] = []
        if b"\n" in chunk or b"\r" in chunk:
            # Bytes, not text: str.splitlines() would also split at U+2028 and others, which are legal in JSON strings.
            lines = b"".join(self._line).splitlines()
            self._line = [] if chunk.endswith((b"\n", b"\r")) else [lines.pop()]
            self._line_size = len(self._line[0]) if self._line else 0
            events = self._events(lines)
            if self._data:
                self._dispatch_if_whole(events)
        if self._line_size + self._data_size > MAX_EVENT_BYTES:
            raise UpstreamUnreadable(f"Upstream sent an event of more than {MAX_EVENT_BYTES} bytes.")
        return events

    def close(self) -> list[bytes]:
        """The data of a last event without its blank line, or even its line end."""
        line, self._line = b"".join(self._line), []
        events = self._events([line])
        self._dispatch(events)
        return events

    def _events(self, lines: list[bytes]) -> list[bytes]:
        if self._is_first and lines:
            self._is_first = False
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        events: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                data = line[6:] if line.startswith(b" ", 5) else line[5:]
                if self._data:
                    self._divide(data, events)
                self._data.append(data)
                self._data_size += len(line)
                self.is_stream = True
            elif line:
                self._take_other(line, events)
            elif self._data and not self._is_body:
                self._dispatch(events)
        return events

    def _dispatch(self, events: list[bytes]) -> None:
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data.clear()
        self._data_size = 0
        self._is_seen = self._is_body = False
        if data.strip():
            events.append(ErrorData(data) if self._is_error else data)
            self._is_error = False

    def _dispatch_if_whole(self, events: list[bytes]) -> None:
        """The event that has one line so far, if that is JSON or the end: no further line could belong to it."""
        if len(self._data) > 1 or self._is_seen or self._is_body:
            return
        line = self._data[0].strip()
        self._is_seen = True
        if line == b"[DONE]" or (line.startswith(_JSON_BEGINS) and line.endswith(_JSON_ENDS) and _is_json(line)):
            self._dispatch(events)

    def _divide(self, following: bytes, events: list[bytes]) -> None:
        """Before a further line of data: end the event where it is whole without it."""
        self._dispatch_if_whole(events)
        if self._is_body:  # it was none
            self._keep(b" ".join(self._data))
            self._data.clear()
            self._is_body = False
        elif (
            self._data
            and self._data[-1].rstrip().endswith(_JSON_ENDS)
            and following.lstrip().startswith((b"{", b"[DONE]"))  # in JSON neither can follow
        ):
            self._dispatch(events)

    def _take_other(self, line: bytes, events: list[bytes]) -> None:
        if self._data and not line.startswith(b":"):
            self._dispatch_if_whole(events)
        if self._is_body:
            self._append(line)
        elif line.startswith(_FIELDS) or line in _BARE_FIELDS:
            self.is_stream = True
            if line.startswith(b"event:"):
                self._is_error = line[6:].strip() == b"error"
        elif line.startswith(b"error:"):
            self.is_stream = True
            events.append(ErrorData(line[6:].strip()))
        elif line == b"data":
            self.is_stream = True
            self._append(b"")
        elif self._data:
            if (
                self._data[0].lstrip().startswith(b"{")
            ):  # JSON over several lines, only the first of which has its field
                self._append(line)
        else:
            self._take_bare(line, events)

    def _take_bare(self, line: bytes, events: list[bytes]) -> None:
        text = line.strip()
        if text.startswith(_JSON_BEGINS) and text.endswith(_JSON_ENDS) and (text == b"[DONE]" or _is_json(text)):
            self._append(text)
            self._dispatch(events)
        elif text.startswith(_JSON_BEGINS) and not self.is_stream:
            self._is_body = True
            self._append(line)
        elif text.startswith(b"<") and not (self.is_stream or self.stray):
            raise UpstreamUnreadable(NO_STREAM)
        else:
            self._keep(text)

    def _append(self, line: bytes) -> None:
        self._data.append(line)
        self._data_size += len(line) + 1

    def _keep(self, text: bytes) -> None:
        self.stray = b" ".join((self.stray, text[:MAX_STRAY_BYTES]))[:MAX_STRAY_BYTES].strip()


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode(errors="replace"), strict=False)
    except (ValueError, RecursionError):
        return False
    return True
