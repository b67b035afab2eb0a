"""The adapter against a scripted upstream over real sockets.

Completions, tries, timers, cancelling, and the models list.
"""

import asyncio
import gzip
import json
import logging
import random
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import groupby
from typing import Any

import httpx
import pytest

from openrouter import (
    Delta,
    Models,
    OpenRouter,
    Prompt,
    Retry,
    Timers,
    UpstreamError,
    _as_upstream_error,
)
from result import Failure, Finish, Report
from settings import Settings
from tests.support.upstream import (
    ANSWER,
    MODELS,
    USAGE,
    Gate,
    Script,
    ScriptedUpstream,
    UpstreamRequest,
    Wire,
    answer,
    gated,
    status,
)
from tests.support.waiting import bounded, eventually
from upstream.errors import (
    NotConfigured,
    UpstreamBroken,
    UpstreamRefused,
    UpstreamSilent,
    UpstreamTimeout,
    UpstreamUnreachable,
    UpstreamUnreadable,
)
from upstream.http.transport import Transport

Value = Report | Retry | Delta | Finish

KEY = "sk-or-v1-0123456789abcdef"
TITLE = "Plaudertasche é ☕"
HELLO = Prompt("test/one", [("user", "Hi")])
SECURE = "https://127.0.0.1:{port}/api/v1"


@asynccontextmanager
async def adapter(base_url: str, *, key: str = KEY, max_tokens: int = 0, **timers: Any) -> AsyncIterator[OpenRouter]:
    """An adapter that doesn't try again unless told, closed at the end."""
    chosen = Timers(**{"retries": (), **timers})
    settings = Settings(
        openrouter_base_url=base_url,
        openrouter_api_key=key,
        app_url="http://app.test",
        app_title=TITLE,
        max_tokens=max_tokens,
    )
    openrouter = OpenRouter(settings, Transport.for_base_url(base_url), chosen)
    try:
        yield openrouter
    finally:
        await bounded(openrouter.aclose())


class Outcome:
    """What came of a completion, as far as it has come."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.error: UpstreamError | None = None

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Neighbouring deltas of one kind as one: how they are merged is the network's affair."""
        deltas = [value for value in self.values if isinstance(value, Delta)]
        return [(kind, "".join(delta.text for delta in run)) for kind, run in groupby(deltas, lambda delta: delta.kind)]

    @property
    def end(self) -> Finish:
        """The finish: the last value and the only one of its kind."""
        assert self.error is None and [type(value) for value in self.values].count(Finish) == 1
        last = self.values[-1]
        assert isinstance(last, Finish)
        return last

    @property
    def report(self) -> Report:
        """The last one."""
        return self.reports[-1] if self.reports else Report()

    @property
    def usage(self) -> Any:
        return json.loads(self.report.usage or "null")

    @property
    def reports(self) -> list[Report]:
        return [value for value in self.values if isinstance(value, Report)]

    def failed(self, kind: type[UpstreamError], code: int) -> Failure:
        """What the error says, which must be of this kind."""
        assert isinstance(self.error, kind), f"{self.error!r}, {self.values}"
        assert self.error.failure.code == code
        return self.error.failure


async def read(openrouter: OpenRouter, outcome: Outcome | None = None, *turns: tuple[str, str]) -> Outcome:
    """A completion, read to its end."""
    outcome = outcome or Outcome()
    try:
        async with aclosing(openrouter.stream(Prompt("test/one", turns or [("user", "Hi")]))) as values:
            async for value in values:
                outcome.values.append(value)
    except UpstreamError as error:
        outcome.error = error
    return outcome


def slots(openrouter: OpenRouter) -> tuple[int, int]:
    """How many connections are in use, and how many wait for another request."""
    transport = openrouter._transport
    assert isinstance(transport, Transport)
    open_ones = [connection for connection in transport._open if not connection.is_closed]
    idle = sum(map(len, transport._idle.values()))
    return len(open_ones) - idle, idle


async def settled(openrouter: OpenRouter) -> None:
    """Return once no connection is in use."""
    await eventually(lambda: slots(openrouter)[0] == 0)


async def assert_nothing_left_open(openrouter: OpenRouter, upstream: ScriptedUpstream) -> None:
    """Assert that connections which can't be used again are closed."""
    await settled(openrouter)
    await eventually(lambda: upstream.connections <= slots(openrouter)[1])


async def assert_nothing_left(openrouter: OpenRouter, upstream: ScriptedUpstream) -> None:
    """Assert that no slot of the pool and no connection outlives what was given up, and that all goes on."""
    await settled(openrouter)
    assert slots(openrouter) == (0, 0)
    await eventually(lambda: upstream.connections == 0)
    upstream.play(answer())
    assert (await read(openrouter)).texts == [("content", ANSWER)]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def full_port() -> Iterator[int]:
    """A port where connecting takes for ever: its queue is full and nobody accepts."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening, ExitStack() as waiting:
        for _ in range(4):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


# Scripts


async def hanging(_: UpstreamRequest, wire: Wire) -> None:
    await wire.hang()


async def hanging_after_the_head(_: UpstreamRequest, wire: Wire) -> None:
    await wire.head()
    await wire.hang()


async def hanging_in_an_error(_: UpstreamRequest, wire: Wire) -> None:
    await wire.head(400, {"Content-Type": "application/json"})
    await wire.send(b'{"error": ')
    await wire.hang()


async def resetting(_: UpstreamRequest, wire: Wire) -> None:
    wire.reset()


async def closing(_: UpstreamRequest, wire: Wire) -> None:
    wire.close()


def saying(*events: dict[str, Any] | str, then: str = "end", before: str = "") -> Script:
    """A stream of a delta (`before`, if any) and these events, and then the call of `then`."""

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await wire.head()
        if before:
            await wire.delta(before)
        for event in events:
            await wire.event(event)
        ending = getattr(wire, then)()
        if ending is not None:
            await ending

    return script


def every(seconds: float, send: Callable[[Wire], Any], *, first: str = "", finish: bool = False) -> Script:
    """A stream in which something comes at this pace, for as long as the client stays."""

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await wire.head()
        if first:
            await wire.delta(first)
        if finish:
            await wire.finish()
        while not wire.gone.is_set():
            await send(wire)
            await asyncio.sleep(seconds)

    return script


def response(octets: bytes) -> Script:
    """These bytes, the status line included, and then the end of the connection."""

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await wire.raw(octets)

    return script


STOP = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


def says(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}]}


# The request


async def test_a_completion_is_asked_for_with_standard_fields_alone(upstream: ScriptedUpstream) -> None:
    turns = [("system", "Be brief."), ("user", "Why? é 😀 \u2028"), ("assistant", "Because."), ("user", "And?")]
    async with adapter(upstream.base_url) as openrouter:
        await read(openrouter, None, *turns)
    request = await upstream.called()
    assert (request.method, request.path) == ("POST", "/api/v1/chat/completions")
    assert request.body == {
        "model": "test/one",
        "messages": [{"role": role, "content": content} for role, content in turns],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_request_names_the_key_and_the_app(upstream: ScriptedUpstream) -> None:
    async with adapter(upstream.base_url) as openrouter:
        await read(openrouter)
    headers = (await upstream.called()).headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["http-referer"] == "http://app.test"
    for name in ("x-title", "x-openrouter-title"):
        assert headers[name].encode("latin-1").decode() == TITLE
    assert (headers["content-type"], headers["accept"]) == ("application/json", "text/event-stream")
    assert headers["accept-encoding"] == "identity"
    assert not {"traceparent", "x-session-id"} & headers.keys()


async def sent(upstream: ScriptedUpstream, options: dict[str, Any], max_tokens: int = 0) -> dict[str, Any]:
    """What of a request's body is neither the messages nor the relay's own."""
    async with adapter(upstream.base_url, max_tokens=max_tokens) as openrouter:
        assert [value async for value in openrouter.stream(replace(HELLO, options=options))]
    body = upstream.requests[-1].body
    assert (body.pop("model"), body.pop("messages")) == ("test/one", [{"role": "user", "content": "Hi"}])
    assert (body.pop("stream"), body.pop("stream_options")) == (True, {"include_usage": True})
    rest: dict[str, Any] = body
    return rest


async def test_options_are_sent_beside_the_standard_fields(upstream: ScriptedUpstream) -> None:
    options = {"temperature": 0.1, "stop": ["é 😀 \u2028"], "reasoning": {"effort": "low"}, "seed": 0, "user": ""}
    assert await sent(upstream, options) == options


async def test_no_option_takes_the_place_of_a_standard_field(upstream: ScriptedUpstream) -> None:
    assert await sent(upstream, {"model": "other", "stream": False, "stream_options": {}, "messages": []}) == {}


@pytest.mark.parametrize(
    ("options", "most", "capped"),
    [
        ({}, 0, {}),
        ({}, 100, {"max_tokens": 100}),
        ({"max_tokens": 5000}, 0, {"max_tokens": 5000}),
        ({"max_tokens": 99}, 100, {"max_tokens": 99}),
        ({"max_completion_tokens": 100}, 100, {"max_completion_tokens": 100}),
        ({"max_completion_tokens": 101}, 100, {"max_completion_tokens": 100}),
        ({"max_tokens": 7, "max_completion_tokens": 5000}, 100, {"max_tokens": 7, "max_completion_tokens": 100}),
        ({"max_tokens": "many"}, 100, {"max_tokens": 100}),
        ({"max_tokens": 0}, 100, {"max_tokens": 100}),
    ],
    ids=str,
)
async def test_max_tokens_bounds_an_answer_whatever_is_stored(
    options: dict[str, Any], most: int, capped: dict[str, Any], upstream: ScriptedUpstream
) -> None:
    """Without any, OpenRouter's credit check assumes the model's maximum, and refuses small accounts."""
    assert await sent(upstream, options | {"seed": 1}, most) == capped | {"seed": 1}


async def test_a_session_is_named(upstream: ScriptedUpstream) -> None:
    async with adapter(upstream.base_url) as openrouter:
        assert [value async for value in openrouter.stream(replace(HELLO, session_id="c-1"))]
    assert (await upstream.called()).headers["x-session-id"] == "c-1"


async def test_a_traceparent_is_passed_on(upstream: ScriptedUpstream) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with adapter(upstream.base_url + "/") as openrouter:
        assert [value async for value in openrouter.stream(replace(HELLO, traceparent=trace))]
    request = await upstream.called()
    assert (request.path, request.headers["traceparent"]) == ("/api/v1/chat/completions", trace)


async def test_without_a_key_nothing_is_asked(upstream: ScriptedUpstream) -> None:
    async with adapter(upstream.base_url, key="") as openrouter:
        failure = (await read(openrouter)).failed(NotConfigured, 401)
        assert not failure.retryable and "OPENROUTER_API_KEY" in failure.message
        assert upstream.accepted == 0
        await openrouter.models()
    assert "authorization" not in upstream.models_requests[0].headers


async def test_neighbours_of_one_role_are_sent_as_one_turn(upstream: ScriptedUpstream) -> None:
    """Strict templates (Devstral's, Gemma's) refuse two in a row."""
    turns = [("user", "One"), ("user", "Two"), ("assistant", "a"), ("assistant", "b"), ("user", "Three")]
    async with adapter(upstream.base_url) as openrouter:
        await read(openrouter, None, *turns)
    sent = [(turn["role"], turn["content"]) for turn in (await upstream.called()).body["messages"]]
    assert sent == [("user", "One\n\nTwo"), ("assistant", "a\n\nb"), ("user", "Three")]


# The answer


async def test_an_answer_is_who_gives_it_its_text_its_usage_and_its_finish(upstream: ScriptedUpstream) -> None:
    upstream.play(answer("Hello", reasoning="Hm", pieces=2))
    async with adapter(upstream.base_url) as openrouter:
        outcome = await read(openrouter)
    generation_id = (await upstream.called()).generation_id
    assert outcome.values[0] == Report(generation_id)
    assert outcome.reports[1:] == [
        Report(generation_id, "test/one-20260224", "DeepInfra"),
        Report(generation_id, "test/one-20260224", "DeepInfra", usage=json.dumps(USAGE)),
    ]
    assert outcome.texts == [("reasoning", "Hm"), ("content", "Hello")]
    assert outcome.end == Finish("stop")


async def test_a_delta_is_there_before_the_next_one_is_sent(upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.play(gated(gate, "one", "two"))
    async with adapter(upstream.base_url) as openrouter:
        values = openrouter.stream(HELLO)
        assert isinstance(await bounded(anext(values)), Report)
        for number, piece in enumerate(["one", "two"], 1):
            await gate.reached(number)
            gate.open()
            if number == 1:
                assert isinstance(await bounded(anext(values)), Report)
            assert await bounded(anext(values)) == Delta("content", piece)
        gate.open_wide()
        assert [value async for value in values][-1] == Finish("stop")


async def test_deltas_that_arrive_together_are_merged_and_never_reordered(upstream: ScriptedUpstream) -> None:
    def event(delta: dict[str, str]) -> bytes:
        return b"data: %b\n\n" % json.dumps({"choices": [{"delta": delta}]}).encode()

    deltas = [{"content": "a"}, {"content": "b"}, {"reasoning": "c"}, {"reasoning": "d", "content": "e"}]

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await wire.send(b"".join(map(event, deltas)) + b"data: [DONE]\n\n")
        await wire.end()

    upstream.play(script)
    async with adapter(upstream.base_url) as openrouter:
        values = (await read(openrouter)).values
    assert values[1:] == [Delta("content", "ab"), Delta("reasoning", "cd"), Delta("content", "e"), Finish(None)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
async def test_an_answer_may_come_byte_by_byte_in_any_framing(upstream: ScriptedUpstream, end: str) -> None:
    events = [json.dumps(says("😀 é"), ensure_ascii=False), json.dumps(STOP), "[DONE]"]
    stream = "\ufeff" + "".join(f": ping{end}{end}data:{event}{end}{end}" for event in events)

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        for octet in stream.encode():
            await wire.send(bytes([octet]))
        await wire.end()

    upstream.play(script)
    async with adapter(upstream.base_url) as openrouter:
        outcome = await read(openrouter)
    assert (outcome.texts, outcome.end) == ([("content", "😀 é")], Finish("stop"))


@pytest.mark.parametrize("end", [STOP, "[DONE]"], ids=["finish reason", "DONE"])
async def test_half_a_character_at_the_end_is_replaced(upstream: ScriptedUpstream, end: dict[str, Any] | str) -> None:
    upstream.play(saying(says("a\ud83d"), end, then="close"))
    async with adapter(upstream.base_url) as openrouter:
        assert (await read(openrouter)).texts == [("content", "a\ufffd")]


@pytest.mark.parametrize("unusable", ["", "gén"])
async def test_the_generation_id_comes_from_a_chunk_if_the_header_has_none(
    upstream: ScriptedUpstream, unusable: str
) -> None:
    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await wire.head(headers={"X-Generation-Id": unusable})
        await wire.comment()
        await wire.delta("Hi")
        await wire.done()

    upstream.play(script)
    async with adapter(upstream.base_url) as openrouter:
        assert (await read(openrouter)).report.generation_id == (await upstream.called()).generation_id


HEAD = b"HTTP/1.1 200 OK\r\n"
HI = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
WHOLE = {
    "no [DONE]": saying(says("Hi"), STOP),
    "no [DONE], and the connection closed": saying(says("Hi"), STOP, then="close"),
    "no [DONE], and the connection reset": saying(says("Hi"), STOP, then="reset"),
    "no [DONE], but what can't be read": saying(says("Hi"), STOP, "<html>", then="hang"),
    "no finish reason": saying(says("Hi"), "[DONE]"),
    "no end after [DONE]": saying(says("Hi"), "[DONE]", then="hang"),
    "a reset after [DONE]": saying(says("Hi"), "[DONE]", then="reset"),
    "no content type and no length": response(HEAD + b"\r\n" + HI + b"data: [DONE]\n\n"),
    "no last line end": response(HEAD + b"\r\n" + HI + b"data: [DONE]"),
    "a charset": response(HEAD + b"Content-Type: Text/Event-Stream;charset=UTF-8\r\n\r\n" + HI + b"data: [DONE]"),
}


@pytest.mark.parametrize("script", WHOLE.values(), ids=WHOLE)
async def test_an_answer_is_whole_if_upstream_said_so(upstream: ScriptedUpstream, script: Script) -> None:
    upstream.play(script)
    async with adapter(upstream.base_url) as openrouter:
        outcome = await bounded(read(openrouter))
        assert outcome.texts == [("content", "Hi")]
        assert outcome.end and outcome.usage is None
        await assert_nothing_left_open(openrouter, upstream)


TRUNCATED = {
    "ends": saying(before="Hi"),
    "is closed": saying(before="Hi", then="close"),
    "is reset": saying(before="Hi", then="reset"),
    "ends in an event": saying('{"choices": [{"delta": {"con', before="Hi"),
    "ends in the finish": response(HEAD + b"\r\n" + HI + b'data: {"choices":[{"finish_reason":"st'),
    "is too short for its length": response(HEAD + b"Content-Length: 999\r\n\r\n" + HI),
    "is no JSON": saying("<html>", before="Hi", then="hang"),
    "is no object": saying("[]", before="Hi", then="hang"),
}


@pytest.mark.parametrize("script", TRUNCATED.values(), ids=TRUNCATED)
async def test_a_broken_answer_keeps_its_text_and_is_not_asked_for_again(
    upstream: ScriptedUpstream, script: Script
) -> None:
    upstream.play(script)
    async with adapter(upstream.base_url, retries=(0.0, 0.0)) as openrouter:
        outcome = await bounded(read(openrouter))
        assert outcome.texts == [("content", "Hi")]
        assert outcome.failed(UpstreamBroken, 502).retryable
        assert len(upstream.requests) == 1
        await assert_nothing_left_open(openrouter, upstream)


async def test_an_answer_that_stops_being_http_keeps_its_text(upstream: ScriptedUpstream) -> None:
    gate, outcome = Gate(), Outcome()

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await wire.delta("Hi")
        await gate.passage()
        await wire.raw(b"no size of a chunk\r\n")

    upstream.play(script)
    async with adapter(upstream.base_url, read=1.0, retries=(0.0, 0.0)) as openrouter:
        reading = asyncio.create_task(read(openrouter, outcome))
        await eventually(lambda: outcome.texts)
        gate.open()
        await bounded(reading)
        assert outcome.error is not None and outcome.error.failure.code == 502
        assert (outcome.texts, len(upstream.requests)) == ([("content", "Hi")], 1)
        await assert_nothing_left_open(openrouter, upstream)


async def test_an_error_inside_the_stream_keeps_the_text_before_it(upstream: ScriptedUpstream) -> None:
    error = {"error": {"code": 429, "message": f"Slow down, {KEY}"}, "choices": []}
    upstream.play(saying(error, before="Hi", then="hang"))
    async with adapter(upstream.base_url, retries=(0.0, 0.0)) as openrouter:
        outcome = await bounded(read(openrouter))
        assert outcome.texts == [("content", "Hi")]
        assert outcome.failed(UpstreamRefused, 429).message.endswith(": Slow down, [redacted]")
        assert len(upstream.requests) == 1
        await assert_nothing_left(openrouter, upstream)


async def test_an_event_without_end_is_refused(upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upstream.events.MAX_EVENT_BYTES", 1000)

    async def endless(wire: Wire) -> None:
        await wire.send(b"data: " + b"x" * 100)

    upstream.play(every(0, endless))
    async with adapter(upstream.base_url) as openrouter:
        (await bounded(read(openrouter))).failed(UpstreamBroken, 502)
        await assert_nothing_left(openrouter, upstream)


# Refusals before the stream


async def test_a_refusal_says_what_upstream_said_and_nothing_private(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="openrouter")
    metadata = {"raw": "Acme says no to 4711", "provider_name": "Acme"}
    body = {"error": {"code": 403, "message": f"No, {KEY}: Acme says no to 4711", "metadata": metadata}}
    upstream.play(status(403, body | {"user_id": "user_2abcDEF"}))
    async with adapter(upstream.base_url, retries=(0.0,)) as openrouter:
        failure = (await read(openrouter)).failed(UpstreamRefused, 403)
    assert failure.message.endswith(": No, [redacted]: [redacted]") and not failure.retryable
    assert KEY not in caplog.text and "4711" not in caplog.text and "user_2abcDEF" not in caplog.text


HTML = {"Content-Type": "text/html"}
GZIPPED = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
NO_STREAM: dict[str, tuple[Script, type[UpstreamError], int, str]] = {
    "JSON with an error": (status(200, {"error": {"code": 402, "message": "Pay"}}), UpstreamRefused, 402, ": Pay"),
    "an edge's page": (status(502, "<html>", HTML), UpstreamRefused, 502, "status 502"),
    "gzipped JSON": (
        status(400, gzip.compress(b'{"error": {"message": "Because"}}'), GZIPPED),
        UpstreamRefused,
        400,
        ": Because",
    ),
    "what isn't gzip": (status(400, b"no gzip", GZIPPED), UpstreamRefused, 400, "can't take this request"),
    "a huge error": (status(400, {"error": {"message": "x" * 100_000}}), UpstreamRefused, 400, "can't take"),
    "a page": (status(200, "<html>", HTML), UpstreamBroken, 502, "OPENROUTER_BASE_URL"),
    "JSON without an error": (status(200, {"choices": []}), UpstreamBroken, 502, "OPENROUTER_BASE_URL"),
    "a redirect": (status(302, "", {"Location": "https://elsewhere.test"}), UpstreamBroken, 502, "status 302"),
    "no content": (response(b"HTTP/1.1 204 No Content\r\n\r\n"), UpstreamBroken, 502, "status 204"),
    "an error that is cut off": (
        response(b'HTTP/1.1 404 Not Found\r\nContent-Length: 99\r\n\r\n{"error": '),
        UpstreamRefused,
        404,
        "OPENROUTER_BASE_URL",
    ),
}


@pytest.mark.parametrize(("script", "kind", "code", "words"), NO_STREAM.values(), ids=NO_STREAM)
async def test_an_answer_that_is_no_stream_is_an_error_that_says_what_to_do(
    upstream: ScriptedUpstream, script: Script, kind: type[UpstreamError], code: int, words: str
) -> None:
    upstream.play(script)
    async with adapter(upstream.base_url) as openrouter:
        assert words in (await read(openrouter)).failed(kind, code).message
        await assert_nothing_left_open(openrouter, upstream)


async def test_an_error_that_comes_slowly_is_not_waited_for(upstream: ScriptedUpstream) -> None:
    upstream.play(hanging_in_an_error)
    async with adapter(upstream.base_url, tail=0.05) as openrouter:
        assert "can't take this request" in (await bounded(read(openrouter))).failed(UpstreamRefused, 400).message
        await assert_nothing_left(openrouter, upstream)


# Tries

IN_FLIGHT = {"error": {"code": 402, "message": "m", "metadata": {"limit_source": "openrouter_in_flight_budget"}}}
PASSING: dict[str, Script] = {
    **{str(code): status(code) for code in (408, 429, 500, 502, 503, 524, 529)},
    "a budget in flight": status(402, IN_FLIGHT),
    "a reset": resetting,
    "a close": closing,
    "a reset after the head": saying(then="reset"),
    "an end without a delta": saying(),
    "an edge's page": status(502, "<html>", HTML),
    "an error inside": saying({"error": {"code": 503, "message": "m"}, "choices": []}),
    "an error inside without a code": saying({"error": {"message": "m"}}),
    "a finish reason of error": saying({"choices": [{"finish_reason": "error"}]}),
    "an error inside after empty deltas": saying(says(""), {"error": {"code": "server_error", "message": "m"}}),
}
UNREADABLE: dict[str, Script] = {
    "a login page": status(200, "<html>", HTML),
    "no text at all": status(200, {"object": "list", "data": []}),
    "an encoding nobody asked for": status(200, b"\x0b\x02\x80Hi\x03", {"Content-Encoding": "br"}),
    "an encoding that isn't the one it names": status(200, b"no gzip", {"Content-Encoding": "gzip"}),
    "half an event": saying('{"choices": [{"delta": {"con', then="end"),
    "plain text": status(200, "upstream connect error", {"Content-Type": "text/plain"}),
    "no JSON": saying("{"),
    "no object": saying("[1]"),
}
LASTING: dict[str, Script] = {
    **{str(code): status(code) for code in (400, 401, 402, 403, 404, 413, 418, 422)},
    "an error inside": saying({"error": {"code": 400, "message": "m"}, "choices": []}),
    "a word inside": saying({"error": {"code": "context_length_exceeded", "message": "m"}}),
}


@pytest.mark.parametrize("script", PASSING.values(), ids=PASSING)
async def test_a_passing_failure_before_the_first_delta_is_tried_again_twice(
    upstream: ScriptedUpstream, script: Script
) -> None:
    async with adapter(upstream.base_url, retries=(0.01, 0.02)) as openrouter:
        upstream.queue(script, script)
        outcome = await bounded(read(openrouter))
        assert (outcome.texts, outcome.end, len(upstream.requests)) == (
            [("content", ANSWER)],
            Finish("stop"),
            3,
        )
        assert outcome.report.generation_id == upstream.requests[-1].generation_id
        assert [request.body for request in upstream.requests] == [upstream.requests[0].body] * 3
        upstream.queue(script, script, script)
        outcome = await bounded(read(openrouter))
        assert outcome.error is not None and outcome.error.failure.retryable and outcome.texts == []
        assert len(upstream.requests) == 6
        await assert_nothing_left_open(openrouter, upstream)


@pytest.mark.parametrize("script", LASTING.values(), ids=LASTING)
async def test_an_error_of_the_request_itself_is_not_tried_again(upstream: ScriptedUpstream, script: Script) -> None:
    upstream.queue(script)
    async with adapter(upstream.base_url, retries=(0.01, 0.02)) as openrouter:
        outcome = await read(openrouter)
    assert outcome.error is not None and not outcome.error.failure.retryable
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("script", UNREADABLE.values(), ids=UNREADABLE)
async def test_an_answer_that_cannot_be_read_is_not_asked_for_again(upstream: ScriptedUpstream, script: Script) -> None:
    """It may have been generated, and billed."""
    upstream.queue(script)
    async with adapter(upstream.base_url, retries=(0.01, 0.02)) as openrouter:
        assert (await read(openrouter)).failed(UpstreamUnreadable, 502).retryable
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("delta", [{"content": "Hi"}, {"reasoning": "Hi"}], ids=str)
async def test_nothing_is_tried_again_after_a_delta(upstream: ScriptedUpstream, delta: dict[str, str]) -> None:
    upstream.play(saying({"choices": [{"delta": delta}]}, {"error": {"code": 503, "message": "m"}}))
    async with adapter(upstream.base_url, retries=(0.01, 0.02)) as openrouter:
        outcome = await read(openrouter)
    assert outcome.failed(UpstreamRefused, 503).retryable
    assert (outcome.texts, len(upstream.requests)) == ([(*delta, "Hi")], 1)


async def test_upstream_that_cannot_be_reached_is_tried_again_and_then_named(caplog: pytest.LogCaptureFixture) -> None:
    async with adapter(f"http://127.0.0.1:{closed_port()}", retries=(0.01, 0.02)) as openrouter:
        failure = (await read(openrouter)).failed(UpstreamUnreachable, 503)
        assert "OPENROUTER_BASE_URL" in failure.message and failure.retryable
        assert slots(openrouter) == (0, 0)
    tries = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert tries == [f"try {n} failed (UpstreamUnreachable, 503), next in 0.0 s" for n in (1, 2)]


async def elapsed(openrouter: OpenRouter) -> float:
    """Seconds that a completion takes."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    await read(openrouter)
    return loop.time() - started


async def test_the_waits_between_tries_are_those_of_the_timers(upstream: ScriptedUpstream) -> None:
    async with adapter(upstream.base_url, retries=(0.1, 0.2)) as openrouter:
        upstream.queue(status(503))
        assert await elapsed(openrouter) >= 0.1
        upstream.queue(status(503), status(503))
        assert await elapsed(openrouter) >= 0.3


@pytest.mark.parametrize("code", [429, 503])
async def test_a_retry_after_is_waited_for(upstream: ScriptedUpstream, code: int) -> None:
    async with adapter(upstream.base_url, retries=(0.01,)) as openrouter:
        upstream.queue(status(code, headers={"Retry-After": "0.2"}))
        assert await elapsed(openrouter) >= 0.2
    assert len(upstream.requests) == 2


async def test_a_retry_after_does_not_shorten_the_wait(upstream: ScriptedUpstream) -> None:
    async with adapter(upstream.base_url, retries=(0.2,)) as openrouter:
        upstream.queue(status(429, headers={"Retry-After": "0"}))
        assert await elapsed(openrouter) >= 0.2


@pytest.mark.parametrize("form", ["seconds", "a date"])
async def test_a_retry_after_of_up_to_30_s_is_honoured(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=29), usegmt=True)
    upstream.play(status(429, headers={"Retry-After": "30" if form == "seconds" else date}))
    async with adapter(upstream.base_url, retries=(0.01,)) as openrouter:
        reading = asyncio.create_task(read(openrouter))
        waits = "next in 30.0 s" if form == "seconds" else "next in 2"
        await eventually(lambda: waits in caplog.text)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert reading.cancelled() and len(upstream.requests) == 1
        await settled(openrouter)


@pytest.mark.parametrize("form", ["30.1", "120", "99999999999999999999", "a date"])
async def test_a_longer_retry_after_fails_at_once_and_is_told(upstream: ScriptedUpstream, form: str) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=120), usegmt=True)
    upstream.play(status(429, headers={"Retry-After": date if form == "a date" else form}))
    async with adapter(upstream.base_url, retries=(0.0, 0.0)) as openrouter:
        failure = (await bounded(read(openrouter))).failed(UpstreamRefused, 429)
    assert failure.retry_after == (pytest.approx(120, abs=5) if form == "a date" else float(form))
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("unreadable", ["soon", "nan", "inf", "-1", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"])
async def test_a_retry_after_that_makes_no_sense_is_ignored(upstream: ScriptedUpstream, unreadable: str) -> None:
    upstream.queue(status(429, headers={"Retry-After": unreadable}))
    async with adapter(upstream.base_url, retries=(0.0,)) as openrouter:
        assert (await bounded(read(openrouter))).texts == [("content", ANSWER)]


# Timers


async def test_a_connection_that_is_not_made_in_time_is_given_up() -> None:
    with full_port() as port:
        async with adapter(f"http://127.0.0.1:{port}", connect=0.1) as openrouter:
            failure = (await bounded(read(openrouter))).failed(UpstreamTimeout, 504)
            await settled(openrouter)
            assert slots(openrouter) == (0, 0)
    assert failure.message == "Upstream took too long to accept a connection." and failure.retryable


async def test_a_handshake_that_nobody_answers_counts_as_connecting(upstream: ScriptedUpstream) -> None:
    async with adapter(SECURE.format(port=upstream.port), connect=0.1) as openrouter:
        (await bounded(read(openrouter))).failed(UpstreamTimeout, 504)
        await settled(openrouter)
        assert slots(openrouter) == (0, 0) and upstream.accepted == 1
        await eventually(lambda: upstream.connections == 0)


@pytest.mark.parametrize("script", [hanging, hanging_after_the_head, saying(before="Hi", then="hang")])
async def test_silence_ends_in_a_timeout(upstream: ScriptedUpstream, script: Script) -> None:
    upstream.play(script)
    async with adapter(upstream.base_url, read=0.1) as openrouter:
        failure = (await bounded(read(openrouter))).failed(UpstreamSilent, 504)
        assert "silent" in failure.message and failure.retryable
        await assert_nothing_left(openrouter, upstream)


@pytest.mark.parametrize("script", [hanging, hanging_after_the_head])
async def test_an_upstream_that_has_the_question_and_is_silent_is_not_asked_again(
    upstream: ScriptedUpstream, script: Script
) -> None:
    """Each try might be generated and billed; the design's list of what is tried again has no silence in it."""
    upstream.play(script)
    async with adapter(upstream.base_url, read=0.1, retries=(0.0, 0.0)) as openrouter:
        (await bounded(read(openrouter))).failed(UpstreamSilent, 504)
    assert len(upstream.requests) == 1


async def test_silence_after_a_delta_keeps_the_text_and_is_not_asked_again(upstream: ScriptedUpstream) -> None:
    upstream.play(saying(before="Hi", then="hang"))
    async with adapter(upstream.base_url, read=0.5, retries=(0.0, 0.0)) as openrouter:
        assert (await bounded(read(openrouter))).texts == [("content", "Hi")]
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "send",
    [
        lambda wire: wire.comment(),
        lambda wire: wire.delta(""),
        lambda wire: wire.send(b":\n"),
        lambda wire: wire.event({}),
    ],
    ids=["comments", "empty deltas", "bare colons", "empty chunks"],
)
async def test_what_is_no_delta_does_not_count_as_one(upstream: ScriptedUpstream, send: Callable[[Wire], Any]) -> None:
    upstream.play(every(0.02, send, first="Hi"))
    async with adapter(upstream.base_url, delta=0.5) as openrouter:
        outcome = await bounded(read(openrouter))
        assert outcome.failed(UpstreamSilent, 504).retryable
        assert outcome.texts == [("content", "Hi")]
        await assert_nothing_left(openrouter, upstream)


async def test_comments_keep_a_slow_upstream_alive(upstream: ScriptedUpstream) -> None:
    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await wire.head()
        for _number in range(25):
            await wire.comment()
            await asyncio.sleep(0.05)
        await wire.delta("Hi")
        await wire.done()

    upstream.play(script)
    async with adapter(upstream.base_url, read=1.0, delta=5.0) as openrouter:
        assert (await read(openrouter)).texts == [("content", "Hi")]


async def test_every_delta_starts_the_patience_anew(upstream: ScriptedUpstream) -> None:
    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await wire.head()
        for _number in range(25):
            await wire.delta("x")
            await asyncio.sleep(0.05)
        await wire.done()

    upstream.play(script)
    async with adapter(upstream.base_url, delta=1.0) as openrouter:
        assert (await read(openrouter)).texts == [("content", "x" * 25)]


async def test_usage_is_waited_for_after_the_finish_reason(upstream: ScriptedUpstream) -> None:
    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await wire.head()
        await wire.finish(usage=None)
        await asyncio.sleep(0.1)
        await wire.event({"choices": [], "usage": USAGE})
        await wire.done()

    upstream.play(script)
    async with adapter(upstream.base_url) as openrouter:
        outcome = await bounded(read(openrouter))
        assert (outcome.end, outcome.usage) == (Finish("stop"), USAGE)


@pytest.mark.parametrize("send", [lambda wire: wire.hang(), lambda wire: wire.comment()], ids=["silence", "comments"])
async def test_after_the_finish_reason_only_the_tail_is_waited_for(
    upstream: ScriptedUpstream, send: Callable[[Wire], Any]
) -> None:
    """Comments don't count here either."""
    upstream.play(every(0.02, send, first="Hi", finish=True))
    async with adapter(upstream.base_url, tail=0.5) as openrouter:
        outcome = await bounded(read(openrouter))
        assert (outcome.texts, outcome.end) == ([("content", "Hi")], Finish("stop"))
        await assert_nothing_left(openrouter, upstream)


# httpx's errors


def kinds(kind: type[httpx.HTTPError]) -> Iterator[type[httpx.HTTPError]]:
    yield kind
    for inner in kind.__subclasses__():
        yield from kinds(inner)


TRANSLATIONS: dict[str, tuple[type[UpstreamError], int]] = {
    "DecodingError": (UpstreamUnreadable, 502),
    "ConnectTimeout": (UpstreamTimeout, 504),
    "PoolTimeout": (UpstreamSilent, 504),
    "ReadTimeout": (UpstreamSilent, 504),
    "TimeoutException": (UpstreamSilent, 504),
    "WriteTimeout": (UpstreamSilent, 504),
    "ConnectError": (UpstreamUnreachable, 503),
    "ProxyError": (UpstreamUnreachable, 503),
    "UnsupportedProtocol": (UpstreamUnreachable, 503),
}


@pytest.mark.parametrize("kind", sorted(set(kinds(httpx.HTTPError)), key=repr))
def test_every_error_of_httpx_becomes_one_of_upstreams_without_its_text(kind: type[httpx.HTTPError]) -> None:
    error = kind.__new__(kind)
    Exception.__init__(error, "the key is sk-123")
    expected, code = TRANSLATIONS.get(kind.__name__, (UpstreamBroken, 502))
    translated = _as_upstream_error(error)
    failure = translated.failure
    assert (type(translated), failure.code, failure.retryable) == (expected, code, True)
    assert "sk-123" not in failure.message


def test_the_translations_name_errors_that_exist() -> None:
    assert TRANSLATIONS.keys() <= {kind.__name__ for kind in kinds(httpx.HTTPError)}


# Connections


async def test_a_connection_is_used_again_after_an_answer(upstream: ScriptedUpstream) -> None:
    async with adapter(upstream.base_url) as openrouter:
        for _ in range(20):
            assert (await read(openrouter)).texts == [("content", ANSWER)]
            await settled(openrouter)
        await openrouter.models()
    assert upstream.accepted == 1


async def test_200_answers_at_once_are_all_whole(upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.play(gated(gate, "one ", "two"))
    async with adapter(upstream.base_url) as openrouter:
        reading = [asyncio.create_task(read(openrouter)) for _ in range(200)]
        await gate.reached(200)
        gate.open_wide()
        outcomes = await bounded(asyncio.gather(*reading), 25)
        assert [outcome.texts for outcome in outcomes] == [[("content", "one two")]] * 200
        await settled(openrouter)


# Cancelling


async def cancelled(reading: asyncio.Task[Outcome]) -> None:
    """Cancel it once; it ends at once."""
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bounded(reading)


async def turns(number: int) -> None:
    """Let that many turns of the event loop pass."""
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "script", [hanging, saying(before="Hi", then="hang")], ids=["before the head", "in the answer"]
)
async def test_cancelling_at_any_turn_of_the_event_loop_leaves_nothing(
    upstream: ScriptedUpstream, script: Script
) -> None:
    """Before connecting, while connecting, between connecting and sending (where httpx leaks a slot), after it."""
    upstream.play(script)
    async with adapter(upstream.base_url) as openrouter:
        for number in range(60):
            reading = asyncio.create_task(read(openrouter))
            await turns(number)
            await cancelled(reading)
        assert 0 < len(upstream.requests) < 60
        await assert_nothing_left(openrouter, upstream)


@pytest.mark.parametrize("seed", range(3))
async def test_100_answers_cancelled_at_random_moments_leave_nothing(upstream: ScriptedUpstream, seed: int) -> None:
    chance = random.Random(seed)
    scripts = [hanging, hanging_after_the_head, saying(before="Hi", then="hang"), answer(pieces=20)]

    async def any_of_them(request: UpstreamRequest, wire: Wire) -> None:
        await chance.choice(scripts)(request, wire)

    async def start_and_cancel() -> None:
        reading = asyncio.create_task(read(openrouter))
        await turns(chance.randrange(150))
        reading.cancel()
        await asyncio.wait([reading])

    upstream.play(any_of_them)
    async with adapter(upstream.base_url) as openrouter:
        await bounded(asyncio.gather(*(start_and_cancel() for _ in range(100))), 25)
        await settled(openrouter)
        await eventually(lambda: upstream.connections <= slots(openrouter)[1])
        upstream.play(answer())
        assert (await read(openrouter)).texts == [("content", ANSWER)]


async def test_cancelling_before_the_first_step_connects_to_nothing(upstream: ScriptedUpstream) -> None:
    async with adapter(upstream.base_url) as openrouter:
        await cancelled(asyncio.create_task(read(openrouter)))
        await settled(openrouter)
    assert upstream.accepted == 0


async def test_cancelling_while_connecting_leaves_nothing(upstream: ScriptedUpstream) -> None:
    async with adapter(SECURE.format(port=upstream.port), connect=1.0) as openrouter:
        reading = asyncio.create_task(read(openrouter))
        await eventually(lambda: upstream.accepted == 1)
        await cancelled(reading)
        await settled(openrouter)
        assert slots(openrouter) == (0, 0)
        await eventually(lambda: upstream.connections == 0)


PHASES = {
    "before the head": hanging,
    "after the head": hanging_after_the_head,
    "in the middle": saying(before="Hi", then="hang"),
    "in an error": hanging_in_an_error,
    "in the tail": saying(STOP, before="Hi", then="hang"),
}


@pytest.mark.parametrize("script", PHASES.values(), ids=PHASES)
async def test_cancelling_closes_the_connection_at_once(upstream: ScriptedUpstream, script: Script) -> None:
    upstream.play(script)
    async with adapter(upstream.base_url) as openrouter:
        outcome = Outcome()
        reading = asyncio.create_task(read(openrouter, outcome))
        request = await upstream.called()
        await eventually(lambda: outcome.values or script in (hanging, hanging_in_an_error))
        await cancelled(reading)
        await bounded(request.gone.wait())
        await assert_nothing_left(openrouter, upstream)


async def test_cancelling_between_two_tries_makes_no_other(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.play(status(503))
    async with adapter(upstream.base_url, retries=(10.0,)) as openrouter:
        reading = asyncio.create_task(read(openrouter))
        await eventually(lambda: "next in 10.0 s" in caplog.text)
        await cancelled(reading)
        await settled(openrouter)
    assert len(upstream.requests) == 1


async def test_a_reader_that_stops_reading_closes_the_connection(upstream: ScriptedUpstream) -> None:
    upstream.play(saying(before="Hi", then="hang"))
    async with adapter(upstream.base_url) as openrouter:
        async with aclosing(openrouter.stream(HELLO)) as values:
            async for value in values:
                if isinstance(value, Delta):
                    break
        await assert_nothing_left(openrouter, upstream)


async def test_a_question_that_is_given_up_while_connecting_connects_no_longer() -> None:
    with full_port() as port:
        async with adapter(f"http://127.0.0.1:{port}", connect=20.0) as openrouter:
            before = asyncio.all_tasks()
            reading = asyncio.create_task(read(openrouter))
            await eventually(lambda: len(asyncio.all_tasks() - before) == 2)  # one of them connects
            await cancelled(reading)
            await eventually(lambda: asyncio.all_tasks() <= before)


# The models list


def shown(models: Models) -> dict[str, Any]:
    """The response's body, decoded; the gzipped one must be the same."""
    assert gzip.decompress(models.gzipped) == models.body
    body: dict[str, Any] = json.loads(models.body)
    assert set(body) == {"models", "cached", "stale", "fetched_at"}
    assert abs(datetime.fromisoformat(body["fetched_at"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert body["fetched_at"].endswith("Z")
    return body


def state(models: Models) -> tuple[bool, bool]:
    body = shown(models)
    return body["cached"], body["stale"]


async def test_the_models_are_fetched_once_for_50_that_ask_at_once(upstream: ScriptedUpstream) -> None:
    gate = Gate()

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await gate.passage()
        await wire.respond(200, {"data": MODELS, "total_count": 2})

    upstream.models = script
    async with adapter(upstream.base_url) as openrouter:
        asking = [asyncio.create_task(openrouter.models()) for _ in range(50)]
        await gate.reached()
        gate.open()
        answers = await bounded(asyncio.gather(*asking))
        assert {answer.body for answer in answers} == {answers[0].body}
        assert shown(answers[0])["models"] == MODELS
        assert state(answers[0]) == (False, False)
    assert len(upstream.models_requests) == 1


async def test_the_models_are_served_from_the_cache_while_they_are_fresh(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="openrouter")
    async with adapter(upstream.base_url) as openrouter:
        first = await openrouter.models()
        second, third = await openrouter.models(), await openrouter.models()
    assert (state(first), state(second), state(third)) == ((False, False), (True, False), (True, False))
    assert shown(second) == shown(third) == shown(first) | {"cached": True}
    assert len(upstream.models_requests) == 1
    assert "Models fetched" in caplog.text and caplog.text.count("Models served from the cache") == 1  # the rest: DEBUG


async def test_the_models_are_fetched_again_when_they_are_no_longer_fresh(upstream: ScriptedUpstream) -> None:
    async with adapter(upstream.base_url, models=0.0) as openrouter:
        first = await openrouter.models()
        upstream.models = [{"id": "test/new"}]
        second = await openrouter.models()
    assert shown(second)["models"] == [{"id": "test/new"}]
    assert (state(second), len(upstream.models_requests)) == ((False, False), 2)
    assert first.etag != second.etag


async def test_the_etag_is_that_of_the_list_whenever_and_by_whomever_it_is_fetched(upstream: ScriptedUpstream) -> None:
    async with adapter(upstream.base_url, models=0.0) as one, adapter(upstream.base_url) as other:
        etags = {(await openrouter.models()).etag for openrouter in (one, one, other, other)}
    assert len(upstream.models_requests) == 3
    [etag] = etags
    assert etag.startswith('W/"') and etag.endswith('"')


async def test_the_old_models_are_served_as_stale_when_the_refresh_fails(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async with adapter(upstream.base_url, models=0.0) as openrouter:
        first = await openrouter.models()
        upstream.models = status(500)
        stale = [await openrouter.models() for _ in range(3)]
    assert [shown(models) for models in stale] == [shown(first) | {"cached": True, "stale": True}] * 3
    assert {models.etag for models in stale} == {first.etag}
    assert len(upstream.models_requests) == 2, "a failed refresh isn't repeated at once"
    assert caplog.text.count("models not fetched: UpstreamRefused, code 500") == 1


async def test_stale_models_are_refreshed_as_soon_as_that_works(upstream: ScriptedUpstream) -> None:
    async with adapter(upstream.base_url, models=0.0, models_retry=0.0) as openrouter:
        await openrouter.models()
        upstream.models = status(503)
        assert state(await openrouter.models()) == (True, True)
        assert state(await openrouter.models()) == (True, True)
        upstream.models = [{"id": "test/new"}]
        fresh = await openrouter.models()
    assert (state(fresh), shown(fresh)["models"]) == ((False, False), [{"id": "test/new"}])
    assert len(upstream.models_requests) == 4


async def drips(_: UpstreamRequest, wire: Wire) -> None:
    await wire.head(headers={"Content-Type": "application/json"})
    while not wire.gone.is_set():
        await wire.send(b" ")
        await asyncio.sleep(0.02)


DEEP = b'{"data": [' + b'{"a":' * 100_000
UNUSABLE: dict[str, tuple[Script, type[UpstreamError], int]] = {
    "500": (status(500), UpstreamRefused, 500),
    "401": (status(401), UpstreamRefused, 401),
    "429 with a page": (status(429, "<html>", HTML), UpstreamRefused, 429),
    "a reset": (resetting, UpstreamBroken, 502),
    "a close": (closing, UpstreamBroken, 502),
    "silence": (hanging, UpstreamSilent, 504),
    "a page": (status(200, "<html>", HTML), UpstreamUnreadable, 502),
    "a redirect": (status(307, "", {"Location": "/"}), UpstreamUnreadable, 502),
    "nothing": (status(200, b""), UpstreamUnreadable, 502),
    "text in an unknown encoding": (status(200, b"Hi", {"Content-Encoding": "zstd"}), UpstreamUnreadable, 502),
    "no list": (status(200, {"data": {"id": "x"}}), UpstreamBroken, 502),
    "null": (status(200, {"data": None}), UpstreamBroken, 502),
    "other fields": (status(200, {"models": MODELS}), UpstreamBroken, 502),
    "half a list": (status(200, b'{"data": [{"id": "x"}'), UpstreamUnreadable, 502),
    "NaN": (status(200, b'{"data": [{"id": "x", "price": NaN}]}'), UpstreamBroken, 502),
    "infinity": (status(200, b'{"data": [{"id": "x", "price": 1e999}]}'), UpstreamBroken, 502),
    "deep JSON": (status(200, DEEP), UpstreamUnreadable, 502),
    "too much": (status(200, {"data": ["x" * 3000]}), UpstreamBroken, 502),
    "a drip": (drips, UpstreamTimeout, 504),
    "bad gzip": (status(200, b"no gzip", GZIPPED), UpstreamUnreadable, 502),
}


@pytest.mark.parametrize(("script", "kind", "code"), UNUSABLE.values(), ids=UNUSABLE)
async def test_models_that_cannot_be_had_are_an_error_until_they_can(
    upstream: ScriptedUpstream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    script: Script,
    kind: type[UpstreamError],
    code: int,
) -> None:
    monkeypatch.setattr("openrouter.MAX_MODELS_BYTES", 2_000_000 if script is UNUSABLE["deep JSON"][0] else 2000)
    upstream.models = script
    async with adapter(upstream.base_url, read=1.0) as openrouter:
        errors = await bounded(asyncio.gather(*(openrouter.models() for _ in range(5)), return_exceptions=True))
        assert [type(error) for error in errors] == [kind] * 5
        assert [error.failure.code for error in errors if isinstance(error, UpstreamError)] == [code] * 5
        assert caplog.text.count(f"models not fetched: {kind.__name__}, code {code}") == 1
        await assert_nothing_left_open(openrouter, upstream)
        upstream.models = list(MODELS)
        assert state(await openrouter.models()) == (False, False)


async def test_models_of_an_upstream_that_cannot_be_reached_are_a_503() -> None:
    async with adapter(f"http://127.0.0.1:{closed_port()}") as openrouter:
        with pytest.raises(UpstreamUnreachable) as caught:
            await openrouter.models()
    assert caught.value.failure.code == 503


async def test_models_that_cannot_be_fetched_in_time_to_connect_are_a_504(upstream: ScriptedUpstream) -> None:
    async with adapter(SECURE.format(port=upstream.port), connect=0.1) as openrouter:
        with pytest.raises(UpstreamTimeout):
            await bounded(openrouter.models())


async def test_a_list_is_passed_on_as_it_is(upstream: ScriptedUpstream) -> None:
    """Local servers have few fields, and any text can stand in a description."""
    odd = [{"id": "x", "name": "é 😀 \u2028 \ud83d", "pricing": {"prompt": "-1"}, "n": [1, 0.5, None, True]}, "text", 5]
    upstream.models = status(200, {"object": "list", "data": odd})
    async with adapter(upstream.base_url) as openrouter:
        models = await openrouter.models()
    assert shown(models)["models"] == odd and models.body.isascii()


async def test_a_list_that_stands_alone_is_one(upstream: ScriptedUpstream) -> None:
    """Together's is like that."""
    upstream.models = status(200, MODELS)
    async with adapter(upstream.base_url) as openrouter:
        assert shown(await openrouter.models())["models"] == MODELS


async def test_a_gzipped_list_is_understood(upstream: ScriptedUpstream) -> None:
    upstream.models = status(200, gzip.compress(json.dumps({"data": MODELS}).encode()), GZIPPED)
    async with adapter(upstream.base_url) as openrouter:
        assert shown(await openrouter.models())["models"] == MODELS


async def test_who_leaves_does_not_stop_the_fetch_for_others(upstream: ScriptedUpstream) -> None:
    gate = Gate()

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await gate.passage()
        await wire.respond(200, {"data": MODELS})

    upstream.models = script
    async with adapter(upstream.base_url) as openrouter:
        leaves, stays = (asyncio.create_task(openrouter.models()) for _ in range(2))
        await gate.reached()
        leaves.cancel()
        await asyncio.wait([leaves])
        gate.open()
        assert shown(await bounded(stays))["models"] == MODELS
        assert state(await openrouter.models()) == (True, False)
    assert leaves.cancelled() and len(upstream.models_requests) == 1


async def test_closing_the_adapter_ends_a_fetch(upstream: ScriptedUpstream) -> None:
    upstream.models = hanging
    async with adapter(upstream.base_url) as openrouter:
        asking = asyncio.create_task(openrouter.models())
        await eventually(lambda: upstream.models_requests)
        await bounded(openrouter.aclose())
        with pytest.raises(UpstreamError, match="restarting"):
            await bounded(asking)
        await eventually(lambda: upstream.connections == 0)


async def test_a_long_history_is_not_kept_while_the_answer_comes(upstream: ScriptedUpstream) -> None:
    gate, outcome = Gate(), Outcome()
    upstream.play(gated(gate, "first", "second"))
    gate.open()
    tracemalloc.start()
    try:
        async with adapter(upstream.base_url) as openrouter:
            reading = asyncio.create_task(read(openrouter, outcome, ("user", "x" * 5_000_000)))
            await eventually(lambda: outcome.texts)
            await eventually(lambda: held_by("openrouter.py") < 100_000)
            gate.open_wide()
            assert (await bounded(reading)).texts == [("content", "firstsecond")]
    finally:
        tracemalloc.stop()


def held_by(name: str) -> int:
    """Bytes that were allocated in this file and are still held."""
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"*/{name}")])
    return sum(trace.size for trace in snapshot.traces)


@pytest.mark.parametrize(("padding", "is_told"), [(1_000, True), (70_000, False)])
async def test_of_an_error_no_more_is_read_than_an_error_has(
    upstream: ScriptedUpstream, padding: int, is_told: bool
) -> None:
    upstream.play(status(400, {"error": {"message": "the reason"}, "padding": "x" * padding}))
    async with adapter(upstream.base_url) as openrouter:
        failure = (await bounded(read(openrouter))).failed(UpstreamRefused, 400)
        assert ("the reason" in failure.message) is is_told


async def test_of_the_models_no_more_is_read_than_there_may_be(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openrouter.MAX_MODELS_BYTES", 1_000)
    upstream.models = [{"id": "x" * 100} for _ in range(20)]
    async with adapter(upstream.base_url) as openrouter:
        with pytest.raises(UpstreamBroken, match="more than 1000 bytes"):
            await bounded(openrouter.models())
