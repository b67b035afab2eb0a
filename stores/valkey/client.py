"""One connection, over which commands are asked for one pipeline at a time; what comes meanwhile goes with the next.

Nothing is ever asked a second time by itself: what was done unheard and repeated would look like somebody else's doing.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from valkey.asyncio.connection import Connection
from valkey.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, ResponseError, ValkeyError

from stores.records import StoreFull, StoreUnavailable
from stores.valkey.server import ServerUrl

ANSWER_TIMEOUT = 3.0  # seconds

Argument = str | bytes | int

_CODES = {OutOfMemoryError: "OOM", ReadOnlyError: "READONLY", NoPermissionError: "NOPERM"}  # left out by the library
_ELSEWHERE = ("READONLY", "MOVED", "ASK", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "LOADING")  # ask another server


logger = logging.getLogger("store")


class OutcomeUnknown(StoreUnavailable):
    """The server can't be reached; it may have done what it was asked for."""


class Client:
    """A connection that is made when it is needed, and again when it has broken.

    `is_told`: whether the log says when it breaks, and what the server refuses.
    """

    def __init__(self, url: ServerUrl, answering: float = ANSWER_TIMEOUT, *, is_told: bool = True) -> None:
        self.loop = asyncio.get_running_loop()
        self._url = url
        self._answering = answering
        self._is_told = is_told
        self._refused: set[str] = set()  # codes of errors that were told of since it broke
        self._connection: Connection | None = None
        self._asked: list[tuple[Sequence[Argument], asyncio.Future[Any]]] = []
        self._asking: asyncio.Task[None] | None = None
        self._silent_since: float | None = None
        self._is_closed = False
        self.breaks = 0
        """How often it has broken."""

    @property
    def silent_for(self) -> float:
        """Seconds since it broke; 0.0 while it answers."""
        return 0.0 if self._silent_since is None else time.monotonic() - self._silent_since

    def ask(self, *command: Argument) -> asyncio.Future[Any]:
        """The answer; `StoreFull` where the server's memory is, else `StoreUnavailable`."""
        answer: asyncio.Future[Any] = self.loop.create_future()
        answer.add_done_callback(_retrieve)
        if self._is_closed:
            answer.set_exception(OutcomeUnknown(_AWAY))
            return answer
        self._asked.append((command, answer))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all())
        return answer

    def run(self, script: str, keys: Sequence[str], *arguments: Argument) -> asyncio.Future[Any]:
        """What a script answers."""
        return self.ask("EVAL", script, len(keys), *keys, *arguments)

    async def close(self) -> None:
        """What is asked for now isn't waited for, and nothing can be asked any more."""
        self._is_closed = True
        if self._asking:
            self._asking.cancel()
            await asyncio.wait({self._asking})
        await self._disconnect()

    async def _ask_all(self) -> None:
        try:
            while self._asked:
                asked, self._asked = self._asked, []
                await self._answer(asked)
        finally:
            self._asking = None

    async def _answer(self, asked: list[tuple[Sequence[Argument], asyncio.Future[Any]]]) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._answering):
                answers = await self._answers([command for command, _ in asked])
        except (OSError, TimeoutError, ValkeyError):
            self._breaks(began)
            await self._disconnect()
            answers = [OutcomeUnknown(_AWAY)] * len(asked)
        else:
            self._holds()
        for (_, answer), said in zip(asked, answers, strict=True):
            if answer.done():
                continue
            if isinstance(said, Exception):
                answer.set_exception(said)
            else:
                answer.set_result(said)

    def _breaks(self, began: float) -> None:
        if self._silent_since is None and self._is_told:
            logger.error("The server of STORE_URL can't be reached")
        self._silent_since = self._silent_since or began
        self._refused.clear()
        self.breaks += 1

    def _holds(self) -> None:
        if self._silent_since is not None and self._is_told:
            logger.warning("The server of STORE_URL answers again")
        self._silent_since = None

    async def _answers(self, commands: list[Sequence[Argument]]) -> list[Any]:
        if self._connection and await self._connection.can_read_destructive():  # it was closed: the server restarted
            await self._disconnect()
        if self._connection is None:
            self._connection = await self._url.connect()
        await self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
        answers = [await self._answer_of(self._connection) for _ in commands]
        if any(isinstance(answer, _Moved) for answer in answers):
            await self._disconnect()
        return answers

    async def _answer_of(self, connection: Connection) -> Any:
        try:
            return await connection.read_response()
        except ResponseError as error:
            self._tell_of(code := _code(error))
            if isinstance(error, OutOfMemoryError):
                return StoreFull(_FULL)
            return _Moved(_AWAY) if code in _ELSEWHERE else StoreUnavailable(_REFUSED)

    def _tell_of(self, code: str) -> None:
        if self._is_told and code not in self._refused:
            self._refused.add(code)
            logger.error("The server of STORE_URL refuses a command (%s)", code)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            await connection.disconnect(nowait=True)


class _Moved(StoreUnavailable):
    """Another server is the right one now."""


def _retrieve(answer: asyncio.Future[Any]) -> None:
    """Nobody has to want it."""
    if not answer.cancelled():
        answer.exception()


def _code(error: ResponseError) -> str:
    return _CODES.get(type(error)) or str(error).partition(" ")[0]


_AWAY = "The store can't be reached: try again in a moment."
_REFUSED = "The store's server refuses this for now: try again in a moment."
_FULL = "The store's server has no room (its maxmemory is reached): delete conversations, or raise it."
