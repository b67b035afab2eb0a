"""The engine that any number of relays share: Valkey or Redis keeps everything, and each relay only what it replies.

A change is one script, done only if the conversation is still what the change was made from. The text of a reply in
progress is a stream that its relay appends to and all others follow.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from uuid import uuid4

from stores.engine import Clock, Engine, Slices
from stores.records import Conversation, StoreError
from stores.reply import OwnReply, Reply
from stores.snapshot import Change, Snapshot, Totals, moment
from stores.valkey.client import ANSWER_TIMEOUT, Client
from stores.valkey.commits import Commits
from stores.valkey.follower import BLOCK_TIMEOUT, ReplyFollower
from stores.valkey.heartbeat import Heartbeat
from stores.valkey.keys import Keys
from stores.valkey.reader import Reader
from stores.valkey.server import ServerUrl, check, first
from stores.valkey.writer import ReplyWriter

GOODBYE_TIMEOUT = 0.3  # seconds to say goodbye
CLOSE_TIMEOUT = 0.3  # seconds for connections to close


class Valkey(Engine):
    """Conversations on a server."""

    name = "valkey"
    forgets = False
    is_shared = True

    def __init__(self, url: str) -> None:
        self._url = ServerUrl.of(url)
        self._keys = Keys(self._url.prefix)
        self.clock = Clock()
        self.totals = Totals()
        self.replies = {}

    async def open(self) -> list[tuple[str, str]]:
        await check(self._url, self._keys)
        relay = self._relay = uuid4().hex
        client = self._client = Client(self._url)
        self._listener = Client(self._url, ANSWER_TIMEOUT + BLOCK_TIMEOUT, is_told=False)
        self._writer = ReplyWriter(client, self._keys, self.replies, self.totals)
        self._reader = Reader(client, self._keys, self.replies)
        self._commits = Commits(
            client, self._keys, relay, self._writer, self.replies, self.clock, self._hold, self.leave
        )
        self._follower = ReplyFollower(client, self._listener, self._keys, relay, self._writer.stop)
        self._heartbeat = Heartbeat(
            client, self._keys, relay, self._writer, self.replies, self._follower, self._on_beat
        )
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
                await self._commits.settled()
                self._client.ask("DEL", self._keys.of(f"in:{self._relay}"))
                await self._client.ask("HDEL", self._keys.of("relays"), self._relay)
        closing = [asyncio.create_task(client.close()) for client in (self._listener, self._client)]
        await asyncio.wait(closing, timeout=CLOSE_TIMEOUT)

    @property
    def is_reachable(self) -> bool:
        return not self._client.silent_for

    async def page(self, limit: int, before: str | None) -> tuple[list[Conversation], str | None]:
        return await self._reader.page(limit, before)

    async def conversation(self, conversation_id: str) -> Conversation | None:
        return await self._reader.conversation(conversation_id)

    async def snapshot(self, conversation_id: str, *, whole: bool = True, since: str | None = None) -> Snapshot | None:
        snapshot = await self._reader.snapshot(conversation_id, whole=whole, since=since)
        if snapshot:
            self.clock.advance(moment(snapshot.conversation.updated_at))
        return snapshot

    def slices(self, conversation_id: str) -> Slices:
        return self._reader.slices(conversation_id)

    async def commit(self, change: Change) -> Change | None:
        return await self._commits.commit(change)

    async def abandon(self, change: Change) -> Change | None:
        return await self._commits.commit(change)

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

    def _on_beat(self, server_time: int, held: Sequence[int]) -> None:
        self.clock.hear(server_time)
        self._hold(held)

    def _hold(self, held: Sequence[int]) -> None:
        self.totals.conversations, self.totals.messages, text = held
        self.totals.text = text + sum(reply.transcript.size for reply in self.replies.values())
