"""Every rule of the store, once: from a snapshot to a change, or a `StoreError`.

Knows no engine and no clock, and never waits.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack
from uuid import uuid4

from result import Ending, Report
from settings import Settings
from stores.records import (
    Conversation,
    Message,
    Question,
    Repeated,
    StoreFull,
    Transcript,
    as_json,
    byte_size,
    ended,
    head_size,
)
from stores.snapshot import Change, Snapshot, Totals, in_progress, iso, moment, spliced, totals_of

# Bytes that are kept beside text, measured: ids, times, and the objects themselves.
CONVERSATION_BYTES = 512
MESSAGE_BYTES = 1024
LEAST_BESIDE = 1024 * 1024  # bytes beside text that every store may take

MOST_DOLLARS = 1e9  # the most that a reply may cost; a larger figure is an error of upstream


class NewConversation(TypedDict, total=False):
    """The fields of a new conversation. `messages` (role, content, perhaps model) are an import, oldest first."""

    id: str | None
    default_model: str | None
    title: str | None
    system_prompt: str | None
    options: Mapping[str, Any] | None
    messages: Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules at one moment: with the limits, what the store holds, and the time in microseconds since 1970."""

    settings: Settings
    totals: Totals
    now: int

    def create(self, history: Sequence[Message] = (), **fields: Unpack[NewConversation]) -> Change:
        """A new conversation; `imported` makes its history. Raises `StoreFull`."""
        if self.totals.conversations >= self.settings.max_conversations:
            raise self._full("max_conversations", "The store has no room for another conversation", "conversations")
        conversation = Conversation(
            id=fields.get("id") or str(uuid4()),
            title=fields.get("title"),
            system_prompt=fields.get("system_prompt"),
            default_model=fields.get("default_model") or self.settings.model_name,
            options=as_json(fields.get("options")),
            created_at=iso(moment(history[0].timestamp) - 1 if history else self.now),
            updated_at="",
        )
        at = max(self.now, moment(history[-1].timestamp)) if history else self.now
        filled = spliced(Snapshot(conversation, conversation.title), at, added=history)
        assert filled.after is not None
        self._check_room(totals := totals_of(filled.after))
        return replace(filled, before=None, totals=totals)

    def update(self, snapshot: Snapshot, changes: Mapping[str, Any]) -> Change:
        """Set any of `default_model`, `title`, `system_prompt`, `options`; a title of None is an automatic one.

        Raises `StoreFull`.
        """
        if "options" in changes:
            changes = {**changes, "options": as_json(changes["options"])}
        own_title = changes.get("title", snapshot.own_title)
        conversation = replace(snapshot.conversation, **changes)
        more = head_size(conversation, own_title) - head_size(snapshot.conversation, snapshot.own_title)
        self._check_room(totals := Totals(text=more))
        change = spliced(replace(snapshot, conversation=conversation, own_title=own_title), self.now)
        return replace(change, before=snapshot, totals=totals)

    def delete(self, snapshot: Snapshot) -> Change:
        """Delete the conversation and its messages."""
        less = Totals()
        less.add(totals_of(snapshot), -1)
        removed = list(snapshot.messages.values())
        id, ended = snapshot.conversation.id, in_progress(removed)
        return Change(id, snapshot, None, self.now, removed=removed, totals=less, ended=ended)

    def expire(self, snapshot: Snapshot, since: str) -> Change | None:
        """Delete the conversation if it hasn't changed since then and no reply is in progress."""
        is_needed = snapshot.in_progress or snapshot.conversation.updated_at >= since
        return None if is_needed else self.delete(snapshot)

    def truncate(self, snapshot: Snapshot, message_id: str) -> Change:
        """Delete that message and every later one. Raises `NotFound`."""
        return spliced(snapshot, self.now, removed=snapshot.since(message_id))

    def add_question(self, snapshot: Snapshot, question: Question, *, to_reply: bool = False) -> Change:
        """Add the question at its place, if there is room for it, and `to_reply` for its reply, too.

        Raises what `Snapshot.check_is_new` raises, `NotFound`, `ReplyInProgress`, `StoreFull`.
        """
        snapshot.check_is_new(question)
        removed = snapshot.cut_by(question)
        message = Message(
            id=question.id or str(uuid4()),
            role="user",
            transcript=Transcript(question.content),
            model=question.model,
            options=as_json(question.options),
            timestamp=iso(self.now),
        )
        change = spliced(snapshot, self.now, removed=removed, added=[message])
        self._check_count(snapshot, change.totals.messages + to_reply)
        # One more byte is for the beginning of the reply.
        self._check_room(Totals(0, change.totals.messages + to_reply, change.totals.text + to_reply))
        return change

    def begin_reply(self, snapshot: Snapshot, model: str | None = None) -> Change:
        """Begin the reply that is owed, in place of a failed one.

        Raises `NothingOwed`, `StoreFull`, and `Repeated` with the reply that is in progress already.
        """
        last = snapshot.check_owed()
        if last.status == "streaming":
            raise Repeated(last)
        failed = (
            [last] if last.role == "assistant" else []
        )  # gives its place to the new reply, however full the store is
        question = snapshot.last_question
        reply = Message(
            id=str(uuid4()),
            role="assistant",
            transcript=Transcript(None),
            model=model or (question and question.model) or snapshot.conversation.default_model,
            timestamp=iso(self.now),
            status="streaming",
            question_id=question.id if question else None,
        )
        change = spliced(snapshot, self.now, removed=failed, added=[reply])
        self._check_count(snapshot, change.totals.messages)
        self._check_room(Totals(0, change.totals.messages, change.totals.text + 1))
        return change

    def add_question_and_begin_reply(self, snapshot: Snapshot, question: Question) -> Change:
        """With the question and the beginning of its reply; of one that was asked before, the reply that is owed.

        Raises what `add_question` and `begin_reply` raise, but `Repeated` with the first reply behind a question that
        was asked before.
        """
        try:
            change = self.add_question(snapshot, question, to_reply=True)
        except Repeated as repeated:
            if reply := snapshot.first_reply(repeated.found.id):
                raise Repeated(reply) from None
            return self.begin_reply(snapshot)
        assert change.after is not None
        return change.then(replace(self, now=self.now + 1).begin_reply(change.after))

    def finish(
        self, snapshot: Snapshot, message_id: str, ending: Ending, report: Report | None = None
    ) -> Change | None:
        """Give the reply its final state; None if it has one already, or isn't there."""
        message = snapshot.in_progress
        if message is None or message.id != message_id:
            return None
        final = ended(message, ending, report)
        cost = _sum(snapshot.conversation.cost, final.report.usage)
        change = spliced(snapshot, self.now, removed=[message], added=[final])
        assert change.after is not None
        conversation = replace(change.after.conversation, cost=cost)
        return replace(change, after=replace(change.after, conversation=conversation))

    def fitting(self, text: str) -> str:
        """As much of a reply's text as there is room for."""
        room = self.settings.max_store_bytes - self.totals.text
        return text if byte_size(text) <= room else text.encode()[:room].decode(errors="ignore")

    def no_room(self) -> StoreFull:
        """The error where a text doesn't fit."""
        return self._full("max_store_bytes", "The store has no room for more text", "conversations")

    def _check_count(self, snapshot: Snapshot, more: int) -> None:
        if snapshot.conversation.message_count + more > self.settings.max_messages:
            raise self._full("max_messages", "The conversation has no room for another message", "messages")

    def _check_room(self, more: Totals) -> None:
        """Raise `StoreFull` if there is no room for so much text, or for the records beside it."""
        most = self.settings.max_store_bytes
        beside = CONVERSATION_BYTES * (self.totals.conversations + more.conversations)
        beside += MESSAGE_BYTES * (self.totals.messages + more.messages)
        has_room_beside = beside <= max(most, LEAST_BESIDE) or (more.conversations <= 0 and more.messages <= 0)
        if (more.text > 0 and self.totals.text + more.text > most) or not has_room_beside:
            raise self.no_room()

    def _full(self, limit: str, what: str, to_delete: str) -> StoreFull:
        return StoreFull(
            f"{what} ({limit.upper()} is {getattr(self.settings, limit)}): "
            f"delete {to_delete}, or raise {limit.upper()}."
        )


def _sum(cost: float | None, usage: str | None) -> float | None:
    """Add the cost of one more reply, if upstream reports it."""
    more = json.loads(usage).get("cost") if usage else None
    if not isinstance(more, (int, float)) or isinstance(more, bool) or not abs(more) < MOST_DOLLARS:
        return cost
    return (cost or 0.0) + more


def imported(turns: Iterable[Mapping[str, Any]], at: int) -> Iterator[Message]:
    """The messages of an import (role, content, perhaps model), oldest first, each a microsecond later."""
    for place, turn in enumerate(turns, start=1):
        yield Message(
            id=str(uuid4()),
            role=turn["role"],
            transcript=Transcript(turn["content"]),
            model=turn.get("model"),
            timestamp=iso(at + place),
        )
