"""What the server takes of several stores at once, and what it refuses: no text is lost, torn or said twice."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from result import Ending, Finish, Stopped
from store import Store
from stores.records import Question, StoreUnavailable
from stores.reply import OwnReply
from stores.valkey.keys import FENCE
from tests.support.replicas import Network, begun, relays, stores
from tests.support.servers import Server
from tests.support.upstream import Gate, ScriptedUpstream, gated
from tests.support.waiting import bounded, eventually

pytestmark = pytest.mark.engines("valkey")

STOPPED, COMPLETE = Stopped(), Finish("stop")


@pytest.fixture
async def network(shared: Server) -> AsyncIterator[Network]:
    """Between the store `far` and the server."""
    yield Network(shared.port)


@pytest.fixture
async def far(network: Network) -> AsyncIterator[str]:
    """The URL through that network."""
    async with network.laid() as url:
        yield url


async def said(store: Store, reply: OwnReply, text: str) -> None:
    """The reply goes on, and the server has that."""
    await store.extend_reply(reply, "content", text)
    assert await store.settle_reply(reply) is None


async def text_at(store: Store, conversation_id: str) -> tuple[str, str | None]:
    """Of the last message, with its status."""
    *_, last = await store.messages(conversation_id)
    return last.transcript.content, last.status


# An ending has all text that was delivered


async def test_a_reply_is_ended_with_all_that_its_relay_was_given(shared: Server) -> None:
    async with stores(shared.url, shared.url) as (here, there):
        conversation_id, reply = await begun(here)
        await said(here, reply, "one ")
        for word in ("two ", "three"):  # which wait for the next tick
            await here.extend_reply(reply, "content", word)
        ended = await here.finish_reply(conversation_id, reply.id, COMPLETE)
        assert ended and ended.transcript.content == "one two three"
        assert await text_at(there, conversation_id) == ("one two three", "complete")


async def test_a_reply_whose_last_text_was_refused_is_not_complete(
    upstream: ScriptedUpstream, shared: Server, network: Network, far: str
) -> None:
    """Though upstream had ended it before that was known."""
    upstream.play(gated(gate := Gate(), "one ", "two"))
    async with relays(upstream, far, 1) as [relay]:
        conversation_id = await relay.ask()
        async with relay.stream(conversation_id) as reader:
            gate.open()
            await reader.until("one ")
            network.delay = 0.1
            shared.said("CONFIG", "SET", "maxmemory", "1mb")
            gate.open_wide()
            whole = await reader.whole()
            assert (whole.content, whole.last["error"]["code"]) == ("one ", 507)
        assert (await relay.messages(conversation_id))[1]["status"] == "failed"


async def test_a_relay_cannot_end_its_reply_with_less_than_others_have_read(
    shared: Server, network: Network, far: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has text of which its relay never heard that it has."""
    monkeypatch.setattr("stores.valkey.writer.LEASE_TIMEOUT", 0.5)
    async with stores(far, shared.url) as (here, there):
        conversation_id, reply = await begun(here)
        await said(here, reply, "one ")
        network.deafen()
        await here.extend_reply(reply, "content", "two")
        await eventually(lambda: _says(there, conversation_id, "one two"))
        refusal = await here.settle_reply(reply)
        assert isinstance(refusal, StoreUnavailable)
        network.mend()
        with contextlib.suppress(StoreUnavailable):
            await here.abandon_reply(conversation_id, reply.id, STOPPED)
        await eventually(lambda: _has_ended(there, conversation_id))
        assert await text_at(there, conversation_id) == ("one two", "stopped")


async def _says(store: Store, conversation_id: str, text: str) -> bool:
    return (await text_at(store, conversation_id))[0] == text


async def _has_ended(store: Store, conversation_id: str) -> bool:
    return (await text_at(store, conversation_id))[1] != "streaming"


async def test_whoever_ends_a_reply_elsewhere_is_quicker_than_its_text(
    shared: Server, network: Network, far: str
) -> None:
    """However slow its line is: once it has asked, the relay that makes the reply can add nothing."""
    async with stores(shared.url, far) as (here, there):
        conversation_id, reply = await begun(here)
        network.delay = 0.02
        growing = asyncio.create_task(_grow(here, reply))
        await eventually(lambda: reply.transcript.kept > 100)
        ended = await bounded(there.finish_reply(conversation_id, reply.id, STOPPED), 3)
        await eventually(lambda: reply.interruption is not None)
        growing.cancel()
        assert ended and ended.transcript.content == reply.message.transcript.content
        assert await text_at(here, conversation_id) == (ended.transcript.content, "stopped")


async def _grow(store: Store, reply: OwnReply) -> None:
    for number in range(10_000):
        await store.extend_reply(reply, "content", f"{number} ")
        await asyncio.sleep(0.005)


@pytest.mark.row(
    "a relay is killed while it stops the reply", "`stopped` within 5 s", "`stopped` within 5 s", "its text is kept"
)
async def test_a_reply_that_was_fenced_off_by_a_relay_that_died_then_is_ended_by_its_own(
    upstream: ScriptedUpstream, shared: Server
) -> None:
    upstream.play(gated(gate := Gate(), "one ", "never"))
    async with relays(upstream, shared.url) as (here, there):
        conversation_id = await here.ask()
        async with here.stream(conversation_id) as mine, there.stream(conversation_id) as theirs:
            gate.open()
            start = (await mine.until("one ")).start
            await theirs.until("one ")
            shared.said("XADD", f"{{relay}}:r:{start['message_id']}", f"{FENCE}-0", "f", "")
            gate.open()
            for reader in (mine, theirs):
                whole = await bounded(reader.whole(), 5)
                assert (whole.content, whole.last["status"]) == ("one ", "stopped")
            await bounded(upstream.requests[0].gone.wait(), 2)
        assert (await there.messages(conversation_id))[1]["status"] == "stopped"


async def test_a_stop_elsewhere_in_the_moment_of_the_end_is_one_ending(shared: Server) -> None:
    chance = random.Random(1)
    async with stores(shared.url, shared.url) as (here, there):
        for _ in range(50):
            conversation_id, reply = await begun(here)
            await said(here, reply, "one ")
            ends = [
                _end(here, conversation_id, reply, COMPLETE, chance.random() / 250),
                _end(there, conversation_id, reply, STOPPED, chance.random() / 250),
            ]
            mine, theirs = await bounded(asyncio.gather(*ends), 5)
            assert mine == theirs == await text_at(there, conversation_id)
        assert shared.said("HLEN", "{relay}:running") == b":0\r\n"


async def _end(
    store: Store, conversation_id: str, reply: OwnReply, ending: Ending, after: float
) -> tuple[str, str | None]:
    """How the reply has ended, as that store tells it."""
    await asyncio.sleep(after)
    ended = await store.finish_reply(conversation_id, reply.id, ending)
    assert ended
    return ended.transcript.content, ended.status


# Text is added only where it belongs


async def test_what_a_failover_has_torn_off_is_said_again(shared: Server) -> None:
    async with stores(shared.url, shared.url) as (here, there):
        conversation_id, reply = await begun(here)
        await said(here, reply, "one ")
        await said(here, reply, "two ")
        stream = f"{{relay}}:r:{reply.id}"
        for command in (["DEL", stream], ["XADD", stream, "0-1", "s", ""], ["XADD", stream, "4-1", "c", "one "]):
            assert b"-ERR" not in shared.said(*command)
        await said(here, reply, "three")
        assert await text_at(there, conversation_id) == ("one two three", "streaming")
        assert await here.finish_reply(conversation_id, reply.id, COMPLETE)
        assert await text_at(there, conversation_id) == ("one two three", "complete")


async def test_text_whose_answer_was_lost_is_added_once(shared: Server, network: Network, far: str) -> None:
    async with stores(far, shared.url) as (here, there):
        conversation_id, reply = await begun(here)
        network.lose(b"two ")
        for word in ("one ", "two ", "three"):
            await said(here, reply, word)
        assert await text_at(there, conversation_id) == ("one two three", "streaming")


async def test_a_reply_waits_when_256_kib_of_it_are_not_stored(shared: Server, network: Network, far: str) -> None:
    async with stores(far, shared.url) as (here, there):
        conversation_id, reply = await begun(here)
        network.hold()
        piece = "x" * 64 * 1024
        for _ in range(4):
            await bounded(here.extend_reply(reply, "content", piece), 1)
        fifth = asyncio.create_task(here.extend_reply(reply, "content", piece))
        done, _ = await asyncio.wait({fifth}, timeout=0.5)
        assert not done
        network.mend()
        await bounded(fifth)
        assert await here.settle_reply(reply) is None
        assert await text_at(there, conversation_id) == (5 * piece, "streaming")


# A change is made once


async def test_a_question_whose_answer_was_lost_is_asked_once(shared: Server, network: Network, far: str) -> None:
    """Repeated by itself it would look like somebody else's, and be added behind that."""
    async with stores(far, shared.url) as (here, there):
        conversation_id = (await here.create_conversation()).id
        network.lose(b"Lost?")
        question = await here.add_user_message(conversation_id, Question("Lost?"))
        assert [message.id for message in await there.messages(conversation_id)] == [question.id]


# A full server makes room


@pytest.mark.parametrize("what", ["finish", "stop", "delete the conversation", "delete the question"])
async def test_a_full_server_takes_what_ends_and_deletes(shared: Server, what: str) -> None:
    async with stores(shared.url, shared.url) as (here, there):
        conversation_id, reply = await begun(here)
        await said(here, reply, "one ")
        empty = await here.create_conversation()
        shared.said("CONFIG", "SET", "maxmemory", "1mb")
        message_id = reply.id
        match what:
            case "finish":
                assert await here.finish_reply(conversation_id, message_id, COMPLETE)
            case "stop":
                assert await there.finish_reply(conversation_id, message_id, STOPPED)
            case "delete the conversation":
                await there.delete_conversation(conversation_id)
            case "delete the question":
                question = (await there.messages(conversation_id))[0]
                await there.delete_messages_from(conversation_id, question.id)
        assert shared.said("HLEN", "{relay}:running") == b":0\r\n"
        await eventually(lambda: reply.interruption is not None)
        await there.delete_conversation(empty.id)
