"""One conversation with its messages, as it was at one moment, and what can be asked of it.

Knows nothing of limits, clocks or engines.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import dropwhile
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
)


@dataclass(frozen=True, slots=True)
class Thread:
    """A conversation, and its messages by id from the oldest on: all of them, or the latest.

    Never changed: what comes after it is another thread. Only the transcript of a reply in progress grows.
    """

    conversation: Conversation
    own_title: str | None = None  # None: the title is taken from the first question
    first_line: str | None = None  # of the first question there is
    messages: dict[str, Message] = field(default_factory=dict)
    version: str = ""  # by which an engine that shares its conversations knows it again

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
        return self.last if self.last is not None and self.last.status == "streaming" else None

    def check_is_new(self, question: Question) -> None:
        """Raises `Repeated` where the question is there already, `IdTaken` where its id is another message's."""
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
        """That message and every later one. Raises `NotFound`."""
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

    def turns(self) -> list[tuple[str, str]]:
        """What upstream is told, (role, content) each: the system prompt, then all that has content but failures."""
        prompt = self.conversation.system_prompt
        turns: list[tuple[str, str]] = [("system", prompt)] if prompt is not None else []
        answered = (message for message in self.messages.values() if message.status != "failed")
        return turns + [(message.role, content) for message in answered if (content := message.transcript.content)]

    def options(self) -> dict[str, Any]:
        """What upstream is asked with: the conversation's, and the last question's over it; null takes a name away."""
        question = self.last_question
        layers = (self.conversation.options, question.options if question else None)
        merged = {name: value for layer in layers if layer for name, value in json.loads(layer).items()}
        return {name: value for name, value in merged.items() if value is not None}


def _asked(question: Message) -> tuple[str, str | None, str]:
    options = json.loads(question.options) if question.options else None
    return question.transcript.content, question.model, _plain(options)


def _plain(options: Mapping[str, Any] | None) -> str:
    """The same for the same options, however their names are ordered."""
    return json.dumps(options, sort_keys=True)
