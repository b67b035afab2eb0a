"""The engine that any number of relays share: Valkey or Redis keeps everything, a relay only the replies that it makes.

A change is one script, which does nothing if the conversation has another version by now. The text of a reply in
progress is a stream: the relay that makes the reply appends to it, and all others follow it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from uuid import uuid4

from stores.engine import Clock
from stores.records import StoreError
from stores.reply import OwnReply, Reply
from stores.snapshot import Change, Totals
from stores.valkey.client import ANSWER_TIMEOUT, Client, Relay
from stores.valkey.commits import Commits
from stores.valkey.follower import BLOCK_TIMEOUT, ReplyFollower
from stores.valkey.heartbeat import Heartbeat
from stores.valkey.keys import Keys
from stores.valkey.reader import Reader
from stores.valkey.server import ServerUrl, check, first
from stores.valkey.writer import ReplyWriter

GOODBYE_TIMEOUT = 0.3  # seconds for the last changes, and to take the sign of life away
CLOSE_TIMEOUT = 0.3  # seconds for connections to close


class Valkey(Reader):
    """Conversations on a server."""

    name = "valkey"
    forgets = False
    is_shared = True

    def __init__(self, url: str) -> None:
        self._url = ServerUrl.of(url)
        self._keys = Keys(self._url.prefix)
        self.clock, self.totals, self.replies = Clock(), Totals(), {}

    async def open(self) -> list[tuple[str, str]]:
        await check(self._url, self._keys)
        self._client = Client(self._url)
        self._listener = Client(self._url, ANSWER_TIMEOUT + BLOCK_TIMEOUT, is_logged=False)
        self._relay = Relay(uuid4().hex, self._client, self._keys, self.clock, self.totals, self.replies)
        self._writer = ReplyWriter(self._relay)
        self._commits = Commits(self._relay, self._writer, self.leave)
        self._follower = ReplyFollower(self._relay, self._listener, self._writer.stop)
        self._heartbeat = Heartbeat(self._relay, self._writer, self._follower)
        self._tasks: list[asyncio.Task[None]] = []
        await first(self._heartbeat.beat_once)
        self._tasks += [asyncio.create_task(self._heartbeat.beat()), asyncio.create_task(self._follower.listen())]
        return []

    async def close(self) -> None:
        self._writer.close()
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT):
                await asyncio.wait(self._tasks)
                await self._commits.wait_for_all()
                self._client.ask("DEL", self._keys.of(f"in:{self._relay.id}"))
                await self._client.ask("HDEL", self._keys.of("relays"), self._relay.id)
        closing = [asyncio.create_task(client.close()) for client in (self._listener, self._client)]
        await asyncio.wait(closing, timeout=CLOSE_TIMEOUT)

    @property
    def is_reachable(self) -> bool:
        return not self._client.silent_for

    async def commit(self, change: Change) -> Change | None:
        return await self._commits.commit(change)

    abandon = commit

    def keep(self, reply: OwnReply, *, at_once: bool = False) -> None:
        self._writer.keep(reply, at_once=at_once)

    async def settle(self, reply: OwnReply) -> StoreError | None:
        await self._writer.ended_elsewhere(reply)
        return await super().settle(reply)

    def report(self, reply: OwnReply) -> None:
        self._writer.report(reply)

    async def follow(self, reply: Reply, is_wanted: Callable[[], bool]) -> bool:
        return await self._follower.follow(reply, is_wanted)

    def leave(self, message_id: str) -> None:
        self._writer.stop(message_id)
        self._heartbeat.left.add(message_id)

    async def orphans(self) -> AsyncIterator[tuple[str, str]]:
        while True:
            yield await self._heartbeat.orphans.get()
