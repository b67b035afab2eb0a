"""What can go wrong upstream, by who is to blame, and what upstream's own errors mean.

    UpstreamError           `code` (an HTTP status), `message` for a person, `retryable`, `retry_after` (seconds)
    |- NotConfigured        this service: it has no API key
    |- UpstreamRefused      upstream answered with an error, before the stream or inside it
    |- UpstreamBroken       the connection broke before the answer was whole
    |  `- UpstreamUnreadable    upstream answered with something other than a stream
    |- UpstreamUnreachable  there is no connection to upstream
    `- UpstreamTimeout      upstream took too long to connect
       `- UpstreamSilent    upstream has the request, and was silent for too long

Knows no I/O. The shapes of errors that are in use: https://openrouter.ai/docs/api-reference/errors
"""

import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from upstream.redaction import PRIVATE, redacted

_decode = json.JSONDecoder().raw_decode  # json.loads, less two calls an event

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


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises `UpstreamUnreadable` for anything else."""
    text = data.decode(errors="replace").strip(" \t\r\n")
    try:
        value, end = _decode(text)
    except (ValueError, RecursionError):
        raise UpstreamUnreadable("Upstream sent something that isn't JSON.") from None
    if end != len(text):
        raise UpstreamUnreadable("Upstream sent something that isn't JSON.")
    if not isinstance(value, dict):
        raise UpstreamUnreadable("Upstream sent JSON that isn't an object.")
    return value


def refusal(status: int | None, body: Mapping[str, Any], retry_after: float | None, api_key: str) -> UpstreamRefused:
    """What upstream's error means: `status` of the response (None inside a stream), its decoded body."""
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


def _status_in(fields: Mapping[str, Any], metadata: Mapping[str, Any]) -> int:
    for value in (fields.get("code"), metadata.get("error_type"), fields.get("type")):
        if isinstance(value, str):
            value = int(value) if value.isdecimal() and len(value) == 3 else _STATUS_OF_WORD.get(value)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    return 502


def _private(*parts: Mapping[str, Any]) -> Iterator[str]:
    for part in parts:
        for name in PRIVATE:
            if isinstance(value := part.get(name), str):
                yield value
