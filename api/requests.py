"""Requests: bodies are read within their bounds, parsed and checked; `Accept` says which form a client wants.

What can't be taken is `Rejected`.

Knows nothing of conversations or responses.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

from starlette.requests import Request

from api.fields import Rule, complaints

BODY_TIMEOUT = 30.0  # seconds for a whole body
MOST_ERRORS = 20  # that are told of one body


_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # https://www.w3.org/TR/trace-context/
_GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))")

EVENTS, TEXT, JSON = "text/event-stream", "text/plain", "application/json"


class Rejected(Exception):
    """A request that can't be taken; `errors` names the fields of a bad body."""

    def __init__(
        self, status: int, detail: str, errors: list[dict[str, str]] | None = None, *, close: bool = False
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.errors = errors
        self.close = close  # the connection, since the rest of the body may never end


async def read_fields(
    request: Request[Any],
    most: int,
    rules: Mapping[str, Rule],
    *,
    required: tuple[str, ...] = (),
    optional: bool = False,
) -> dict[str, Any]:
    """The fields of a body of at most `most` bytes, each as its rule wants it. Raises `Rejected`.

    `required` names those that must be there; an `optional` body may be missing.
    """
    body = await _read_body(request, most)
    if not body and optional:
        return {}
    media_type, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    is_utf_8 = "charset" not in parameters or re.search("utf-?8", parameters)
    if body and not (media_type.strip() == "application/json" and is_utf_8):
        raise Rejected(415, "The body must be declared as JSON in UTF-8: `Content-Type: application/json`.")
    fields = _parse(body)
    if not isinstance(fields, dict):
        raise unprocessable([{"field": "", "message": "must be a JSON object"}])
    found = islice(complaints(fields, rules, required), MOST_ERRORS)
    if errors := [{"field": field, "message": complaint} for field, complaint in found]:
        raise unprocessable(errors)
    return fields


async def _read_body(request: Request[Any], most: int) -> bytes:
    too_large = f"The body is larger than MAX_BODY_BYTES ({most} bytes) allows."
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > most:
        raise Rejected(413, too_large)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
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
    return int(digits) if len(digits) < 20 else float(digits)  # as JavaScript does; Python refuses 5,000 digits


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def unprocessable(errors: list[dict[str, str]]) -> Rejected:
    """A 422 that tells every error, `{"field", "message"}`."""
    told = "; ".join(f"{error['field'] or 'the body'} {error['message']}" for error in errors)
    return Rejected(422, f"The request can't be taken as it is: {told}.", errors)


class _Range(NamedTuple):
    form: str
    quality: float


def wants_events(accept: str) -> bool:
    """Whether a question is to be answered with its reply's stream: it is named, and JSON isn't wanted more."""
    ranges = _ranges(accept)
    is_named = any(form == EVENTS for form, _ in ranges)
    return is_named and 0 < _quality(ranges, EVENTS) >= _quality(ranges, JSON)


def wants_text(accept: str) -> bool:
    """Whether a stream is to be bare text: text is wanted more than events."""
    ranges = _ranges(accept)
    return _quality(ranges, TEXT) > _quality(ranges, EVENTS)


def _quality(ranges: list[_Range], form: str) -> float:
    """How much a form is wanted, from 0 to 1: what the most precise range says."""
    for wanted in (form, f"{form.partition('/')[0]}/*", "*/*"):
        if qualities := [quality for name, quality in ranges if name == wanted]:
            return max(qualities)
    return 0.0


def _ranges(accept: str) -> list[_Range]:
    ranges = []
    for entry in (accept or "*/*").lower().split(","):
        form, _, parameters = entry.partition(";")
        told = re.search(r"(?:^|;)\s*q=\s*([01](?:\.\d*)?|\.\d+)\s*(?:;|$)", parameters)
        ranges.append(_Range(form.strip(), min(1.0, float(told[1])) if told else 1.0))
    return ranges


def last_event_id(request: Request[Any]) -> str:
    """The header, or the query: `lastEventId` is how the polyfills of EventSource call it."""
    query = request.query_params
    return request.headers.get("last-event-id") or query.get("last_event_id") or query.get("lastEventId") or ""


def traceparent(request: Request[Any]) -> str | None:
    """The trace that the request is part of, None if it names none."""
    header = request.headers.get("traceparent", "")
    return header if _TRACEPARENT.fullmatch(header) else None


def accepts_gzip(request: Request[Any]) -> bool:
    """Whether the response may be gzipped."""
    return bool(_GZIP.search(request.headers.get("accept-encoding", "")))


def is_known(request: Request[Any], etag: str) -> bool:
    """Whether the client has the response with this `ETag` already: a weak comparison (RFC 9110, 13.1.2)."""
    tags = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags
