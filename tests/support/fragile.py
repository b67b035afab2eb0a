"""A file that can be held up and can break, a store on it, and short forms of what tests of it do most."""

import contextlib
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from settings import Settings
from store import Store
from stores.records import Conversation, Question
from stores.reply import OwnReply
from stores.snapshot import Change
from stores.sqlite.file import File, Piece
from tests.support.stores import begin

SQLITE_FULL_SYNC = 2
"""https://www.sqlite.org/pragma.html#pragma_synchronous"""


def sqlite_error(code: int, name: str) -> sqlite3.Error:
    """As SQLite raises it."""
    error = sqlite3.OperationalError("some text of SQLite's")
    error.sqlite_errorcode, error.sqlite_errorname = code, name
    return error


FULL = sqlite_error(sqlite3.SQLITE_FULL, "SQLITE_FULL")
BROKEN = sqlite_error(sqlite3.SQLITE_IOERR_WRITE, "SQLITE_IOERR_WRITE")


class Fragile(File):
    """A file that can be held up, and can break."""

    newest: ClassVar["Fragile"]

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        Fragile.newest = self
        self.error: Exception | None = None
        self.breaks_by_chance: random.Random | None = None
        self.held = threading.Event()
        self.held.set()
        self.arrived = 0  # that have come to be written
        self.flushed: list[tuple[bool, bool]] = []  # of each that was: whether it had changes, and was flushed

    def write(self, changes: Sequence[Change], pieces: Sequence[Piece]) -> None:
        """As long as it isn't held up."""
        self.arrived += 1
        assert self.held.wait(30)
        if self.error:
            raise self.error
        if self.breaks_by_chance and self.breaks_by_chance.random() < 0.3:
            raise self.breaks_by_chance.choice([FULL, BROKEN])
        super().write(changes, pieces)
        self.flushed.append((bool(changes), self._figure("PRAGMA synchronous") >= SQLITE_FULL_SYNC))

    def count(self, table: str) -> int:
        """Rows in the file."""
        return int(self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    @contextlib.contextmanager
    def broken(self, error: Exception = FULL) -> Iterator[None]:
        """It raises this, within."""
        self.error = error
        yield
        self.error = None


@contextlib.asynccontextmanager
async def opened(url: str, **settings: int) -> AsyncIterator[tuple[Store, Fragile]]:
    """A store on that file, and the file."""
    store = Store(Settings(model_name="m", store_url=url, shutdown_grace=0, **settings))  # type: ignore[arg-type]
    await store.open()
    file = Fragile.newest
    try:
        yield store, file
    finally:
        file.held.set()
        await store.close()


async def asked(store: Store, content: str = "Why?") -> str:
    """The id of a new conversation with this question in it."""
    made = await store.create_conversation()
    await store.add_user_message(made.id, Question(content))
    return made.id


async def begun(store: Store) -> tuple[str, OwnReply]:
    """A conversation, and the reply that is in progress in it."""
    conversation_id = await asked(store)
    return conversation_id, (await begin(store, conversation_id)).reply


async def contents(store: Store, conversation_id: str) -> list[str]:
    return [message.transcript.content for message in await store.messages(conversation_id)]


Stored = list[tuple[Conversation, list[tuple[object, object]]]]


async def everything(store: Store) -> Stored:
    """All conversations in the order of the list, with their messages and text."""
    page, _ = await store.list_conversations(10_000)
    threads = [(entry, await store.messages(entry.id)) for entry in page]
    return [
        (entry, [(vars_of(message), message.transcript.parts()) for message in messages]) for entry, messages in threads
    ]


def vars_of(message: object) -> list[object]:
    return [getattr(message, name) for name in message.__slots__ if name != "transcript"]  # type: ignore[attr-defined]
