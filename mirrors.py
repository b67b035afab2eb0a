"""Replies as their readers see them, and mirrors: those that another relay makes, followed here while they are read.

Knows nothing of HTTP, upstream or how a relay tells another. However many readers a reply has, it is followed once.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from logs import outline
from store import Ending, Message, NotFound, Store, StoreUnavailable, ended

UNREAD_GRACE = 5.0  # seconds after which a reply isn't followed for nobody

logger = logging.getLogger("replies")


class Reply:
    """One reply as its readers see it. `message` is in its final state once `ended` is true."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.ended = message.status != "streaming"
        self.is_lost = False
        """Whether it can't be told here how it goes on: its readers find out elsewhere, or later."""
        self._loop = asyncio.get_running_loop()
        self._waiters: list[asyncio.Future[None]] = []

    def change(self) -> asyncio.Future[None]:
        """Done when text has come or the reply has ended; each who waits has one, for who is cancelled cancels it."""
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        return waiter

    async def wait(self) -> Message:
        """The message in its final state."""
        while not self.ended:
            await self.change()
        return self.message

    def wake(self) -> None:
        """Let its readers take what has come."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def end(self, message: Message) -> None:
        """Nothing more comes; `message` is in its final state. Readers get what they lack of its text."""
        self.message.transcript.catch_up(message.transcript)
        self.message, self.ended = message, True
        self.wake()

    def may_reach(self, position: int) -> bool:
        """Whether a reader can be there: what is made here, or has ended, is known to its last character."""
        return position <= self.message.transcript.length


class Mirror(Reply):
    """A reply that another relay makes, followed as long as somebody reads it."""

    def __init__(self, conversation_id: str, message: Message, follow: Callable[["Mirror"], None]) -> None:
        super().__init__(message)
        message.transcript.on_growth = self.wake
        self.conversation_id = conversation_id
        self.task: asyncio.Task[None] | None = None  # that follows it
        self._follow = follow
        self._read_at = time.monotonic()

    @property
    def is_wanted(self) -> bool:
        """Whether it is read, or was just now."""
        is_waited_for = any(not waiter.done() for waiter in self._waiters)
        return is_waited_for or time.monotonic() - self._read_at < UNREAD_GRACE

    def change(self) -> asyncio.Future[None]:
        self._read_at = time.monotonic()
        self._follow(self)
        return super().change()

    def may_reach(self, position: int) -> bool:
        return not self.ended or super().may_reach(position)  # it may only be behind

    def lose(self) -> None:
        """Nobody can tell any more how it goes on."""
        self.is_lost = True
        self.wake()


class Mirrors:
    """All replies that are followed here, one mirror each."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._followed: dict[str, Mirror] = {}  # by message

    def drop(self) -> None:
        """Follow nothing any more: readers find out elsewhere how it goes on."""
        for mirror in list(self._followed.values()):
            if mirror.task:
                mirror.task.cancel()

    def of(self, conversation_id: str, message: Message) -> Reply:
        """That of this reply in progress, followed if it isn't yet."""
        mirror = self._followed.get(message.id)
        if mirror is None:
            mirror = Mirror(conversation_id, message, self._follow)
            self._follow(mirror)
        mirror.message.transcript.catch_up(message.transcript)
        return mirror

    def _follow(self, mirror: Mirror) -> None:
        if mirror.task or mirror.ended or mirror.is_lost:
            return
        self._followed[mirror.message.id] = mirror
        mirror.task = asyncio.create_task(self._mirrored(mirror))
        mirror.task.add_done_callback(partial(self._on_mirrored, mirror))

    async def _mirrored(self, mirror: Mirror) -> None:
        message = mirror.message
        while await self._store.follow_reply(message, lambda: mirror.is_wanted):
            final = await self._final(mirror.conversation_id, message)
            if final.status != "streaming":
                return mirror.end(final)

    async def _final(self, conversation_id: str, message: Message) -> Message:
        with suppress(NotFound):
            if found := await self._store.message(conversation_id, message.id):
                return found
        return ended(message, Ending("stopped"))  # deleted

    def _on_mirrored(self, mirror: Mirror, task: asyncio.Task[None]) -> None:
        mirror.task = None
        if self._followed.get(mirror.message.id) is mirror:
            del self._followed[mirror.message.id]
        if task.cancelled() or (error := task.exception()):
            mirror.lose()
            if not task.cancelled() and not isinstance(error, StoreUnavailable):
                logger.error("reply %s could not be followed\n%s", mirror.message.id, outline(error))
