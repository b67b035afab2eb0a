"""Conversations and their messages, kept in dicts, and every rule about them.

Knows nothing of HTTP, SSE, tasks or OpenRouter. Every public method of `Store` is a coroutine, and each rule
(check, then change) is one method, so that a store that waits for a disk or a network can take this one's place.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from uuid import uuid4

from serving.settings import Settings
from stores.records import (
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
from stores.threads import Thread

__all__ = ["Conversation", "Ending", "Failure", "IdTaken", "Kind", "Message", "NotFound", "NothingOwed"]
__all__ += ["OwedReply", "Question", "Repeated", "ReplyInProgress", "Store", "StoreError", "StoreFull", "ended"]

# Bytes that are kept beside text, measured: ids, times, and the objects themselves.
CONVERSATION_BYTES = 512
MESSAGE_BYTES = 1024
LEAST_BESIDE = 1024 * 1024  # that any store may take

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

logger = logging.getLogger(__name__)


class Store:
    """Conversations in a dict, the one that changed last at its end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threads: dict[str, Thread] = {}
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
        thread = self._threads[conversation.id] = Thread(conversation, title)
        self._size += size
        for turn, transcript in zip(turns, transcripts, strict=True):
            self._add(thread, turn["role"], transcript, turn.get("model"), "complete")
        if turns:
            self._touch(thread)
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

    async def reply_to(self, conversation_id: str, question: Question) -> Message | None:
        """The first reply behind a question that was asked before, None if there is none.

        Raises `NotFound`, `IdTaken`.
        """
        thread = self._thread(conversation_id)
        try:
            thread.check_is_new(question)
        except Repeated as repeated:
            return thread.first_reply(repeated.found.id)
        return None

    async def check_is_new(self, conversation_id: str, question: Question) -> None:
        """Raises `Repeated` where the question is there already, `IdTaken` where its id is another's; `NotFound`."""
        self._thread(conversation_id).check_is_new(question)

    async def add_user_message(self, conversation_id: str, question: Question) -> Message:
        """Add a question. Raises what `check_is_new` raises, `ReplyInProgress`, `StoreFull`."""
        return self._add_question(self._thread(conversation_id), question, to_reply=False)

    async def ask(self, conversation_id: str, question: Question) -> OwedReply:
        """Add a question and begin the reply to it; both or neither.

        One that was asked before has its first reply, or begins the one that is owed. Raises what `add_user_message`
        raises but `Repeated`.
        """
        thread = self._thread(conversation_id)
        try:
            self._add_question(thread, question, to_reply=True)
        except Repeated as repeated:
            if reply := thread.first_reply(repeated.found.id):
                return OwedReply(reply)
        return self._begin(thread, None)

    async def delete_messages_from(self, conversation_id: str, message_id: str) -> None:
        """Forget that message and every later one. Raises `NotFound`."""
        thread = self._thread(conversation_id)
        removed = thread.since(message_id)
        self._remove(thread, removed)
        self._touch(thread)
        logger.info("Deleted %d messages from conversation %s", len(removed), conversation_id)

    async def last_owed(self, conversation_id: str) -> Message:
        """The message that `begin_reply` would answer, replace or join. Raises `NotFound`, `NothingOwed`."""
        return self._thread(conversation_id).check_owed()

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

    def _thread(self, conversation_id: str) -> Thread:
        thread = self._threads.get(conversation_id)
        if thread is None:
            raise NotFound("There is no conversation with this id. They are kept in memory: a restart forgets them.")
        return thread

    def _add_question(self, thread: Thread, question: Question, *, to_reply: bool) -> Message:
        thread.check_is_new(question)
        removed = thread.cut_by(question)
        if len(thread.messages) - len(removed) + 1 + to_reply > self._settings.max_messages:
            raise self._full("max_messages", "The conversation has no room for another message", "messages")
        transcript = Transcript(question.content)
        more = transcript.size - sum(message.transcript.size for message in removed)
        self._check_room(more + to_reply, messages=1 + to_reply - len(removed))  # the reply's first byte, too
        self._remove(thread, removed)
        message = self._add(thread, "user", transcript, question.model, "complete", id=question.id)
        self._touch(thread, message.timestamp)
        logger.info("Added user message to conversation %s", thread.conversation.id)
        return message

    def _begin(self, thread: Thread, model: str | None) -> OwedReply:
        last = thread.check_owed()
        if last.status == "streaming":
            return OwedReply(last)
        failed = [last] if last.role == "assistant" else []  # whose place the reply takes, however full the store is
        if len(thread.messages) + 1 - len(failed) > self._settings.max_messages:
            raise self._full("max_messages", "The conversation has no room for another message", "messages")
        self._check_room(1 - sum(message.transcript.size for message in failed), messages=1 - len(failed))
        self._remove(thread, failed)
        question = thread.last_question
        model = model or (question and question.model) or thread.conversation.default_model
        question_id = question.id if question else None
        turns = thread.turns()
        reply = self._add(thread, "assistant", Transcript(), model, "streaming", question_id=question_id)
        self._touch(thread, reply.timestamp)
        return OwedReply(reply, turns)

    def _add(
        self,
        thread: Thread,
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
        return message

    def _remove(self, thread: Thread, messages: Sequence[Message]) -> None:
        for message in messages:
            del thread.messages[message.id]
            self._size -= message.transcript.size
        self._message_count -= len(messages)

    def _touch(self, thread: Thread, now: str | None = None) -> None:
        thread.conversation = replace(
            thread.conversation, title=thread.title(), message_count=len(thread.messages), updated_at=now or self._now()
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
