"""Replies in progress: each has a task, which no connection owns, and any number of readers.

Knows nothing of HTTP or upstream's JSON. A reply ends once, in `_finish`: when upstream ends, when it is stopped or
deleted, at one of its limits, or at the end of a drain. Readers pull from the message's transcript with a position
of their own; nothing is queued for them.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from typing import Any

from logs import outline
from mirrors import Mirror, Mirrors
from openrouter import Delta, OpenRouter, Prompt, Retry, UpstreamError, Values
from result import Ending, Failure, Outcome, Report, Stopped
from settings import Settings
from store import Store
from stores.records import Message, Question, StoreError, StoreFull, StoreUnavailable, ended
from stores.reply import BegunReply, OwnReply, Reply, ending_of

ENDING_TIMEOUT = 10.0  # seconds for which a reply's end is offered to a store that can't take it
CUT_ENDING_TIMEOUT = 0.5  # the same in seconds while the service shuts down
CUT_GRACE = 0.8  # seconds for replies that were cut off to end
ENDING_RETRY_INTERVAL = 0.3  # seconds between two offers

_CRASHED = Failure(500, "The service failed; its log says where.", retryable=True)
_RESTARTING = Failure(503, "The service is restarting: ask again in a moment.", retryable=True)

_OnEnd = Callable[[Outcome], None]
_Begin = Callable[[], Awaitable[BegunReply | Message]]  # begins a reply, or returns the one that is there

logger = logging.getLogger(__name__)


class Unavailable(Exception):
    """No further reply can begin now. The text is a sentence for the client, `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Replies:
    """All replies in progress, at most one in a conversation. `on_end` is called with how each of them went."""

    def __init__(self, store: Store, openrouter: OpenRouter, settings: Settings, on_end: _OnEnd) -> None:
        self._store = store
        self._openrouter = openrouter
        self._settings = settings
        self._on_end = on_end
        self._running: dict[str, OwnReply] = {}  # by message
        self._mirrors = Mirrors(store)
        self._begins: dict[str, asyncio.Task[Reply]] = {}  # by conversation
        self._admitted = 0  # replies that the store is about to begin
        self._tasks: set[asyncio.Task[Any]] = set()
        self._draining_for: int | None = None  # seconds
        self._is_cut = False

    @property
    def in_progress(self) -> int:
        """The number of replies in progress."""
        return len(self._running)

    @property
    def draining(self) -> bool:
        """Whether the service is shutting down."""
        return self._draining_for is not None

    def check_open(self) -> None:
        """Raise `Unavailable` if the service takes no more questions."""
        if self._draining_for is not None:
            raise Unavailable("The service is restarting: try again in a moment.", max(1, self._draining_for))

    async def ask(self, conversation_id: str, question: Question) -> Reply:
        """Add a question and start its reply, both or neither. A repeated question has the reply that it had.

        Raises what `Store.ask` raises, and `Unavailable`.
        """
        while beginning := self._begins.get(conversation_id):
            await asyncio.wait({beginning})
        ask = partial(self._ask, conversation_id, question)
        return await self._started(conversation_id, ask, question.traceparent)

    async def start(self, conversation_id: str, model: str | None = None, traceparent: str | None = None) -> Reply:
        """The reply in progress, else the reply that is owed; requests that come together share it.

        Raises what `Store.begin_reply` raises, and `Unavailable`.
        """
        while beginning := self._begins.get(conversation_id):
            await asyncio.wait({beginning})
            if not beginning.exception() and await self._is_current(beginning.result()):
                return beginning.result()
        return await self._started(conversation_id, partial(self._owed, conversation_id, model), traceparent)

    async def find(self, conversation_id: str, message_id: str) -> Reply | None:
        """The reply with this message, in progress or not; None if there is none. Raises `NotFound`."""
        await self._wait_until_begun(conversation_id)
        return await self._find(conversation_id, message_id)

    async def in_progress_in(self, conversation_id: str) -> Reply | None:
        """The reply in progress in this conversation, None if there is none. Raises `NotFound`."""
        await self._wait_until_begun(conversation_id)
        message = await self._store.in_progress(conversation_id)
        return await self._reply_of(conversation_id, message) if message else None

    async def stop(self, conversation_id: str) -> Message | None:
        """Stop the reply in progress and keep its text; None if there is none. Raises `NotFound`."""
        await self._wait_until_begun(conversation_id)
        message = await self._store.in_progress(conversation_id)
        if message is None:
            return None
        if reply := self._running.get(message.id):
            reply.interrupt(Stopped())
            return await reply.wait()
        return await self._store.finish_reply(conversation_id, message.id, Stopped())

    async def drain(self, grace: float) -> None:
        """Take no new questions, give the replies in progress `grace` seconds, then end them."""
        self._draining_for = round(grace)
        await self._all_ended(grace)
        self.cut()
        await self._all_ended(CUT_GRACE)
        self._give_up()
        self._mirrors.drop()

    def cut(self) -> None:
        """End the replies in progress now, and those that are about to begin."""
        self._is_cut = True
        for reply in list(self._running.values()):
            reply.interrupt(_RESTARTING)

    def _give_up(self) -> None:
        """Stop waiting for a store that doesn't answer: another relay or the next start ends these replies."""
        for reply in self._running.values():
            if reply.finishing:
                reply.finishing.cancel()

    async def _all_ended(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._tasks and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait(self._tasks, timeout=left)

    async def _wait_until_begun(self, conversation_id: str) -> None:
        beginning = self._begins.get(conversation_id)
        if beginning and beginning is not asyncio.current_task():
            await asyncio.wait({beginning})

    async def _find(self, conversation_id: str, message_id: str) -> Reply | None:
        message = await self._store.message(conversation_id, message_id)
        if message is None or message.role != "assistant":
            return None
        return await self._reply_of(conversation_id, message)

    async def _reply_of(self, conversation_id: str, message: Message) -> Reply | None:
        """The reply of this message, None if it has been deleted meanwhile."""
        if reply := self._running.get(message.id):
            return reply
        if message.status != "streaming":
            return Reply(conversation_id, message)
        await self._wait_until_begun(conversation_id)  # this relay may be the one that is beginning it
        if reply := self._running.get(message.id):
            return reply
        if self._store.is_shared:
            return self._mirrors.of(conversation_id, message)
        # No relay makes this reply: its end couldn't be stored.
        final = await self._store.finish_reply(conversation_id, message.id, _CRASHED)
        return Reply(conversation_id, final) if final else None

    async def _started(self, conversation_id: str, begin: _Begin, traceparent: str | None) -> Reply:
        # The task outlives its request, which may be cancelled between the store's answer and the reply's first step.
        beginning: asyncio.Task[Reply] = self._own(self._begin(conversation_id, begin, traceparent))
        self._begins[conversation_id] = beginning
        beginning.add_done_callback(lambda _: self._begins.pop(conversation_id))
        await asyncio.wait({beginning})
        return beginning.result()

    async def _begin(self, conversation_id: str, begin: _Begin, traceparent: str | None) -> Reply:
        while True:
            begun = await begin()
            if isinstance(begun, BegunReply):
                return self._run(begun, traceparent)
            if reply := await self._find(conversation_id, begun.id):
                return reply
            # The reply was deleted after the store's answer: ask the store again.

    async def _ask(self, conversation_id: str, question: Question) -> BegunReply | Message:
        try:
            with self._admission():
                return await self._store.ask(conversation_id, question)
        except Unavailable:
            if reply := await self._store.reply_to(conversation_id, question):
                return reply  # a repeated reply needs no room
            return await self._ask_in_place(conversation_id, question)

    async def _ask_in_place(self, conversation_id: str, question: Question) -> BegunReply | Message:
        """Ask with the room of the reply that the question cuts off. Raises `Unavailable`."""
        in_progress = await self._store.in_progress(conversation_id) if question.after is not ... else None
        cut = self._running.get(in_progress.id) if in_progress else None
        with self._admission(in_place_of=cut):
            begun = await self._store.ask(conversation_id, question)
            if cut and isinstance(begun, BegunReply):
                await cut.wait()  # the new reply takes the room of this one
            return begun

    async def _is_current(self, reply: Reply) -> bool:
        """Whether the reply was in progress just now and isn't deleted: a repeated question returns an older reply."""
        if not isinstance(reply, OwnReply | Mirror):
            return False
        return await self._store.message(reply.conversation_id, reply.id) is not None

    async def _owed(self, conversation_id: str, model: str | None) -> BegunReply | Message:
        try:
            with self._admission():
                return await self._store.begin_reply(conversation_id, model)
        except Unavailable:
            last = await self._store.last_owed(conversation_id)
            if last.status != "streaming":
                raise
            return last  # a reader that joins needs no room

    @contextmanager
    def _admission(self, in_place_of: OwnReply | None = None) -> Iterator[None]:
        """Reserve room for one more reply while the store begins it. Raises `Unavailable`."""
        self.check_open()
        if len(self._running) + self._admitted - bool(in_place_of) >= self._settings.max_replies:
            raise Unavailable(
                f"Too many replies are in progress (MAX_REPLIES is {self._settings.max_replies}): "
                "try again when one has ended, or raise MAX_REPLIES.",
                retry_after=5,
            )
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    def _run(self, begun: BegunReply, traceparent: str | None) -> Reply:
        reply, message, conversation_id = begun.reply, begun.reply.message, begun.reply.conversation_id
        self._running[message.id] = reply
        prompt = Prompt(message.model or "", begun.turns, begun.options, conversation_id, traceparent)
        task = self._own(self._generate(reply, self._openrouter.stream(prompt)))
        task.add_done_callback(partial(self._on_generated, reply))
        reply.task = task
        logger.info("Streaming response for conversation %s with model %s", conversation_id, message.model)
        if self._is_cut:
            reply.interrupt(_RESTARTING)
        if reply.interruption:
            task.cancel()
        return reply

    async def _generate(self, reply: OwnReply, values: Values) -> Ending:
        seconds, room, extend = self._settings.reply_timeout, self._settings.max_reply_chars, self._store.extend_reply
        late = Failure(504, f"The reply took longer than REPLY_TIMEOUT ({seconds:g} s) allows.", retryable=True)
        expiry = asyncio.get_running_loop().call_later(seconds, reply.interrupt, late)
        try:
            async with aclosing(values):
                async for value in values:
                    if isinstance(value, Delta):
                        text = value.text if len(value.text) <= room else value.text[:room]
                        await extend(reply, value.kind, text)
                        reply.first_token = reply.first_token or time.monotonic()
                        room -= len(value.text)
                        if room < 0:
                            most = self._settings.max_reply_chars
                            message = f"The reply is longer than MAX_REPLY_CHARS ({most}), and cut off there."
                            return Failure(502, message, retryable=True)
                    elif isinstance(value, Report):
                        reply.report = value
                        if self._store.is_shared:
                            self._store.report_reply(reply)
                    elif isinstance(value, Retry):
                        reply.retries += 1
                    else:
                        return value
        finally:
            expiry.cancel()
        raise AssertionError("a stream of values ends with Finish or an exception")

    def _on_generated(self, reply: OwnReply, task: asyncio.Task[Ending]) -> None:
        # A callback, not a `finally` in the task: a task that is cancelled before its first step never runs its body.
        reply.finishing = self._own(self._finish(reply, self._ending(reply, task)))

    def _ending(self, reply: OwnReply, task: asyncio.Task[Ending]) -> Ending:
        if task.cancelled():
            reason = reply.interruption or _RESTARTING
            return ending_of(reason) if isinstance(reason, StoreError) else reason
        error = task.exception()
        match error:
            case None:
                return task.result()
            case UpstreamError():
                return error.failure
            case StoreError():
                return ending_of(error)
        logger.error("reply %s crashed\n%s", reply.id, outline(error))
        return _CRASHED

    async def _finish(self, reply: OwnReply, ending: Ending) -> None:
        try:
            message = await self._stored(reply, ending)
        except asyncio.CancelledError:
            self._end(reply, ended(reply.message, _RESTARTING))
            raise
        except Exception as error:
            logger.error("reply %s could not be stored\n%s", reply.id, outline(error))
            message = ended(reply.message, ending, reply.report)
        self._end(reply, message)

    def _end(self, reply: OwnReply, message: Message) -> None:
        del self._running[reply.id]
        reply.end(message)
        reply.log_end()
        self._on_end(reply.outcome(is_listed=self._openrouter.lists(reply.message.model or "")))

    async def _stored(self, reply: OwnReply, ending: Ending) -> Message:
        """Store the end of a reply: its message, failed where the store lacks text or can't take the end."""
        ids = reply.conversation_id, reply.id
        refusal = await self._store.settle_reply(reply)
        began = time.monotonic()
        while refusal is None:
            try:
                stored = await self._store.finish_reply(*ids, ending, reply.report)
                return stored or ended(reply.message, ending, reply.report)  # without a message the reply is deleted
            except StoreFull as error:
                refusal = error
            except StoreUnavailable as error:
                if time.monotonic() - began > (CUT_ENDING_TIMEOUT if self._is_cut else ENDING_TIMEOUT):
                    refusal = error
                else:
                    await asyncio.sleep(ENDING_RETRY_INTERVAL)
        refused, stored = ending_of(refusal), None
        with suppress(StoreUnavailable):  # the store keeps the ending as soon as it can
            stored = await self._store.abandon_reply(*ids, refused, reply.report)
        return stored or ended(reply.message, refused, reply.report)

    def _own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._disown)
        return task

    def _disown(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # mark the exception as retrieved: a caller that waits for the task has it, too
