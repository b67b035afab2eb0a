"""The body of a completion's request, encoded so that a history of megabytes holds nobody up."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter

BATCH_CHARS = 256 * 1024  # of a history that are encoded in one go


async def encode_request(model: str, turns: Sequence[tuple[str, str]]) -> bytes:
    """JSON: standard fields alone, for some servers refuse others; neighbours of one role are joined."""
    # `include_usage` is for local servers; OpenRouter reports usage anyway.
    head = _encode({"model": model, "stream": True, "stream_options": {"include_usage": True}})
    messages: list[bytes] = []
    for batch in _batches(turns):
        if messages:
            await asyncio.sleep(0)
        messages.append(_encode([{"role": role, "content": content} for role, content in batch])[1:-1])
    return b"".join((head[:-1], b',"messages":[', b",".join(messages), b"]}"))


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
