"""A reply in progress, shared by its readers, the task that makes it and the engine that keeps it.

Text is taken, then kept by the engine, then read: the transcript has a mark for each step. Knows nothing of engines.
"""

import asyncio
import time
from typing import Any

from stores.records import Ending, Message, StoreError, Transcript
from upstream.values import Report


class Reply:
    """One reply as its readers see it. `message` is in its final state once `ended` is true."""

    def __init__(self, conversation_id: str, message: Message) -> None:
        self.conversation_id = conversation_id
        self.id = message.id
        self.message = message
        self.transcript: Transcript = message.transcript
        self.ended = message.status != "streaming"
        self.is_lost = False
        """Whether this relay can't tell how the reply goes on: its readers find out elsewhere, or later."""
        self._loop = asyncio.get_running_loop()
        self._waiters: list[asyncio.Future[None]] = []

    def change(self) -> asyncio.Future[None]:
        """A future that is done when text has come or the reply has ended.

        Each waiter has one of its own: cancelling one waiter must not cancel the others.
        """
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        return waiter

    async def wait(self) -> Message:
        """The message in its final state."""
        while not self.ended:
            await self.change()
        return self.message

    def wake(self) -> None:
        """Let all waiters look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def end(self, message: Message) -> None:
        """End the reply with `message`, its final state. Readers still get the text that they lack."""
        self.transcript.catch_up(message.transcript)
        self.message, self.ended = message, True
        self.wake()

    def may_reach(self, position: int) -> bool:
        """Whether a reader can have so many characters: a reply that is made here is known to its last one."""
        return position <= self.transcript.kept


class OwnReply(Reply):
    """A reply that this relay makes, with what only its maker needs. The engine creates it when it is begun."""

    def __init__(self, conversation_id: str, message: Message) -> None:
        super().__init__(conversation_id, message)
        self.refusal: StoreError | None = None
        """Why the engine takes no more text."""
        self.has_lost_text = False
        """Whether text was taken that the engine couldn't keep."""
        self.interruption: Ending | StoreError | None = None
        """Why the reply is ended early."""
        self.task: asyncio.Task[Ending] | None = None
        self.finishing: asyncio.Task[None] | None = None
        self.report = Report()
        self.retries = 0
        self.started = time.monotonic()
        self.first_token = 0.0  # the moment at which it came; 0 before

    def keep(self, position: int) -> None:
        """Let readers have the text up to `position`: the engine has kept it."""
        self.transcript.kept = position
        self.wake()

    def interrupt(self, reason: Ending | StoreError) -> None:
        """End the reply early, unless that has been done already."""
        if self.interruption is None:
            self.interruption = reason
            self.cancel()

    def cancel(self) -> None:
        """Cancel the task that makes the reply, if there is one that hasn't ended."""
        if self.task is not None:
            self.task.cancel()

    def refuse(self, error: StoreError) -> int:
        """Take no more text, forget what isn't kept, and end the reply: the bytes that were forgotten."""
        forgotten = self.transcript.drop()
        self.refusal = self.refusal or error
        self.has_lost_text = self.has_lost_text or forgotten > 0
        self.interrupt(error)
        self.wake()
        return forgotten

    def run(self, task: "asyncio.Task[Any]") -> None:
        """Have `task` make the reply, which may have been interrupted before."""
        self.task = task
        if self.interruption:
            self.cancel()
