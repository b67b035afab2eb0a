"""What stands in the way of a start on a file: one line that names the setting, exit code 3, and nothing is touched."""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from settings import Settings, SettingsError
from store import Store
from stores.sqlite import file as stored
from stores.sqlite.file import APPLICATION_ID, MIGRATIONS, VERSION, File
from tests.support.process import ROOT, process
from tests.support.upstream import Gate, ScriptedUpstream, gated
from tests.support.waiting import eventually
from tests.test_disk import everything, life

DATA = ROOT / "tests" / "data"
PAGE = 16384
ONE_LINE = r"STORE_URL: [^\n]+\n"
WITHOUT_PRIVILEGES = ("setpriv", "--bounding-set=-all") if os.geteuid() == 0 else ()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the conversations are to be."""
    return tmp_path / "chat.db"


def database(path: Path, *statements: str) -> None:
    """A database in which this was done."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def fingerprint(path: Path) -> object:
    """Of a file, or of all files in a folder."""
    if path.is_dir():
        return {entry.name: fingerprint(entry) for entry in path.iterdir()}
    return hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns, path.stat().st_mode


# What isn't a file of the relay


def damaged(path: Path) -> None:
    """One of the relay's, its pages overwritten but for the first."""
    shutil.copy(DATA / "version-1.db", path)
    with path.open("r+b") as file:
        file.seek(PAGE)
        file.write(random.Random(1).randbytes(path.stat().st_size - PAGE))


def without_a_table(path: Path) -> None:
    """The relay's by its name alone."""
    database(path, f"PRAGMA application_id = {APPLICATION_ID}", "PRAGMA user_version = 1")


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("Dear diary, " * 999), "NOTADB"),
    "bytes": (lambda path: path.write_bytes(random.Random(1).randbytes(99_999)), "NOTADB"),
    "something else": (lambda path: database(path, "CREATE TABLE bookmarks (url)"), "something else"),
    "empty, of another application": (lambda path: database(path, "PRAGMA application_id = 7"), "something else"),
    "a version without an application": (lambda path: database(path, "PRAGMA user_version = 1"), "something else"),
    "newer": (
        lambda path: database(path, f"PRAGMA application_id = {APPLICATION_ID}", "PRAGMA user_version = 99"),
        "newer relay",
    ),
    "damaged": (damaged, "can't be used|damaged"),
    "cut off": (lambda path: path.write_bytes((DATA / "version-1.db").read_bytes()[:40_000]), "can't be used|damaged"),
    "a folder": (Path.mkdir, "Is a directory"),
    "without a table": (without_a_table, "can't be used|damaged"),
}


async def refusal(place: Path | str) -> str:
    """The line that ends the start."""
    store = Store(Settings(store_url=f"sqlite:///{place}", shutdown_grace=0))
    with pytest.raises(SettingsError) as caught:
        await store.open()
    assert re.fullmatch(r"STORE_URL: [^\n]+", str(caught.value))
    return str(caught.value)


@pytest.mark.parametrize(("make", "words"), UNUSABLE.values(), ids=UNUSABLE)
async def test_what_is_not_a_file_of_the_relay_is_refused_in_one_line_and_not_touched(
    path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(path)
    before = fingerprint(path.parent)
    assert re.search(words, await refusal(path))
    if make is not without_a_table:  # it gets a log before it is read
        assert fingerprint(path.parent) == before


async def test_a_folder_that_is_not_there_is_told_in_one_line(path: Path) -> None:
    assert "No such file or directory" in await refusal(path.parent / "no/chat.db")
    assert fingerprint(path.parent) == {}


@pytest.mark.parametrize("name", ["/dev/null", "/dev/full", "x" * 300, "a/" * 3000 + "b"])
async def test_what_cannot_be_a_file_is_told_in_one_line(
    path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    await refusal(name)
    assert fingerprint(path.parent) == {}


async def test_the_process_prints_that_line_and_nothing_else(path: Path) -> None:
    UNUSABLE["a folder"][0](path)
    async with process("python", "server.py", env={"STORE_URL": f"sqlite:///{path}"}, listening=False) as relay:
        assert await relay.exit() == 3
        assert re.fullmatch(ONE_LINE, relay.output)


@pytest.mark.parametrize("what", ["file", "folder", "folder of a new file"])
async def test_a_file_without_permission_is_told_in_one_line(path: Path, what: str) -> None:
    if what != "folder of a new file":
        shutil.copy(DATA / "version-1.db", path)
    closed, mode = (path, "0") if what == "file" else (path.parent, "0500")
    shell = f"chmod {mode} {closed} && exec {sys.executable} {ROOT / 'server.py'}"
    try:
        env = {"STORE_URL": f"sqlite:///{path}"}
        async with process(*WITHOUT_PRIVILEGES, "sh", "-c", shell, env=env, listening=False) as relay:
            assert await relay.exit() == 3
            assert re.fullmatch(ONE_LINE, relay.output)
    finally:
        closed.chmod(0o700)
    assert [entry.name for entry in path.parent.iterdir()] == ([] if "new" in what else [path.name])


async def test_a_read_only_file_system_is_told_in_one_line(path: Path) -> None:
    with read_only(path) as before:
        async with process("python", "server.py", env={"STORE_URL": f"sqlite:///{path}"}, listening=False) as relay:
            assert await relay.exit() == 3
            assert re.fullmatch(ONE_LINE, relay.output)
            assert before is None or "Read-only file system" in relay.output
        assert before in (None, fingerprint(path.parent))


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[object]:
    """A file of the relay's there; without the right to mount a path that nobody can write."""
    folder = str(path.parent)
    if subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode:
        path.symlink_to("/proc/version")
        yield None
        return
    try:
        shutil.copy(DATA / "version-1.db", path)
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        yield fingerprint(path.parent)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_whatever_byte_is_damaged_it_opens_or_says_in_one_line_that_it_cannot(path: Path) -> None:
    chance = random.Random(3)
    whole = (DATA / "version-1.db").read_bytes()
    outcomes = set()
    for _ in range(400):
        octets = bytearray(whole)
        for _ in range(chance.choice([1, 1, 50])):
            octets[chance.randrange(len(octets))] = chance.randrange(256)
        path.write_bytes(octets)
        file = File(path)
        try:
            file.open(0)
            file.close()
            outcomes.add("opens")
        except SettingsError as error:
            assert str(error).startswith("STORE_URL: ") and "\n" not in str(error)
            outcomes.add(str(error).removesuffix(".").rpartition(" ")[0].partition(str(path))[2])
        for left in path.parent.glob("chat.db-*"):
            left.unlink()
    assert {"opens", " is damaged"} <= outcomes


# A file that another process has


async def test_a_second_process_waits_says_in_one_line_that_it_cannot_have_the_file_and_exits(
    path: Path, upstream: ScriptedUpstream
) -> None:
    env = {"STORE_URL": f"sqlite:///{path}", "SHUTDOWN_GRACE": "0"}
    async with life(path, upstream) as first:
        conversation_id = await first.ask()
        async with process("python", "server.py", env=env, listening=False) as second:
            assert await second.exit(15) == 3
            assert re.fullmatch(ONE_LINE, second.output) and "another process has" in second.output
        assert (await first.read(conversation_id)).last["status"] == "complete"


async def test_a_second_process_takes_over_when_the_first_has_drained(path: Path, upstream: ScriptedUpstream) -> None:
    upstream.play(gated(gate := Gate(), "To the ", "end."))
    async with life(path, upstream) as first:
        conversation_id = await first.ask()
        async with first.stream(conversation_id) as reader:
            gate.open()
            await reader.until("To the ")
            env = {"STORE_URL": f"sqlite:///{path}"}
            async with process("python", "server.py", env=env, listening=False) as second:
                first.terminate()
                await draining(first.client)
                assert second.output == ""
                gate.open_wide()
                assert (await reader.whole()).content == "To the end."
                assert await first.exit() == 0
                await second.listens()
                assert [m["content"] for m in await second.messages(conversation_id)] == ["Hi", "To the end."]


async def draining(client: object) -> None:
    async def is_draining() -> bool:
        return (await client.get("/health")).status_code == 503  # type: ignore[attr-defined, no-any-return]

    await eventually(is_draining)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_while_it_waits_for_the_file_ends_it_at_once(
    path: Path, upstream: ScriptedUpstream, number: signal.Signals
) -> None:
    async with (
        life(path, upstream),
        process("python", "server.py", env={"STORE_URL": f"sqlite:///{path}"}, listening=False) as second,
    ):
        await eventually(lambda: waits_for(second.pid, path))
        (second.terminate if number is signal.SIGTERM else second.interrupt)()
        assert await second.exit(5) == 0
        assert second.output == ""


def waits_for(pid: int, path: Path) -> bool:
    """Whether it has the file open."""
    folder = Path(f"/proc/{pid}/fd")
    with contextlib.suppress(FileNotFoundError):
        return any(entry.resolve() == path for entry in folder.iterdir())
    return False


def test_a_second_opening_in_one_process_leaves_the_first_its_lock(path: Path) -> None:
    """To close any descriptor of a file gives up all the locks that the process has on it."""
    first = File(path)
    first.open(0)
    with pytest.raises(SettingsError, match="another process has"):
        File(path).open(0)
    look = f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0).execute('SELECT * FROM messages')"
    other = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert "database is locked" in other.stderr
    first.close()


# Versions


async def test_a_file_of_the_first_version_loads_exactly(path: Path, upstream: ScriptedUpstream) -> None:
    """tests/data/version-1.json is what the relay that wrote version-1.db would have shown of it after a restart."""
    shutil.copy(DATA / "version-1.db", path)
    expected = json.loads((DATA / "version-1.json").read_text())
    for _ in range(2):
        async with life(path, upstream) as relay:
            listed = (await relay.client.get("/conversations")).json()["conversations"]
            found = {entry["id"]: (entry, await relay.messages(entry["id"])) for entry in listed}
            shown = await everything(relay)
        assert list(found) == expected["order"]
        for conversation, messages in expected["threads"]:
            now, messages_now = found[conversation["id"]]
            assert conversation.items() <= known(now, conversation).items()
            for message, message_now in zip(messages, messages_now, strict=True):
                assert known(message_now, message) == message
        assert found["plain"][0]["cost"] == pytest.approx(0.50020652)  # since version 2, of the usages that there were
    assert not upstream.requests and shown


def known(now: dict[str, object], then: dict[str, object]) -> dict[str, object]:
    """Only the fields that there were: later versions have more."""
    return {name: now[name] for name in then}


def versions(monkeypatch: pytest.MonkeyPatch, *scripts: str) -> None:
    """The relay of some later day."""
    monkeypatch.setattr(stored, "MIGRATIONS", [*MIGRATIONS, *scripts])
    monkeypatch.setattr(stored, "VERSION", VERSION + len(scripts))


def look(path: Path, statement: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def opened(path: Path) -> int:
    """How many conversations are in the file, which is closed again."""
    file = File(path)
    conversations = file.open(0)
    file.close()
    return len(conversations)


FIRST = "CREATE TABLE log (entry TEXT); INSERT INTO log VALUES ('first')"
SECOND = "INSERT INTO log VALUES ('second'); UPDATE conversations SET own_title = 'migrated'"


@pytest.mark.parametrize("steps", [[[FIRST, SECOND]], [[FIRST], [FIRST, SECOND]]], ids=["at once", "one by one"])
def test_a_file_is_brought_up_to_date_step_by_step_and_each_step_is_made_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[list[str]]
) -> None:
    shutil.copy(DATA / "version-1.db", path)
    for scripts in steps:
        versions(monkeypatch, *scripts)
        for _ in range(2):
            assert opened(path)
    assert look(path, "PRAGMA user_version") == [(VERSION + 2,)]
    assert look(path, "SELECT * FROM log") == [("first",), ("second",)]
    assert look(path, "SELECT DISTINCT own_title FROM conversations") == [("migrated",)]


def test_a_new_file_has_big_pages(path: Path) -> None:
    """With SQLite's own a full one is a sixth bigger."""
    assert opened(path) == 0
    assert look(path, "PRAGMA page_size") == [(PAGE,)]


def test_a_new_file_takes_every_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, FIRST, SECOND)
    assert opened(path) == 0
    assert look(path, "PRAGMA user_version") == [(VERSION + 2,)]
    assert look(path, "SELECT * FROM log") == [("first",), ("second",)]


def test_a_step_that_fails_leaves_the_file_as_the_step_before_left_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(DATA / "version-1.db", path)
    conversations = opened(path)
    versions(monkeypatch, FIRST, f"{SECOND}; INSERT INTO nowhere VALUES (1)")
    with pytest.raises(SettingsError, match=r"^STORE_URL: [^\n]+$"):
        opened(path)
    assert look(path, "PRAGMA user_version") == [(VERSION + 1,)]
    assert look(path, "SELECT * FROM log") == [("first",)]
    versions(monkeypatch, FIRST)
    assert opened(path) == conversations


KILLED = """
import os, sys
from pathlib import Path
from stores.sqlite import file

class Dying(file.File):
    def _prepare(self):
        self._connection.create_function("die", 0, lambda: os.kill(os.getpid(), 9))
        super()._prepare()

file.MIGRATIONS.append(sys.argv[2])
file.VERSION += 1
Dying(Path(sys.argv[1])).open(0)
"""


def test_a_process_that_is_killed_in_a_step_leaves_the_file_as_it_was(path: Path) -> None:
    shutil.copy(DATA / "version-1.db", path)
    assert opened(path)
    before = look(path, "SELECT * FROM messages"), look(path, "SELECT * FROM conversations")
    script = f"{FIRST}; UPDATE conversations SET own_title = 'half done'; DELETE FROM messages; SELECT die()"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), script], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert (look(path, "SELECT * FROM messages"), look(path, "SELECT * FROM conversations")) == before
    assert opened(path)
