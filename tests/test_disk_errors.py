"""Changes and text that the file can't take, or not now: nothing is half done, and nobody waits for ever."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from result import Failure, Finish
from store import Store
from stores.records import NotFound, Question, Repeated, StoreError, StoreFull, StoreUnavailable
from stores.sqlite import engine as sqlite
from stores.sqlite.file import File
from tests.support.fragile import BROKEN, FULL, Fragile, asked, begun, contents, everything, opened
from tests.support.stores import begin, some_turns
from tests.support.waiting import bounded, eventually

BEYOND = 300 * 1024
"""Characters of a reply that the file is waited for."""


@pytest.fixture(autouse=True)
def _fragile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "File", Fragile)
    monkeypatch.setattr(sqlite, "FILE_RETRY_INTERVAL", 0.02)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Where the conversations are."""
    return f"sqlite:///{tmp_path}/chat.db"


@pytest.fixture
async def pair(url: str) -> AsyncIterator[tuple[Store, Fragile]]:
    """A store with room enough, and its file."""
    async with opened(url) as pair:
        yield pair


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


# A disk that hangs


@contextlib.contextmanager
def hanging(file: Fragile) -> Iterator[None]:
    """It takes nothing, within, and those who wait are told sooner than usual."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite, "COMMIT_TIMEOUT", 0.05)
        patch.setattr(sqlite, "DISK_TIMEOUT", 0.2)
        file.held.clear()
        yield
    file.held.set()


async def test_whoever_asks_for_a_change_is_told_in_time_that_the_disk_hangs_and_may_ask_again(
    pair: tuple[Store, Fragile], caplog: pytest.LogCaptureFixture
) -> None:
    store, file = pair
    conversation_id = await asked(store)
    with hanging(file):
        for question in (Question("And?", id="q-1"), Question("And?", id="q-1"), Question("Else?", id="q-2")):
            with pytest.raises(StoreUnavailable, match="STORE_URL doesn't answer"):
                await bounded(store.add_user_message(conversation_id, question), 2)
        assert not store.is_reachable
        assert await contents(store, conversation_id) == ["Why?"]
    await eventually(lambda: store.is_reachable)
    with pytest.raises(Repeated):
        await store.add_user_message(conversation_id, Question("And?", id="q-1"))
    assert await contents(store, conversation_id) == ["Why?", "And?"]
    assert caplog.text.count("can't be written (it hangs)") == caplog.text.count("can be written again") == 1


async def test_a_reply_whose_text_waits_for_a_disk_that_hangs_ends_and_has_what_was_written(
    url: str,
) -> None:
    async with opened(url) as (store, file):
        conversation_id = await asked(store)
        owed = await begin(store, conversation_id)
        await store.extend_reply(owed.reply, "content", "written ")
        await store.settle_reply(owed.reply)
        with hanging(file):
            await store.extend_reply(owed.reply, "content", "never")
            await eventually(lambda: isinstance(owed.reply.interruption, StoreUnavailable))
            refusal = await bounded(store.settle_reply(owed.reply), 2)
            assert isinstance(refusal, StoreUnavailable)
            ending = Failure(503, str(refusal), retryable=True)
            ended = await bounded(store.abandon_reply(conversation_id, owed.reply.id, ending), 2)
            assert ended and (ended.status, ended.transcript.content) == ("failed", "written ")
        await eventually(lambda: store.is_reachable)
    async with opened(url) as (again, _):
        assert await contents(again, conversation_id) == ["Why?", "written "]


async def test_a_reply_that_a_disk_begins_after_its_caller_was_told_that_it_hangs_is_ended(
    pair: tuple[Store, Fragile],
) -> None:
    store, file = pair
    conversation_id = await asked(store)
    with hanging(file), pytest.raises(StoreUnavailable):
        await bounded(store.begin_reply(conversation_id), 2)

    async def is_failed() -> bool:
        return [message.status for message in await store.messages(conversation_id)] == ["complete", "failed"]

    await eventually(is_failed)
    assert [*(await begin(store, conversation_id)).turns] == [("user", "Why?")]


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
    conversation_id, reply = await begun(store)
    other = await asked(store)
    limit_pages(file, more=4)
    file.held.clear()
    blocking = asyncio.create_task(store.create_conversation())
    await eventually(lambda: not file.held.is_set() and file.arrived >= 6)
    await store.extend_reply(reply, "content", "innocent")
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
    assert await store.settle_reply(reply) is None
    assert await contents(store, conversation_id) == ["Why?", "innocent"]


def limit_pages(file: File, more: int) -> None:
    """SQLite says that the disk is full when the file has grown by so many pages."""
    pages = file._figure("PRAGMA page_count")
    file._execute(f"PRAGMA max_page_count = {pages + more}").close()


async def test_what_has_changes_is_flushed_to_the_disk_and_text_alone_is_not(pair: tuple[Store, Fragile]) -> None:
    store, file = pair
    conversation_id, reply = await begun(store)
    for text in ("One ", "two "):
        await store.extend_reply(reply, "content", text)
        await store.settle_reply(reply)
    await store.finish_reply(conversation_id, reply.id, Finish())
    assert file.flushed == [(True, True)] * 3 + [(False, False)] * 2 + [(True, True)]


# Text


async def test_text_that_cannot_be_written_ends_the_reply_at_once(pair: tuple[Store, Fragile]) -> None:
    store, file = pair
    conversation_id = await asked(store)
    owed = await begin(store, conversation_id)
    await store.extend_reply(owed.reply, "content", "kept ")
    assert await store.settle_reply(owed.reply) is None
    with file.broken(FULL):
        await store.extend_reply(owed.reply, "content", "lost")
        await eventually(lambda: isinstance(owed.reply.interruption, StoreFull))
        with pytest.raises(StoreFull):
            await store.extend_reply(owed.reply, "content", "more")
        assert isinstance(await store.settle_reply(owed.reply), StoreFull)
    await store.finish_reply(conversation_id, owed.reply.id, Failure(502, "Broken", retryable=True))
    assert await contents(store, conversation_id) == ["Why?", "kept "]


async def test_text_is_shown_when_it_is_written(pair: tuple[Store, Fragile]) -> None:
    store, file = pair
    conversation_id, reply = await begun(store)
    file.held.clear()
    await store.extend_reply(reply, "content", "later")
    assert await contents(store, conversation_id) == ["Why?", ""]
    file.held.set()
    await store.settle_reply(reply)
    assert await contents(store, conversation_id) == ["Why?", "later"]


async def test_a_generation_waits_only_while_256_kib_of_its_text_are_not_written(pair: tuple[Store, Fragile]) -> None:
    store, file = pair
    conversation_id, reply = await begun(store)
    file.held.clear()
    for _ in range(8):
        await bounded(store.extend_reply(reply, "content", "x" * 32 * 1024))
    waiting = asyncio.create_task(store.extend_reply(reply, "content", "y"))
    await some_turns(random.Random(1))
    assert not waiting.done()
    file.held.set()
    await bounded(waiting)
    await store.settle_reply(reply)
    assert (await contents(store, conversation_id))[1] == "x" * 256 * 1024 + "y"


@pytest.mark.parametrize("error", [FULL, BROKEN])
async def test_who_waits_for_text_that_is_refused_is_told(pair: tuple[Store, Fragile], error: Exception) -> None:
    store, file = pair
    conversation_id, reply = await begun(store)
    with file.broken(error):
        file.held.clear()
        waiting = [asyncio.create_task(store.extend_reply(reply, "content", "x" * BEYOND))]
        waiting += [asyncio.create_task(store.extend_reply(reply, "content", "more"))]
        settling = asyncio.create_task(store.settle_reply(reply))
        await some_turns(random.Random(1))
        file.held.set()
        await bounded(asyncio.wait(waiting))
        assert await bounded(settling)
    await store.delete_conversation(conversation_id)


async def test_who_waits_for_text_of_a_reply_that_is_deleted_is_told(pair: tuple[Store, Fragile]) -> None:
    store, file = pair
    conversation_id, reply = await begun(store)
    file.held.clear()
    waiting = asyncio.create_task(store.extend_reply(reply, "content", "x" * BEYOND))
    await some_turns(random.Random(1))
    deleting = asyncio.create_task(store.delete_conversation(conversation_id))
    late = asyncio.create_task(store.extend_reply(reply, "content", "late"))
    settling = asyncio.create_task(store.settle_reply(reply))
    await some_turns(random.Random(1))
    file.held.set()
    await bounded(asyncio.gather(waiting, deleting, late, settling))
    with pytest.raises(NotFound):
        await store.extend_reply(reply, "content", "later")
    await store.create_conversation()
    assert (file.count("pieces"), file.count("messages")) == (0, 0)


async def test_text_that_comes_while_its_conversation_is_changed_twice_leaves_nothing_behind(
    pair: tuple[Store, Fragile],
) -> None:
    store, file = pair
    conversation_id, reply = await begun(store)
    file.held.clear()
    changes = [store.update_conversation(conversation_id, {}), store.delete_conversation(conversation_id)]
    changing = [asyncio.create_task(change) for change in changes]
    await some_turns(random.Random(1))
    late = asyncio.create_task(store.extend_reply(reply, "content", "late"))
    await some_turns(random.Random(1))
    file.held.set()
    await bounded(asyncio.gather(*changing))
    with contextlib.suppress(NotFound):
        await bounded(late)
    await store.create_conversation()
    assert file.count("pieces") == 0
