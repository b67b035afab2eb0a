"""Request bodies: read within their bounds, parsed, and each field checked. What can't be taken is `Rejected`.

Knows nothing of conversations or responses.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

BODY_TIMEOUT = 30.0  # seconds for a whole body

# The pattern of openapi.json. It names what only some dialects take for white space: `\s` alone differs between them.
_VISIBLE = re.compile(r"[^\s\x1c-\x1f\x85\ufeff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Rejected(Exception):
    """A request that can't be taken; `errors` names the fields of a bad body."""

    def __init__(
        self, status: int, detail: str, errors: list[dict[str, str]] | None = None, *, close: bool = False
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.errors = errors
        self.close = close  # the connection, since the rest of the body may never end


@dataclass(frozen=True, slots=True)
class Text:
    """What a string in a body must be."""

    most: int  # characters
    setting: str = ""  # that decides `most`
    nullable: bool = True
    printable: bool = False  # ASCII alone: it is sent in a header

    def complaint(self, value: object) -> str | None:
        """What is wrong with `value`; None if nothing is."""
        if value is None and self.nullable:
            return None
        if not isinstance(value, str):
            return f"must be a string{' or null' if self.nullable else ''}"
        if not _VISIBLE.search(value):
            return "must not be blank"
        if len(value) > self.most:
            return f"must have at most {self.most} characters{f' ({self.setting})' if self.setting else ''}"
        if self.printable and not (value.isascii() and value.isprintable()):
            return "must be printable ASCII, such as openai/gpt-5-mini"
        if _SURROGATE.search(value):
            return "must be text that UTF-8 can carry: it has one half of a surrogate pair"
        return None


MODEL = Text(200, nullable=False, printable=True)
OPTIONAL_MODEL = Text(200, printable=True)
TITLE = Text(200)


async def read_fields(
    request: Request[Any], most: int, rules: Mapping[str, Text], *, optional: bool = False, required: str | None = None
) -> dict[str, Any]:
    """The fields of a body of `most` bytes at the most, each as its rule wants it. Raises `Rejected`.

    An `optional` body may be missing; `required` names a field that must be there.
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
    errors = [{"field": _shown(name), "message": "is not a field here"} for name in fields if name not in rules][:20]
    if required and required not in fields:
        errors.append({"field": required, "message": "is required"})
    complaints = {name: rule.complaint(fields[name]) for name, rule in rules.items() if name in fields}
    errors += [{"field": name, "message": complaint} for name, complaint in complaints.items() if complaint]
    if errors:
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
        return json.loads(body.decode(), parse_constant=_no_constant, parse_int=_integer)
    except UnicodeDecodeError:
        raise Rejected(400, "The body isn't UTF-8.") from None
    except (ValueError, RecursionError):
        raise Rejected(400, 'The body isn\'t JSON, such as {"content": "Hello"}.') from None


def _integer(digits: str) -> float:
    return int(digits) if len(digits) < 20 else float(digits)  # Python refuses to read 5,000 digits; no field wants one


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def unprocessable(errors: list[dict[str, str]]) -> Rejected:
    """A 422 that tells every error, `{"field", "message"}`."""
    told = "; ".join(f"{error['field'] or 'the body'} {error['message']}" for error in errors)
    return Rejected(422, f"The request can't be taken as it is: {told}.", errors)


def _shown(name: str) -> str:
    return name[:80].encode(errors="backslashreplace").decode()
