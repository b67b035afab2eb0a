"""The `options` of a conversation or a question: upstream's parameters, of which only the form is checked.

What they mean is upstream's business, and its refusal reaches the reader. Refused by name is what the relay sends
itself, and what would be paid for and lost here, since text alone is passed on.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from api.fields import Complaint

MAX_BYTES = 16 * 1024  # as compact JSON in UTF-8
MAX_NAMES = 64  # at the top level
MAX_DEPTH = 10  # the object itself is the first level

_NAME = re.compile("[A-Za-z0-9_]{1,64}")
_OWN = "is set by the service itself"
_LOST = "asks for something other than text, which this service can't pass on"
_REFUSED = {
    **dict.fromkeys(("model", "messages", "prompt", "input", "stream", "stream_options", "n"), _OWN),
    **dict.fromkeys(("logprobs", "top_logprobs", "audio", "functions", "function_call"), _LOST),
}


@dataclass(frozen=True, slots=True)
class Options:
    """A JSON object or null, as a `Rule`."""

    max_tokens: int  # that an answer may have; 0: any

    def __call__(self, value: object) -> Iterator[Complaint]:
        """The first thing that is wrong with the whole, else all that is wrong with its parts."""
        if value is None:
            return
        if not isinstance(value, dict):
            yield "", "must be a JSON object, or null"
        elif complaint := _form(value):
            yield "", complaint
        else:
            yield from self._parts(value)

    def _parts(self, options: Mapping[str, Any]) -> Iterator[Complaint]:
        for name, value in options.items():
            if complaint := self._part(name, value):
                yield f".{name}", complaint

    def _part(self, name: str, value: object) -> str | None:
        if name in _REFUSED:
            return _REFUSED[name]
        if name == "modalities" and not _is_text(value):
            return f'must be ["text"], or null: anything else {_LOST}'
        if name == "tools" and isinstance(value, list) and any(map(_is_function, value)):
            return "must have no tool of type `function`: this service can't call it, or pass its call on"
        if name in ("max_tokens", "max_completion_tokens") and not self._is_short_enough(value):
            return f"must be a whole number from 1 to {self.max_tokens} (MAX_TOKENS), or null"
        return None

    def _is_short_enough(self, value: object) -> bool:
        return not self.max_tokens or value is None or (type(value) is int and 0 < value <= self.max_tokens)


def _form(options: Mapping[str, Any]) -> str | None:
    """What is wrong with the whole; None if nothing is."""
    if len(options) > MAX_NAMES:
        return f"must have at most {MAX_NAMES} names"
    if not all(map(_NAME.fullmatch, options)):
        return "must have names of 1 to 64 characters of A-Z a-z 0-9 _"
    if _is_deeper(options, MAX_DEPTH):
        return f"must be at most {MAX_DEPTH} levels deep"
    try:
        text = json.dumps(options, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return "must be text that UTF-8 can carry: it has one half of a surrogate pair"
    except ValueError:
        return "must have finite numbers"
    return f"must have at most {MAX_BYTES} bytes" if len(text) > MAX_BYTES else None


def _is_deeper(value: object, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return parts is not None and (not levels or any(_is_deeper(part, levels - 1) for part in parts))


def _is_text(modalities: object) -> bool:
    return modalities is None or (isinstance(modalities, list) and all(part == "text" for part in modalities))


def _is_function(tool: object) -> bool:
    return isinstance(tool, dict) and tool.get("type") == "function"
