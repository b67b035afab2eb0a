"""The engine of one process that must not forget: dicts, written through to a SQLite file.

Changes that come together are one transaction, and the dicts change once it is on the disk. The engine writes the text
of replies in progress every `WRITE_INTERVAL`, the first text at once, and readers see it once it is written.
"""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, starmap
from pathlib import Path
from typing import Any, TypeVar

from logs import outline
from stores.engine import WRITE_INTERVAL
from stores.memory import Memory
from stores.records import StoreError, StoreFull, StoreUnavailable
from stores.reply import OwnReply
from stores.snapshot import Change, moment, totals_of
from stores.sqlite.file import File, Piece, sqlite_error_name

FILE_RETRY_INTERVAL = 1.0  # seconds until an ending that couldn't be written is written again
COMMIT_TIMEOUT = 3.0  # seconds that a caller of `commit` waits for a disk that hangs
DISK_TIMEOUT = 10.0  # seconds after which the engine gives up text that waits for such a disk

_T = TypeVar("_T")

logger = logging.getLogger("store")


@dataclass(eq=False, slots=True)
class _Part:
    """A part of a transaction, written whole or not at all: text of one reply, or a change."""

    reply: OwnReply | None = None
    position: int = 0  # the end of the text in `pieces`
    pieces: Sequence[Piece] = ()
    change: Change | None = None
    counted: int = 0  # bytes of the reply that the change ends, as the totals of the change have them
    outcome: asyncio.Future[Change | StoreError] | None = None  # None: the dicts have the change already
    is_awaited: bool = True


class Sqlite(Memory):
    """Dicts, and a file that has every change before the caller of `commit` hears of it."""

    name = "sqlite"
    forgets = False
    is_reachable = True

    def __init__(self, path: Path, patience: float) -> None:
        super().__init__()
        self._file = File(path)
        self._patience = patience  # seconds for which the file may be locked at the start
        self._grown: set[OwnReply] = set()  # replies with text for the next transaction
        self._changes: list[_Part] = []  # for the next transaction
        self._is_due = False  # whether the next transaction is to begin at once
        self._tick: asyncio.TimerHandle | None = None
        self._wrote_at = 0.0  # the loop's time at the beginning of the last transaction
        self._unwritten: list[_Part] = []  # changes that the dicts have and the file lacks
        self._changing: dict[str, asyncio.Future[Change | StoreError]] = {}  # by conversation
        self._orphans: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._writing: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._latest = 0  # the moment of the latest change

    async def open(self) -> list[tuple[str, str]]:
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "store")
        try:
            snapshots = await self._in_thread(self._file.open, self._patience)
        except BaseException:
            self._file.given_up.set()
            self._thread.shutdown(wait=False)
            raise
        for snapshot in snapshots:
            self._snapshots[snapshot.conversation.id] = snapshot
            self._latest = moment(snapshot.conversation.updated_at)
            self.clock.advance(self._latest)
            self.totals.add(totals_of(snapshot))
            if reply := snapshot.in_progress:
                self.replies[reply.id] = OwnReply(snapshot.conversation.id, reply)
        return [(reply.conversation_id, reply.id) for reply in self.replies.values()]

    async def close(self) -> None:
        self._write_soon()
        while self._writing:
            await asyncio.wait({self._writing})
        if self._retry:
            self._retry.cancel()
        if self._unwritten:
            logger.error("%d replies have ended, and the file of STORE_URL couldn't be told", len(self._unwritten))
        await self._in_thread(self._file.close)
        self._thread.shutdown(wait=False)

    async def commit(self, change: Change) -> Change | None:
        if not await self._is_current(change):
            return None
        self.totals.add(change.totals)
        counted = change.ended.transcript.size if change.ended else 0
        waiting: asyncio.Future[Change | StoreError] = self._loop.create_future()
        self._changing[change.conversation_id] = waiting
        self._changes.append(part := _Part(change=change, counted=counted, outcome=waiting))
        self._write_soon()
        try:
            await self._wait_for(waiting)
        except StoreUnavailable:
            part.is_awaited = False
            raise
        if isinstance(outcome := waiting.result(), StoreError):
            raise outcome
        return outcome

    async def orphans(self) -> AsyncIterator[tuple[str, str]]:
        while True:
            yield await self._orphans.get()

    async def abandon(self, change: Change) -> Change | None:
        if not await self._is_current(change):
            return None
        self.totals.add(change.totals)
        self._apply(change)
        self._unwritten.append(_Part(change=change))
        self._write_soon()
        return change

    def keep(self, reply: OwnReply, *, at_once: bool = False) -> None:
        self._grown.add(reply)
        if at_once or not reply.transcript.kept:  # readers get a first text without delay
            self._write_soon()
        elif self._tick is None:
            self._tick = self._loop.call_at(self._wrote_at + WRITE_INTERVAL, self._write_soon)

    def _apply(self, change: Change) -> None:
        super()._apply(change)
        if change.at < self._latest:  # an abandoned reply's end, made in the meantime, has overtaken it
            self._snapshots = dict(sorted(self._snapshots.items(), key=lambda item: item[1].conversation.updated_at))
        self._latest = max(self._latest, change.at)

    def _stop(self, message_id: str) -> None:
        self._grown.discard(self.replies[message_id])
        super()._stop(message_id)

    async def _is_current(self, change: Change) -> bool:
        if changing := self._changing.get(change.conversation_id):
            await self._wait_for(changing)
            return False
        return self._snapshots.get(change.conversation_id) is change.before

    async def _wait_for(self, changing: asyncio.Future[Change | StoreError]) -> None:
        await asyncio.wait({changing}, timeout=COMMIT_TIMEOUT)
        if not changing.done():
            self._note(hanging := _hanging())
            raise hanging

    def _write_soon(self) -> None:
        self._is_due = True
        if self._writing is None:
            self._writing = self._loop.create_task(self._write_all())

    async def _write_all(self) -> None:
        """Write one transaction after the other, each with all that waits for it."""
        try:
            while self._is_due:
                await self._write_once()
        finally:
            self._writing = None
        if (self._unwritten or not self.is_reachable) and self._retry is None:
            self._retry = self._loop.call_later(FILE_RETRY_INTERVAL, self._try_again)

    async def _write_once(self) -> None:
        self._is_due, self._wrote_at = False, self._loop.time()
        if self._tick:
            self._tick.cancel()
            self._tick = None
        texts, self._grown = list(map(_unwritten_text, self._grown)), set()
        changes, self._changes = self._changes, []
        parts = [*self._unwritten, *texts, *changes]
        if not (parts or self.is_reachable):
            parts = [_Part()]  # an empty transaction shows whether the file can be written again
        if parts:
            refusals = await self._write_in_thread(parts)
            self._note(next(filter(None, refusals), None))
            for part, refusal in zip(parts, refusals, strict=True):
                self._on_refused(part, refusal) if refusal else self._on_written(part)

    async def _write_in_thread(self, parts: Sequence[_Part]) -> list[StoreError | None]:
        writing = asyncio.ensure_future(self._in_thread(self._write_parts, parts))
        while not (await asyncio.wait({writing}, timeout=DISK_TIMEOUT))[0]:
            self._note(hanging := _hanging())
            for reply in self.replies.values():
                if reply.transcript.taken > reply.transcript.kept:
                    self._refuse(reply, hanging)
        return writing.result()

    def _try_again(self) -> None:
        self._retry = None
        self._write_soon()

    def _write_parts(self, parts: Sequence[_Part]) -> list[StoreError | None]:
        """Write all parts in one transaction or, if that fails, each in its own: the errors, None for a success."""
        if not (refusal := self._write_together(parts)):
            return [None] * len(parts)
        self._file.make_room()
        refusals: list[StoreError | None] = []
        outdated: set[str] = set()  # conversations of which the file lacks a change
        for part in parts:
            id = part.change.conversation_id if part.change else None
            refusals.append(refusal if id in outdated else self._write_together([part]))
            if id and refusals[-1]:
                outdated.add(id)
        return refusals

    def _write_together(self, parts: Sequence[_Part]) -> StoreError | None:
        """Write the parts in one transaction: the error if that fails."""
        try:
            changes = [part.change for part in parts if part.change]
            self._file.write(changes, list(chain(*(part.pieces for part in parts))))
        except Exception as error:  # any error: without an outcome the callers would wait forever
            refusal = _refusal_of(error)
            refusal.__cause__ = error
            return refusal
        return None

    def _note(self, refusal: StoreError | None) -> None:
        """Note whether the file can be written. The log says so when that changes."""
        if refusal and self.is_reachable:
            cause = refusal.__cause__
            name = sqlite_error_name(cause) if cause else "it hangs"
            where = f"\n{outline(cause)}" if cause and not isinstance(cause, sqlite3.Error) else ""
            logger.error("The file of STORE_URL can't be written (%s)%s", name, where)
        elif not refusal and not self.is_reachable:
            logger.warning("The file of STORE_URL can be written again")
        self.is_reachable = refusal is None

    def _on_written(self, part: _Part) -> None:
        if part.reply and not part.reply.refusal:
            part.reply.keep(part.position)
        if part.outcome and part.change:
            del self._changing[part.change.conversation_id]
            if ended := part.change.ended:
                self.totals.text -= ended.transcript.size - part.counted
            self._apply(part.change)
            part.outcome.set_result(part.change)
            if part.change.began and not part.is_awaited:
                self._orphans.put_nowait((part.change.conversation_id, part.change.began.id))
        elif part.change:
            self._unwritten.remove(part)

    def _on_refused(self, part: _Part, refusal: StoreError) -> None:
        if part.reply:
            self._refuse(part.reply, refusal)
        if part.outcome and part.change:
            del self._changing[part.change.conversation_id]
            self.totals.add(part.change.totals, -1)
            part.outcome.set_result(refusal)

    def _refuse(self, reply: OwnReply, refusal: StoreError) -> None:
        """End the reply, since later text is of no use without the text that is lost."""
        self._grown.discard(reply)
        self.totals.text -= reply.refuse(refusal)

    async def _in_thread(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await self._loop.run_in_executor(self._thread, work, *arguments)


def _unwritten_text(reply: OwnReply) -> _Part:
    transcript, end = reply.transcript, reply.transcript.taken
    runs = transcript.read(transcript.kept, end, is_kept=False)
    return _Part(reply, end, list(starmap(partial(Piece, reply.id), runs)))


def _refusal_of(error: Exception) -> StoreError:
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return StoreFull("The disk with the file of STORE_URL is full: make room there, then try again.")
    return StoreUnavailable(
        "The file of STORE_URL can't be written; the log says why. Nothing was changed: try again in a moment."
    )


def _hanging() -> StoreError:
    return StoreUnavailable("The disk with the file of STORE_URL doesn't answer: try again in a moment.")
