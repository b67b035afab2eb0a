"""The stream from outside: its events, and every row of its table, joined, left and taken up again anywhere."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from api import events
from tests.support.contract import nulls
from tests.support.engines import on_each_engine
from tests.support.problems import assert_problem
from tests.support.readers import Reader, Transcript
from tests.support.relay import NOWHERE, Relay, serving
from tests.support.scripts import Script, Step, body, breaking, fails, finishes, hanging, says, steps, thinks, waits
from tests.support.sockets import connected, request, resident
from tests.support.sse import Block
from tests.support.upstream import ANSWER, USAGE, Gate, ScriptedUpstream, Wire, answer, gated, status
from tests.support.waiting import bounded, eventually


def marked(piece: str) -> Step:
    """A delta; one that begins with `?` is of reasoning."""
    return thinks(piece[1:]) if piece.startswith("?") else says(piece)


def interleaved(*pieces: str) -> Script:
    """A good stream of these pieces."""
    return steps(*map(marked, pieces), finishes, Wire.done)


def runs(blocks: list[Block]) -> list[tuple[str, str]]:
    """The text in order, neighbours of one kind joined."""
    joined: list[tuple[str, str]] = []
    for block in blocks:
        for kind in {"content", "reasoning"} & block.json.keys():
            before = joined.pop()[1] if joined and joined[-1][0] == kind else ""
            joined.append((kind, before + block.json[kind]))
    return joined


def fields(block: Block) -> tuple[str, str | None, int | None, dict[str, Any]]:
    return block.event, block.id, block.retry, block.json


async def status_of(relay: Relay, conversation_id: str, last_event_id: str) -> int:
    async with relay.stream(conversation_id, last_event_id) as reader:
        return reader.response.status_code


# Events


@on_each_engine
async def test_a_stream_is_start_then_text_then_done(upstream: ScriptedUpstream, relay: Relay) -> None:
    gate = Gate()
    upstream.play(gated(gate, "one ", "twö"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        for text in ("", "one ", "one twö"):
            await reader.until(text)
            gate.open()
        transcript = await reader.whole()
    id, question_id = transcript.start["message_id"], (await relay.messages(conversation_id))[0]["id"]
    done = nulls("DoneEvent") | {
        "done": True,
        "message_id": id,
        "model": "openrouter/auto",
        "status": "complete",
        "finish_reason": "stop",
        "usage": USAGE,
        "served_model": "openrouter/auto-20260224",
        "provider": "DeepInfra",
    }
    assert [fields(block) for block in transcript.blocks] == [
        ("start", f"{id}:0", 1000, {"message_id": id, "model": "openrouter/auto", "question_id": question_id}),
        ("message", f"{id}:4", None, {"content": "one "}),
        ("message", f"{id}:7", None, {"content": "twö"}),
        ("message", f"{id}:end", None, done),
    ]
    assert transcript.blocks[1].raw == f'data: {{"content": "one "}}\nid: {id}:4\n\n'.encode()


async def test_reasoning_comes_in_events_of_its_own_name(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(interleaved("?Hmm", "Well"))
    transcript = await relay.read(await relay.ask())
    assert [(block.event, set(block.json)) for block in transcript.blocks] == [
        ("start", {"message_id", "model", "question_id"}),
        ("reasoning", {"reasoning"}),
        ("message", {"content"}),
        ("message", {*nulls("DoneEvent")}),
    ]


async def test_the_plainest_client_gets_the_answer(upstream: ScriptedUpstream, relay: Relay) -> None:
    """`onmessage`, `JSON.parse`, `data.content`, `data.done`: named events aren't seen by it."""
    upstream.play(answer("The answer.", pieces=5, reasoning="Thoughts"))
    transcript = await relay.read(await relay.ask())
    seen = [block.json for block in transcript.blocks if block.event == "message"]
    assert "".join(event.get("content", "") for event in seen) == "The answer."
    assert [bool(event.get("done")) for event in seen] == [False] * (len(seen) - 1) + [True]


async def test_start_comes_at_once_before_upstream_has_answered(upstream: ScriptedUpstream, relay: Relay) -> None:
    gate = Gate()
    upstream.play(steps(waits(gate), says("Late"), finishes, Wire.done))
    async with relay.stream(await relay.ask()) as reader:
        start = await reader.next()
        assert (start.event, start.retry, start.id) == ("start", 1000, f"{start.json['message_id']}:0")
        await gate.reached()
        gate.open()
        assert (await reader.whole()).content == "Late"


async def test_every_stream_begins_with_start_a_resumed_one_too(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(answer("abc", pieces=3))
    conversation_id = await relay.ask()
    first = await relay.read(conversation_id)
    for id in first.ids[:-1]:
        again = await relay.read(conversation_id, id)
        assert fields(again.blocks[0]) == ("start", id, 1000, first.start)


async def test_every_block_has_an_id_and_ends_in_lf(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(answer("a\r\nb\n\nc\rd", pieces=20, reasoning="e\n\nf"))
    transcript = await relay.read(await relay.ask())
    assert all(transcript.ids) and transcript.content == "a\r\nb\n\nc\rd"
    for block in transcript.blocks:
        assert block.raw.endswith(b"\n\n") and b"\r" not in block.raw


async def test_json_in_events_is_ascii(upstream: ScriptedUpstream, relay: Relay) -> None:
    text = "é\u2028\u2029\x85\x0b\x00\x7f👋🏽"
    upstream.play(answer(text, pieces=1, reasoning=text))
    transcript = await relay.read(await relay.ask())
    assert (transcript.content, transcript.reasoning) == (text, text)
    assert all(block.raw.isascii() for block in transcript.blocks)
    assert b"\\u2028" in transcript.blocks[1].raw and b"\\ud83d\\udc4b" in transcript.blocks[1].raw


@on_each_engine
async def test_a_failure_is_the_last_event_and_keeps_the_text(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(breaking("Half an ans", code=503))
    conversation_id = await relay.ask()
    transcript = await relay.read(conversation_id)
    assert transcript.content == "Half an ans"
    error = transcript.last["error"]
    assert transcript.last == {"error": error, "message_id": transcript.start["message_id"]}
    assert error == {"code": 503, "message": error["message"], "retryable": True, "retry_after": None}
    assert "Provider disconnected" in error["message"]
    assert (transcript.blocks[-1].event, transcript.last_id) == ("message", f"{transcript.start['message_id']}:end")
    _, reply = await relay.messages(conversation_id)
    assert (reply["content"], reply["status"], reply["error"]) == ("Half an ans", "failed", error)


async def test_a_failure_says_when_trying_again_makes_sense(upstream: ScriptedUpstream, relay: Relay) -> None:
    for refusal, retryable, retry_after in [
        (status(400), False, None),
        (status(404), False, None),
        (status(429, headers={"Retry-After": "60"}), True, 60),
        (status(503, headers={"Retry-After": "3600"}), True, 3600),
    ]:
        upstream.queue(refusal)
        error = (await relay.read(await relay.ask())).last["error"]
        assert (error["retryable"], error["retry_after"]) == (retryable, retry_after)


async def test_the_response_has_the_headers_that_streams_need(upstream: ScriptedUpstream, relay: Relay) -> None:
    conversation_id = await relay.ask(model="test/one")
    async with relay.stream(conversation_id) as reader:
        headers = reader.response.headers
        start = (await reader.next()).json
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-store, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert (headers["x-message-id"], headers["x-model"]) == (start["message_id"], "test/one")
        assert "content-length" not in headers
        last_id = (await reader.whole()).ids[-2]
    async with relay.stream(conversation_id, last_id) as reader:
        assert reader.response.headers["x-message-id"] == start["message_id"]
        assert reader.response.headers["x-model"] == start["model"]


# Without Last-Event-ID


@on_each_engine
async def test_a_reader_that_joins_late_gets_the_reply_from_its_beginning(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    gate = Gate()
    upstream.play(gated(gate, "one ", "two ", "three"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as first:
        gate.open(2)
        await first.until("one two ")
        async with relay.stream(conversation_id) as second:
            await second.until("one two ")
            gate.open_wide()
            transcripts = [await first.whole(), await second.whole()]
    assert [transcript.content for transcript in transcripts] == ["one two three"] * 2
    assert transcripts[0].start == transcripts[1].start and transcripts[0].last == transcripts[1].last
    assert len(upstream.requests) == 1


@on_each_engine
async def test_a_failed_reply_is_replaced_by_the_next_stream(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.queue(breaking("Half"), status(400))
    conversation_id = await relay.ask()
    transcripts = [await relay.read(conversation_id) for _ in range(3)]
    assert ["error" in transcript.last for transcript in transcripts] == [True, True, False]
    ids = [transcript.start["message_id"] for transcript in transcripts]
    assert len(set(ids)) == 3
    question, reply = await relay.messages(conversation_id)
    assert (reply["id"], reply["content"], reply["status"], reply["error"]) == (ids[2], ANSWER, "complete", None)
    assert [request.body["messages"] for request in upstream.requests] == [
        [{"role": "user", "content": question["content"]}]
    ] * 3


@on_each_engine
async def test_a_question_may_follow_a_failed_reply(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.queue(breaking("Half"))
    conversation_id = await relay.ask("one")
    await relay.read(conversation_id)
    await relay.say(conversation_id, "two")
    assert (await relay.read(conversation_id)).content == ANSWER
    statuses = [message["status"] for message in await relay.messages(conversation_id)]
    assert statuses == ["complete", "failed", "complete", "complete"]
    sent = [turn["content"] for turn in upstream.requests[-1].body["messages"]]
    assert sent == ["one\n\ntwo"]


async def test_the_second_stream_of_an_answered_question_starts_nothing(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    conversation_id = await relay.ask()
    await relay.read(conversation_id)
    async with relay.stream(conversation_id) as reader:
        assert_problem(reader.response, 409)
    assert len(upstream.requests) == 1


# With Last-Event-ID


@on_each_engine
@pytest.mark.parametrize("place", ["header", "query"])
@pytest.mark.parametrize("end", ["done", "error"])
async def test_a_reader_gets_exactly_the_rest_from_every_event_on(
    upstream: ScriptedUpstream, relay: Relay, place: str, end: str
) -> None:
    pieces = ["Grüße ", "?thinking\n", "?more", " 👋🏽", "e", "\u0301 ", "?last", "end\r\n"]
    gate = Gate()
    gated_pieces = (step for piece in pieces for step in (waits(gate), marked(piece)))
    upstream.play(steps(*gated_pieces, finishes if end == "done" else fails(), Wire.end))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        for _ in pieces:
            await reader.next()
            gate.open()
        whole = await reader.whole()
    assert (len(whole.blocks), end in whole.last) == (len(pieces) + 2, True)
    for seen, id in enumerate(whole.ids[:-1], start=1):
        params, header = ({"last_event_id": str(id)}, None) if place == "query" else (None, id)
        rest = await relay.read(conversation_id, header, params)
        assert runs(whole.blocks[:seen] + rest.blocks) == runs(whole.blocks)
        assert (rest.start, rest.last) == (whole.start, whole.last)
        assert (rest.ids[0], rest.ids[-1]) == (id, whole.ids[-1])
    assert "".join(text for _, text in runs(whole.blocks)) == "".join(piece.removeprefix("?") for piece in pieces)
    assert len(upstream.requests) == 1


@on_each_engine
async def test_readers_resume_at_every_event_while_the_reply_goes_on(upstream: ScriptedUpstream, relay: Relay) -> None:
    gate = Gate()
    pieces = ["one ", "two ", "three ", "four"]
    upstream.play(gated(gate, *pieces))
    conversation_id = await relay.ask()

    async def resumed(last_event_id: str, seen: str) -> tuple[str, Transcript]:
        async with relay.stream(conversation_id, last_event_id) as reader:
            assert (await reader.next()).event == "start"
            arrived.append(seen)
            return seen, await reader.whole()

    arrived: list[str] = []
    tasks = []
    async with relay.stream(conversation_id) as reader:
        for _ in pieces:
            id = str((await reader.next()).id)
            tasks.append(asyncio.create_task(resumed(id, reader.transcript.content)))
            await eventually(lambda: len(arrived) == len(tasks))
            gate.open()
        gate.open_wide()
        last = (await reader.whole()).last
    for seen, rest in await bounded(asyncio.gather(*tasks)):
        assert (seen + rest.content, rest.last) == ("".join(pieces), last)
    assert len(upstream.requests) == 1


@on_each_engine
async def test_a_client_that_reconnects_after_every_event_gets_everything_once(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    """As `EventSource` does it, until a 204 tells it to stop."""
    upstream.play(interleaved("?Let me ", "?think. ", "The ", "answer ", "?wait ", "is ", "42 👋."))
    conversation_id = await relay.ask()
    blocks: list[Block] = []
    last_event_id: str | None = None
    while True:
        async with relay.stream(conversation_id, last_event_id) as reader:
            if reader.response.status_code == 204:
                break
            assert (await reader.next()).event == "start"
            blocks.append(await reader.next())
            last_event_id = blocks[-1].id
    expected = [("reasoning", "Let me think. "), ("content", "The answer "), ("reasoning", "wait ")]
    assert runs(blocks) == [*expected, ("content", "is 42 👋.")]
    assert [block.is_terminal for block in blocks] == [False] * (len(blocks) - 1) + [True]
    assert len(upstream.requests) == 1


@on_each_engine
async def test_a_client_that_drops_after_start_comes_back_to_the_same_reply(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    gate = Gate()
    upstream.play(gated(gate, "Hello"))
    conversation_id = await relay.ask()
    last_event_id: str | None = None
    for _ in range(3):
        async with relay.stream(conversation_id, last_event_id) as reader:
            last_event_id = (await reader.next()).id
    gate.open_wide()
    assert (await relay.read(conversation_id, last_event_id)).content == "Hello"
    assert len(upstream.requests) == 1


@on_each_engine
async def test_order_is_kept_after_a_resume_inside_of_interleaved_reasoning(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    pieces = [f"{'?' * (number % 3 == 0)}{number};" for number in range(30)]
    upstream.play(interleaved(*pieces))
    conversation_id = await relay.ask()
    whole = runs((await relay.read(conversation_id)).blocks)
    message_id = (await relay.messages(conversation_id))[1]["id"]
    text = "".join(part for _, part in whole)
    assert text == "".join(piece.removeprefix("?") for piece in pieces)
    for position in range(len(text) + 1):
        rest = runs((await relay.read(conversation_id, f"{message_id}:{position}")).blocks)
        assert rest == list(after(whole, position))


def after(whole: list[tuple[str, str]], position: int) -> Iterator[tuple[str, str]]:
    for kind, text in whole:
        if text[position:]:
            yield kind, text[position:]
        position = max(0, position - len(text))


@on_each_engine
async def test_resuming_a_failed_reply_starts_no_other_one(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(breaking("Half"))
    conversation_id = await relay.ask()
    failed = await relay.read(conversation_id)
    for id, content in zip(failed.ids, ["Half", "", None], strict=True):
        if content is not None:
            again = await relay.read(conversation_id, id)
            assert (again.content, again.last) == (content, failed.last)
        else:
            assert await status_of(relay, conversation_id, str(id)) == 204
    assert len(upstream.requests) == 1


async def test_the_header_wins_over_the_query_and_an_empty_one_counts_as_none(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.play(answer("abc", pieces=1))
    conversation_id = await relay.ask()
    first = await relay.read(conversation_id, "", {"last_event_id": ""})
    assert first.content == "abc"
    start, text, _ = map(str, first.ids)
    assert (await relay.read(conversation_id, start, {"last_event_id": text})).content == "abc"
    assert (await relay.read(conversation_id, text, {"last_event_id": start})).content == ""
    assert (await relay.read(conversation_id, text, {"last_event_id": "unreadable"})).content == ""
    assert (await relay.read(conversation_id, "", {"last_event_id": start})).content == "abc"
    assert (await relay.read(conversation_id, start, {"last_event_id": ""})).content == "abc"


@on_each_engine
async def test_a_reader_that_has_had_the_last_event_gets_204(upstream: ScriptedUpstream, relay: Relay) -> None:
    conversation_id = await relay.ask()
    last_id = (await relay.read(conversation_id)).last_id
    path = f"/conversations/{conversation_id}/stream"
    for response in [
        await relay.client.get(path, headers={"Last-Event-ID": last_id}),
        await relay.client.get(path, params={"last_event_id": last_id}),
    ]:
        assert (response.status_code, response.content) == (204, b"")
    assert len(upstream.requests) == 1


@on_each_engine
async def test_a_message_that_is_no_reply_of_the_conversation_gets_204(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    other = await relay.ask("other")
    ids_of_other = (await relay.read(other)).ids
    conversation_id = await relay.ask()
    [question] = await relay.messages(conversation_id)
    for id in (*ids_of_other, f"{NOWHERE}:0", f"{NOWHERE}:end", f"{question['id']}:0"):
        assert await status_of(relay, conversation_id, str(id)) == 204
    assert len(upstream.requests) == 1
    assert [message["role"] for message in await relay.messages(conversation_id)] == ["user"]


@on_each_engine
async def test_a_reply_that_was_deleted_or_replaced_gets_204(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.queue(breaking("Half"))
    conversation_id = await relay.ask()
    replaced = await relay.read(conversation_id)
    deleted = await relay.read(conversation_id)
    await relay.client.delete(f"/conversations/{conversation_id}/messages/{deleted.start['message_id']}")
    for id in replaced.ids + deleted.ids:
        assert await status_of(relay, conversation_id, str(id)) == 204
    assert len(upstream.requests) == 2


async def test_a_resume_in_a_conversation_that_is_gone_is_a_404(relay: Relay) -> None:
    conversation_id = await relay.ask()
    ids = (await relay.read(conversation_id)).ids
    await relay.client.delete(f"/conversations/{conversation_id}")
    for id in ids:
        async with relay.stream(conversation_id, id) as reader:
            assert_problem(reader.response, 404)


@on_each_engine
async def test_an_old_reply_can_be_resumed_after_newer_ones(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.queue(answer("first", pieces=1), answer("second", pieces=1))
    conversation_id = await relay.ask()
    first = await relay.read(conversation_id)
    await relay.say(conversation_id, "Again")
    await relay.read(conversation_id)
    assert (await relay.read(conversation_id, first.ids[0])).content == "first"


# HEAD


async def test_head_has_the_headers_of_a_stream_and_starts_nothing(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.queue(gated(gate := Gate(), "Hello"))
    owed, empty, running = await relay.ask(), (await relay.conversation())["id"], await relay.ask()
    async with relay.stream(running) as reader:
        await reader.next()
        for conversation_id in (owed, empty, running):
            for last_event_id in ("", f"{NOWHERE}:end", "unreadable"):
                path = f"/conversations/{conversation_id}/stream"
                response = await relay.client.head(path, headers={"Last-Event-ID": last_event_id})
                assert (response.status_code, response.content) == (200, b"")
                assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
                assert response.headers["cache-control"] == "no-store, no-transform"
        gate.open_wide()
        await reader.whole()
    assert len(upstream.requests) == 1
    assert len(await relay.messages(owed)) == 1


async def test_head_of_a_stream_claims_no_length(relay: Relay) -> None:
    """RFC 9110, 8.6: a Content-Length there must be the one that GET would have; a stream has none."""
    response = await relay.client.head(f"/conversations/{await relay.ask()}/stream")
    assert "content-length" not in response.headers


# The model, and what is sent upstream


async def test_the_model_is_the_querys_else_the_last_questions_else_the_conversations(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    made = await relay.conversation(default_model="test/default")
    for asked, query, model in [
        (None, None, "test/default"),
        ("test/message", None, "test/message"),
        (None, None, "test/default"),
        (None, "test/query:free", "test/query:free"),
        ("test/message", "test/query", "test/query"),
        ("test/message", "", "test/message"),
    ]:
        await relay.say(made["id"], model=asked)
        params = None if query is None else {"model": query}
        async with relay.stream(made["id"], params=params) as reader:
            transcript = await reader.whole()
            assert reader.response.headers["x-model"] == model
        assert (transcript.start["model"], transcript.last["model"]) == (model, model)
        assert (await relay.messages(made["id"]))[-1]["model"] == model
        assert upstream.requests[-1].body["model"] == model


async def test_who_joins_a_reply_does_not_change_its_model(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(gated(gate := Gate(), "Hello"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id, params={"model": "test/one"}) as first:
        await first.next()
        async with relay.stream(conversation_id, params={"model": "test/two"}) as second:
            assert (await second.next()).json["model"] == "test/one"
            gate.open_wide()
            await first.whole()
            await second.whole()
    assert [request.body["model"] for request in upstream.requests] == ["test/one"]


@on_each_engine
async def test_upstream_gets_the_system_prompt_and_every_message_that_has_content(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    made = await relay.conversation(system_prompt="Be brief.")
    upstream.queue(answer("complete"), breaking("failed"), hanging("stopped"), hanging(), answer("last"))
    for number, wanted in enumerate(["complete", "failed", "stopped", "", "last"]):
        await relay.say(made["id"], f"question {number}")
        async with relay.stream(made["id"]) as reader:
            await reader.until(wanted)
            if number in (2, 3):
                assert (await relay.stop(made["id"])).status_code == 200
            await reader.whole()
    request = upstream.requests[-1]
    assert request.body == {
        "model": "openrouter/auto",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "question 0"},
            {"role": "assistant", "content": "complete"},
            {"role": "user", "content": "question 1\n\nquestion 2"},
            {"role": "assistant", "content": "stopped"},
            {"role": "user", "content": "question 3\n\nquestion 4"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert request.headers["authorization"] == "Bearer test-key"


async def test_reasoning_is_not_sent_upstream_and_neither_is_an_empty_prompt(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.play(answer("Well", reasoning="Hmm"))
    conversation_id = await relay.ask("one")
    await relay.read(conversation_id)
    await relay.say(conversation_id, "two")
    await relay.read(conversation_id)
    sent = [(turn["role"], turn["content"]) for turn in upstream.requests[-1].body["messages"]]
    assert sent == [("user", "one"), ("assistant", "Well"), ("user", "two")]


async def test_a_patch_between_two_replies_counts_for_the_second(upstream: ScriptedUpstream, relay: Relay) -> None:
    conversation_id = await relay.ask("one")
    await relay.read(conversation_id)
    changes = {"system_prompt": "New prompt", "default_model": "test/new"}
    await relay.client.patch(f"/conversations/{conversation_id}", json=changes)
    await relay.say(conversation_id, "two")
    assert (await relay.read(conversation_id)).last["model"] == "test/new"
    assert upstream.requests[-1].body["messages"][0] == {"role": "system", "content": "New prompt"}


# Time and size


async def test_pings_keep_a_silent_stream_alive(
    upstream: ScriptedUpstream, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "PING_INTERVAL", 0.01)
    gate = Gate()
    upstream.play(gated(gate, "Hello"))
    async with relay.stream(await relay.ask()) as reader:
        await reader.next()
        reading = asyncio.create_task(reader.whole())
        await eventually(lambda: len(reader.transcript.pings) >= 3)
        gate.open_wide()
        transcript = await reading
    assert {ping.raw for ping in transcript.pings} == {b"event: ping\ndata: {}\n\n"}
    assert transcript.comments == []
    assert (transcript.content, len(transcript.blocks)) == ("Hello", 3)


@pytest.mark.parametrize("text", ["話" * 20_000, "😀" * 20_000, '"' * 20_000, "\x00" * 20_000], ids=ascii)
async def test_no_line_of_a_late_reader_is_longer_than_some_clients_take(
    upstream: ScriptedUpstream, relay: Relay, text: str
) -> None:
    """Go's scanner and asyncio's `readline` stop at 64 KiB."""
    upstream.play(answer(text, pieces=1, reasoning=text))
    conversation_id = await relay.ask()
    await relay.read(conversation_id)
    [_, message] = await relay.messages(conversation_id)
    transcript = await relay.read(conversation_id, f"{message['id']}:0")
    assert (transcript.content, transcript.reasoning) == (text, text)
    assert max(len(line) for block in transcript.blocks for line in block.raw.splitlines()) <= 60_000


@on_each_engine
async def test_text_that_comes_at_full_speed_is_merged_into_few_events(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    pieces = [f"{number} é👋 " for number in range(5000)]
    chunks = (json.dumps({"choices": [{"delta": {"content": piece}}]}).encode() for piece in pieces)
    upstream.play(steps(body(b"".join(b"data: %b\n\n" % chunk for chunk in chunks)), finishes, Wire.done))
    transcript = await relay.read(await relay.ask())
    assert transcript.content == "".join(pieces)
    assert len(transcript.blocks) < len(pieces) / 20


@on_each_engine
async def test_a_surrogate_pair_that_is_split_over_two_deltas_arrives_whole(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    gate = Gate()
    upstream.play(gated(gate, "a\ud83d", "\ude00b", "\ud83d", "\ud83d", "\ude00", "\ude00c\ud83d"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        await reader.next()
        for arrivals in range(1, 8):
            await gate.reached(arrivals)
            gate.open()
        transcript = await reader.whole()
    assert transcript.content == "a😀b\ufffd😀\ufffdc\ufffd"
    assert (await relay.messages(conversation_id))[1]["content"] == transcript.content
    for seen, id in enumerate(transcript.ids[:-1], start=1):
        before = Transcript(transcript.blocks[:seen]).content
        assert before + (await relay.read(conversation_id, id)).content == transcript.content


@on_each_engine
@pytest.mark.parametrize("reasoning", ["", "1234"])
async def test_a_reply_past_its_limit_fails_and_keeps_what_fits(upstream: ScriptedUpstream, reasoning: str) -> None:
    upstream.play(steps(thinks(reasoning), says("567", "890ab", "cdef"), Wire.hang))
    async with serving(upstream, max_reply_chars=8 + len(reasoning)) as relay:
        conversation_id = await relay.ask()
        transcript = await relay.read(conversation_id)
        error = transcript.last["error"]
        assert (transcript.content, transcript.reasoning) == ("567890ab", reasoning)
        assert "MAX_REPLY_CHARS" in error["message"]
        _, reply = await relay.messages(conversation_id)
        assert (reply["status"], reply["content"], reply["error"]) == ("failed", "567890ab", error)
        await bounded(upstream.requests[0].gone.wait())


async def test_a_reply_as_long_as_its_limit_is_complete(upstream: ScriptedUpstream) -> None:
    upstream.play(answer("👋" * 6, reasoning="1234"))
    async with serving(upstream, max_reply_chars=10) as relay:
        transcript = await relay.read(await relay.ask())
    assert (transcript.content, transcript.last["status"]) == ("👋" * 6, "complete")


@on_each_engine
async def test_a_reply_that_takes_too_long_fails_and_keeps_its_text(upstream: ScriptedUpstream) -> None:
    upstream.play(hanging("some"))
    async with serving(upstream, reply_timeout=0.5) as relay:
        conversation_id = await relay.ask()
        transcript = await relay.read(conversation_id)
        error = transcript.last["error"]
        assert (transcript.content, error["code"], error["retryable"]) == ("some", 504, True)
        assert "REPLY_TIMEOUT" in error["message"]
        assert (await relay.messages(conversation_id))[1]["status"] == "failed"
        await eventually(lambda: upstream.connections == 0)
        upstream.play(answer("Next"))
        assert (await relay.read(conversation_id)).content == "Next"


async def test_without_a_key_a_reply_fails_and_names_the_variable(upstream: ScriptedUpstream) -> None:
    async with serving(upstream, openrouter_api_key="") as relay:
        transcript = await relay.read(await relay.ask())
        error = transcript.last["error"]
        assert "OPENROUTER_API_KEY" in error["message"]
        assert (error["code"], error["retryable"]) == (401, False)
        assert (await relay.client.get("/models")).status_code == 200
    assert not upstream.requests


# Readers that leave


@on_each_engine
async def test_a_reply_goes_on_when_its_reader_is_gone_for_good(upstream: ScriptedUpstream, relay: Relay) -> None:
    gate = Gate()
    upstream.play(gated(gate, "one ", "two"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        gate.open()
        await reader.until("one ")
    gate.open_wide()
    await relay.idle()
    _, reply = await relay.messages(conversation_id)
    assert (reply["content"], reply["status"], reply["usage"]) == ("one two", "complete", USAGE)
    async with relay.stream(conversation_id) as reader:
        assert_problem(reader.response, 409)


@on_each_engine
async def test_a_reply_goes_on_though_nobody_ever_read_it(upstream: ScriptedUpstream, relay: Relay) -> None:
    conversation_id = await relay.ask()
    host, port = relay.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET /conversations/{conversation_id}/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await upstream.called()
    writer.transport.abort()

    async def is_complete() -> bool:
        return bool((await relay.messages(conversation_id))[-1]["status"] == "complete")

    await eventually(is_complete)
    assert (await relay.messages(conversation_id))[-1]["content"] == ANSWER
    assert len(upstream.requests) == 1


@on_each_engine
async def test_a_long_conversation_is_listed_and_sent_like_a_short_one(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    """Both are encoded in parts."""
    upstream.play(answer("A" * 150_000, pieces=3))
    conversation_id = (await relay.conversation(system_prompt="Be long."))["id"]
    sent = [{"role": "system", "content": "Be long."}]
    for number in range(4):
        question = f"{number} é👋\u2028" + "Q" * 150_000
        await relay.say(conversation_id, question)
        sent.append({"role": "user", "content": question})
        await relay.read(conversation_id)
        assert upstream.requests[-1].body["messages"] == sent
        sent.append({"role": "assistant", "content": "A" * 150_000})
    messages = await relay.messages(conversation_id)
    assert [{"role": m["role"], "content": m["content"]} for m in messages] == sent[1:]


@on_each_engine
async def test_a_client_that_does_not_read_a_long_list_holds_only_a_part_of_it(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.play(answer("A" * 1_000_000, pieces=2))
    conversation_id = await relay.ask()
    for _ in range(10):
        await relay.read(conversation_id)
        await relay.say(conversation_id, "Again")
    before = resident()
    with contextlib.ExitStack() as frozen:
        for _ in range(10):
            listing = request("GET", f"/conversations/{conversation_id}/messages", [("Host", "localhost")])
            frozen.enter_context(connected(relay, sending=listing, receive_buffer=4096))
        await relay.health()
        listed = await relay.messages(conversation_id)
        assert len(listed) == 21
        assert resident() - before < 60 * 1024 * 1024  # not 10 bodies of 10 MB, and those that this test has read


# As bare text, and together with the question

PLAIN = {"Accept": "text/plain"}


async def test_the_bare_text_is_the_content_alone_as_it_comes(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(gated(gate := Gate(), "Héllo ", "wörld"))
    conversation_id = await relay.ask()
    path = f"/conversations/{conversation_id}/stream"
    async with relay.client.stream("GET", path, headers=PLAIN) as response:
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert {"x-message-id", "x-model"} <= set(response.headers)
        pieces = response.aiter_text()
        gate.open()
        assert await bounded(anext(pieces)) == "Héllo "
        gate.open_wide()
        assert "".join([piece async for piece in pieces]) == "wörld\n"


async def test_the_bare_text_leaves_reasoning_out_and_tells_a_failure_in_its_last_line(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.queue(interleaved("?Hm. ", "Hello", "?Good. ", "!"), breaking("Half of"))
    path = f"/conversations/{await relay.ask()}/stream"
    assert (await relay.client.get(path, headers=PLAIN)).text == "Hello!\n"
    path = f"/conversations/{await relay.ask()}/stream"
    text, told = (await relay.client.get(path, headers=PLAIN)).text.split("\n", 1)
    assert text == "Half of"
    assert told.startswith("[") and told.endswith("]\n") and "Provider disconnected" in told


async def test_the_bare_text_is_taken_up_again_like_events(upstream: ScriptedUpstream, relay: Relay) -> None:
    conversation_id = await relay.ask()
    transcript = await relay.read(conversation_id)
    path = f"/conversations/{conversation_id}/stream"
    third = f"{transcript.start['message_id']}:3"
    response = await relay.client.get(path, headers=PLAIN | {"Last-Event-ID": third})
    assert response.text == ANSWER[3:] + "\n"
    response = await relay.client.get(path, headers=PLAIN | {"Last-Event-ID": transcript.last_id})
    assert response.status_code == 204
    assert_problem(await relay.client.get(path, headers=PLAIN), 409)


async def test_a_reader_of_the_bare_text_may_leave_and_the_reply_goes_on(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.play(gated(gate := Gate(), "one ", "two"))
    conversation_id = await relay.ask()
    async with relay.client.stream("GET", f"/conversations/{conversation_id}/stream", headers=PLAIN) as response:
        gate.open()
        assert await bounded(anext(response.aiter_text())) == "one "
    gate.open_wide()
    await relay.idle()
    assert (await relay.messages(conversation_id))[1]["content"] == "one two"
    assert len(upstream.requests) == 1


async def test_a_client_that_takes_both_gets_events(upstream: ScriptedUpstream, relay: Relay) -> None:
    transcript = await relay.read(await relay.ask(), headers={"Accept": "text/plain, text/event-stream"})
    assert transcript.content == ANSWER


async def question_at_once(relay: Relay, conversation_id: str, content: str = "Hi", **fields: str) -> Transcript:
    """The stream that answers a question which asked for it."""
    path, headers = f"/conversations/{conversation_id}/messages", {"Accept": "text/event-stream"}
    body = {"content": content, **fields}
    async with relay.client.stream("POST", path, json=body, headers=headers) as response:
        assert response.status_code == 200
        return await Reader(response).whole()


@on_each_engine
async def test_a_question_that_accepts_an_event_stream_is_answered_by_its_reply(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.play(interleaved("?Hm. ", "Hello"))
    conversation_id = (await relay.conversation())["id"]
    transcript = await question_at_once(relay, conversation_id, "Why?", model="test/other")
    assert (transcript.reasoning, transcript.content, transcript.last["status"]) == ("Hm. ", "Hello", "complete")
    assert transcript.start["model"] == "test/other"
    question, reply = await relay.messages(conversation_id)
    assert (question["content"], question["model"]) == ("Why?", "test/other")
    assert (reply["id"], reply["content"]) == (transcript.start["message_id"], "Hello")
    assert len(upstream.requests) == 1


async def test_a_reply_to_a_question_at_once_is_joined_resumed_and_stopped_like_any_other(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.play(gated(gate := Gate(), "one ", "two ", "three"))
    conversation_id = (await relay.conversation())["id"]
    asking = asyncio.create_task(question_at_once(relay, conversation_id))
    await gate.reached()
    gate.open()
    async with relay.stream(conversation_id) as joined:
        id = (await joined.until("one ")).last_id
    assert_problem(await relay.post(conversation_id, content="x"), 409)
    stopped = await relay.stop(conversation_id)
    assert stopped.json()["status"] == (await bounded(asking)).last["status"] == "stopped"
    assert (await relay.read(conversation_id, id)).last["status"] == "stopped"
    assert len(upstream.requests) == 1


@on_each_engine
async def test_a_reader_that_drops_a_question_at_once_comes_back_to_its_reply(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.play(gated(gate := Gate(), "one ", "two"))
    conversation_id = (await relay.conversation())["id"]
    path, headers = f"/conversations/{conversation_id}/messages", {"Accept": "text/event-stream"}
    async with relay.client.stream("POST", path, json={"content": "Hi"}, headers=headers) as response:
        start = await Reader(response).next()
    gate.open_wide()
    transcript = await relay.read(conversation_id, start.id)
    assert (transcript.content, len(upstream.requests)) == ("one two", 1)
