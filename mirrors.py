"""Mirrors: replies that another relay makes, followed here while they are read.

Knows nothing of HTTP, upstream or messages between relays. A relay follows a reply once, however many readers it has.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from logs import outline
from result import Stopped
from store import Store
from stores.records import Message, NotFound, StoreUnavailable, ended
from stores.reply import Reply

UNREAD_GRACE = 5.0  # seconds for which a mirror follows its reply without a reader

logger = logging.getLogger("replies")


class Mirror(Reply):
    """A reply that another relay makes, followed as long as somebody reads it."""

    def __init__(self, conversation_id: str, message: Message, follow: Callable[["Mirror"], None]) -> None:
        super().__init__(conversation_id, message)
        self.task: asyncio.Task[None] | None = None  # follows the reply
        self._follow = follow
        self._read_at = time.monotonic()

    @property
    def is_wanted(self) -> bool:
        """Whether the reply has readers, or had some just now."""
        is_waited_for = any(not waiter.done() for waiter in self._waiters)
        return is_waited_for or time.monotonic() - self._read_at < UNREAD_GRACE

    def change(self) -> asyncio.Future[None]:
        self._read_at = time.monotonic()
        self._follow(self)
        return super().change()

    def may_reach(self, position: int) -> bool:
        return not self.ended or super().may_reach(position)  # the mirror may only be late

    def lose(self) -> None:
        """Give up: this relay can't tell how the reply goes on."""
        self.is_lost = True
        self.wake()


class Mirrors:
    """All replies that are followed here, one mirror each."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._followed: dict[str, Mirror] = {}  # by message

    def drop(self) -> None:
        """Stop following: readers find out elsewhere how their replies go on."""
        for mirror in list(self._followed.values()):
            if mirror.task:
                mirror.task.cancel()

    def of(self, conversation_id: str, message: Message) -> Reply:
        """The mirror of this reply in progress. Starts following the reply if needed."""
        mirror = self._followed.get(message.id)
        if mirror is None:
            mirror = Mirror(conversation_id, message, self._follow)
            self._follow(mirror)
        mirror.transcript.catch_up(message.transcript)
        mirror.wake()
        return mirror

    def _follow(self, mirror: Mirror) -> None:
        if mirror.task or mirror.ended or mirror.is_lost:
            return
        self._followed[mirror.id] = mirror
        mirror.task = asyncio.create_task(self._run(mirror))
        mirror.task.add_done_callback(partial(self._on_done, mirror))

    async def _run(self, mirror: Mirror) -> None:
        message = mirror.message
        while await self._store.follow_reply(mirror, lambda: mirror.is_wanted):
            final = await self._final(mirror.conversation_id, message)
            if final.status != "streaming":
                return mirror.end(final)

    async def _final(self, conversation_id: str, message: Message) -> Message:
        with suppress(NotFound):
            if final := await self._store.message(conversation_id, message.id):
                return final
        return ended(message, Stopped())  # the message is deleted

    def _on_done(self, mirror: Mirror, task: asyncio.Task[None]) -> None:
        mirror.task = None
        if self._followed.get(mirror.id) is mirror:
            del self._followed[mirror.id]
        if task.cancelled() or (error := task.exception()):
            mirror.lose()
            if not task.cancelled() and not isinstance(error, StoreUnavailable):
                logger.error("reply %s could not be followed\n%s", mirror.id, outline(error))
