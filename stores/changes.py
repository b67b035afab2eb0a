"""What a rule makes of a conversation: a change, which an engine carries out whole or not at all.

Knows nothing of rules and engines.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import chain, islice

from stores.records import Conversation, Message, byte_size
from stores.threads import Thread

TITLE_CHARS = 80

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Sums:
    """What a store holds, or by how much a change makes that more or less."""

    conversations: int = 0
    messages: int = 0
    text: int = 0  # bytes of UTF-8: messages with their options and sources, prompts, titles and options that were set

    def add(self, more: "Sums", times: int = 1) -> None:
        """Add another's figures, or with `times` of -1 take them away."""
        self.conversations += times * more.conversations
        self.messages += times * more.messages
        self.text += times * more.text


@dataclass(frozen=True, slots=True)
class Change:
    """From one thread to another, at one moment. Every change is a splice of the tail.

    The first `kept` messages of the conversation stay, `removed` go, `added` come.
    """

    before: Thread | None  # None: the conversation is new
    after: Thread | None  # None: it is deleted
    at: int = 0  # microseconds since 1970
    kept: int = 0
    removed: Sequence[Message] = ()
    added: Sequence[Message] = ()
    sums: Sums = field(default_factory=Sums)

    @property
    def conversation_id(self) -> str:
        """Whose messages these are."""
        thread = self.before or self.after
        assert thread is not None
        return thread.conversation.id

    @property
    def began(self) -> Message | None:
        """The reply that this begins, None if it begins none."""
        return self.added[-1] if self.added and self.added[-1].status == "streaming" else None

    @property
    def ended(self) -> Message | None:
        """The reply that was in progress and isn't any more, as it was; None if there was none."""
        return self.removed[-1] if self.removed and self.removed[-1].status == "streaming" else None

    def then(self, next: "Change") -> "Change":
        """This and a change of what it leads to, as one. `next` removes nothing."""
        assert next.before is self.after and not next.removed
        sums = replace(self.sums)
        sums.add(next.sums)
        return replace(self, after=next.after, at=next.at, added=(*self.added, *next.added), sums=sums)


def spliced(
    thread: Thread,
    at: int,
    *,
    removed: Sequence[Message] = (),
    added: Sequence[Message] = (),
) -> Change:
    """The last messages, `removed`, give way to `added`."""
    staying = len(thread.messages) - len(removed)
    messages = {message.id: message for message in chain(islice(thread.messages.values(), staying), added)}
    first_line = thread.first_line
    if first_line is None or any(message.role == "user" for message in removed):
        first_line = _first_line(messages.values())
    kept = thread.conversation.message_count - len(removed)
    conversation = replace(
        thread.conversation,
        title=thread.own_title or first_line,
        message_count=kept + len(added),
        updated_at=iso(at),
    )
    after = replace(thread, conversation=conversation, first_line=first_line, messages=messages)
    sums = Sums(messages=len(added) - len(removed), text=text_size(added) - text_size(removed))
    return Change(thread, after, at, kept, removed, added, sums)


def held(thread: Thread) -> Sums:
    """What a conversation with all its messages adds to a store."""
    messages = list(thread.messages.values())
    return Sums(1, len(messages), head_size(thread.conversation, thread.own_title) + text_size(messages))


def iso(at: int) -> str:
    """Microseconds since 1970 as ISO 8601 in UTC."""
    return (_EPOCH + timedelta(microseconds=at)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def moment(text: str) -> int:
    """ISO 8601 as microseconds since 1970."""
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)


def text_size(messages: Sequence[Message]) -> int:
    """Bytes of their text."""
    return sum(message.size for message in messages)


def head_size(conversation: Conversation, own_title: str | None) -> int:
    """Bytes of the text that a conversation has beside its messages."""
    return byte_size(own_title) + byte_size(conversation.system_prompt) + byte_size(conversation.options)


def _first_line(messages: Iterable[Message]) -> str | None:
    first = next((message for message in messages if message.role == "user"), None)
    lines = first.transcript.content.strip().splitlines() if first else []
    return lines[0][:TITLE_CHARS].rstrip() or None if lines else None
