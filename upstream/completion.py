"""One streamed completion without I/O: bytes in, typed values out, or an exception.

https://openrouter.ai/docs/api-reference/streaming and
https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from upstream.errors import UpstreamBroken, UpstreamError, UpstreamUnreadable, parse_object, refusal
from upstream.redaction import encodable, plain_usage

Kind = Literal["content", "reasoning"]

MAX_USAGE_BYTES = 4096  # as JSON; a real one has about 300
MAX_EVENT_BYTES = 16 * 1024 * 1024  # images arrive as data URLs in one line


@dataclass(frozen=True, slots=True)
class Generation:
    """Upstream's id of the completion, for looking a charge up."""

    id: str


@dataclass(frozen=True, slots=True)
class Delta:
    """Text to append; encodable as UTF-8."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a whole completion."""

    finish_reason: str | None
    usage: Mapping[str, Any] | None


class EventParser:
    """An incremental parser of an event stream that keeps what a completion needs: each event's data."""

    def __init__(self) -> None:
        self._line: list[bytes] = []  # pieces of a line that hasn't ended
        self._data: list[bytes] = []  # the data lines of an event that hasn't ended
        self._line_size = self._data_size = 0  # bytes
        self._is_first = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that ends in `chunk`. Raises `UpstreamUnreadable` for an endless one."""
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
        if self._line_size + self._data_size > MAX_EVENT_BYTES:
            raise UpstreamUnreadable(f"Upstream sent an event of more than {MAX_EVENT_BYTES} bytes.")
        return events

    def close(self) -> list[bytes]:
        """The data of a last event without its blank line, or even its line end."""
        line, self._line = b"".join(self._line), []
        return self._events([line, b""])

    def _events(self, lines: list[bytes]) -> list[bytes]:
        if self._is_first and lines:
            self._is_first = False
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        events: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b" ", 5) else line[5:])
                self._data_size += len(line)
            elif line == b"data":
                self._data.append(b"")
                self._data_size += len(line)
            elif not line and self._data:
                data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                self._data.clear()
                self._data_size = 0
                if data.strip():
                    events.append(data)
        return events


class Completion:
    """What the events of one streamed completion add up to."""

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key
        self._parser = EventParser()
        self._values: list[Generation | Delta] = []  # of the chunk that is being read
        self._texts: list[str] = []  # of the delta that is being merged
        self._kind: Kind = "content"  # of that delta
        self._lone: dict[Kind, str] = {}  # the first half of a surrogate pair, until the next delta of its kind
        self._finish_reason: str | None = None
        self._usage: Mapping[str, Any] | None = None
        self._generation_id: str | None = None
        self.has_delta = False
        self.is_whole = False  # upstream said that it is
        self.is_done = False  # `[DONE]` was read: nothing after it counts
        self.error: UpstreamError | None = None  # that came behind the values

    def feed(self, chunk: bytes) -> list[Generation | Delta]:
        """The values in all events that end in `chunk`, neighbouring deltas merged; `error` is set if one is behind."""
        try:
            for data in self._parser.feed(chunk):
                self._take(data)
        except UpstreamError as error:
            self.error = error
        return self._merged()

    def finish(self) -> list[Generation | Delta | Finish]:
        """The values of a last event that wasn't ended, and the end. Raises `UpstreamError` if it isn't one."""
        try:
            for data in self._parser.close():
                self._take(data)
        except UpstreamUnreadable:  # it was cut off
            pass
        if not self.is_whole:
            raise UpstreamBroken("The connection to upstream ended in the middle of the answer.")
        self._add_lone()
        return [*self._merged(), Finish(self._finish_reason, self._usage)]

    def begin(self, generation_id: object) -> None:
        """Note upstream's id, as a header or a chunk gives it; the first one counts."""
        if self._generation_id is not None or not isinstance(generation_id, str) or not generation_id:
            return
        if generation_id.isascii() and generation_id.isprintable():
            self._generation_id = generation_id[:200]
            self._values.append(Generation(self._generation_id))

    def _take(self, data: bytes) -> None:
        if self.is_done:
            return
        if data.strip() == b"[DONE]":
            self.is_whole = self.is_done = True
            self._add_lone()
            return
        chunk = parse_object(data)
        if self._generation_id is None:
            self.begin(chunk.get("id"))
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            choice = {}
        if isinstance(delta := choice.get("delta"), dict):
            # Both names carry the same text where both are there, and so does `reasoning_details`: show one.
            if text := delta.get("reasoning") or delta.get("reasoning_content"):
                self._add("reasoning", text)
            if text := delta.get("content"):
                self._add("content", text)
        reason = choice.get("finish_reason")
        if (error := chunk.get("error") or choice.get("error")) or reason == "error":
            raise refusal(None, {**chunk, "error": error or {}}, None, self._api_key)
        if isinstance(usage := chunk.get("usage"), dict):
            figures = plain_usage(usage)
            self._usage = figures if len(json.dumps(figures)) <= MAX_USAGE_BYTES else None
        if reason and self._finish_reason is None and isinstance(reason, str):
            self._finish_reason = encodable(reason[:64])
            self.is_whole = True

    def _add(self, kind: Kind, text: object) -> None:
        if not isinstance(text, str):
            return
        if self._lone or not text.isascii():
            text = self._lone.pop(kind, "") + text
            if "\ud800" <= text[-1] <= "\udbff":
                self._lone[kind] = text[-1]
                text = text[:-1]
            text = encodable(text)
        if kind != self._kind:
            self._flush()
            self._kind = kind
        self._texts.append(text)

    def _add_lone(self) -> None:
        """What waits for its other half, which won't come any more."""
        for kind in list(self._lone):
            del self._lone[kind]
            self._add(kind, "\ufffd")

    def _merged(self) -> list[Generation | Delta]:
        self._flush()
        values, self._values = self._values, []
        return values

    def _flush(self) -> None:
        if self._texts and (text := "".join(self._texts)):
            self._values.append(Delta(self._kind, text))
            self.has_delta = True
        self._texts.clear()
