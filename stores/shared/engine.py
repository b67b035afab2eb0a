"""The engine that any number of relays share: Valkey or Redis keeps everything, and each relay only what it makes.

A change is one script, done only if the conversation is still what the change was made from. The text of a reply in
progress is a stream that its relay appends to and all others follow.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from uuid import uuid4

from stores.changes import Change, Sums, moment
from stores.engine import Engine, Slices
from stores.records import REPORTED, Conversation, Ending, Kind, Message, StoreError, ended
from stores.shared import starting
from stores.shared.appending import Appending, over
from stores.shared.clock import Clock
from stores.shared.committing import Committing
from stores.shared.following import BLOCK, Following
from stores.shared.line import ANSWERING, Line
from stores.shared.place import Place
from stores.shared.presence import Presence
from stores.shared.reading import Reading
from stores.shared.scripts import Keys
from stores.threads import Thread

LEAVING = 0.3  # seconds to say goodbye
HANGING_UP = 0.3  # seconds for connections to close


class Shared(Engine):
    """Conversations on a server."""

    name = "valkey"
    forgets = False
    is_shared = True

    def __init__(self, url: str) -> None:
        self._place = Place.of(url)
        self._keys = Keys(self._place.prefix)
        self._clock = Clock()
        self.sums = Sums()

    async def open(self) -> list[tuple[str, str]]:
        await starting.check(self._place, self._keys)
        relay = self._relay = uuid4().hex
        line = self._line = Line(self._place)
        self._listening = Line(self._place, ANSWERING + BLOCK, is_told=False)
        self._appending = Appending(line, self._keys, self.sums)
        self._reading = Reading(line, self._keys, self._appending)
        self._committing = Committing(line, self._keys, relay, self._appending, self._clock, self._hold, self.leave)
        self._following = Following(line, self._listening, self._keys, relay, self._appending.stop)
        self._presence = Presence(line, self._keys, relay, self._appending, self._following, self._on_beat)
        self._tasks: list[asyncio.Task[None]] = []
        await starting.first(self._presence.beat_once)
        self._tasks += [asyncio.create_task(self._presence.beat()), asyncio.create_task(self._following.listen())]
        return []

    async def close(self) -> None:
        self._appending.close()
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(LEAVING):
                await asyncio.wait(self._tasks)
                await self._committing.settled()
                self._line.ask("DEL", self._keys.of(f"in:{self._relay}"))
                await self._line.ask("HDEL", self._keys.of("relays"), self._relay)
        hanging_up = [asyncio.create_task(line.close()) for line in (self._listening, self._line)]
        await asyncio.wait(hanging_up, timeout=HANGING_UP)

    @property
    def is_reachable(self) -> bool:
        return not self._line.silent_for

    def now(self) -> int:
        return self._clock.now()

    async def page(self, limit: int, before: str | None) -> tuple[list[Conversation], str | None]:
        return await self._reading.page(limit, before)

    async def conversation(self, conversation_id: str) -> Conversation | None:
        return await self._reading.conversation(conversation_id)

    async def thread(self, conversation_id: str, *, whole: bool = True, since: str | None = None) -> Thread | None:
        thread = await self._reading.thread(conversation_id, whole=whole, since=since)
        if thread:
            self._clock.advance(moment(thread.conversation.updated_at))
        return thread

    def slices(self, conversation_id: str) -> Slices:
        return self._reading.slices(conversation_id)

    async def commit(self, change: Change) -> Change | None:
        return await self._committing.commit(change)

    async def abandon(self, change: Change) -> Change | None:
        return await self._committing.commit(change)

    def interruption(self, message_id: str) -> asyncio.Future[StoreError]:
        if making := self._appending.makes.get(message_id):
            return making.interruption
        ended: asyncio.Future[StoreError] = asyncio.get_running_loop().create_future()
        ended.set_result(over())
        return ended

    async def extend(self, message_id: str, kind: Kind, text: str) -> None:
        await self._appending.extend(message_id, kind, text)

    async def settle(self, message_id: str) -> StoreError | None:
        return await self._appending.settle(message_id)

    def report(self, message: Message, so_far: Ending) -> None:
        known = ended(message, so_far)
        self._appending.report(message.id, json.dumps({name: getattr(known, name) for name in REPORTED}))

    async def follow(self, message: Message, is_wanted: Callable[[], bool]) -> bool:
        return await self._following.follow(message, is_wanted)

    def leave(self, message_id: str) -> None:
        self._appending.stop(message_id)
        self._presence.left.add(message_id)

    async def orphans(self) -> AsyncIterator[tuple[str, str]]:
        while True:
            yield await self._presence.orphans.get()

    def _on_beat(self, server_time: int, held: Sequence[int]) -> None:
        self._clock.hear(server_time)
        self._hold(held)

    def _hold(self, held: Sequence[int]) -> None:
        self.sums.conversations, self.sums.messages, text = held
        self.sums.text = text + self._appending.text
