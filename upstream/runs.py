"""Decodes runs of like events at once: what comes while a model writes differs from event to event in its text alone.

Knows nothing of connections. It is a shortcut: without it everything would be the same but the time that it takes.

An event that says nothing but content is taken apart once into the bytes before its text and those after it. As long
as bytes repeat both, the texts between them are read, all with one call of the JSON parser. Anything else goes the
ordinary way, event by event.
"""

import json
from collections.abc import Iterator
from typing import Any

from upstream.wire import Completion, Delta, EventParser, Generation, UpstreamError

MAX_MISSES = 8  # events that were no run, less those that were: a stream of events that differ isn't tried for ever

_MARK = "\u2603"


class Runs:
    """The values of one streamed completion, from its bytes as they come."""

    def __init__(self, completion: Completion) -> None:
        self._completion = completion
        self._parser = EventParser()
        self._before = self._between = self._after = b""  # the first text of a run, two of them, the last one
        self._misses = 0

    def take(self, chunk: bytes) -> tuple[list[Generation | Delta], UpstreamError | None]:
        """The values in all events that end in `chunk`, neighbouring deltas merged, and the error that ended them."""
        values: list[Generation | Delta] = []
        error: UpstreamError | None = None
        while chunk and error is None:
            if self._misses > MAX_MISSES:
                event, chunk = chunk, b""
            else:
                if chunk.startswith(self._before) and self._may_run():
                    text, chunk = self._run(chunk)
                    _append(values, Delta("content", text))
                event, chunk = _first_event(chunk) if chunk else (b"", b"")
            error = self._read(values, event) if event else None
        return values, error

    def close(self) -> tuple[list[Generation | Delta], UpstreamError | None]:
        """The values in a last event that was cut off."""
        values: list[Generation | Delta] = []
        return values, self._collect(values, self._parser.close())

    def _may_run(self) -> bool:
        return bool(self._before) and self._parser.is_between_events and self._completion.is_plain

    def _run(self, chunk: bytes) -> tuple[str, bytes]:
        """The text of the like events with which `chunk` starts, and the rest of it."""
        texts = chunk[len(self._before) :].split(self._between)
        last, ended, rest = texts.pop().partition(self._after)
        if ended:
            texts.append(last)
        else:
            rest = self._before + last
        array = b'["' + b'","'.join(texts) + b'"]'
        # An escape may be half of a surrogate pair, and a backslash at a text's end may make two texts one.
        if not texts or b"\\u" in array or b'\\","' in array:
            return "", chunk
        try:
            decoded = json.loads(array.decode())
        except ValueError:
            return "", chunk
        if len(decoded) != len(texts):
            return "", chunk
        self._misses -= len(texts)
        return "".join(decoded), rest

    def _read(self, values: list[Generation | Delta], event: bytes) -> UpstreamError | None:
        """The ordinary way; what may be learned from an event is learned."""
        is_whole = self._misses <= MAX_MISSES and self._parser.is_between_events
        error = self._collect(values, self._parser.feed(event))
        self._misses += 1
        if self._misses > 1 and is_whole and error is None and self._completion.is_plain:
            self._learn(event)  # not from the first one, which a reader waits for
        return error

    def _collect(self, values: list[Generation | Delta], events: Iterator[bytes]) -> UpstreamError | None:
        try:
            for data in events:
                for value in self._completion.take(data):
                    _append(values, value)
        except UpstreamError as error:
            return error
        return None

    def _learn(self, event: bytes) -> None:
        data = event[6:-2]
        if event != b"data: " + data + b"\n\n":
            return
        try:
            chunk = json.loads(data)
            text = chunk["choices"][0]["delta"]["content"]
            before, _, after = data.partition(b'"content":' + json.dumps(text, ensure_ascii=False).encode())
            like = json.loads(before + b'"content":"' + _MARK.encode() + b'"' + after)
        except (ValueError, LookupError, TypeError):
            return
        chunk["choices"][0]["delta"]["content"] = _MARK
        if like == chunk and _says_only_content(chunk):
            self._before = b"data: " + before + b'"content":"'
            self._after = b'"' + after + b"\n\n"
            self._between = self._after + self._before


def _says_only_content(chunk: dict[str, Any]) -> bool:
    said = Completion("")
    said.generation_id = "known"
    values = list(said.take(json.dumps(chunk).encode()))
    return values == [Delta("content", _MARK)] and not said.whole and said.usage is None


def _first_event(chunk: bytes) -> tuple[bytes, bytes]:
    end = chunk.find(b"\n\n") + 2
    return (chunk[:end], chunk[end:]) if end > 1 else (chunk, b"")


def _append(values: list[Generation | Delta], value: Generation | Delta) -> None:
    last = values[-1] if values else None
    if isinstance(value, Delta):
        if isinstance(last, Delta) and value.kind == last.kind:
            value = Delta(value.kind, last.text + value.text)
            values.pop()
        elif not value.text:
            return
    values.append(value)
