"""Every error the service answers itself: a problem response that says what was wrong, from each of its sources."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import httpx
import pytest

from api import problems, requests
from openrouter import Timers
from store import Store
from tests.support.contract import checked
from tests.support.engines import on_each_engine
from tests.support.problems import assert_problem
from tests.support.process import process
from tests.support.relay import NOWHERE, VITE, Relay, serving
from tests.support.scripts import answer, gated, silence, status
from tests.support.servers import free_port
from tests.support.upstream import Gate, ScriptedUpstream
from tests.support.waiting import bounded

JSON = {"Content-Type": "application/json"}

TAKE_A_BODY = [
    ("POST", "/conversations"),
    ("PATCH", "/conversations/{id}"),
    ("POST", "/conversations/{id}/messages"),
]

ALLOWED = {
    "/": "GET, HEAD",
    "/health": "GET, HEAD",
    "/models": "GET, HEAD",
    "/openapi.json": "GET, HEAD",
    "/docs": "GET, HEAD",
    "/redoc": "GET, HEAD",
    "/conversations": "GET, HEAD, POST",
    "/conversations/{id}": "DELETE, GET, HEAD, PATCH",
    "/conversations/{id}/messages": "GET, HEAD, POST",
    "/conversations/{id}/messages/{message_id}": "DELETE",
    "/conversations/{id}/stream": "DELETE, GET, HEAD",
}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]


@pytest.fixture
async def relay(upstream: ScriptedUpstream) -> AsyncIterator[Relay]:
    async with checked(upstream) as relay:
        yield relay


async def everywhere(relay: Relay, content: bytes, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
    """The answers of all that take a body."""
    conversation_id = (await relay.conversation())["id"]
    for method, path in TAKE_A_BODY:
        yield await relay.client.request(method, path.format(id=conversation_id), content=content, headers=headers)
    assert await relay.messages(conversation_id) == []
    assert (await relay.health())["conversations"] == 1


async def say(relay: Relay, conversation_id: str, content: str) -> httpx.Response:
    return await relay.client.post(f"/conversations/{conversation_id}/messages", json={"content": content})


async def asked(relay: Relay, conversation_id: str, **headers: str) -> httpx.Response:
    """The stream, read to its end."""
    return await relay.client.get(f"/conversations/{conversation_id}/stream", headers=headers)


# 400


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b" ",
        b"{'content': 'Hi'}",
        b'{"content": "Hi",}',
        b'{"content": "Hi"} {}',
        b'{"content": "a raw\nline end"}',
        b'{"content": "\\x41"}',
        b'{"content": NaN}',
        b'{"content": Infinity}',
        b'{"content": -Infinity}',
        b"[" * 100_000,
        b'{"content":' * 50_000,
    ],
)
async def test_a_body_that_is_not_json_is_a_400(relay: Relay, content: bytes) -> None:
    async for response in everywhere(relay, content, JSON):
        assert_problem(response, 400, "JSON")


@pytest.mark.parametrize(
    "content", [b'{"content": "\xe9"}', b'{"content": "\xed\xa0\xbd"}', '{"a": 1}'.encode("utf-16")]
)
async def test_a_body_that_is_not_utf_8_is_a_400(relay: Relay, content: bytes) -> None:
    async for response in everywhere(relay, content, JSON):
        assert_problem(response, 400, "UTF-8")


@pytest.mark.parametrize(("method", "path"), TAKE_A_BODY[1:])
async def test_an_empty_body_where_one_is_needed_is_a_400(relay: Relay, method: str, path: str) -> None:
    conversation_id = (await relay.conversation())["id"]
    response = await relay.client.request(method, path.format(id=conversation_id), headers=JSON)
    assert_problem(response, 400, "JSON")


async def test_a_limit_that_is_no_number_from_1_to_200_is_a_400(relay: Relay) -> None:
    for limit in ("0", "201", "-1", "+1", "1.0", "1e1", "abc", "", " 5", "٣", "9" * 5000, "NaN", "5\x00"):
        response = await relay.client.get("/conversations", params={"limit": limit})
        assert_problem(response, 400, "limit", "1 to 200")


async def test_a_cursor_that_is_none_of_the_service_is_a_400(relay: Relay) -> None:
    await relay.conversation()
    for cursor in ("x", "0", "null", "2026-09-01", "2026-09-01T00:00:00Z", "'", "\x00", "é", "x" * 5000):
        assert_problem(
            await relay.client.get("/conversations", params={"cursor": cursor}), 400, "cursor", "next_cursor"
        )


def unreadable_ids() -> Iterator[str]:
    for place in ("", ":", ":-1", ":+1", ":1.5", ":END", ":1:2", ":end ", ":1 2", ":" + "9" * 5000, ":x"):
        yield f"{uuid4()}{place}"
    yield from ("x", "0", ":0", ":end", f"x{uuid4()}:0", f"{uuid4().hex}:0", f"{{{uuid4()}}}:0", f"{uuid4()}é:0")


async def test_a_last_event_id_of_another_form_is_a_400(upstream: ScriptedUpstream, relay: Relay) -> None:
    conversation_id = await relay.ask()
    path = f"/conversations/{conversation_id}/stream"
    for id in unreadable_ids():
        assert_problem(await relay.client.get(path, params={"last_event_id": id}), 400, "Last-Event-ID")
        headers = httpx.Headers({"Last-Event-ID": id.strip()}, encoding="utf-8")
        if not id.endswith(":end "):
            assert_problem(await relay.client.get(path, headers=headers), 400, "Last-Event-ID")
    assert not upstream.requests


async def test_a_last_event_id_with_more_characters_than_there_are_is_a_400(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    gate = Gate()
    upstream.play(gated(gate, "1234"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        message_id = (await reader.next()).json["message_id"]
        assert_problem(
            await asked(relay, conversation_id, **{"Last-Event-ID": f"{message_id}:1"}), 400, "Last-Event-ID"
        )
        gate.open_wide()
        await reader.whole()
    assert_problem(await asked(relay, conversation_id, **{"Last-Event-ID": f"{message_id}:5"}), 400, "Last-Event-ID")
    assert (await asked(relay, conversation_id, **{"Last-Event-ID": f"{message_id}:4"})).status_code == 200


# 401, 403


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer wrong", "Basic right-token", "right-token"])
async def test_without_the_token_everything_but_health_is_a_401(
    upstream: ScriptedUpstream, authorization: str | None
) -> None:
    async with checked(upstream, auth_token="right-token") as relay:
        headers = {} if authorization is None else {"Authorization": authorization}
        for path, methods in ALLOWED.items():
            if path != "/health":
                for method in set(methods.split(", ")) - {"HEAD"}:
                    response = await relay.client.request(method, path, headers=headers)
                    assert_problem(response, 401, "AUTH_TOKEN", "Authorization: Bearer")
                    assert response.headers["www-authenticate"] == "Bearer"
        assert_problem(await relay.client.get("/nowhere", headers=headers), 401)
        assert (await relay.client.get("/health", headers=headers)).status_code == 200
        for scheme in ("Bearer", "bearer"):
            right = {"Authorization": f"{scheme} right-token"}
            assert (await relay.client.post("/conversations", headers=right)).status_code == 201


async def test_a_host_that_is_not_allowed_is_a_403(upstream: ScriptedUpstream) -> None:
    async with checked(upstream, allowed_hosts=("relay.example",)) as relay:
        for host in ("elsewhere.example", "relay.example.elsewhere.example", "10.0.0.1:8001", ""):
            assert_problem(await relay.client.get("/", headers={"Host": host}), 403, "Host", "ALLOWED_HOSTS")
            assert (await relay.client.get("/health", headers={"Host": host})).status_code == 200
        for host in ("relay.example", "Relay.Example:80", "localhost", "127.0.0.1:1", "[::1]:1"):
            assert (await relay.client.get("/", headers={"Host": host})).status_code == 200


async def test_a_page_of_an_origin_that_is_not_listed_is_a_403(upstream: ScriptedUpstream, relay: Relay) -> None:
    conversation_id = await relay.ask()
    for origin in ("https://elsewhere.example", "null", "http://localhost:5174", f"{VITE}.elsewhere.example"):
        headers = {"Origin": origin}
        response = await relay.client.get(f"/conversations/{conversation_id}/stream", headers=headers)
        assert_problem(response, 403, "CORS_ORIGINS")
        assert "access-control-allow-origin" not in response.headers
        assert_problem(await relay.client.post("/conversations", headers=headers), 403, "CORS_ORIGINS")
    assert (await relay.health())["conversations"] == 1
    assert not upstream.requests


# 404


async def test_a_path_that_does_not_exist_is_a_404(relay: Relay) -> None:
    conversation_id = await relay.ask()
    paths = [
        "/nowhere",
        "/Conversations",
        "/conversation",
        "/index.html",
        "/models/test",
        "/conversations/",
        "/health/",
    ]
    paths += [f"/conversations/{conversation_id}{end}" for end in ("/", "/messages/", "/stream/", "/nothing")]
    paths += [f"{relay.url}//conversations", "/%00", "/%ff"]
    for path in paths:
        for method in ("GET", "POST", "DELETE"):
            response = await relay.client.request(method, path)
            assert_problem(response, 404, "path")
            assert "location" not in response.headers


@pytest.mark.parametrize("id", [NOWHERE, "1", "undefined", "%00", "..%2f..", "x" * 5000, "%F0%9F%91%8B", "*"])
async def test_a_conversation_that_does_not_exist_is_a_404(upstream: ScriptedUpstream, relay: Relay, id: str) -> None:
    await relay.ask()
    path = f"/conversations/{id}"
    requests = [
        ("GET", path, None),
        ("PATCH", path, b"{}"),
        ("DELETE", path, None),
        ("GET", f"{path}/messages", None),
        ("POST", f"{path}/messages", b'{"content": "Hi"}'),
        ("DELETE", f"{path}/messages/{NOWHERE}", None),
        ("GET", f"{path}/stream", None),
        ("GET", f"{path}/stream?last_event_id={NOWHERE}:0", None),
        ("DELETE", f"{path}/stream", None),
    ]
    for method, target, content in requests:
        response = await relay.client.request(method, target, content=content, headers=JSON)
        if "%2f" not in id:
            assert_problem(response, 404, "no conversation with this id")
        assert_problem(response, 404)
    assert not upstream.requests


async def test_an_id_is_not_found_in_another_spelling(relay: Relay) -> None:
    id = await relay.ask()
    for spelling in (id.replace("-", ""), f"{{{id}}}", f"%20{id}", f"{id}%0A", f"{id}%00", f"urn:uuid:{id}", id[:-1]):
        assert_problem(await relay.client.get(f"/conversations/{spelling}"), 404)


async def test_a_message_that_does_not_exist_is_a_404(relay: Relay) -> None:
    conversation_id, other = await relay.ask(), await relay.ask()
    [of_another] = await relay.messages(other)
    for id in (NOWHERE, "1", "x" * 5000, of_another["id"], conversation_id):
        response = await relay.client.delete(f"/conversations/{conversation_id}/messages/{id}")
        assert_problem(response, 404, "no message with this id")
    assert (await relay.health())["messages"] == 2


# 405


async def test_a_method_that_a_path_does_not_have_is_a_405_with_all_it_has(relay: Relay) -> None:
    for template, allowed in ALLOWED.items():
        path = template.format(id=NOWHERE, message_id=NOWHERE)
        for method in METHODS:
            response = await relay.client.request(method, path)
            if method in allowed.split(", "):
                assert response.status_code != 405, (method, path)
                continue
            assert (response.status_code, response.headers["allow"]) == (405, allowed), (method, path)
            if method != "HEAD":
                assert_problem(response, 405, method, allowed)


# 409


async def test_a_message_while_a_reply_is_in_progress_is_a_409(upstream: ScriptedUpstream, relay: Relay) -> None:
    gate = Gate()
    upstream.play(gated(gate, "Hello"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        await reader.next()
        assert_problem(await say(relay, conversation_id, "Impatient"), 409, "in progress", "DELETE")
        gate.open_wide()
        await reader.whole()
    assert await relay.contents(conversation_id) == ["Hi", "Hello"]
    assert (await say(relay, conversation_id, "Patient")).status_code == 201


async def test_a_stream_where_nothing_was_asked_is_a_409(upstream: ScriptedUpstream, relay: Relay) -> None:
    conversation_id = (await relay.conversation())["id"]
    assert_problem(await asked(relay, conversation_id), 409, "empty")
    assert not upstream.requests


async def test_a_stream_where_the_reply_is_complete_is_a_409(upstream: ScriptedUpstream, relay: Relay) -> None:
    conversation_id = await relay.ask()
    await relay.read(conversation_id)
    for _ in range(2):
        assert_problem(await asked(relay, conversation_id), 409, "answered")
    assert len(upstream.requests) == 1


async def test_a_stream_where_the_reply_was_stopped_is_a_409(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(gated(Gate(), "never sent"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        await reader.next()
        assert (await relay.stop(conversation_id)).status_code == 200
    assert_problem(await asked(relay, conversation_id), 409, "answered")


# 413


class Connection:
    """A bare connection, for requests that no client library sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, octets: bytes) -> None:
        self.writer.write(octets)
        await bounded(self.writer.drain())

    async def response(self) -> httpx.Response:
        head = (await bounded(self.reader.readuntil(b"\r\n\r\n"))).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = httpx.Headers([(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)])
        body = await bounded(self.reader.readexactly(int(headers.get("content-length", "0"))))
        return httpx.Response(int(first.split(" ")[1]), headers=headers, content=body)

    async def goes_on(self, after: httpx.Response) -> None:
        """Assert that the next request is answered, or that the response announced the end and nothing follows."""
        if after.headers.get("connection") == "close":
            assert await bounded(self.reader.read()) == b""
            return
        await self.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await self.response()).json()["status"] == "ok"


@contextlib.asynccontextmanager
async def connected(relay: Relay) -> AsyncIterator[Connection]:
    host, port = relay.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


def head(method: str, path: str, *fields: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *fields, "", ""]
    return "\r\n".join(lines).encode()


def chunk(size: int) -> bytes:
    return b"%x\r\n%b\r\n" % (size, b" " * size)


@pytest.mark.parametrize(("method", "path"), TAKE_A_BODY)
async def test_a_body_as_large_as_allowed_passes_and_one_byte_more_is_a_413(
    upstream: ScriptedUpstream, method: str, path: str
) -> None:
    async with checked(upstream, max_body_bytes=1000) as relay:
        target = path.format(id=(await relay.conversation())["id"])
        body = b'{"content": "Hi"}' if target.endswith("/messages") else b"{}"

        async def pieces(size: int) -> AsyncIterator[bytes]:
            yield body
            yield b" " * (size - len(body))

        for size, taken in [(1000, True), (1001, False)]:
            for content in (body.ljust(size), pieces(size)):  # declared, and chunked without a length
                response = await relay.client.request(method, target, content=content, headers=JSON)
                assert response.is_success == taken, response.text
                if not taken:
                    assert_problem(response, 413, "MAX_BODY_BYTES", "1000")


async def test_a_body_that_is_declared_too_large_is_refused_unread_and_the_connection_goes_on(
    upstream: ScriptedUpstream,
) -> None:
    async with serving(upstream, max_body_bytes=1000) as relay, connected(relay) as connection:
        await connection.send(head("POST", "/conversations", "Content-Length: 5000000"))
        response = await connection.response()
        assert_problem(response, 413, "MAX_BODY_BYTES")
        for _ in range(50):
            await connection.send(b" " * 100_000)
        await connection.goes_on(response)


async def test_a_client_that_waits_for_100_is_told_413_instead(upstream: ScriptedUpstream) -> None:
    async with serving(upstream, max_body_bytes=1000) as relay, connected(relay) as connection:
        fields = ("Content-Length: 1001", "Expect: 100-continue", "Connection: close")
        await connection.send(head("POST", "/conversations", *fields))
        assert_problem(await connection.response(), 413, "MAX_BODY_BYTES")


async def test_an_endless_body_is_cut_at_the_limit(upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "LINGER_TIMEOUT", 0.05)
    async with serving(upstream, max_body_bytes=1000) as relay, connected(relay) as connection:
        await connection.send(head("POST", "/conversations", "Transfer-Encoding: chunked") + chunk(1000))
        await connection.send(chunk(1))
        response = await connection.response()
        assert_problem(response, 413, "MAX_BODY_BYTES")
        await connection.goes_on(response)


async def test_a_client_that_sends_all_before_it_reads_gets_its_413(upstream: ScriptedUpstream) -> None:
    """RFC 9112, 9.6: a server that closes at once may reset the connection before the response has been read."""
    async with serving(upstream, max_body_bytes=1000) as relay, connected(relay) as connection:
        await connection.send(head("POST", "/conversations", "Transfer-Encoding: chunked"))
        for _ in range(50):
            await connection.send(chunk(200_000))
        assert_problem(await connection.response(), 413, "MAX_BODY_BYTES")


async def test_a_body_that_does_not_come_is_a_408(upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_TIMEOUT", 0.05)
    async with serving(upstream) as relay, connected(relay) as connection:
        await connection.send(head("POST", "/conversations", "Content-Length: 100") + b"{")
        response = await connection.response()
        assert_problem(response, 408)
        await connection.goes_on(response)


async def test_a_body_of_a_megabyte_is_allowed_by_default(relay: Relay) -> None:
    fits = b'{"content": "Hi"}'.ljust(1024 * 1024)
    path = f"/conversations/{(await relay.conversation())['id']}/messages"
    assert (await relay.client.post(path, content=fits, headers=JSON)).status_code == 201
    assert_problem(await relay.client.post(path, content=fits + b" ", headers=JSON), 413, "MAX_BODY_BYTES")


# 415


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "text/plain;charset=UTF-8",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/json",
        "application/jsonp",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        "application/xml, application/json",
    ],
)
async def test_a_body_that_is_not_declared_as_json_is_a_415(relay: Relay, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    async for response in everywhere(relay, b'{"title": "Hi"}', headers):
        assert_problem(response, 415, "Content-Type: application/json")


# 422


@pytest.mark.parametrize(
    "content", ["null", "[]", '"Hi"', "1", "-0.5", "1e400", "true", "[{}]", pytest.param("1" * 5000, id="5,000 digits")]
)
async def test_a_body_that_is_no_object_is_a_422(relay: Relay, content: str) -> None:
    async for response in everywhere(relay, content.encode(), JSON):
        [error] = assert_problem(response, 422)["errors"]
        assert error["field"] == "" and "object" in error["message"]


LONE = "a \ud800 b"
NO_STRING = [0, 1.5, 10**30, True, [], {}, ["text"]]
BLANK = ["", " ", "\n\t", "\u2028\u00a0", "\x1d", "\x85", "\ufeff"]
WRONG = {
    "title": [*NO_STRING, *BLANK, "x" * 201, LONE],
    "system_prompt": [*NO_STRING, *BLANK, "x" * 51, LONE],
    "default_model": [*NO_STRING, *BLANK, "x" * 201, LONE, "modèle", "a\nb", "a\x7fb", "\ud83d\ude00"],
    "content": [*NO_STRING, *BLANK, None, "x" * 51, LONE],
    "model": [*NO_STRING, *BLANK, "x" * 201, LONE, "modèle", "a\nb", "a\x00b", "\ud83d\ude00"],
}


async def test_a_field_that_breaks_its_rule_is_a_422_that_names_it(upstream: ScriptedUpstream) -> None:
    async with checked(upstream, max_message_chars=50) as relay:
        conversation_id = (await relay.conversation(title="Old"))["id"]
        cases = [(*TAKE_A_BODY[at], name) for at in (0, 1) for name in ("title", "system_prompt", "default_model")]
        for method, path, name in [*cases, (*TAKE_A_BODY[2], "content"), (*TAKE_A_BODY[2], "model")]:
            for value in WRONG[name]:
                body = json.dumps(({"content": "Hi"} if path.endswith("/messages") else {}) | {name: value})
                response = await relay.client.request(
                    method, path.format(id=conversation_id), content=body, headers=JSON
                )
                [error] = assert_problem(response, 422, name)["errors"]
                assert error["field"] == name, body
        assert (await relay.shown(conversation_id))["title"] == "Old"
        assert (await relay.health()).items() >= {"conversations": 1, "messages": 0, "replies_in_progress": 0}.items()


async def test_text_as_long_as_allowed_passes(upstream: ScriptedUpstream) -> None:
    async with checked(upstream, max_message_chars=50) as relay:
        made = await relay.conversation(title="👋" * 200, system_prompt="👋" * 50, default_model="m" * 200)
        await relay.say(made["id"], "👋" * 50, model="m" * 200)


async def test_text_that_is_too_long_is_told_the_setting(upstream: ScriptedUpstream) -> None:
    async with checked(upstream, max_message_chars=50) as relay:
        conversation_id = (await relay.conversation())["id"]
        assert_problem(await say(relay, conversation_id, "x" * 51), 422, "50", "MAX_MESSAGE_CHARS")
        response = await relay.client.post("/conversations", json={"system_prompt": "x" * 51})
        assert_problem(response, 422, "50", "MAX_MESSAGE_CHARS")


async def test_a_patch_cannot_take_the_model_away(relay: Relay) -> None:
    conversation_id = (await relay.conversation())["id"]
    response = await relay.client.patch(f"/conversations/{conversation_id}", json={"default_model": None})
    assert [error["field"] for error in assert_problem(response, 422)["errors"]] == ["default_model"]


async def test_a_message_without_content_is_a_422(relay: Relay) -> None:
    conversation_id = (await relay.conversation())["id"]
    response = await relay.client.post(f"/conversations/{conversation_id}/messages", json={"model": "test/one"})
    assert assert_problem(response, 422)["errors"] == [{"field": "content", "message": "is required"}]


async def test_all_that_is_wrong_with_a_body_is_told_at_once(relay: Relay) -> None:
    wrong = {"title": "", "system_prompt": 1, "default_model": [], "colour": "red", "Title": "A title"}
    response = await relay.client.post("/conversations", json=wrong)
    problem = assert_problem(response, 422, *wrong)
    assert sorted(error["field"] for error in problem["errors"]) == sorted(wrong)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("colour", "colour"),
        ("", ""),
        (" title", " title"),
        ("é\u2028👋", "é\u2028👋"),
        ("\x00\x1b[31m", "\x00\x1b[31m"),
        ("half \ud800 pair", "half \\ud800 pair"),
        ("x" * 5000, "x" * 80),
    ],
)
async def test_an_unknown_field_is_a_422_whatever_its_name(relay: Relay, name: str, shown: str) -> None:
    async for response in everywhere(relay, json.dumps({name: 1, "content": "Hi"}).encode(), JSON):
        errors = {error["field"]: error["message"] for error in assert_problem(response, 422)["errors"]}
        assert "not a field" in errors[shown]


async def test_a_thousand_unknown_fields_make_no_long_answer(relay: Relay) -> None:
    async for response in everywhere(relay, json.dumps({f"x{n}": n for n in range(1000)}).encode(), JSON):
        assert_problem(response, 422)
        assert len(response.content) < 10_000


async def test_a_model_in_the_query_of_a_stream_that_is_none_is_a_422(upstream: ScriptedUpstream, relay: Relay) -> None:
    conversation_id = await relay.ask()
    for model in (" ", "x" * 201, "modèle", "a\nb", "\x00"):
        response = await relay.client.get(f"/conversations/{conversation_id}/stream", params={"model": model})
        assert [error["field"] for error in assert_problem(response, 422, "model")["errors"]] == ["model"]
    assert not upstream.requests


# 502, 503, 504: the models list without a cache


async def test_a_models_list_that_upstream_refuses_is_a_502(upstream: ScriptedUpstream, relay: Relay) -> None:
    for refusal in (status(401), status(429), status(500), status(200, "<html>"), status(200, {"data": None})):
        upstream.models = refusal
        assert_problem(await relay.client.get("/models"), 502)


async def test_a_models_list_that_cannot_be_reached_is_a_503() -> None:
    async with serving(f"http://127.0.0.1:{free_port()}/api/v1") as relay:
        assert_problem(await relay.client.get("/models"), 503, "OPENROUTER_BASE_URL")


async def test_a_models_list_that_does_not_come_is_a_504(upstream: ScriptedUpstream) -> None:
    upstream.models = silence
    async with checked(upstream, timers=Timers(connect=0.1, read=0.1)) as relay:
        assert_problem(await relay.client.get("/models"), 504)


# 503: too many replies


@on_each_engine
async def test_a_reply_too_many_is_a_503_that_says_when_to_come_back(upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.play(gated(gate, "Hello"))
    async with checked(upstream, max_replies=2) as relay:
        first, second, third = [await relay.ask() for _ in range(3)]
        async with relay.stream(first) as reader, relay.stream(second) as other:
            response = await asked(relay, third)
            assert_problem(response, 503, "MAX_REPLIES", "2")
            assert int(response.headers["retry-after"]) > 0
            assert len(upstream.requests) <= 2
            gate.open_wide()
            await reader.whole()
            await other.whole()
        assert (await relay.read(third)).content == "Hello"


async def ask_at_once(relay: Relay, conversation_id: str) -> httpx.Response:
    """The beginning of the response to a question that wants its reply's stream; the reader leaves at once."""
    path = f"/conversations/{conversation_id}/messages"
    headers = {"Accept": "text/event-stream"}
    async with relay.client.stream("POST", path, json={"content": "Hi"}, headers=headers) as response:
        if response.status_code != 200:
            await response.aread()
        return response


@on_each_engine
async def test_a_question_that_wants_its_reply_at_once_is_not_kept_where_there_is_no_room_for_one(
    upstream: ScriptedUpstream,
) -> None:
    upstream.play(gated(gate := Gate(), "Hello"))
    async with checked(upstream, max_replies=1) as relay:
        ids = [(await relay.conversation())["id"] for _ in range(5)]
        responses = await asyncio.gather(*(ask_at_once(relay, id) for id in ids))
        assert sorted(response.status_code for response in responses) == [200, 503, 503, 503, 503]
        for id, response in zip(ids, responses, strict=True):
            kept = [message["role"] for message in await relay.messages(id)]
            assert kept == (["user", "assistant"] if response.status_code == 200 else [])
        gate.open_wide()
        await relay.idle()
    async with checked(upstream, max_messages=1) as relay:
        conversation_id = (await relay.conversation())["id"]
        assert_problem(await ask_at_once(relay, conversation_id), 507, "MAX_MESSAGES")
        assert await relay.messages(conversation_id) == []


async def test_joining_and_resuming_are_not_counted_as_replies(upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.play(gated(gate, "one ", "two"))
    async with checked(upstream, max_replies=1) as relay:
        conversation_id = await relay.ask()
        async with relay.stream(conversation_id) as first, relay.stream(conversation_id) as joined:
            id = (await first.next()).id
            async with relay.stream(conversation_id, id) as resumed:
                gate.open_wide()
                contents = [(await reader.whole()).content for reader in (first, joined, resumed)]
    assert contents == ["one two"] * 3


async def test_too_many_replies_hide_no_other_answer(upstream: ScriptedUpstream) -> None:
    """The table of the stream: 404 and 409 do not depend on what other conversations do."""
    gate = Gate()
    async with checked(upstream, max_replies=1) as relay:
        answered, empty, busy = await relay.ask(), (await relay.conversation())["id"], await relay.ask()
        last_id = (await relay.read(answered)).last_id
        upstream.play(gated(gate, "Hello"))
        async with relay.stream(busy) as reader:
            await reader.next()
            assert_problem(await asked(relay, NOWHERE), 404)
            assert_problem(await asked(relay, empty), 409, "empty")
            assert_problem(await asked(relay, answered), 409, "answered")
            assert (await asked(relay, answered, **{"Last-Event-ID": last_id})).status_code == 204
            assert (await say(relay, answered, "Another")).status_code == 201
            gate.open_wide()
            await reader.whole()


# 507


async def test_a_conversation_too_many_is_a_507_until_one_is_deleted(upstream: ScriptedUpstream) -> None:
    async with checked(upstream, max_conversations=2) as relay:
        first, _ = await relay.conversation(), await relay.conversation()
        assert_problem(await relay.client.post("/conversations"), 507, "MAX_CONVERSATIONS", "2")
        assert (await relay.client.patch(f"/conversations/{first['id']}", json={"title": "New"})).status_code == 200
        await relay.client.delete(f"/conversations/{first['id']}")
        await relay.conversation()


@on_each_engine
async def test_a_message_too_many_is_a_507_until_one_is_deleted(upstream: ScriptedUpstream) -> None:
    async with checked(upstream, max_messages=3) as relay:
        conversation_id = await relay.ask("one")
        last_id = (await relay.read(conversation_id)).ids[1]
        question = await relay.say(conversation_id, "two")
        assert_problem(await say(relay, conversation_id, "three"), 507, "MAX_MESSAGES", "3")
        assert_problem(await asked(relay, conversation_id), 507, "MAX_MESSAGES", "3")
        assert len(upstream.requests) == 1
        assert (await relay.read(conversation_id, last_id)).last["done"] is True
        await relay.client.delete(f"/conversations/{conversation_id}/messages/{question['id']}")
        assert (await say(relay, conversation_id, "three")).status_code == 201
        assert len(await relay.messages(conversation_id)) == 3


async def test_a_failed_reply_is_replaced_where_there_is_no_room_for_another_message(
    upstream: ScriptedUpstream,
) -> None:
    upstream.queue(status(400))
    async with checked(upstream, max_messages=2) as relay:
        conversation_id = await relay.ask()
        assert "error" in (await relay.read(conversation_id)).last
        assert (await relay.read(conversation_id)).last["done"] is True


@on_each_engine
async def test_text_that_the_store_has_no_room_for_is_a_507_until_something_is_deleted(
    upstream: ScriptedUpstream,
) -> None:
    async with checked(upstream, max_store_bytes=100) as relay:
        kept = await relay.conversation(title="é" * 20)  # 40 bytes
        spare = await relay.conversation(system_prompt="p" * 30)
        refused = [
            await relay.client.post("/conversations", json={"title": "t" * 31}),
            await relay.client.patch(f"/conversations/{kept['id']}", json={"title": "t" * 71}),
            await relay.client.patch(f"/conversations/{spare['id']}", json={"system_prompt": "p" * 61}),
            await say(relay, kept["id"], "👋" * 8),
        ]
        for response in refused:
            assert_problem(response, 507, "MAX_STORE_BYTES", "100")
        assert await relay.messages(kept["id"]) == []
        assert (await relay.client.get(f"/conversations/{kept['id']}")).json() == kept
        await relay.client.delete(f"/conversations/{spare['id']}")
        assert (await say(relay, kept["id"], "👋" * 15)).status_code == 201
        assert_problem(await asked(relay, kept["id"]), 507, "MAX_STORE_BYTES")
        assert not upstream.requests
        assert (await relay.client.patch(f"/conversations/{kept['id']}", json={"title": "t"})).status_code == 200


@on_each_engine
async def test_what_is_deleted_is_given_back_to_the_byte(upstream: ScriptedUpstream) -> None:
    upstream.play(answer("y" * 30, reasoning="r" * 10))
    async with checked(upstream, max_store_bytes=100) as relay:
        for _ in range(5):
            made = await relay.conversation(title="t" * 20, system_prompt="s" * 20)
            await relay.client.patch(f"/conversations/{made['id']}", json={"title": None})
            question = await relay.say(made["id"], "x" * 30)
            assert (await relay.read(made["id"])).content == "y" * 30
            await relay.client.delete(f"/conversations/{made['id']}/messages/{question['id']}")
            await relay.say(made["id"], "x" * 80)
            assert_problem(await say(relay, made["id"], "x"), 507)
            await relay.client.delete(f"/conversations/{made['id']}")


@on_each_engine
async def test_a_reply_that_fills_the_store_fails_with_507_and_keeps_its_text(upstream: ScriptedUpstream) -> None:
    upstream.play(gated(gate := Gate(), "x" * 50, "y" * 49))
    gate.open()
    async with checked(upstream, max_store_bytes=100) as relay:
        conversation_id = await relay.ask("Hi")
        async with relay.stream(conversation_id) as reader:
            await reader.until("x" * 50)
            gate.open_wide()
            transcript = await reader.whole()
        error = transcript.last["error"]
        kept = "x" * 50 + "y" * 48  # as much as there was room for
        assert (transcript.content, error["code"], error["retryable"]) == (kept, 507, True)
        assert "MAX_STORE_BYTES" in error["message"]
        _, reply = await relay.messages(conversation_id)
        assert (reply["content"], reply["status"], reply["error"]) == (kept, "failed", error)
        assert (await relay.read(conversation_id, transcript.ids[0])).content == kept


@on_each_engine
async def test_a_failed_reply_that_filled_the_store_is_replaced_all_the_same(upstream: ScriptedUpstream) -> None:
    """A stream on a failed reply replaces it: the room that it takes is free for the next one."""
    upstream.queue(gated(gate := Gate(), "x" * 98, "y"))
    gate.open_wide()
    async with checked(upstream, max_store_bytes=100) as relay:
        conversation_id = await relay.ask("Hi")
        assert (await relay.read(conversation_id)).last["error"]["code"] == 507
        assert (await relay.read(conversation_id)).last["done"] is True


# 500


async def crash(*_: object, **__: object) -> None:
    raise RuntimeError("what nobody may read")


async def test_a_crash_is_a_500_that_says_nothing_of_the_code(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    for crashing in ("conversation", "update_conversation", "add_user_message", "in_progress"):
        monkeypatch.setattr(Store, crashing, crash)
    path = f"/conversations/{(await relay.conversation())['id']}"
    requests = [
        ("GET", path, None),
        ("PATCH", path, {"title": "New"}),
        ("POST", f"{path}/messages", {"content": "Hi"}),
        ("DELETE", f"{path}/stream", None),
    ]
    for method, target, body in requests:
        headers = {"Origin": VITE, "X-Request-ID": "a-request"}
        response = await relay.client.request(method, target, json=body, headers=headers)
        assert_problem(response, 500)
        for word in ("nobody", "RuntimeError", "Traceback", "store", ".py"):
            assert word not in response.text
        assert response.headers["access-control-allow-origin"] == VITE
        assert response.headers["x-request-id"] == "a-request"
    assert (await relay.health())["status"] == "ok"


CRASHING = """
import server, store
async def crash(*_):
    raise RuntimeError("what nobody may read")
store.Store.conversation = crash
server.main()
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_a_crash_is_logged_with_its_place_but_not_with_its_text(log_format: str) -> None:
    env = {"LOG_FORMAT": log_format, "LOG_LEVEL": "DEBUG"}
    async with process("python", "-c", CRASHING, env=env) as relay:
        headers = {"X-Request-ID": "a-request"}
        assert_problem(await relay.client.get(f"/conversations/{NOWHERE}", headers=headers), 500)
        relay.terminate()
        assert await relay.exit() == 0
        assert "RuntimeError" in relay.output and "in crash" in relay.output and "a-request" in relay.output
        assert "nobody" not in relay.output
