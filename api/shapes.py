"""What conversations and messages look like in JSON."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse

from api.events import event_id, failure_fields
from store import Conversation, Message, Slices

LONG_LIST = 256 * 1024  # bytes of text in messages, above which they are encoded one by one


def conversation_fields(conversation: Conversation) -> dict[str, Any]:
    fields = {name: getattr(conversation, name) for name in Conversation.__slots__}
    return fields | {"options": _options(conversation.options)}


def message_fields(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "role": message.role,
        "content": message.transcript.content,
        "model": message.model,
        "options": _options(message.options),
        "timestamp": message.timestamp,
        "status": message.status,
        "finish_reason": message.finish_reason,
        "reasoning": message.transcript.reasoning or None,
        "error": failure_fields(message.error) if message.error else None,
        **message.report.shown(),
        "last_event_id": event_id(message.id, message.transcript.kept) if message.status == "streaming" else None,
    }


async def messages_response(slices: Slices) -> Response:
    """The list of all messages, in pieces where it is long. Raises what the slices raise."""
    messages, is_all = await anext(slices)
    if not is_all or sum(message.size for message in messages) > LONG_LIST:
        return StreamingResponse(_one_by_one(messages, slices), media_type="application/json")
    return JSONResponse({"messages": [message_fields(message) for message in messages]})


async def _one_by_one(messages: list[Message], slices: Slices) -> AsyncGenerator[bytes, None]:
    """The same body in pieces: others are served between them, and a client that doesn't read holds only one."""
    before = b'{"messages":['
    async for message in _each(messages, slices):
        yield before + json.dumps(message_fields(message), ensure_ascii=False).encode()
        before = b","
        await asyncio.sleep(0)
    yield b"]}"


async def _each(messages: list[Message], slices: Slices) -> AsyncGenerator[Message, None]:
    for message in messages:
        yield message
    async for more, _ in slices:
        for message in more:
            yield message


def _options(text: str | None) -> Any:
    return json.loads(text) if text else None
