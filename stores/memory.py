"""The engine that forgets: everything in dicts, each change in one step."""

import asyncio
import time
from dataclasses import dataclass
from itertools import islice

from stores.engine import Engine
from stores.records import Conversation, Kind, Message, NotFound, StoreError, Transcript, byte_size
from stores.snapshot import Change, Snapshot, Totals


@dataclass(slots=True)
class Growing:
    """A reply in progress."""

    transcript: Transcript
    interruption: asyncio.Future[StoreError]

    def interrupt(self, error: StoreError) -> None:
        """Tell whoever makes it, once."""
        if not self.interruption.done():
            self.interruption.set_result(error)


class Memory(Engine):
    """Conversations in a dict, the one that changed last at its end."""

    name = "memory"
    forgets = True
    is_reachable = True

    def __init__(self) -> None:
        self.totals = Totals()
        self._snapshots: dict[str, Snapshot] = {}
        self._growing: dict[str, Growing] = {}  # by message
        self._clock = 0

    async def open(self) -> list[tuple[str, str]]:
        return []

    async def close(self) -> None:
        pass

    def now(self) -> int:
        # Strictly increasing, whatever the system's clock does: `updated_at` is the order and the cursor of the list.
        self._clock = max(time.time_ns() // 1000, self._clock + 1)
        return self._clock

    async def page(self, limit: int, before: str | None) -> tuple[list[Conversation], str | None]:
        newest_first = (snapshot.conversation for snapshot in reversed(self._snapshots.values()))
        older = (entry for entry in newest_first if before is None or entry.updated_at < before)
        page = list(islice(older, limit + 1))
        return page[:limit], page[limit - 1].updated_at if len(page) > limit else None

    async def snapshot(self, conversation_id: str, *, whole: bool = True, since: str | None = None) -> Snapshot | None:
        return self._snapshots.get(conversation_id)

    async def commit(self, change: Change) -> Change | None:
        if self._snapshots.get(change.conversation_id) is not change.before:
            return None
        self.totals.add(change.totals)
        self._apply(change)
        return change

    def interruption(self, message_id: str) -> asyncio.Future[StoreError]:
        if growing := self._growing.get(message_id):
            return growing.interruption
        ended: asyncio.Future[StoreError] = asyncio.get_running_loop().create_future()
        ended.set_result(over())
        return ended

    async def extend(self, message_id: str, kind: Kind, text: str) -> None:
        growing = self._growing.get(message_id)
        if growing is None:
            raise over()
        self.totals.text += byte_size(text)
        growing.transcript.append(kind, text)

    async def settle(self, message_id: str) -> StoreError | None:
        return None

    async def abandon(self, change: Change) -> Change | None:
        raise AssertionError("dicts can always keep an ending")

    def _apply(self, change: Change) -> None:
        self._clock = max(self._clock, change.at)
        self._snapshots.pop(change.conversation_id, None)
        if change.after:
            self._snapshots[change.conversation_id] = change.after
        if ended := change.ended:
            ended.transcript.close()
            self._stop(ended.id)
        if began := change.began:
            self._start(change.conversation_id, began)

    def _start(self, conversation_id: str, reply: Message) -> None:
        interruption: asyncio.Future[StoreError] = asyncio.get_running_loop().create_future()
        self._growing[reply.id] = Growing(reply.transcript, interruption)

    def _stop(self, message_id: str) -> None:
        self._growing.pop(message_id).interrupt(over())


def over() -> NotFound:
    """The error of a reply that takes no more text."""
    return NotFound("The reply has ended, or was deleted.")
