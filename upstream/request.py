"""The body of a completion's request, encoded so that a history of megabytes holds nobody up."""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from upstream.values import Prompt

BATCH_CHARS = 256 * 1024  # of a history that are encoded in one go
LONGEST_ANSWER = ("max_tokens", "max_completion_tokens")  # the options that bound it, under their two names


async def encode_request(prompt: Prompt, max_tokens: int) -> bytes:
    """JSON: what was asked for and standard fields alone, for some servers refuse others.

    Neighbours of one role are joined. An answer has at most `max_tokens`; 0: as many as upstream likes.
    """
    # `include_usage` is for local servers; OpenRouter reports usage anyway.
    own = {"model": prompt.model, "stream": True, "stream_options": {"include_usage": True}}
    head = _encode({**_capped(prompt.options, max_tokens), **own})
    messages: list[bytes] = []
    for batch in _batches(prompt.turns):
        if messages:
            await asyncio.sleep(0)
        messages.append(_encode([{"role": role, "content": content} for role, content in batch])[1:-1])
    return b"".join((head[:-1], b',"messages":[', b",".join(messages), b"]}"))


def _capped(options: Mapping[str, Any], most: int) -> Mapping[str, Any]:
    """The options, less what would let the answer be longer; it may have been stored under another MAX_TOKENS."""
    if not most:
        return options
    asked = {name: options[name] for name in LONGEST_ANSWER if name in options}
    kept = {name: value if type(value) is int and 0 < value <= most else most for name, value in asked.items()}
    return {**options, **(kept or {"max_tokens": most})}


def _batches(turns: Sequence[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """A history of megabytes in parts, so that others are served between them."""
    batch: list[tuple[str, str]] = []
    size = 0
    for turn in _joined(turns):
        batch.append(turn)
        size += len(turn[1])
        if size > BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _joined(turns: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Neighbours of one role as one turn: strict templates refuse two in a row."""
    for role, run in groupby(turns, key=itemgetter(0)):
        yield role, "\n\n".join(content for _, content in run)


def _encode(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
