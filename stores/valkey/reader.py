"""The part of the engine that reads conversations from the server.

Knows nothing of changes.
"""

import asyncio
import json
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from stores.engine import Engine, Slices
from stores.records import Conversation, Message, StoreUnavailable, decode_report
from stores.snapshot import Snapshot, iso, moment
from stores.valkey.client import ANSWER_TIMEOUT, Relay
from stores.valkey.follower import KINDS, add
from stores.valkey.keys import END, HEADS, LOAD, SLICE, TEXT, messages_of, pairs, snapshot_of

SNAPSHOT_BYTES = 1024 * 1024  # of messages in one answer, which may have one message more
LONG_ANSWER = 64 * 1024  # bytes above which an answer is decoded in a step of its own
MAX_HEADS = 10  # conversations in one answer: the options of each may have 16 KiB
LIST_BYTES = 256 * 1024  # the same for a list of messages, which a client may read slowly
ROUNDS = 20  # attempts to read a long conversation that changes meanwhile

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Slice:
    """Some messages of a conversation that has `length` of them."""

    length: int
    version: str
    messages: list[Message]


class Reader(Engine):
    """Reads as `Engine` promises. The text of a reply that is made here is the text that readers see here."""

    _relay: Relay

    async def page(self, limit: int, before: str | None) -> tuple[list[Conversation], str | None]:
        return await within_patience(self._page(limit, before))

    async def _page(self, limit: int, before: str | None) -> tuple[list[Conversation], str | None]:
        highest = f"({moment(before)}" if before else "+inf"
        entries = await self._relay.client.ask(
            "ZREVRANGEBYSCORE", self._relay.keys.of("list"), highest, "-inf", "WITHSCORES", "LIMIT", 0, limit + 1
        )
        page = [(entry.decode(), int(float(score))) for entry, score in pairs(entries)]
        heads = await self._heads([id for id, _ in page[:limit]])
        conversations = [snapshot_of(id, head).conversation for id, head in heads.items() if head]
        return conversations, iso(page[limit - 1][1]) if len(page) > limit else None

    async def conversation(self, conversation_id: str) -> Conversation | None:
        heads = await within_patience(self._heads([conversation_id]))
        return snapshot_of(conversation_id, head).conversation if (head := heads[conversation_id]) else None

    async def _heads(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """The fields of each conversation; none for a conversation that isn't there."""
        keys = [self._relay.keys.of(f"c:{id}") for id in ids]
        answers = [self._relay.client.run(HEADS, keys[at : at + MAX_HEADS]) for at in range(0, len(keys), MAX_HEADS)]
        heads = [head for answer in answers for head in await self._decoded(answer)]
        return dict(zip(ids, heads, strict=True))

    async def _decoded(self, answer: Awaitable[bytes | None]) -> Any:
        """The decoded answer of a script. A long answer is decoded in a step of its own."""
        if (encoded := await answer) is None or len(encoded) <= LONG_ANSWER:
            return encoded and json.loads(encoded)
        await self._relay.steps.next()
        decoded = json.loads(encoded)
        await self._relay.steps.next()
        return decoded

    async def _messages(self, elements: Iterable[str]) -> list[Message]:
        return [message async for message in self._relay.steps.over(messages_of(list(elements)))]

    async def snapshot(self, conversation_id: str, *, whole: bool = True, since: str | None = None) -> Snapshot | None:
        snapshot = await within_patience(self._snapshot(conversation_id, whole, since or ""))
        if snapshot:
            self.clock.advance(moment(snapshot.conversation.updated_at))
        return snapshot

    async def _snapshot(self, conversation_id: str, whole: bool, since: str) -> Snapshot | None:
        keys = self._relay.keys.of_conversation(conversation_id)
        for _ in range(ROUNDS):
            loaded = await self._decoded(self._relay.client.run(LOAD, keys, since, int(whole), SNAPSHOT_BYTES))
            if loaded is None:
                return None
            head, latest_first, wanted = loaded
            snapshot, latest = snapshot_of(conversation_id, head), await self._messages([*latest_first][::-1])
            earlier = await self._earlier(keys, snapshot, wanted, len(latest))
            if earlier is not None:
                messages = {message.id: message for message in (*earlier, *latest)}
                return await self._with_reply(replace(snapshot, messages=messages))
        raise StoreUnavailable("The conversation changes too often to be read: try again in a moment.")

    async def _earlier(self, keys: Sequence[str], head: Snapshot, start: int, known: int) -> list[Message] | None:
        """The messages from `start` on before the latest, which are `known`; None after a change meanwhile."""
        earlier: list[Message] = []
        stop = head.conversation.message_count - known
        while start + len(earlier) < stop:
            part = await self._slice(keys, start + len(earlier), SNAPSHOT_BYTES, stop)
            if part is None or part.version != head.version or not part.messages:
                return None
            earlier += part.messages
        return earlier

    async def slices(self, conversation_id: str) -> Slices:
        keys, start, is_last = self._relay.keys.of_conversation(conversation_id), 0, False
        while not is_last and (part := await within_patience(self._slice(keys, start, LIST_BYTES))):
            start += len(part.messages)
            is_last = not part.messages or start >= part.length
            part.messages[-1:] = [await within_patience(self._with_text(last)) for last in part.messages[-1:]]
            yield part.messages, is_last

    async def _slice(self, keys: Sequence[str], start: int, most: int, stop: int = END) -> _Slice | None:
        """About `most` bytes of messages from `start` on and before `stop`; None if there is no such conversation."""
        answer = await self._decoded(self._relay.client.run(SLICE, keys[:2], start, stop, most))
        if answer is None:
            return None
        length, version, elements = answer
        return _Slice(length, version, await self._messages(elements))

    async def _with_reply(self, snapshot: Snapshot) -> Snapshot:
        """Add the text of the reply in progress, which grows if the reply is made here."""
        if (reply := snapshot.in_progress) is None:
            return snapshot
        return replace(snapshot, messages=snapshot.messages | {reply.id: await self._with_text(reply)})

    async def _with_text(self, message: Message) -> Message:
        if message.status != "streaming":
            return message
        if reply := self._relay.replies.get(message.id):
            return reply.message
        entry, report = "-", message.report
        while entry:
            answer = self._relay.client.run(TEXT, [self._relay.keys.of(f"r:{message.id}")], entry)
            runs, reported, last = await self._decoded(answer)
            for position, letter, text in runs:
                add(message.transcript, int(position), KINDS[letter], text)
            report = decode_report(json.loads(reported)) if reported else report
            entry = last and f"({last}"
        return replace(message, report=report)


async def within_patience(work: Awaitable[T]) -> T:
    """Wait for the work, at most `ANSWER_TIMEOUT` seconds. Raises `StoreUnavailable` after that."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            return await work
    except TimeoutError:
        raise StoreUnavailable("The store doesn't answer: try again in a moment.") from None
    except StoreUnavailable as error:
        raise StoreUnavailable(str(error)) from None  # its subclasses matter in this folder alone
