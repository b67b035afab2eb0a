"""Requests that ask, ask again, edit, stop and delete while a store takes its time: one question, one generation.

Where a test holds a `GatedStore` at a method, the store has done its part and whoever asked doesn't know it yet.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest

import server
from replies import Replies
from tests.support.engines import on_dicts, on_each_engine
from tests.support.problems import assert_problem
from tests.support.readers import Reader
from tests.support.relay import EVENTS, Relay, comes_behind, serving
from tests.support.sse import Block, Parser
from tests.support.stores import GatedStore, SlowStore, some_turns
from tests.support.upstream import ANSWER, Gate, ScriptedUpstream, UpstreamRequest, Wire, answer, gated
from tests.support.waiting import bounded, eventually

pytestmark = on_each_engine

PLAIN: dict[str, str] = {}

is_slow = pytest.mark.usefixtures("_slow")
is_gated = pytest.mark.usefixtures("_gated")
both_forms = pytest.mark.parametrize("form", [PLAIN, EVENTS], ids=["plain", "streaming"])


async def delete(relay: Relay, path: str) -> httpx.Response:
    return await bounded(relay.client.delete(f"/conversations/{path}"))


def blocks(response: httpx.Response) -> list[Block]:
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    found = Parser().feed(response.content)
    assert [block.is_terminal for block in found].count(True) == 1 and found[-1].is_terminal
    return found


def text(response: httpx.Response) -> str:
    return "".join(block.content for block in blocks(response))


def ended(response: httpx.Response) -> str:
    """How its reply ended."""
    return str(blocks(response)[-1].json.get("status", "failed"))


async def has_only(relay: Relay, conversation_id: str, *expected: str) -> bool:
    return await relay.contents(conversation_id) == list(expected)


@asynccontextmanager
async def asking(relay: Relay, conversation_id: str, **body: Any) -> AsyncIterator[Reader]:
    """A reader whose question it is, from the stream's beginning on."""
    path = f"/conversations/{conversation_id}/messages"
    async with relay.client.stream("POST", path, json={"content": "Hi", **body}, headers=EVENTS) as response:
        assert response.status_code == 200
        yield Reader(response)


def hold(*methods: str) -> Gate:
    """A gate behind these methods of the store."""
    gate = Gate()
    GatedStore.gates |= dict.fromkeys(methods, gate)
    return gate


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Replies]:
    """The replies of the services that the test makes."""
    all_made: list[Replies] = []

    class Noted(Replies):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            all_made.append(self)

    monkeypatch.setattr(server, "Replies", Noted)
    return all_made


# A store that is slow at everything


@is_slow
async def test_equal_posts_of_both_forms_at_once_are_one_question_and_one_generation(
    upstream: ScriptedUpstream,
) -> None:
    chance = random.Random(3)
    async with serving(upstream, max_replies=1) as relay:
        for number in range(6):
            conversation_id = (await relay.conversation(id=f"chat-{number}"))["id"]
            forms = [EVENTS, PLAIN] * 10
            chance.shuffle(forms)
            posts = (relay.post(conversation_id, form, id="q", after=None) for form in forms)
            responses = await asyncio.gather(*posts)
            streams = [response for response in responses if "event-stream" in response.headers["content-type"]]
            plain = [response for response in responses if response not in streams]
            assert {text(response) for response in streams} == {ANSWER}
            assert len({response.headers["x-message-id"] for response in streams}) == 1
            assert len({response.text for response in plain}) == 1
            assert sorted(response.status_code for response in plain)[:-1] == [200] * 9
            assert await relay.contents(conversation_id) == ["Hi", ANSWER]
            assert (len(upstream.requests), SlowStore.begun) == (number + 1, number + 1)


@pytest.mark.bound(120)
@is_slow
async def test_a_slow_store_leaves_nothing_in_progress_whatever_is_asked_at_once(upstream: ScriptedUpstream) -> None:
    """Questions of both forms, repeated, edits, streams, stops, deletes, at random, of the same few ids."""
    chance = random.Random(13)
    upstream.play(answer("one two three four", pieces=4))
    generations: dict[str, str] = {}
    async with serving(upstream) as relay:

        async def places(conversation_id: str) -> list[str | None]:
            path = f"/conversations/{conversation_id}/messages"
            found = (await relay.client.get(path)).json().get("messages", [])
            generations.update({m["generation_id"]: m["id"] for m in found if m["generation_id"]})
            return [None, *(message["id"] for message in found)]

        async def act(conversation_id: str) -> None:
            await some_turns(chance)
            place = chance.choice(await places(conversation_id))
            body = {"id": chance.choice(["q1", "q2"])} | ({"after": place} if chance.random() < 0.6 else {})
            match chance.randrange(10):
                case 0:
                    allowed, response = {200, 204, 404}, await delete(relay, f"{conversation_id}/stream")
                case 1:
                    allowed, response = {204, 404}, await delete(relay, f"{conversation_id}/messages/{place}")
                case 2:
                    allowed, response = {204, 404}, await delete(relay, conversation_id)
                    await relay.client.post("/conversations", json={"id": conversation_id})
                case 3 | 4:
                    allowed = {200, 204, 404, 409}
                    params = {"join": chance.choice(["true", "false"])}
                    stream = relay.client.get(f"/conversations/{conversation_id}/stream", params=params)
                    response = await bounded(stream)
                case 5:  # and leave
                    allowed = {200, 404, 409}
                    path = f"/conversations/{conversation_id}/messages"
                    leaving = relay.client.stream("POST", path, json={"content": "Hi", **body}, headers=EVENTS)
                    async with leaving as response:
                        pass
                case case:
                    allowed = {200, 201, 404, 409}
                    response = await relay.post(conversation_id, [PLAIN, EVENTS][case % 2], **body)
            assert response.status_code in allowed, (response.request, response.status_code)
            if response.is_stream_consumed and "event-stream" in response.headers.get("content-type", ""):
                assert ended(response) in ("complete", "stopped")
                assert "one two three four".startswith(text(response))
                assert ended(response) == "stopped" or text(response) == "one two three four"

        async def converse(conversation_id: str) -> None:
            await relay.client.post("/conversations", json={"id": conversation_id})
            for _ in range(on_dicts(6, 3)):
                await asyncio.gather(*(act(conversation_id) for _ in range(6)))

        await asyncio.gather(*(converse(f"chat-{number}") for number in range(6)))
        await relay.idle()
        counted = 0
        for number in range(6):
            messages = await relay.messages(f"chat-{number}")
            counted += len(messages)
            assert {message["status"] for message in messages} <= {"complete", "stopped"}
            assert [message["role"] for message in messages if message["id"] in ("q1", "q2")] == ["user"] * sum(
                message["id"] in ("q1", "q2") for message in messages
            )
        assert (await relay.health())["messages"] == counted
        assert len(upstream.requests) <= SlowStore.begun  # one that is stopped at once isn't asked for
        assert len(set(generations.values())) == len(generations)
        assert (await relay.read(await relay.ask())).content == "one two three four"


# Asked again


@is_gated
async def test_a_stream_beside_a_repeated_post_is_of_the_reply_that_is_owed(upstream: ScriptedUpstream) -> None:
    upstream.queue(answer("first"), answer("second"))
    async with serving(upstream) as relay:
        conversation_id = (await relay.conversation())["id"]
        await relay.post(conversation_id, EVENTS, id="q1")
        await relay.post(conversation_id, PLAIN, id="q2")
        found = hold("ask")
        repeating = asyncio.create_task(relay.post(conversation_id, EVENTS, id="q1"))
        await found.reached()
        reading = asyncio.create_task(relay.read(conversation_id))
        await comes_behind(relay, reading)
        found.open_wide()
        assert text(await repeating) == "first"
        transcript = await bounded(reading)
    assert (transcript.content, transcript.start["question_id"]) == ("second", "q2")
    assert len(upstream.requests) == 2


@is_gated
async def test_a_reader_that_looks_while_a_reply_is_begun_reads_it(upstream: ScriptedUpstream) -> None:
    async with serving(upstream) as relay:
        conversation_id = (await relay.conversation())["id"]
        looking, asked = hold("before in_progress"), hold("ask")
        path = f"/conversations/{conversation_id}/stream"
        joining = asyncio.create_task(relay.client.get(path, params={"join": "true"}))
        await looking.reached()
        asking = asyncio.create_task(relay.post(conversation_id, EVENTS))
        await asked.reached()
        looking.open_wide()
        await comes_behind(relay, joining)
        asked.open_wide()
        assert text(await bounded(joining)) == text(await bounded(asking)) == ANSWER


@is_gated
async def test_a_stream_beside_one_whose_question_is_deleted_is_of_the_next_question(
    upstream: ScriptedUpstream,
) -> None:
    async with serving(upstream) as relay:
        conversation_id = (await relay.conversation())["id"]
        await relay.post(conversation_id, PLAIN, id="q1")
        begun = hold("begin_reply")
        first = asyncio.create_task(relay.read(conversation_id))
        await begun.reached()
        assert (await delete(relay, f"{conversation_id}/messages/q1")).status_code == 204
        assert (await relay.post(conversation_id, PLAIN, id="q2")).status_code == 201
        second = asyncio.create_task(relay.read(conversation_id))
        await comes_behind(relay, second)
        begun.open_wide()
        transcripts = await bounded(asyncio.gather(first, second))
        told = [(t.start["question_id"], t.last["status"]) for t in transcripts]
        assert told == [("q1", "stopped"), ("q2", "complete")]
        assert await relay.contents(conversation_id) == ["Hi", ANSWER]


@is_gated
async def test_a_question_that_is_deleted_while_it_is_repeated_is_a_new_one(upstream: ScriptedUpstream) -> None:
    async with serving(upstream) as relay:
        conversation_id = (await relay.conversation(messages=[{"role": "user", "content": "Before"}]))["id"]
        await relay.post(conversation_id, EVENTS, id="q1")
        found = hold("ask")
        repeating = asyncio.create_task(relay.post(conversation_id, EVENTS, id="q1"))
        await found.reached()
        deleting = asyncio.create_task(delete(relay, f"{conversation_id}/messages/q1"))
        await eventually(lambda: has_only(relay, conversation_id, "Before"))
        found.open_wide()
        repeated = await repeating
        assert (await deleting).status_code == 204
        assert (blocks(repeated)[0].json["question_id"], text(repeated)) == ("q1", ANSWER)
        assert await relay.contents(conversation_id) == ["Before", "Hi", ANSWER]
        assert len(upstream.requests) == 2


@is_gated
async def test_a_conversation_that_is_deleted_while_a_question_is_repeated_is_a_404(upstream: ScriptedUpstream) -> None:
    async with serving(upstream) as relay:
        conversation_id = (await relay.conversation())["id"]
        await relay.post(conversation_id, EVENTS, id="q1")
        found = hold("ask")
        repeating = asyncio.create_task(relay.post(conversation_id, EVENTS, id="q1"))
        await found.reached()
        assert (await delete(relay, conversation_id)).status_code == 204
        found.open_wide()
        assert_problem(await repeating, 404)
        assert len(upstream.requests) == 1


@is_gated
async def test_a_reply_that_is_deleted_while_its_reader_comes_back_is_a_204(upstream: ScriptedUpstream) -> None:
    upstream.play(gated(Gate(), "never sent"))
    async with serving(upstream) as relay:
        conversation_id = (await relay.conversation())["id"]
        async with asking(relay, conversation_id) as reader:
            start = await reader.next()
            found = hold("message")
            resuming = asyncio.create_task(relay.post(conversation_id, EVENTS | {"Last-Event-ID": start.id or ""}))
            await found.reached()
            del GatedStore.gates["message"]
            assert (await delete(relay, f"{conversation_id}/messages/{start.json['message_id']}")).status_code == 204
            assert (await reader.whole()).last["status"] == "stopped"
        found.open_wide()
        resumed = await resuming
        if (await relay.health())["engine"] == "valkey":  # where others may make it: it is followed to its end
            assert '"status": "stopped"' in resumed.text
        else:
            assert resumed.status_code == 204


@is_gated
async def test_a_caller_that_leaves_in_the_middle_of_a_streaming_post_finds_its_answer(
    upstream: ScriptedUpstream,
) -> None:
    async with serving(upstream) as relay:
        conversation_id = (await relay.conversation())["id"]
        asked = hold("ask")
        leaving = asyncio.create_task(relay.post(conversation_id, EVENTS, id="q1"))
        await asked.reached()
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
        again = asyncio.create_task(relay.post(conversation_id, EVENTS, id="q1"))
        await comes_behind(relay, again)
        asked.open_wide()
        assert text(await again) == ANSWER
        assert await relay.contents(conversation_id) == ["Hi", ANSWER]
        assert len(upstream.requests) == 1


# Edits


async def silent_but_to_edited(request: UpstreamRequest, wire: Wire) -> None:
    is_edited = request.body is not None and request.body["messages"][-1]["content"] == "edited"
    await (answer() if is_edited else gated(Gate(), "never sent"))(request, wire)


@both_forms
@is_gated
async def test_an_edit_ends_a_reply_that_a_slow_store_is_beginning(
    upstream: ScriptedUpstream, form: dict[str, str]
) -> None:
    upstream.play(silent_but_to_edited)
    async with serving(upstream) as relay:
        conversation_id = await relay.ask()
        begun = hold("begin_reply")
        reading = asyncio.create_task(relay.read(conversation_id))
        await begun.reached()
        editing = asyncio.create_task(relay.post(conversation_id, form, content="edited", after=None))
        if form:  # the plain one waits for nobody
            await comes_behind(relay, editing)
        else:
            await editing
        begun.open_wide()
        edited = await editing
        assert (await bounded(reading)).last["status"] == "stopped"
        assert edited.status_code == (200 if form else 201)
        assert await relay.contents(conversation_id) == ["edited"] + [ANSWER] * bool(form)
        await relay.idle()


@is_gated
async def test_a_stop_beside_an_edit_stops_the_reply_to_the_edit(upstream: ScriptedUpstream) -> None:
    upstream.play(gated(Gate(), "never sent"))
    async with serving(upstream) as relay:
        conversation_id = (await relay.conversation())["id"]
        async with asking(relay, conversation_id) as reader:
            asked = hold("ask")
            editing = asyncio.create_task(relay.post(conversation_id, EVENTS, id="edit", after=None))
            await asked.reached()
            stopping = asyncio.create_task(delete(relay, f"{conversation_id}/stream"))
            await comes_behind(relay, stopping)
            asked.open_wide()
            stopped = (await stopping).json()
            assert (await reader.whole()).last["status"] == "stopped"
        edited = blocks(await editing)
        assert (edited[0].json["question_id"], edited[-1].json["status"]) == ("edit", "stopped")
        assert (stopped["id"], stopped["status"]) == (edited[0].json["message_id"], "stopped")
        assert (await relay.health())["replies_in_progress"] == 0


@pytest.mark.parametrize("what", ["", "/messages/edit"], ids=["conversation", "question"])
@is_gated
async def test_what_is_deleted_beside_an_edit_ends_its_reply(upstream: ScriptedUpstream, what: str) -> None:
    upstream.play(gated(Gate(), "never sent"))
    async with serving(upstream) as relay:
        conversation_id = (await relay.conversation())["id"]
        async with asking(relay, conversation_id) as reader:
            asked = hold("ask")
            editing = asyncio.create_task(relay.post(conversation_id, EVENTS, id="edit", after=None))
            await asked.reached()
            assert (await delete(relay, conversation_id + what)).status_code == 204
            asked.open_wide()
            assert [(await reader.whole()).last["status"], ended(await editing)] == ["stopped"] * 2
        health = await relay.health()
        assert (health["messages"], health["replies_in_progress"]) == (0, 0)


@is_gated
async def test_two_edits_at_once_are_made_one_after_the_other(upstream: ScriptedUpstream) -> None:
    async def script(request: UpstreamRequest, wire: Wire) -> None:
        is_last = request.body["messages"][-1]["content"] == "two"
        await (answer() if is_last else gated(Gate(), "never sent"))(request, wire)

    upstream.play(script)
    async with serving(upstream, max_replies=1) as relay:
        conversation_id = (await relay.conversation())["id"]
        async with asking(relay, conversation_id) as reader:
            asked = hold("ask")
            editing = [asyncio.create_task(relay.post(conversation_id, EVENTS, content="one", after=None))]
            await asked.reached()
            editing.append(asyncio.create_task(relay.post(conversation_id, EVENTS, content="two", after=None)))
            await comes_behind(relay, editing[1])
            asked.open_wide()
            assert (await reader.whole()).last["status"] == "stopped"
        assert [ended(response) for response in await bounded(asyncio.gather(*editing))] == ["stopped", "complete"]
        assert await relay.contents(conversation_id) == ["two", ANSWER]


@is_gated
async def test_an_edit_has_the_room_of_the_reply_that_it_stops_once_that_has_ended(
    upstream: ScriptedUpstream,
) -> None:
    upstream.queue(gated(Gate(), "never sent"))
    async with serving(upstream, max_replies=1) as relay:
        conversation_id = (await relay.conversation())["id"]
        async with asking(relay, conversation_id) as reader:
            await upstream.called()
            finished = hold("finish_reply")
            editing = asyncio.create_task(relay.post(conversation_id, EVENTS, after=None))
            await finished.reached()
            await comes_behind(relay, editing)
            assert ((await relay.health())["replies_in_progress"], len(upstream.requests)) == (1, 1)
            finished.open_wide()
            assert [ended(await editing), (await reader.whole()).last["status"]] == ["complete", "stopped"]


@is_gated
async def test_an_edit_has_no_room_of_a_reply_that_ended_before(upstream: ScriptedUpstream) -> None:
    upstream.play(gated(gate := Gate(), "one"))
    async with serving(upstream, max_replies=1) as relay:
        conversation_id, other = (await relay.conversation())["id"], (await relay.conversation())["id"]
        async with asking(relay, conversation_id) as reader:
            found = hold("check_is_new", "reply_to")
            editing = asyncio.create_task(relay.post(conversation_id, EVENTS, after=None))
            await found.reached()
            gate.open(2)
            await reader.whole()
        GatedStore.gates.clear()
        async with asking(relay, other) as reader:
            found.open_wide()
            assert_problem(await editing, 503, "MAX_REPLIES")
            gate.open_wide()
            assert (await reader.whole()).content == "one"
        assert await relay.contents(conversation_id) == ["Hi", "one"]


# A conversation that is deleted and made again with its id


@is_gated
async def test_a_conversation_that_is_made_again_knows_nothing_of_the_reply_that_ends(
    upstream: ScriptedUpstream,
) -> None:
    upstream.play(gated(Gate(), "never sent"))
    async with serving(upstream) as relay:
        await relay.conversation(id="chat")
        async with asking(relay, "chat") as reader:
            deleted = hold("delete_conversation")
            deleting = asyncio.create_task(delete(relay, "chat"))
            await deleted.reached()
            assert (await relay.conversation(id="chat"))["message_count"] == 0
            joined = await bounded(relay.client.get("/conversations/chat/stream", params={"join": "true"}))
            assert [joined.status_code, (await delete(relay, "chat/stream")).status_code] == [204, 204]
            deleted.open_wide()
            assert [(await deleting).status_code, (await reader.whole()).last["status"]] == [204, "stopped"]
        await relay.idle()


# Draining


@is_gated
async def test_what_was_asked_before_is_answered_while_draining_and_nothing_new(
    upstream: ScriptedUpstream, made: list[Replies]
) -> None:
    upstream.queue(answer("first"), gated(gate := Gate(), "second"))
    async with serving(upstream) as relay:
        owed, conversation_id = await relay.ask(id="q0"), (await relay.conversation())["id"]
        await relay.post(conversation_id, EVENTS, id="q1")
        async with asking(relay, conversation_id, id="q2") as reader:
            await upstream.called(2)
            found = hold("ask")
            repeating = [asyncio.create_task(relay.post(conversation_id, EVENTS, id="q1"))]
            await found.reached()
            draining = asyncio.create_task(made[0].drain(20))
            await eventually(lambda: made[0].draining)
            repeating.append(asyncio.create_task(relay.post(conversation_id, EVENTS, id="q2")))
            await comes_behind(relay, repeating[1])
            found.open_wide()
            assert text(await repeating[0]) == text(await relay.post(conversation_id, EVENTS, id="q1")) == "first"
            for id in ("q1", "q2"):
                assert (await relay.post(conversation_id, PLAIN, id=id)).json()["id"] == id
            for new in ({}, {"id": "q3"}, {"id": "q3", "after": None}):
                for form in (PLAIN, EVENTS):
                    assert_problem(await relay.post(conversation_id, form, **new), 503, "restarting")
            assert (await relay.post(owed, PLAIN, id="q0")).status_code == 200
            assert_problem(await relay.post(owed, EVENTS, id="q0"), 503, "restarting")
            gate.open_wide()
            assert [text(await repeating[1]), (await reader.whole()).content] == ["second"] * 2
        assert text(await relay.post(conversation_id, EVENTS, id="q2")) == "second"
        await bounded(draining)
        assert await relay.contents(conversation_id) == ["Hi", "first", "Hi", "second"]
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("method", ["ask", "begin_reply"])
@is_gated
async def test_a_reply_that_a_slow_store_begins_after_the_end_of_a_drain_asks_nobody(
    upstream: ScriptedUpstream, made: list[Replies], method: str
) -> None:
    async with serving(upstream) as relay:
        is_post = method == "ask"
        conversation_id = (await relay.conversation())["id"] if is_post else await relay.ask()
        begun, path = hold(method), f"/conversations/{conversation_id}"
        request = relay.post(conversation_id, EVENTS) if is_post else relay.client.get(f"{path}/stream")
        asking = asyncio.create_task(request)
        await begun.reached()
        made[0].cut()
        begun.open_wide()
        last = blocks(await bounded(asking))[-1].json
        assert (last["error"]["code"], last["error"]["retryable"]) == (503, True)
        assert [message["status"] for message in await relay.messages(conversation_id)] == ["complete", "failed"]
    assert upstream.requests == []
