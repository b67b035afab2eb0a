"""Replies in progress: one task each, which no connection owns, and any number of readers that follow it.

Knows nothing of HTTP or upstream's JSON. A reply ends once, in `_finish`: when upstream ends, when it is stopped or
deleted, at one of its limits, or at the end of a drain. Readers pull from the message's transcript with a position
of their own; nothing is queued for them.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from openrouter import Delta, Generation, OpenRouter, UpstreamError, Values
from serving.logs import outline
from store import Ending, Failure, Kind, Message, NotFound, OwedReply, Store, StoreFull, ended

MAX_READERS = 1_000  # of one reply
SLICE_CHARS = 16_384  # at the most in one event, so that a reader who lags needs little memory
WAKE_INTERVAL = 0.016  # seconds; a screen shows no more than 60 changes a second

logger = logging.getLogger(__name__)


class Unavailable(Exception):
    """No further reply now; its text is a sentence for the person who asked, `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Reply:
    """One reply as its readers see it. `message` is in its final state once `ended` is true."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.ended = message.status != "streaming"
        self.readers = 0
        self._changed = asyncio.Event()

    async def follow(self, position: int) -> AsyncGenerator[tuple[Kind, str], None]:
        """The text from `position` (in characters) on, as it comes, until the reply has ended."""
        while True:
            for kind, text in self.message.transcript.read(position, SLICE_CHARS):
                position += len(text)
                yield kind, text
            if position < self.message.transcript.length:
                continue
            if self.ended:
                return
            await self._changed.wait()

    @contextmanager
    def being_read(self) -> Iterator[None]:
        """By one reader more. Raises `Unavailable` where there are too many."""
        if self.readers >= MAX_READERS:
            raise Unavailable(f"The reply has {MAX_READERS} readers, more than that is not served.", retry_after=5)
        self.readers += 1
        logger.debug("reply %s: a reader joins", self.message.id)
        try:
            yield
        finally:
            self.readers -= 1
            logger.debug("reply %s: a reader leaves", self.message.id)

    async def wait(self) -> Message:
        """The message in its final state."""
        while not self.ended:
            await self._changed.wait()
        return self.message

    def wake(self) -> None:
        """Let its readers take what has come."""
        self._changed.set()  # those who wait now, and nobody else
        self._changed.clear()

    def end(self, message: Message) -> None:
        """Nothing more comes; `message` is in its final state."""
        self.message, self.ended = message, True
        self.wake()


class Pulse:
    """Wakes the readers of all replies together, once in `WAKE_INTERVAL`: what is done in one go is less work."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._next = 0.0  # of the loop's clock
        self._due: set[Reply] = set()

    def wake(self, reply: Reply) -> None:
        """At once, if nobody was woken for that long, else with the others."""
        if not self._due:
            now = self._loop.time()
            if now >= self._next:
                self._next = now + WAKE_INTERVAL
                return reply.wake()
            self._loop.call_at(self._next, self._wake_all)
        self._due.add(reply)

    def _wake_all(self) -> None:
        self._next = self._loop.time() + WAKE_INTERVAL
        due, self._due = self._due, set()
        for reply in due:
            reply.wake()


@dataclass(frozen=True, slots=True)
class ReplyLimits:
    """Each is named like the setting that decides it."""

    max_replies: int  # in progress
    max_reply_chars: int  # reasoning counts
    reply_timeout: float  # seconds


class _Running(Reply):
    """A reply in progress, with the task that makes it."""

    def __init__(self, conversation_id: str, message: Message) -> None:
        super().__init__(message)
        self.conversation_id = conversation_id
        self.task: asyncio.Task[Ending] | None = None
        self.generation_id: str | None = None
        self.ending: Ending | None = None  # why it was interrupted
        self.started = time.monotonic()

    def interrupt(self, ending: Ending) -> None:
        """End it early, in this way. The task is cancelled once at the most: httpx doesn't bear a second time."""
        if self.ending is None and self.task is not None and not self.task.done():
            self.ending = ending
            self.task.cancel()


class Replies:
    """All replies in progress, one a conversation at the most."""

    def __init__(self, store: Store, openrouter: OpenRouter, limits: ReplyLimits) -> None:
        self._store = store
        self._openrouter = openrouter
        self._limits = limits
        self._running: dict[str, _Running] = {}  # by message
        self._latest: dict[str, _Running] = {}  # of those, by conversation
        self._begins: dict[str, asyncio.Task[Reply]] = {}  # by conversation
        self._admitted = 0  # that the store is being asked to begin
        self._pulse = Pulse()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._draining_for: int | None = None  # seconds

    @property
    def in_progress(self) -> int:
        """How many there are."""
        return len(self._running)

    @property
    def draining(self) -> bool:
        """Whether the service is on its way out."""
        return self._draining_for is not None

    def check_open(self) -> None:
        """Raises `Unavailable` when no more questions are taken."""
        if self._draining_for is not None:
            raise Unavailable("The service is restarting: try again in a moment.", max(1, self._draining_for))

    async def ask(self, conversation_id: str, content: str, model: str | None, traceparent: str | None) -> Reply:
        """Add a question and start its reply, both or neither. Raises what `Store.ask` raises, and `Unavailable`."""
        while beginning := self._begins.get(conversation_id):
            await asyncio.wait({beginning})
        return await self._started(conversation_id, self._ask(conversation_id, content, model, traceparent))

    async def start(self, conversation_id: str, model: str | None = None, traceparent: str | None = None) -> Reply:
        """The reply in progress or, if there is none, the one that is owed; requests that come together share it.

        Raises what `Store.begin_reply` raises, and `Unavailable`.
        """
        while beginning := self._begins.get(conversation_id):
            await asyncio.wait({beginning})
            if not beginning.exception():
                return beginning.result()
        return await self._started(conversation_id, self._begin(conversation_id, model, traceparent))

    async def find(self, conversation_id: str, message_id: str) -> Reply | None:
        """The reply with this message, in progress or not; None if there is none. Raises `NotFound`."""
        await self._wait_until_begun(conversation_id)
        return await self._find(conversation_id, message_id)

    async def stop(self, conversation_id: str) -> Message | None:
        """Stop the reply in progress and keep its text; None if there is none."""
        await self._wait_until_begun(conversation_id)
        running = self._latest.get(conversation_id)
        if running is None:
            return None
        running.interrupt(Ending("stopped"))
        return await running.wait()

    async def forget(self, conversation_id: str, message_id: str) -> None:
        """End the reply whose message was deleted; its readers see it stopped."""
        await self._wait_until_begun(conversation_id)
        if running := self._running.get(message_id):
            running.interrupt(Ending("stopped"))
            await running.wait()

    async def drain(self, grace: float) -> None:
        """Take no new questions, give the replies in progress `grace` seconds, then end them."""
        self._draining_for = round(grace)
        await self._all_ended(grace)
        self.cut()
        await self._all_ended(1.0)

    def cut(self) -> None:
        """End the replies in progress now."""
        for running in list(self._running.values()):
            running.interrupt(_failed(503, "The service is restarting: ask again in a moment."))

    async def _all_ended(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._tasks and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait(self._tasks, timeout=left)

    async def _wait_until_begun(self, conversation_id: str) -> None:
        if beginning := self._begins.get(conversation_id):
            await asyncio.wait({beginning})

    async def _find(self, conversation_id: str, message_id: str) -> Reply | None:
        message = await self._store.message(conversation_id, message_id)
        if message is None or message.role != "assistant":
            return None
        if running := self._running.get(message_id):
            return running
        if message.status == "streaming":  # nobody makes it: the store couldn't be told how it had ended
            failed = _failed(500, "The service failed; its log says where.")
            message = await self._store.finish_reply(conversation_id, message_id, failed) or ended(message, failed)
        return Reply(message)

    async def _started(self, conversation_id: str, work: Coroutine[Any, Any, Reply]) -> Reply:
        # In a task of its own: whoever asks may go away between the store's answer and the reply's first step.
        beginning: asyncio.Task[Reply] = self._own(work)
        self._begins[conversation_id] = beginning
        beginning.add_done_callback(lambda _: self._begins.pop(conversation_id))
        await asyncio.wait({beginning})
        return beginning.result()

    async def _ask(self, conversation_id: str, content: str, model: str | None, traceparent: str | None) -> Reply:
        with self._admission():
            owed = await self._store.ask(conversation_id, content, model)
        assert owed.turns is not None, "a question that was just added has no reply in progress"
        return self._run(conversation_id, owed.message, owed.turns, traceparent)

    async def _begin(self, conversation_id: str, model: str | None, traceparent: str | None) -> Reply:
        while True:
            owed = await self._owed(conversation_id, model)
            if owed.turns is not None:
                return self._run(conversation_id, owed.message, owed.turns, traceparent)
            if reply := await self._find(conversation_id, owed.message.id):
                return reply
            # It was deleted after the store had told of it: look again what is owed.

    async def _owed(self, conversation_id: str, model: str | None) -> OwedReply:
        try:
            with self._admission():
                return await self._store.begin_reply(conversation_id, model)
        except Unavailable:
            last = await self._store.last_owed(conversation_id)
            if last.status != "streaming":
                raise
            return OwedReply(last)  # to join needs no room

    @contextmanager
    def _admission(self) -> Iterator[None]:
        """Room for one more reply, held while the store begins it. Raises `Unavailable`."""
        self.check_open()
        if len(self._running) + self._admitted >= self._limits.max_replies:
            raise Unavailable(
                f"Too many replies are in progress (MAX_REPLIES is {self._limits.max_replies}): "
                "try again when one has ended, or raise MAX_REPLIES.",
                retry_after=5,
            )
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    def _run(
        self, conversation_id: str, message: Message, turns: list[tuple[str, str]], traceparent: str | None
    ) -> Reply:
        running = _Running(conversation_id, message)
        self._running[message.id] = self._latest[conversation_id] = running
        values = self._openrouter.stream(message.model or "", turns, traceparent)
        running.task = self._own(self._generate(running, values))
        running.task.add_done_callback(partial(self._on_generated, running))
        logger.info(
            "streaming started: reply %s in conversation %s, model %s", message.id, conversation_id, message.model
        )
        return running

    async def _generate(self, running: _Running, values: Values) -> Ending:
        expiry = asyncio.get_running_loop().call_later(self._limits.reply_timeout, self._expire, running)
        try:
            return await self._copy(running, values)
        finally:
            expiry.cancel()

    async def _copy(self, running: _Running, values: Values) -> Ending:
        async with aclosing(values):
            async for value in values:
                if isinstance(value, Delta):
                    await self._extend(running, value)
                elif isinstance(value, Generation):
                    running.generation_id = value.id
                else:
                    return Ending("complete", value.finish_reason, value.usage)
        raise AssertionError("a stream of values ends with Finish or an exception")

    async def _extend(self, running: _Running, delta: Delta) -> None:
        message = running.message
        is_first = not message.transcript.length  # which nobody shall wait for
        room = self._limits.max_reply_chars - message.transcript.length
        await self._store.extend_reply(running.conversation_id, message.id, delta.kind, delta.text[:room])
        if is_first:
            running.wake()
        else:
            self._pulse.wake(running)
        if len(delta.text) > room:
            raise _TooLong

    def _expire(self, running: _Running) -> None:
        seconds = self._limits.reply_timeout
        running.interrupt(_failed(504, f"The reply took longer than REPLY_TIMEOUT ({seconds:g} s) allows."))

    def _on_generated(self, running: _Running, task: asyncio.Task[Ending]) -> None:
        # A callback, not a `finally` in the task: one that is cancelled before its first step never enters its body.
        self._own(self._finish(running, self._ending(running, task)))

    def _ending(self, running: _Running, task: asyncio.Task[Ending]) -> Ending:
        if task.cancelled():
            return running.ending or _failed(503, "The service is restarting: ask again in a moment.")
        error = task.exception()
        match error:
            case None:
                return task.result()
            case UpstreamError():
                failure = Failure(error.code, error.message, error.retryable, error.retry_after)
                return Ending("failed", error=failure)
            case NotFound():
                return Ending("stopped")
            case StoreFull():
                return _failed(507, str(error))
            case _TooLong():
                most = self._limits.max_reply_chars
                return _failed(502, f"The reply is longer than MAX_REPLY_CHARS ({most}) and was cut off there.")
        logger.error("reply %s crashed\n%s", running.message.id, outline(error))
        return _failed(500, "The service failed; its log says where.")

    async def _finish(self, running: _Running, ending: Ending) -> None:
        ending = replace(ending, generation_id=running.generation_id)
        message = None
        try:
            message = await self._store.finish_reply(running.conversation_id, running.message.id, ending)
        except Exception as error:
            logger.error("reply %s could not be stored\n%s", running.message.id, outline(error))
        del self._running[running.message.id]
        if self._latest.get(running.conversation_id) is running:
            del self._latest[running.conversation_id]
        running.end(message or ended(running.message, ending))
        _log_end(running)

    def _own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._disown)
        return task

    def _disown(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # so that it counts as retrieved: whoever waits for it has it


class _TooLong(Exception):
    """The reply passed MAX_REPLY_CHARS."""


def _failed(code: int, message: str) -> Ending:
    return Ending("failed", error=Failure(code, message, retryable=True))


def _log_end(running: _Running) -> None:
    message = running.message
    logger.log(
        logging.WARNING if message.error else logging.INFO,
        "streaming completed: reply %s in conversation %s, model %s, %.2f s, %d characters, status %s%s",
        message.id,
        running.conversation_id,
        message.model,
        time.monotonic() - running.started,
        message.transcript.length,
        message.status,
        f", code {message.error.code}, generation {message.generation_id}" if message.error else "",
    )
