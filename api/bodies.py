"""Request bodies: read within their bounds, parsed, and each field checked. What can't be taken is `Rejected`.

Knows nothing of conversations or responses.
"""

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from starlette.requests import Request

BODY_TIMEOUT = 30.0  # seconds for a whole body
MOST_ERRORS = 20  # that are told of one body

# The pattern of openapi.json. It names what only some dialects take for white space: `\s` alone differs between them.
_VISIBLE = re.compile(r"[^\s\x1c-\x1f\x85\ufeff]")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
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


class Rule(Protocol):
    """What a field must be."""

    def complaints(self, field: str, value: object) -> Iterator[tuple[str, str]]:
        """What is wrong with `value`: where, and what it must be."""


@dataclass(frozen=True, slots=True)
class Text:
    """A string with something to see in it."""

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

    def complaints(self, field: str, value: object) -> Iterator[tuple[str, str]]:
        """As `Rule` has it."""
        if complaint := self.complaint(value):
            yield field, complaint


class Identifier:
    """An id that a client chooses, or null."""

    def complaints(self, field: str, value: object) -> Iterator[tuple[str, str]]:
        """As `Rule` has it."""
        if not (value is None or (isinstance(value, str) and _ID.fullmatch(value))):
            yield field, "must be 1 to 64 characters of A-Z a-z 0-9 _ -, or null"


class Reference:
    """The id of something that is there, or null."""

    def complaints(self, field: str, value: object) -> Iterator[tuple[str, str]]:
        """As `Rule` has it."""
        if not (value is None or isinstance(value, str)):
            yield field, "must be the id of a message, or null for the beginning"


@dataclass(frozen=True, slots=True)
class Turns:
    """The messages of a conversation that is imported, oldest first."""

    most: int
    content: Text

    def complaints(self, field: str, value: object) -> Iterator[tuple[str, str]]:
        """As `Rule` has it."""
        if not isinstance(value, list):
            yield field, "must be a list of messages"
        elif len(value) > self.most:
            yield field, f"must have at most {self.most} messages (MAX_MESSAGES)"
        else:
            for number, turn in enumerate(value):
                yield from self._of_turn(f"{field}.{number}", turn)

    def _of_turn(self, field: str, turn: object) -> Iterator[tuple[str, str]]:
        if not isinstance(turn, dict):
            yield field, "must be a JSON object"
            return
        if turn.get("role") not in ("user", "assistant"):
            yield f"{field}.role", "must be user or assistant"
        yield from _complaints(turn, {"role": None, "content": self.content, "model": OPTIONAL_MODEL}, "content", field)


MODEL = Text(200, nullable=False, printable=True)
OPTIONAL_MODEL = Text(200, printable=True)
TITLE = Text(200)


async def read_fields(
    request: Request[Any], most: int, rules: Mapping[str, Rule], *, optional: bool = False, required: str | None = None
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
    found = islice(_complaints(fields, rules, required), MOST_ERRORS)
    if errors := [{"field": field, "message": complaint} for field, complaint in found]:
        raise unprocessable(errors)
    return fields


def _complaints(
    fields: Mapping[str, object], rules: Mapping[str, Rule | None], required: str | None, within: str = ""
) -> Iterator[tuple[str, str]]:
    prefix = f"{within}." if within else ""
    for name in fields:
        if name not in rules:
            yield prefix + _shown(name), "is not a field here"
    if required and required not in fields:
        yield prefix + required, "is required"
    for name, rule in rules.items():
        if rule and name in fields:
            yield from rule.complaints(prefix + name, fields[name])


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
    return int(digits) if len(digits) < 20 else float(digits)  # Python refuses to read 5,000 digits; no field wants one


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def unprocessable(errors: list[dict[str, str]]) -> Rejected:
    """A 422 that tells every error, `{"field", "message"}`."""
    told = "; ".join(f"{error['field'] or 'the body'} {error['message']}" for error in errors)
    return Rejected(422, f"The request can't be taken as it is: {told}.", errors)


def _shown(name: str) -> str:
    return name[:80].encode(errors="backslashreplace").decode()
