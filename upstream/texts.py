"""Where the text of a delta, a message or a choice stands: by shape, for every server has names of its own.

A text is a string, or parts of text (`{"type": "text", "text"}`), nested at will; of a part that thinks, by its type or
its field, all text is reasoning.

The sources that an answer cites are `{"type": "url_citation", "url_citation": {"url", "title", "start_index",
"end_index", "content"}}`, or the same without the inner object: https://openrouter.ai/docs/features/web-search. Their
`content` is a page's text, which nobody shows: it is never kept.
"""

import json
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

CONTENT = frozenset({"content", "role"})
THINKING = CONTENT | {"reasoning", "reasoning_content", "reasoning_details"}
"""The fields of usual deltas: text alone, or reasoning under a name of its own and repeated in details."""

_REASONING = ("reasoning", "reasoning_content", "thinking")
_ANSWER = ("content", "text")
_IN_PARTS = ("text", "thinking", "reasoning", "summary", "content", "refusal")
_OTHER = {"tool_calls": "tool calls", "function_call": "tool calls", "images": "images", "audio": "audio"}


MAX_CITATIONS = 100
MAX_CITATIONS_BYTES = 40_000  # of all, as a JSON list in ASCII
MAX_URL_CHARS = 2_048
MAX_TITLE_CHARS = 300
MAX_LOOKED_AT = 1_000  # of one list
_SURROGATE = re.compile("[\ud800-\udfff]")
_LINK = re.compile(r"https?://\S", re.IGNORECASE)
_LARGEST_INDEX = 2**53  # that every JSON parser reads as it is


class Texts(NamedTuple):
    """The text of a choice, by what it is."""

    content: str  # the answer
    reasoning: str  # the thinking under a name of its own
    repeated: str  # the thinking in parts, which repeats the thinking that has a name


def texts_in(*places: Mapping[str, Any]) -> Texts:
    """Return the texts in the first of the places that has each."""
    return Texts(
        next(filter(None, map(_content, places)), ""),
        next(filter(None, map(_reasoning, places)), ""),
        next(filter(None, map(_repeated, places)), ""),
    )


def _content(fields: Mapping[str, Any]) -> str:
    """The text that answers; a refusal is one, too."""
    answer = next((text for name in _ANSWER if (text := _text(fields.get(name), thought=False))), "")
    return answer + _text(fields.get("refusal"), thought=False)


def _reasoning(fields: Mapping[str, Any]) -> str:
    """The thinking under a name of its own; of several names the first, for they carry the same text."""
    return next((text for name in _REASONING if (text := _text(fields.get(name), thought=True, in_thought=True))), "")


def _repeated(fields: Mapping[str, Any]) -> str:
    """The thinking in parts of the content, or else in `reasoning_details`, which repeat what has a name of its own."""
    parts = _text(fields.get("content"), thought=True)
    return parts or _text(fields.get("reasoning_details"), thought=True, in_thought=True)


def other_than_text(fields: Mapping[str, Any]) -> str:
    """What these fields hold that isn't text, in words; empty for nothing."""
    found = [words for name, words in _OTHER.items() if fields.get(name)]
    content = fields.get("content")
    kinds = [str(part.get("type")) for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    found += ["images" for kind in kinds if "image" in kind] + ["audio" for kind in kinds if "audio" in kind]
    return found[0] if found else ""


def _text(value: object, *, thought: bool, in_thought: bool = False, depth: int = 5) -> str:
    """What in `value` is reasoning (`thought`), or what isn't."""
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
        self._kept: dict[str, None] = {}  # each as JSON, once: exact repeats occur
        self._size = 0

    def take(self, annotations: object) -> str | None:
        """Return all citations with these, as JSON, None if there are none. What is beyond the bounds is left out."""
        for annotation in islice(annotations, MAX_LOOKED_AT) if isinstance(annotations, list) else ():
            if isinstance(annotation, dict) and (citation := _citation(annotation)):
                self._keep(citation)
        return f"[{', '.join(self._kept)}]" if self._kept else None

    def _keep(self, citation: dict[str, Any]) -> None:
        text = json.dumps(citation)
        size = self._size + len(text) + len(", ")  # of the list, whose brackets make up for the last comma
        if text not in self._kept and len(self._kept) < MAX_CITATIONS and size <= MAX_CITATIONS_BYTES:
            self._kept[text] = None
            self._size = size


def _citation(annotation: dict[str, Any]) -> dict[str, Any] | None:
    inner = annotation.get("url_citation")
    fields = inner if isinstance(inner, dict) else annotation
    url, title = _string(fields.get("url")), _string(fields.get("title"))
    if annotation.get("type") != "url_citation" or len(url) > MAX_URL_CHARS or not _LINK.match(url):
        return None
    start, end = _span(fields.get("start_index"), fields.get("end_index"))
    shown = title[:MAX_TITLE_CHARS] if title.strip() else None
    return {"type": "url_citation", "url": url, "title": shown, "start_index": start, "end_index": end}


def _string(value: object) -> str:
    return encodable(value) if isinstance(value, str) else ""


def _span(start: object, end: object) -> tuple[int, int] | tuple[None, None]:
    # `type`, for `True` is an int, too. Some providers say 0 and 0 for what they don't know.
    if type(start) is int and type(end) is int and 0 <= start < end <= _LARGEST_INDEX:
        return start, end
    return None, None


def encodable(text: str) -> str:
    """`text` with surrogate pairs joined and lone halves replaced, so that it can be encoded as UTF-8."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
