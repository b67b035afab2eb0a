"""The body of a completion's request; a long history is encoded in parts, and the loop serves others in between."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import httpx

from upstream.values import Prompt

PART_CHARS = 128 * 1024  # characters of a history to encode at once
LENGTH_OPTIONS = ("max_tokens", "max_completion_tokens")  # the two names of the option that bounds an answer


class Parts(httpx.AsyncByteStream):
    """A body in parts, between which the loop can serve others."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number, part in enumerate(self._parts):
            if number:
                await asyncio.sleep(0)
            yield part


async def encode_request(prompt: Prompt, max_tokens: int) -> list[bytes]:
    """Encode the prompt as JSON in parts. An answer may have `max_tokens` tokens; 0 means no limit.

    The body has only the prompt and standard fields, since some servers refuse others.
    """
    # `include_usage` is for local servers; OpenRouter reports usage anyway.
    own = {"model": prompt.model, "stream": True, "stream_options": {"include_usage": True}}
    head = _encode({**_capped(prompt.options, max_tokens), **own})[:-1]
    parts: list[bytes] = []
    for part in _parts(f'{head},"messages":[', prompt.turns):
        if parts:
            await asyncio.sleep(0)
        parts.append(part)
    return parts


def _capped(options: Mapping[str, Any], limit: int) -> Mapping[str, Any]:
    """Lower the options that let an answer exceed the limit; MAX_TOKENS may have been higher when they were stored."""
    if not limit:
        return options
    lengths = {name: options[name] for name in LENGTH_OPTIONS if name in options}
    capped = {name: value if type(value) is int and 0 < value <= limit else limit for name, value in lengths.items()}
    return {**options, **(capped or {"max_tokens": limit})}


def _parts(head: str, turns: Iterable[tuple[str, str]]) -> Iterator[bytes]:
    """Yield the body. Neighbours with one role become one message: strict templates refuse two in a row."""
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
