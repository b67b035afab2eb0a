"""Conversations as the server has them: a page of them, one of them, its messages.

Knows nothing of changes.
"""

import asyncio
import json
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from stores.changes import iso, moment
from stores.engine import Slices
from stores.records import Conversation, Message, StoreUnavailable
from stores.shared.appending import Appending
from stores.shared.following import filled
from stores.shared.hashes import messages_of, pairs, thread_of
from stores.shared.line import ANSWERING, Line
from stores.shared.scripts import END, HEADS, LOAD, SLICE, Keys
from stores.threads import Thread

THREAD_BYTES = 1024 * 1024  # of messages that are read in one go, and a few messages more
LIST_BYTES = 256 * 1024  # the same, where a client may take its time
ROUNDS = 20  # of reading a long conversation that changes meanwhile

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Slice:
    """Some messages of a conversation that has `length` of them."""

    length: int
    version: str
    messages: list[Message]


class Reading:
    """As `Engine` promises it. A reply that is made here has the text that is shown here."""

    def __init__(self, line: Line, keys: Keys, appending: Appending) -> None:
        self._line, self._keys, self._appending = line, keys, appending

    async def page(self, limit: int, before: str | None) -> tuple[list[Conversation], str | None]:
        return await within_patience(self._page(limit, before))

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
        heads = await within_patience(self._heads([conversation_id]))
        return thread_of(conversation_id, head).conversation if (head := heads[conversation_id]) else None

    async def _heads(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """What is kept of each conversation itself; nothing for one that isn't there."""
        heads = json.loads(await self._line.run(HEADS, [self._keys.of(f"c:{id}") for id in ids]))
        return dict(zip(ids, heads, strict=True))

    async def thread(self, conversation_id: str, *, whole: bool = True, since: str | None = None) -> Thread | None:
        return await within_patience(self._thread(conversation_id, whole, since or ""))

    async def _thread(self, conversation_id: str, whole: bool, since: str) -> Thread | None:
        keys = self._keys.of_conversation(conversation_id)
        most = THREAD_BYTES if whole else 0
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
            part = await self._slice(keys, len(found), THREAD_BYTES, count)
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
        found = await self._line.run(SLICE, keys[:2], start, stop, most)
        if found is None:
            return None
        length, version, elements = json.loads(found)
        return _Slice(length, version, messages_of(list(elements)))

    async def _with_reply(self, thread: Thread) -> Thread:
        """With the text of the reply in progress, which grows if it is made here."""
        if (reply := thread.in_progress) is None:
            return thread
        return replace(thread, messages=thread.messages | {reply.id: await self._with_text(reply)})

    async def _with_text(self, message: Message) -> Message:
        if message.status != "streaming":
            return message
        if making := self._appending.makes.get(message.id):
            return making.message
        return filled(message, await self._line.ask("XRANGE", self._keys.of(f"r:{message.id}"), "-", "+"))


async def within_patience(work: Awaitable[T]) -> T:
    """Whoever asked is answered within three seconds, whatever was waited for."""
    try:
        async with asyncio.timeout(ANSWERING):
            return await work
    except TimeoutError:
        raise StoreUnavailable("The store doesn't answer: try again in a moment.") from None
    except StoreUnavailable as error:
        raise StoreUnavailable(str(error)) from None  # what else it is matters here alone
