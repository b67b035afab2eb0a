"""One streamed completion without I/O: bytes in, typed values out, and how it ended.

Text, errors and the end are found by rule: text wherever it stands (`upstream/texts.py`), an error in whatever shape
(`upstream/refusals.py`), and the end only where it is. A finish reason promises the end, and text may follow it; it is
there at `[DONE]`, or where nothing more comes after such a promise.
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
    UpstreamBroken,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreadable,
    UpstreamWithoutText,
)
from upstream.events import ErrorData, EventParser
from upstream.refusals import BLANK, decode, decoded, is_error, plain_usage, refusal, retry_after_seconds, said
from upstream.texts import CONTENT, THINKING, Citations, encodable, other_than_text, texts_in
from upstream.values import Delta, Kind

MAX_USAGE_BYTES = 4096  # as JSON; a real one has about 300
MAX_NAME_CHARS = 200  # of a model, a provider, an id

_NOT_JSON = "Upstream sent something that isn't JSON."
_CUT_OFF = "The connection to upstream ended in the middle of the answer."
_TOOL_REASONS = ("tool_calls", "function_call", "tool_use")
_NO_REASONS = ("", "null", "none")  # as some servers write that there is none


class Completion:
    """What the events of one streamed completion add up to."""

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key
        self._parser = EventParser()
        self._values: list[Report | Delta] = []  # of the chunk that is being read
        self._texts: list[str] = []  # of the delta that is being merged
        self._kind: Kind = "content"  # of that delta
        self._lone: dict[Kind, str] = {}  # the first half of a surrogate pair, until the next delta of its kind
        self._finish_reason: str | None = None
        self._report = self._told = NO_REPORT  # what is known beside the text, and what of it was given on
        self._citations: Citations | None = None
        self._in_deltas: set[Kind] = set()  # what has come in deltas: messages beside them repeat it
        self._in_messages: dict[Kind, str] = {"content": "", "reasoning": ""}  # what has come in messages alone
        self._has_named_reasoning = False  # so that what repeats it isn't shown
        self._has_content = False  # that isn't blank
        self._other = ""  # what came that isn't text
        self._is_empty = True  # not an event has come
        self._retry_after: float | None = None  # in the response's head
        self.has_event = False  # the last bytes ended one
        self.is_generated = False  # something was: it must not be asked for again
        self.is_whole = False  # upstream said that it is, or is about to end
        self.is_done = False  # `[DONE]` was read: nothing after it counts
        self.is_over = False  # `[DONE]` or an error was read: nobody needs the rest
        self._error: UpstreamError | None = None  # that was read

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
        if self._report is not self._told:
            self._tell()
        values, self._values = self._values, []
        return values

    def finish(self, cause: UpstreamError | None = None) -> tuple[list[Report | Delta], Finish | UpstreamError]:
        """Return the values that are left, and what this was: a whole completion, or the error that broke it.

        `cause` is what kept more from coming; None if the response ended in order.
        """
        error = self._error or self._last_error(cause)
        self._add_lone()
        self._flush()
        self._tell()
        return self._values, self._failure(error) or Finish(self._finish_reason)

    def begin(self, generation_id: str | None, retry_after: str | None) -> list[Report | Delta]:
        """Note what the response's head says, and return its values."""
        self._retry_after = retry_after_seconds(retry_after) if retry_after else None
        self._introduce({"id": generation_id})
        self._tell()
        values, self._values = self._values, []
        return values

    def _last_error(self, cause: UpstreamError | None) -> UpstreamError | None:
        """Take a last event that has no blank line. Upstream's own error in it says more than `cause`."""
        try:
            for data in self._parser.close():
                self._is_empty = False
                self._take(data)
        except UpstreamRefused as error:
            return error
        except UpstreamError as error:
            return cause or (UpstreamUnreadable(_CUT_OFF) if error.failure.message == _NOT_JSON else error)
        return cause

    def _failure(self, error: UpstreamError | None) -> UpstreamError | None:
        """What keeps this from being an answer; `error` is what came last."""
        if error and not (self.is_whole and isinstance(error, UpstreamBroken | UpstreamTimeout)):
            return error
        stray = said(self._parser.stray.decode(errors="replace"), self._api_key)
        is_document = not self._parser.is_stream  # one whole JSON in place of events
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
            self._add_lone()
            return
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
            raise UpstreamUnreadable(_NOT_JSON, said(words, self._api_key))

    def _take_chunk(self, chunk: dict[str, Any]) -> None:
        if not self.is_generated:
            self._introduce(chunk)
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            choice = {}
        delta = choice.get("delta")
        if type(delta) is not dict:
            self._take_choice(choice, delta)
        elif type(text := delta.get("content")) is str and text and not any(map(delta.get, delta.keys() - CONTENT)):
            self._in_deltas.add("content")  # as nearly all are
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
            self._introduce(chunk)
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
        """A choice that isn't the usual one: its text may stand anywhere in it."""
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
        """The text of a message, which grows from chunk to chunk; beside deltas it repeats them."""
        if text and kind not in self._in_deltas:
            told = self._in_messages[kind]
            grows = text.startswith(told)
            self._in_messages[kind] = text if grows else told + text
            self._add(kind, text[len(told) :] if grows else text)

    def _take_odd(self, value: object) -> None:
        """JSON that is no object: a list of chunks or of errors, or nothing that is known."""
        if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
            for chunk in value:
                self._take_chunk(chunk)
            return
        words = value if isinstance(value, str) else ""
        raise UpstreamUnreadable("Upstream sent JSON that isn't an object.", said(words, self._api_key))

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
        self.is_generated = True  # a search is billed
        self._citations = self._citations or Citations()
        self._report = replace(self._report, annotations=self._citations.take(annotations))

    def _introduce(self, chunk: Mapping[str, Any]) -> None:
        """Note who answers, before the text and with the usage; of each the first one counts."""
        known = self._report
        self._report = replace(
            known,
            generation_id=known.generation_id or _name(chunk.get("id"), in_ascii=True),
            served_model=known.served_model or _name(chunk.get("model")),
            provider=known.provider or _name(chunk.get("provider")),
        )

    def _add(self, kind: Kind, text: str) -> None:
        if self._lone or not text.isascii():
            text = self._lone.pop(kind, "") + text
            if text and "\ud800" <= text[-1] <= "\udbff":
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

    def _tell(self) -> None:
        """Give on what is known beside the text, before the text that came with it."""
        if self._report != self._told:
            self._values.insert(0, self._report)
        self._told = self._report

    def _flush(self) -> None:
        if self._texts and (text := "".join(self._texts)):
            self._values.append(Delta(self._kind, text))
            self.is_generated = True
            if not self._has_content and self._kind == "content":
                self._has_content = not text.isspace()
        self._texts.clear()


def _name(value: object, *, in_ascii: bool = False) -> str | None:
    """A name as it may be kept, None for what isn't one."""
    if not isinstance(value, str) or not value.isprintable() or (in_ascii and not value.isascii()):
        return None
    return sys.intern(value[:MAX_NAME_CHARS].strip()) or None  # many messages keep the same one
