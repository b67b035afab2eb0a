"""The form of conversations and messages in JSON."""

import json
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any

from starlette.responses import Response, StreamingResponse

from api.events import decoded, event_id, failure_fields, report_fields
from stores.engine import Slices
from stores.records import PIECE_CHARS, Conversation, Message
from stores.steps import Steps

LONG_LIST = 256 * 1024  # bytes of text; a longer list of messages is streamed
BLOCK_BYTES = 64 * 1024  # bytes of a list to send at once


def conversation_fields(conversation: Conversation) -> dict[str, Any]:
    fields = {name: getattr(conversation, name) for name in Conversation.__slots__}
    return fields | {"options": decoded(conversation.options)}


def message_fields(message: Message, content: object, reasoning: object) -> dict[str, Any]:
    return {
        "id": message.id,
        "role": message.role,
        "content": content,
        "model": message.model,
        "options": decoded(message.options),
        "timestamp": message.timestamp,
        "status": message.status,
        "finish_reason": message.finish_reason,
        "reasoning": reasoning,
        "error": failure_fields(message.error) if message.error else None,
        **report_fields(message.report),
        "last_event_id": event_id(message.id, message.transcript.kept) if message.status == "streaming" else None,
    }


async def message_response(message: Message, steps: Steps, status: int = 200) -> Response:
    """Return one message."""
    return _response([piece async for piece in steps.over(_encoded(message))], status)


async def messages_response(slices: Slices, steps: Steps) -> Response:
    """Return the list of all messages, streamed if it is long. Raises what the slices raise."""
    messages, is_all = await anext(slices)
    pieces = _list(messages, slices, steps)
    if not is_all or sum(message.size for message in messages) > LONG_LIST:
        return StreamingResponse(pieces, media_type="application/json")
    return _response([piece async for piece in pieces])


async def conversations_response(page: Sequence[Conversation], next_cursor: str | None, steps: Steps) -> Response:
    """Return a page of the list of conversations, encoded in steps: their options may be megabytes."""
    entries = [_json(conversation_fields(entry)) async for entry in steps.over(page)]
    return _response([b'{"conversations":[', b",".join(entries), b'],"next_cursor":', _json(next_cursor), b"}"])


async def _list(messages: list[Message], slices: Slices, steps: Steps) -> AsyncGenerator[bytes, None]:
    """Yield the list in blocks: the loop serves others in between, and a slow client keeps only one slice in memory."""
    yield b'{"messages":['
    commas = chain([b""], repeat(b","))
    async for block in steps.over(_blocks(messages, commas)):
        yield block
    async for more, _ in slices:
        async for block in steps.over(_blocks(more, commas)):
            yield block
    yield b"]}"


def _blocks(messages: Iterable[Message], commas: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the messages with a comma before each, in blocks of about `BLOCK_BYTES`."""
    block: list[bytes] = []
    size = 0
    for message in messages:
        block.append(next(commas))
        for piece in _encoded(message):
            block.append(piece)
            size += len(piece)
            if size > BLOCK_BYTES:
                yield b"".join(block)
                block, size = [], 0
    yield b"".join(block)


def _encoded(message: Message) -> Iterator[bytes]:
    """Yield a message in pieces: its text may have a million characters."""
    transcript, end = message.transcript, message.transcript.kept
    if end <= PIECE_CHARS:
        yield _json(message_fields(message, transcript.content, transcript.reasoning or None))
        return
    reasoning = transcript.pieces("reasoning", end) if transcript.has_reasoning else None
    separator = "{"
    for name, value in message_fields(message, transcript.pieces("content", end), reasoning).items():
        yield f'{separator}"{name}":'.encode()
        yield from _encoded_text(value) if isinstance(value, Iterator) else [_json(value)]
        separator = ","
    yield b"}"


def _encoded_text(pieces: Iterator[str]) -> Iterator[bytes]:
    yield b'"'
    for piece in pieces:
        yield _json(piece)[1:-1]
    yield b'"'


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _response(pieces: Sequence[bytes], status: int = 200) -> Response:
    return Response(b"".join(pieces), status, media_type="application/json")
