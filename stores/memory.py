"""The engine that forgets: everything in dicts, each change in one step."""

from bisect import bisect_left

from stores.engine import Clock, Engine
from stores.records import Conversation
from stores.reply import OwnReply, over
from stores.snapshot import Change, Snapshot, Totals


class Memory(Engine):
    """Conversations in a dict, the one that changed last at its end."""

    name = "memory"
    forgets = True
    is_reachable = True

    def __init__(self) -> None:
        self.totals = Totals()
        self._snapshots: dict[str, Snapshot] = {}
        self.replies = {}
        self.clock = Clock()

    async def open(self) -> list[tuple[str, str]]:
        return []

    async def close(self) -> None:
        pass

    async def page(self, limit: int, before: str | None) -> tuple[list[Conversation], str | None]:
        by_update = [*self._snapshots.values()]
        end = len(by_update) if before is None else bisect_left(by_update, before, key=_updated_at)
        page = [snapshot.conversation for snapshot in by_update[max(0, end - limit) : end]][::-1]
        return page, page[-1].updated_at if end > limit else None

    async def snapshot(self, conversation_id: str, *, whole: bool = True, since: str | None = None) -> Snapshot | None:
        return self._snapshots.get(conversation_id)

    async def commit(self, change: Change) -> Change | None:
        if self._snapshots.get(change.conversation_id) is not change.before:
            return None
        self._apply(change)
        self.totals.add(change.totals)
        return change

    async def abandon(self, change: Change) -> Change | None:
        raise AssertionError("dicts can always keep an ending")

    def keep(self, reply: OwnReply, *, at_once: bool = False) -> None:
        reply.transcript.kept = reply.transcript.taken
        reply.wake()

    def _apply(self, change: Change) -> None:
        self.clock.advance(change.at)
        self._snapshots.pop(change.conversation_id, None)
        if change.after:
            self._snapshots[change.conversation_id] = change.after
        if ended := change.ended:
            self._stop(ended.id)
            ended.transcript.close()
        if began := change.began:
            self.replies[began.id] = OwnReply(change.conversation_id, began)

    def _stop(self, message_id: str) -> None:
        self.replies.pop(message_id).refuse(over())


def _updated_at(snapshot: Snapshot) -> str:
    return snapshot.conversation.updated_at
