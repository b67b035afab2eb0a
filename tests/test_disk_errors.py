"""A file that can't be written, or not now: nothing is half done, nobody waits for ever, and every byte is counted."""

import asyncio
import contextlib
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from serving.settings import Settings
from store import Conversation, Ending, NotFound, Question, Store, StoreError, StoreFull, StoreUnavailable
from stores import disk
from stores.changes import Change
from stores.file import File, Piece
from tests.support.problems import assert_problem
from tests.support.relay import serving
from tests.support.stores import some_turns
from tests.support.upstream import Gate, ScriptedUpstream, gated
from tests.support.waiting import bounded, eventually

BEYOND = 300 * 1024
"""Characters of a reply that the file is waited for."""


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

    def write(self, changes: Sequence[Change], pieces: Sequence[Piece]) -> None:
        """As long as it isn't held up."""
        self.arrived += 1
        assert self.held.wait(30)
        if self.error:
            raise self.error
        if self.breaks_by_chance and self.breaks_by_chance.random() < 0.3:
            raise self.breaks_by_chance.choice([FULL, BROKEN])
        super().write(changes, pieces)

    def count(self, table: str) -> int:
        """Rows in the file."""
        return int(self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    @contextlib.contextmanager
    def broken(self, error: Exception = FULL) -> Iterator[None]:
        """It raises this, within."""
        self.error = error
        yield
        self.error = None


@pytest.fixture(autouse=True)
def _fragile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "File", Fragile)
    monkeypatch.setattr(disk, "LATER", 0.02)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Where the conversations are."""
    return f"sqlite:///{tmp_path}/chat.db"


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


@pytest.fixture
async def pair(url: str) -> AsyncIterator[tuple[Store, Fragile]]:
    """A store with room enough, and its file."""
    async with opened(url) as pair:
        yield pair


async def asked(store: Store, content: str = "Why?") -> str:
    """The id of a new conversation with this question in it."""
    made = await store.create_conversation()
    await store.add_user_message(made.id, Question(content))
    return made.id


async def begun(store: Store) -> tuple[str, str]:
    """A conversation, and the reply that is in progress in it."""
    conversation_id = await asked(store)
    return conversation_id, (await store.begin_reply(conversation_id)).message.id


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


# Changes


@pytest.mark.parametrize(
    ("error", "refusal"), [(FULL, StoreFull), (BROKEN, StoreUnavailable), (OSError(), StoreUnavailable)]
)
async def test_a_change_that_cannot_be_written_is_refused_and_changes_nothing(
    pair: tuple[Store, Fragile], error: Exception, refusal: type[StoreError]
) -> None:
    store, file = pair
    conversation_id = await asked(store)
    before = await everything(store), await store.counts()
    question = Question("And?", id="q-1")
    with file.broken(error):
        for change in (
            store.create_conversation(),
            store.update_conversation(conversation_id, {"title": "New"}),
            store.add_user_message(conversation_id, question),
            store.ask(conversation_id, question),
            store.begin_reply(conversation_id),
            store.delete_conversation(conversation_id),
        ):
            with pytest.raises(refusal, match="STORE_URL"):
                await change
            assert (await everything(store), await store.counts()) == before
        assert not store.is_reachable
    await eventually(lambda: store.is_reachable)  # by itself
    await store.add_user_message(conversation_id, question)


async def test_the_log_tells_once_that_the_file_cannot_be_written_and_once_that_it_can(
    pair: tuple[Store, Fragile], caplog: pytest.LogCaptureFixture
) -> None:
    store, file = pair
    with file.broken(BROKEN):
        for _ in range(5):
            with pytest.raises(StoreUnavailable):
                await store.create_conversation()
    for _ in range(5):
        await store.create_conversation()
    told = [record.getMessage() for record in caplog.records if "STORE_URL" in record.getMessage()]
    assert told == [
        "The file of STORE_URL can't be written (SQLITE_IOERR_WRITE)",
        "The file of STORE_URL can be written again",
    ]
    assert "some text" not in caplog.text


async def test_a_change_goes_on_though_its_caller_has_gone(pair: tuple[Store, Fragile]) -> None:
    store, file = pair
    conversation_id = await asked(store)
    file.held.clear()
    asking = asyncio.create_task(store.begin_reply(conversation_id))
    await eventually(lambda: file.arrived == 3)
    asking.cancel()
    await asyncio.wait({asking})
    file.held.set()
    await eventually_counted(store, messages=2)
    assert await store.in_progress(conversation_id)


async def eventually_counted(store: Store, messages: int) -> None:
    async def counted() -> bool:
        return (
            sum([len(await store.messages(entry.id)) for entry in (await store.list_conversations(99))[0]]) == messages
        )

    await eventually(counted)


async def test_changes_of_one_conversation_at_once_are_all_made(pair: tuple[Store, Fragile], url: str) -> None:
    store, _ = pair
    made = await store.create_conversation()
    questions = [Question(f"{number}", id=f"q-{number}") for number in range(40)]
    await asyncio.gather(*(store.add_user_message(made.id, question) for question in questions))
    assert sorted(await contents(store, made.id), key=int) == [question.content for question in questions]


async def test_a_question_beside_one_that_is_refused_is_taken(pair: tuple[Store, Fragile]) -> None:
    """The disk has room for one of them: SQLite itself says that it is full."""
    store, file = pair
    conversation_id, reply_id = await begun(store)
    other = await asked(store)
    limit_pages(file, more=4)
    file.held.clear()
    blocking = asyncio.create_task(store.create_conversation())
    await eventually(lambda: not file.held.is_set() and file.arrived >= 6)
    await store.extend_reply(reply_id, "content", "innocent")
    outcomes = asyncio.gather(
        store.update_conversation(conversation_id, {"title": "x" * 200_000}),
        store.add_user_message(other, Question("small")),
        return_exceptions=True,
    )
    await some_turns(random.Random(1))
    file.held.set()
    refused, taken = await bounded(outcomes)
    await blocking
    assert isinstance(refused, StoreFull) and not isinstance(taken, BaseException)
    assert await store.settle_reply(reply_id) is None
    assert await contents(store, conversation_id) == ["Why?", "innocent"]


def limit_pages(file: File, more: int) -> None:
    """SQLite says that the disk is full when the file has grown by so many pages."""
    pages = file._figure("PRAGMA page_count")
    file._execute(f"PRAGMA max_page_count = {pages + more}").close()


# Text


async def test_text_that_cannot_be_written_ends_the_reply_at_once(pair: tuple[Store, Fragile]) -> None:
    store, file = pair
    conversation_id = await asked(store)
    owed = await store.begin_reply(conversation_id)
    await store.extend_reply(owed.message.id, "content", "kept ")
    assert await store.settle_reply(owed.message.id) is None
    assert owed.interruption
    with file.broken(FULL):
        await store.extend_reply(owed.message.id, "content", "lost")
        assert isinstance(await bounded(owed.interruption), StoreFull)
        with pytest.raises(StoreFull):
            await store.extend_reply(owed.message.id, "content", "more")
        assert isinstance(await store.settle_reply(owed.message.id), StoreFull)
    await store.finish_reply(conversation_id, owed.message.id, Ending("failed"))
    assert await contents(store, conversation_id) == ["Why?", "kept "]


async def test_text_is_shown_when_it_is_written(pair: tuple[Store, Fragile]) -> None:
    store, file = pair
    conversation_id, reply_id = await begun(store)
    file.held.clear()
    await store.extend_reply(reply_id, "content", "later")
    assert await contents(store, conversation_id) == ["Why?", ""]
    file.held.set()
    await store.settle_reply(reply_id)
    assert await contents(store, conversation_id) == ["Why?", "later"]


async def test_a_generation_waits_only_while_256_kib_of_its_text_are_not_written(pair: tuple[Store, Fragile]) -> None:
    store, file = pair
    conversation_id, reply_id = await begun(store)
    file.held.clear()
    for _ in range(8):
        await bounded(store.extend_reply(reply_id, "content", "x" * 32 * 1024))
    waiting = asyncio.create_task(store.extend_reply(reply_id, "content", "y"))
    await some_turns(random.Random(1))
    assert not waiting.done()
    file.held.set()
    await bounded(waiting)
    await store.settle_reply(reply_id)
    assert (await contents(store, conversation_id))[1] == "x" * 256 * 1024 + "y"


@pytest.mark.parametrize("error", [FULL, BROKEN])
async def test_who_waits_for_text_that_is_refused_is_told(pair: tuple[Store, Fragile], error: Exception) -> None:
    store, file = pair
    conversation_id, reply_id = await begun(store)
    with file.broken(error):
        file.held.clear()
        waiting = [asyncio.create_task(store.extend_reply(reply_id, "content", "x" * BEYOND))]
        waiting += [asyncio.create_task(store.extend_reply(reply_id, "content", "more"))]
        settling = asyncio.create_task(store.settle_reply(reply_id))
        await some_turns(random.Random(1))
        file.held.set()
        await bounded(asyncio.wait(waiting))
        assert await bounded(settling)
    await store.delete_conversation(conversation_id)


async def test_who_waits_for_text_of_a_reply_that_is_deleted_is_told(pair: tuple[Store, Fragile]) -> None:
    store, file = pair
    conversation_id, reply_id = await begun(store)
    file.held.clear()
    waiting = asyncio.create_task(store.extend_reply(reply_id, "content", "x" * BEYOND))
    await some_turns(random.Random(1))
    deleting = asyncio.create_task(store.delete_conversation(conversation_id))
    late = asyncio.create_task(store.extend_reply(reply_id, "content", "late"))
    settling = asyncio.create_task(store.settle_reply(reply_id))
    await some_turns(random.Random(1))
    file.held.set()
    await bounded(asyncio.gather(waiting, deleting, settling))
    with pytest.raises(NotFound):
        await bounded(late)
    await store.create_conversation()
    assert (file.count("pieces"), file.count("messages")) == (0, 0)


async def test_text_that_comes_while_its_conversation_is_changed_twice_leaves_nothing_behind(
    pair: tuple[Store, Fragile],
) -> None:
    store, file = pair
    conversation_id, reply_id = await begun(store)
    file.held.clear()
    changes = [store.update_conversation(conversation_id, {}), store.delete_conversation(conversation_id)]
    changing = [asyncio.create_task(change) for change in changes]
    await some_turns(random.Random(1))
    late = asyncio.create_task(store.extend_reply(reply_id, "content", "late"))
    await some_turns(random.Random(1))
    file.held.set()
    await bounded(asyncio.gather(*changing))
    with contextlib.suppress(NotFound):
        await bounded(late)
    await store.create_conversation()
    assert file.count("pieces") == 0


# The end of a reply


@pytest.mark.parametrize(("error", "code"), [(FULL, 507), (BROKEN, 503)])
async def test_a_reply_whose_text_is_refused_is_never_called_complete(
    url: str, upstream: ScriptedUpstream, error: Exception, code: int
) -> None:
    upstream.play(gated(gate := Gate(), "kept ", "lost"))
    async with serving(upstream, store_url=url) as relay:
        file = Fragile.newest
        conversation_id = await relay.ask()
        async with relay.stream(conversation_id) as reader:
            gate.open()
            await reader.until("kept ")
            with file.broken(error):
                gate.open_wide()
                last = (await bounded(reader.whole())).last
                message = (await relay.messages(conversation_id))[-1]
                assert (message["status"], message["content"]) == ("failed", "kept ")
                assert (message["error"]["code"], message["error"]) == (code, last["error"])
                assert "STORE_URL" in message["error"]["message"]
                assert (await relay.health())["store"] == "unreachable"
                assert_problem(await relay.client.post("/conversations"), code, "STORE_URL")
        shown = await relay.messages(conversation_id)
    async with serving(upstream, store_url=url) as relay:
        assert await relay.messages(conversation_id) == shown
        assert (await relay.health())["store"] == "ok"


async def test_an_ending_that_could_not_be_written_is_written_later(
    url: str, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(url) as (store, file):
        conversation_id, reply_id = await begun(store)
        await store.extend_reply(reply_id, "content", "Half")
        await store.settle_reply(reply_id)
        with file.broken():
            await store.abandon_reply(conversation_id, reply_id, Ending("failed"))
            attempts = file.arrived
            await eventually(lambda: file.arrived > attempts + 6)
            assert not store.is_reachable
            assert (await store.messages(conversation_id))[-1].status == "failed"
            assert file.count("pieces") == 1
        await eventually(lambda: store.is_reachable)
        assert file.count("pieces") == 0
        before = await everything(store)
        file.error = AssertionError("nothing is left to be written")
    async with opened(url) as (store, _):
        assert await everything(store) == before


async def test_while_an_ending_is_tried_again_there_is_one_timer(pair: tuple[Store, Fragile]) -> None:
    store, file = pair
    conversation_id, reply_id = await begun(store)
    with file.broken():
        await store.abandon_reply(conversation_id, reply_id, Ending("failed"))
        for _ in range(200):
            with pytest.raises(StoreFull):
                await store.create_conversation()
        loop = asyncio.get_running_loop()
        timers = [handle for handle in loop._scheduled if "_try_again" in repr(handle)]  # type: ignore[attr-defined]
        assert len(timers) <= 1


async def test_a_conversation_whose_reply_has_an_unwritten_ending_takes_no_other_change_before(
    url: str,
) -> None:
    """Else the ending, written later, would take the later messages with it."""
    async with opened(url) as (store, file):
        conversation_id, reply_id = await begun(store)
        refusing = Refusing(file, "failed")
        await store.abandon_reply(conversation_id, reply_id, Ending("failed"))
        with pytest.raises(StoreFull):
            await store.add_user_message(conversation_id, Question("And?"))
        await store.create_conversation()  # others are written
        refusing.stop()
        await eventually(lambda: store.is_reachable)
        await store.add_user_message(conversation_id, Question("And?"))
        before = await everything(store)
    async with opened(url) as (store, _):
        assert await everything(store) == before
        assert await contents(store, conversation_id) == ["Why?", "", "And?"]


class Refusing:
    """The file takes no change that ends a reply like this."""

    def __init__(self, file: Fragile, status: str) -> None:
        self._file, self._status, self._write = file, status, file.write
        file.write = self.write  # type: ignore[method-assign]

    def write(self, changes: Sequence[Change], pieces: Sequence[Piece]) -> None:
        """All others are written."""
        if any(message.status == self._status for change in changes for message in change.added):
            raise FULL
        self._write(changes, pieces)

    def stop(self) -> None:
        """From now on it takes everything."""
        self._file.write = self._write  # type: ignore[method-assign]


async def test_the_list_keeps_its_order_though_an_ending_overtakes_a_change(pair: tuple[Store, Fragile]) -> None:
    store, file = pair
    conversation_id, reply_id = await begun(store)
    other = (await store.create_conversation()).id
    file.held.clear()
    changing = asyncio.create_task(store.update_conversation(other, {"title": "Slow"}))
    await some_turns(random.Random(1))
    await store.abandon_reply(conversation_id, reply_id, Ending("failed"))
    file.held.set()
    await changing
    first, before = await store.list_conversations(1)
    second, _ = await store.list_conversations(1, before)
    assert [entry.id for entry in first + second] == [conversation_id, other]


async def test_closing_with_a_full_disk_ends_and_says_what_is_lost(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(url) as (store, file):
        conversation_id, reply_id = await begun(store)
        await store.extend_reply(reply_id, "content", "Half")
        await store.settle_reply(reply_id)
        file.error = FULL
        await store.abandon_reply(conversation_id, reply_id, Ending("stopped"))
    assert "1 replies have ended, and the file of STORE_URL couldn't be told" in caplog.text
    async with opened(url) as (store, _):
        message = (await store.messages(conversation_id))[-1]
        assert (message.status, message.transcript.content) == ("failed", "Half")


# Sums


async def test_text_that_is_refused_while_its_conversation_is_deleted_is_counted_once(url: str) -> None:
    async with opened(url, max_store_bytes=1000) as (store, file):
        conversation_id, reply_id = await begun(store)
        file.held.clear()
        await store.extend_reply(reply_id, "content", "on its way")
        arrived = file.arrived
        await eventually(lambda: file.arrived > arrived - 1)
        deleting = asyncio.create_task(store.delete_conversation(conversation_id))
        await some_turns(random.Random(1))
        file.error = FULL
        file.held.set()
        await eventually(lambda: not store.is_reachable)
        file.error = None
        with contextlib.suppress(StoreFull):
            await deleting
        await empty(store)
        await assert_has_all_its_room(store, 1000)


async def empty(store: Store) -> None:
    """Delete everything."""
    for entry in (await store.list_conversations(10_000))[0]:
        await store.delete_conversation(entry.id)


async def assert_has_all_its_room(store: Store, size: int) -> None:
    """Assert that an empty store takes so many bytes, and not one more."""
    assert await store.counts() == (0, 0)
    made = await store.create_conversation()
    with pytest.raises(StoreFull):
        await store.add_user_message(made.id, Question("x" * (size + 1)))
    await store.add_user_message(made.id, Question("x" * size))


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_fails_beside_whatever_the_file_has_what_is_shown_and_the_sums_are_exact(
    url: str, seed: int
) -> None:
    chance = random.Random(seed)
    async with opened(url, max_store_bytes=50_000, max_conversations=20) as (store, file):
        file.breaks_by_chance = chance
        await asyncio.gather(*(at_random(store, chance) for _ in range(8)))
        file.breaks_by_chance = None
        page, _ = await store.list_conversations(100)
        await store.delete_conversation(page[0].id)
        await eventually(lambda: store.is_reachable)
        before, sums = await everything(store), store._engine.sums
        times = [entry.updated_at for entry, _ in before]
        assert times == sorted(times, reverse=True) and times
    async with opened(url, max_store_bytes=50_000, max_conversations=20) as (store, file):
        assert await everything(store) == before
        assert store._engine.sums == sums
        assert file.count("pieces") == 0
        await empty(store)
        await assert_has_all_its_room(store, 50_000)
        assert (file.count("messages"), file.count("conversations")) == (1, 1)


async def at_random(store: Store, chance: random.Random) -> None:
    """Whatever may be asked of a store, for a while."""
    for _ in range(60):
        with contextlib.suppress(StoreError):
            page, _ = await store.list_conversations(100)
            what = chance.randrange(6)
            if what == 0 or not page:
                await store.create_conversation(title=chance.choice([None, "Title"]))
                continue
            conversation_id = chance.choice(page).id
            if what == 1:
                await store.update_conversation(conversation_id, {"system_prompt": "é" * chance.randrange(50)})
            elif what == 2 and chance.random() < 0.5:
                await store.delete_conversation(conversation_id)
            elif what == 3 and (messages := await store.messages(conversation_id)):
                await store.delete_messages_from(conversation_id, chance.choice(messages).id)
            else:
                await one_reply(store, chance, conversation_id)


async def one_reply(store: Store, chance: random.Random, conversation_id: str) -> None:
    """Asked, begun, made and ended as `Replies` does it."""
    owed = await store.ask(conversation_id, Question("Why? " * chance.randrange(1, 9)))
    if owed.turns is None:
        return
    ids = conversation_id, owed.message.id
    with contextlib.suppress(StoreError):
        for _ in range(chance.randrange(9)):
            await store.extend_reply(
                owed.message.id, chance.choice(["content", "reasoning"]), "é1" * chance.randrange(9)
            )
            await some_turns(chance)
    refusal = await bounded(store.settle_reply(owed.message.id))
    try:
        if refusal:
            raise refusal
        await store.finish_reply(*ids, Ending("complete"))
    except StoreError:
        await store.abandon_reply(*ids, Ending("failed"))
