"""Conversations as the server has them: a page of them, one of them, its messages.

Knows nothing of changes.
"""

import asyncio
import json
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from stores.engine import Slices
from stores.records import Conversation, Message, StoreUnavailable
from stores.reply import OwnReply
from stores.snapshot import Snapshot, iso, moment
from stores.valkey.client import ANSWER_TIMEOUT, Client
from stores.valkey.follower import filled
from stores.valkey.keys import END, HEADS, LOAD, SLICE, Keys, messages_of, pairs, snapshot_of

SNAPSHOT_BYTES = 1024 * 1024  # of messages that are read in one go, and a few messages more
LIST_BYTES = 256 * 1024  # the same, where a client may take its time
ROUNDS = 20  # of reading a long conversation that changes meanwhile

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Slice:
    """Some messages of a conversation that has `length` of them."""

    length: int
    version: str
    messages: list[Message]


class Reader:
    """As `Engine` promises it. A reply that is made here has the text that is shown here."""

    def __init__(self, client: Client, keys: Keys, replies: Mapping[str, OwnReply]) -> None:
        self._client, self._keys, self._replies = client, keys, replies

    async def page(self, limit: int, before: str | None) -> tuple[list[Conversation], str | None]:
        return await within_patience(self._page(limit, before))

    async def _page(self, limit: int, before: str | None) -> tuple[list[Conversation], str | None]:
        highest = f"({moment(before)}" if before else "+inf"
        found = await self._client.ask(
            "ZREVRANGEBYSCORE", self._keys.of("list"), highest, "-inf", "WITHSCORES", "LIMIT", 0, limit + 1
        )
        page = [(entry.decode(), int(float(score))) for entry, score in pairs(found)]
        heads = await self._heads([id for id, _ in page[:limit]])
        there = [snapshot_of(id, head).conversation for id, head in heads.items() if head]
        return there, iso(page[limit - 1][1]) if len(page) > limit else None

    async def conversation(self, conversation_id: str) -> Conversation | None:
        heads = await within_patience(self._heads([conversation_id]))
        return snapshot_of(conversation_id, head).conversation if (head := heads[conversation_id]) else None

    async def _heads(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """What is kept of each conversation itself; nothing for one that isn't there."""
        heads = json.loads(await self._client.run(HEADS, [self._keys.of(f"c:{id}") for id in ids]))
        return dict(zip(ids, heads, strict=True))

    async def snapshot(self, conversation_id: str, *, whole: bool = True, since: str | None = None) -> Snapshot | None:
        return await within_patience(self._snapshot(conversation_id, whole, since or ""))

    async def _snapshot(self, conversation_id: str, whole: bool, since: str) -> Snapshot | None:
        keys = self._keys.of_conversation(conversation_id)
        most = SNAPSHOT_BYTES if whole else 0
        for _ in range(ROUNDS):
            loaded = await self._client.run(LOAD, keys, since, most)
            if loaded is None:
                return None
            head, latest_first = json.loads(loaded)
            latest = snapshot_of(conversation_id, head, list(latest_first)[::-1])
            earlier = await self._earlier(keys, latest) if whole else []
            if earlier is not None:
                messages = {message.id: message for message in earlier} | latest.messages
                return await self._with_reply(replace(latest, messages=messages))
        raise StoreUnavailable("The conversation changes too often to be read: try again in a moment.")

    async def _earlier(self, keys: Sequence[str], latest: Snapshot) -> list[Message] | None:
        """The messages before the latest; None if the conversation has changed meanwhile."""
        found: list[Message] = []
        count = latest.conversation.message_count - len(latest.messages)
        while len(found) < count:
            part = await self._slice(keys, len(found), SNAPSHOT_BYTES, count)
            if part is None or part.version != latest.version or not part.messages:
                return None
            found += part.messages
        return found

    async def slices(self, conversation_id: str) -> Slices:
        keys, start, is_last = self._keys.of_conversation(conversation_id), 0, False
        while not is_last and (part := await within_patience(self._slice(keys, start, LIST_BYTES))):
            start += len(part.messages)
            is_last = not part.messages or start >= part.length
            part.messages[-1:] = [await within_patience(self._with_text(last)) for last in part.messages[-1:]]
            yield part.messages, is_last

    async def _slice(self, keys: Sequence[str], start: int, most: int, stop: int = END) -> _Slice | None:
        """About `most` bytes of messages from `start` on and before `stop`; None if there is no such conversation."""
        found = await self._client.run(SLICE, keys[:2], start, stop, most)
        if found is None:
            return None
        length, version, elements = json.loads(found)
        return _Slice(length, version, messages_of(list(elements)))

    async def _with_reply(self, snapshot: Snapshot) -> Snapshot:
        """With the text of the reply in progress, which grows if it is made here."""
        if (reply := snapshot.in_progress) is None:
            return snapshot
        return replace(snapshot, messages=snapshot.messages | {reply.id: await self._with_text(reply)})

    async def _with_text(self, message: Message) -> Message:
        if message.status != "streaming":
            return message
        if reply := self._replies.get(message.id):
            return reply.message
        return filled(message, await self._client.ask("XRANGE", self._keys.of(f"r:{message.id}"), "-", "+"))


async def within_patience(work: Awaitable[T]) -> T:
    """Whoever asked is answered within three seconds, whatever was waited for."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            return await work
    except TimeoutError:
        raise StoreUnavailable("The store doesn't answer: try again in a moment.") from None
    except StoreUnavailable as error:
        raise StoreUnavailable(str(error)) from None  # what else it is matters here alone
