"""The adapter against a scripted upstream over real sockets: what is asked, tries, timers, cancelling.

What servers may answer is in test_providers.py and test_wire.py, without I/O.
"""

import asyncio
import gzip
import json
import logging
import random
import tracemalloc
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from openrouter import Delta, OpenRouter, UpstreamError, _as_upstream_error
from result import Finish, Report
from tests.support.adapter import (
    HELLO,
    TITLE,
    Outcome,
    adapter,
    assert_nothing_left,
    assert_nothing_left_open,
    closed_port,
    full_port,
    read,
    settled,
    slots,
)
from tests.support.completions import KEY
from tests.support.scripts import (
    ANSWER,
    Script,
    Step,
    answer,
    body,
    event,
    finishes,
    gated,
    hanging,
    head,
    pauses,
    raw,
    repeats,
    says,
    silence,
    status,
    steps,
    thinks,
    waits,
)
from tests.support.upstream import USAGE, Gate, ScriptedUpstream, UpstreamRequest, Wire
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

STOP = event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
DONE = event("[DONE]")
PASSES = {"error": {"code": 503, "message": "m"}}
LASTS = {"error": {"code": 400, "message": "m"}}
HALF_AN_ERROR = steps(head(400, content_type="application/json"), body(b'{"error": '), Wire.hang)


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
        error = (await read(openrouter)).failed(NotConfigured, 401)
        assert not error.retryable and "OPENROUTER_API_KEY" in error.message
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


@pytest.mark.parametrize("unusable", ["", "gén"])
async def test_the_generation_id_comes_from_a_chunk_if_the_header_has_none(
    upstream: ScriptedUpstream, unusable: str
) -> None:
    upstream.play(steps(head(x_generation_id=unusable), Wire.comment, says("Hi"), Wire.done))
    async with adapter(upstream.base_url) as openrouter:
        assert (await read(openrouter)).report.generation_id == (await upstream.called()).generation_id


WHOLE = {
    "no [DONE]": steps(says("Hi"), STOP, Wire.end),
    "no [DONE], and the connection closed": steps(says("Hi"), STOP, Wire.close),
    "no [DONE], and the connection reset": steps(says("Hi"), STOP, Wire.reset),
    "no [DONE], but what can't be read": steps(says("Hi"), STOP, event("<html>"), Wire.hang),
    "no end after [DONE]": steps(says("Hi"), DONE, Wire.hang),
    "a reset after [DONE]": steps(says("Hi"), DONE, Wire.reset),
    "no length": steps(head(chunked=False), says("Hi"), body(b"data: [DONE]")),
    "201": steps(head(201), says("Hi"), Wire.done),
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
    "ends": steps(says("Hi"), Wire.end),
    "is closed": steps(says("Hi"), Wire.close),
    "is reset": steps(says("Hi"), Wire.reset),
    "is too short for its length": steps(head(content_length="999"), says("Hi")),
    "can't be read": steps(says("Hi"), event("<html>"), Wire.hang),
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

    upstream.play(steps(says("Hi"), waits(gate), raw(b"no size of a chunk\r\n")))
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
    upstream.play(steps(says("Hi"), event(error), Wire.hang))
    async with adapter(upstream.base_url, retries=(0.0, 0.0)) as openrouter:
        outcome = await bounded(read(openrouter))
        assert outcome.texts == [("content", "Hi")]
        assert outcome.failed(UpstreamRefused, 429).message.endswith(": Slow down, [redacted]")
        assert len(upstream.requests) == 1
        await assert_nothing_left(openrouter, upstream)


async def test_an_event_without_end_is_refused(upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upstream.events.MAX_EVENT_BYTES", 1000)

    upstream.play(steps(repeats(body(b"data: " + b"x" * 100))))
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
        error = (await read(openrouter)).failed(UpstreamRefused, 403)
    assert error.message.endswith(": No, [redacted]: [redacted]") and not error.retryable
    assert KEY not in caplog.text and "4711" not in caplog.text and "user_2abcDEF" not in caplog.text


HTML = {"Content-Type": "text/html"}
GZIPPED = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
NO_STREAM: dict[str, tuple[Script, type[UpstreamError], int, str]] = {
    "an edge's page": (status(502, "<html>", HTML), UpstreamRefused, 502, "status 502"),
    "gzipped JSON": (status(400, gzip.compress(b'{"error": "Because"}'), GZIPPED), UpstreamRefused, 400, ": Because"),
    "what isn't gzip": (status(400, b"no gzip", GZIPPED), UpstreamRefused, 400, "can't take this request"),
    "a huge error": (status(400, {"error": {"message": "x" * 100_000}}), UpstreamRefused, 400, "can't take"),
    "a page": (status(200, "<html>", HTML), UpstreamUnreadable, 502, "OPENROUTER_BASE_URL"),
    "a redirect": (status(302, "", {"Location": "https://elsewhere.test"}), UpstreamUnreadable, 502, "status 302"),
    "no content": (steps(raw(b"HTTP/1.1 204 No Content\r\n\r\n")), UpstreamUnreadable, 502, "status 204"),
    "an error that is cut off": (
        steps(head(404, content_length="99"), body(b'{"error": ')),
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
    upstream.play(HALF_AN_ERROR)
    async with adapter(upstream.base_url, tail=0.05) as openrouter:
        assert "can't take this request" in (await bounded(read(openrouter))).failed(UpstreamRefused, 400).message
        await assert_nothing_left(openrouter, upstream)


# Tries

IN_FLIGHT = {"error": {"code": 402, "message": "m", "metadata": {"limit_source": "openrouter_in_flight_budget"}}}
PASSING: dict[str, Script] = {
    "a status": status(503),
    "a budget in flight": status(402, IN_FLIGHT),
    "a reset": steps(Wire.reset),
    "a close": steps(Wire.close),
    "a reset after the head": steps(Wire.head, Wire.reset),
    "an end without a delta": steps(Wire.head, Wire.end),
    "an error inside": steps(event(PASSES), Wire.end),
    "an error inside after empty deltas": steps(says(""), event(PASSES), Wire.end),
}
UNREADABLE: dict[str, Script] = {
    "a login page": status(200, "<html>", HTML),
    "an encoding nobody asked for": status(200, b"\x0b\x02\x80Hi\x03", {"Content-Encoding": "gzip, br"}),
    "an encoding that isn't the one it names": status(200, b"no gzip", {"Content-Encoding": "gzip"}),
    "half an event": steps(body(b'data: {"choices": [{"delta": {"con'), Wire.end),
    "no JSON": steps(event("{"), Wire.end),
}
LASTING: dict[str, Script] = {"a status": status(418), "an error inside": steps(event(LASTS), Wire.end)}


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


@pytest.mark.parametrize(("delta", "kind"), [(says("Hi"), "content"), (thinks("Hi"), "reasoning")])
async def test_nothing_is_tried_again_after_a_delta(upstream: ScriptedUpstream, delta: Step, kind: str) -> None:
    upstream.play(steps(delta, event(PASSES), Wire.end))
    async with adapter(upstream.base_url, retries=(0.01, 0.02)) as openrouter:
        outcome = await read(openrouter)
    assert outcome.failed(UpstreamRefused, 503).retryable
    assert (outcome.texts, len(upstream.requests)) == ([(kind, "Hi")], 1)


async def test_upstream_that_cannot_be_reached_is_tried_again_and_then_named(caplog: pytest.LogCaptureFixture) -> None:
    async with adapter(f"http://127.0.0.1:{closed_port()}", retries=(0.01, 0.02)) as openrouter:
        error = (await read(openrouter)).failed(UpstreamUnreachable, 503)
        assert "OPENROUTER_BASE_URL" in error.message and error.retryable
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


async def test_a_retry_after_is_waited_for(upstream: ScriptedUpstream) -> None:
    async with adapter(upstream.base_url, retries=(0.01,)) as openrouter:
        upstream.queue(status(429, headers={"Retry-After": "0.2"}))
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


@pytest.mark.parametrize("form", ["30.1", "99999999999999999999", "a date"])
async def test_a_longer_retry_after_fails_at_once_and_is_told(upstream: ScriptedUpstream, form: str) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=120), usegmt=True)
    upstream.play(status(429, headers={"Retry-After": date if form == "a date" else form}))
    async with adapter(upstream.base_url, retries=(0.0, 0.0)) as openrouter:
        error = (await bounded(read(openrouter))).failed(UpstreamRefused, 429)
    assert error.retry_after == (pytest.approx(120, abs=5) if form == "a date" else float(form))
    assert len(upstream.requests) == 1


async def test_a_retry_after_that_makes_no_sense_is_ignored(upstream: ScriptedUpstream) -> None:
    upstream.queue(status(429, headers={"Retry-After": "soon"}))
    async with adapter(upstream.base_url, retries=(0.0,)) as openrouter:
        assert (await bounded(read(openrouter))).texts == [("content", ANSWER)]


# Timers


async def test_a_connection_that_is_not_made_in_time_is_given_up() -> None:
    with full_port() as port:
        async with adapter(f"http://127.0.0.1:{port}", connect=0.1) as openrouter:
            error = (await bounded(read(openrouter))).failed(UpstreamTimeout, 504)
            await settled(openrouter)
            assert slots(openrouter) == (0, 0)
    assert error.message == "Upstream took too long to accept a connection." and error.retryable


async def test_a_handshake_that_nobody_answers_counts_as_connecting(upstream: ScriptedUpstream) -> None:
    async with adapter(upstream.base_url.replace("http:", "https:"), connect=0.5) as openrouter:
        (await bounded(read(openrouter))).failed(UpstreamTimeout, 504)
        await settled(openrouter)
        assert slots(openrouter) == (0, 0)
        await eventually(lambda: upstream.accepted == 1)
        await eventually(lambda: upstream.connections == 0)


@pytest.mark.parametrize(("script", "text"), [(silence, ""), (hanging(), ""), (hanging("Hi"), "Hi")])
async def test_an_upstream_that_has_the_question_and_is_silent_is_not_asked_again(
    upstream: ScriptedUpstream, script: Script, text: str
) -> None:
    """Each try might be generated and billed; the design's list of what is tried again has no silence in it."""
    upstream.play(script)
    async with adapter(upstream.base_url, read=0.5, retries=(0.0, 0.0)) as openrouter:
        outcome = await bounded(read(openrouter))
        error = outcome.failed(UpstreamSilent, 504)
        assert "silent" in error.message and error.retryable
        assert outcome.texts == ([("content", text)] if text else [])
        assert len(upstream.requests) == 1
        await assert_nothing_left(openrouter, upstream)


NO_DELTAS: dict[str, Step] = {
    "comments": Wire.comment,
    "empty deltas": says(""),
    "bare colons": body(b":\n"),
    "empty chunks": event({}),
}


@pytest.mark.parametrize("step", NO_DELTAS.values(), ids=NO_DELTAS)
async def test_what_is_no_delta_does_not_count_as_one(upstream: ScriptedUpstream, step: Step) -> None:
    upstream.play(steps(says("Hi"), repeats(step, pauses(0.02))))
    async with adapter(upstream.base_url, delta=0.5) as openrouter:
        outcome = await bounded(read(openrouter))
        assert outcome.failed(UpstreamSilent, 504).retryable
        assert outcome.texts == [("content", "Hi")]
        await assert_nothing_left(openrouter, upstream)


async def test_comments_keep_a_slow_upstream_alive(upstream: ScriptedUpstream) -> None:
    upstream.play(steps(repeats(Wire.comment, pauses(0.05), times=25), says("Hi"), Wire.done))
    async with adapter(upstream.base_url, read=1.0, delta=5.0) as openrouter:
        assert (await read(openrouter)).texts == [("content", "Hi")]


async def test_every_delta_starts_the_patience_anew(upstream: ScriptedUpstream) -> None:
    upstream.play(steps(repeats(says("x"), pauses(0.05), times=25), Wire.done))
    async with adapter(upstream.base_url, delta=1.0) as openrouter:
        assert (await read(openrouter)).texts == [("content", "x" * 25)]


async def test_usage_is_waited_for_after_the_finish_reason(upstream: ScriptedUpstream) -> None:
    upstream.play(steps(STOP, pauses(0.1), event({"choices": [], "usage": USAGE}), Wire.done))
    async with adapter(upstream.base_url) as openrouter:
        outcome = await bounded(read(openrouter))
        assert (outcome.end, outcome.usage) == (Finish("stop"), USAGE)


@pytest.mark.parametrize("then", [Wire.hang, repeats(Wire.comment, pauses(0.02))], ids=["silence", "comments"])
async def test_after_the_finish_reason_only_the_tail_is_waited_for(upstream: ScriptedUpstream, then: Step) -> None:
    """Comments don't count here either."""
    upstream.play(steps(says("Hi"), finishes, then))
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


@pytest.mark.parametrize("script", [silence, hanging("Hi")], ids=["before the head", "in the answer"])
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
    scripts = [silence, hanging(), hanging("Hi"), answer(pieces=20)]

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
    async with adapter(upstream.base_url.replace("http:", "https:"), connect=1.0) as openrouter:
        reading = asyncio.create_task(read(openrouter))
        await eventually(lambda: upstream.accepted == 1)
        await cancelled(reading)
        await settled(openrouter)
        assert slots(openrouter) == (0, 0)
        await eventually(lambda: upstream.connections == 0)


PHASES = {
    "before the head": silence,
    "after the head": hanging(),
    "in the middle": hanging("Hi"),
    "in an error": HALF_AN_ERROR,
    "in the tail": steps(says("Hi"), STOP, Wire.hang),
}


@pytest.mark.parametrize("script", PHASES.values(), ids=PHASES)
async def test_cancelling_closes_the_connection_at_once(upstream: ScriptedUpstream, script: Script) -> None:
    upstream.play(script)
    async with adapter(upstream.base_url) as openrouter:
        outcome = Outcome()
        reading = asyncio.create_task(read(openrouter, outcome))
        request = await upstream.called()
        await eventually(lambda: outcome.values or script in (silence, HALF_AN_ERROR))
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
    upstream.play(hanging("Hi"))
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


# Memory


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
        error = (await bounded(read(openrouter))).failed(UpstreamRefused, 400)
        assert ("the reason" in error.message) is is_told
