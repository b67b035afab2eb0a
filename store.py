"""Conversations and their messages, kept in dicts, and every rule about them.

Knows nothing of HTTP, SSE, tasks or OpenRouter. Every public method of `Store` is a coroutine, and each rule
(check, then change) is one method, so that a store that waits for a disk or a network can take this one's place.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from uuid import uuid4

from serving.settings import Settings
from stores.records import (
    Conversation,
    Ending,
    Failure,
    Kind,
    Message,
    NotFound,
    NothingOwed,
    OwedReply,
    ReplyInProgress,
    Role,
    Status,
    StoreError,
    StoreFull,
    Transcript,
    byte_size,
    ended,
)

__all__ = [
    "Conversation",
    "Ending",
    "Failure",
    "Kind",
    "Message",
    "NotFound",
    "NothingOwed",
    "OwedReply",
    "ReplyInProgress",
    "Store",
    "StoreError",
    "StoreFull",
    "ended",
]

TITLE_CHARS = 80

# Bytes that are kept beside text, measured: ids, times, and the objects themselves.
CONVERSATION_BYTES = 512
MESSAGE_BYTES = 1024
LEAST_BESIDE = 1024 * 1024  # that any store may take

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Thread:
    conversation: Conversation
    messages: dict[str, Message]
    own_title: str | None  # None: the title is taken from the first message


class Store:
    """Conversations in a dict, the one that changed last at its end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threads: dict[str, _Thread] = {}
        self._size = 0  # bytes of text
        self._message_count = 0
        self._clock = 0  # microseconds since 1970

    async def counts(self) -> tuple[int, int]:
        """How many conversations and messages there are."""
        return len(self._threads), self._message_count

    async def create_conversation(
        self, *, default_model: str | None = None, title: str | None = None, system_prompt: str | None = None
    ) -> Conversation:
        """A new, empty conversation. Raises `StoreFull`."""
        if len(self._threads) >= self._settings.max_conversations:
            raise self._full("max_conversations", "The store has no room for another conversation", "conversations")
        self._take(byte_size(title) + byte_size(system_prompt), conversations=1)
        now = self._now()
        conversation = Conversation(
            id=str(uuid4()),
            title=title,
            system_prompt=system_prompt,
            default_model=default_model or self._settings.model_name,
            created_at=now,
            updated_at=now,
        )
        self._threads[conversation.id] = _Thread(conversation, {}, title)
        logger.info("Created conversation %s with model %s", conversation.id, conversation.default_model)
        return conversation

    async def list_conversations(self, limit: int, before: str | None = None) -> tuple[list[Conversation], str | None]:
        """A page, newest `updated_at` first, and the `before` of the next page, None after the last."""
        newest_first = (thread.conversation for thread in reversed(self._threads.values()))
        older = (entry for entry in newest_first if before is None or entry.updated_at < before)
        page = list(islice(older, limit + 1))
        return page[:limit], page[limit - 1].updated_at if len(page) > limit else None

    async def conversation(self, conversation_id: str) -> Conversation:
        """Raises `NotFound`."""
        return self._thread(conversation_id).conversation

    async def update_conversation(self, conversation_id: str, changes: Mapping[str, Any]) -> Conversation:
        """Set any of `default_model`, `title`, `system_prompt`; a title of None is taken from the first message.

        Raises `NotFound`, `StoreFull`.
        """
        thread = self._thread(conversation_id)
        own_title = changes.get("title", thread.own_title)
        system_prompt = changes.get("system_prompt", thread.conversation.system_prompt)
        before = byte_size(thread.own_title) + byte_size(thread.conversation.system_prompt)
        self._take(byte_size(own_title) + byte_size(system_prompt) - before)
        thread.own_title = own_title
        title = own_title or _first_line(thread.messages)
        thread.conversation = replace(thread.conversation, **{**changes, "title": title})
        self._touch(thread)
        logger.info("Updated conversation %s", conversation_id)
        return thread.conversation

    async def delete_conversation(self, conversation_id: str) -> str | None:
        """Forget it and its messages; returns the id of the reply that was in progress. Raises `NotFound`."""
        thread = self._thread(conversation_id)
        in_progress = self._remove_messages(thread, list(thread.messages))
        self._take(-byte_size(thread.own_title) - byte_size(thread.conversation.system_prompt))
        del self._threads[conversation_id]
        logger.info("Deleted conversation %s", conversation_id)
        return in_progress

    async def messages(self, conversation_id: str) -> list[Message]:
        """All messages, oldest first. Raises `NotFound`."""
        return list(self._thread(conversation_id).messages.values())

    async def message(self, conversation_id: str, message_id: str) -> Message | None:
        """One message, None if it isn't there. Raises `NotFound` for the conversation."""
        return self._thread(conversation_id).messages.get(message_id)

    async def add_user_message(self, conversation_id: str, content: str, model: str | None = None) -> Message:
        """A question. Raises `NotFound`, `ReplyInProgress`, `StoreFull`."""
        return self._add_question(self._thread(conversation_id), content, model, to_reply=False)

    async def ask(self, conversation_id: str, content: str, model: str | None = None) -> OwedReply:
        """A question, and the reply to it begun; both or neither. Raises `NotFound`, `ReplyInProgress`, `StoreFull`."""
        thread = self._thread(conversation_id)
        self._add_question(thread, content, model, to_reply=True)
        return self._begin(thread, None)

    async def delete_messages_from(self, conversation_id: str, message_id: str) -> str | None:
        """Forget that message and every later one; returns the id of a reply in progress among them.

        Raises `NotFound`.
        """
        thread = self._thread(conversation_id)
        ids = list(thread.messages)
        if message_id not in thread.messages:
            raise NotFound("There is no message with this id in the conversation.")
        removed = ids[ids.index(message_id) :]
        in_progress = self._remove_messages(thread, removed)
        self._touch(thread)
        logger.info("Deleted %d messages from conversation %s", len(removed), conversation_id)
        return in_progress

    async def last_owed(self, conversation_id: str) -> Message:
        """The message that `begin_reply` would answer, replace or join. Raises `NotFound`, `NothingOwed`."""
        return _check_owed(self._thread(conversation_id))

    async def begin_reply(self, conversation_id: str, model: str | None = None) -> OwedReply:
        """Begin the reply that is owed, or tell which one is in progress. A failed one is replaced.

        Raises `NotFound`, `NothingOwed`, `StoreFull`.
        """
        return self._begin(self._thread(conversation_id), model)

    async def extend_reply(self, conversation_id: str, message_id: str, kind: Kind, text: str) -> None:
        """Add text to the reply in progress, as much as there is room for.

        Raises `NotFound` once it has been deleted, and `StoreFull` where that isn't all of it.
        """
        message = self._thread(conversation_id).messages.get(message_id)
        if message is None:
            raise NotFound("The reply has been deleted.")
        room, size = self._settings.max_store_bytes - self._size, byte_size(text)
        if size <= room:
            self._size += size
            message.transcript.append(kind, text)
            return
        fitting = text.encode()[:room].decode(errors="ignore")
        self._take(byte_size(fitting))
        message.transcript.append(kind, fitting)
        raise self._full("max_store_bytes", "The store has no room for more text", "conversations")

    async def finish_reply(self, conversation_id: str, message_id: str, ending: Ending) -> Message | None:
        """Give the reply its final state, if it hasn't one yet; None if it has been deleted meanwhile."""
        thread = self._threads.get(conversation_id)
        message = thread.messages.get(message_id) if thread else None
        if thread is None or message is None or message.status != "streaming":
            return message
        message = thread.messages[message_id] = ended(message, ending)
        self._touch(thread)
        return message

    def _thread(self, conversation_id: str) -> _Thread:
        thread = self._threads.get(conversation_id)
        if thread is None:
            raise NotFound("There is no conversation with this id. They are kept in memory: a restart forgets them.")
        return thread

    def _add_question(self, thread: _Thread, content: str, model: str | None, *, to_reply: bool) -> Message:
        if _last_status(thread) == "streaming":
            raise ReplyInProgress(
                "A reply is in progress: read it to its end, or stop it with DELETE on the conversation's stream, "
                "then send the message."
            )
        self._check_room(thread, 1 + to_reply)
        transcript = Transcript(content)
        self._take(transcript.size + to_reply, messages=1 + to_reply)  # the reply's first byte, too
        self._take(-int(to_reply))  # which is given back until it comes
        message = self._add(thread, "user", transcript, model, "complete")
        logger.info("Added user message to conversation %s", thread.conversation.id)
        return message

    def _begin(self, thread: _Thread, model: str | None) -> OwedReply:
        last = _check_owed(thread)
        if last.status == "streaming":
            return OwedReply(last)
        self._check_room_for_reply(thread, last)
        model = model or _asked_model(thread) or thread.conversation.default_model
        if last.role == "assistant":
            self._remove_messages(thread, [last.id])  # it takes this one's place, however full the store is
        else:
            self._take(0, messages=1)
        turns = _turns(thread)
        return OwedReply(self._add(thread, "assistant", Transcript(), model, "streaming"), turns)

    def _add(self, thread: _Thread, role: Role, transcript: Transcript, model: str | None, status: Status) -> Message:
        now = self._now()
        message = Message(id=str(uuid4()), role=role, transcript=transcript, model=model, timestamp=now, status=status)
        thread.messages[message.id] = message
        self._message_count += 1
        self._touch(thread, now)
        return message

    def _remove_messages(self, thread: _Thread, ids: list[str]) -> str | None:
        in_progress = None
        for message in [thread.messages.pop(message_id) for message_id in ids]:
            self._size -= message.transcript.size
            in_progress = message.id if message.status == "streaming" else in_progress
        self._message_count -= len(ids)
        return in_progress

    def _touch(self, thread: _Thread, now: str | None = None) -> None:
        count = len(thread.messages)
        title = thread.conversation.title
        if thread.own_title is None and (title is None or count == 0):
            title = _first_line(thread.messages)
        thread.conversation = replace(
            thread.conversation, title=title, message_count=count, updated_at=now or self._now()
        )
        self._threads[thread.conversation.id] = self._threads.pop(thread.conversation.id)

    def _now(self) -> str:
        # Strictly increasing, whatever the system's clock does: `updated_at` is the order and the cursor of the list.
        self._clock = max(time.time_ns() // 1000, self._clock + 1)
        moment = _EPOCH + timedelta(microseconds=self._clock)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _check_room(self, thread: _Thread, more: int) -> None:
        if len(thread.messages) + more > self._settings.max_messages:
            raise self._full("max_messages", "The conversation has no room for another message", "messages")

    def _check_room_for_reply(self, thread: _Thread, last: Message) -> None:
        is_replaced = last.role == "assistant"
        self._check_room(thread, 0 if is_replaced else 1)
        if self._size - (last.transcript.size if is_replaced else 0) >= self._settings.max_store_bytes:
            raise self._full("max_store_bytes", "The store has no room for a reply", "conversations")

    def _take(self, text: int, *, conversations: int = 0, messages: int = 0) -> None:
        """Take so many bytes of text or, negative, give them back, and check what is kept beside it.

        Raises `StoreFull`, and takes nothing then.
        """
        most = self._settings.max_store_bytes
        beside = CONVERSATION_BYTES * (len(self._threads) + conversations)
        beside += MESSAGE_BYTES * (self._message_count + messages)
        has_room_beside = beside <= max(most, LEAST_BESIDE) or not (conversations or messages)
        if (text > 0 and self._size + text > most) or not has_room_beside:
            raise self._full("max_store_bytes", "The store has no room for more text", "conversations")
        self._size += text

    def _full(self, limit: str, what: str, to_delete: str) -> StoreFull:
        return StoreFull(
            f"{what} ({limit.upper()} is {getattr(self._settings, limit)}): "
            f"delete {to_delete}, or raise {limit.upper()}."
        )


def _check_owed(thread: _Thread) -> Message:
    last = next(reversed(thread.messages.values()), None)
    if last is None:
        raise NothingOwed("The conversation is empty: add a message first, then stream the reply.")
    if last.role == "assistant" and last.status in ("complete", "stopped"):
        raise NothingOwed(
            "The last message is answered already: add a message, or delete the reply to have another one."
        )
    return last


def _turns(thread: _Thread) -> list[tuple[str, str]]:
    system_prompt = thread.conversation.system_prompt
    turns: list[tuple[str, str]] = [("system", system_prompt)] if system_prompt is not None else []
    answered = (message for message in thread.messages.values() if message.status != "failed")
    return turns + [(m.role, content) for m in answered if (content := m.transcript.content)]


def _last_status(thread: _Thread) -> Status | None:
    last = next(reversed(thread.messages.values()), None)
    return last.status if last else None


def _asked_model(thread: _Thread) -> str | None:
    return next((m.model for m in reversed(thread.messages.values()) if m.role == "user"), None)


def _first_line(messages: Mapping[str, Message]) -> str | None:
    first = next(iter(messages.values()), None)
    if first is None:
        return None
    lines = first.transcript.content.strip().splitlines()
    return lines[0][:TITLE_CHARS].rstrip() if lines else None
