"""Conversations and their messages, kept in dicts, and every rule about them.

Knows nothing of HTTP, SSE, tasks or OpenRouter. Every public method of `Store` is a coroutine, and each rule
(check, then change) is one method, so that a store that waits for a disk or a network can take this one's place.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import dropwhile, islice
from typing import Any
from uuid import uuid4

from serving.settings import Settings
from stores.records import (
    After,
    Conversation,
    Ending,
    Failure,
    IdTaken,
    Kind,
    Message,
    NotFound,
    NothingOwed,
    OwedReply,
    Question,
    Repeated,
    ReplyInProgress,
    Role,
    Status,
    StoreError,
    StoreFull,
    Transcript,
    byte_size,
    ended,
)

__all__ = ["Conversation", "Ending", "Failure", "IdTaken", "Kind", "Message", "NotFound", "NothingOwed"]
__all__ += ["OwedReply", "Question", "Repeated", "ReplyInProgress", "Store", "StoreError", "StoreFull", "ended"]

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
    own_title: str | None  # None: the title is taken from the first question
    messages: dict[str, Message] = field(default_factory=dict)
    titled_by: str | None = None  # that question's id


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
        self,
        *,
        id: str | None = None,
        default_model: str | None = None,
        title: str | None = None,
        system_prompt: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
    ) -> Conversation:
        """A new conversation; `messages` (role, content, perhaps model) are an import, oldest first.

        Raises `Repeated`, `StoreFull`.
        """
        if id in self._threads:
            raise Repeated(self._threads[id].conversation)
        if len(self._threads) >= self._settings.max_conversations:
            raise self._full("max_conversations", "The store has no room for another conversation", "conversations")
        turns = messages or ()
        transcripts = [Transcript(turn["content"]) for turn in turns]
        size = byte_size(title) + byte_size(system_prompt)
        self._check_room(size + sum(t.size for t in transcripts), conversations=1, messages=len(transcripts))
        now = self._now()
        conversation = Conversation(
            id=id or str(uuid4()),
            title=title,
            system_prompt=system_prompt,
            default_model=default_model or self._settings.model_name,
            created_at=now,
            updated_at=now,
        )
        thread = self._threads[conversation.id] = _Thread(conversation, title)
        self._size += size
        for turn, transcript in zip(turns, transcripts, strict=True):
            self._add(thread, turn["role"], transcript, turn.get("model"), "complete")
        logger.info("Created conversation %s with model %s", conversation.id, conversation.default_model)
        return thread.conversation

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
        """Set any of `default_model`, `title`, `system_prompt`; a title of None is taken from the first question.

        Raises `NotFound`, `StoreFull`.
        """
        thread = self._thread(conversation_id)
        own_title = changes.get("title", thread.own_title)
        system_prompt = changes.get("system_prompt", thread.conversation.system_prompt)
        before = byte_size(thread.own_title) + byte_size(thread.conversation.system_prompt)
        more = byte_size(own_title) + byte_size(system_prompt) - before
        self._check_room(more)
        self._size += more
        thread.own_title = own_title
        thread.conversation = replace(thread.conversation, **changes)
        if own_title is None:
            thread.titled_by = None
        self._touch(thread)
        logger.info("Updated conversation %s", conversation_id)
        return thread.conversation

    async def delete_conversation(self, conversation_id: str) -> None:
        """Forget it and its messages. Raises `NotFound`."""
        thread = self._thread(conversation_id)
        self._remove(thread, list(thread.messages.values()))
        self._size -= byte_size(thread.own_title) + byte_size(thread.conversation.system_prompt)
        del self._threads[conversation_id]
        logger.info("Deleted conversation %s", conversation_id)

    async def messages(self, conversation_id: str) -> list[Message]:
        """All messages, oldest first. Raises `NotFound`."""
        return list(self._thread(conversation_id).messages.values())

    async def message(self, conversation_id: str, message_id: str) -> Message | None:
        """One message, None if it isn't there. Raises `NotFound` for the conversation."""
        return self._thread(conversation_id).messages.get(message_id)

    async def reply_to(self, conversation_id: str, message_id: str) -> Message | None:
        """The first reply behind that message, None if there is none. Raises `NotFound` for the conversation."""
        behind = dropwhile(lambda message: message.id != message_id, self._thread(conversation_id).messages.values())
        return next((message for message in behind if message.role == "assistant"), None)

    async def check_is_new(self, conversation_id: str, question: Question) -> None:
        """Raises `Repeated` where the question is there already, `IdTaken` where its id is another's; `NotFound`."""
        _check_is_new(self._thread(conversation_id), question)

    async def add_user_message(self, conversation_id: str, question: Question) -> Message:
        """Add a question. Raises what `check_is_new` raises, `ReplyInProgress`, `StoreFull`."""
        return self._add_question(self._thread(conversation_id), question, to_reply=False)

    async def ask(self, conversation_id: str, question: Question) -> OwedReply:
        """Add a question and begin the reply to it; both or neither. Raises what `add_user_message` raises."""
        thread = self._thread(conversation_id)
        self._add_question(thread, question, to_reply=True)
        return self._begin(thread, None)

    async def delete_messages_from(self, conversation_id: str, message_id: str) -> None:
        """Forget that message and every later one. Raises `NotFound`."""
        thread = self._thread(conversation_id)
        _check_is_there(thread, message_id)
        removed = list(dropwhile(lambda message: message.id != message_id, thread.messages.values()))
        self._remove(thread, removed)
        self._touch(thread)
        logger.info("Deleted %d messages from conversation %s", len(removed), conversation_id)

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
        if size > room:
            message.transcript.append(kind, fitting := text.encode()[:room].decode(errors="ignore"))
            self._size += byte_size(fitting)
            raise self._full("max_store_bytes", "The store has no room for more text", "conversations")
        message.transcript.append(kind, text)
        self._size += size

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

    def _add_question(self, thread: _Thread, question: Question, *, to_reply: bool) -> Message:
        _check_is_new(thread, question)
        removed = _behind(thread, question.after)
        if question.after is ... and _is_in_progress(_last(thread)):
            raise ReplyInProgress(
                "A reply is in progress: read it to its end, or stop it with DELETE on the conversation's stream, "
                "then send the message."
            )
        if len(thread.messages) - len(removed) + 1 + to_reply > self._settings.max_messages:
            raise self._full("max_messages", "The conversation has no room for another message", "messages")
        transcript = Transcript(question.content)
        more = transcript.size - sum(message.transcript.size for message in removed)
        self._check_room(more + to_reply, messages=1 + to_reply - len(removed))  # the reply's first byte, too
        self._remove(thread, removed)
        message = self._add(thread, "user", transcript, question.model, "complete", id=question.id)
        logger.info("Added user message to conversation %s", thread.conversation.id)
        return message

    def _begin(self, thread: _Thread, model: str | None) -> OwedReply:
        last = _check_owed(thread)
        if last.status == "streaming":
            return OwedReply(last)
        failed = [last] if last.role == "assistant" else []  # whose place the reply takes, however full the store is
        if len(thread.messages) + 1 - len(failed) > self._settings.max_messages:
            raise self._full("max_messages", "The conversation has no room for another message", "messages")
        self._check_room(1 - sum(message.transcript.size for message in failed), messages=1 - len(failed))
        self._remove(thread, failed)
        question = next((m for m in reversed(thread.messages.values()) if m.role == "user"), None)
        model = model or (question and question.model) or thread.conversation.default_model
        question_id = question.id if question else None
        turns = _turns(thread)
        reply = self._add(thread, "assistant", Transcript(), model, "streaming", question_id=question_id)
        return OwedReply(reply, turns)

    def _add(
        self,
        thread: _Thread,
        role: Role,
        transcript: Transcript,
        model: str | None,
        status: Status,
        *,
        id: str | None = None,
        question_id: str | None = None,
    ) -> Message:
        message = Message(
            id=id or str(uuid4()),
            role=role,
            transcript=transcript,
            model=model,
            timestamp=self._now(),
            status=status,
            question_id=question_id,
        )
        thread.messages[message.id] = message
        self._size += transcript.size
        self._message_count += 1
        self._touch(thread, message.timestamp)
        return message

    def _remove(self, thread: _Thread, messages: Sequence[Message]) -> None:
        for message in messages:
            del thread.messages[message.id]
            self._size -= message.transcript.size
        self._message_count -= len(messages)

    def _touch(self, thread: _Thread, now: str | None = None) -> None:
        title = thread.own_title or thread.conversation.title
        if thread.own_title is None and thread.titled_by not in thread.messages:
            first = next((message for message in thread.messages.values() if message.role == "user"), None)
            thread.titled_by, title = (first.id, _first_line(first)) if first else (None, None)
        thread.conversation = replace(
            thread.conversation, title=title, message_count=len(thread.messages), updated_at=now or self._now()
        )
        self._threads[thread.conversation.id] = self._threads.pop(thread.conversation.id)

    def _now(self) -> str:
        # Strictly increasing, whatever the system's clock does: `updated_at` is the order and the cursor of the list.
        self._clock = max(time.time_ns() // 1000, self._clock + 1)
        moment = _EPOCH + timedelta(microseconds=self._clock)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _check_room(self, text: int, *, conversations: int = 0, messages: int = 0) -> None:
        """Raises `StoreFull` where there is no room for so many bytes of text, or for what is kept beside them."""
        most = self._settings.max_store_bytes
        beside = CONVERSATION_BYTES * (len(self._threads) + conversations)
        beside += MESSAGE_BYTES * (self._message_count + messages)
        has_room_beside = beside <= max(most, LEAST_BESIDE) or (conversations <= 0 and messages <= 0)
        if (text > 0 and self._size + text > most) or not has_room_beside:
            raise self._full("max_store_bytes", "The store has no room for more text", "conversations")

    def _full(self, limit: str, what: str, to_delete: str) -> StoreFull:
        return StoreFull(
            f"{what} ({limit.upper()} is {getattr(self._settings, limit)}): "
            f"delete {to_delete}, or raise {limit.upper()}."
        )


def _check_is_new(thread: _Thread, question: Question) -> None:
    found = thread.messages.get(question.id) if question.id else None
    if found is None:
        return
    if found.role == "user" and (found.transcript.content, found.model) == (question.content, question.model):
        raise Repeated(found)
    raise IdTaken("The `id` is that of another message of this conversation: a new question needs a new one, or none.")


def _check_is_there(thread: _Thread, message_id: str) -> Message:
    message = thread.messages.get(message_id)
    if message is None:
        raise NotFound("There is no message with this id in the conversation.")
    return message


def _behind(thread: _Thread, after: After) -> list[Message]:
    """The messages behind that one. Raises `NotFound`, and `ReplyInProgress` if it is the reply in progress itself."""
    if after is ...:
        return []
    if after is None:
        return list(thread.messages.values())
    if _is_in_progress(_check_is_there(thread, after)):
        raise ReplyInProgress(
            "`after` is the reply in progress: stop it with DELETE on the conversation's stream first."
        )
    return list(dropwhile(lambda message: message.id != after, thread.messages.values()))[1:]


def _last(thread: _Thread) -> Message | None:
    return next(reversed(thread.messages.values()), None)


def _is_in_progress(message: Message | None) -> bool:
    return message is not None and message.status == "streaming"


def _check_owed(thread: _Thread) -> Message:
    last = _last(thread)
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


def _first_line(question: Message) -> str:
    return question.transcript.content.strip().splitlines()[0][:TITLE_CHARS].rstrip()
