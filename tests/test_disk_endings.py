"""Replies whose end the file can't take, or not now: it is shown, kept later, and every byte is counted."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from result import Failure, Finish, Stopped
from store import Store
from stores.records import Question, StoreError, StoreFull
from stores.reply import BegunReply
from stores.snapshot import Change
from stores.sqlite import engine as sqlite
from stores.sqlite.file import Piece
from tests.support.fragile import BROKEN, FULL, Fragile, begun, contents, everything, opened
from tests.support.problems import assert_problem
from tests.support.relay import serving
from tests.support.stores import some_turns
from tests.support.upstream import Gate, ScriptedUpstream, gated
from tests.support.waiting import bounded, eventually

FAILED = Failure(502, "Broken", retryable=True)


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
        conversation_id, reply = await begun(store)
        await store.extend_reply(reply, "content", "Half")
        await store.settle_reply(reply)
        with file.broken():
            await store.abandon_reply(conversation_id, reply.id, FAILED)
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
    conversation_id, reply = await begun(store)
    with file.broken():
        await store.abandon_reply(conversation_id, reply.id, FAILED)
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
        conversation_id, reply = await begun(store)
        refusing = Refusing(file, "failed")
        await store.abandon_reply(conversation_id, reply.id, FAILED)
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
    conversation_id, reply = await begun(store)
    other = (await store.create_conversation()).id
    file.held.clear()
    changing = asyncio.create_task(store.update_conversation(other, {"title": "Slow"}))
    await some_turns(random.Random(1))
    await store.abandon_reply(conversation_id, reply.id, FAILED)
    file.held.set()
    await changing
    first, before = await store.list_conversations(1)
    second, _ = await store.list_conversations(1, before)
    assert [entry.id for entry in first + second] == [conversation_id, other]


async def test_closing_with_a_full_disk_ends_and_says_what_is_lost(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(url) as (store, file):
        conversation_id, reply = await begun(store)
        await store.extend_reply(reply, "content", "Half")
        await store.settle_reply(reply)
        file.error = FULL
        await store.abandon_reply(conversation_id, reply.id, Stopped())
    assert "1 replies have ended, and the file of STORE_URL couldn't be told" in caplog.text
    async with opened(url) as (store, _):
        message = (await store.messages(conversation_id))[-1]
        assert (message.status, message.transcript.content) == ("failed", "Half")


# Sums


async def test_text_that_is_refused_while_its_conversation_is_deleted_is_counted_once(url: str) -> None:
    async with opened(url, max_store_bytes=1000) as (store, file):
        conversation_id, reply = await begun(store)
        file.held.clear()
        await store.extend_reply(reply, "content", "on its way")
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
        before, sums = await everything(store), store._engine.totals
        times = [entry.updated_at for entry, _ in before]
        assert times == sorted(times, reverse=True) and times
    async with opened(url, max_store_bytes=50_000, max_conversations=20) as (store, file):
        assert await everything(store) == before
        assert store._engine.totals == sums
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
    assert isinstance(owed, BegunReply)
    ids = conversation_id, owed.reply.id
    with contextlib.suppress(StoreError):
        for _ in range(chance.randrange(9)):
            await store.extend_reply(owed.reply, chance.choice(["content", "reasoning"]), "é1" * chance.randrange(9))
            await some_turns(chance)
    refusal = await bounded(store.settle_reply(owed.reply))
    try:
        if refusal:
            raise refusal
        await store.finish_reply(*ids, Finish())
    except StoreError:
        await store.abandon_reply(*ids, FAILED)
