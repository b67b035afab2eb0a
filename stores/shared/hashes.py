"""A conversation as the server keeps it: a hash with a field for each of its own, and a list with its messages.

A text is written as `=text`, null as nothing, anything else as JSON. Fields that another version of the relay has
written are left as they are.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from stores.changes import iso
from stores.encoding import decode, encode
from stores.records import Conversation, Message
from stores.threads import Thread

T = TypeVar("T")

_ELSEWHERE = {"id", "title", "created_at", "updated_at", "message_count"}
_FIELDS = [field.name for field in fields(Conversation) if field.name not in _ELSEWHERE]


def head_of(thread: Thread) -> list[str]:
    """Names and values of the fields, in turn."""
    values: dict[str, Any] = {name: getattr(thread.conversation, name) for name in _FIELDS}
    values |= {"own_title": thread.own_title, "auto_title": thread.first_line}
    written = {name: _written(value) for name, value in values.items()}
    written["message_count"] = str(thread.conversation.message_count)
    return [part for pair in written.items() for part in pair]


def thread_of(conversation_id: str, head: Sequence[str], elements: Sequence[str] = ()) -> Thread:
    """The thread with these messages."""
    texts = dict(pairs(head))
    own_title, first_line = _read(texts.get("own_title", "")), _read(texts.get("auto_title", ""))
    conversation = Conversation(
        id=conversation_id,
        title=own_title or first_line,
        created_at=iso(int(texts["created_at"])),
        updated_at=iso(int(texts["updated_at"])),
        message_count=int(texts["message_count"]),
        **{name: _read(texts[name]) for name in _FIELDS if name in texts},
    )
    messages = {message.id: message for message in messages_of(elements)}
    return Thread(conversation, own_title, first_line, messages, version=texts["version"])


def element_of(message: Message) -> str:
    """A message as an element of the list; the text of a reply in progress is elsewhere."""
    head, text = encode(message)
    return f"{head}\n{'' if message.status == 'streaming' else text}"


def messages_of(elements: Sequence[str]) -> list[Message]:
    """The messages again."""
    heads_and_texts = [element.partition("\n")[::2] for element in elements]
    heads = json.loads(f"[{','.join(head for head, _ in heads_and_texts)}]")  # far quicker than one by one
    return [decode(head, text) for head, (_, text) in zip(heads, heads_and_texts, strict=True)]


def pairs(flat: Sequence[T]) -> Iterator[tuple[T, T]]:
    """Names and values of a hash as the server tells it."""
    return zip(flat[::2], flat[1::2], strict=True)


def _written(value: Any) -> str:
    if value is None:
        return ""
    return f"={value}" if isinstance(value, str) else json.dumps(value)


def _read(written: str) -> Any:
    if not written:
        return None
    return written[1:] if written[0] == "=" else json.loads(written)
