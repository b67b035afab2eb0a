"""From the start to the exit: a uvicorn server that says where it listens, and at a signal finishes the replies, lets
readers take what is left, and goes.

Knows nothing of requests. uvicorn alone would stop listening at the signal, so that no probe could see the 503, would
wait for clients for ever, and would raise the signal again.
"""

import asyncio
import contextvars
import errno
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Protocol

import uvicorn

from settings import SettingsError

FLUSH_GRACE = 0.7  # in which readers must take some of what is left for them
EXIT_GRACE = 1.0  # for what was given up to end
SIGNAL_INTERVAL = 0.1  # seconds between two looks whether a signal has come during the start


BACKLOG = 2048  # connections that wait to be accepted
_Address = tuple[socket.AddressFamily, int, tuple[str | int | bytes, ...]]  # with the protocol's number

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
    ) -> None:
        super().__init__(config)
        self._before = before  # anything says that it has started
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
            await asyncio.wait({work}, timeout=SIGNAL_INTERVAL)
        if work.done():
            return work.result()
        work.cancel()
        await asyncio.wait({work}, timeout=EXIT_GRACE)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections, and say so: uvicorn says nothing of sockets that were bound before."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
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
        else:
            self._deadline = 0.0
            self._replies.cut()

    async def _drain(self) -> None:
        logger.info("Draining: %d replies in progress, %g s at most", self._replies.in_progress, self._grace)
        await self._replies.drain(self._grace)
        self.should_exit = True

    async def _cut_off(self) -> None:
        await self._flushed()
        self.lifespan.state["openrouter"].stop_fetching()
        await asyncio.sleep(FLUSH_GRACE / 10)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(EXIT_GRACE)
        self.force_exit = True

    async def _flushed(self) -> None:
        """Wait while readers take what is left for them, within the grace; `FLUSH_GRACE` are theirs in any case."""
        assert self._loop is not None
        unsent: list[int] = []
        until = self._loop.time() + FLUSH_GRACE
        while self._loop.time() < until:
            await asyncio.sleep(FLUSH_GRACE / 10)
            before = unsent
            unsent = [one.transport.get_write_buffer_size() for one in self.server_state.connections]
            if self._loop.time() < self._deadline and unsent != before:
                until = self._loop.time() + FLUSH_GRACE

    @property
    def _replies(self) -> _Replies:
        replies: _Replies = self.lifespan.state["replies"]
        return replies


def listen(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of the host; for port 0 all have the one that the system chooses.

    Raises `SettingsError` with a line that names HOST or PORT.
    """
    listening: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, protocol, (name, wanted, *scope) in _addresses(host.strip("[]"), port):
            chosen = listening[0].getsockname()[1] if listening else wanted
            try:
                listening.append(_bound((family, protocol, (name, chosen, *scope))))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error  # `localhost` has an address of IPv6 where the system has none
        if not listening and missing:
            raise missing
    except OSError as error:
        for one in listening:
            one.close()
        raise SettingsError(_reason(error, host, port)) from None
    return listening


def _addresses(host: str, port: int) -> list[_Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise SettingsError(
            f"HOST must be an address of this machine, such as 127.0.0.1: {host} can't be resolved."
        ) from None
    return list(dict.fromkeys((family, protocol, address) for family, _, protocol, _, address in found))


def _bound(at: _Address) -> socket.socket:
    family, protocol, address = at
    # Connections inherit the protocol's number, by which asyncio knows that TCP_NODELAY is to be set.
    one = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        if os.name == "posix" and sys.platform != "cygwin":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        one.listen(BACKLOG)  # now: two processes that only bind may both have the port
    except BaseException:
        one.close()
        raise
    return one


def _reason(error: OSError, host: str, port: int) -> str:
    other = f"Choose another, such as {port + 1 if 1024 <= port < 65535 else 8001}."
    if error.errno == errno.EADDRINUSE:
        return f"PORT must be a free port: {port} is taken (address already in use). {other}"
    if error.errno in (errno.EACCES, errno.EPERM) and port:
        return f"PORT must be one that this user may listen on: {port} isn't. {other}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"HOST must be an address of this machine, such as 127.0.0.1: {host} isn't one."
    return f"HOST must be an address to listen on, such as 127.0.0.1: {host} isn't one ({error.strerror})."
