"""The promises of every engine, which keeps conversations, to the store above it.

An engine knows no rule. It returns snapshots of conversations, and commits a change if the conversation is still as the
snapshot of the change has it. Readers see the text of a reply only once the engine has kept it.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from stores.records import Conversation, Kind, Message, StoreError
from stores.reply import OwnReply, Reply
from stores.snapshot import Change, Snapshot, Totals

CLOCK_TIMEOUT = 1.0  # seconds after which an answer is too old to tell the server's time
WRITE_INTERVAL = 0.016  # seconds between two writes of text
MAX_UNKEPT_CHARS = 256 * 1024  # characters of a reply before its task waits for the engine

Slices = AsyncGenerator[tuple[list[Message], bool], None]


class Clock:
    """Strictly increasing moments in microseconds since 1970: `updated_at` is the order and the cursor of the list."""

    def __init__(self) -> None:
        self._latest = 0
        self._offset = 0  # microseconds by which the server's clock is ahead of this one

    def now(self) -> int:
        """A moment later than all moments before."""
        self._latest = max(time.time_ns() // 1000 + self._offset, self._latest + 1)
        return self._latest

    def hear(self, server_time: int, *, took: float = 0.0) -> None:
        """Follow the server's clock, whose time came in an answer that took so many seconds."""
        if took < CLOCK_TIMEOUT:
            self._offset = server_time - time.time_ns() // 1000

    def advance(self, at: int) -> None:
        """Return only moments later than `at` from now on."""
        self._latest = max(self._latest, at)


class Engine(ABC):
    """One place where conversations live. Every coroutine may raise `StoreUnavailable`, which changes nothing."""

    name: str  # the name that clients see
    forgets: bool  # whether the conversations are lost when the process ends
    is_shared = False  # whether other relays have the same conversations, and make replies in them
    clock: Clock
    totals: Totals  # the counts of what the engine holds, with the changes and texts that it is still writing
    replies: dict[str, OwnReply]  # the replies in progress that were begun here, by message

    @property
    @abstractmethod
    def is_reachable(self) -> bool:
        """Whether the engine answered the last time."""

    @abstractmethod
    async def open(self) -> list[tuple[str, str]]:
        """Open: the replies in progress that no relay makes, (conversation, message) each. Raises `SettingsError`."""

    @abstractmethod
    async def close(self) -> None:
        """Close, once all changes and texts that were taken are kept."""

    @abstractmethod
    async def page(self, limit: int, before: str | None) -> tuple[list[Conversation], str | None]:
        """A page, newest `updated_at` first, and the `before` of the next page, None after the last page."""

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
        """The messages, oldest first, a slice at a time, each with whether it is the last; no slice if it isn't there.

        A later slice may have changes that an earlier one hasn't.
        """
        if snapshot := await self.snapshot(conversation_id):
            yield list(snapshot.messages.values()), True

    @abstractmethod
    async def commit(self, change: Change) -> Change | None:
        """Make the change, whole or not at all: the change as made, None if the conversation isn't as it was.

        The commit goes on if the caller is cancelled. Raises `StoreFull`.
        """

    async def extend(self, reply: OwnReply, kind: Kind, text: str) -> None:
        """Take text, keep it, then show it. Waits while too much isn't kept; raises why no more text is taken."""
        if reply.refusal:
            raise reply.refusal
        transcript = reply.transcript
        self.totals.text += transcript.take(kind, text)
        self.keep(reply)
        while transcript.taken - transcript.kept > MAX_UNKEPT_CHARS:
            await reply.change()

    async def settle(self, reply: OwnReply) -> StoreError | None:
        """Wait until the engine has kept all text that it took; the error if some of it is lost."""
        while reply.transcript.taken > reply.transcript.kept:
            self.keep(reply, at_once=True)
            await reply.change()
        return reply.refusal if reply.has_lost_text else None

    @abstractmethod
    def keep(self, reply: OwnReply, *, at_once: bool = False) -> None:
        """Keep the text that was taken, soon; then `reply.keep` is called, or `reply.refuse` where it can't be kept."""

    def report(self, reply: OwnReply) -> None:  # noqa: B027
        """Send the report of a reply to other relays, if there are any."""

    async def follow(self, reply: Reply, is_wanted: Callable[[], bool]) -> bool:
        """Follow a reply that another relay makes: True when it has ended, False once it isn't wanted any more."""
        raise AssertionError("every reply is made here")

    def leave(self, message_id: str) -> None:  # noqa: B027
        """Give up a reply whose end couldn't be kept: `orphans` yields it once that is possible."""

    def orphans(self) -> AsyncIterator[tuple[str, str]]:
        """Replies in progress that no relay makes, (conversation, message) each; on shared engines until they end."""
        raise AssertionError("every reply is made here")

    @abstractmethod
    async def abandon(self, change: Change) -> Change | None:
        """Commit a reply's end that can't be kept now: show it, and keep it when that is possible."""
