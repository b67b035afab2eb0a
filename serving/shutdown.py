"""From the start to the exit: a uvicorn server that says where it listens, and at a signal finishes the replies, lets
readers take what is left, and goes.

Knows nothing of requests. uvicorn alone would stop listening at the signal, so that no probe could see the 503, would
wait for clients for ever, and would raise the signal again.
"""

import asyncio
import contextvars
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Protocol

import uvicorn

FLUSH_SECONDS = 0.7  # in which readers must take some of what is left for them
LAST_SECONDS = 1.0  # for what was given up to end
LOOKING = 0.1  # seconds between two looks whether a signal has come during the start

HURRY = getattr(signal, "SIGUSR1", signal.SIGTERM)  # Windows has none, and no forks that would need it
"""From the process that started this one, where it is one of several."""

logger = logging.getLogger("server")
uvicorn_logger = logging.getLogger("uvicorn.error")


class _Replies(Protocol):
    @property
    def in_progress(self) -> int: ...
    async def drain(self, grace: float) -> None: ...
    def cut(self) -> None: ...


class Server(uvicorn.Server):
    """The first signal drains the app and ends the server, a second one hurries.

    The app's lifespan yields `replies`, and `openrouter`, for whose models list requests may wait.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        grace: float,
        hint: str = "",
        before: Callable[[], Awaitable[None]] | None = None,
        until: int | None = None,
    ) -> None:
        super().__init__(config)
        self._before = before  # anything says that it has started
        self._until = until  # this descriptor is closed at its other end; then `HURRY` is the second signal
        self._grace = grace
        self._hint = hint  # what to do next, for whoever has started it
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.copy_context()  # a signal comes in the middle of some request's
        self._draining: asyncio.Task[None] | None = None
        self._deadline = 0.0

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Run until a signal, which may come early. Raises what `before` raises."""
        with self.capture_signals():
            if self._before:
                await self._until_a_signal(asyncio.ensure_future(self._before()))
            if not self.should_exit:
                await super().serve(sockets)

    async def _until_a_signal(self, work: asyncio.Future[None]) -> None:
        while not work.done() and not self.should_exit:
            await asyncio.wait({work}, timeout=LOOKING)
        if work.done():
            return work.result()
        work.cancel()
        await asyncio.wait({work}, timeout=LAST_SECONDS)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections, and say so: uvicorn says nothing of sockets that were bound before."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self._until is not None:
            self._loop.add_reader(self._until, self._on_closed)
            self._loop.add_signal_handler(HURRY, self._hurry)
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        for one in (sockets or [])[:1]:  # all have the same port
            uvicorn_logger.info("Uvicorn running on http://%s:%d (Press CTRL+C to quit)", host, one.getsockname()[1])
        if self._hint:
            print(self._hint, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal; it isn't raised again."""
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._on_signal, context=self._context)

    def _on_closed(self) -> None:
        assert self._loop is not None and self._until is not None
        self._loop.remove_reader(self._until)
        self._on_signal()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and wait for the connections as long as readers take what is left for them."""
        cutting_off = asyncio.create_task(self._cut_off())
        await super().shutdown(sockets)
        cutting_off.cancel()

    def _on_signal(self) -> None:
        assert self._loop is not None
        if self._draining is None:
            self._deadline = self._loop.time() + self._grace
            self._draining = self._loop.create_task(self._drain())
        elif self._until is None:
            self._hurry()

    def _hurry(self) -> None:
        self._deadline = 0.0
        self._replies.cut()

    async def _drain(self) -> None:
        logger.info("Draining: %d replies in progress, %g s at most", self._replies.in_progress, self._grace)
        await self._replies.drain(self._grace)
        self.should_exit = True

    async def _cut_off(self) -> None:
        await self._flushed()
        self.lifespan.state["openrouter"].stop_fetching()
        await asyncio.sleep(FLUSH_SECONDS / 10)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(LAST_SECONDS)
        self.force_exit = True

    async def _flushed(self) -> None:
        """Wait while readers take what is left for them, within the grace; `FLUSH_SECONDS` are theirs in any case."""
        assert self._loop is not None
        unsent: list[int] = []
        until = self._loop.time() + FLUSH_SECONDS
        while self._loop.time() < until:
            await asyncio.sleep(FLUSH_SECONDS / 10)
            before = unsent
            unsent = [one.transport.get_write_buffer_size() for one in self.server_state.connections]
            if self._loop.time() < self._deadline and unsent != before:
                until = self._loop.time() + FLUSH_SECONDS

    @property
    def _replies(self) -> _Replies:
        replies: _Replies = self.lifespan.state["replies"]
        return replies
