"""The places where the text of a delta, a message or a choice stands, found by shape: servers use different names.

A text is a string or a list of parts, `{"type": "text", "text"}`, which may be nested. All text of a part is reasoning
if its type or its field says so.

The sources that an answer cites are `{"type": "url_citation", "url_citation": {"url", "title", "start_index",
"end_index", "content"}}`, or the same without the inner object: https://openrouter.ai/docs/features/web-search. Their
`content` is the text of a page, which no client shows, so the relay never keeps it.
"""

import json
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

from upstream.refusals import encodable

CONTENT = frozenset({"content", "role"})
THINKING = CONTENT | {"reasoning", "reasoning_content", "reasoning_details"}
"""The fields of common deltas: text alone, or reasoning that has its own field and is repeated in details."""

_REASONING = ("reasoning", "reasoning_content", "thinking")
_ANSWER = ("content", "text")
_IN_PARTS = ("text", "thinking", "reasoning", "summary", "content", "refusal")
_NOUNS = {"tool_calls": "tool calls", "function_call": "tool calls", "images": "images", "audio": "audio"}

MAX_CITATIONS = 100
MAX_CITATIONS_BYTES = 40_000  # of the whole list, as JSON in ASCII
MAX_URL_CHARS = 2_048
MAX_TITLE_CHARS = 300
MAX_ANNOTATIONS = 1_000  # annotations of one list that are read
_LINK = re.compile(r"https?://\S", re.IGNORECASE)
_LARGEST_INDEX = 2**53  # every JSON parser reads an integer up to this one exactly


class Texts(NamedTuple):
    """The text of a choice by its kind."""

    content: str  # the answer
    reasoning: str  # the thinking that has its own field
    repeated: str  # the thinking in parts, which may repeat `reasoning`


def texts_in(*places: Mapping[str, Any]) -> Texts:
    """Return each kind of text from the first of the places that has it."""
    return Texts(
        next(filter(None, map(_content, places)), ""),
        next(filter(None, map(_reasoning, places)), ""),
        next(filter(None, map(_repeated, places)), ""),
    )


def _content(fields: Mapping[str, Any]) -> str:
    """Return the answer, which includes a refusal."""
    answer = next((text for name in _ANSWER if (text := _text(fields.get(name), thought=False))), "")
    return answer + _text(fields.get("refusal"), thought=False)


def _reasoning(fields: Mapping[str, Any]) -> str:
    """Return the thinking from the first field for it: several fields carry the same text."""
    return next((text for name in _REASONING if (text := _text(fields.get(name), thought=True, in_thought=True))), "")


def _repeated(fields: Mapping[str, Any]) -> str:
    """Return the thinking in parts of the content, or else in `reasoning_details`."""
    parts = _text(fields.get("content"), thought=True)
    return parts or _text(fields.get("reasoning_details"), thought=True, in_thought=True)


def other_than_text(fields: Mapping[str, Any]) -> str:
    """Return a noun for something in these fields that isn't text, such as "images"; empty if there is nothing."""
    nouns = [noun for name, noun in _NOUNS.items() if fields.get(name)]
    content = fields.get("content")
    kinds = [str(part.get("type")) for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    nouns += ["images" for kind in kinds if "image" in kind] + ["audio" for kind in kinds if "audio" in kind]
    return nouns[0] if nouns else ""


def _text(value: object, *, thought: bool, in_thought: bool = False, depth: int = 5) -> str:
    """Return only the reasoning in `value` if `thought`, else only the rest; strings are reasoning if `in_thought`."""
    if isinstance(value, str):
        return value if thought == in_thought else ""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not depth:
        return ""
    texts: list[str] = []
    for part in value:
        if not isinstance(part, dict):
            continue
        thinks = in_thought or any(word in str(part.get("type")) for word in ("think", "reason"))
        name = next((name for name in _IN_PARTS if isinstance(part.get(name), (str, list, dict)) and part[name]), "")
        thinks = thinks or name in ("thinking", "reasoning")
        texts.append(_text(part.get(name), thought=thought, in_thought=thinks, depth=depth - 1))
    return "".join(texts)


class Citations:
    """The citations of one answer, in the order in which they came."""

    def __init__(self) -> None:
        self._citations: dict[str, None] = {}  # the JSON of each citation: a dict drops exact repeats
        self._size = 0

    def take(self, annotations: object) -> str | None:
        """Add citations within the bounds, and return all citations as JSON, None if there are none."""
        for annotation in islice(annotations, MAX_ANNOTATIONS) if isinstance(annotations, list) else ():
            if isinstance(annotation, dict) and (citation := _citation(annotation)):
                text = json.dumps(citation)
                size = self._size + len(text) + len(", ")  # the brackets take as much as the missing last comma
                if text not in self._citations and len(self._citations) < MAX_CITATIONS and size <= MAX_CITATIONS_BYTES:
                    self._citations[text], self._size = None, size
        return f"[{', '.join(self._citations)}]" if self._citations else None


def _citation(annotation: dict[str, Any]) -> dict[str, Any] | None:
    inner = annotation.get("url_citation")
    fields = inner if isinstance(inner, dict) else annotation
    url, title = _string(fields.get("url")), _string(fields.get("title"))
    if annotation.get("type") != "url_citation" or len(url) > MAX_URL_CHARS or not _LINK.match(url):
        return None
    start, end = _span(fields.get("start_index"), fields.get("end_index"))
    short_title = title[:MAX_TITLE_CHARS] if title.strip() else None
    return {"type": "url_citation", "url": url, "title": short_title, "start_index": start, "end_index": end}


def _string(value: object) -> str:
    return encodable(value) if isinstance(value, str) else ""


def _span(start: object, end: object) -> tuple[int, int] | tuple[None, None]:
    # `type` excludes `True`, which is an int, too. Some providers say 0 and 0 if they don't know the span.
    if type(start) is int and type(end) is int and 0 <= start < end <= _LARGEST_INDEX:
        return start, end
    return None, None
