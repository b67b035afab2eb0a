"""`CONVERSATION_TTL`: what nobody has touched for so long is deleted, and never a reply in progress."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import store
from result import Finish, Stopped
from settings import Settings
from store import Store
from stores.records import Conversation, Question
from tests.support.engines import new_store_url
from tests.support.relay import Relay, serving
from tests.support.stores import begin
from tests.support.upstream import ANSWER, Gate, ScriptedUpstream, gated
from tests.support.waiting import eventually

pytestmark = pytest.mark.engines("memory", "sqlite")  # the server has a clock of its own

HOUR = 3600


class Clock:
    """The system's, which only the test moves."""

    def __init__(self) -> None:
        self.now = 1_770_000_000 * 10**9

    def later(self, seconds: float) -> None:
        """So many seconds pass."""
        self.now += int(seconds * 10**9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The stores' clock."""
    clock = Clock()
    monkeypatch.setattr(time, "time_ns", lambda: clock.now)
    return clock


@asynccontextmanager
async def opened(url: str | None = None, *, kind: type[Store] = Store, **settings: Any) -> AsyncIterator[Store]:
    """A store with a file of its own, unless that is told."""
    store = kind(Settings(model_name="m", store_url=new_store_url() if url is None else url, **settings))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def left(store: Store) -> set[str]:
    page, _ = await store.list_conversations(10_000)
    return {entry.id for entry in page}


async def test_what_is_older_is_deleted_and_what_is_younger_stays(clock: Clock) -> None:
    async with opened() as store:
        for id in ("old", "touched", "asked", "answered"):
            await store.create_conversation(id=id)
        await store.add_user_message("answered", Question("Why?"))
        reply = (await begin(store, "answered")).reply
        clock.later(HOUR)
        await store.create_conversation(id="new")
        await store.update_conversation("touched", {})
        await store.add_user_message("asked", Question("Why?"))
        await store.finish_reply("answered", reply.id, Finish())
        await store.delete_expired(HOUR)
        assert await left(store) == {"touched", "asked", "answered", "new"}
        await store.delete_expired(HOUR)
        assert await store.counts() == (4, 3)
        clock.later(HOUR + 1)
        await store.delete_expired(HOUR)
        assert await store.counts() == (0, 0)


async def test_one_with_a_reply_in_progress_stays_until_it_has_ended_and_grown_old(clock: Clock) -> None:
    async with opened() as store:
        await store.create_conversation(id="busy")
        await store.add_user_message("busy", Question("Why?"))
        reply = (await begin(store, "busy")).reply
        clock.later(HOUR * 2)
        await store.delete_expired(HOUR)
        assert await left(store) == {"busy"}
        await store.finish_reply("busy", reply.id, Stopped())
        await store.delete_expired(HOUR)
        assert await left(store) == {"busy"}
        clock.later(HOUR + 1)
        await store.delete_expired(HOUR)
        assert await left(store) == set()


async def test_one_whose_reply_begins_beside_a_look_stays_or_is_gone_before(clock: Clock) -> None:
    async with opened() as store:
        ids = [f"c-{number}" for number in range(30)]
        for id in ids:
            await store.create_conversation(id=id, messages=[{"role": "user", "content": "Why?"}])
        clock.later(HOUR * 2)
        begun = asyncio.gather(*(store.begin_reply(id) for id in ids), return_exceptions=True)
        await asyncio.gather(begun, store.delete_expired(HOUR))
        there = {id for id, outcome in zip(ids, await begun, strict=True) if not isinstance(outcome, BaseException)}
        assert await left(store) == there and there
        for id in there:
            assert await store.in_progress(id)


async def test_more_than_a_page_of_them_is_deleted_at_one_look(clock: Clock) -> None:
    async with opened(max_conversations=1000) as store:
        for number in range(450):
            await store.create_conversation(id=f"{number}")
            clock.later(1)
        await store.delete_expired(100.5)
        assert await left(store) == {f"{number}" for number in range(350, 450)}


@pytest.mark.parametrize("seconds", [1e12, 3e10, 5e10, 1.7e9])
async def test_a_very_long_time_deletes_nothing(clock: Clock, seconds: float) -> None:
    async with opened() as store:
        await store.create_conversation()
        await store.delete_expired(seconds)
        assert await store.counts() == (1, 0)


async def test_what_is_deleted_is_told_in_the_log(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "store")
    async with opened() as store:
        made: Conversation = await store.create_conversation()
        clock.later(HOUR + 1)
        await store.delete_expired(HOUR)
    assert f"Deleted conversation {made.id}" in caplog.text


async def test_a_service_looks_at_its_start_and_again_and_again(
    upstream: ScriptedUpstream, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.EXPIRY_INTERVAL < 15
    monkeypatch.setattr(store, "EXPIRY_INTERVAL", 0.01)
    upstream.play(gated(gate := Gate(), ANSWER))
    async with serving(upstream, conversation_ttl=HOUR) as relay:
        for _ in range(2):
            old, busy = (await relay.conversation())["id"], await relay.ask()
            async with relay.stream(busy) as reader:
                await reader.next()
                clock.later(HOUR + 1)
                await eventually(lambda id=old: is_gone(relay, id))  # type: ignore[misc]
                gate.open(2)
                assert (await reader.whole()).content == ANSWER
            assert [message["status"] for message in await relay.messages(busy)] == ["complete", "complete"]


async def is_gone(relay: Relay, conversation_id: str) -> bool:
    return (await relay.client.get(f"/conversations/{conversation_id}")).status_code == 404


async def test_without_a_time_nothing_is_deleted(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    others: list[float] = []
    monkeypatch.setattr(store, "EXPIRY_INTERVAL", 0.0)
    async with opened(kind=looking(looks)):
        clock.later(10 * 365 * 24 * HOUR)
        async with opened(kind=looking(others), conversation_ttl=HOUR):
            await eventually(lambda: len(others) > 2)
    assert looks == []


async def test_a_look_that_fails_is_logged_and_the_next_one_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "EXPIRY_INTERVAL", 0.0)
    looks: list[float] = []
    async with opened(kind=looking(looks, failure := OSError("a text")), conversation_ttl=5.0):
        await eventually(lambda: len(looks) > 2)
    assert looks[:3] == [5.0, 5.0, 5.0]
    assert "could not be deleted" in caplog.text and str(failure) not in caplog.text


def looking(looks: list[float], failure: Exception | None = None) -> type[Store]:
    """A store that notes its looks for expired conversations, and fails the first one."""

    class Looking(Store):
        async def delete_expired(self, seconds: float) -> None:
            looks.append(seconds)
            if failure and len(looks) == 1:
                raise failure

    return Looking
