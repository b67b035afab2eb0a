"""From the signal to the exit: finish the replies, let readers take what is left, go.

Knows nothing of requests. uvicorn alone would stop listening at the signal, so that no probe could see the 503, would
wait for clients for ever, and would raise the signal again.
"""

import asyncio
import contextvars
import logging
import signal
from types import FrameType

import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from openrouter import OpenRouter
from replies import Replies
from serving.middleware import Connections

FLUSH_SECONDS = 0.7  # in which readers must take some of what is left for them
LAST_SECONDS = 1.0  # for requests that were given up to end

logger = logging.getLogger("server")


def uvicorn_server() -> uvicorn.Server | None:
    """The server that runs this app, if it is uvicorn in the main thread: its signal handler is a method of it."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if isinstance(server, uvicorn.Server) else None


class Shutdown:
    """While entered, the first signal drains the service and ends the server, and a second one hurries.

    Without a server it does nothing: then the end of the lifespan drains.
    """

    def __init__(
        self,
        server: uvicorn.Server | None,
        replies: Replies,
        openrouter: OpenRouter,
        connections: Connections,
        grace: float,
    ) -> None:
        self._server = server
        self._replies = replies
        self._openrouter = openrouter
        self._connections = connections
        self._grace = grace
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()  # a signal comes in the middle of some request's
        self._draining: asyncio.Task[None] | None = None
        self._deadline = 0.0

    def __enter__(self) -> None:
        numbers = HANDLED_SIGNALS if self._server else ()
        self._handlers = {number: signal.signal(number, self._on_signal) for number in numbers}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._draining is not None:
            self._draining.cancel()

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._drain_or_hurry, context=self._context)

    def _drain_or_hurry(self) -> None:
        if self._draining is None:
            self._deadline = self._loop.time() + self._grace
            self._draining = self._loop.create_task(self._drain())
        else:
            self._deadline = 0.0
            self._replies.cut()

    async def _drain(self) -> None:
        assert self._server is not None
        logger.info("draining: %d replies in progress, %g s at the most", self._replies.in_progress, self._grace)
        await self._replies.drain(self._grace)
        self._server.should_exit = True  # it stops listening, and exits as soon as all is answered
        await self._flushed()
        self._openrouter.stop_fetching()
        await asyncio.sleep(FLUSH_SECONDS / 10)
        self._connections.abort()
        for protocol in list(self._server.server_state.connections):
            protocol.transport.abort()
        await asyncio.sleep(LAST_SECONDS)
        self._server.force_exit = True

    async def _flushed(self) -> None:
        """Wait while readers take what is left for them, within the grace; `FLUSH_SECONDS` are theirs in any case."""
        assert self._server is not None
        unsent: list[int] = []
        until = self._loop.time() + FLUSH_SECONDS
        while self._loop.time() < until:
            await asyncio.sleep(FLUSH_SECONDS / 10)
            before = unsent
            unsent = [one.transport.get_write_buffer_size() for one in self._server.server_state.connections]
            if self._loop.time() < self._deadline and unsent != before:
                until = self._loop.time() + FLUSH_SECONDS
