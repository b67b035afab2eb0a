"""The rules for the fields of a request's body.

This module knows nothing about requests. It checks only the form of `options`, upstream's parameters: upstream alone
knows their meaning, and its refusal reaches the reader. Two kinds of names are refused: those that the relay sets
itself, and those whose result would be paid for and lost, since the relay passes on only text.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

Complaint = tuple[str, str]  # the path of a value, and what it must be
Rule = Callable[[object], Iterator[Complaint | None]]  # the paths start below the field; None only marks progress

# openapi.json has the same pattern. It lists the characters that `\s` matches in only some dialects.
_VISIBLE = re.compile(r"[^\s\x1c-\x1f\x85\ufeff]")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SURROGATE = re.compile("[\ud800-\udfff]")

MAX_OPTIONS_BYTES = 16 * 1024  # as compact JSON in UTF-8
MAX_OPTIONS_NAMES = 64  # at the top level
MAX_OPTIONS_DEPTH = 10  # the object itself is the first level
_NAME = re.compile("[A-Za-z0-9_]{1,64}")
_RESERVED = "is set by the service itself"
_NOT_TEXT = "asks for something other than text, which this service can't pass on"
_REFUSED = {
    **dict.fromkeys(("model", "messages", "prompt", "input", "stream", "stream_options", "n"), _RESERVED),
    **dict.fromkeys(("logprobs", "top_logprobs", "audio", "functions", "function_call"), _NOT_TEXT),
}


@dataclass(frozen=True, slots=True)
class Text:
    """The rule for a string with at least one visible character."""

    max_chars: int
    setting: str = ""  # the setting that decides `max_chars`
    nullable: bool = True
    printable: bool = False  # only ASCII, since the relay sends it in a header

    def complaint(self, value: object) -> str | None:
        """Say what is wrong with `value`; return None if nothing is."""
        if value is None and self.nullable:
            return None
        if not isinstance(value, str):
            return f"must be a string{' or null' if self.nullable else ''}"
        if not _VISIBLE.search(value):
            return "must not be blank"
        if len(value) > self.max_chars:
            return f"must have at most {self.max_chars} characters{f' ({self.setting})' if self.setting else ''}"
        if self.printable and not (value.isascii() and value.isprintable()):
            return "must be printable ASCII, such as openai/gpt-5-mini"
        if _SURROGATE.search(value):
            return "must be text that UTF-8 can carry: it has one half of a surrogate pair"
        return None

    def __call__(self, value: object) -> Iterator[Complaint]:
        """Check the value."""
        if complaint := self.complaint(value):
            yield "", complaint


MODEL = Text(200, nullable=False, printable=True)
OPTIONAL_MODEL = Text(200, printable=True)
TITLE = Text(200)


def identifier(value: object) -> Iterator[Complaint]:
    """Check an id that a client chooses, or null."""
    if not (value is None or (isinstance(value, str) and _ID.fullmatch(value))):
        yield "", "must be 1 to 64 characters of A-Z a-z 0-9 _ -, or null"


def reference(value: object) -> Iterator[Complaint]:
    """Check the id of a message, or null."""
    if not (value is None or isinstance(value, str)):
        yield "", "must be the id of a message, or null for the beginning"


def role(value: object) -> Iterator[Complaint]:
    """Check the role of a message."""
    if value not in ("user", "assistant"):
        yield "", "must be user or assistant"


@dataclass(frozen=True, slots=True)
class Turns:
    """The rule for the messages of an imported conversation, oldest first, or null."""

    max_turns: int
    content: Text

    def __call__(self, value: object) -> Iterator[Complaint | None]:
        """Check the messages."""
        if value is not None and not isinstance(value, list):
            yield "", "must be a list of messages, or null"
        elif value and len(value) > self.max_turns:
            yield "", f"must have at most {self.max_turns} messages (MAX_MESSAGES)"
        else:
            rules: dict[str, Rule] = {"role": role, "content": self.content, "model": OPTIONAL_MODEL}
            for number, turn in enumerate(value or ()):
                yield None
                if isinstance(turn, dict):
                    for complaint in complaints(turn, rules, ("role", "content")):
                        yield complaint and (f".{number}.{complaint[0]}", complaint[1])
                else:
                    yield f".{number}", "must be a JSON object"


def complaints(
    fields: Mapping[str, object], rules: Mapping[str, Rule], required: tuple[str, ...] = ()
) -> Iterator[Complaint | None]:
    """Check all fields of an object. None marks progress, so that a caller may pause there."""
    for name in fields:
        if name not in rules:
            yield name[:80].encode(errors="backslashreplace").decode(), "is not a field here"
    for name, rule in rules.items():
        if name in fields:
            for complaint in rule(fields[name]):
                yield complaint and (name + complaint[0], complaint[1])
        elif name in required:
            yield name, "is required"


@dataclass(frozen=True, slots=True)
class Options:
    """The rule for `options`, a JSON object or null."""

    max_tokens: int  # of an answer; 0 means no limit

    def __call__(self, value: object) -> Iterator[Complaint]:
        """Check the object as a whole, and if it passes, each of its parameters."""
        if value is None:
            return
        if not isinstance(value, dict):
            yield "", "must be a JSON object, or null"
        elif complaint := _form_complaint(value):
            yield "", complaint
        else:
            for name, parameter in value.items():
                if complaint := self._complaint(name, parameter):
                    yield f".{name}", complaint

    def _complaint(self, name: str, value: object) -> str | None:
        if name in _REFUSED:
            return _REFUSED[name]
        if name == "modalities" and not _is_text(value):
            return f'must be ["text"], or null: anything else {_NOT_TEXT}'
        if name == "tools" and isinstance(value, list) and any(map(_is_function, value)):
            return "must have no tool of type `function`: this service can't call it or pass its call on"
        is_length = self.max_tokens and value is not None and name in ("max_tokens", "max_completion_tokens")
        if is_length and not (type(value) is int and 0 < value <= self.max_tokens):
            return f"must be a whole number from 1 to {self.max_tokens} (MAX_TOKENS), or null"
        return None


def _form_complaint(options: Mapping[str, Any]) -> str | None:
    """Say what is wrong with the object as a whole; return None if nothing is."""
    if len(options) > MAX_OPTIONS_NAMES:
        return f"must have at most {MAX_OPTIONS_NAMES} names"
    if not all(map(_NAME.fullmatch, options)):
        return "must have names of 1 to 64 characters of A-Z a-z 0-9 _"
    if _is_deeper(options, MAX_OPTIONS_DEPTH):
        return f"must be at most {MAX_OPTIONS_DEPTH} levels deep"
    try:
        text = json.dumps(options, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return "must be text that UTF-8 can carry: it has one half of a surrogate pair"
    except ValueError:
        return "must have finite numbers"
    return f"must have at most {MAX_OPTIONS_BYTES} bytes" if len(text) > MAX_OPTIONS_BYTES else None


def _is_deeper(options: Mapping[str, Any], levels: int) -> bool:
    nested: list[Any] = [options]
    for _ in range(levels):
        parts = (part.values() if isinstance(part, dict) else part for part in nested)
        nested = [part for part in chain.from_iterable(parts) if isinstance(part, (dict, list))]
    return bool(nested)


def _is_text(modalities: object) -> bool:
    return modalities is None or (isinstance(modalities, list) and all(part == "text" for part in modalities))


def _is_function(tool: object) -> bool:
    return isinstance(tool, dict) and tool.get("type") == "function"
