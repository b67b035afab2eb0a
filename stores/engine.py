"""What keeps conversations: what each engine promises to the store above it.

An engine knows no rule. It hands out snapshots of conversations, and makes a change if the conversation is still what
its snapshot says.
A reply's text is kept before it is shown: only what is kept is added to the transcript.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from stores.records import Conversation, Ending, Kind, Message, StoreError
from stores.snapshot import Change, Snapshot, Totals

Slices = AsyncGenerator[tuple[list[Message], bool], None]


class Engine(ABC):
    """One place where conversations live. Every coroutine may raise `StoreUnavailable`, which changes nothing."""

    name: str
    """As clients are told."""

    forgets: bool
    """Whether all is gone with the process."""

    is_shared = False
    """Whether other relays have the same conversations, and make replies in them."""

    totals: Totals
    """What it holds, with the changes that are on their way."""

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
    def now(self) -> int:
        """Microseconds since 1970, later than any moment that was told, and than the last change."""

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

    @abstractmethod
    def interruption(self, message_id: str) -> asyncio.Future[StoreError]:
        """Done when a reply that was begun here can't go on: others ended it, or its text can't be kept."""

    @abstractmethod
    async def extend(self, message_id: str, kind: Kind, text: str) -> None:
        """Take text of a reply that was begun here, to be kept and then shown; else the reply is interrupted.

        Raises `NotFound` where it has ended.
        """

    @abstractmethod
    async def settle(self, message_id: str) -> StoreError | None:
        """Wait until all text that was taken is kept; the error if some of it can't be."""

    def report(self, message: Message, so_far: Ending) -> None:  # noqa: B027
        """Tell other relays, if there are any, what is known of a reply that is made here, beside its text."""

    async def follow(self, message: Message, is_wanted: Callable[[], bool]) -> bool:
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
