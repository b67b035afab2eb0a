"""One conversation with its messages, as it was at one moment, and what can be asked of it.

Knows nothing of limits, clocks or engines.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import chain, dropwhile, islice
from typing import Any

from stores.records import (
    Conversation,
    IdTaken,
    Message,
    NotFound,
    NothingOwed,
    Question,
    Repeated,
    ReplyInProgress,
    head_size,
    text_size,
)

TITLE_CHARS = 80
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A conversation, and its messages by id from the oldest on: all of them, or the latest.

    Never changed: what comes after it is another snapshot. Only the transcript of a reply in progress grows.
    """

    conversation: Conversation
    own_title: str | None = None  # None: the title is taken from the first question
    first_line: str | None = None  # of the first question there is
    messages: dict[str, Message] = field(default_factory=dict)
    version: str = ""  # changes with each change, on engines that relays share

    @property
    def last(self) -> Message | None:
        """The last message, None if there is none."""
        return next(reversed(self.messages.values()), None)

    @property
    def last_question(self) -> Message | None:
        """The last message of a user, None if there is none."""
        return next((message for message in reversed(self.messages.values()) if message.role == "user"), None)

    @property
    def in_progress(self) -> Message | None:
        """The reply in progress, which is the last message; None if there is none."""
        last = self.last
        return last if last is not None and last.status == "streaming" else None

    def check_is_new(self, question: Question) -> None:
        """Raise `Repeated` if the question was asked before, `IdTaken` if its id is another message's."""
        found = self.messages.get(question.id) if question.id else None
        if found is None:
            return
        if found.role == "user" and _asked(found) == (question.content, question.model, _plain(question.options)):
            raise Repeated(found)
        raise IdTaken(
            "The `id` is that of another message of this conversation: a new question needs a new one, or none."
        )

    def first_reply(self, message_id: str) -> Message | None:
        """The first reply behind that message, None if there is none."""
        return next((message for message in self.since(message_id) if message.role == "assistant"), None)

    def since(self, message_id: str) -> list[Message]:
        """The message with this id and every later one. Raises `NotFound`."""
        if message_id not in self.messages:
            raise NotFound("There is no message with this id in the conversation.")
        return list(dropwhile(lambda message: message.id != message_id, self.messages.values()))

    def cut_by(self, question: Question) -> list[Message]:
        """The messages that the question removes. Raises `NotFound`, and `ReplyInProgress` where one is in the way."""
        match question.after:
            case None:
                return list(self.messages.values())
            case str(after):
                kept, *removed = self.since(after)
                if kept.status == "streaming":
                    raise ReplyInProgress(
                        "`after` is the reply in progress: stop it first, with DELETE on the conversation's stream."
                    )
                return removed
        if self.in_progress:
            raise ReplyInProgress(
                "A reply is in progress: read it to its end, or stop it with DELETE on the conversation's stream, "
                "then send the message."
            )
        return []

    def check_owed(self) -> Message:
        """The message to answer, to replace or to join. Raises `NothingOwed`."""
        if self.last is None:
            raise NothingOwed("The conversation is empty: add a message first, then stream the reply.")
        if self.last.role == "assistant" and self.last.status in ("complete", "stopped"):
            raise NothingOwed(
                "The last message is answered already: add a message, or delete the reply to have another one."
            )
        return self.last

    def turns(self) -> Iterator[tuple[str, str]]:
        """The turns for upstream, (role, content) each: the system prompt, then the messages with content."""
        if (prompt := self.conversation.system_prompt) is not None:
            yield "system", prompt
        for message in self.messages.values():
            if message.status not in ("failed", "streaming") and (content := message.transcript.content):
                yield message.role, content

    def options(self) -> dict[str, Any]:
        """The options for upstream: the conversation's, overridden by the last question's; null removes an option."""
        question = self.last_question
        layers = (self.conversation.options, question.options if question else None)
        merged = {name: value for layer in layers if layer for name, value in json.loads(layer).items()}
        return {name: value for name, value in merged.items() if value is not None}


def _asked(question: Message) -> tuple[str, str | None, str]:
    options = json.loads(question.options) if question.options else None
    return question.transcript.content, question.model, _plain(options)


def _plain(options: Mapping[str, Any] | None) -> str:
    """The options as JSON, the same in whatever order their names come."""
    return json.dumps(options, sort_keys=True)


@dataclass(slots=True)
class Totals:
    """The counts of what a store holds, or the difference that a change makes to them."""

    conversations: int = 0
    messages: int = 0
    text: int = 0  # bytes of UTF-8: messages with their options and sources, prompts, titles and options that were set

    def add(self, more: "Totals", times: int = 1) -> None:
        """Add another's figures, or with `times` of -1 take them away."""
        self.conversations += times * more.conversations
        self.messages += times * more.messages
        self.text += times * more.text


@dataclass(frozen=True, slots=True)
class Change:
    """A change from one snapshot to another, at one moment. Every change is a splice of the tail.

    The first `kept` messages of the conversation stay, `removed` go, `added` come.
    """

    conversation_id: str
    before: Snapshot | None  # None: the conversation is new
    after: Snapshot | None  # None: it is deleted
    at: int = 0  # microseconds since 1970
    kept: int = 0
    removed: Sequence[Message] = ()
    added: Sequence[Message] = ()
    totals: Totals = field(default_factory=Totals)
    began: Message | None = None  # the reply that this begins
    ended: Message | None = None  # the reply, as it was, that was in progress and isn't any more

    @property
    def conversation(self) -> Conversation:
        """The conversation as it is after the change."""
        assert self.after is not None
        return self.after.conversation

    def then(self, next: "Change") -> "Change":
        """This change and the next one, which removes nothing, as one change."""
        assert next.before is self.after and not next.removed
        totals = replace(self.totals)
        totals.add(next.totals)
        added = (*self.added, *next.added)
        return replace(self, after=next.after, at=next.at, added=added, totals=totals, began=next.began)


def spliced(
    snapshot: Snapshot,
    at: int,
    *,
    removed: Sequence[Message] = (),
    added: Sequence[Message] = (),
) -> Change:
    """The change that puts `added` in the place of `removed`, the last messages."""
    staying = len(snapshot.messages) - len(removed)
    messages = {message.id: message for message in chain(islice(snapshot.messages.values(), staying), added)}
    first_line = snapshot.first_line
    if first_line is None or any(message.role == "user" for message in removed):
        first_line = _first_line(messages.values())
    totals = Totals(messages=len(added) - len(removed), text=text_size(added) - text_size(removed))
    kept = snapshot.conversation.message_count - len(removed)
    conversation = replace(
        snapshot.conversation,
        title=snapshot.own_title or first_line,
        message_count=kept + len(added),
        updated_at=iso(at),
    )
    after = replace(snapshot, conversation=conversation, first_line=first_line, messages=messages)
    began, ended = in_progress(added), in_progress(removed)
    return Change(conversation.id, snapshot, after, at, kept, removed, added, totals, began, ended)


def totals_of(snapshot: Snapshot) -> Totals:
    """The totals of one conversation with all its messages."""
    messages = list(snapshot.messages.values())
    return Totals(1, len(messages), head_size(snapshot.conversation, snapshot.own_title) + text_size(messages))


def in_progress(messages: Sequence[Message]) -> Message | None:
    """The reply in progress, which only the last message can be; None if it isn't."""
    return messages[-1] if messages and messages[-1].status == "streaming" else None


def iso(at: int) -> str:
    """Microseconds since 1970 as ISO 8601 in UTC."""
    return (_EPOCH + timedelta(microseconds=at)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def moment(text: str) -> int:
    """ISO 8601 as microseconds since 1970."""
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)


def _first_line(messages: Iterable[Message]) -> str | None:
    first = next((message for message in messages if message.role == "user"), None)
    lines = first.transcript.content.strip()[: TITLE_CHARS + 1].splitlines() if first else []
    return lines[0][:TITLE_CHARS].rstrip() or None if lines else None
