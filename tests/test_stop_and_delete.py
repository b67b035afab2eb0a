"""Replies that are stopped, deleted, asked for again or edited, at good moments and at bad ones."""

import asyncio
import random
from typing import Any

import httpx
import pytest

from tests.support.contract import nulls
from tests.support.engines import on_dicts, on_each_engine
from tests.support.problems import assert_problem
from tests.support.readers import Transcript
from tests.support.relay import NOWHERE, Relay
from tests.support.scripts import hanging, silence
from tests.support.upstream import ANSWER, Gate, ScriptedUpstream, answer, gated
from tests.support.waiting import bounded, eventually

pytestmark = on_each_engine


WORDY = hanging(*["word "] * 50)


async def delete(relay: Relay, conversation_id: str, message_id: str | None = None) -> None:
    path = f"/conversations/{conversation_id}" + (f"/messages/{message_id}" if message_id else "")
    assert (await bounded(relay.client.delete(path))).status_code == 204


def stopped(start: dict[str, Any], *, is_served: bool = True) -> dict[str, Any]:
    """The last event of a stream that began so and was stopped, before upstream had said who serves it or after."""
    told = {name: start[name] for name in ("message_id", "model")}
    served = {"served_model": f"{told['model']}-20260224", "provider": "DeepInfra"} if is_served else {}
    return nulls("DoneEvent") | told | served | {"done": True, "status": "stopped"}


# Stop


async def test_a_stop_before_the_first_token_ends_the_reply_without_text(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.play(gated(Gate(), "never sent"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        start = (await reader.next()).json
        request = await upstream.called()
        response = await relay.stop(conversation_id)
        transcript = await reader.whole()
    assert (response.status_code, response.json()) == (200, (await relay.messages(conversation_id))[1])
    assert (response.json()["id"], response.json()["status"]) == (start["message_id"], "stopped")
    assert (response.json()["content"], response.json()["error"]) == ("", None)
    assert (transcript.content, transcript.last) == ("", stopped(start, is_served=False))
    await bounded(request.gone.wait())


async def test_a_stop_in_the_middle_keeps_the_text_that_has_arrived(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(gated(gate := Gate(), "one ", "two ", "never sent"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as first, relay.stream(conversation_id) as second:
        gate.open(2)
        await first.until("one two ")
        response = await relay.stop(conversation_id)
        transcripts = [await reader.whole() for reader in (first, second)]
    assert [(t.content, t.last) for t in transcripts] == [("one two ", stopped(t.start)) for t in transcripts]
    _, reply = await relay.messages(conversation_id)
    assert (response.status_code, response.json()) == (200, reply)
    assert (reply["content"], reply["status"], reply["finish_reason"]) == ("one two ", "stopped", None)
    assert reply["generation_id"] == upstream.requests[0].generation_id
    await bounded(upstream.requests[0].gone.wait())
    assert (await relay.health())["replies_in_progress"] == 0


async def test_a_stop_works_though_upstream_has_not_even_sent_headers(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(silence)
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        await upstream.called()
        response = await bounded(relay.stop(conversation_id), 2)
        assert (await reader.whole()).last["status"] == "stopped"
    assert response.json()["status"] == "stopped"
    await bounded(upstream.requests[0].gone.wait())


async def test_a_stop_in_the_same_moment_as_the_start_leaves_nothing_running(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.play(gated(Gate(), "never sent"))
    for _ in range(10):
        conversation_id = await relay.ask()
        transcript, response = await asyncio.gather(
            asyncio.create_task(relay.read(conversation_id)), asyncio.create_task(stopping(relay, conversation_id))
        )
        assert (transcript.last["status"], response.json()["status"]) == ("stopped", "stopped")
    await eventually(lambda: upstream.connections == 0)


async def stopping(relay: Relay, conversation_id: str) -> httpx.Response:
    """Stop as soon as there is something to stop."""
    async with asyncio.timeout(10):
        while (response := await relay.stop(conversation_id)).status_code == 204:
            pass
    return response


async def test_stopping_twice_is_no_error(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(gated(Gate(), "never sent"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        await reader.next()
        responses = [await relay.stop(conversation_id) for _ in range(3)]
    assert [response.status_code for response in responses] == [200, 204, 204]
    assert responses[1].content == b""


async def test_stops_that_come_together_all_get_an_answer(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(gated(gate := Gate(), "one ", "never sent"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        gate.open()
        await reader.until("one ")
        responses = await asyncio.gather(*(relay.stop(conversation_id) for _ in range(10)))
        assert (await reader.whole()).last["status"] == "stopped"
    _, reply = await relay.messages(conversation_id)
    assert {response.status_code for response in responses} <= {200, 204}
    granted = [response.json() for response in responses if response.status_code == 200]
    assert granted and granted == [reply] * len(granted)


async def test_there_is_nothing_to_stop_before_a_reply_and_after_it(upstream: ScriptedUpstream, relay: Relay) -> None:
    conversation_id = (await relay.conversation())["id"]
    assert (await relay.stop(conversation_id)).status_code == 204
    await relay.say(conversation_id)
    assert (await relay.stop(conversation_id)).status_code == 204
    await relay.read(conversation_id)
    assert (await relay.stop(conversation_id)).status_code == 204
    assert (await relay.messages(conversation_id))[1]["status"] == "complete"
    assert_problem(await relay.stop(NOWHERE), 404)


async def test_a_stopped_reply_can_be_resumed_to_its_end(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(gated(gate := Gate(), "one ", "two ", "never sent"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        gate.open(2)
        await reader.until("one two ")
        await relay.stop(conversation_id)
        whole = await reader.whole()
    for seen, id in enumerate(whole.ids[:-1], start=1):
        rest = await relay.read(conversation_id, id)
        assert (Transcript(whole.blocks[:seen]).content + rest.content, rest.last) == ("one two ", whole.last)


async def test_a_question_may_follow_a_stopped_reply(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.queue(gated(Gate(), "never sent"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        await reader.next()
        await relay.stop(conversation_id)
    await relay.say(conversation_id, "Again")
    assert (await relay.read(conversation_id)).content == ANSWER


# Delete


async def test_readers_of_a_conversation_that_is_deleted_get_done(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(gated(gate := Gate(), "one ", "never sent"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as first, relay.stream(conversation_id) as second:
        gate.open()
        await first.until("one ")
        await delete(relay, conversation_id)
        transcripts = [await reader.whole() for reader in (first, second)]
    assert [(t.content, t.last) for t in transcripts] == [("one ", stopped(t.start)) for t in transcripts]
    await bounded(upstream.requests[0].gone.wait())
    health = await relay.health()
    assert (health["conversations"], health["messages"], health["replies_in_progress"]) == (0, 0, 0)
    async with relay.stream(conversation_id, transcripts[0].ids[0]) as reader:
        assert_problem(reader.response, 404)


@pytest.mark.parametrize("which", [0, 1])
async def test_readers_of_a_reply_that_is_deleted_get_done(
    upstream: ScriptedUpstream, relay: Relay, which: int
) -> None:
    """Deleting the reply itself, or the question before it, which takes it along."""
    upstream.play(gated(gate := Gate(), "one ", "never sent"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        gate.open()
        await reader.until("one ")
        messages = await relay.messages(conversation_id)
        await delete(relay, conversation_id, messages[which]["id"])
        transcript = await reader.whole()
    assert (transcript.content, transcript.last) == ("one ", stopped(transcript.start))
    assert await relay.messages(conversation_id) == messages[:which]
    await bounded(upstream.requests[0].gone.wait())
    assert (await relay.health())["replies_in_progress"] == 0
    async with relay.stream(conversation_id, transcript.ids[0]) as reader:
        assert reader.response.status_code == 204


@pytest.mark.parametrize("what", ["conversation", "message"])
async def test_a_delete_works_though_upstream_has_not_even_sent_headers(
    upstream: ScriptedUpstream, relay: Relay, what: str
) -> None:
    upstream.play(silence)
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        start = (await reader.next()).json
        await upstream.called()
        await delete(relay, conversation_id, start["message_id"] if what == "message" else None)
        assert (await reader.whole()).last == stopped(start, is_served=False)
    await bounded(upstream.requests[0].gone.wait())


async def test_a_delete_and_a_stop_that_come_together_both_get_an_answer(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.play(WORDY)
    for _ in range(20):
        conversation_id = await relay.ask()
        async with relay.stream(conversation_id) as reader:
            await reader.next()
            halt, gone = await asyncio.gather(
                relay.stop(conversation_id), relay.client.delete(f"/conversations/{conversation_id}")
            )
            assert (halt.status_code in (200, 204, 404), gone.status_code) == (True, 204)
            assert (await reader.whole()).last["status"] == "stopped"
    await eventually(lambda: upstream.connections == 0)


async def test_an_old_message_can_be_deleted_after_which_its_question_is_owed_again(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.queue(answer("first"), answer("second"), answer("new first"))
    conversation_id = await relay.ask("one")
    await relay.read(conversation_id)
    await relay.say(conversation_id, "two")
    await relay.read(conversation_id)
    first = (await relay.messages(conversation_id))[1]
    await delete(relay, conversation_id, first["id"])
    assert (await relay.read(conversation_id)).content == "new first"
    assert await relay.contents(conversation_id) == ["one", "new first"]


# Regenerate, edit and resend


async def test_a_deleted_reply_is_generated_again(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.queue(answer("first try"), answer("second try"))
    conversation_id = await relay.ask("Hi")
    first = await relay.read(conversation_id)
    await delete(relay, conversation_id, first.start["message_id"])
    second = await relay.read(conversation_id, params={"model": "test/other"})
    assert (second.content, second.start["model"]) == ("second try", "test/other")
    assert second.start["message_id"] != first.start["message_id"]
    assert await relay.contents(conversation_id) == ["Hi", "second try"]
    sent = [request.body["messages"] for request in upstream.requests]
    assert sent == [[{"role": "user", "content": "Hi"}]] * 2


async def test_a_reply_in_progress_is_generated_again(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.queue(WORDY, answer("second try"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        start = (await reader.next()).json
        await reader.until("word ")
        await delete(relay, conversation_id, start["message_id"])
        assert (await relay.read(conversation_id)).content == "second try"
        assert (await reader.whole()).last == stopped(start)
    assert await relay.contents(conversation_id) == ["Hi", "second try"]


async def test_a_question_is_edited_and_sent_again(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.queue(answer("first"), WORDY, answer("third"))
    conversation_id = await relay.ask("one")
    await relay.read(conversation_id)
    question = await relay.say(conversation_id, "two, mistyped")
    async with relay.stream(conversation_id) as reader:
        await reader.until("word ")
        await delete(relay, conversation_id, question["id"])
        await relay.say(conversation_id, "two, edited")
        assert (await relay.read(conversation_id)).content == "third"
        assert (await reader.whole()).last["status"] == "stopped"
    listed = await relay.contents(conversation_id)
    assert listed == ["one", "first", "two, edited", "third"]
    sent = [turn["content"] for turn in upstream.requests[-1].body["messages"]]
    assert sent == ["one", "first", "two, edited"]


# The pool


@pytest.mark.bound(120)
async def test_three_hundred_stops_at_random_moments_leave_the_pool_usable(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.play(WORDY)
    chance = random.Random(300)

    async def ask_and_stop(conversation_id: str) -> None:
        await relay.say(conversation_id)
        async with relay.stream(conversation_id) as reader:
            await reader.next()
            if chance.random() < 0.3:
                await reader.until("word ")
            for _ in range(chance.randrange(40)):  # turns of the event loop that the service runs in, too
                await asyncio.sleep(0)
            assert (await relay.stop(conversation_id)).json()["status"] == "stopped"
            assert (await reader.whole()).last["status"] == "stopped"

    ids = [(await relay.conversation())["id"] for _ in range(20)]
    for _ in range(on_dicts(15, 3)):
        await asyncio.gather(*(ask_and_stop(id) for id in ids))
    await eventually(lambda: upstream.connections == 0)
    upstream.play(answer("Still there"))
    contents = await asyncio.gather(*(read_one(relay) for _ in range(20)))
    assert contents == ["Still there"] * 20
    assert (await relay.health())["replies_in_progress"] == 0


async def read_one(relay: Relay) -> str:
    return (await relay.read(await relay.ask())).content
