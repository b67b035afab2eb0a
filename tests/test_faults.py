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
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from openrouter import Timers
from tests.support.relay import Relay, serving
from tests.support.scripts import (
    ANSWER,
    Script,
    Step,
    answer,
    body,
    event,
    finishes,
    head,
    pauses,
    raw,
    repeats,
    says,
    status,
    steps,
)
from tests.support.sockets import Leftovers
from tests.support.upstream import ScriptedUpstream, UpstreamRequest, Wire

QUICK = Timers(retries=(0.01, 0.02))
IMPATIENT = Timers(connect=0.4, read=0.4, delta=0.8, tail=0.3, retries=(0.01, 0.02))


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
    within: float = 4.0
    """Seconds from the question to the last event."""
    retry_after: float | None = None
    timers: Timers = QUICK
    settings: dict[str, Any] = field(default_factory=dict)


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


def refused(code: int, metadata: object = None, retry_after: str | Callable[[], str] | None = None) -> Script:
    """A refusal before the stream, in OpenRouter's shape."""
    error = {"code": code, "message": "Provider returned error", "metadata": metadata}

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        value = retry_after() if callable(retry_after) else retry_after
        headers = {} if value is None else {"Retry-After": value}
        await wire.respond(code, {"error": error, "user_id": "user_2abcdefgh"}, headers)

    return script


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


HALF = "Half an ans"
TEXT = says(HALF)
EVENTS = {"Content-Type": "text/event-stream"}
MEGABYTES = 10 * 1024 * 1024

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
    Fault("reset after the finish reason", steps(TEXT, finishes, Wire.reset), **COMPLETE, kept=HALF),
    Fault("early EOF, chunked", steps(TEXT, Wire.close), **CUT_OFF),
    Fault("early EOF, Content-Length", steps(head(content_length="9999"), TEXT, Wire.close), **CUT_OFF),
    Fault("early EOF, neither", steps(head(chunked=False), TEXT, Wire.close), **CUT_OFF),
    Fault("EOF in order, nothing finished", steps(TEXT, Wire.end), **CUT_OFF),
    Fault("EOF in order, nothing at all", steps(Wire.head, Wire.end)),
    Fault("EOF in order, no [DONE]", steps(TEXT, finishes, Wire.end), **COMPLETE, kept=HALF),
    Fault("[DONE], no finish reason", steps(TEXT, Wire.done), **COMPLETE, kept=HALF),
]

SLOW = b'data: {"choices": [{"delta": {"content": "slow"}}]}\n\ndata: [DONE]\n\n'
SILENCE = [
    Fault("never answers", steps(Wire.hang), **TIMED_OUT),
    Fault("headers, then silence", steps(Wire.head, Wire.hang), **TIMED_OUT),
    Fault("silence in the middle", steps(TEXT, Wire.hang), **TIMED_OUT | CUT_OFF),
    Fault("silence after the finish reason", steps(TEXT, finishes, Wire.hang), **COMPLETE, kept=HALF, timers=IMPATIENT),
    Fault("comments for ever", steps(repeats(Wire.comment, pauses(0.05))), **TIMED_OUT),
    Fault("comments for ever in the middle", steps(TEXT, repeats(Wire.comment, pauses(0.05))), **TIMED_OUT | CUT_OFF),
    Fault("empty deltas for ever", steps(repeats(says(""), pauses(0.05))), **TIMED_OUT),
    Fault("one byte a second, never a line", steps(repeats(body(b"x"), pauses(0.05))), **TIMED_OUT),
    Fault(
        "headers, one byte a second",
        steps(raw(b"HTTP/1.1 200 OK\r\nX: "), repeats(raw(b"x"), pauses(0.05))),
        **TIMED_OUT,
        settings={"reply_timeout": 8},
    ),
    Fault(
        "1xx responses for ever",
        steps(repeats(raw(b"HTTP/1.1 103 Early Hints\r\n\r\n"), pauses(0.05))),
        **TIMED_OUT,
        settings={"reply_timeout": 8},
    ),
    Fault(
        "a good answer, one byte a second",
        steps(*(step for octet in SLOW for step in (body(bytes([octet])), pauses(0.002))), Wire.end),
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
    Fault(
        "events declared as application/json",
        steps(head(content_type="application/json"), TEXT, finishes, Wire.done),
        **COMPLETE,
        kept=HALF,
    ),
    Fault("200 with an error as JSON", status(200, {"error": {"code": 402, "message": "No"}}), code=402, **FOR_GOOD),
    Fault("502 with HTML", status(502, "<html>Bad gateway</html>", {"Content-Type": "text/html"})),
    Fault("500 with deep JSON", status(500, "[" * 100_000), code=500),
    Fault("500 with an endless body", steps(head(500), repeats(body(b" " * 4096))), code=500),
    Fault("500 with a body that never comes", steps(head(500), Wire.hang), code=500, timers=IMPATIENT, within=4.0),
    Fault("redirect", status(302, "", {"Location": "/api/v1/elsewhere"}), tries=1),
    Fault("204", steps(raw(b"HTTP/1.1 204 No Content\r\n\r\n"), Wire.close), tries=1),
    Fault("101", steps(raw(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), Wire.close)),
    Fault(
        "100 and 103, then a good answer",
        steps(raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"), TEXT, finishes, Wire.done),
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
]

REASON = "the request exceeds the available context size"
IN_FLIGHT = {"limit_source": "openrouter_in_flight_budget"}

REFUSALS = [
    *(Fault(f"{code}", refused(code), code=code, **FOR_GOOD) for code in (400, 401, 402, 403, 404, 413, 422)),
    *(Fault(f"{code}", refused(code), code=code) for code in (408, 429, 500, 502, 503, 524, 529)),
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
    Fault("Retry-After of 'soon'", refused(429, retry_after="soon"), code=429),
]


def chunk(delta: object, finish_reason: object = None) -> Step:
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


CONTENT = [
    Fault("an event that isn't JSON", steps(event("{")), tries=1),
    Fault("JSON that isn't an object, in the middle", steps(TEXT, event("[1]"), Wire.hang), **CUT_OFF),
    Fault("deep JSON", steps(event("[" * 100_000)), tries=1),
    Fault(
        "10 MB in one line",
        steps(says("x" * MEGABYTES), finishes, Wire.done),
        **COMPLETE,
        kept="x" * MEGABYTES,
        within=10.0,
        settings={"max_reply_chars": MEGABYTES},
    ),
    Fault(
        "10 MB in one line that is no text",
        steps(lambda wire: wire.event({"choices": [], "image": "x" * MEGABYTES}), TEXT, finishes, Wire.done),
        **COMPLETE,
        kept=HALF,
        within=10.0,
    ),
    Fault("endless line", steps(body(b"data: "), repeats(body(b"x" * 1024 * 1024))), within=10.0, tries=1),
    Fault("endless event", steps(repeats(body(b"data: " + b"x" * 1024 * 1024 + b"\n"))), within=10.0, tries=1),
    Fault(
        "endless reply", steps(repeats(says("x" * 99))), kept="x" * 1000, tries=1, settings={"max_reply_chars": 1000}
    ),
    Fault(
        "endless reasoning",
        steps(repeats(lambda wire: wire.reasoning("hm" * 50))),
        tries=1,
        settings={"max_reply_chars": 1000},
    ),
    Fault("half a surrogate pair, last", steps(says("a\ud83d"), finishes, Wire.done), **COMPLETE, kept="a\ufffd"),
    Fault(
        "a surrogate pair in two deltas",
        steps(says("\ud83d"), says("\ude00"), finishes, Wire.done),
        **COMPLETE,
        kept="😀",
    ),
    Fault("text after [DONE]", steps(TEXT, event("[DONE]"), says("more"), Wire.end), **COMPLETE, kept=HALF),
    Fault(
        "text for ever after [DONE]",
        steps(TEXT, event("[DONE]"), repeats(says("x"), pauses(0.01))),
        **COMPLETE,
        kept=HALF,
    ),
    Fault("silence after [DONE]", steps(TEXT, event("[DONE]"), Wire.hang), **COMPLETE, kept=HALF),
    Fault("nothing but [DONE]", steps(Wire.done), **COMPLETE),
    Fault(
        "a finish reason on every chunk",
        steps(chunk({"content": "One "}, "stop"), chunk({"content": "two"}, "stop"), Wire.done),
        **COMPLETE,
        kept="One two",
    ),
    Fault("half an event, then the end", steps(body(b'data: {"choices": [{"delta": {"con'), Wire.end), tries=1),
    Fault("a length without text", steps(chunk({"reasoning": "Hm"}, "length"), Wire.done), **COMPLETE),
    Fault("tool calls without text", steps(chunk({"tool_calls": [{"index": 0}]}, "stop"), Wire.done), **FOR_GOOD),
    Fault("images, then a reset", steps(chunk({"images": [{"image_url": {"url": "data:,"}}]}), Wire.reset), tries=1),
    Fault(
        "a chunk of a foreign shape",
        steps(event({"choices": {"0": 1}}), TEXT, finishes, Wire.done),
        **COMPLETE,
        kept=HALF,
    ),
]

OVERLOADED, BAD = event({"error": {"code": 503, "message": REASON}}), event({"error": {"code": 400, "message": REASON}})
ERROR_EVENTS = [
    Fault("error event: an error that passes", steps(OVERLOADED, Wire.end), code=503),
    Fault("error event: an error of the request", steps(BAD, Wire.end), code=400, **FOR_GOOD),
    Fault("error event: then [DONE]", steps(OVERLOADED, Wire.done), code=503),
    Fault("error event: named error", steps(body(b"event: error\ndata: {}\n\n"), Wire.end)),
    Fault("error event: text", steps(event("Something broke"), Wire.end), tries=1),
    Fault(
        "error event after the finish reason", steps(chunk({}, "length"), event({"error": REASON}), Wire.end), tries=1
    ),
    Fault("error event in the middle", steps(TEXT, OVERLOADED, Wire.end), code=503, **CUT_OFF),
    Fault("error event in the middle, for good", steps(TEXT, BAD, Wire.end), code=400, retryable=False, **CUT_OFF),
]

FAULTS = [*CONNECTION, *SILENCE, *RESPONSES, *REFUSALS, *CONTENT, *ERROR_EVENTS]


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
