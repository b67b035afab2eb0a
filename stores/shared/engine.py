"""The engine that any number of relays share: Valkey or Redis keeps everything, and each relay only what it makes.

A change is one script, done only if the conversation is still what the change was made from. The text of a reply in
progress is a stream that its relay appends to and all others follow.
"""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar
from uuid import uuid4

from stores.changes import Change, Sums, head_size, iso, moment
from stores.engine import Engine, Slices
from stores.records import REPORTED, Conversation, Kind, Message, StoreError, StoreUnavailable
from stores.shared import starting
from stores.shared.appending import Appending, over
from stores.shared.following import BLOCK, Following, filled
from stores.shared.hashes import element_of, head_of, messages_of, pairs, thread_of
from stores.shared.line import ANSWERING, Argument, Line, Unheard
from stores.shared.place import Place
from stores.shared.presence import Presence
from stores.shared.scripts import COMMIT, COMMIT_ALWAYS, END, FENCE_OFF, HEADS, LOAD, SLICE, Keys
from stores.threads import Thread

SLICE_BYTES = 256 * 1024  # of messages that are read in one go, and a few messages more
ROUNDS = 20  # of reading a long conversation that changes meanwhile
LEAVING = 0.5  # seconds to say goodbye
HANGING_UP = 0.3  # seconds for connections to close

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Slice:
    """Some messages of a conversation that has `length` of them."""

    length: int
    version: str
    messages: list[Message]


class Shared(Engine):
    """Conversations on a server."""

    name = "valkey"
    forgets = False
    is_shared = True

    def __init__(self, url: str) -> None:
        self._place = Place.of(url)
        self._keys = Keys(self._place.prefix)
        self._clock = 0
        self._offset = 0  # microseconds by which the server's clock is ahead
        self.sums = Sums()

    async def open(self) -> list[tuple[str, str]]:
        await starting.check(self._place, self._keys)
        self._relay = uuid4().hex
        self._line = Line(self._place)
        self._listening = Line(self._place, ANSWERING + BLOCK, is_told=False)
        self._appending = Appending(self._line, self._keys, self.sums)
        self._following = Following(self._line, self._listening, self._keys, self._relay, self._appending.stop)
        self._presence = Presence(self._line, self._keys, self._relay, self._appending, self._following, self._on_sums)
        self._commits: set[asyncio.Task[Change | None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        await starting.first(self._presence.beat_once)
        self._tasks += [asyncio.create_task(self._presence.beat()), asyncio.create_task(self._following.listen())]
        return []

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(LEAVING):
                await asyncio.wait(self._tasks)
                await asyncio.gather(*self._commits, return_exceptions=True)
                self._line.ask("DEL", self._keys.of(f"in:{self._relay}"))
                await self._line.ask("HDEL", self._keys.of("relays"), self._relay)
        hanging_up = [asyncio.create_task(line.close()) for line in (self._listening, self._line)]
        await asyncio.wait(hanging_up, timeout=HANGING_UP)

    @property
    def is_reachable(self) -> bool:
        return not self._line.silent_for

    def now(self) -> int:
        self._clock = max(time.time_ns() // 1000 + self._offset, self._clock + 1)
        return self._clock

    async def page(self, limit: int, before: str | None) -> tuple[list[Conversation], str | None]:
        return await _within_patience(self._page(limit, before))

    async def _page(self, limit: int, before: str | None) -> tuple[list[Conversation], str | None]:
        highest = f"({moment(before)}" if before else "+inf"
        found = await self._line.ask(
            "ZREVRANGEBYSCORE", self._keys.of("list"), highest, "-inf", "WITHSCORES", "LIMIT", 0, limit + 1
        )
        page = [(entry.decode(), int(float(score))) for entry, score in pairs(found)]
        heads = await self._heads([id for id, _ in page[:limit]])
        there = [thread_of(id, head).conversation for id, head in heads.items() if head]
        return there, iso(page[limit - 1][1]) if len(page) > limit else None

    async def conversation(self, conversation_id: str) -> Conversation | None:
        heads = await _within_patience(self._heads([conversation_id]))
        return thread_of(conversation_id, head).conversation if (head := heads[conversation_id]) else None

    async def _heads(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """What is kept of each conversation itself; nothing for one that isn't there."""
        heads = json.loads(await self._line.run(HEADS, [self._keys.of(f"c:{id}") for id in ids]))
        return dict(zip(ids, heads, strict=True))

    async def thread(self, conversation_id: str, *, whole: bool = True, since: str | None = None) -> Thread | None:
        return await _within_patience(self._thread(conversation_id, whole, since or ""))

    async def _thread(self, conversation_id: str, whole: bool, since: str) -> Thread | None:
        keys = self._keys_of(conversation_id)
        most = SLICE_BYTES if whole else 0
        for _ in range(ROUNDS):
            loaded = await self._line.run(LOAD, keys, since, most)
            if loaded is None:
                return None
            head, latest_first = json.loads(loaded)
            latest = thread_of(conversation_id, head, list(latest_first)[::-1])
            earlier = await self._earlier(keys, latest) if whole else []
            if earlier is not None:
                messages = {message.id: message for message in earlier} | latest.messages
                return await self._with_reply(replace(latest, messages=messages))
        raise StoreUnavailable("The conversation changes too often to be read: try again in a moment.")

    async def _earlier(self, keys: Sequence[str], latest: Thread) -> list[Message] | None:
        """The messages before the latest; None if the conversation has changed meanwhile."""
        found: list[Message] = []
        count = latest.conversation.message_count - len(latest.messages)
        while len(found) < count:
            part = await self._slice(keys, len(found), count)
            if part is None or part.version != latest.version or not part.messages:
                return None
            found += part.messages
        return found

    async def _slice(self, keys: Sequence[str], start: int, stop: int = END) -> _Slice | None:
        """Some of the messages from `start` on and before `stop`; None if there is no such conversation."""
        found = await self._line.run(SLICE, keys[:2], start, stop, SLICE_BYTES)
        if found is None:
            return None
        length, version, elements = json.loads(found)
        return _Slice(length, version, messages_of(list(elements)))

    async def slices(self, conversation_id: str) -> Slices:
        keys, start, is_last = self._keys_of(conversation_id), 0, False
        while not is_last and (part := await _within_patience(self._slice(keys, start))):
            start += len(part.messages)
            is_last = not part.messages or start >= part.length
            part.messages[-1:] = [await _within_patience(self._with_text(last)) for last in part.messages[-1:]]
            yield part.messages, is_last

    async def _with_reply(self, thread: Thread) -> Thread:
        """With the text of the reply in progress, which grows if it is made here."""
        self._clock = max(self._clock, moment(thread.conversation.updated_at))
        if (reply := thread.in_progress) is None:
            return thread
        return replace(thread, messages=thread.messages | {reply.id: await self._with_text(reply)})

    async def _with_text(self, message: Message) -> Message:
        if message.status != "streaming":
            return message
        if making := self._appending.makes.get(message.id):
            return making.message
        return filled(message, await self._line.ask("XRANGE", self._keys.of(f"r:{message.id}"), "-", "+"))

    async def commit(self, change: Change) -> Change | None:
        committing = asyncio.create_task(self._commit(change))
        self._commits.add(committing)
        committing.add_done_callback(self._commits.discard)
        try:
            return await _within_patience(asyncio.shield(committing))
        except BaseException:
            committing.add_done_callback(self._unwanted)
            raise

    async def abandon(self, change: Change) -> Change | None:
        return await self.commit(change)

    def _unwanted(self, committing: "asyncio.Task[Change | None]") -> None:
        """Nobody waits for it any more, so nobody makes the reply that it may have begun."""
        if committing.cancelled() or committing.exception():
            return
        if (made := committing.result()) and made.began:
            self.leave(made.began.id)

    async def _commit(self, change: Change) -> Change | None:
        ended = change.ended
        stays = ended is not None and ended.id in {message.id for message in change.added}
        length = ended.transcript.length if ended and stays else END
        if ended and stays and ended.id not in self._appending.makes and await self._fenced(ended) > length:
            return None
        version = secrets.token_hex(8)
        makes_room = change.after is None or (change.removed and (stays or not change.added))
        script = COMMIT_ALWAYS if makes_room else COMMIT
        began = time.monotonic()
        try:
            answer = await self._line.run(script, self._commit_keys(change), *self._arguments(change, version, length))
        except Unheard:
            return await self._looked(change, version)
        if answer is None:
            return None
        at, server_time, *held = answer
        self._on_sums(int(server_time), held, took=time.monotonic() - began)
        return self._made(change, version, int(at))

    async def _fenced(self, reply: Message) -> int:
        """How long its text is, of which there will be no more: its relay can't append any."""
        return int(await self._line.run(FENCE_OFF, [self._keys.of(f"r:{reply.id}")]))

    async def _looked(self, change: Change, version: str) -> Change | None:
        """The change, if it was done unheard. Raises `StoreUnavailable` where that isn't known."""
        key = self._keys.of(f"c:{change.conversation_id}")
        found, at = await self._line.ask("HMGET", key, "version", "updated_at")
        if (found or b"").decode() != ("" if change.after is None else version):
            raise StoreUnavailable("The store couldn't be reached: try again in a moment.")
        return self._made(change, version, int(at or change.at))

    def _made(self, change: Change, version: str, at: int) -> Change:
        self._clock = max(self._clock, at)
        if ended := change.ended:
            self._appending.stop(ended.id)
            ended.transcript.close()
        if began := change.began:
            self._appending.start(change.conversation_id, began)
        if change.after is None:
            return replace(change, at=at)
        conversation = replace(change.after.conversation, updated_at=iso(at))
        if change.before is None:
            created_at = at - change.at + moment(conversation.created_at)
            conversation = replace(conversation, created_at=iso(created_at))
        return replace(change, at=at, after=replace(change.after, conversation=conversation, version=version))

    def _keys_of(self, conversation_id: str) -> list[str]:
        return [self._keys.of(f"{kind}:{conversation_id}") for kind in "cmq"]

    def _commit_keys(self, change: Change) -> list[str]:
        replies = (f"r:{message.id if message else ''}" for message in (change.began, change.ended))
        return [*self._keys_of(change.conversation_id), *map(self._keys.of, ("list", "sums", "running", *replies))]

    def _arguments(self, change: Change, version: str, length: int) -> list[Argument]:
        before, after = change.before, change.after
        text = _stored_size(change.added) - _stored_size(change.removed) + _head_size(after) - _head_size(before)
        arguments: list[Argument] = [
            before.version if before else "",
            version,
            change.at,
            "change" if after else "delete",
            change.kept,
            self._relay,
            self._keys.of("in:"),
            change.began.id if change.began else "",
            change.ended.id if change.ended else "",
            length,
            change.conversation_id,
            change.sums.messages,
            text,
            moment(after.conversation.created_at) if after else 0,
        ]
        fields = head_of(after) if after else []
        removed = [message.id for message in change.removed]
        added = [part for message in change.added for part in (message.id, element_of(message))] if after else []
        for group in (fields, removed, added):
            arguments += [len(group), *group]
        return arguments

    def _on_sums(self, server_time: int, held: Sequence[int], *, took: float = 0.0) -> None:
        if took < 1.0:
            self._offset = server_time - time.time_ns() // 1000
        self.sums.conversations, self.sums.messages, text = held
        self.sums.text = text + self._appending.text

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

    def report(self, message: Message) -> None:
        self._appending.report(message.id, json.dumps({name: getattr(message, name) for name in REPORTED}))

    async def follow(self, message: Message, is_wanted: Callable[[], bool]) -> bool:
        return await self._following.follow(message, is_wanted)

    def leave(self, message_id: str) -> None:
        self._appending.stop(message_id)
        self._presence.left.add(message_id)

    async def orphans(self) -> AsyncIterator[tuple[str, str]]:
        while True:
            yield await self._presence.orphans.get()


async def _within_patience(work: Awaitable[T]) -> T:
    """Whoever asked is answered within three seconds, whatever was waited for."""
    try:
        async with asyncio.timeout(ANSWERING):
            return await work
    except TimeoutError:
        raise StoreUnavailable("The store doesn't answer: try again in a moment.") from None
    except StoreUnavailable as error:
        raise StoreUnavailable(str(error)) from None  # what else it is matters here alone


def _stored_size(messages: Sequence[Message]) -> int:
    """Bytes of text that the server counts: not those of a reply in progress."""
    return sum(message.size for message in messages if message.status != "streaming")


def _head_size(thread: Thread | None) -> int:
    return head_size(thread.conversation, thread.own_title) if thread else 0
