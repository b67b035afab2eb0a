"""Asking twice is asking once: ids that clients choose, requests that are repeated, edits in one step, imports."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.support.engines import on_each_engine
from tests.support.problems import assert_problem
from tests.support.relay import EVENTS, Relay, serving
from tests.support.sse import Block, Parser
from tests.support.upstream import ANSWER, Gate, ScriptedUpstream, answer, gated, status
from tests.support.waiting import bounded


def events(response: httpx.Response) -> list[Block]:
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    return Parser().feed(response.content)


def text(response: httpx.Response) -> str:
    blocks = events(response)
    assert blocks[-1].is_terminal
    return "".join(block.content for block in blocks)


# Conversations


async def test_a_conversation_with_the_id_of_one_there_is_is_that_one(relay: Relay) -> None:
    first = await relay.client.post("/conversations", json={"id": "my-chat_1", "title": "Mine"})
    assert (first.status_code, first.headers["Location"]) == (201, "/conversations/my-chat_1")
    again = await relay.client.post("/conversations", json={"id": "my-chat_1", "title": "Other"})
    assert (again.status_code, again.headers["Location"]) == (200, "/conversations/my-chat_1")
    assert again.json() == first.json() and again.json()["title"] == "Mine"


async def test_an_existing_conversation_is_found_in_a_full_store(upstream: ScriptedUpstream) -> None:
    async with serving(upstream, max_conversations=1) as relay:
        assert (await relay.client.post("/conversations", json={"id": "one"})).status_code == 201
        assert_problem(await relay.client.post("/conversations", json={"id": "two"}), 507, "MAX_CONVERSATIONS")
        assert (await relay.client.post("/conversations", json={"id": "one"})).status_code == 200


@pytest.mark.parametrize("id", ["", " ", "a b", "ä", "x" * 65, "a/b", "a:b", 7, ["a"]])
async def test_an_id_of_another_form_is_refused(relay: Relay, id: object) -> None:
    response = await relay.client.post("/conversations", json={"id": id})
    assert_problem(response, 422, "1 to 64 characters of A-Z a-z 0-9 _ -")
    assert_problem(await relay.post((await relay.conversation())["id"], id=id), 422, "1 to 64 characters")


@on_each_engine
async def test_an_import_is_a_conversation_with_its_messages(upstream: ScriptedUpstream, relay: Relay) -> None:
    said = [
        {"role": "assistant", "content": "Welcome!"},
        {"role": "user", "content": "Why?\nReally"},
        {"role": "assistant", "content": "Because.", "model": "test/one"},
        {"role": "user", "content": "And?", "model": "test/two"},
    ]
    conversation = await relay.conversation(messages=said)
    assert (conversation["title"], conversation["message_count"]) == ("Why?", 4)
    messages = await relay.messages(conversation["id"])
    assert [(m["role"], m["content"], m["model"], m["status"]) for m in messages] == [
        ("assistant", "Welcome!", None, "complete"),
        ("user", "Why?\nReally", None, "complete"),
        ("assistant", "Because.", "test/one", "complete"),
        ("user", "And?", "test/two", "complete"),
    ]
    transcript = await relay.read(conversation["id"])
    assert (transcript.content, transcript.start["question_id"]) == (ANSWER, messages[3]["id"])
    request = await upstream.called()
    assert [turn["content"] for turn in request.body["messages"]] == [turn["content"] for turn in said]
    assert request.body["model"] == "test/two"


@pytest.mark.parametrize(
    ("messages", "field", "complaint"),
    [
        ({}, "messages", "must be a list of messages, or null"),
        ("Hi", "messages", "must be a list of messages, or null"),
        (["Hi"], "messages.0", "must be a JSON object"),
        ([{"content": "Hi"}], "messages.0.role", "is required"),
        ([{"role": "system", "content": "Hi"}], "messages.0.role", "must be user or assistant"),
        ([{"role": "user"}], "messages.0.content", "is required"),
        ([{"role": "user", "content": " "}], "messages.0.content", "must not be blank"),
        ([{"role": "user", "content": "Hi", "id": "a"}], "messages.0.id", "is not a field here"),
        ([{"role": "user", "content": "Hi"}] * 3, "messages", "must have at most 2 messages (MAX_MESSAGES)"),
    ],
    ids=str,
)
async def test_an_import_of_another_form_is_refused_as_a_whole(
    upstream: ScriptedUpstream, messages: object, field: str, complaint: str
) -> None:
    async with serving(upstream, max_messages=2) as relay:
        response = await relay.client.post("/conversations", json={"messages": messages})
        assert_problem(response, 422)
        assert response.json()["errors"] == [{"field": field, "message": complaint}]
        assert (await relay.health())["conversations"] == 0


# Questions


async def test_a_question_that_is_repeated_is_the_same_message(upstream: ScriptedUpstream, relay: Relay) -> None:
    conversation_id = (await relay.conversation())["id"]
    first = await relay.post(conversation_id, id="q1", model="test/one")
    assert (first.status_code, first.json()["id"]) == (201, "q1")
    for _ in range(2):
        again = await relay.post(conversation_id, id="q1", model="test/one")
        assert (again.status_code, again.json()) == (200, first.json())
        assert (await relay.read(conversation_id)).content == ANSWER if not upstream.requests else True
    assert (await relay.contents(conversation_id), len(upstream.requests)) == (["Hi", ANSWER], 1)


@on_each_engine
async def test_twenty_equal_posts_at_once_are_one_question(upstream: ScriptedUpstream, relay: Relay) -> None:
    conversation_id = (await relay.conversation())["id"]
    responses = await asyncio.gather(*(relay.post(conversation_id, id="q1") for _ in range(20)))
    assert sorted(response.status_code for response in responses) == [200] * 19 + [201]
    assert len({response.text for response in responses}) == 1
    assert await relay.contents(conversation_id) == ["Hi"]


@on_each_engine
async def test_twenty_equal_posts_that_stream_are_one_generation_and_twenty_equal_answers(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    conversation_id = (await relay.conversation())["id"]
    responses = await asyncio.gather(*(relay.post(conversation_id, EVENTS, id="q1") for _ in range(20)))
    assert {text(response) for response in responses} == {ANSWER}
    assert len({response.headers["X-Message-Id"] for response in responses}) == 1
    assert (await relay.contents(conversation_id), len(upstream.requests)) == (["Hi", ANSWER], 1)


@on_each_engine
async def test_a_repeated_post_joins_its_reply_in_progress(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(gated(gate := Gate(), "one ", "two"))
    conversation_id = (await relay.conversation())["id"]
    posting = [asyncio.create_task(relay.post(conversation_id, EVENTS, id="q1"))]
    gate.open()
    await gate.reached(2)
    posting.append(asyncio.create_task(relay.post(conversation_id, EVENTS, id="q1")))
    plain = await relay.post(conversation_id, id="q1")
    assert (plain.status_code, plain.json()["id"]) == (200, "q1")
    gate.open_wide()
    assert [text(response) for response in await bounded(asyncio.gather(*posting))] == ["one two"] * 2
    assert len(upstream.requests) == 1


async def test_a_repeated_post_replays_the_first_reply_whatever_came_later(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.queue(answer("first"), answer("second"))
    conversation_id = (await relay.conversation())["id"]
    assert text(await relay.post(conversation_id, EVENTS, id="q1")) == "first"
    assert text(await relay.post(conversation_id, EVENTS, id="q2")) == "second"
    assert text(await relay.post(conversation_id, EVENTS, id="q1", after=None)) == "first"
    assert (await relay.contents(conversation_id), len(upstream.requests)) == (["Hi", "first", "Hi", "second"], 2)


async def test_a_failed_reply_is_replayed_and_not_asked_again(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(status(400))
    conversation_id = (await relay.conversation())["id"]
    first = await relay.post(conversation_id, EVENTS, id="q1")
    assert events(first)[-1].json["error"]["code"] == 400
    again = await relay.post(conversation_id, EVENTS, id="q1")
    assert (again.text, len(upstream.requests)) == (first.text, 1)


@on_each_engine
async def test_a_stopped_reply_is_replayed(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(gated(gate := Gate(), "one ", "two"))
    conversation_id = (await relay.conversation())["id"]
    posting = asyncio.create_task(relay.post(conversation_id, EVENTS, id="q1"))
    gate.open()
    await gate.reached(2)
    assert (await relay.stop(conversation_id)).status_code == 200
    first, again = await bounded(posting), await relay.post(conversation_id, EVENTS, id="q1")
    assert [text(first), text(again)] == ["one "] * 2
    assert events(again)[-1].json["status"] == "stopped" and len(upstream.requests) == 1


async def test_a_repeated_post_whose_question_has_no_reply_yet_starts_the_one_that_is_owed(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    conversation_id = (await relay.conversation())["id"]
    assert (await relay.post(conversation_id, id="q1")).status_code == 201
    assert text(await relay.post(conversation_id, EVENTS, id="q1")) == ANSWER
    assert len(upstream.requests) == 1


async def test_a_repeated_post_is_found_where_no_new_one_would_be_taken(upstream: ScriptedUpstream) -> None:
    upstream.play(gated(gate := Gate(), "one"))
    async with serving(upstream, max_replies=1, max_messages=2) as relay:
        conversation_id = (await relay.conversation())["id"]
        posting = asyncio.create_task(relay.post(conversation_id, EVENTS, id="q1"))
        await gate.reached()
        assert_problem(await relay.post(conversation_id, id="q2"), 409)
        other = (await relay.conversation())["id"]
        assert_problem(await relay.post(other, EVENTS, id="q1"), 503, "MAX_REPLIES")
        joining = asyncio.create_task(relay.post(conversation_id, EVENTS, id="q1"))
        assert (await relay.post(conversation_id, id="q1")).status_code == 200
        gate.open_wide()
        assert [text(response) for response in await bounded(asyncio.gather(posting, joining))] == ["one"] * 2
        assert_problem(await relay.post(conversation_id, id="q2"), 507, "MAX_MESSAGES")
        assert text(await relay.post(conversation_id, EVENTS, id="q1")) == "one"
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("other", [{"content": "Other"}, {"model": "test/two"}, {"model": None}], ids=str)
@pytest.mark.parametrize("headers", [{}, EVENTS], ids=["plain", "streaming"])
async def test_the_id_of_another_question_is_a_409_and_nothing_changes(
    upstream: ScriptedUpstream, relay: Relay, other: dict[str, Any], headers: dict[str, str]
) -> None:
    conversation_id = (await relay.conversation())["id"]
    body: dict[str, Any] = {"id": "q1", "model": "test/one"}
    await relay.post(conversation_id, **body)
    for after in ({}, {"after": None}):
        assert_problem(await relay.post(conversation_id, headers, **body | other | after), 409, "`id`")
    assert (await relay.contents(conversation_id), upstream.requests) == (["Hi"], [])


async def test_the_id_of_a_reply_is_a_409(relay: Relay) -> None:
    conversation_id = await relay.ask()
    reply_id = (await relay.read(conversation_id)).start["message_id"]
    assert_problem(await relay.post(conversation_id, id=reply_id, content=ANSWER), 409, "`id`")
    assert_problem(await relay.post(conversation_id, id=reply_id, after=None), 409, "`id`")


async def test_an_id_is_new_again_once_its_message_is_deleted_and_in_every_conversation(relay: Relay) -> None:
    one, two = (await relay.conversation())["id"], (await relay.conversation())["id"]
    assert (await relay.post(one, id="q1")).status_code == 201
    assert (await relay.post(two, id="q1", content="Other")).status_code == 201
    assert (await relay.client.delete(f"/conversations/{one}/messages/q1")).status_code == 204
    assert (await relay.post(one, id="q1", content="New")).status_code == 201
    assert (await relay.contents(one), await relay.contents(two)) == (["New"], ["Other"])


async def test_an_id_of_null_is_as_if_none_were_given(relay: Relay) -> None:
    conversation_id = (await relay.conversation(id=None))["id"]
    for _ in range(2):
        assert (await relay.post(conversation_id, id=None)).status_code == 201
    assert await relay.contents(conversation_id) == ["Hi", "Hi"]


# Edit and resend


@on_each_engine
@pytest.mark.parametrize("headers", [{}, EVENTS], ids=["plain", "streaming"])
async def test_after_removes_what_is_behind_it_and_adds_the_question_in_one_step(
    upstream: ScriptedUpstream, relay: Relay, headers: dict[str, str]
) -> None:
    conversation_id = (await relay.conversation())["id"]
    for id in ("q1", "q2", "q3"):
        await relay.post(conversation_id, EVENTS, id=id, content=id)
    [_, first, *_] = await relay.messages(conversation_id)
    response = await relay.post(conversation_id, headers, id="edit", content="edited", after=first["id"])
    assert response.status_code == (200 if headers else 201)
    assert (await relay.contents(conversation_id))[:3] == ["q1", ANSWER, "edited"]
    again = await relay.post(conversation_id, headers, id="edit", content="edited", after=first["id"])
    assert again.status_code == 200
    assert await relay.contents(conversation_id) == ["q1", ANSWER, "edited"] + [ANSWER] * bool(headers)
    sent = [turn["content"] for turn in upstream.requests[-1].body["messages"]]
    assert not headers or sent == ["q1", ANSWER, "edited"]


async def test_after_null_begins_anew_and_so_does_the_title(relay: Relay) -> None:
    conversation_id = await relay.ask("Old title")
    await relay.read(conversation_id)
    assert (await relay.post(conversation_id, content="New title", after=None)).status_code == 201
    assert await relay.contents(conversation_id) == ["New title"]
    conversation = await relay.shown(conversation_id)
    assert (conversation["title"], conversation["message_count"]) == ("New title", 1)


async def test_after_the_last_message_is_the_end(relay: Relay) -> None:
    conversation_id = await relay.ask()
    [question] = await relay.messages(conversation_id)
    assert (await relay.post(conversation_id, content="And?", after=question["id"])).status_code == 201
    assert await relay.contents(conversation_id) == ["Hi", "And?"]


@on_each_engine
@pytest.mark.parametrize("headers", [{}, EVENTS], ids=["plain", "streaming"])
async def test_an_edit_stops_the_reply_that_it_removes(upstream: ScriptedUpstream, headers: dict[str, str]) -> None:
    upstream.queue(gated(gate := Gate(), "one ", "two"))
    async with serving(upstream, max_replies=1) as relay:
        conversation_id = await relay.ask()
        async with relay.stream(conversation_id) as reader:
            gate.open()
            await reader.until("one ")
            refused = await relay.post(conversation_id, headers)
            assert_problem(refused, 503 if headers else 409, "in progress")
            edited = await relay.post(conversation_id, headers, content="edited", after=None)
            last = (await reader.whole()).last
        assert (edited.status_code, last["status"]) == (200 if headers else 201, "stopped")
        await bounded(upstream.requests[0].gone.wait())
        assert await relay.contents(conversation_id) == ["edited"] + [ANSWER] * bool(headers)
        await relay.idle()


async def test_after_the_reply_in_progress_itself_is_a_409_and_after_nothing_known_a_404(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.play(gated(gate := Gate(), "one"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        reply_id = (await reader.next()).json["message_id"]
        for headers in ({}, EVENTS):
            assert_problem(await relay.post(conversation_id, headers, after=reply_id), 409, "`after`")
            for unknown in ("", "nowhere", reply_id + "x"):
                assert_problem(await relay.post(conversation_id, headers, after=unknown), 404, "no message")
        assert_problem(await relay.post(conversation_id, after=7), 422, "id of a message")
        gate.open_wide()
        assert (await reader.whole()).content == "one"
    assert await relay.contents(conversation_id) == ["Hi", "one"]


@on_each_engine
async def test_an_edit_that_has_no_room_changes_nothing(upstream: ScriptedUpstream) -> None:
    async with serving(upstream, max_store_bytes=50) as relay:
        conversation_id = await relay.ask("a question")
        await relay.read(conversation_id)
        for headers in ({}, EVENTS):
            response = await relay.post(conversation_id, headers, content="x" * 51, after=None)
            assert_problem(response, 507, "MAX_STORE_BYTES")
        assert await relay.contents(conversation_id) == ["a question", ANSWER]
        assert (await relay.post(conversation_id, content="x" * 50, after=None)).status_code == 201


# Readers that come back with the POST that they began with


@pytest.mark.parametrize("place", ["header", "last_event_id", "lastEventId"])
async def test_a_post_with_the_last_id_is_a_reader_that_comes_back(
    upstream: ScriptedUpstream, relay: Relay, place: str
) -> None:
    conversation_id = (await relay.conversation())["id"]
    first = events(await relay.post(conversation_id, EVENTS))
    path = f"/conversations/{conversation_id}/messages"

    async def comes_back(id: str) -> httpx.Response:
        headers = EVENTS | ({"Last-Event-ID": id} if place == "header" else {})
        params = {} if place == "header" else {place: id}
        return await relay.client.post(path, params=params, headers=headers, content=b"not looked at")

    for number, block in enumerate(first[:-1]):
        assert block.id
        rest = events(await comes_back(block.id))
        assert [b.raw for b in rest[1:]] == [b.raw for b in first[number + 1 :]] or number == 0
        assert "".join(b.content for b in rest) == "".join(b.content for b in first[number + 1 :])
    assert first[-1].id
    assert (await comes_back(first[-1].id)).status_code == 204
    assert_problem(await comes_back("nothing known"), 400, "Last-Event-ID")
    assert (await relay.contents(conversation_id), len(upstream.requests)) == (["Hi", ANSWER], 1)


# Opening a conversation


async def test_join_follows_a_reply_in_progress_and_starts_nothing(upstream: ScriptedUpstream, relay: Relay) -> None:
    conversation_id = await relay.ask()
    path, join = f"/conversations/{conversation_id}/stream", {"join": "true"}
    assert (await relay.client.get(path, params=join)).status_code == 204
    upstream.queue(gated(gate := Gate(), "one"), status(400))
    async with relay.stream(conversation_id) as reader:
        await reader.next()
        [_, message] = await relay.messages(conversation_id)
        assert message["last_event_id"] == f"{message['id']}:0"
        async with relay.stream(conversation_id, params=join) as joined:
            gate.open_wide()
            assert [(await one.whole()).content for one in (reader, joined)] == ["one", "one"]
    assert (await relay.client.get(path, params=join)).status_code == 204
    await relay.say(conversation_id)
    assert (await relay.read(conversation_id)).last["error"]["code"] == 400
    assert (await relay.client.get(path, params=join)).status_code == 204
    assert_problem(await relay.client.get(path, params={"join": "yes"}), 422, "true or false")
    assert len(upstream.requests) == 2
