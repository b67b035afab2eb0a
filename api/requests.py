"""Requests: this module reads and checks bodies within their limits, and reads the headers.

It raises `Rejected` for a bad request, and knows nothing about conversations or responses.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request

from api.fields import MAX_OPTIONS_BYTES, Rule, complaints
from stores.steps import Steps

BODY_TIMEOUT = 30.0  # seconds for a client to send its whole body
LARGE_BODY = 16 * 1024  # bytes; a larger body is read in several steps
MAX_ERRORS = 20  # errors that a response lists for one body
MAX_RANGES = 100  # ranges of an `Accept` header; the rest is ignored
MAX_PARAMETERS = 100  # parameters of a URL

_TOKENS = re.compile(rb'"(?:[^"\\]+|\\.)*+"?|[\[{,]', re.DOTALL)  # JSON's strings, and the token before each value
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # https://www.w3.org/TR/trace-context/
_GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))")

EVENTS, TEXT, JSON = "text/event-stream", "text/plain", "application/json"


class Rejected(Exception):
    """A bad request; `errors` names the bad fields of its body."""

    def __init__(
        self, status: int, detail: str, errors: list[dict[str, str]] | None = None, *, close: bool = False
    ) -> None:
        super().__init__(detail)
        self.status, self.errors = status, errors
        self.close = close  # whether to close the connection: the body may never end


async def read_fields(
    request: Request[Any], rules: Mapping[str, Rule], *, required: tuple[str, ...] = (), optional: bool = False
) -> dict[str, Any]:
    """Read a body within the limits of the settings and check each field by its rule. Raises `Rejected`.

    `required` names the fields that must be there; an `optional` body may be missing.
    """
    settings, steps = request.state["settings"], request.state["store"].steps
    body = await _read_body(request, settings.max_body_bytes)
    if not body and optional:
        return {}
    media_type, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    is_utf_8 = "charset" not in parameters or re.search("utf-?8", parameters)
    if body and not (media_type.strip() == "application/json" and is_utf_8):
        raise Rejected(415, "The body must be declared as JSON in UTF-8: `Content-Type: application/json`.")
    if is_large := len(body) > LARGE_BODY:
        await _check_count(body, 5 * settings.max_messages + MAX_OPTIONS_BYTES, steps)
    fields = _parse(body)
    if is_large:
        await steps.next()
    if not isinstance(fields, dict):
        raise unprocessable([{"field": "", "message": "must be a JSON object"}])
    entries = complaints(fields, rules, required)
    errors = [entry async for entry in steps.over(entries) if entry] if is_large else [*filter(None, entries)]
    if errors:
        raise unprocessable([{"field": path, "message": message} for path, message in errors[:MAX_ERRORS]])
    return fields


async def _check_count(body: bytes, max_values: int, steps: Steps) -> None:
    """Refuse a body with more values than any request may have: decoding them would take too long."""
    commas, brackets = body.count(b","), body.count(b"[") + body.count(b"{")
    if commas + brackets <= max_values:  # this is true of nearly every body
        return
    count = 0
    async for token in steps.over(_TOKENS.finditer(body)):  # strings may contain these characters, too
        count += token[0] in b"[{,"
        if count > max_values and commas > brackets:
            message = f"must have at most {max_values} values, as JSON counts them"
            raise unprocessable([{"field": "", "message": message}])
        if count > max_values:
            raise Rejected(400, f"The body can't be read as JSON: it has more than {max_values} objects and lists.")


async def _read_body(request: Request[Any], max_bytes: int) -> bytes:
    too_large = f"The body is larger than MAX_BODY_BYTES ({max_bytes} bytes) allows."
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise Rejected(413, too_large)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise Rejected(413, too_large, close=True)
    except TimeoutError:
        raise Rejected(408, f"The body didn't arrive within {BODY_TIMEOUT:g} s.", close=True) from None
    return bytes(body)


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant, parse_int=_integer)
    except UnicodeDecodeError:
        raise Rejected(400, "The body isn't UTF-8.") from None
    except (ValueError, RecursionError):
        raise Rejected(400, 'The body isn\'t JSON, such as {"content": "Hello"}.') from None


def _integer(digits: str) -> float:
    return int(digits) if len(digits) < 20 else float(digits)  # as in JavaScript; Python refuses to read 5,000 digits


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def unprocessable(errors: list[dict[str, str]]) -> Rejected:
    """Return a 422 that lists every error, each as `{"field", "message"}`."""
    summary = "; ".join(f"{error['field'] or 'the body'} {error['message']}" for error in errors)
    return Rejected(422, f"The request isn't valid: {summary}.", errors)


def wants_events(accept: str) -> bool:
    """Whether a question's response is the reply's stream: `accept` names events and doesn't prefer JSON."""
    ranges = _ranges(accept)
    is_named = any(form == EVENTS for form, _ in ranges)
    return is_named and 0 < _quality(ranges, EVENTS) >= _quality(ranges, JSON)


def wants_text(accept: str) -> bool:
    """Whether a stream is bare text: `accept` prefers text to events."""
    ranges = _ranges(accept)
    return _quality(ranges, TEXT) > _quality(ranges, EVENTS)


def _quality(ranges: list[tuple[str, float]], form: str) -> float:
    """Return how much the client wants a form, from 0 to 1; the most precise range decides."""
    for pattern in (form, f"{form.partition('/')[0]}/*", "*/*"):
        if qualities := [quality for name, quality in ranges if name == pattern]:
            return max(qualities)
    return 0.0


def _ranges(accept: str) -> list[tuple[str, float]]:
    """Return the media types that the client accepts, each with its quality."""
    ranges = []
    for entry in (accept or "*/*").lower().split(",", MAX_RANGES)[:MAX_RANGES]:
        form, _, parameters = entry.partition(";")
        match = re.search(r"(?:^|;)\s*q=\s*([01](?:\.\d*)?|\.\d+)\s*(?:;|$)", parameters)
        ranges.append((form.strip(), min(1.0, float(match[1])) if match else 1.0))
    return ranges


def query_of(request: Request[Any]) -> QueryParams:
    """Return the parameters of the URL. Raises `Rejected`."""
    if request.scope["query_string"].count(b"&") > MAX_PARAMETERS:
        raise Rejected(400, f"The URL can't be read: it has more than {MAX_PARAMETERS} parameters.")
    return request.query_params


def last_event_id(request: Request[Any]) -> str:
    """Return the id from the header or from the query, in which EventSource polyfills call it `lastEventId`."""
    query = query_of(request)
    return request.headers.get("last-event-id") or query.get("last_event_id") or query.get("lastEventId") or ""


def traceparent(request: Request[Any]) -> str | None:
    """Return the trace that the request is part of; None if it names none."""
    header = request.headers.get("traceparent", "")
    return header if _TRACEPARENT.fullmatch(header) else None


def accepts_gzip(request: Request[Any]) -> bool:
    """Whether the response may be gzipped."""
    return bool(_GZIP.search(request.headers.get("accept-encoding", "")))


def is_known(request: Request[Any], etag: str) -> bool:
    """Whether the client already has the response with this `ETag`, by weak comparison (RFC 9110, 13.1.2)."""
    tags = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags
