"""The text of replies that are made here, on its way to the server: what it has is shown, in that order.

All replies share one call a tick. The server adds text only behind the text that it expects, so that nothing is
added twice, to a reply that has ended, or behind a hole that a failover has torn: then it is said again from there.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

from stores.records import Kind, Message, NotFound, StoreError, StoreFull, StoreUnavailable, byte_size
from stores.snapshot import Totals
from stores.valkey.client import Client
from stores.valkey.keys import APPEND, FENCE, Keys

LEASE_TIMEOUT = 10.0  # seconds of silence after which a relay, or the server, counts as gone
WRITE_INTERVAL = 0.016  # seconds behind a call, in which text is gathered for the next one
APPEND_RETRY_INTERVAL = 0.1  # seconds until what couldn't be stored is tried again
MAX_UNWRITTEN_BYTES = 256 * 1024  # bytes of a reply that wait for the server before its generation does
FENCE_TIMEOUT = 2.0  # seconds in which whoever has fenced a reply off ends it

_LETTERS: dict[Kind, str] = {"content": "c", "reasoning": "r"}

logger = logging.getLogger("store")


@dataclass(slots=True, eq=False)
class OwnReply:
    """A reply that is made here."""

    conversation_id: str
    message: Message
    interruption: asyncio.Future[StoreError]
    ended: asyncio.Future[None]
    stored: int = 0  # characters that the server has
    waiting: list[tuple[Kind, str]] = field(default_factory=list)
    size: int = 0  # bytes that wait
    taken: int = 0  # bytes in all
    report: str | None = None  # what upstream says of its answer beside the text
    told: str | None = None  # what of that was sent to the server
    refusal: StoreError | None = None
    _waiter: asyncio.Future[None] | None = None

    def interrupt(self, error: StoreError) -> None:
        """Tell whoever makes it, once; what waits is given up."""
        self.waiting, self.size = [], 0
        if not self.interruption.done():
            self.interruption.set_result(error)
        self.wake()

    def merge(self) -> None:
        """Make one of neighbours of one kind."""
        if len(self.waiting) < 2:
            return
        runs = groupby(self.waiting, itemgetter(0))
        self.waiting = [(kind, "".join(map(itemgetter(1), run))) for kind, run in runs]

    def entries(self) -> list[tuple[int, int, str, str]]:
        """What the server lacks, as far as it is known: the position before and behind, the kind, the text."""
        position, found = self.stored, []
        if self.report and self.report != self.told:
            found.append((position, position, "g", self.report))
            self.told = self.report
        said = self.message.transcript.read(position, self.message.transcript.length)
        for kind, text in [*said, *self.waiting]:
            found.append((position, position + len(text), _LETTERS[kind], text))
            position += len(text)
        return found

    def show(self, position: int) -> None:
        """The server has the text up to there."""
        transcript = self.message.transcript
        while self.waiting and transcript.length < position:
            kind, text = self.waiting.pop(0)
            now, later = text[: position - transcript.length], text[position - transcript.length :]
            if later:
                self.waiting.insert(0, (kind, later))
            transcript.append(kind, now)
            self.size -= byte_size(now)
        self.stored = position
        self.wake()

    async def change(self) -> None:
        """Some of what waited is stored, or given up."""
        self._waiter = self._waiter or asyncio.get_running_loop().create_future()
        await asyncio.wait({self._waiter})

    def wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter:
            waiter.set_result(None)


class ReplyWriter:
    """All replies that are made here, by message."""

    def __init__(self, client: Client, keys: Keys, totals: Totals) -> None:
        self.replies: dict[str, OwnReply] = {}
        self.text = 0
        """Bytes of their text; `totals` has them, too."""
        self._client, self._keys, self._totals = client, keys, totals
        self._waiting: set[OwnReply] = set()
        self._fenced: dict[str, OwnReply] = {}
        self._cut: deque[str] = deque(maxlen=1000)  # that have ended before all of their text was stored, the last ones
        self._tick: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_urgent = False
        self._free_at = 0.0  # when the tick of the last call is over
        self._failing_since: float | None = None

    def start(self, conversation_id: str, message: Message) -> None:
        """A reply was begun here."""
        loop = asyncio.get_running_loop()
        self.replies[message.id] = OwnReply(conversation_id, message, loop.create_future(), loop.create_future())

    def stop(self, message_id: str, *, fenced: bool = False) -> None:
        """Others have ended it, or will at once if it is fenced off; or it ended here."""
        reply = self.replies.pop(message_id, None)
        if reply is None:
            if reply := self._fenced.get(message_id):
                _settle(reply.ended)
            return
        self._count(-reply.taken)
        self._waiting.discard(reply)
        if reply.waiting:
            self._cut.append(message_id)
        if fenced:
            self._fenced[message_id] = reply
        else:
            _settle(reply.ended)
        reply.interrupt(over())

    def close(self) -> None:
        """Try no more to store what the server hasn't."""
        self.replies.clear()
        self._waiting.clear()
        if self._tick:
            self._tick.cancel()
        if self._task:
            self._task.cancel()

    async def extend(self, message_id: str, kind: Kind, text: str) -> None:
        """As `Engine.extend`."""
        reply = self.replies.get(message_id)
        if reply is None:
            raise over()
        if reply.refusal:
            raise reply.refusal
        if not text:
            return
        reply.waiting.append((kind, text))
        size = byte_size(text)
        reply.size += size
        reply.taken += size
        self._count(size)
        self._waiting.add(reply)
        self._append_soon()
        while reply.size > MAX_UNWRITTEN_BYTES:
            await reply.change()

    def report(self, message_id: str, report: str) -> None:
        """Let others know what upstream says of its answer."""
        if reply := self.replies.get(message_id):
            reply.report = report
            self._waiting.add(reply)
            self._append_soon()

    async def settle(self, message_id: str) -> StoreError | None:
        """As `Engine.settle`."""
        if fenced := self._fenced.pop(message_id, None):
            await asyncio.wait({fenced.ended}, timeout=FENCE_TIMEOUT)
        if reply := self.replies.get(message_id):
            self._append_soon(at_once=True)
            while reply.waiting:
                await reply.change()
            if reply.refusal:
                return reply.refusal
        return over() if message_id in self._cut else None  # so that it isn't called complete

    def _count(self, size: int) -> None:
        self.text += size
        self._totals.text += size

    def _append_soon(self, *, at_once: bool = False) -> None:
        if self._task:
            self._is_urgent |= at_once
        elif at_once:
            self._append_now()
        elif self._tick is None:
            is_free = self._free_at <= self._client.loop.time()
            self._tick = None if is_free else self._client.loop.call_at(self._free_at, self._append_now)
            if is_free:
                self._append_now()

    def _append_now(self) -> None:
        if self._tick:
            self._tick.cancel()
            self._tick = None
        if self._waiting and self._task is None:
            self._free_at = self._client.loop.time() + WRITE_INTERVAL
            self._task = asyncio.create_task(self._append())
            self._task.add_done_callback(self._appended)

    def _appended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()):
            logger.error("text of replies can't be stored (%s)", type(error).__name__)
        if self._waiting:
            is_urgent, self._is_urgent = self._is_urgent, False
            self._append_soon(at_once=is_urgent)

    async def _append(self) -> None:
        batch, self._waiting = self._waiting, set()
        for reply in batch:
            reply.merge()
        entries = [(reply, *entry) for reply in batch for entry in reply.entries()]
        if not entries:
            return
        keys = [self._keys.of(f"r:{reply.message.id}") for reply, *_ in entries]
        arguments = [f"{before} {behind} {kind} {text}" for _, before, behind, kind, text in entries]
        try:
            answers = await self._client.run(APPEND, keys, *arguments)
        except StoreFull as error:
            self._refuse(batch, error)
        except StoreUnavailable as error:
            self._failing_since = self._failing_since or time.monotonic()
            if time.monotonic() - self._failing_since > LEASE_TIMEOUT:
                self._refuse(batch, error)
            for reply in filter(self._is_made, batch):
                reply.told = None
                self._waiting.add(reply)
            await asyncio.sleep(APPEND_RETRY_INTERVAL)
        else:
            self._failing_since = None
            positions = map(int, answers.split())
            for reply, position in {entry[0]: at for entry, at in zip(entries, positions, strict=True)}.items():
                self._answered(reply, position)

    def _is_made(self, reply: OwnReply) -> bool:
        return reply.refusal is None and reply.message.id in self.replies

    def _answered(self, reply: OwnReply, position: int) -> None:
        if not self._is_made(reply):
            return
        if position < 0 or position >= FENCE:
            self.stop(reply.message.id, fenced=position == FENCE)
        elif position < reply.message.transcript.length:  # lost in a failover
            reply.stored, reply.told = position, None
            self._waiting.add(reply)
            self._is_urgent = True
        else:
            reply.show(position)
            if reply.waiting:
                self._waiting.add(reply)

    def _refuse(self, batch: Sequence[OwnReply] | set[OwnReply], error: StoreError) -> None:
        for reply in batch:
            if self._is_made(reply):
                reply.refusal = error
                self._count(-reply.size)
                reply.taken -= reply.size
                reply.interrupt(error)


def over() -> NotFound:
    """The error of a reply that takes no more text."""
    return NotFound("The reply has ended, or was deleted.")


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
