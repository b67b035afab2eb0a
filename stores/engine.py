"""What keeps conversations: what each engine promises to the store above it.

An engine knows no rule. It hands out snapshots of conversations, and makes a change if the conversation is still what
its snapshot says.
A reply's text is kept before it is shown: only what is kept is added to the transcript.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from stores.records import Conversation, Kind, Message, StoreError
from stores.reply import OwnReply, Reply
from stores.snapshot import Change, Snapshot, Totals

CLOCK_TIMEOUT = 1.0  # seconds after which a server's answer no longer tells what time it is
WRITE_INTERVAL = 0.016  # seconds between two writes of text
MAX_UNKEPT_CHARS = 256 * 1024  # of a reply, before its generation waits for the engine

Slices = AsyncGenerator[tuple[list[Message], bool], None]


class Clock:
    """Moments in microseconds since 1970, strictly increasing whatever the system's clock does.

    `updated_at` is the order and the cursor of the list of conversations.
    """

    def __init__(self) -> None:
        self._latest = 0
        self._offset = 0  # by which a server's clock is ahead of this one

    def now(self) -> int:
        """A moment later than any that was told."""
        self._latest = max(time.time_ns() // 1000 + self._offset, self._latest + 1)
        return self._latest

    def hear(self, server_time: int, *, took: float = 0.0) -> None:
        """Go by the server's clock, as it was in an answer that took so many seconds."""
        if took < CLOCK_TIMEOUT:
            self._offset = server_time - time.time_ns() // 1000

    def advance(self, at: int) -> None:
        """Tell only moments later than `at` from now on."""
        self._latest = max(self._latest, at)


class Engine(ABC):
    """One place where conversations live. Every coroutine may raise `StoreUnavailable`, which changes nothing."""

    name: str
    """As clients are told."""

    forgets: bool
    """Whether all is gone with the process."""

    is_shared = False
    """Whether other relays have the same conversations, and make replies in them."""

    totals: Totals
    """What it holds, with the changes and the texts that are on their way."""

    clock: Clock

    replies: dict[str, OwnReply]
    """The replies in progress that were begun here, by message."""

    @property
    @abstractmethod
    def is_reachable(self) -> bool:
        """Whether it answered when it was last asked."""

    @abstractmethod
    async def open(self) -> list[tuple[str, str]]:
        """Before anything else. The replies in progress that nobody makes, (conversation, message) each.

        Raises `SettingsError`.
        """

    @abstractmethod
    async def close(self) -> None:
        """After everything else; what was taken is kept."""

    @abstractmethod
    async def page(self, limit: int, before: str | None) -> tuple[list[Conversation], str | None]:
        """Newest `updated_at` first, and the `before` of the next page, None after the last."""

    @abstractmethod
    async def snapshot(self, conversation_id: str, *, whole: bool = True, since: str | None = None) -> Snapshot | None:
        """The conversation with its messages, None if it isn't there.

        An engine that has to fetch them may leave some out if not all are wanted. It always has the last one, and all
        from the message with the id `since` on, if there is one.
        """

    async def conversation(self, conversation_id: str) -> Conversation | None:
        """Without its messages, None if it isn't there."""
        snapshot = await self.snapshot(conversation_id, whole=False)
        return snapshot.conversation if snapshot else None

    async def slices(self, conversation_id: str) -> Slices:
        """The messages, oldest first, as many at a time as are at hand, and whether these are all that were left.

        At least one slice of a conversation that is there. What is changed meanwhile may be seen in a later one.
        """
        if snapshot := await self.snapshot(conversation_id):
            yield list(snapshot.messages.values()), True

    @abstractmethod
    async def commit(self, change: Change) -> Change | None:
        """Make it, whole or not at all: the change as it was made, or None if its snapshot isn't there as it was.

        It goes on if the caller is cancelled. Raises `StoreFull`.
        """

    async def extend(self, reply: OwnReply, kind: Kind, text: str) -> None:
        """Take text of a reply, to be kept and then shown; it waits while too much isn't kept yet.

        Raises the error for which the engine takes no more text: `NotFound` where the reply was ended.
        """
        if reply.refusal:
            raise reply.refusal
        transcript = reply.transcript
        self.totals.text += transcript.take(kind, text)
        self.keep(reply)
        while transcript.taken - transcript.kept > MAX_UNKEPT_CHARS:
            await reply.change()

    async def settle(self, reply: OwnReply) -> StoreError | None:
        """Wait until all text that was taken is kept; the error if some of it is lost."""
        while reply.transcript.taken > reply.transcript.kept:
            self.keep(reply, at_once=True)
            await reply.change()
        return reply.refusal if reply.has_lost_text else None

    @abstractmethod
    def keep(self, reply: OwnReply, *, at_once: bool = False) -> None:
        """Keep the text that was taken, soon; then `reply.keep` is called, or `reply.refuse` where it can't be kept."""

    def report(self, reply: OwnReply) -> None:  # noqa: B027
        """Tell other relays, if there are any, what upstream reports of a reply beside its text."""

    async def follow(self, reply: Reply, is_wanted: Callable[[], bool]) -> bool:
        """Add to a reply what its relay makes of it: True when it has ended, False once it isn't wanted any more."""
        raise AssertionError("every reply is made here")

    def leave(self, message_id: str) -> None:  # noqa: B027
        """A reply isn't made any more, and its end couldn't be told: it is among the `orphans` when it can be."""

    def orphans(self) -> AsyncIterator[tuple[str, str]]:
        """Replies in progress that nobody makes: (conversation, message) each.

        Where relays share them, told again until they have ended.
        """
        raise AssertionError("every reply is made here")

    @abstractmethod
    async def abandon(self, change: Change) -> Change | None:
        """As `commit`, of a reply's end that can't be kept now: it is shown, and kept when that is possible."""
