"""A parser of Server-Sent Events without I/O: it takes bytes and returns the data of each event.

It follows https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream, but servers differ:

- a line that is JSON by itself is an event, even if no blank line follows it;
- a field `error` and an event named `error` are errors (llama.cpp, Groq);
- JSON without a field name is an event, too: a whole line, or the whole body.

Only the bytes decide; the response's content type doesn't matter.
"""

import json

from upstream.errors import NO_STREAM, UpstreamUnreadable

MAX_EVENT_BYTES = 16 * 1024 * 1024  # images arrive as data URLs in one line
MAX_STRAY_BYTES = 2000

_FIELDS = (b":", b"event:", b"id:", b"retry:")
_BARE_FIELDS = (b"event", b"id", b"retry", b"error")
_JSON_BEGINS, _JSON_ENDS = (b"{", b"["), (b"}", b"]")


class ErrorData(bytes):
    """The data of an event whose name or field is `error`."""


class EventParser:
    """An incremental parser that reads only the data and the errors of an event stream."""

    def __init__(self) -> None:
        self.is_stream = False  # whether a field or a comment of an event stream has come
        self.stray = b""  # the first lines that belong to no event
        self._line: list[bytes] = []  # pieces of a line that hasn't ended
        self._data: list[bytes] = []  # the data lines of an event that hasn't ended
        self._line_size = self._data_size = 0  # bytes
        self._is_first, self._after_cr = True, False
        self._is_error = False  # whether the next event is an error
        self._is_checked = False  # whether a check has shown that the event's first line isn't whole by itself
        self._is_body = False  # whether everything so far is one JSON document that hasn't ended

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of each event that ends in `chunk`. Raises `UpstreamUnreadable` (a page, a huge event)."""
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
        """Return the data of a last event that has no blank line, or even no line end."""
        events = self._events([b"".join(self._line)])
        self._line.clear()
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
        self._is_checked = self._is_body = False
        if data.strip():
            events.append(ErrorData(data) if self._is_error else data)
            self._is_error = False

    def _dispatch_if_whole(self, events: list[bytes]) -> None:
        """End an event whose only line so far is JSON or `[DONE]`: no further line can belong to it."""
        if len(self._data) > 1 or self._is_checked or self._is_body:
            return
        line, self._is_checked = self._data[0].strip(), True
        if line == b"[DONE]" or (line.startswith(_JSON_BEGINS) and line.endswith(_JSON_ENDS) and _is_json(line)):
            self._dispatch(events)

    def _divide(self, following: bytes, events: list[bytes]) -> None:
        """End the event before a further line of data if the event is whole without that line."""
        self._dispatch_if_whole(events)
        if self._is_body:  # a field follows, so these lines were no document
            self._keep(b" ".join(self._data))
            self._data.clear()
            self._is_body = False
        elif (
            self._data
            and self._data[-1].rstrip().endswith(_JSON_ENDS)
            and following.lstrip().startswith((b"{", b"[DONE]"))  # neither can follow in JSON
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
        elif not self._data:
            self._take_bare(line, events)
        elif self._data[0].lstrip().startswith(b"{"):  # in JSON over several lines, only the first one has the field
            self._append(line)

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
