"""The body of a completion's request, encoded so that a history of megabytes holds nobody up."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any

import httpx

from upstream.values import Prompt

PART_CHARS = 128 * 1024  # of a history that are encoded in one go
LONGEST_ANSWER = ("max_tokens", "max_completion_tokens")  # the options that bound it, under their two names


class Body(httpx.AsyncByteStream):
    """A request's body in parts: a history of megabytes is neither encoded nor sent in one turn of the event loop."""

    def __init__(self, *parts: bytes) -> None:
        self.length = sum(map(len, parts))
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number, part in enumerate(self._parts):
            if number:
                await asyncio.sleep(0)
            yield part


async def encode_request(prompt: Prompt, max_tokens: int) -> Body:
    """JSON: what was asked for and standard fields alone, for some servers refuse others.

    Neighbours of one role are joined. An answer has at most `max_tokens`; 0: as many as upstream likes.
    """
    # `include_usage` is for local servers; OpenRouter reports usage anyway.
    own = {"model": prompt.model, "stream": True, "stream_options": {"include_usage": True}}
    head = _encode({**_capped(prompt.options, max_tokens), **own})[:-1]
    parts: list[bytes] = []
    for part in _parts(f'{head},"messages":[', prompt.turns):
        if parts:
            await asyncio.sleep(0)
        parts.append(part)
    return Body(*parts)


def _capped(options: Mapping[str, Any], most: int) -> Mapping[str, Any]:
    """The options, less what would let the answer be longer; it may have been stored under another MAX_TOKENS."""
    if not most:
        return options
    asked = {name: options[name] for name in LONGEST_ANSWER if name in options}
    kept = {name: value if type(value) is int and 0 < value <= most else most for name, value in asked.items()}
    return {**options, **(kept or {"max_tokens": most})}


def _parts(head: str, turns: Iterable[tuple[str, str]]) -> Iterator[bytes]:
    """All of it. Neighbours of one role are joined: strict templates refuse two in a row."""
    part, size, last_role = [head], 0, ""
    for role, content in turns:
        end = '"},' if last_role else ""
        part.append("\\n\\n" if role == last_role else f'{end}{{"role":"{role}","content":"')
        last_role = role
        for start in range(0, len(content), PART_CHARS):
            part.append(_encode(content[start : start + PART_CHARS])[1:-1])
            size += len(part[-1])
            if size > PART_CHARS:
                yield "".join(part).encode()
                part, size = [], 0
    yield "".join([*part, '"}]}' if last_role else "]}"]).encode()


def _encode(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
