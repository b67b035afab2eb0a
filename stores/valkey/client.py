"""One connection, which sends one pipeline of commands at a time; commands that come meanwhile go with the next one.

No command is ever repeated by itself: a repeated change whose first answer was lost would look like another relay's.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from valkey.asyncio.connection import Connection
from valkey.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, ResponseError, ValkeyError

from stores.engine import Clock
from stores.records import StoreFull, StoreUnavailable
from stores.reply import OwnReply
from stores.snapshot import Totals
from stores.steps import Steps
from stores.valkey.keys import Keys
from stores.valkey.server import ServerUrl

ANSWER_TIMEOUT = 3.0  # seconds for the answers to one pipeline

Argument = str | bytes | int

_CODES = {OutOfMemoryError: "OOM", ReadOnlyError: "READONLY", NoPermissionError: "NOPERM"}  # the library drops them
_ELSEWHERE = (
    "READONLY",
    "MOVED",
    "ASK",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "LOADING",
)  # another server is the right one

logger = logging.getLogger("store")


class OutcomeUnknown(StoreUnavailable):
    """The server can't be reached; it may have done what the command says."""


class Client:
    """A connection that opens when a command needs it, and again after it has broken.

    `is_logged`: whether the log says when it breaks, and which errors the server answers.
    """

    def __init__(self, url: ServerUrl, timeout: float = ANSWER_TIMEOUT, *, is_logged: bool = True) -> None:
        self.loop = asyncio.get_running_loop()
        self._url = url
        self._timeout = timeout
        self._is_logged = is_logged
        self._logged_codes: set[str] = set()  # codes of the errors that the log has since the last break
        self._connection: Connection | None = None
        self._commands: list[tuple[Sequence[Argument], asyncio.Future[Any]]] = []  # for the next pipeline
        self._sending: asyncio.Task[None] | None = None
        self._silent_since: float | None = None
        self._is_closed = False
        self.breaks = 0
        """How often the connection has broken."""

    @property
    def silent_for(self) -> float:
        """Seconds since the connection broke; 0.0 while the server answers."""
        return 0.0 if self._silent_since is None else time.monotonic() - self._silent_since

    def ask(self, *command: Argument) -> asyncio.Future[Any]:
        """A future of the answer. Its error is `StoreFull` where the server has no memory, else `StoreUnavailable`."""
        answer: asyncio.Future[Any] = self.loop.create_future()
        answer.add_done_callback(_retrieve)
        if self._is_closed:
            answer.set_exception(OutcomeUnknown(_AWAY))
            return answer
        self._commands.append((command, answer))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())
        return answer

    def run(self, script: str, keys: Sequence[str], *arguments: Argument) -> asyncio.Future[Any]:
        """A future of the answer of a script."""
        return self.ask("EVAL", script, len(keys), *keys, *arguments)

    async def close(self) -> None:
        """Fail the commands that wait for an answer, and all later ones."""
        self._is_closed = True
        if self._sending:
            self._sending.cancel()
            await asyncio.wait({self._sending})
        await self._disconnect()

    async def _send_all(self) -> None:
        try:
            while self._commands:
                commands, self._commands = self._commands, []
                await self._send(*zip(*commands, strict=True))
        finally:
            self._sending = None

    async def _send(self, commands: Sequence[Sequence[Argument]], answers: Sequence[asyncio.Future[Any]]) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                values = await self._values(commands)
        except (OSError, ValkeyError):
            self._on_break(began)
            await self._disconnect()
            values = [OutcomeUnknown(_AWAY)] * len(commands)
        else:
            self._on_answer()
        for answer, value in zip(answers, values, strict=True):
            if answer.done():
                continue
            if isinstance(value, Exception):
                answer.set_exception(value)
            else:
                answer.set_result(value)

    def _on_break(self, began: float) -> None:
        if self._silent_since is None and self._is_logged:
            logger.error("The server of STORE_URL can't be reached")
        self._silent_since = self._silent_since or began
        self._logged_codes.clear()
        self.breaks += 1

    def _on_answer(self) -> None:
        if self._silent_since is not None and self._is_logged:
            logger.warning("The server of STORE_URL answers again")
        self._silent_since = None

    async def _values(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        if self._connection and await self._connection.can_read_destructive():  # the server has closed it, in a restart
            await self._disconnect()
        if self._connection is None:
            self._connection = await self._url.connect()
        await self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
        values = [await self._value(self._connection) for _ in commands]
        if any(isinstance(value, _Moved) for value in values):
            await self._disconnect()
        return values

    async def _value(self, connection: Connection) -> Any:
        try:
            return await connection.read_response()
        except ResponseError as error:
            self._log(code := _code(error))
            if isinstance(error, OutOfMemoryError):
                return StoreFull(_FULL)
            return _Moved(_AWAY) if code in _ELSEWHERE else StoreUnavailable(_REFUSED)

    def _log(self, code: str) -> None:
        if self._is_logged and code not in self._logged_codes:
            self._logged_codes.add(code)
            logger.error("The server of STORE_URL refuses a command (%s)", code)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            await connection.disconnect(nowait=True)


@dataclass(frozen=True, slots=True)
class Relay:
    """This relay, with what all parts of the engine share."""

    id: str
    client: Client
    keys: Keys
    clock: Clock
    totals: Totals
    replies: dict[str, OwnReply]  # the replies in progress that were begun here, by message
    steps: Steps = field(default_factory=Steps)  # in which messages are decoded and encoded

    def hear(self, server_time: int, totals: Sequence[int], *, took: float = 0.0) -> None:
        """Take the time and the totals from an answer that took so many seconds."""
        self.clock.hear(server_time, took=took)
        self.totals.conversations, self.totals.messages, text = totals
        self.totals.text = text + sum(reply.transcript.size for reply in self.replies.values())


class _Moved(StoreUnavailable):
    """Another server is the right one now."""


def _retrieve(answer: asyncio.Future[Any]) -> None:
    """Mark the exception as retrieved: callers may drop the future."""
    if not answer.cancelled():
        answer.exception()


def _code(error: ResponseError) -> str:
    return _CODES.get(type(error)) or str(error).partition(" ")[0]


_AWAY = "The store can't be reached: try again in a moment."
_REFUSED = "The store's server refuses this for now: try again in a moment."
_FULL = "The store's server has no room (its maxmemory is reached): delete conversations, or raise it."
