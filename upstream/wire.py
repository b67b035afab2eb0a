"""OpenRouter's wire protocol without I/O: bytes in, typed values or an exception out.

What can go wrong, by who is to blame:

    UpstreamError           `code` (an HTTP status), `message` for a person, `retryable`, `retry_after` (seconds)
    |- NotConfigured        this service: it has no API key
    |- UpstreamRefused      upstream answered with an error, before the stream or inside it
    |- UpstreamBroken       the connection broke before the answer was whole
    |  `- UpstreamUnreadable    upstream answered with something else than a stream
    |- UpstreamUnreachable  there is no connection to upstream
    `- UpstreamTimeout      upstream took too long to connect
       `- UpstreamSilent    upstream has the request, and was silent for too long

Sources: https://openrouter.ai/docs/api-reference/streaming, https://openrouter.ai/docs/api-reference/errors and
https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

Kind = Literal["content", "reasoning"]

MAX_USAGE_BYTES = 4096  # as JSON; a real one has about 300
MAX_EVENT_BYTES = 16 * 1024 * 1024  # images arrive as data URLs in one line

_SURROGATE = re.compile("[\ud800-\udfff]")
_PRIVATE = ("user_id", "raw", "flagged_input")  # what upstream says of an account, or quotes
_CREDENTIAL = re.compile(r"\b(?:g?sk|xai|user|org|key)[-_][\w.*-]{6,}")

# The words that stand in an error's `code`, `type` or `metadata.error_type` in place of a status.
_STATUS_OF_WORD = {
    "authentication_error": 401,
    "content_filter": 403,
    "content_policy_violation": 403,
    "context_length_exceeded": 400,
    "insufficient_quota": 402,
    "invalid_request_error": 400,
    "not_found_error": 404,
    "overloaded_error": 529,
    "permission_error": 403,
    "provider_overloaded": 503,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "timeout": 408,
}

_SENTENCE_OF_STATUS = {
    400: "Upstream can't take this request: an unknown model, a bad parameter, or more text than the model reads.",
    401: "Upstream doesn't accept the API key: check OPENROUTER_API_KEY.",
    402: "The upstream account has no credit left for this request, or its key has reached its limit.",
    403: "Upstream doesn't allow this request: moderation, a guardrail, a permission or a spent budget.",
    404: "Upstream has no provider for this model under the account's settings.",
    408: "The request took upstream too long.",
    413: "The request is too large for upstream.",
    422: "Upstream can't process this request.",
    429: "A rate limit is reached, upstream's or the provider's: wait a little.",
    529: "The model's provider is overloaded: try again in a moment.",
}


class UpstreamError(Exception):
    """Upstream gave no whole answer. `message` is for a person; nothing of an account stands in it."""

    def __init__(self, code: int, message: str, *, retryable: bool, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after


class NotConfigured(UpstreamError):
    """The service lacks what upstream asks for."""

    def __init__(self) -> None:
        super().__init__(401, "The service has no API key: set OPENROUTER_API_KEY and restart it.", retryable=False)


class UpstreamRefused(UpstreamError):
    """Upstream answered with an error of its own."""


class UpstreamBroken(UpstreamError):
    """Upstream's answer can't be used: cut off, unreadable, or no stream at all."""

    def __init__(self, message: str) -> None:
        super().__init__(502, message, retryable=True)


class UpstreamUnreadable(UpstreamBroken):
    """Upstream has answered, but not in this protocol: another try might be generated, and billed, as well."""


class UpstreamUnreachable(UpstreamError):
    """No connection to upstream."""

    def __init__(self) -> None:
        super().__init__(503, "Upstream can't be reached: check the network and OPENROUTER_BASE_URL.", retryable=True)


class UpstreamTimeout(UpstreamError):
    """Upstream took too long."""

    def __init__(self, message: str) -> None:
        super().__init__(504, message, retryable=True)


class UpstreamSilent(UpstreamTimeout):
    """Upstream has the request, and may be generating: a person may ask again, the relay must not by itself."""

    def __init__(self) -> None:
        super().__init__("Upstream was silent for too long.")


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
        self._first = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of every event that ends in `chunk`. Raises `UpstreamUnreadable` for an endless one."""
        if not chunk:
            return
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        self._line.append(chunk)
        self._line_size += len(chunk)
        if b"\n" in chunk or b"\r" in chunk:
            # Bytes, not text: str.splitlines() would also split at U+2028 and others, which are legal in JSON strings.
            lines = b"".join(self._line).splitlines()
            self._line = [] if chunk.endswith((b"\n", b"\r")) else [lines.pop()]
            self._line_size = sum(map(len, self._line))
            yield from self._events(lines)
        if self._line_size + self._data_size > MAX_EVENT_BYTES:
            raise UpstreamUnreadable(f"Upstream sent an event of more than {MAX_EVENT_BYTES} bytes.")

    @property
    def is_between_events(self) -> bool:
        """Whether nothing is left of what was fed."""
        return not (self._line or self._data or self._after_cr)

    def close(self) -> Iterator[bytes]:
        """The data of a last event without its blank line, or even its line end."""
        line, self._line = b"".join(self._line), []
        yield from self._events([line, b""])

    def _events(self, lines: list[bytes]) -> Iterator[bytes]:
        if self._first and lines:
            self._first = False
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b" ", 5) else line[5:])
                self._data_size += len(line)
            elif line == b"data":
                self._data.append(b"")
                self._data_size += len(line)
            elif not line and self._data:
                data = b"\n".join(self._data)
                self._data, self._data_size = [], 0
                if data.strip():
                    yield data


class Completion:
    """What the events of one streamed completion add up to. `whole` once upstream said that it is complete."""

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key
        self._lone: dict[Kind, str] = {}  # by kind: the first half of a surrogate pair, until the next delta
        self.usage: Mapping[str, Any] | None = None
        self._finish_reason: str | None = None
        self.generation_id: str | None = None
        self.whole = False
        self.done = False  # `[DONE]` was read: nothing after it counts

    def take(self, data: bytes) -> Iterator[Generation | Delta]:
        """The values in one event. Raises `UpstreamRefused`, `UpstreamUnreadable`."""
        if self.done:
            return
        if data.strip() == b"[DONE]":
            self.whole = self.done = True
            yield from self.leftover()
            return
        chunk = parse_object(data)
        if self.generation_id is None and (generation := generation_in(chunk.get("id"))):
            self.generation_id = generation.id
            yield generation
        choice = first_choice(chunk)
        if isinstance(delta := choice.get("delta"), dict):
            # Both names carry the same text where both are there, and so does `reasoning_details`: show one.
            if text := self._whole_text("reasoning", delta.get("reasoning") or delta.get("reasoning_content")):
                yield Delta("reasoning", text)
            if text := self._whole_text("content", delta.get("content")):
                yield Delta("content", text)
        reason = choice.get("finish_reason")
        if (error := chunk.get("error") or choice.get("error")) or reason == "error":
            raise refusal(None, {**chunk, "error": error or {}}, None, self._api_key)
        if isinstance(usage := chunk.get("usage"), dict):
            figures = plain_usage(usage)
            self.usage = figures if len(json.dumps(figures)) <= MAX_USAGE_BYTES else None
        if self._finish_reason is None and isinstance(reason, str) and reason:
            self._finish_reason = encodable(reason[:64])
            self.whole = True

    @property
    def is_plain(self) -> bool:
        """Whether nothing that came so far bears on the text that follows."""
        return not (self.whole or self._lone)

    def leftover(self) -> Iterator[Delta]:
        """What waited for its other half, which won't come any more."""
        while self._lone:
            kind, _ = self._lone.popitem()
            yield Delta(kind, "\ufffd")

    def finish(self) -> Finish:
        """The end. Raises `UpstreamBroken` if upstream never said that it was one."""
        if not self.whole:
            raise UpstreamBroken("The connection to upstream ended in the middle of the answer.")
        return Finish(self._finish_reason, self.usage)

    def _whole_text(self, kind: Kind, text: object) -> str:
        if not isinstance(text, str) or not text:
            return ""
        if text.isascii() and not self._lone:
            return text
        text = self._lone.pop(kind, "") + text
        if "\ud800" <= text[-1] <= "\udbff":
            self._lone[kind] = text[-1]
            text = text[:-1]
        return encodable(text)


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises `UpstreamUnreadable` for anything else."""
    try:
        value = json.loads(data.decode(errors="replace"))
    except (ValueError, RecursionError):
        raise UpstreamUnreadable("Upstream sent something that isn't JSON.") from None
    if not isinstance(value, dict):
        raise UpstreamUnreadable("Upstream sent JSON that isn't an object.")
    return value


def first_choice(chunk: Mapping[str, Any]) -> Mapping[str, Any]:
    """The only choice that is asked for; empty if the chunk has none."""
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def generation_in(value: object) -> Generation | None:
    """A generation's id as a header or a chunk gives it."""
    return (
        Generation(value[:200])
        if isinstance(value, str) and value.isascii() and value.isprintable() and value
        else None
    )


def refusal(status: int | None, body: Mapping[str, Any], retry_after: float | None, api_key: str) -> UpstreamRefused:
    """What upstream's error means: `status` of the response (None inside a stream), its decoded body.

    The shapes that are in use: https://openrouter.ai/docs/api-reference/errors
    """
    error = body.get("error")
    fields: Mapping[str, Any] = error if isinstance(error, dict) else {"message": error}
    metadata = fields.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    code = status if status and status < 600 else _status_in(fields, metadata)
    otherwise = f"Upstream failed with status {code}{': try again in a moment' if code >= 500 else ''}."
    sentence = _SENTENCE_OF_STATUS.get(code, otherwise)
    key = api_key if len(api_key) > 5 else ""  # local servers take any word
    said = redacted(fields.get("message"), [key, *_private(body, fields, metadata)])
    in_flight = metadata.get("limit_source") == "openrouter_in_flight_budget"
    return UpstreamRefused(
        code,
        f"{sentence} Upstream said: {said}" if said else sentence,
        retryable=code in (408, 429) or code >= 500 or (code == 402 and in_flight),
        retry_after=retry_after,
    )


def redacted(message: object, secrets: list[str]) -> str:
    """Upstream's own words, without keys, account ids and quoted input; at most 300 characters."""
    if not isinstance(message, str):
        return ""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):  # a longer one may contain a shorter one
        message = message.replace(secret, "[redacted]")
    return encodable(" ".join(_CREDENTIAL.sub("[redacted]", message).split())[:300])


def retry_after_seconds(value: str | None) -> float | None:
    """`Retry-After`, seconds or a date (RFC 9110, 10.2.3), as seconds from now; None if it can't be read."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, round(seconds, 3)) if math.isfinite(seconds) else None


def plain_usage(value: Any, depth: int = 3) -> Any:
    """`usage` as upstream reported it, less what isn't a plain figure: it is stored and sent as JSON."""
    if isinstance(value, dict):
        entries = [(str(name)[:64], part) for name, part in list(value.items())[:64] if name not in _PRIVATE]
        kept = {sys.intern(encodable(name)): plain_usage(part, depth - 1) for name, part in entries}
        return kept if depth else None
    if isinstance(value, str):
        return redacted(value[:64], [])
    is_figure = isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))
    return value if is_figure else None


def encodable(text: str) -> str:
    """`text` with surrogate pairs joined and lone halves replaced, so that it can be encoded as UTF-8."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _status_in(fields: Mapping[str, Any], metadata: Mapping[str, Any]) -> int:
    for value in (fields.get("code"), metadata.get("error_type"), fields.get("type")):
        if isinstance(value, str):
            value = int(value) if value.isdecimal() and len(value) == 3 else _STATUS_OF_WORD.get(value)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    return 502


def _private(*parts: Mapping[str, Any]) -> Iterator[str]:
    for part in parts:
        for name in _PRIVATE:
            if isinstance(value := part.get(name), str):
                yield value
