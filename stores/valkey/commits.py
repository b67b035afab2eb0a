"""Changes of conversations: each is one script, which does nothing if the conversation has another version by now.

Knows nothing of rules.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from stores.records import Message, StoreUnavailable, head_size
from stores.reply import OwnReply
from stores.snapshot import Change, Snapshot, iso, moment
from stores.valkey.client import Argument, OutcomeUnknown, Relay
from stores.valkey.keys import COMMIT, COMMIT_ALWAYS, END, FENCE_OFF, element_of, head_of
from stores.valkey.reader import within_patience
from stores.valkey.writer import ReplyWriter


class Commits:
    """Commits changes. `leave` is called with a reply that was begun for a caller that has gone."""

    def __init__(self, relay: Relay, writer: ReplyWriter, leave: Callable[[str], None]) -> None:
        self._relay, self._writer, self._leave = relay, writer, leave
        self._commits: set[asyncio.Task[Change | None]] = set()

    async def wait_for_all(self) -> None:
        """Wait for the changes that are on their way."""
        await asyncio.gather(*self._commits, return_exceptions=True)

    async def commit(self, change: Change) -> Change | None:
        """Commit as `Engine.commit` promises."""
        committing = asyncio.create_task(self._commit(change))
        self._commits.add(committing)
        committing.add_done_callback(self._commits.discard)
        try:
            return await within_patience(asyncio.shield(committing))
        except BaseException:
            committing.add_done_callback(self._leave_reply)
            raise

    def _leave_reply(self, committing: "asyncio.Task[Change | None]") -> None:
        """Leave the reply that the change may have begun: its caller is gone, so nobody makes it."""
        if committing.cancelled() or committing.exception():
            return
        if (change := committing.result()) and change.began:
            self._leave(change.began.id)

    async def _commit(self, change: Change) -> Change | None:
        ended = change.ended
        stays = ended is not None and ended.id in {message.id for message in change.added}
        length = ended.transcript.kept if ended and stays else END
        if ended and stays and ended.id not in self._relay.replies and await self._fence(ended) > length:
            return None
        version = secrets.token_hex(8)
        makes_room = change.after is None or (change.removed and (stays or not change.added))
        script = COMMIT_ALWAYS if makes_room else COMMIT
        arguments = await self._arguments(change, version, length)
        began = time.monotonic()
        try:
            answer = await self._relay.client.run(script, self._keys(change), *arguments)
        except OutcomeUnknown:
            return await self._check_outcome(change, version)
        if answer is None:
            return None
        at, server_time, *totals = answer
        self._relay.hear(int(server_time), totals, took=time.monotonic() - began)
        return self._apply(change, version, int(at))

    async def _fence(self, reply: Message) -> int:
        """Let the relay that makes the reply append no more text: the length of the text."""
        return int(await self._relay.client.run(FENCE_OFF, [self._relay.keys.of(f"r:{reply.id}")]))

    async def _check_outcome(self, change: Change, version: str) -> Change | None:
        """The change, if the server has made it though its answer was lost. Raises `StoreUnavailable` otherwise."""
        key = self._relay.keys.of(f"c:{change.conversation_id}")
        stored, at = await self._relay.client.ask("HMGET", key, "version", "updated_at")
        if (stored or b"").decode() != ("" if change.after is None else version):
            raise StoreUnavailable("The store couldn't be reached: try again in a moment.")
        return self._apply(change, version, int(at or change.at))

    def _apply(self, change: Change, version: str, at: int) -> Change:
        self._relay.clock.advance(at)
        if ended := change.ended:
            self._writer.stop(ended.id)
            ended.transcript.close()
        if began := change.began:
            self._relay.replies[began.id] = OwnReply(change.conversation_id, began)
        if change.after is None:
            return replace(change, at=at)
        conversation = replace(change.after.conversation, updated_at=iso(at))
        if change.before is None:
            created_at = at - change.at + moment(conversation.created_at)
            conversation = replace(conversation, created_at=iso(created_at))
        return replace(change, at=at, after=replace(change.after, conversation=conversation, version=version))

    def _keys(self, change: Change) -> list[str]:
        replies = (f"r:{message.id if message else ''}" for message in (change.began, change.ended))
        names = ("list", "totals", "running", *replies)
        return [*self._relay.keys.of_conversation(change.conversation_id), *map(self._relay.keys.of, names)]

    async def _arguments(self, change: Change, version: str, length: int) -> list[Argument]:
        before, after = change.before, change.after
        text = _stored_size(change.added) - _stored_size(change.removed) + _head_size(after) - _head_size(before)
        fields = head_of(after) if after else []
        removed = [message.id for message in change.removed]
        messages = self._relay.steps.over(change.added if after else ())
        added = [part async for message in messages for part in (message.id, element_of(message))]
        return [
            before.version if before else "",
            version,
            change.at,
            "change" if after else "delete",
            change.kept,
            self._relay.id,
            self._relay.keys.of("in:"),
            change.began.id if change.began else "",
            change.ended.id if change.ended else "",
            length,
            change.conversation_id,
            change.totals.messages,
            text,
            moment(after.conversation.created_at) if after else 0,
            len(fields),
            *fields,
            len(removed),
            *removed,
            len(added),
            *added,
        ]


def _stored_size(messages: Sequence[Message]) -> int:
    """Bytes of text that the server counts, which leaves out a reply in progress."""
    return sum(message.size for message in messages if message.status != "streaming")


def _head_size(snapshot: Snapshot | None) -> int:
    return head_size(snapshot.conversation, snapshot.own_title) if snapshot else 0
