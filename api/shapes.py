"""What conversations and messages look like in JSON."""

from typing import Any

from api.events import event_id, failure_fields, value_of
from store import Conversation, Message


def conversation_fields(conversation: Conversation) -> dict[str, Any]:
    fields = {name: getattr(conversation, name) for name in Conversation.__slots__}
    return fields | {"options": value_of(conversation.options)}


def message_fields(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "role": message.role,
        "content": message.transcript.content,
        "model": message.model,
        "options": value_of(message.options),
        "timestamp": message.timestamp,
        "status": message.status,
        "finish_reason": message.finish_reason,
        "reasoning": message.transcript.reasoning or None,
        "usage": value_of(message.usage),
        "error": failure_fields(message.error) if message.error else None,
        "generation_id": message.generation_id,
        "served_model": message.served_model,
        "provider": message.provider,
        "annotations": value_of(message.annotations),
        "last_event_id": event_id(message.id, message.transcript.kept) if message.status == "streaming" else None,
    }
