"""A reply in progress, shared by its readers, the task that makes it and the engine that keeps it.

Text is taken, then kept by the engine, then read: the transcript has a mark for each step. Knows nothing of engines.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from result import NO_REPORT, Ending, Failure, Outcome, Stopped
from stores.records import Message, NotFound, StoreError, StoreFull, Transcript

logger = logging.getLogger("replies")


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
        if message.transcript is not self.transcript:
            self.transcript.catch_up(message.transcript)
        self.message, self.ended = message, True
        self.wake()

    def may_reach(self, position: int) -> bool:
        """Whether a reader can have so many characters. All text of a reply that is made here is known."""
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
        self.report = NO_REPORT
        self.shared_report = NO_REPORT  # the part of the report that other relays have
        self.retries = 0
        self.started = time.monotonic()
        self.first_token = 0.0  # the time at which it came; 0 before

    def keep(self, position: int) -> None:
        """Let readers have the text up to `position`: the engine has kept it."""
        self.transcript.kept = position
        self.wake()

    def interrupt(self, reason: Ending | StoreError) -> None:
        """End the reply early, unless that has been done already."""
        if self.interruption is None:
            self.interruption = reason
            if self.task is not None:
                self.task.cancel()

    def refuse(self, error: StoreError) -> int:
        """Take no more text, forget what isn't kept, and end the reply: the bytes that were forgotten."""
        self.refusal = self.refusal or error
        self.interrupt(error)
        self.wake()
        forgotten = self.transcript.drop()
        self.has_lost_text = self.has_lost_text or forgotten > 0
        return forgotten

    def outcome(self, *, is_listed: bool) -> Outcome:
        """How the reply went, now that it has ended."""
        message, started = self.message, self.started
        first_token = self.first_token - started if self.first_token else None
        end = time.monotonic() - started
        model, failure = message.model or "", message.error
        return Outcome(model, is_listed, message.status, failure, self.report, self.retries, first_token, end)

    def log_end(self) -> None:
        """Log that the reply has ended: ids, counts and states, never its text."""
        message = self.message
        logger.log(
            logging.WARNING if message.error else logging.INFO,
            "%s streaming for conversation %s: reply %s, model %s, %.2f s, %d characters%s",
            {"complete": "Completed", "stopped": "Stopped"}.get(message.status, "Failed"),
            self.conversation_id,
            message.id,
            message.model,
            time.monotonic() - self.started,
            message.transcript.kept,
            f", code {message.error.code}, generation {message.report.generation_id}" if message.error else "",
        )


@dataclass(frozen=True, slots=True)
class BegunReply:
    """A reply that was begun just now, the turns that it answers, (role, content) each, and the options for it."""

    reply: OwnReply
    turns: Iterable[tuple[str, str]]
    options: Mapping[str, Any]


def over() -> NotFound:
    """The error of a reply that takes no more text."""
    return NotFound("The reply has ended, or was deleted.")


def ending_of(error: StoreError) -> Ending:
    """The ending of a reply whose text or end the store refuses."""
    if isinstance(error, NotFound):
        return Stopped()
    return Failure(507 if isinstance(error, StoreFull) else 503, str(error), retryable=True)
