"""Where the text of a delta, a message or a choice stands: by shape, for every server has names of its own.

A text is a string, or parts of text (`{"type": "text", "text"}`), nested at will; of a part that thinks, by its type or
its field, all text is reasoning.
"""

from collections.abc import Mapping
from typing import Any

CONTENT = frozenset({"content", "role"})
THINKING = CONTENT | {"reasoning", "reasoning_content", "reasoning_details"}
"""The fields of usual deltas: text alone, or reasoning under a name of its own and repeated in details."""

_REASONING = ("reasoning", "reasoning_content", "thinking")
_ANSWER = ("content", "text")
_IN_PARTS = ("text", "thinking", "reasoning", "summary", "content", "refusal")
_OTHER = {"tool_calls": "tool calls", "function_call": "tool calls", "images": "images", "audio": "audio"}


def content_in(fields: Mapping[str, Any]) -> str:
    """The text that answers; a refusal is one, too."""
    answer = next((text for name in _ANSWER if (text := _text(fields.get(name), thought=False))), "")
    return answer + _text(fields.get("refusal"), thought=False)


def reasoning_in(fields: Mapping[str, Any]) -> str:
    """The thinking under a name of its own; of several names the first, for they carry the same text."""
    return next((text for name in _REASONING if (text := _text(fields.get(name), thought=True, in_thought=True))), "")


def reasoning_beside(fields: Mapping[str, Any]) -> str:
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
