"""What may be asked, and what comes back beside the text: options, who answered, sources, cost."""

import json
from typing import Any

import httpx
import pytest

from tests.support.engines import on_each_engine
from tests.support.problems import assert_problem
from tests.support.relay import Relay, serving
from tests.support.scripts import Script, answer, chunk, event, finishes, gated, says, status, steps
from tests.support.upstream import USAGE, Gate, ScriptedUpstream, UpstreamRequest, Wire

CITED = {"url": "https://example.com/a", "title": "A page", "start_index": 0, "end_index": 4}
KEPT = {"type": "url_citation", **CITED}


def citing(*texts: str) -> Script:
    """An answer that cites its source in the chunk of its last text."""

    source = {"type": "url_citation", "url_citation": {**CITED, "content": "x" * 30_000}}
    return steps(says(*texts[:-1]), chunk({"content": texts[-1], "annotations": [source]}), finishes, Wire.done)


async def refused(relay: Relay, options: Any) -> dict[str, str]:
    """The fields that are complained of, wherever these options are given."""
    conversation_id = (await relay.conversation())["id"]
    path = f"/conversations/{conversation_id}"
    post, patch = relay.client.post, relay.client.patch
    responses = [await post("/conversations", json={"options": options}), await patch(path, json={"options": options})]
    responses.append(await post(f"{path}/messages", json={"content": "Hi", "options": options}))
    errors = [assert_problem(response, 422)["errors"] for response in responses]
    assert errors[0] == errors[1] == errors[2]
    return {error["field"]: error["message"] for error in errors[0]}


def options_of(request: UpstreamRequest) -> dict[str, Any]:
    """What upstream was asked with, less what is sent always."""
    own = ("model", "messages", "stream", "stream_options")
    return {name: value for name, value in request.body.items() if name not in own}


# Options


@on_each_engine
async def test_a_questions_options_go_over_the_conversations_name_by_name(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    made = await relay.conversation(options={"temperature": 0, "reasoning": {"effort": "high", "exclude": True}})
    await relay.say(made["id"], options={"reasoning": {"effort": "low"}, "seed": 7})
    await relay.read(made["id"])
    assert options_of(await upstream.called()) == {"temperature": 0, "reasoning": {"effort": "low"}, "seed": 7}


async def test_null_takes_an_option_away(upstream: ScriptedUpstream, relay: Relay) -> None:
    made = await relay.conversation(options={"temperature": 0, "seed": 7, "top_p": None})
    await relay.say(made["id"], options={"temperature": None})
    await relay.read(made["id"])
    assert options_of(await upstream.called()) == {"seed": 7}


async def test_only_the_last_questions_options_count(upstream: ScriptedUpstream, relay: Relay) -> None:
    conversation_id = await relay.ask(options={"seed": 1})
    await relay.read(conversation_id)
    await relay.say(conversation_id)
    await relay.read(conversation_id)
    assert [options_of(request) for request in upstream.requests] == [{"seed": 1}, {}]


@on_each_engine
async def test_options_are_shown_as_they_were_given(relay: Relay) -> None:
    options: dict[str, Any] = {
        "z": 1.0,
        "a": None,
        "stop": ["é 😀 \u2028", "\x00"],
        "provider": {"order": []},
        "n_": 10**18,
    }
    made = await relay.conversation(options=options)
    said = await relay.say(made["id"], options=options)
    assert json.dumps(made["options"]) == json.dumps(said["options"]) == json.dumps(options)
    assert (await relay.client.get(f"/conversations/{made['id']}")).json()["options"] == options
    assert (await relay.messages(made["id"]))[0]["options"] == options


@on_each_engine
async def test_a_patch_sets_the_options_as_a_whole_or_leaves_them(upstream: ScriptedUpstream, relay: Relay) -> None:
    path = f"/conversations/{(await relay.conversation(options={'seed': 1, 'top_p': 1}))['id']}"
    shown, change = [], dict[str, Any]()
    for change in ({"title": "T"}, {"options": {"seed": 2}}, {"options": {}}, {"options": None}):
        shown.append((await relay.client.patch(path, json=change)).json()["options"])
    assert shown == [{"seed": 1, "top_p": 1}, {"seed": 2}, {}, None]


async def test_a_reply_that_is_asked_for_again_has_the_options_of_now(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.queue(status(400))
    made = await relay.conversation(options={"seed": 1})
    await relay.say(made["id"])
    await relay.read(made["id"])
    await relay.client.patch(f"/conversations/{made['id']}", json={"options": {"seed": 2}})
    await relay.read(made["id"])
    assert [options_of(request)["seed"] for request in upstream.requests] == [1, 2]


async def test_a_question_with_its_stream_has_its_options(upstream: ScriptedUpstream, relay: Relay) -> None:
    made = await relay.conversation()
    events = {"Accept": "text/event-stream"}
    body = {"content": "Hi", "options": {"seed": 3}}
    await relay.client.post(f"/conversations/{made['id']}/messages", json=body, headers=events)
    assert options_of(await upstream.called()) == {"seed": 3}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ([], "options"),
        ("x", "options"),
        ({"a": "x" * 20_000}, "options"),
        ({"é": 1}, "options"),
        ({"stream": None}, "options.stream"),
        ({"logprobs": True}, "options.logprobs"),
        ({"tools": [{"type": "function"}]}, "options.tools"),
        ({"modalities": ["image"]}, "options.modalities"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_is_refused_is_named_wherever_it_is_given(relay: Relay, options: Any, field: str) -> None:
    assert [*(await refused(relay, options))] == [field]


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
async def test_a_number_that_is_not_finite_is_refused(relay: Relay, number: str) -> None:
    body = b'{"options": {"temperature": %b}}' % number.encode()
    response = await relay.client.post("/conversations", content=body, headers={"Content-Type": "application/json"})
    assert_problem(response, 422, "finite")


async def test_max_tokens_bounds_every_answer(upstream: ScriptedUpstream) -> None:
    async with serving(upstream, max_tokens=50) as relay:
        assert [*(await refused(relay, {"max_tokens": 51}))] == ["options.max_tokens"]
        assert "MAX_TOKENS" in (await refused(relay, {"max_completion_tokens": 0}))["options.max_completion_tokens"]
        made = await relay.conversation(options={"max_tokens": 20})
        for options in (None, {"max_tokens": None}, {"max_completion_tokens": 50}):
            await relay.say(made["id"], options=options)
            await relay.read(made["id"])
    asked = [options_of(request) for request in upstream.requests]
    assert asked == [{"max_tokens": 20}, {"max_tokens": 50}, {"max_tokens": 20, "max_completion_tokens": 50}]


async def test_upstreams_own_refusal_of_an_option_reaches_the_reader(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(status(400, {"error": {"code": 400, "message": "temperature: expected number, received string"}}))
    made = await relay.conversation(options={"temperature": "hot"})
    await relay.say(made["id"])
    error = (await relay.read(made["id"])).last["error"]
    assert "temperature: expected number" in error["message"] and not error["retryable"]


async def test_every_completion_names_its_conversation_as_the_session(upstream: ScriptedUpstream, relay: Relay) -> None:
    """One conversation stays with one provider, and so with its prompt cache."""
    upstream.queue(status(503))
    made = await relay.conversation(id="c-1")
    await relay.say(made["id"])
    await relay.read(made["id"])
    assert [request.headers["x-session-id"] for request in upstream.requests] == ["c-1", "c-1"]


@on_each_engine
@pytest.mark.parametrize(
    ("first", "again", "code"),
    [
        ({"a": 1, "b": [2]}, {"b": [2], "a": 1}, 200),
        (None, None, 200),
        ({"a": 1}, {"a": 2}, 409),
        ({"a": 1}, {"a": True}, 409),
        ({"a": 1}, None, 409),
        (None, {}, 409),
    ],
    ids=str,
)
async def test_a_question_is_the_same_only_with_the_same_options(
    relay: Relay, first: Any, again: Any, code: int
) -> None:
    made = await relay.conversation()
    await relay.say(made["id"], id="q-1", options=first)
    body = {"content": "Hi", "id": "q-1", "options": again}
    response = await relay.client.post(f"/conversations/{made['id']}/messages", json=body)
    assert response.status_code == code
    assert len(await relay.messages(made["id"])) == 1


@on_each_engine
async def test_options_and_sources_take_room_in_the_store(upstream: ScriptedUpstream) -> None:
    async with serving(upstream, max_store_bytes=1_000) as relay:
        made = await relay.conversation(options={"a": "x" * 600})
        path, more = f"/conversations/{made['id']}", {"options": {"a": "x" * 600}}
        assert_problem(await relay.client.post("/conversations", json=more), 507, "MAX_STORE_BYTES")
        assert_problem(await relay.client.post(f"{path}/messages", json={"content": "Hi", **more}), 507)
        assert (await relay.client.patch(path, json=more)).status_code == 200
        await relay.client.delete(path)
        await relay.conversation(**more)


# What comes back


@on_each_engine
async def test_who_answered_is_in_the_last_event_and_in_the_message(upstream: ScriptedUpstream, relay: Relay) -> None:
    conversation_id = await relay.ask()
    last = (await relay.read(conversation_id)).last
    _, reply = await relay.messages(conversation_id)
    assert (last["model"], last["served_model"], last["provider"]) == (
        "openrouter/auto",
        "openrouter/auto-20260224",
        "DeepInfra",
    )
    assert (reply["model"], reply["served_model"], reply["provider"]) == tuple(
        last[name] for name in ("model", "served_model", "provider")
    )


@on_each_engine
async def test_sources_are_in_the_last_event_of_every_reader_and_in_the_message(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.play(citing("See ", "there."))
    conversation_id = await relay.ask()
    transcript = await relay.read(conversation_id)
    resumed = await relay.read(conversation_id, transcript.ids[1])
    assert transcript.last["annotations"] == resumed.last["annotations"] == [KEPT]
    assert (await relay.messages(conversation_id))[1]["annotations"] == [KEPT]


@on_each_engine
async def test_a_reply_that_breaks_off_keeps_what_was_told(upstream: ScriptedUpstream, relay: Relay) -> None:
    cited = chunk({"content": "See ", "annotations": [{"type": "url_citation", **CITED}]})
    upstream.play(steps(cited, event({"choices": [], "usage": USAGE}), Wire.reset))
    conversation_id = await relay.ask()
    await relay.read(conversation_id)
    _, reply = await relay.messages(conversation_id)
    assert (reply["status"], reply["annotations"], reply["provider"], reply["usage"]) == (
        "failed",
        [KEPT],
        "DeepInfra",
        USAGE,
    )
    assert (await relay.shown(conversation_id))["cost"] == USAGE["cost"]


@on_each_engine
async def test_a_reply_that_is_stopped_keeps_what_was_told(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(gated(gate := Gate(), "one ", "never sent"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        gate.open()
        await reader.until("one ")
        stopped = (await relay.stop(conversation_id)).json()
    assert (stopped["served_model"], stopped["usage"]) == ("openrouter/auto-20260224", None)
    assert (await relay.shown(conversation_id))["cost"] is None


async def cost(relay: Relay, conversation_id: str) -> float | None:
    told: float | None = (await relay.shown(conversation_id))["cost"]
    return told


@on_each_engine
async def test_the_cost_is_the_sum_of_all_replies_deleted_ones_included(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    upstream.queue(answer(usage={"cost": 0.25}), answer(usage={"cost": 0.5}), answer(usage={"total_tokens": 3}))
    made = await relay.conversation()
    assert made["cost"] is None
    costs = []
    for _ in range(3):
        question = await relay.say(made["id"])
        await relay.read(made["id"])
        costs.append(await cost(relay, made["id"]))
    assert costs == [0.25, 0.75, 0.75]
    await relay.client.delete(f"/conversations/{made['id']}/messages/{question['id']}")
    assert (await cost(relay, made["id"]), await cost(relay, await relay.ask())) == (0.75, None)
    [listed] = [c for c in (await relay.client.get("/conversations")).json()["conversations"] if c["id"] == made["id"]]
    assert listed["cost"] == 0.75


@pytest.mark.parametrize("told", ["0.5", True, None, {"usd": 1}, 1e200], ids=repr)
async def test_a_cost_that_is_no_number_adds_nothing(upstream: ScriptedUpstream, relay: Relay, told: Any) -> None:
    upstream.queue(answer(usage={"cost": 1}), answer(usage={"cost": told}))
    conversation_id = await relay.ask()
    await relay.read(conversation_id)
    await relay.say(conversation_id)
    await relay.read(conversation_id)
    assert await cost(relay, conversation_id) == 1


@on_each_engine
async def test_a_reply_that_fails_twice_costs_twice(upstream: ScriptedUpstream, relay: Relay) -> None:
    error = {"error": {"code": 400, "message": "m"}, "usage": {"cost": 2, "completion_tokens": 1}}
    upstream.queue(*[steps(says("one"), event(error), Wire.end)] * 2)
    conversation_id = await relay.ask()
    for expected in (2, 4):
        assert "error" in (await relay.read(conversation_id)).last
        assert await cost(relay, conversation_id) == expected


async def test_the_last_event_is_no_longer_than_a_line_may_be(upstream: ScriptedUpstream, relay: Relay) -> None:
    """Some clients take lines of 64 KiB at the most."""

    sources = [{"type": "url_citation", "url": f"https://e.example/{n}/{'é' * 900}"} for n in range(150)]
    long = {"usage": {f"{n}": "é" * 60 for n in range(9)}, "model": "😀" * 300, "provider": "😀" * 300}
    upstream.play(steps(chunk({"content": "Hi", "annotations": sources}, "stop", **long), Wire.done))
    conversation_id = await relay.ask()
    async with relay.client.stream("GET", f"/conversations/{conversation_id}/stream") as response:
        lines = [line async for line in response.aiter_lines()]
    assert 40_000 < max(map(len, lines)) < 60_000
    assert all(line.isascii() for line in lines)


@on_each_engine
async def test_a_long_list_of_sources_is_sent_in_pieces(upstream: ScriptedUpstream, relay: Relay) -> None:
    """Others are served between two messages."""

    sources = [{"type": "url_citation", "url": f"https://e.example/{n}/{'x' * 500}"} for n in range(70)]
    upstream.play(steps(chunk({"content": "Hi", "annotations": sources}, "stop"), Wire.done))
    conversation_id = (await relay.conversation())["id"]
    for _ in range(8):
        await relay.say(conversation_id)
        await relay.read(conversation_id)
    response: httpx.Response = await relay.client.get(f"/conversations/{conversation_id}/messages")
    assert "content-length" not in response.headers
    assert [len(message["annotations"] or ()) for message in response.json()["messages"]] == [0, 65] * 8


async def test_the_trace_of_whoever_asks_goes_on_upstream(upstream: ScriptedUpstream, relay: Relay) -> None:
    """https://www.w3.org/TR/trace-context/"""
    traces = [{"traceparent": f"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b{n}-01"} for n in range(2)]
    conversation_id = await relay.ask()
    await relay.read(conversation_id, headers=traces[0])
    headers = {"Accept": "text/event-stream", **traces[1]}
    await relay.client.post(f"/conversations/{conversation_id}/messages", json={"content": "Hi"}, headers=headers)
    await relay.say(conversation_id)
    await relay.read(conversation_id, headers={"traceparent": "00-unreadable"})
    sent = [request.headers.get("traceparent") for request in upstream.requests]
    assert sent == [traces[0]["traceparent"], traces[1]["traceparent"], None]
