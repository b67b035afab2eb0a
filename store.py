"""Conversations and their messages, kept in dicts, and every rule about them.

Knows nothing of HTTP, SSE, tasks or OpenRouter. Every public method of `Store` is a coroutine, and each rule
(check, then change) is one method, so that a store that waits for a disk or a network can take this one's place.
"""

import io
import logging
import sys
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any, Literal
from uuid import uuid4

Kind = Literal["content", "reasoning"]
Role = Literal["user", "assistant"]
Status = Literal["complete", "streaming", "stopped", "failed"]

TITLE_CHARS = 80

# Bytes that are kept beside text, measured: ids, times, and the objects themselves.
CONVERSATION_BYTES = 512
MESSAGE_BYTES = 768
SWITCH_BYTES = 8  # from content to reasoning or back
LEAST_OVERHEAD = 1024 * 1024  # that any store may take

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KINDS: tuple[Kind, Kind] = ("content", "reasoning")

logger = logging.getLogger(__name__)


class StoreError(Exception):
    """What the store refuses; its text is a sentence for the person who asked."""


class NotFound(StoreError):
    """No such conversation or message."""


class ReplyInProgress(StoreError):
    """The conversation is being answered; a message has to wait."""


class NothingOwed(StoreError):
    """The last question is answered already, or there is none."""


class StoreFull(StoreError):
    """A limit is reached; reading and deleting go on."""


class Transcript:
    """A message's text in the order in which it arrived, content and reasoning interleaved.

    It grows until `close()`; any number of readers follow it, each with a position (in characters) of its own.
    """

    __slots__ = ("_growing", "_switches", "_text", "length", "size")

    def __init__(self, text: str | None = None) -> None:
        """A whole text, all of it content; without one, a transcript that grows."""
        self._text = _compact(text or "")
        self._growing = io.StringIO(newline="") if text is None else None
        self._switches = array("Q")  # positions at which the kind changes; it begins as content
        self.length = len(text or "")  # characters
        self.size = byte_size(text)  # bytes of UTF-8

    def append(self, kind: Kind, text: str) -> None:
        """Add `text` at the end."""
        assert self._growing is not None, "a closed transcript doesn't grow"
        if not text:
            return
        if self.would_switch(kind, text):
            self._switches.append(self.length)
        self._growing.seek(self.length)
        self._growing.write(text)
        self.length += len(text)
        self.size += byte_size(text)

    def would_switch(self, kind: Kind, text: str) -> bool:
        """Whether this text's kind isn't that of the last one."""
        return bool(text) and kind != _KINDS[len(self._switches) % 2]

    @property
    def switches(self) -> int:
        """How often the kind changes."""
        return len(self._switches)

    def read(self, start: int, most: int) -> list[tuple[Kind, str]]:
        """The runs of one kind from position `start` on, `most` characters at the most; empty at the end."""
        end = min(start + most, self.length)
        if start >= end:
            return []
        first = bisect_right(self._switches, start)
        cuts = [start, *self._switches[first : bisect_left(self._switches, end)], end]
        text = self._slice(start, end)  # once: a text at rest may have to be decoded
        return [(_KINDS[(first + i) % 2], text[a - start : b - start]) for i, (a, b) in enumerate(pairwise(cuts))]

    def close(self) -> None:
        """Nothing more comes: keep the text alone."""
        if self._growing is not None:
            self._text, self._growing = _compact(self._growing.getvalue()), None

    @property
    def content(self) -> str:
        """The text that answers."""
        return self._all_of("content")

    @property
    def reasoning(self) -> str:
        """The model's thinking."""
        return self._all_of("reasoning")

    def _all_of(self, wanted: Kind) -> str:
        if self._growing is None and not self._switches:  # as nearly all are, and a long history has many
            return self._whole() if wanted == "content" else ""
        return "".join(text for kind, text in self.read(0, self.length) if kind == wanted)

    def _slice(self, start: int, end: int) -> str:
        if self._growing is None:
            return self._whole()[start:end]
        self._growing.seek(start)
        return self._growing.read(end - start)

    def _whole(self) -> str:
        return self._text if isinstance(self._text, str) else self._text.decode()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a reply failed. `code` is an HTTP status, `retry_after` is in seconds."""

    code: int
    message: str
    retryable: bool
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a reply ended; what doesn't apply is None."""

    status: Status
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    error: Failure | None = None
    generation_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. `transcript` grows while `status` is `streaming`; the rest is of the moment it was read."""

    id: str
    role: Role
    transcript: Transcript
    model: str | None
    timestamp: str
    status: Status = "complete"
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    error: Failure | None = None
    generation_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A conversation without its messages. Times are ISO 8601 in UTC."""

    id: str
    title: str | None
    system_prompt: str | None
    default_model: str
    created_at: str
    updated_at: str
    message_count: int = 0


@dataclass(frozen=True, slots=True)
class OwedReply:
    """A reply that was begun, and what it answers: (role, content) of each turn; None if it had been begun before."""

    message: Message
    turns: list[tuple[str, str]] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept; each is named like the setting that decides it."""

    max_conversations: int
    max_messages: int  # a conversation
    max_store_bytes: int  # of text; what is kept beside it may take as much again


@dataclass(slots=True)
class _Thread:
    conversation: Conversation
    messages: dict[str, Message]
    own_title: str | None  # None: the title is taken from the first message


class Store:
    """Conversations in a dict, the one that changed last at its end."""

    def __init__(self, default_model: str, limits: Limits) -> None:
        self._default_model = default_model
        self._limits = limits
        self._threads: dict[str, _Thread] = {}
        self._size = 0  # bytes of text
        self._overhead = 0  # bytes of what is kept beside text
        self._message_count = 0
        self._clock = 0  # microseconds since 1970

    async def counts(self) -> tuple[int, int]:
        """How many conversations and messages there are."""
        return len(self._threads), self._message_count

    async def create_conversation(
        self, *, default_model: str | None = None, title: str | None = None, system_prompt: str | None = None
    ) -> Conversation:
        """A new, empty conversation. Raises `StoreFull`."""
        if len(self._threads) >= self._limits.max_conversations:
            raise self._full("max_conversations", "The store has no room for another conversation", "conversations")
        self._reserve(byte_size(title) + byte_size(system_prompt), CONVERSATION_BYTES)
        now = self._now()
        conversation = Conversation(
            id=str(uuid4()),
            title=title,
            system_prompt=system_prompt,
            default_model=default_model or self._default_model,
            created_at=now,
            updated_at=now,
        )
        self._threads[conversation.id] = _Thread(conversation, {}, title)
        logger.info("conversation %s made", conversation.id)
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
        self._reserve(byte_size(own_title) + byte_size(system_prompt) - before)
        thread.own_title = own_title
        title = own_title or _first_line(thread.messages)
        thread.conversation = replace(thread.conversation, **{**changes, "title": title})
        self._touch(thread)
        logger.info("conversation %s changed: %s", conversation_id, ", ".join(sorted(changes)) or "nothing")
        return thread.conversation

    async def delete_conversation(self, conversation_id: str) -> str | None:
        """Forget it and its messages; returns the id of the reply that was in progress. Raises `NotFound`."""
        thread = self._thread(conversation_id)
        in_progress = self._remove_messages(thread, list(thread.messages))
        self._reserve(-byte_size(thread.own_title) - byte_size(thread.conversation.system_prompt), -CONVERSATION_BYTES)
        del self._threads[conversation_id]
        logger.info("conversation %s deleted", conversation_id)
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
        logger.info("%d messages deleted from conversation %s", len(removed), conversation_id)
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
        room = self._limits.max_store_bytes - self._size
        fitting = text if byte_size(text) <= room else text.encode()[:room].decode(errors="ignore")
        self._reserve(byte_size(fitting), SWITCH_BYTES * message.transcript.would_switch(kind, fitting))
        message.transcript.append(kind, fitting)
        if fitting != text:
            raise self._full("max_store_bytes", "The store has no room for more text", "conversations")

    async def finish_reply(self, conversation_id: str, message_id: str, ending: Ending) -> Message | None:
        """Give the reply its final state, if it hasn't one yet; None if it has been deleted meanwhile."""
        thread = self._threads.get(conversation_id)
        message = thread.messages.get(message_id) if thread else None
        if thread is None or message is None or message.status != "streaming":
            return message
        message = thread.messages[message_id] = ended(message, ending)
        self._overhead += _memory(message.usage) + _memory(ending.error and ending.error.message)
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
        if to_reply:  # room for its first byte, too, which is given back until it comes
            overhead = _overhead_of(model or thread.conversation.default_model)
            self._reserve(transcript.size + 1, _overhead_of(model) + overhead)
            self._reserve(-1, -overhead)
        else:
            self._reserve(transcript.size, _overhead_of(model))
        message = self._add(thread, "user", transcript, model, "complete")
        logger.info("message %s added to conversation %s", message.id, thread.conversation.id)
        return message

    def _begin(self, thread: _Thread, model: str | None) -> OwedReply:
        last = _check_owed(thread)
        if last.status == "streaming":
            return OwedReply(last)
        self._check_room_for_reply(thread, last)
        model = model or _asked_model(thread) or thread.conversation.default_model
        if last.role == "assistant":
            self._remove_messages(thread, [last.id])
            self._overhead += _overhead_of(model)  # in its place, however full the store is
        else:
            self._reserve(0, _overhead_of(model))
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
            kept = _memory(message.usage) + _memory(message.error and message.error.message)
            kept += SWITCH_BYTES * message.transcript.switches
            self._reserve(-message.transcript.size, -_overhead_of(message.model) - kept)
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
        if len(thread.messages) + more > self._limits.max_messages:
            raise self._full("max_messages", "The conversation has no room for another message", "messages")

    def _check_room_for_reply(self, thread: _Thread, last: Message) -> None:
        is_replaced = last.role == "assistant"
        self._check_room(thread, 0 if is_replaced else 1)
        if self._size - (last.transcript.size if is_replaced else 0) >= self._limits.max_store_bytes:
            raise self._full("max_store_bytes", "The store has no room for a reply", "conversations")

    def _reserve(self, text: int, beside: int = 0) -> None:
        """Take so many bytes or, negative, give them back. Raises `StoreFull`, and takes nothing then."""
        most = self._limits.max_store_bytes
        has_no_room = text > 0 and self._size + text > most
        if has_no_room or (beside > 0 and self._overhead + beside > max(most, LEAST_OVERHEAD)):
            raise self._full("max_store_bytes", "The store has no room for more text", "conversations")
        self._size += text
        self._overhead += beside

    def _full(self, limit: str, what: str, to_delete: str) -> StoreFull:
        return StoreFull(
            f"{what} ({limit.upper()} is {getattr(self._limits, limit)}): delete {to_delete}, or raise {limit.upper()}."
        )


def ended(message: Message, ending: Ending) -> Message:
    """The reply `message` in its final state."""
    message.transcript.close()
    return replace(
        message,
        status=ending.status,
        finish_reason=ending.finish_reason,
        usage=ending.usage,
        error=ending.error,
        generation_id=ending.generation_id,
    )


def byte_size(text: str | None) -> int:
    """Bytes of `text` in UTF-8."""
    if text is None:
        return 0
    return len(text) if text.isascii() else len(text.encode())


def _compact(text: str) -> str | bytes:
    """In a string one emoji makes every character take four bytes; in UTF-8 it doesn't."""
    return text if text.isascii() else text.encode()


def _overhead_of(model: str | None) -> int:
    return MESSAGE_BYTES + byte_size(model)


def _memory(value: Any) -> int:
    """Bytes that a usage report, or what is said of a failure, takes."""
    if isinstance(value, Mapping):
        return sys.getsizeof(value) + sum(sys.getsizeof(name) + _memory(part) for name, part in value.items())
    return 0 if value is None else sys.getsizeof(value)


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
