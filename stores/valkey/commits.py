"""Changes of conversations: each is one script, done only if the conversation is still what it was made from.

Knows nothing of rules.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from stores.engine import Clock
from stores.records import Message, StoreUnavailable, head_size
from stores.reply import OwnReply
from stores.snapshot import Change, Snapshot, iso, moment
from stores.valkey.client import Argument, Client, OutcomeUnknown
from stores.valkey.keys import COMMIT, COMMIT_ALWAYS, END, FENCE_OFF, Keys, element_of, head_of
from stores.valkey.reader import within_patience
from stores.valkey.writer import ReplyWriter


class Commits:
    """`leave` is called with a reply that nobody makes though it was begun; `hold` with what the server holds."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        relay: str,
        writer: ReplyWriter,
        replies: dict[str, OwnReply],
        clock: Clock,
        hold: Callable[[Sequence[int]], None],
        leave: Callable[[str], None],
    ) -> None:
        self._client, self._keys, self._relay = client, keys, relay
        self._writer, self._replies = writer, replies
        self._clock, self._hold, self._leave = clock, hold, leave
        self._commits: set[asyncio.Task[Change | None]] = set()

    async def settled(self) -> None:
        """Wait for the changes that are on their way."""
        await asyncio.gather(*self._commits, return_exceptions=True)

    async def commit(self, change: Change) -> Change | None:
        """As `Engine.commit`; it goes on if the caller is cancelled."""
        committing = asyncio.create_task(self._commit(change))
        self._commits.add(committing)
        committing.add_done_callback(self._commits.discard)
        try:
            return await within_patience(asyncio.shield(committing))
        except BaseException:
            committing.add_done_callback(self._unwanted)
            raise

    def _unwanted(self, committing: "asyncio.Task[Change | None]") -> None:
        """Nobody waits for it any more, so nobody makes the reply that it may have begun."""
        if committing.cancelled() or committing.exception():
            return
        if (made := committing.result()) and made.began:
            self._leave(made.began.id)

    async def _commit(self, change: Change) -> Change | None:
        ended = change.ended
        stays = ended is not None and ended.id in {message.id for message in change.added}
        length = ended.transcript.kept if ended and stays else END
        if ended and stays and ended.id not in self._replies and await self._fenced(ended) > length:
            return None
        version = secrets.token_hex(8)
        makes_room = change.after is None or (change.removed and (stays or not change.added))
        script = COMMIT_ALWAYS if makes_room else COMMIT
        began = time.monotonic()
        try:
            answer = await self._client.run(script, self._all_keys(change), *self._arguments(change, version, length))
        except OutcomeUnknown:
            return await self._looked(change, version)
        if answer is None:
            return None
        at, server_time, *held = answer
        self._clock.hear(int(server_time), took=time.monotonic() - began)
        self._hold(held)
        return self._made(change, version, int(at))

    async def _fenced(self, reply: Message) -> int:
        """How long its text is, of which there will be no more: its relay can't append any."""
        return int(await self._client.run(FENCE_OFF, [self._keys.of(f"r:{reply.id}")]))

    async def _looked(self, change: Change, version: str) -> Change | None:
        """The change, if it was done unheard. Raises `StoreUnavailable` where that isn't known."""
        key = self._keys.of(f"c:{change.conversation_id}")
        found, at = await self._client.ask("HMGET", key, "version", "updated_at")
        if (found or b"").decode() != ("" if change.after is None else version):
            raise StoreUnavailable("The store couldn't be reached: try again in a moment.")
        return self._made(change, version, int(at or change.at))

    def _made(self, change: Change, version: str, at: int) -> Change:
        self._clock.advance(at)
        if ended := change.ended:
            self._writer.stop(ended.id)
            ended.transcript.close()
        if began := change.began:
            self._replies[began.id] = OwnReply(change.conversation_id, began)
        if change.after is None:
            return replace(change, at=at)
        conversation = replace(change.after.conversation, updated_at=iso(at))
        if change.before is None:
            created_at = at - change.at + moment(conversation.created_at)
            conversation = replace(conversation, created_at=iso(created_at))
        return replace(change, at=at, after=replace(change.after, conversation=conversation, version=version))

    def _all_keys(self, change: Change) -> list[str]:
        replies = (f"r:{message.id if message else ''}" for message in (change.began, change.ended))
        return [
            *self._keys.of_conversation(change.conversation_id),
            *map(self._keys.of, ("list", "totals", "running", *replies)),
        ]

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
            change.totals.messages,
            text,
            moment(after.conversation.created_at) if after else 0,
        ]
        fields = head_of(after) if after else []
        removed = [message.id for message in change.removed]
        added = [part for message in change.added for part in (message.id, element_of(message))] if after else []
        for group in (fields, removed, added):
            arguments += [len(group), *group]
        return arguments


def _stored_size(messages: Sequence[Message]) -> int:
    """Bytes of text that the server counts: not those of a reply in progress."""
    return sum(message.size for message in messages if message.status != "streaming")


def _head_size(snapshot: Snapshot | None) -> int:
    return head_size(snapshot.conversation, snapshot.own_title) if snapshot else 0
