"""A uvicorn server that logs where it listens. At a signal it finishes the replies, lets readers take their unsent
bytes, and exits.

This module knows nothing about requests. At a signal, uvicorn alone would stop listening, so that no probe could see
the 503, would wait for clients for ever, and would raise the signal again.
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

import uvicorn

from replies import Replies
from settings import SettingsError

FLUSH_GRACE = 0.7  # seconds within which a reader must take some of its unsent bytes
EXIT_GRACE = 1.0  # seconds that cancelled tasks and aborted connections have to end
SIGNAL_INTERVAL = 0.1  # seconds between two checks for a signal during the start
BACKLOG = 2048  # connections that may wait to be accepted
_Address = tuple[socket.AddressFamily, int, tuple[str | int | bytes, ...]]  # the int is the protocol's number

logger = logging.getLogger("server")
uvicorn_logger = logging.getLogger("uvicorn.error")


class Server(uvicorn.Server):
    """The first signal drains the app and stops the server; a second one ends the grace."""

    def __init__(
        self, config: uvicorn.Config, grace: float, hint: str = "", prepare: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        super().__init__(config)
        self._prepare = prepare  # runs before uvicorn logs that the server has started
        self._grace = grace
        self._hint = hint  # tells the person who started the server what to do next
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.copy_context()  # draining must not run in the context of some request
        self._draining: asyncio.Task[None] | None = None
        self._deadline = 0.0

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Run until a signal, which may arrive during `prepare`. Raises what `prepare` raises."""
        with self.capture_signals():
            if self._prepare:
                await self._run_until_signal(asyncio.ensure_future(self._prepare()))
            if not self.should_exit:
                await super().serve(sockets)

    async def _run_until_signal(self, work: asyncio.Future[None]) -> None:
        while not work.done() and not self.should_exit:
            await asyncio.wait({work}, timeout=SIGNAL_INTERVAL)
        if work.done():
            return work.result()
        work.cancel()
        await asyncio.wait({work}, timeout=EXIT_GRACE)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections and log the address: uvicorn logs none for sockets that are already bound."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        for first in (sockets or [])[:1]:  # all sockets have the same port
            uvicorn_logger.info("Uvicorn running on http://%s:%d (Press CTRL+C to quit)", host, first.getsockname()[1])
        if self._hint:
            print(self._hint, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Act on a signal; unlike uvicorn, don't raise it again after the shutdown."""
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._on_signal, context=self._context)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and keep connections open while readers take their unsent bytes."""
        cut_off = asyncio.create_task(self._cut_off())
        await super().shutdown(sockets)
        cut_off.cancel()

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
        await self._wait_for_readers()
        self.lifespan.state["openrouter"].stop_fetching()
        await asyncio.sleep(FLUSH_GRACE / 10)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(EXIT_GRACE)
        self.force_exit = True

    async def _wait_for_readers(self) -> None:
        """Wait while readers take their unsent bytes: at least `FLUSH_GRACE`, and no longer than the grace."""
        assert self._loop is not None
        unsent: list[int] = []
        end = self._loop.time() + FLUSH_GRACE
        while self._loop.time() < end:
            await asyncio.sleep(FLUSH_GRACE / 10)
            previous = unsent
            unsent = [connection.transport.get_write_buffer_size() for connection in self.server_state.connections]
            if self._loop.time() < self._deadline and unsent != previous:
                end = self._loop.time() + FLUSH_GRACE

    @property
    def _replies(self) -> Replies:
        replies: Replies = self.lifespan.state["replies"]
        return replies


def listen(host: str, port: int) -> list[socket.socket]:
    """Open a listening socket on each address of the host; with port 0, all get the port that the system chooses.

    Raises `SettingsError` with a line that names HOST or PORT.
    """
    listeners: list[socket.socket] = []
    last_error: OSError | None = None
    try:
        for family, protocol, (name, number, *scope) in _addresses(host.strip("[]"), port):
            same_port = listeners[0].getsockname()[1] if listeners else number
            try:
                listeners.append(_listener(family, protocol, (name, same_port, *scope)))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                last_error = error  # `localhost` may have an IPv6 address on a system without IPv6
        if not listeners and last_error:
            raise last_error
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise SettingsError(_reason(error, host, port)) from None
    return listeners


def _addresses(host: str, port: int) -> list[_Address]:
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        reason = f"{host} can't be resolved"
        raise SettingsError(f"HOST must be an address of this machine, such as 127.0.0.1: {reason}.") from None
    return list(dict.fromkeys((family, protocol, address) for family, _, protocol, _, address in entries))


def _listener(family: socket.AddressFamily, protocol: int, address: tuple[str | int | bytes, ...]) -> socket.socket:
    # Connections inherit the protocol's number; without it asyncio wouldn't set TCP_NODELAY on them.
    listener = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        if os.name == "posix" and sys.platform != "cygwin":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # listen now: two processes may bind one port, but only one can listen on it
    except BaseException:
        listener.close()
        raise
    return listener


def _reason(error: OSError, host: str, port: int) -> str:
    advice = f"Choose another, such as {port + 1 if 1024 <= port < 65535 else 8001}."
    if error.errno == errno.EADDRINUSE:
        return f"PORT must be a free port: {port} is taken (address already in use). {advice}"
    if error.errno in (errno.EACCES, errno.EPERM) and port:
        return f"PORT must be one that this user may listen on: {port} isn't. {advice}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"HOST must be an address of this machine, such as 127.0.0.1: {host} isn't one."
    return f"HOST must be an address to listen on, such as 127.0.0.1: {host} isn't one ({error.strerror})."
