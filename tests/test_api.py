"""The JSON API from outside, row by row of its table, and what every response carries."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import pytest

from openrouter import Timers
from settings import VERSION
from tests.support.contract import checked, nulls
from tests.support.engines import engine_name, on_each_engine
from tests.support.problems import assert_problem
from tests.support.process import ROOT
from tests.support.relay import NOWHERE, VITE, Relay
from tests.support.upstream import ANSWER, USAGE, Gate, ScriptedUpstream, answer, gated, status

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z")
EXPOSED = {"ETag", "Location", "Retry-After", "X-Message-Id", "X-Model", "X-Request-ID"}

TEXTS = [
    "Grüße an 你好, שלום und 𠮷",
    "👋🏽 👩‍👩‍👧‍👦 e\u0301",
    "line\u2028paragraph\u2029next\x85vertical\x0bform\x0cend",
    "nul\x00 escape\x1b delete\x7f bom\ufeff",
    'tab\t"quotes" \\ /slash\r\nsecond line\n',
    "data: no event\n\nid: none\n\n",
    "\ue000\ufffe\uffff\U0010ffff",
]


@pytest.fixture
async def relay(upstream: ScriptedUpstream) -> AsyncIterator[Relay]:
    async with checked(upstream) as relay:
        yield relay


async def conversations(relay: Relay, **params: Any) -> tuple[list[dict[str, Any]], str | None]:
    response = await relay.client.get("/conversations", params=params)
    assert response.status_code == 200, response.text
    page = response.json()
    assert set(page) == {"conversations", "next_cursor"}
    return page["conversations"], page["next_cursor"]


async def patched(relay: Relay, conversation_id: str, **changes: Any) -> dict[str, Any]:
    response = await relay.client.patch(f"/conversations/{conversation_id}", json=changes)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def is_uuid4(text: str) -> bool:
    return str(UUID(text)) == text and UUID(text).version == 4


# GET /, /health, /openapi.json, /docs, /redoc


@on_each_engine
async def test_the_index_says_where_everything_is(relay: Relay) -> None:
    response = await relay.client.get("/")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json() == {
        "name": "chat-relay",
        "version": VERSION,
        "engine": engine_name(),
        "docs": "/docs",
        "openapi": "/openapi.json",
        "health": "/health",
        "models": "/models",
    }


@on_each_engine
async def test_health_counts_conversations_messages_and_replies_in_progress(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    async def counts() -> tuple[int, int, int]:
        health = await relay.health()
        return health["conversations"], health["messages"], health["replies_in_progress"]

    gate = Gate()
    upstream.play(gated(gate, "Hello"))
    assert await counts() == (0, 0, 0)
    conversation_id = await relay.ask()
    await relay.ask()
    assert await counts() == (2, 2, 0)
    async with relay.stream(conversation_id) as reader:
        await reader.next()
        assert await counts() == (2, 3, 1)
        gate.open_wide()
        await reader.whole()
    assert await counts() == (2, 3, 0)
    await relay.client.delete(f"/conversations/{conversation_id}")
    assert await counts() == (1, 1, 0)


@on_each_engine
async def test_health_says_what_keeps_the_conversations_and_whether_it_can(relay: Relay) -> None:
    health = await relay.health()
    assert (health["status"], health["engine"], health["store"]) == ("ok", engine_name(), "ok")


async def test_the_contract_is_served_as_it_is(relay: Relay) -> None:
    response = await relay.client.get("/openapi.json")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json() == json.loads((ROOT / "openapi.json").read_bytes())


@pytest.mark.parametrize(("path", "word"), [("/docs", "swagger-ui"), ("/redoc", "redoc")])
async def test_the_contract_can_be_read_in_a_browser(relay: Relay, path: str, word: str) -> None:
    response = await relay.client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert word in response.text and "/openapi.json" in response.text


# GET /models


async def test_the_models_list_is_upstreams_as_it_is(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.models = [
        {"id": "test/ünï", "pricing": {"prompt": "0.0000001"}, "score": 1e-07, "created": 2**70, "note": None},
        {"id": "test/two", "name": "line\u2028sep 👋🏽", "nested": [{"deep": [1, 2.5, True]}]},
    ]
    response = await relay.client.get("/models")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    body = response.json()
    assert body == {"models": upstream.models, "cached": False, "stale": False, "fetched_at": body["fetched_at"]}
    assert TIME.fullmatch(body["fetched_at"])


async def test_the_old_models_list_is_served_as_stale_while_upstream_fails(upstream: ScriptedUpstream) -> None:
    async with checked(upstream, timers=Timers(models=0, models_retry=0)) as relay:
        first = (await relay.client.get("/models")).json()
        upstream.models = status(500)
        assert (await relay.client.get("/models")).json() == first | {"cached": True, "stale": True}
        upstream.models = [{"id": "test/new"}]
        fresh = (await relay.client.get("/models")).json()
    assert (fresh["models"], fresh["cached"], fresh["stale"]) == ([{"id": "test/new"}], False, False)


@pytest.mark.parametrize("shape", ["{}", "W/{}", '"other", {}', 'W/"other",W/{}', "*"])
async def test_a_client_that_has_the_models_list_gets_304(relay: Relay, shape: str) -> None:
    response = await relay.client.get("/models")
    tag = response.headers["etag"].removeprefix("W/")
    again = await relay.client.get("/models", headers={"If-None-Match": shape.format(tag), "Origin": VITE})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == response.headers["etag"]
    assert again.headers["access-control-allow-origin"] == VITE


async def test_a_client_that_has_another_models_list_gets_the_new_one(upstream: ScriptedUpstream) -> None:
    async with checked(upstream, timers=Timers(models=0)) as relay:
        old = (await relay.client.get("/models")).headers["etag"]
        upstream.models = [{"id": "test/new"}]
        response = await relay.client.get("/models", headers={"If-None-Match": old})
        assert response.status_code == 200 and response.headers["etag"] != old
        assert response.json()["models"] == [{"id": "test/new"}]


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("br, gzip;q=0.8", "gzip"),
        ("gzip;q=0", None),
        ("gzip; q=0.0, br", None),
        ("identity", None),
        ("br", None),
    ],
)
async def test_the_models_list_is_gzipped_for_whom_takes_it(
    upstream: ScriptedUpstream, relay: Relay, accepted: str, encoding: str | None
) -> None:
    upstream.models = [{"id": f"test/{number}", "description": "the same words"} for number in range(100)]
    response = await relay.client.get("/models", headers={"Accept-Encoding": accepted})
    assert response.headers.get("content-encoding") == encoding
    assert response.json()["models"] == upstream.models
    assert (response.num_bytes_downloaded < len(response.content) / 2) == (encoding == "gzip")
    assert int(response.headers["content-length"]) == response.num_bytes_downloaded
    assert "accept-encoding" in response.headers["vary"].lower()


# POST /conversations, GET and DELETE /conversations/{id}


@on_each_engine
async def test_a_new_conversation_has_these_fields_and_is_where_location_says(relay: Relay) -> None:
    response = await relay.client.post("/conversations")
    assert (response.status_code, response.headers["content-type"]) == (201, "application/json")
    body = response.json()
    assert body == {
        "id": body["id"],
        "title": None,
        "system_prompt": None,
        "default_model": "openrouter/auto",
        "options": None,
        "cost": None,
        "created_at": body["created_at"],
        "updated_at": body["created_at"],
        "message_count": 0,
    }
    assert is_uuid4(body["id"]) and TIME.fullmatch(body["created_at"])
    assert response.headers["location"] == f"/conversations/{body['id']}"
    there = await relay.client.get(response.headers["location"])
    assert (there.status_code, there.json()) == (200, body)


@pytest.mark.parametrize("content", [b"", b"{}", b' {"title": null, "system_prompt": null, "default_model": null}\r\n'])
@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=UTF-8"])
async def test_a_conversation_needs_nothing_to_be_made(
    upstream: ScriptedUpstream, content: bytes, content_type: str
) -> None:
    async with checked(upstream, model_name="test/default") as relay:
        headers = {"Content-Type": content_type}
        response = await relay.client.post("/conversations", content=content, headers=headers)
    body = response.json()
    assert response.status_code == 201
    assert (body["title"], body["system_prompt"], body["default_model"]) == (None, None, "test/default")


@on_each_engine
async def test_a_conversation_is_made_with_all_that_it_is_given(relay: Relay) -> None:
    given = {"title": "A title", "system_prompt": "Be brief.\n", "default_model": "test/one:free"}
    body = await relay.conversation(**given)
    assert body | given == body
    assert await relay.shown(body["id"]) == body


async def test_a_deleted_conversation_is_gone_with_its_messages(relay: Relay) -> None:
    conversation_id, other = await relay.ask(), await relay.ask()
    response = await relay.client.delete(f"/conversations/{conversation_id}")
    assert (response.status_code, response.content) == (204, b"")
    assert "content-type" not in response.headers
    for path in ("", "/messages", "/stream"):
        assert_problem(await relay.client.get(f"/conversations/{conversation_id}{path}"), 404)
    assert [entry["id"] for entry in (await conversations(relay))[0]] == [other]
    assert_problem(await relay.client.delete(f"/conversations/{conversation_id}"), 404)


# GET /conversations


async def test_an_empty_list_has_no_next_page(relay: Relay) -> None:
    assert await conversations(relay) == ([], None)


async def test_the_list_shows_conversations_as_they_are_elsewhere(relay: Relay) -> None:
    conversation_id = await relay.ask("Hi")
    assert (await conversations(relay))[0] == [await relay.shown(conversation_id)]


async def test_a_page_has_50_entries_unless_told_and_200_at_the_most(relay: Relay) -> None:
    await asyncio.gather(*(relay.conversation() for _ in range(201)))
    for params, length in [({}, 50), ({"limit": 1}, 1), ({"limit": 200}, 200)]:
        page, cursor = await conversations(relay, **params)
        assert (len(page), isinstance(cursor, str)) == (length, True)
        rest, cursor = await conversations(relay, limit=200, cursor=cursor)
        assert (len(rest), cursor) == (201 - length, None)


# PATCH /conversations/{id}


@pytest.mark.parametrize(
    "changes",
    [
        {"title": "New"},
        {"title": None},
        {"system_prompt": "New"},
        {"system_prompt": None},
        {"default_model": "test/new"},
        {"title": "New", "system_prompt": None, "default_model": "test/new"},
        {},
    ],
)
async def test_a_patch_changes_what_it_names_and_moves_updated_at(relay: Relay, changes: dict[str, Any]) -> None:
    before = await relay.conversation(title="Old", system_prompt="Old", default_model="test/old")
    after = await patched(relay, before["id"], **changes)
    assert after == before | changes | {"updated_at": after["updated_at"]}
    assert after["updated_at"] > before["updated_at"]
    assert await relay.shown(before["id"]) == after


async def test_a_patch_works_while_a_reply_is_in_progress_and_leaves_it_alone(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    gate = Gate()
    upstream.play(gated(gate, "one ", "two"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        await reader.next()
        await patched(relay, conversation_id, default_model="test/new", system_prompt="New")
        gate.open_wide()
        transcript = await reader.whole()
    assert (transcript.content, transcript.last["model"]) == ("one two", "openrouter/auto")


# Messages


@on_each_engine
async def test_a_question_has_all_fields_of_a_message(relay: Relay) -> None:
    conversation_id = (await relay.conversation())["id"]
    path = f"/conversations/{conversation_id}/messages"
    for model in (None, "test/other"):
        response = await relay.client.post(path, json={"content": " Hi\n", "model": model})
        assert (response.status_code, response.headers["content-type"]) == (201, "application/json")
        body = response.json()
        assert body == nulls("Message") | {
            "id": body["id"],
            "role": "user",
            "content": " Hi\n",
            "model": model,
            "timestamp": body["timestamp"],
            "status": "complete",
        }
        assert is_uuid4(body["id"]) and TIME.fullmatch(body["timestamp"])
        assert (await relay.messages(conversation_id))[-1] == body
    assert (await relay.shown(conversation_id))["message_count"] == 2


@on_each_engine
async def test_a_reply_has_all_fields_of_a_message(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(answer("The answer.", reasoning="Some thoughts."))
    conversation_id = await relay.ask(model="test/asked")
    transcript = await relay.read(conversation_id)
    question, reply = await relay.messages(conversation_id)
    assert reply == nulls("Message") | {
        "id": transcript.start["message_id"],
        "role": "assistant",
        "content": "The answer.",
        "model": "test/asked",
        "timestamp": reply["timestamp"],
        "status": "complete",
        "finish_reason": "stop",
        "reasoning": "Some thoughts.",
        "usage": USAGE,
        "generation_id": (await upstream.called()).generation_id,
        "served_model": "test/asked-20260224",
        "provider": "DeepInfra",
    }
    assert is_uuid4(reply["id"]) and TIME.fullmatch(reply["timestamp"])
    assert question["timestamp"] < reply["timestamp"]


async def test_a_failed_reply_says_why(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(status(404, {"error": {"code": 404, "message": "No such model"}}))
    conversation_id = await relay.ask()
    error = (await relay.read(conversation_id)).last["error"]
    _, reply = await relay.messages(conversation_id)
    assert reply["error"] == error
    assert error == {"code": 404, "message": error["message"], "retryable": False, "retry_after": None}
    assert (reply["status"], reply["content"], reply["finish_reason"], reply["usage"]) == ("failed", "", None, None)


@on_each_engine
async def test_a_reply_in_progress_is_listed_as_far_as_it_has_come(upstream: ScriptedUpstream, relay: Relay) -> None:
    gate = Gate()
    upstream.play(gated(gate, "one ", "two "))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        for content in ("", "one ", "one two "):
            await reader.until(content)
            _, reply = await relay.messages(conversation_id)
            assert (reply["status"], reply["content"]) == ("streaming", content)
            assert (reply["finish_reason"], reply["usage"], reply["error"]) == (None, None, None)
            gate.open()
        await reader.whole()
    assert [message["status"] for message in await relay.messages(conversation_id)] == ["complete", "complete"]


async def test_messages_are_listed_from_the_oldest_on(relay: Relay) -> None:
    conversation_id = (await relay.conversation())["id"]
    assert await relay.messages(conversation_id) == []
    for content in ("one", "two", "three"):
        await relay.say(conversation_id, content)
    await relay.read(conversation_id)
    listed = await relay.messages(conversation_id)
    assert [message["content"] for message in listed] == ["one", "two", "three", ANSWER]
    timestamps = [message["timestamp"] for message in listed]
    assert timestamps == sorted(set(timestamps))


async def test_a_deleted_message_takes_every_later_one_along(relay: Relay) -> None:
    conversation_id, other = await relay.ask("one"), await relay.ask("other")
    messages = [await relay.say(conversation_id, content) for content in ("two", "three")]
    before = await relay.shown(conversation_id)
    response = await relay.client.delete(f"/conversations/{conversation_id}/messages/{messages[0]['id']}")
    assert (response.status_code, response.content) == (204, b"")
    after = await relay.shown(conversation_id)
    assert await relay.contents(conversation_id) == ["one"]
    assert (after["message_count"], after["updated_at"] > before["updated_at"]) == (1, True)
    assert len(await relay.messages(other)) == 1


@on_each_engine
async def test_usage_is_what_upstream_reported(upstream: ScriptedUpstream, relay: Relay) -> None:
    usage = {"prompt_tokens": 2**70, "cost": 1e-08, "nested": {"a": {"b": 1}}, "free": True, "none": None}
    upstream.play(answer(usage=usage))
    conversation_id = await relay.ask()
    assert (await relay.read(conversation_id)).last["usage"] == usage
    assert (await relay.messages(conversation_id))[1]["usage"] == usage


# Text


@on_each_engine
@pytest.mark.parametrize("text", TEXTS)
async def test_text_comes_back_as_it_went_in(upstream: ScriptedUpstream, relay: Relay, text: str) -> None:
    upstream.play(answer(text, pieces=100, reasoning=text))
    made = await relay.conversation(title=text, system_prompt=text)
    assert (made["title"], made["system_prompt"]) == (text, text)
    assert (await relay.say(made["id"], text))["content"] == text
    transcript = await relay.read(made["id"])
    assert (transcript.content, transcript.reasoning) == (text, text)
    question, reply = await relay.messages(made["id"])
    assert (question["content"], reply["content"], reply["reasoning"]) == (text, text, text)
    turns = [{"role": "system", "content": text}, {"role": "user", "content": text}]
    assert (await upstream.called()).body["messages"] == turns


@pytest.mark.parametrize("encoded", [json.dumps, lambda text: json.dumps(text, ensure_ascii=False)])
@pytest.mark.parametrize("text", TEXTS)
async def test_escapes_in_a_body_mean_what_json_says(relay: Relay, text: str, encoded: Any) -> None:
    headers = {"Content-Type": "application/json"}
    body = f' {{ "content" : {encoded(text)} }} '.encode()
    conversation_id = (await relay.conversation())["id"]
    path = f"/conversations/{conversation_id}/messages"
    response = await relay.client.post(path, content=body, headers=headers)
    assert (response.status_code, response.json()["content"]) == (201, text)


# HEAD


async def test_head_has_the_headers_of_get_and_no_body(relay: Relay) -> None:
    conversation_id = await relay.ask()
    await relay.client.get("/models")  # the next answer comes from the cache and is shorter
    paths = ["/", "/health", "/models", "/openapi.json", "/docs", "/redoc", "/conversations"]
    paths += [f"/conversations/{conversation_id}", f"/conversations/{conversation_id}/messages"]
    for path in paths:
        get, head = await relay.client.get(path), await relay.client.head(path)
        assert (head.status_code, head.content) == (200, b""), path
        for name in ("content-type", "content-length", "content-encoding", "etag", "vary"):
            assert (name, head.headers.get(name)) == (name, get.headers.get(name)), path


async def test_head_of_what_is_not_there_is_a_404_without_body(relay: Relay) -> None:
    for path in ("/nowhere", *(f"/conversations/{NOWHERE}{part}" for part in ("", "/messages", "/stream"))):
        response = await relay.client.head(path)
        assert (response.status_code, response.content) == (404, b""), path
        assert response.headers["content-type"] == "application/problem+json", path


# X-Request-ID


@pytest.mark.parametrize("request_id", ["7", "a-b_c.d:e", "x" * 128, "01J9ZK3V5T", "A1b2-" * 20])
async def test_a_sane_request_id_is_taken(relay: Relay, request_id: str) -> None:
    for path in ("/", "/nowhere"):
        response = await relay.client.get(path, headers={"X-Request-ID": request_id})
        assert response.headers.get_list("x-request-id") == [request_id]


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 129, "a\tb", "<script>", "é", '"quoted"', "a,b", "a=b"])
async def test_another_request_id_is_replaced(relay: Relay, request_id: str) -> None:
    headers = httpx.Headers({"X-Request-ID": request_id}, encoding="utf-8")
    made = {(await relay.client.get("/", headers=headers)).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3 and all(re.fullmatch(r"[\w.:-]{1,128}", id, re.ASCII) for id in made)


async def test_every_response_has_a_request_id(relay: Relay) -> None:
    conversation_id = await relay.ask()
    path = f"/conversations/{conversation_id}"
    asking = {"Origin": VITE, "Access-Control-Request-Method": "GET"}
    etag = (await relay.client.get("/models")).headers["etag"]
    responses = [
        await relay.client.get("/models", headers={"If-None-Match": etag}),
        await relay.client.post("/conversations"),
        await relay.client.get(f"{path}/stream"),
        await relay.client.get(f"{path}/stream"),
        await relay.client.head(f"{path}/stream"),
        await relay.client.put(path),
        await relay.client.options(path, headers=asking),
        await relay.client.options(path, headers=asking | {"Origin": "https://elsewhere.example"}),
        await relay.client.get(path, headers={"Origin": "https://elsewhere.example"}),
        await relay.client.delete(path),
        await relay.client.get(path),
    ]
    assert [response.status_code for response in responses] == [304, 201, 200, 409, 200, 405, 200, 403, 403, 204, 404]
    ids = [response.headers["x-request-id"] for response in responses]
    assert len(set(ids)) == len(ids)


# CORS


def exposed(response: httpx.Response) -> set[str]:
    return {name.strip() for name in response.headers["access-control-expose-headers"].split(",")}


@pytest.mark.parametrize("origin", [VITE, "http://localhost:3000"])
async def test_pages_of_the_development_servers_may_read_every_response(relay: Relay, origin: str) -> None:
    conversation_id = (await relay.conversation())["id"]
    path = f"/conversations/{conversation_id}"
    requests = [
        ("GET", "/", None, 200),
        ("GET", "/models", None, 200),
        ("POST", "/conversations", None, 201),
        ("POST", "/conversations", b"[]", 422),
        ("POST", "/conversations", b"{", 400),
        ("POST", f"{path}/messages", b'{"content": "Hi"}', 201),
        ("GET", f"{path}/stream", None, 200),
        ("GET", f"{path}/stream", None, 409),
        ("PATCH", path, b"{}", 200),
        ("GET", "/nowhere", None, 404),
        ("PUT", path, b"", 405),
        ("DELETE", f"{path}/stream", None, 204),
        ("DELETE", path, None, 204),
    ]
    for method, target, content, expected in requests:
        headers = {"Origin": origin, "Content-Type": "application/json"}
        response = await relay.client.request(method, target, content=content, headers=headers)
        assert response.status_code == expected, (method, target, response.text)
        assert response.headers["access-control-allow-origin"] == origin, (method, target)
        assert exposed(response) >= EXPOSED, (method, target)
        assert "Origin" in response.headers["vary"], (method, target)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PATCH", "DELETE"])
async def test_a_preflight_allows_what_the_api_takes(relay: Relay, method: str) -> None:
    names = ("content-type", "last-event-id", "authorization", "content-type, last-event-id", "cache-control, x-other")
    for name in names:
        headers = {"Origin": VITE, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": name}
        response = await relay.client.options(f"/conversations/{NOWHERE}/stream", headers=headers)
        assert response.status_code == 200, response.text
        assert response.headers["access-control-allow-origin"] == VITE
        assert method in response.headers["access-control-allow-methods"].split(", ")
        allowed = response.headers["access-control-allow-headers"].lower().split(", ")
        assert set(name.split(", ")) <= set(allowed)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "GET"},
        {"Origin": "null", "Access-Control-Request-Method": "GET"},
        {"Origin": VITE, "Access-Control-Request-Method": "PUT"},
    ],
)
async def test_a_preflight_for_anything_else_is_a_problem(relay: Relay, headers: dict[str, str]) -> None:
    response = await relay.client.options("/conversations", headers=headers)
    assert_problem(response, 403)
    allowed = {VITE} if headers["Origin"] == VITE else set()
    assert set(response.headers.get_list("access-control-allow-origin")) <= allowed


async def test_a_refused_preflight_names_the_setting(relay: Relay) -> None:
    headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "GET"}
    assert_problem(await relay.client.options("/conversations", headers=headers), 403, "CORS_ORIGINS")


async def test_origins_are_those_of_the_setting(upstream: ScriptedUpstream) -> None:
    async with checked(upstream, cors_origins=("https://App.example:443",)) as relay:
        listed = await relay.client.get("/", headers={"Origin": "https://app.example"})
        assert listed.headers["access-control-allow-origin"] == "https://app.example"
        own = await relay.client.get("/", headers={"Origin": relay.url})
        assert own.status_code == 200
        assert_problem(await relay.client.get("/", headers={"Origin": VITE}), 403, "CORS_ORIGINS")


async def test_without_an_origin_there_are_no_cors_headers(relay: Relay) -> None:
    response = await relay.client.get("/")
    assert not [name for name in response.headers if name.startswith("access-control-allow")]
