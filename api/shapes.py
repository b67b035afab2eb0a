"""What conversations, messages and failures look like in JSON, and the ids of a stream's events.

An event's id is a message, and how much of it its reader has. Clients send it back as it came.
"""

import json
import re
from typing import Any

from result import Failure
from store import Conversation, Message

_EVENT_ID = re.compile(r"([0-9a-f-]{36}):(end|[0-9]{1,9})")


def conversation_fields(conversation: Conversation) -> dict[str, Any]:
    fields = {name: getattr(conversation, name) for name in Conversation.__slots__}
    return fields | {"options": _value(conversation.options)}


def message_fields(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "role": message.role,
        "content": message.transcript.content,
        "model": message.model,
        "options": _value(message.options),
        "timestamp": message.timestamp,
        "status": message.status,
        "finish_reason": message.finish_reason,
        "reasoning": message.transcript.reasoning or None,
        "usage": _value(message.usage),
        "error": failure_fields(message.error) if message.error else None,
        "generation_id": message.generation_id,
        "served_model": message.served_model,
        "provider": message.provider,
        "annotations": _value(message.annotations),
        "last_event_id": event_id(message.id, message.transcript.kept) if message.status == "streaming" else None,
    }


def last_event_fields(message: Message) -> dict[str, Any]:
    """The data of a stream's last event."""
    if message.error is not None:
        return {"error": failure_fields(message.error), "message_id": message.id}
    return {
        "done": True,
        "message_id": message.id,
        "model": message.model,
        "status": message.status,
        "finish_reason": message.finish_reason,
        "usage": _value(message.usage),
        "served_model": message.served_model,
        "provider": message.provider,
        "annotations": _value(message.annotations),
    }


def _value(text: str | None) -> Any:
    """Of what is kept as JSON."""
    return json.loads(text) if text else None


def failure_fields(failure: Failure) -> dict[str, Any]:
    return {name: getattr(failure, name) for name in Failure.__slots__}


def event_id(message_id: str, position: int | None) -> str:
    """The id of the event behind which a reader is at `position` (in characters), None: behind the last event."""
    return f"{message_id}:{'end' if position is None else position}"


def place_of(event_id: str) -> tuple[str, int | None] | None:
    """The message and the position that an id tells; None if it isn't one."""
    match = _EVENT_ID.fullmatch(event_id)
    return (match[1], None if match[2] == "end" else int(match[2])) if match else None
