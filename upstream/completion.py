"""One streamed completion without I/O: it takes bytes, and returns typed values and the ending.

`upstream/texts.py` finds the text in any field, and `upstream/refusals.py` reads errors of any shape. A finish reason
only promises the end, since text may follow it. The end is `[DONE]`, or the response's end after such a promise.
https://openrouter.ai/docs/api-reference/streaming
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from result import NO_REPORT, Finish, Report
from upstream.errors import (
    NO_STREAM,
    NOT_JSON,
    UpstreamBroken,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreadable,
    UpstreamWithoutText,
)
from upstream.events import ErrorData, EventParser
from upstream.refusals import (
    BLANK,
    decode,
    decoded,
    encodable,
    is_error,
    plain_usage,
    quote,
    refusal,
    retry_after_seconds,
)
from upstream.texts import CONTENT, THINKING, Citations, other_than_text, texts_in
from upstream.values import Delta, Kind

MAX_USAGE_BYTES = 4096  # as JSON, which usually takes about 300
MAX_NAME_CHARS = 200  # of a model, a provider or an id

_CUT_OFF = "The connection to upstream ended in the middle of the answer."
_TOOL_REASONS = ("tool_calls", "function_call", "tool_use")
_NO_REASONS = ("", "null", "none")  # some servers send these in place of null


class Completion:
    """The state of one streamed completion: feed it bytes, then ask how it ended."""

    def __init__(self, api_key: str) -> None:
        self._api_key, self._parser = api_key, EventParser()
        self._values: list[Report | Delta] = []  # the values that `feed` hasn't returned yet
        self._kind: Kind = "content"  # the kind of the texts
        self._texts: list[str] = []  # the texts of the delta that is being merged
        self._halves: dict[Kind, str] = {}  # first halves of surrogate pairs that wait for the next delta of their kind
        self._finish_reason: str | None = None
        self._report = self._returned_report = NO_REPORT
        self._citations: Citations | None = None
        self._in_deltas: set[Kind] = set()  # kinds that have come in deltas: messages beside them only repeat the text
        self._in_messages: dict[Kind, str] = {"content": "", "reasoning": ""}  # text that has come in messages alone
        self._has_named_reasoning = False  # whether reasoning has its own field: its repetition in parts is skipped
        self._has_content = False  # whether any content isn't blank
        self._other = ""  # a noun for something that came and isn't text
        self._is_empty = True  # whether no event has come
        self._retry_after: float | None = None  # the seconds in the response's head
        self._error: UpstreamError | None = None  # the error that upstream sent
        self.has_event = False  # whether the last bytes ended an event
        self.is_generated = False  # whether the model may have begun: the request must not be repeated
        self.is_whole = False  # whether upstream has sent `[DONE]` or a finish reason
        self.is_done = False  # whether `[DONE]` has come: later events don't count
        self.is_over = False  # whether `[DONE]` or an error has come: the rest need not be read

    def feed(self, chunk: bytes) -> list[Report | Delta]:
        """Return the values in all events that end in `chunk`, up to an error. Neighbouring deltas are merged."""
        try:
            events = self._parser.feed(chunk)
            self.has_event = bool(events)
            self._is_empty = self._is_empty and not events
            for data in events:
                self._take(data)
        except UpstreamError as error:
            self._error, self.is_over = error, True
        self._flush()
        if self._report is not self._returned_report:
            self._add_report()
        values, self._values = self._values, []
        return values

    def finish(self, cause: UpstreamError | None = None) -> tuple[list[Report | Delta], Finish | UpstreamError]:
        """Return the last values, and how the completion ended; `cause` is the error that broke the response off."""
        error = self._error or self._last_error(cause)
        self._add_halves()
        self._flush()
        self._add_report()
        return self._values, self._failure(error) or Finish(self._finish_reason)

    def begin(self, generation_id: str | None, retry_after: str | None) -> list[Report | Delta]:
        """Read the response's head and return its values."""
        self._retry_after = retry_after_seconds(retry_after) if retry_after else None
        self._take_names({"id": generation_id})
        self._returned_report = self._report
        return [self._report] if self._report != NO_REPORT else []

    def _last_error(self, cause: UpstreamError | None) -> UpstreamError | None:
        """Take a last event that has no blank line; upstream's own error in it says more than `cause`."""
        try:
            for data in self._parser.close():
                self._is_empty = False
                self._take(data)
        except UpstreamRefused as error:
            return error
        except UpstreamError as error:
            return cause or (UpstreamUnreadable(_CUT_OFF) if error.failure.message == NOT_JSON else error)
        return cause

    def _failure(self, error: UpstreamError | None) -> UpstreamError | None:
        """Return the reason why this is no answer, None if it is one; `error` is the last one."""
        if error and not (self.is_whole and isinstance(error, UpstreamBroken | UpstreamTimeout)):
            return error
        stray = quote(self._parser.stray.decode(errors="replace"), self._api_key)
        is_document = not self._parser.is_stream  # one JSON document in place of events
        if not (self.is_whole or (is_document and self._in_messages["content"])):
            is_cut_off = self._parser.is_stream or (self._is_empty and not stray)
            return UpstreamBroken(_CUT_OFF, stray) if is_cut_off else UpstreamUnreadable(NO_STREAM, stray)
        if self._has_content:
            return None
        if self._other or self._finish_reason in _TOOL_REASONS:
            return UpstreamWithoutText(self._other or "tool calls")
        return UpstreamUnreadable(NO_STREAM, stray) if stray else None

    def _take(self, data: bytes) -> None:
        if self.is_done:
            return
        if data.strip() == b"[DONE]":
            self.is_whole = self.is_done = self.is_over = True
            return self._add_halves()
        text = data.decode(errors="replace").strip(BLANK)
        try:
            value, end = decode(text)
        except (ValueError, RecursionError):
            value, end = None, -1
        if type(data) is ErrorData:
            self._take_error(value if end == len(text) else decoded(data))
        elif type(value) is dict:
            self._take_chunk(value)
        elif end == len(text):
            self._take_odd(value)
        if end != len(text):
            words = "" if text.startswith(("{", "[", "<")) else text
            raise UpstreamUnreadable(NOT_JSON, quote(words, self._api_key))

    def _take_chunk(self, chunk: dict[str, Any]) -> None:
        if not self.is_generated:
            self._take_names(chunk)
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            choice = {}
        delta = choice.get("delta")
        if type(delta) is not dict:
            self._take_choice(choice, delta)
        elif type(text := delta.get("content")) is str and text and not any(map(delta.get, delta.keys() - CONTENT)):
            self._in_deltas.add("content")  # nearly all chunks are like this one
            self._add("content", text)
        elif (
            type(thought := delta.get("reasoning") or delta.get("reasoning_content")) is str
            and not text
            and not any(map(delta.get, delta.keys() - THINKING))
        ):
            self._has_named_reasoning = True
            self._in_deltas.add("reasoning")
            self._add("reasoning", thought)
        else:
            self._take_choice(choice, delta)
        if usage := chunk.get("usage") or choice.get("usage"):
            self._take_names(chunk)
            self._take_usage(usage)
        if annotations := choice.get("annotations"):
            self._take_annotations(annotations)
        reason = choice.get("finish_reason")
        if (error := chunk.get("error") or choice.get("error")) or reason == "error":
            raise refusal(None, {**chunk, "error": error or {}}, self._retry_after, self._api_key)
        if not choices and is_error(chunk):
            raise refusal(None, chunk, self._retry_after, self._api_key)
        if reason and isinstance(reason, str) and reason.lower() not in _NO_REASONS:
            self._finish_reason = self._finish_reason or encodable(reason[:64])
            self.is_whole = self.is_generated = True

    def _take_choice(self, choice: Mapping[str, Any], delta: object) -> None:
        """Take an unusual choice: its text may stand in any of its fields."""
        fields = delta if isinstance(delta, dict) else {"content": delta}
        message = choice.get("message")
        if not isinstance(message, dict):
            message = {"content": message}
        piece, whole = texts_in(fields, choice), texts_in(message)
        for part in (fields, message):
            self._other = self._other or other_than_text(part)
            self.is_generated = self.is_generated or any(part[name] for name in part if name != "role")
            if annotations := part.get("annotations"):
                self._take_annotations(annotations)
        self._has_named_reasoning = self._has_named_reasoning or bool(piece.reasoning)
        self._take_piece("reasoning", piece.reasoning if self._has_named_reasoning else piece.repeated)
        self._take_piece("content", piece.content)
        self._take_whole("reasoning", whole.reasoning or whole.repeated)
        self._take_whole("content", whole.content)

    def _take_piece(self, kind: Kind, text: str) -> None:
        if text:
            self._in_deltas.add(kind)
            self._add(kind, text)

    def _take_whole(self, kind: Kind, text: str) -> None:
        """Take the text of a message, which may grow from chunk to chunk; beside deltas it only repeats them."""
        if text and kind not in self._in_deltas:
            addition = text.removeprefix(known := self._in_messages[kind])
            self._in_messages[kind] = known + addition
            self._add(kind, addition)

    def _take_odd(self, value: object) -> None:
        """Take JSON that is no object: a list of chunks or errors. Raises `UpstreamUnreadable` for anything else."""
        if not (isinstance(value, list) and value and all(isinstance(part, dict) for part in value)):
            words = value if isinstance(value, str) else ""
            raise UpstreamUnreadable("Upstream sent JSON that isn't an object.", quote(words, self._api_key))
        for chunk in value:
            self._take_chunk(chunk)

    def _take_error(self, value: object) -> None:
        if isinstance(value, dict):
            self._take_usage(value.get("usage"))
            if value.get("choices"):
                return self._take_chunk(value)
        raise refusal(None, value, self._retry_after, self._api_key)

    def _take_usage(self, usage: object) -> None:
        if isinstance(usage, dict):
            figures = json.dumps(plain_usage(usage))
            self._report = replace(self._report, usage=figures if len(figures) <= MAX_USAGE_BYTES else None)
            self.is_generated = self.is_generated or bool(usage.get("completion_tokens"))

    def _take_annotations(self, annotations: object) -> None:
        self.is_generated = True  # upstream bills a search
        self._citations = self._citations or Citations()
        self._report = replace(self._report, annotations=self._citations.take(annotations))

    def _take_names(self, chunk: Mapping[str, Any]) -> None:
        """Take the generation's id, the model and the provider; the first value of each counts."""
        known = self._report
        self._report = replace(
            known,
            generation_id=known.generation_id or _name(chunk.get("id"), in_ascii=True),
            served_model=known.served_model or _name(chunk.get("model")),
            provider=known.provider or _name(chunk.get("provider")),
        )

    def _add(self, kind: Kind, text: str) -> None:
        if self._halves or not text.isascii():
            text = self._halves.pop(kind, "") + text
            if text and "\ud800" <= text[-1] <= "\udbff":
                text, self._halves[kind] = text[:-1], text[-1]
            text = encodable(text)
        if kind != self._kind:
            self._flush()
            self._kind = kind
        self._texts.append(text)

    def _add_halves(self) -> None:
        """Replace the halves of surrogate pairs whose other halves haven't come."""
        halves, self._halves = self._halves, {}
        for kind in halves:
            self._add(kind, "\ufffd")

    def _add_report(self) -> None:
        """Put a new report before the text that came with it."""
        if self._report != self._returned_report:
            self._values.insert(0, self._report)
        self._returned_report = self._report

    def _flush(self) -> None:
        if self._texts and (text := "".join(self._texts)):
            self._values.append(Delta(self._kind, text))
            self.is_generated = True
            if not self._has_content and self._kind == "content":
                self._has_content = not text.isspace()
        self._texts.clear()


def _name(value: object, *, in_ascii: bool = False) -> str | None:
    """Return a name cut to `MAX_NAME_CHARS`; None if the value is none."""
    if not isinstance(value, str) or not value.isprintable() or (in_ascii and not value.isascii()):
        return None
    return sys.intern(value[:MAX_NAME_CHARS].strip()) or None  # many messages share one
