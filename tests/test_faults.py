"""Every known fault of an upstream, and what becomes of the reply: docs/faults.md quotes the table `FAULTS`.

Each ends in a terminal status and event within its bound, is tried as often as the design says and no more, keeps the
text that had arrived, leaves nothing behind, and the next reply on the same relay works.
"""

import asyncio
import contextlib
import gzip
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from openrouter import Timers
from tests.support.relay import Relay, serving
from tests.support.sockets import Leftovers
from tests.support.upstream import ANSWER, Script, ScriptedUpstream, UpstreamRequest, Wire, answer, status

QUICK = Timers(retries=(0.01, 0.02))
IMPATIENT = Timers(connect=0.4, read=0.4, delta=0.8, tail=0.3, retries=(0.01, 0.02))

Step = Callable[[Wire], Awaitable[None] | None]


@dataclass(frozen=True)
class Fault:
    """One row: what upstream does, and what becomes of the reply."""

    name: str
    does: Script
    status: str = "failed"
    code: int | None = 502
    retryable: bool | None = True
    kept: str = ""
    tries: int = 3
    within: float = 2.0
    """Seconds from the question to the last event."""
    retry_after: float | None = None
    timers: Timers = QUICK
    settings: dict[str, Any] = field(default_factory=dict)


# What upstream does, in steps.


def steps(*steps: Step) -> Script:
    """Do this, then close the connection unless the response is complete."""

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        for step in steps:
            if (doing := step(wire)) is not None:
                await doing

    return script


def says(text: str) -> Step:
    """A delta."""
    return lambda wire: wire.delta(text)


def event(data: object) -> Step:
    """An event: a string as it is, anything else as JSON."""
    return lambda wire: wire.event(data if isinstance(data, str) else json.dumps(data))


def body(octets: bytes) -> Step:
    """Bytes of the body."""
    return lambda wire: wire.send(octets)


def raw(octets: bytes) -> Step:
    """Bytes of the connection, of the head too."""
    return lambda wire: wire.raw(octets)


def head(code: int = 200, *, chunked: bool = True, **headers: str) -> Step:
    """Status and headers, underscores for hyphens."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda wire: wire.head(code, fields, chunked=chunked)


def for_ever(step: Step, pause: float = 0.0) -> Step:
    """Until the client goes."""

    async def repeat(wire: Wire) -> None:
        while True:
            if (doing := step(wire)) is not None:
                await doing
            await asyncio.sleep(pause)

    return repeat


def dripping(octets: bytes, pause: float) -> Step:
    """These bytes, one at a time."""

    async def drip(wire: Wire) -> None:
        for octet in octets:
            await wire.send(bytes([octet]))
            await asyncio.sleep(pause)

    return drip


def gzipped(*, corrupt: bool) -> Script:
    """A good stream that nobody asked to be compressed; corrupt, its second half is noise."""

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        chunks = [wire.chunk({"content": "Hello "}), wire.chunk({"content": "gzip"}, "stop")]
        plain = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        octets = gzip.compress(plain.encode())
        await wire.head(200, {"content-encoding": "gzip"})
        await wire.send(octets[:20] + b"\xff" * (len(octets) - 20) if corrupt else octets)
        await wire.end()

    return script


def erring(error: object, *, after: str = "", choices: object = (), done: bool = False) -> Script:
    """A stream with an error in it: https://openrouter.ai/docs/api-reference/errors"""
    chunk = {"id": "gen-1", "object": "chat.completion.chunk", "choices": choices, "error": error}
    text = (says(after),) if after else ()
    return steps(*text, event({k: v for k, v in chunk.items() if v is not None}), Wire.done if done else Wire.end)


def refused(code: int, metadata: object = None, retry_after: str | Callable[[], str] | None = None) -> Script:
    """A refusal before the stream, in OpenRouter's shape."""
    error = {"code": code, "message": "Provider returned error", "metadata": metadata}

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        value = retry_after() if callable(retry_after) else retry_after
        headers = {} if value is None else {"Retry-After": value}
        await wire.respond(code, {"error": error, "user_id": "user_2abcdefgh"}, headers)

    return script


def failed_choice(**choice: object) -> list[dict[str, object]]:
    return [{"index": 0, "delta": {"content": ""}, "finish_reason": "error", **choice}]


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


TEXT = says("Half an ans")
HALF = "Half an ans"
EVENTS = {"Content-Type": "text/event-stream"}
MEGABYTES = 10 * 1024 * 1024
FINISH: Step = lambda wire: wire.finish()  # noqa: E731

COMPLETE: dict[str, Any] = {"status": "complete", "code": None, "retryable": None, "tries": 1}
CUT_OFF: dict[str, Any] = {"kept": HALF, "tries": 1}
FOR_GOOD: dict[str, Any] = {"retryable": False, "tries": 1}
TIMED_OUT: dict[str, Any] = {"code": 504, "tries": 1, "within": 6.0, "timers": IMPATIENT}

CONNECTION = [
    Fault("reset before the headers", steps(Wire.reset)),
    Fault("closed before the headers", steps(Wire.close)),
    Fault("reset after the headers", steps(Wire.head, Wire.reset)),
    Fault("reset in the middle", steps(TEXT, Wire.reset), **CUT_OFF),
    Fault(
        "reset in the middle of a character", steps(TEXT, body(b'data: {"choices": ["\xf0\x9f'), Wire.reset), **CUT_OFF
    ),
    Fault("reset after the finish reason", steps(TEXT, FINISH, Wire.reset), **COMPLETE, kept=HALF),
    Fault("early EOF, chunked", steps(TEXT, Wire.close), **CUT_OFF),
    Fault("early EOF, Content-Length", steps(head(content_length="9999"), TEXT, Wire.close), **CUT_OFF),
    Fault("early EOF, neither", steps(head(chunked=False), TEXT, Wire.close), **CUT_OFF),
    Fault("EOF in order, nothing finished", steps(TEXT, Wire.end), **CUT_OFF),
    Fault("EOF in order, nothing at all", steps(Wire.head, Wire.end)),
    Fault("EOF in order, no [DONE]", steps(TEXT, FINISH, Wire.end), **COMPLETE, kept=HALF),
    Fault("[DONE], no finish reason", steps(TEXT, Wire.done), **COMPLETE, kept=HALF),
]

SILENCE = [
    Fault("never answers", steps(Wire.hang), **TIMED_OUT),
    Fault("headers, then silence", steps(Wire.head, Wire.hang), **TIMED_OUT),
    Fault("silence in the middle", steps(TEXT, Wire.hang), **TIMED_OUT | CUT_OFF),
    Fault("silence after the finish reason", steps(TEXT, FINISH, Wire.hang), **COMPLETE, kept=HALF, timers=IMPATIENT),
    Fault("comments for ever", steps(for_ever(Wire.comment, 0.05)), **TIMED_OUT),
    Fault("comments for ever in the middle", steps(TEXT, for_ever(Wire.comment, 0.05)), **TIMED_OUT | CUT_OFF),
    Fault("empty deltas for ever", steps(for_ever(says(""), 0.05)), **TIMED_OUT),
    Fault("one byte a second, never a line", steps(for_ever(body(b"x"), 0.05)), **TIMED_OUT),
    Fault(
        "headers, one byte a second",
        steps(raw(b"HTTP/1.1 200 OK\r\nX: "), for_ever(raw(b"x"), 0.05)),
        **TIMED_OUT,
        settings={"reply_timeout": 8},
    ),
    Fault(
        "1xx responses for ever",
        steps(for_ever(raw(b"HTTP/1.1 103 Early Hints\r\n\r\n"), 0.05)),
        **TIMED_OUT,
        settings={"reply_timeout": 8},
    ),
    Fault(
        "a good answer, one byte a second",
        steps(dripping(b'data: {"choices": [{"delta": {"content": "slow"}}]}\n\ndata: [DONE]\n\n', 0.002), Wire.end),
        **COMPLETE,
        kept="slow",
        timers=IMPATIENT,
    ),
]

RESPONSES = [
    Fault("200 with HTML", status(200, "<html>Hello</html>", {"Content-Type": "text/html"}), tries=1),
    Fault(
        "200 with the whole answer in one JSON",
        status(200, {"choices": [{"message": {"content": "Hi"}}]}),
        **COMPLETE,
        kept="Hi",
    ),
    Fault("200 with JSON that is no answer", status(200, {"object": "list", "data": []}), tries=1),
    Fault("200 with plain text", status(200, "upstream connect error", {"Content-Type": "text/plain"}), tries=1),
    *(
        Fault(
            f"events declared as {kind}",
            steps(head(content_type=kind), TEXT, FINISH, Wire.done),
            **COMPLETE,
            kept=HALF,
        )
        for kind in ("text/plain; charset=utf-8", "application/octet-stream", "application/json")
    ),
    Fault(
        "200 with an error as an event stream",
        status(200, {"error": {"code": 402, "message": "No"}}, EVENTS),
        code=402,
        **FOR_GOOD,
    ),
    Fault("200 with an error as JSON", status(200, {"error": {"code": 402, "message": "No"}}), code=402, **FOR_GOOD),
    Fault("502 with HTML", status(502, "<html>Bad gateway</html>", {"Content-Type": "text/html"})),
    Fault("500 with deep JSON", status(500, "[" * 100_000), code=500),
    Fault("500 with an endless body", steps(head(500), for_ever(body(b" " * 4096))), code=500),
    Fault("500 with a body that never comes", steps(head(500), Wire.hang), code=500, timers=IMPATIENT, within=4.0),
    Fault("redirect", status(302, "", {"Location": "/api/v1/elsewhere"}), tries=1),
    Fault("204", steps(raw(b"HTTP/1.1 204 No Content\r\n\r\n"), Wire.close), tries=1),
    Fault("101", steps(raw(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), Wire.close)),
    Fault(
        "100 and 103, then a good answer",
        steps(raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"), TEXT, FINISH, Wire.done),
        **COMPLETE,
        kept=HALF,
    ),
    Fault("header flood", steps(raw(b"HTTP/1.1 200 OK\r\n" + b"X-Flood: x\r\n" * 20_000), Wire.hang)),
    Fault("not HTTP", steps(raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), Wire.hang)),
    Fault("invalid chunked encoding", steps(Wire.head, raw(b"ZZ\r\n"), Wire.hang)),
    Fault("invalid chunked encoding in the middle", steps(TEXT, raw(b"-1\r\n"), Wire.hang), **CUT_OFF),
    Fault("gzip", gzipped(corrupt=False), **COMPLETE, kept="Hello gzip"),
    Fault("gzip, corrupt", gzipped(corrupt=True), tries=1),
    Fault("br", status(200, b"\x0b\x02\x80Hi\x03", EVENTS | {"Content-Encoding": "br"}), tries=1),
    Fault("zstd", status(200, b"(\xb5/\xfd", EVENTS | {"Content-Encoding": "zstd"}), tries=1),
]

REASON = "the request exceeds the available context size"
IN_FLIGHT = {"limit_source": "openrouter_in_flight_budget"}

REFUSALS = [
    *(Fault(f"{code}", refused(code), code=code, **FOR_GOOD) for code in (400, 401, 402, 403, 404, 413, 422)),
    *(Fault(f"{code}", refused(code), code=code) for code in (408, 429, 500, 502, 503, 524, 529)),
    Fault("400 with a detail", status(400, {"detail": REASON}), code=400, **FOR_GOOD),
    Fault("422 with a list of details", status(422, {"detail": [{"msg": REASON}]}), code=422, **FOR_GOOD),
    Fault("404 with text", status(404, "404 page not found", {"Content-Type": "text/plain"}), code=404, **FOR_GOOD),
    Fault("402, in flight", refused(402, IN_FLIGHT, retry_after="0"), code=402, retry_after=0.0),
    Fault("Retry-After in a moment", refused(429, retry_after="0.1"), code=429, retry_after=0.1),
    Fault("Retry-After of an hour", refused(429, retry_after="3600"), code=429, retry_after=3600.0, tries=1),
    Fault(
        "Retry-After as a date",
        refused(503, retry_after=lambda: in_seconds(86_400)),
        code=503,
        retry_after=86_400,
        tries=1,
    ),
    Fault(
        "Retry-After as a date that is past",
        refused(503, retry_after=lambda: in_seconds(-60)),
        code=503,
        retry_after=0.0,
    ),
    *(
        Fault(f"Retry-After of {garbage!r}", refused(429, retry_after=garbage), code=429)
        for garbage in ("soon", "nan", "inf", "1e999", "Mon, 99 Foo 2026 25:00:00 GMT", "Mon, 1 Jan 10000 00:00:00 GMT")
    ),
]

THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}


def chunk(delta: object, finish_reason: object = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


ONE, TWO = (json.dumps(chunk({"content": text})).encode() for text in ("One ", "two"))

CONTENT = [
    *(
        Fault(f"an event that is {data[:12]}", steps(event(data)), tries=1)
        for data in ("[1]", "42", '"x"', "null", "{", "NaN")
    ),
    Fault("JSON that isn't an object, in the middle", steps(TEXT, event("[1]"), Wire.hang), **CUT_OFF),
    Fault("deep JSON", steps(event("[" * 100_000)), tries=1),
    Fault("deep JSON in an object", steps(event('{"choices": ' + '{"a":[' * 50_000 + "]}" * 50_000 + "}")), tries=1),
    Fault(
        "10 MB in one line",
        steps(says("x" * MEGABYTES), FINISH, Wire.done),
        **COMPLETE,
        kept="x" * MEGABYTES,
        within=10.0,
        settings={"max_reply_chars": MEGABYTES},
    ),
    Fault(
        "10 MB in one line that is no text",
        steps(lambda wire: wire.event({"choices": [], "image": "x" * MEGABYTES}), TEXT, FINISH, Wire.done),
        **COMPLETE,
        kept=HALF,
        within=10.0,
    ),
    Fault("endless line", steps(body(b"data: "), for_ever(body(b"x" * 1024 * 1024))), within=10.0, tries=1),
    Fault("endless event", steps(for_ever(body(b"data: " + b"x" * 1024 * 1024 + b"\n"))), within=10.0, tries=1),
    Fault(
        "endless reply", steps(for_ever(says("x" * 99))), kept="x" * 1000, tries=1, settings={"max_reply_chars": 1000}
    ),
    Fault(
        "endless reasoning",
        steps(for_ever(lambda wire: wire.reasoning("hm" * 50))),
        tries=1,
        settings={"max_reply_chars": 1000},
    ),
    Fault("half a surrogate pair", steps(says("a\ud83d"), says("b"), FINISH, Wire.done), **COMPLETE, kept="a\ufffdb"),
    Fault("the other half alone", steps(says("a\ude00b"), FINISH, Wire.done), **COMPLETE, kept="a\ufffdb"),
    Fault("half a surrogate pair, last", steps(says("a\ud83d"), FINISH, Wire.done), **COMPLETE, kept="a\ufffd"),
    Fault(
        "half a surrogate pair, last, no [DONE]", steps(says("a\ud83d"), FINISH, Wire.end), **COMPLETE, kept="a\ufffd"
    ),
    Fault(
        "a surrogate pair in two deltas",
        steps(says("\ud83d"), says("\ude00"), FINISH, Wire.done),
        **COMPLETE,
        kept="😀",
    ),
    Fault("two [DONE]s", steps(TEXT, FINISH, event("[DONE]"), Wire.done), **COMPLETE, kept=HALF),
    Fault("text after [DONE]", steps(TEXT, event("[DONE]"), says("more"), Wire.end), **COMPLETE, kept=HALF),
    Fault("text for ever after [DONE]", steps(TEXT, event("[DONE]"), for_ever(says("x"), 0.01)), **COMPLETE, kept=HALF),
    Fault("silence after [DONE]", steps(TEXT, event("[DONE]"), Wire.hang), **COMPLETE, kept=HALF),
    Fault("nothing but [DONE]", steps(Wire.done), **COMPLETE),
    Fault(
        "a finish reason on every chunk",
        steps(event(chunk({"content": "One "}, "stop")), event(chunk({"content": "two"}, "stop")), Wire.done),
        **COMPLETE,
        kept="One two",
    ),
    Fault(
        "a finish reason on every chunk, comments for ever",
        steps(
            event(chunk({"content": "One "}, "stop")),
            event(chunk({"content": "two"}, "stop")),
            for_ever(Wire.comment, 0.05),
        ),
        **COMPLETE,
        kept="One two",
        timers=IMPATIENT,
    ),
    Fault(
        "text in parts",
        steps(event(chunk({"content": [THOUGHT, {"type": "text", "text": "Four"}]})), FINISH, Wire.done),
        **COMPLETE,
        kept="Four",
    ),
    Fault(
        "a refusal", steps(event(chunk({"content": None, "refusal": "No."})), FINISH, Wire.done), **COMPLETE, kept="No."
    ),
    Fault(
        "text in a message",
        steps(event({"choices": [{"message": {"content": "Hi"}}]}), FINISH, Wire.done),
        **COMPLETE,
        kept="Hi",
    ),
    Fault(
        "three events in one block",
        steps(body(b"data: %b\ndata: %b\ndata: [DONE]\n\n" % (ONE, TWO)), Wire.end),
        **COMPLETE,
        kept="One two",
    ),
    Fault(
        "one event over two lines",
        steps(body(b"data: %b\ndata: %b\n\n" % (ONE[:20], ONE[20:])), FINISH, Wire.done),
        **COMPLETE,
        kept="One ",
    ),
    Fault("a last event without its blank line", steps(body(b"data: %b" % ONE), Wire.end), kept="One ", tries=1),
    Fault("half an event, then the end", steps(body(b"data: %b" % ONE[:20]), Wire.end), tries=1),
    Fault("a length without text", steps(event(chunk({"reasoning": "Hm"}, "length")), Wire.done), **COMPLETE),
    *(
        Fault(f"{name} without text", steps(event(chunk(delta, reason)), Wire.done), **FOR_GOOD)
        for name, delta, reason in (
            ("tool calls", {"tool_calls": [{"index": 0, "id": "call_1"}]}, "stop"),
            ("a finish reason of tool_calls", {"reasoning": "Hm"}, "tool_calls"),
            ("images", {"content": "", "images": [{"image_url": {"url": "data:image/png;base64,AA=="}}]}, "stop"),
            ("audio", {"audio": {"data": "AA=="}}, "stop"),
        )
    ),
    Fault(
        "images, then a reset", steps(event(chunk({"images": [{"image_url": {"url": "data:,"}}]})), Wire.reset), tries=1
    ),
    *(
        Fault(
            f"a chunk of a foreign shape: {chunk}", steps(event(chunk), TEXT, FINISH, Wire.done), **COMPLETE, kept=HALF
        )
        for chunk in (
            {"choices": {"0": 1}},
            {"choices": [7]},
            {"choices": [{"delta": None}]},
            {"choices": [{"delta": {"content": 7, "reasoning": ["x"]}}]},
            {"choices": [{"delta": {"tool_calls": [{"id": "call_1"}], "content": None}}]},
            {"id": 7, "usage": "none", "choices": None, "error": None},
        )
    ),
]

WORDS = {"context_length_exceeded": 400, "content_policy_violation": 403}
PASSING = {"rate_limit_exceeded": 429, "provider_overloaded": 503}

LLAMA = json.dumps({"code": 400, "message": REASON, "type": "exceed_context_size_error"}).encode()

ERROR_CHUNKS = [
    Fault("error chunk: code 429", erring({"code": 429, "message": "slow down"}), code=429),
    Fault("error chunk: code 400", erring({"code": 400, "message": "bad"}), code=400, **FOR_GOOD),
    Fault('error chunk: code "402"', erring({"code": "402", "message": "no credit"}), code=402, **FOR_GOOD),
    *(
        Fault(f"error chunk: code {code!r}", erring({"code": code, "message": "Upstream idle timeout exceeded"}))
        for code in ("server_error", None, True, 7, 10**30, [429], "")
    ),
    Fault("error chunk: no code", erring({"message": "bad"})),
    Fault("error chunk: nothing in it but a key", erring({"x": None})),
    Fault("error chunk: a string", erring("something broke")),
    Fault("error chunk: a list", erring(["something broke"])),
    *(
        Fault(f"error chunk: {word}", erring({"code": None, "metadata": {"error_type": word}}), code=code, **FOR_GOOD)
        for word, code in WORDS.items()
    ),
    *(
        Fault(f"error chunk: {word}", erring({"code": "x", "metadata": {"error_type": word}}), code=code)
        for word, code in PASSING.items()
    ),
    Fault("error chunk: no choices", erring({"code": 500, "message": "bad"}, choices=None), code=500),
    Fault("error chunk: finish reason, documented", erring({"code": 500}, choices=failed_choice()), code=500),
    Fault("error chunk: finish reason alone", erring(None, choices=failed_choice())),
    Fault("error chunk: in the choice", erring(None, choices=failed_choice(error={"code": 503})), code=503),
    Fault("error chunk: then [DONE]", erring({"code": 500, "message": "bad"}, done=True), code=500),
    Fault("error event: a field named error", steps(body(b"error: %b\n\n" % LLAMA), Wire.done), code=400, **FOR_GOOD),
    Fault(
        "error event: named error", steps(body(b"event: error\ndata: %b\n\n" % LLAMA), Wire.end), code=400, **FOR_GOOD
    ),
    Fault("error event: a message", steps(event({"message": REASON}), Wire.end)),
    Fault("error event: a detail", steps(event({"detail": REASON}), Wire.end)),
    Fault(
        "error event: a list",
        steps(event([{"error": {"code": 400, "message": REASON}}]), Wire.end),
        code=400,
        **FOR_GOOD,
    ),
    Fault("error event: text", steps(event("Something broke"), Wire.end), tries=1),
    Fault("error event: a page", steps(event("<html>Something broke"), Wire.end), tries=1),
    Fault(
        "error chunk after the finish reason",
        steps(event(chunk({}, "length")), event({"error": REASON}), Wire.end),
        tries=1,
    ),
    Fault("error chunk in the middle", erring({"code": 429}, after=HALF), code=429, **CUT_OFF),
    Fault(
        "error chunk in the middle, for good", erring({"code": 403}, after=HALF), code=403, retryable=False, **CUT_OFF
    ),
    Fault("error chunk in the middle, then [DONE]", erring({"code": 502}, after=HALF, done=True), **CUT_OFF),
]

FAULTS = [*CONNECTION, *SILENCE, *RESPONSES, *REFUSALS, *CONTENT, *ERROR_CHUNKS]


class Relays:
    """Relays on one upstream, one for each way of setting them up: starting one takes longer than most faults."""

    def __init__(self, upstream: ScriptedUpstream, stack: contextlib.AsyncExitStack) -> None:
        self.upstream = upstream
        self._stack = stack
        self._relays: dict[str, Relay] = {}

    async def relay_for(self, fault: Fault) -> Relay:
        """It has answered a question before, so that all connections it keeps are there."""
        key = f"{fault.timers} {fault.settings}"
        if key not in self._relays:
            relay = serving(self.upstream, timers=fault.timers, **fault.settings)
            self._relays[key] = await self._stack.enter_async_context(relay)
        self.upstream.play(answer())
        await answers(self._relays[key])
        return self._relays[key]


@pytest.fixture(scope="module")
async def relays() -> AsyncIterator[Relays]:
    async with ScriptedUpstream() as upstream, contextlib.AsyncExitStack() as stack:
        yield Relays(upstream, stack)


async def answers(relay: Relay) -> None:
    """The relay gives good answers now."""
    conversation_id = await relay.ask()
    assert (await relay.read(conversation_id)).content == ANSWER
    assert [message["status"] for message in await relay.messages(conversation_id)] == ["complete"] * 2


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_fault_ends_as_the_table_says(fault: Fault, relays: Relays, caplog: pytest.LogCaptureFixture) -> None:
    relay, upstream = await relays.relay_for(fault), relays.upstream
    before, asked = Leftovers.now(upstream), len(upstream.requests)
    upstream.play(fault.does)
    conversation_id = await relay.ask()
    await assert_outcome(relay, conversation_id, fault)
    assert len(upstream.requests) - asked == fault.tries
    upstream.play(answer())
    await answers(relay)
    if fault.status == "failed":
        assert (await relay.read(conversation_id)).content == ANSWER
    await before.are_all(upstream)
    assert not [record for record in caplog.records if record.exc_info]


async def assert_outcome(relay: Relay, conversation_id: str, fault: Fault) -> None:
    started = time.monotonic()
    transcript = await relay.read(conversation_id)
    taken = time.monotonic() - started
    [_, message] = await relay.messages(conversation_id)
    assert (message["status"], message["content"] == fault.kept) == (fault.status, True)
    assert transcript.content == fault.kept
    assert message["error"] == transcript.last.get("error")
    if fault.status == "failed":
        assert_error(message["error"], fault)
    else:
        assert (message["error"], transcript.last["done"]) == (None, True)
    assert taken < fault.within


def assert_error(error: dict[str, Any], fault: Fault) -> None:
    assert (error["code"], error["retryable"]) == (fault.code, fault.retryable)
    assert error["message"].strip() and len(error["message"]) < 600
    assert error["retry_after"] == (fault.retry_after and pytest.approx(fault.retry_after, abs=5))


# What keeps upstream from being met at all. These have no script.

UNREACHABLE = Fault("", steps(), code=503)


async def error_of(relay: Relay, conversation_id: str) -> str:
    """What the failed reply tells."""
    message: str = (await relay.messages(conversation_id))[-1]["error"]["message"]
    return message


@pytest.mark.parametrize(
    ("name", "is_known", "words"),
    [("127.0.0.1", False, "set SSL_CERT_FILE"), ("elsewhere.test", True, "that of another host")],
    ids=["an unknown authority", "another name"],
)
async def test_a_certificate_that_is_not_trusted_is_told_apart_and_not_tried_again(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    is_known: bool,
    words: str,
) -> None:
    """An unknown authority is how a proxy that inspects a company's TLS looks."""
    authority = trustme.CA()
    (authority if is_known else trustme.CA()).cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    identity = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(identity)
    async with ScriptedUpstream(identity) as upstream, serving(upstream, timers=QUICK) as relay:
        conversation_id = await relay.ask()
        await assert_outcome(relay, conversation_id, Fault("", steps(), code=503, retryable=False))
        assert words in await error_of(relay, conversation_id)
        assert refusals(caplog) == 0


async def assert_next_reply_works(relay: Relay, conversation_id: str) -> None:
    assert (await relay.read(conversation_id)).content == ANSWER
    await answers(relay)


@contextlib.asynccontextmanager
async def forwarding(port: socket.socket, upstream: ScriptedUpstream) -> AsyncIterator[None]:
    """Whoever connects to `port` talks to `upstream`."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while octets := await reader.read(65536):
            writer.write(octets)
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", upstream.port)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(pipe(reader, back), pipe(there, writer))

    async with await asyncio.start_server(forward, sock=port):
        yield


def refusals(caplog: pytest.LogCaptureFixture) -> int:
    """Tries that failed and were followed by another."""
    return sum(record.getMessage().startswith("try ") for record in caplog.records)


async def test_a_refused_connection_is_tried_again_and_the_reply_works_once_upstream_listens(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        async with serving(f"http://127.0.0.1:{port.getsockname()[1]}/api/v1", timers=QUICK) as relay:
            conversation_id = await relay.ask()
            await assert_outcome(relay, conversation_id, UNREACHABLE)
            assert "refuses the connection" in await error_of(relay, conversation_id)
            assert refusals(caplog) == 2
            port.listen()
            async with forwarding(port, upstream):
                await assert_next_reply_works(relay, conversation_id)


async def test_a_name_that_is_unknown_is_tried_again_and_the_reply_works_once_it_is_known(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    async with serving(f"http://nowhere.invalid:{upstream.port}/api/v1", timers=QUICK) as relay:
        conversation_id = await relay.ask()
        await assert_outcome(relay, conversation_id, UNREACHABLE)
        assert "name can't be resolved" in await error_of(relay, conversation_id)
        assert refusals(caplog) == 2
        resolve = socket.getaddrinfo
        known = {"nowhere.invalid": "127.0.0.1", b"nowhere.invalid": "127.0.0.1"}
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *rest, **more: resolve(known.get(host, host), *rest, **more)
        )
        await assert_next_reply_works(relay, conversation_id)


async def test_tls_to_a_port_that_speaks_plain_text_is_an_upstream_that_cannot_be_reached(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def answer_in_plain_text(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer_in_plain_text, "127.0.0.1", 0) as port:
        address = port.sockets[0].getsockname()
        async with serving(f"https://127.0.0.1:{address[1]}/api/v1", timers=QUICK) as relay:
            await assert_outcome(relay, await relay.ask(), UNREACHABLE)
            assert refusals(caplog) == 2


async def test_tls_to_a_port_that_never_answers_times_out(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(upstream.base_url.replace("http:", "https:"), timers=IMPATIENT) as relay:
        await assert_outcome(relay, await relay.ask(), Fault("", steps(), **TIMED_OUT))
        assert refusals(caplog) == 2
