"""The SQLite file: its schema, the conversations that are in it at the start, and one transaction at a time.

Knows nothing of the event loop: one thread makes all calls. https://www.sqlite.org/wal.html
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from settings import SettingsError
from stores.records import Conversation, Kind, Message, decode, encode
from stores.snapshot import Change, Snapshot, moment

APPLICATION_ID = 0x43525359  # the mark of the relay's files
MAX_NUMBER = 2**63 - 1
LOCK_INTERVAL = 0.1  # seconds between two attempts to lock a file that another process has locked

_SCHEMA = """
CREATE TABLE conversations (
    id TEXT PRIMARY KEY, own_title TEXT, first_line TEXT, system_prompt TEXT, default_model TEXT NOT NULL,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE messages (
    conversation TEXT, place INTEGER, head TEXT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (conversation, place)
) WITHOUT ROWID;
CREATE TABLE pieces (
    message TEXT, position INTEGER, kind TEXT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (message, position)
) WITHOUT ROWID;
"""

MIGRATIONS = [
    """
    ALTER TABLE conversations ADD COLUMN options TEXT;
    ALTER TABLE conversations ADD COLUMN cost REAL;
    UPDATE conversations SET cost = (
        SELECT sum(json_extract(json_extract(head, '$.usage'), '$.cost')) FROM messages
        WHERE conversation = conversations.id
    )
    """,
    """
    CREATE TABLE log (number INTEGER PRIMARY KEY, message TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
    INSERT INTO log (message, kind, text) SELECT message, kind, text FROM pieces ORDER BY message, position;
    DROP TABLE pieces;
    ALTER TABLE log RENAME TO pieces
    """,
]
"""Each script leads from one version of the schema to the next, the first one from version 1."""

VERSION = 1 + len(MIGRATIONS)


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of a reply in progress, which follows the piece before it."""

    message_id: str
    kind: Kind
    text: str


class File:
    """One file, locked for this process while it is open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_synchronous = False
        self._firsts: dict[str, int] = {}  # by reply in progress, the number of its first piece
        self._next = 1  # the number of the next piece
        self.given_up = threading.Event()  # set when nobody waits for `open` any more

    def open(self, patience: float) -> list[Snapshot]:
        """Create the file if needed, lock it and migrate it: its conversations, the last changed one at the end.

        Waits so many seconds for another process to release the file. Raises `SettingsError`.
        """
        self._create()
        connect = partial(sqlite3.connect, isolation_level=None, check_same_thread=False, timeout=0)
        try:
            self._connection = connect(self._path, cached_statements=32)
            with _closed_on_error(self._connection):
                self._execute("PRAGMA page_size = 16384")  # for a new file, which would be a sixth bigger with 4,096
                self._execute("PRAGMA locking_mode = exclusive")
                self._lock(patience)
                self._check()
                self._prepare()
                return self._snapshots()
        except (sqlite3.Error, UnicodeDecodeError) as error:  # SQLite may quote damaged bytes
            raise SettingsError(f"STORE_URL: {self._path} can't be used ({sqlite_error_name(error)}).") from None

    def close(self) -> None:
        """Close the file, after which no log is left beside it."""
        self._connection.close()

    def write(self, changes: Sequence[Change], pieces: Sequence[Piece]) -> None:
        """Write all of it or nothing. Changes are on the disk when this returns; pieces alone outlive the process.

        Without either, look whether the file can be written. Raises `sqlite3.Error`.
        """
        self._synchronize(bool(changes))
        with self._transaction():
            if not (changes or pieces):
                self._execute(f"PRAGMA application_id = {APPLICATION_ID}")
            firsts = self._append(pieces)
            for change in changes:
                self._write(change)
            if ended := [change.ended.id for change in changes if change.ended]:
                firsts = {reply: number for reply, number in firsts.items() if reply not in ended}
                self._execute("DELETE FROM pieces WHERE number < ?", (min(firsts.values(), default=MAX_NUMBER),))
        self._firsts = firsts
        self._next += len(pieces)

    def make_room(self) -> None:
        """Fold the log into the file, so that its space can be used again. On a full disk that may fail, too."""
        with suppress(sqlite3.Error):
            self._execute("PRAGMA wal_checkpoint(restart)")

    # Opening

    def _create(self) -> None:
        # An existing file stays closed: closing it would give up the lock that this process may have on it.
        # https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_
        try:
            if not (self._path.is_file() and os.access(self._path, os.R_OK | os.W_OK)):
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise SettingsError(f"STORE_URL: {self._path} can't be opened ({error.strerror}).") from None

    def _lock(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                return self._execute("BEGIN EXCLUSIVE").close()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:  # the low byte of extended codes
                    raise
            if time.monotonic() > deadline or self.given_up.wait(LOCK_INTERVAL):
                raise SettingsError(
                    f"STORE_URL: another process has {self._path}. A file is one process's: stop the other one, or "
                    "name another file."
                )

    def _check(self) -> None:
        """Refuse a file that isn't the relay's before writing to it; end the transaction that locks it."""
        tables = self._figure("SELECT count(*) FROM sqlite_master")
        version = self._figure("PRAGMA user_version")
        application = self._figure("PRAGMA application_id")
        self._execute("COMMIT")
        if (tables or version or application) and application != APPLICATION_ID:
            raise SettingsError(f"STORE_URL: {self._path} is a database of something else. Name another file.")
        if version > VERSION:
            raise SettingsError(
                f"STORE_URL: {self._path} was written by a newer relay (version {version}, this one knows {VERSION}). "
                "Start that one, or name another file."
            )

    def _prepare(self) -> None:
        self._execute("PRAGMA secure_delete = on")  # overwrites deleted text in the file
        self._execute("PRAGMA journal_mode = wal")
        version = self._figure("PRAGMA user_version")
        self._synchronize(True)
        for number, script in enumerate([_SCHEMA, *MIGRATIONS][version:], start=version + 1):
            self._connection.executescript(
                f"BEGIN; {script}; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number}; COMMIT;"
            )

    # Reading

    def _snapshots(self) -> list[Snapshot]:
        try:
            messages = self._messages()
            rows = self._execute(f"SELECT {', '.join(_COLUMNS)} FROM conversations ORDER BY updated_at")
            return [_snapshot(row, messages.pop(row[0], {})) for row in rows]
        except (sqlite3.Error, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise SettingsError(f"STORE_URL: {self._path} is damaged ({sqlite_error_name(error)}).") from None

    def _messages(self) -> dict[str, dict[str, Message]]:
        rows = self._execute("SELECT message, kind, text FROM pieces ORDER BY message, number")
        pieces = {message_id: list(group) for message_id, group in groupby(rows, itemgetter(0))}
        firsts = dict(self._execute("SELECT message, min(number) FROM pieces GROUP BY message"))
        self._next = self._figure("SELECT coalesce(max(number), 0) + 1 FROM pieces")
        messages: dict[str, dict[str, Message]] = {}
        for conversation_id, head, text in self._execute(
            "SELECT conversation, head, text FROM messages ORDER BY conversation, place"
        ):
            message = decode(json.loads(head), text)
            if message.status == "streaming" and message.id in pieces:
                self._firsts[message.id] = firsts[message.id]
                for _, kind, piece in pieces[message.id]:
                    message.transcript.append(kind, piece)
            messages.setdefault(conversation_id, {})[message.id] = message
        return messages

    # Writing

    def _append(self, pieces: Sequence[Piece]) -> dict[str, int]:
        """Add pieces to the end of the log, which is one page for all replies: the first number of each reply."""
        rows = [(number, piece.message_id, piece.kind, piece.text) for number, piece in enumerate(pieces, self._next)]
        self._connection.executemany("INSERT INTO pieces VALUES (?, ?, ?, ?)", rows)
        return {message_id: number for number, message_id, *_ in reversed(rows)} | self._firsts

    def _write(self, change: Change) -> None:
        conversation_id = change.conversation_id
        if change.removed or change.after is None:
            self._execute("DELETE FROM messages WHERE conversation = ? AND place >= ?", (conversation_id, change.kept))
        if change.after is None:
            self._execute("DELETE FROM conversations WHERE id = ?", (conversation_id,))
            return
        places = ", ".join("?" * len(_COLUMNS))
        self._execute(f"INSERT OR REPLACE INTO conversations VALUES ({places})", _row(change.after))
        rows = [(conversation_id, place, *encode(message)) for place, message in enumerate(change.added, change.kept)]
        self._connection.executemany("INSERT INTO messages VALUES (?, ?, ?, ?)", rows)

    def _synchronize(self, wanted: bool) -> None:
        if wanted != self._is_synchronous:
            self._execute(f"PRAGMA synchronous = {'full' if wanted else 'normal'}")
            self._is_synchronous = wanted

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # on a full disk SQLite rolls back by itself
                self._execute("ROLLBACK")
            raise

    def _figure(self, statement: str) -> int:
        return int(self._execute(statement).fetchone()[0])

    def _execute(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)


_COLUMNS = (
    *("id", "own_title", "first_line", "system_prompt", "default_model", "created_at", "updated_at"),
    *("options", "cost"),  # since version 2
)


def _row(snapshot: Snapshot) -> list[object]:
    of_snapshot, conversation = ("own_title", "first_line"), snapshot.conversation
    return [getattr(snapshot if name in of_snapshot else conversation, name) for name in _COLUMNS]


def _snapshot(row: Sequence[Any], messages: dict[str, Message]) -> Snapshot:
    fields: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    own_title, first_line = fields.pop("own_title"), fields.pop("first_line")
    moment(fields["updated_at"])  # raises `ValueError` for a damaged one
    conversation = Conversation(title=own_title or first_line, message_count=len(messages), **fields)
    return Snapshot(conversation, own_title, first_line, messages)


@contextmanager
def _closed_on_error(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


def sqlite_error_name(error: BaseException | None) -> str:
    """The name of an error: SQLite's own where it has one, else the exception's class."""
    return getattr(error, "sqlite_errorname", type(error).__name__)
