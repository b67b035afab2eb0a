"""Upstream's own errors in all their shapes: their words, their status, and whether another try makes sense.

https://openrouter.ai/docs/api-reference/errors. OpenAI-compatible servers use other shapes: `{"error"}` as an object or
as text, `{"message"}`, `{"detail"}` as text or a list, a list with one of these, plain text, a page.
"""

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from result import Failure
from upstream.errors import NOT_JSON, UpstreamRefused, UpstreamUnreadable, with_quote

BLANK = " \t\r\n\ufeff"

decode = json.JSONDecoder(strict=False).raw_decode  # json.loads would make two more calls an event
"""Decode JSON, whose strings may contain line ends; return the value and the index of its end."""

_NESTING = ("error", "errors", "detail", "message")
_TEXT = ("message", "detail", "msg", "error_description", "error_message", "error_msg", "error", "description", "title")
_CODES = ("code", "status", "status_code", "statuscode")
_TYPES = ("code", "error_type", "type", "status")

# Some servers send words in place of a status. `RateLimitError` and `rate_limit_error` both count as `ratelimit`.
_WORDS_OF_STATUS = {
    400: "badrequest contextlengthexceeded exceedcontextsize invalidrequest",
    401: "authentication invalidapikey",
    402: "insufficientquota",
    403: "contentfilter contentpolicyviolation permission permissiondenied",
    404: "modelnotfound notfound",
    408: "timeout",
    413: "requesttoolarge",
    422: "unprocessableentity",
    429: "ratelimit ratelimitexceeded",
    503: "provideroverloaded",
    529: "overloaded",
}
_STATUS_OF_WORD = {word: status for status, words in _WORDS_OF_STATUS.items() for word in words.split()}

_SENTENCE_OF_STATUS = {
    400: "Upstream can't take this request, for an unknown model, a bad parameter, or more text than the model reads.",
    401: "Upstream doesn't accept the API key in OPENROUTER_API_KEY.",
    402: "The upstream account has no credit left for this request, or its key has reached its limit.",
    403: "Upstream doesn't allow this request, for moderation, a guardrail, a permission or a spent budget.",
    404: "Upstream has no provider for this model under the account's settings.",
    408: "The request took upstream too long.",
    413: "The request is too large for upstream.",
    422: "Upstream can't process this request.",
    429: "A rate limit is reached, upstream's or the provider's, so wait a little.",
    529: "The model's provider is overloaded, so try again in a moment.",
}
_NO_SUCH_PATH = "Upstream has no such path, so check OPENROUTER_BASE_URL, which often ends in /v1."
_TOO_LONG = (
    "The conversation is too long for this model, so start a shorter one, choose a model that reads more, or let "
    'OpenRouter shorten it with the option `plugins: [{"id": "context-compression"}]`.'
)
_TOO_DEAR = (
    "The upstream account's credit doesn't reach for the longest answer that might come, so set MAX_TOKENS, or the "
    "option `max_tokens`, to less, or add credit."
)

_PAGE = re.compile(r"\s*<(?:!doctype|\?xml|html|head|body|center)\b", re.IGNORECASE)
_OF_MODELS = re.compile("model|endpoint|provider", re.IGNORECASE)
_OF_MAX_TOKENS = re.compile("max_(?:completion_|output_)?tokens", re.IGNORECASE)
_OF_CONTEXT = re.compile(
    r"exceed\w*context|context[\W_]?(?:length|window|size)|context (?:is|was) (?:too long|exceeded)|maximum context"
    r"|(?:prompt|input|conversation) is too long|too many (?:input )?tokens",
    re.IGNORECASE,
)

LARGEST_FIGURE = 1e100  # larger figures are dropped, since metrics add the figures up
PRIVATE = ("user_id", "raw", "flagged_input")  # fields that identify an account or quote the input
_SURROGATE = re.compile("[\ud800-\udfff]")
_CREDENTIAL = re.compile(r"\b(?:g?sk|xai|user|org|key)[-_][\w.*-]{6,}")


def decoded(body: bytes) -> object:
    """Return the JSON in a body or in its one event, else its text; None for a page and for broken JSON."""
    text = body.decode(errors="replace").strip(BLANK)
    if re.match("(?:data|error|event):", text):
        text = "\n".join(re.findall("(?m)^(?:data|error):(.*)", text)).strip(BLANK)
    try:
        value, _ = decode(text) if text.startswith(("{", "[", '"')) else (text, 0)
    except (ValueError, RecursionError):
        return None
    return None if isinstance(value, str) and value.startswith("<") else value


def parsed(data: bytes) -> dict[str, Any] | list[Any]:
    """Return JSON that is an object or a list. Raises `UpstreamUnreadable` for anything else."""
    text = data.decode(errors="replace").strip(BLANK)
    try:
        value, end = decode(text)
    except (ValueError, RecursionError):
        value, end = None, -1
    if end != len(text):
        raise UpstreamUnreadable(NOT_JSON)
    if not isinstance(value, (dict, list)):
        raise UpstreamUnreadable("Upstream sent JSON that isn't an object.")
    return value


def is_error(chunk: Mapping[str, Any]) -> bool:
    """Whether an object without `error` is an error: it calls itself one or has a message, and has no choices."""
    is_named = "error" in (chunk.get("object"), chunk.get("type"))
    return "choices" not in chunk and (is_named or bool(_words(chunk)))


def refusal(status: int | None, body: object, retry_after: float | None, api_key: str) -> UpstreamRefused:
    """Return the exception for a body as from `decoded`; `status` is the response's, None inside a stream."""
    levels, words = list(_levels(body)), _words(body)
    code = status if status and status < 600 else _status_in(levels)
    in_flight = any(level.get("limit_source") == "openrouter_in_flight_budget" for level in levels)
    message = with_quote(_sentence(code, status, body, words, levels), quote(words, api_key, levels))
    retryable = code in (408, 429) or code >= 500 or (code == 402 and in_flight)
    return UpstreamRefused(Failure(code, message, retryable, retry_after))


def quote(words: str, api_key: str, levels: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return upstream's words without secrets and private fields; empty for a page."""
    if _PAGE.match(words):
        return ""
    private = [value for level in levels for name in PRIVATE if isinstance(value := level.get(name), str)]
    return redacted(words, [api_key if len(api_key) > 5 else "", *private])  # local servers accept any word as a key


def retry_after_seconds(value: str | None) -> float | None:
    """Return `Retry-After`, seconds or a date (RFC 9110, 10.2.3), as seconds from now; None if it can't be read."""
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


def _sentence(code: int, status: int | None, body: object, words: str, levels: Sequence[Mapping[str, Any]]) -> str:
    names = " ".join(str(level.get(name)) for level in levels for name in _TYPES)
    if code not in (401, 402, 403, 404, 429) and _OF_CONTEXT.search(f"{words[:2000]} {names}"):
        return _TOO_LONG
    if code == 402 and _OF_MAX_TOKENS.search(words):
        return _TOO_DEAR
    knows_models = _OF_MODELS.search(body if isinstance(body, str) else json.dumps(body))
    if status == 405 or (status == 404 and not knows_models):
        return _NO_SUCH_PATH
    otherwise = f"Upstream failed with status {code}{', so try again in a moment' if code >= 500 else ''}."
    return _SENTENCE_OF_STATUS.get(code, otherwise)


def _levels(value: object, depth: int = 5) -> Iterator[Mapping[str, Any]]:
    """Yield an error's object and the objects inside it, the outermost first."""
    if isinstance(value, list) and depth:
        for part in value[:8]:
            yield from _levels(part, depth - 1)
    elif isinstance(value, dict) and depth:
        yield value
        for name in (*_NESTING, "metadata"):
            yield from _levels(value.get(name), depth - 1)


def _words(value: object, depth: int = 5) -> str:
    if isinstance(value, str):
        return "" if _PAGE.match(value) else value.strip()
    if not depth:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, [_words(part, depth - 1) for part in value[:3]]))
    if not isinstance(value, dict):
        return ""
    fields = {name.lower(): part for name, part in value.items()}
    nested = [fields[name] for name in _NESTING if isinstance(fields.get(name), (dict, list))]
    plain = [fields[name] for name in _TEXT if isinstance(fields.get(name), str)]
    return next((words for part in [*nested, *plain] if (words := _words(part, depth - 1))), "")


def _status_in(levels: Sequence[Mapping[str, Any]]) -> int:
    inner_first = [{name.lower(): part for name, part in level.items()} for level in reversed(levels)]
    values = [level.get(name) for names in (_CODES, _TYPES) for level in inner_first for name in names]
    return next(filter(None, map(_status, values)), 502)


def _status(value: object) -> int | None:
    if isinstance(value, str):
        is_number = value.isdecimal() and len(value) == 3
        word = re.sub("[^a-z]", "", value[:64].lower()).removesuffix("error")
        value = int(value) if is_number else _STATUS_OF_WORD.get(word)
    return value if isinstance(value, int) and 400 <= value <= 599 else None


def redacted(message: object, secrets: Iterable[str] = ()) -> str:
    """Return at most 300 characters of upstream's words, without these secrets and anything that looks like one."""
    if not isinstance(message, str):
        return ""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):  # a longer one may contain a shorter one
        message = message.replace(secret, "[redacted]")
    return encodable(" ".join(_CREDENTIAL.sub("[redacted]", message).split())[:300])


def encodable(text: str) -> str:
    """Return `text` with surrogate pairs joined and lone halves replaced, so that UTF-8 can encode it."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def plain_usage(value: Any, depth: int = 3) -> Any:
    """Return upstream's `usage` with only short names and values that JSON can carry: clients get it."""
    if isinstance(value, dict):
        entries = [(str(name)[:64], part) for name, part in list(value.items())[:64] if name not in PRIVATE]
        usage = {sys.intern(encodable(name)): plain_usage(part, depth - 1) for name, part in entries}
        return usage if depth else None
    if isinstance(value, str):
        return redacted(value[:64])
    return value if isinstance(value, (int, float)) and abs(value) < LARGEST_FIGURE else None
