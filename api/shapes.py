"""What conversations, messages and failures look like in JSON."""

import json
from typing import Any

from api.event_ids import event_id
from store import Conversation, Failure, Message


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
        "last_event_id": event_id(message.id, message.transcript.length) if message.status == "streaming" else None,
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
