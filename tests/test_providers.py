"""What servers send in this protocol, one recorded shape each: the text, the error and the end are found by rule.

The bytes are made here, in shapes of recordings and reports of 2025 and 2026. Each is read cut anywhere, and once more
through the running service.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from openrouter import Timers
from result import Finish, Report
from tests.support.relay import Relay, serving
from tests.support.upstream import ScriptedUpstream, UpstreamRequest, Wire
from upstream.completion import Completion
from upstream.errors import UpstreamError
from upstream.values import Delta

KEY = "sk-or-v1-0123456789abcdef"
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


@dataclass(frozen=True)
class Sent:
    """A response's body and head, and what it says; an `error` is its code and a part of its message."""

    body: bytes
    content: str = "Four"
    reasoning: str = ""
    finish_reason: str | None = "stop"
    usage: dict[str, Any] | None = None
    error: tuple[int, str] | None = None
    retryable: bool = True
    tries: int = 1
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def chunk(delta: object = None, finish_reason: object = None, **choice: object) -> dict[str, Any]:
    return {"id": "gen-7", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, **choice}]}


def says(text: str, finish_reason: object = None, **choice: object) -> dict[str, Any]:
    return chunk({"content": text}, finish_reason, **choice)


def message(text: str, finish_reason: object = "stop", **more: object) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **more}, "finish_reason": finish_reason}
    return {"id": "gen-7", "object": "chat.completion", "choices": [choice], "usage": USAGE}


def lines(*events: object) -> list[bytes]:
    return [event.encode() if isinstance(event, str) else json.dumps(event).encode() for event in events]


def sse(*events: object, field: bytes = b"data: ", end: bytes = b"\n\n") -> bytes:
    return b"".join(field + line + end for line in lines(*events))


STOP = chunk({}, "stop")
DONE = "[DONE]"
FOUR = says("Fo"), says("ur")
TOKENS = {"error": {"code": 400, "message": "Token limit reached"}, "usage": USAGE}

TEXT = {
    "OpenRouter": Sent(
        b": OPENROUTER PROCESSING\n\n"
        + sse(
            chunk(
                {
                    "content": "",
                    "role": "assistant",
                    "reasoning": "Hm",
                    "reasoning_details": [{"type": "reasoning.text", "text": "Hm", "index": 0}],
                }
            ),
            says("Four"),
            chunk({"content": "", "reasoning": None}, "stop"),
            chunk({"content": ""}, "stop") | {"usage": USAGE},
            DONE,
        ),
        reasoning="Hm",
        usage=USAGE,
    ),
    "Mistral's magistral": Sent(
        sse(
            chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Two and "}]}]}),
            chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "two"}], "closed": True}]}),
            chunk({"content": [{"type": "text", "text": "Fo"}]}),
            chunk({"content": [{"type": "text", "text": "ur"}, {"type": "reference", "reference_ids": [1]}]}, "stop"),
            DONE,
        ),
        reasoning="Two and two",
    ),
    "a refusal of OpenAI's": Sent(
        sse(chunk({"content": None, "refusal": "I can't help"}), chunk({"refusal": " with that."}), STOP, DONE),
        "I can't help with that.",
    ),
    "reasoning in details alone": Sent(
        sse(
            chunk({"content": "", "reasoning_details": [{"type": "reasoning.summary", "summary": "Su"}]}),
            chunk(
                {
                    "reasoning_details": [
                        {"type": "reasoning.text", "text": "m"},
                        {"type": "reasoning.encrypted", "data": "x"},
                    ]
                }
            ),
            says("Four"),
            STOP,
            DONE,
        ),
        reasoning="Sum",
    ),
    "reasoning repeated in details at the end": Sent(
        sse(
            chunk({"reasoning": "Hm"}),
            says("Four"),
            chunk({"reasoning_details": [{"type": "reasoning.text", "text": "Hm"}]}, "stop"),
            DONE,
        ),
        reasoning="Hm",
    ),
    "llama.cpp's and LM Studio's reasoning": Sent(
        sse(chunk({"role": "assistant", "content": None, "reasoning_content": "Hm"}), *FOUR, STOP, DONE), reasoning="Hm"
    ),
    "vLLM: nulls and empty lists on every chunk": Sent(
        sse(
            chunk({"content": None, "reasoning_content": "Hm", "tool_calls": []}, None, logprobs=None),
            chunk({"content": "Four", "reasoning_content": None, "tool_calls": []}, None, logprobs=None),
            STOP,
            DONE,
        ),
        reasoning="Hm",
    ),
    "reasoning and text in one chunk": Sent(
        sse(chunk({"reasoning": "Hm", "content": "Fo"}), chunk({"reasoning": "", "content": "ur"}, "stop"), DONE),
        reasoning="Hm",
    ),
    "Perplexity: a message that grows beside the deltas": Sent(
        sse(
            says("Fo", message={"role": "assistant", "content": "Fo"}),
            says("ur", message={"role": "assistant", "content": "Four"}),
            says("", "stop", message={"role": "assistant", "content": "Four"}),
            DONE,
        )
    ),
    "a message that grows without deltas": Sent(
        sse(
            chunk(None, message={"content": "Fo"}),
            chunk({}, message={"content": "Four"}),
            chunk({"role": "assistant"}, "stop", message={"content": "Four"}),
        )
    ),
    "messages that don't grow": Sent(
        sse(chunk(None, message={"content": "Fo"}), chunk(None, message={"content": "ur"}), STOP, DONE)
    ),
    "text of the old protocol": Sent(
        sse(chunk(None, text="Fo"), chunk({}, text="ur"), chunk(None, "stop", text=""), DONE)
    ),
    "text in the choice and in the delta": Sent(
        sse(chunk({"content": "Fo"}, text="Fo"), chunk({"content": "ur"}, text="ur"), STOP, DONE)
    ),
    "a delta that is a string": Sent(sse(chunk("Fo"), chunk("ur", "stop"), DONE)),
}

ENDS = {
    "a finish reason on every chunk": Sent(sse(says("Fo", "stop"), says("ur", "stop"), DONE)),
    "a finish reason on every chunk of the reasoning": Sent(
        sse(chunk({"reasoning": "Hm"}, "stop"), chunk({"reasoning": "m"}, "stop"), says("Four", "stop"), DONE),
        reasoning="Hmm",
    ),
    "a finish reason with the last text": Sent(sse(says("Fo"), says("ur", "length")), finish_reason="length"),
    "a finish reason before the last text": Sent(sse(says("Fo"), chunk({}, "stop"), says("ur"), DONE)),
    "finish reasons that are none": Sent(
        sse(says("Fo", ""), says("ur", "null"), chunk({}, "length")), finish_reason="length"
    ),
    "two finish reasons": Sent(sse(says("Four"), chunk({}, "length"), chunk({}, "stop"), DONE), finish_reason="length"),
    "no [DONE]": Sent(sse(*FOUR, STOP)),
    "no finish reason": Sent(sse(*FOUR, DONE), finish_reason=None),
    "reasoning that took all tokens": Sent(
        sse(chunk({"reasoning": "Hm"}), chunk({}, "length"), DONE), "", "Hm", "length"
    ),
    "Moonshot: usage in the choice": Sent(sse(*FOUR, chunk({}, "stop", usage=USAGE), DONE), usage=USAGE),
    "usage as a preview, then with the end": Sent(
        sse(says("Fo") | {"usage": {"prompt_tokens": 9}}, says("ur"), STOP, {"choices": [], "usage": USAGE}, DONE),
        usage=USAGE,
    ),
}

FRAMING = {
    "events in one block": Sent(sse(*FOUR, STOP, DONE, end=b"\n") + b"\n"),
    "events in blocks of two, CRLF": Sent(sse(*FOUR, end=b"\r\n") + b"\r\n" + sse(STOP, DONE, end=b"\r\n") + b"\r\n"),
    "no blank line at all": Sent(sse(*FOUR, STOP, DONE, end=b"\n")),
    "finish and [DONE] in one block": Sent(sse(*FOUR) + sse(STOP, DONE, end=b"\n") + b"\n"),
    "JSON over several lines": Sent(
        b"".join(sse(*json.dumps(event, indent=1).split("\n"), end=b"\n") + b"\n" for event in (*FOUR, STOP))
        + b"data: [DONE]\n\n"
    ),
    "JSON over several lines without blank lines": Sent(
        b"".join(sse(*json.dumps(event, indent=1).split("\n"), end=b"\n") for event in (*FOUR, STOP))
        + b"data: [DONE]\n"
    ),
    "JSON over several lines, of which one has the field": Sent(
        b"".join(b"data: " + json.dumps(event, indent=1).encode() + b"\n\n" for event in (*FOUR, STOP))
    ),
    "an object that ends in the middle of its lines": Sent(
        b'data: {"choices": [{"delta": {"content": "Four"}\ndata: , "finish_reason": "stop"}\ndata: ]}\n\n'
    ),
    "no space after the colon": Sent(sse(*FOUR, STOP, DONE, field=b"data:")),
    "names and ids": Sent(sse(*FOUR, STOP, DONE, field=b"event: message\nid: 1\ndata: ")),
    "names a blank line before their data": Sent(sse(*FOUR, STOP, DONE, field=b"event: message\n\ndata: ")),
    "a last event without its blank line": Sent(sse(*FOUR) + b"data: " + lines(STOP)[0]),
    "a last text without its blank line": Sent(sse(says("Fo")) + b"data: " + lines(says("ur", "stop"))[0] + b"\n"),
    "a byte order mark": Sent(b"\xef\xbb\xbf" + sse(*FOUR, STOP, DONE)),
    "lines of JSON without a field": Sent(sse(*FOUR, STOP, DONE, field=b"", end=b"\n")),
    "a raw tab in a string": Sent(b'data: {"choices": [{"delta": {"content": "a\tb"}}]}\n\n' + sse(STOP), "a\tb"),
}

KINDS = [
    "",
    "text/plain; charset=utf-8",
    "application/octet-stream",
    "application/json",
    "text/event-stream;charset=utf-8",
]

DECLARED = {
    **{f"events as {kind!r}": Sent(sse(*FOUR, STOP, DONE), headers={"Content-Type": kind}) for kind in KINDS},
    **{
        f"a whole answer as {kind!r}": Sent(
            json.dumps(message("Four")).encode(), usage=USAGE, headers={"Content-Type": kind}
        )
        for kind in KINDS
    },
    "a whole answer over several lines": Sent(
        b"\n" + json.dumps(message("Four", reasoning="Hm"), indent=2).encode(), reasoning="Hm", usage=USAGE
    ),
    "a whole answer without a finish reason": Sent(
        json.dumps(message("Four", None)).encode(), finish_reason=None, usage=USAGE
    ),
    "a whole answer as an event": Sent(sse(message("Four"), DONE), usage=USAGE),
    "201": Sent(sse(*FOUR, STOP, DONE), status=201),
    "br": Sent(b"\x0b\x02\x80Hi\x03", "", error=(502, "encoded as br,"), headers={"Content-Encoding": "br"}),
    "zstd": Sent(b"(\xb5/\xfd", "", error=(502, "encoded as zstd,"), headers={"Content-Encoding": "zstd"}),
    "gzip under br": Sent(b"x", "", error=(502, "gzip, br"), headers={"Content-Encoding": "gzip, br"}),
}


def fails(body: object, code: int, words: str, **more: Any) -> Sent:
    """An error before any text, as bytes or as JSON; those of the request have one try, passing ones three."""
    octets = body if isinstance(body, bytes) else json.dumps(body).encode()
    passes = code in (408, 429) or code >= 500
    return Sent(octets, "", error=(code, words), **{"retryable": passes, "tries": 3 if passes else 1} | more)


CONTEXT = {
    "code": 400,
    "message": "the request exceeds the available context size",
    "type": "exceed_context_size_error",
}
SHAPES: dict[str, tuple[object, str]] = {
    "an error with a message": ({"error": {"message": "Because", "code": "x"}}, ": Because"),
    "an error that is text (Ollama)": ({"error": "Because"}, ": Because"),
    "a message (Cohere, Bedrock)": ({"message": "Because"}, ": Because"),
    "a detail (FastAPI)": ({"detail": "Because"}, ": Because"),
    "details (pydantic)": ({"detail": [{"loc": ["body"], "msg": "Be"}, {"msg": "cause"}]}, ": Be; cause"),
    "a detail with an error (DeepInfra)": ({"detail": {"error": "Because"}}, ": Because"),
    "a list (Google)": ([{"error": {"message": "Because", "status": "INTERNAL"}}], ": Because"),
    "an object that calls itself an error (vLLM)": ({"object": "error", "message": "Because"}, ": Because"),
    "a message with details (Mistral)": (
        {"object": "error", "message": {"detail": [{"msg": "Because"}]}, "type": "x", "code": "1500"},
        ": Because",
    ),
    "an error inside an error": ({"error": {"error": {"message": "Because"}}}, ": Because"),
    "a phrase and a message (NestJS)": ({"error": "Bad Gateway", "message": "Because"}, ": Because"),
    "a sentence as the code (xAI)": ({"code": "It isn't there", "error": "Because"}, ": Because"),
    "errors (Cloudflare)": ({"success": False, "errors": [{"code": 7003, "message": "Because"}]}, ": Because"),
}

ERRORS = {
    **{f"{name}, as an event": fails(sse(body), 502, words) for name, (body, words) in SHAPES.items()},
    **{
        f"{name}, as the whole body of {kind!r}": fails(body, 502, words, headers={"Content-Type": kind})
        for name, (body, words) in SHAPES.items()
        for kind in ("text/event-stream", "application/json")
    },
    **{f"{name}, as a 422": fails(body, 422, words, status=422) for name, (body, words) in SHAPES.items()},
    **{
        f"{name}, as a field": fails(b"error: %b\n\ndata: [DONE]\n\n" % json.dumps(body).encode(), 502, words)
        for name, (body, words) in SHAPES.items()
    },
    "llama.cpp: a field": fails(b"error: %b\n\ndata: [DONE]\n\n" % json.dumps(CONTEXT).encode(), 400, "shorter one"),
    "llama.cpp: in one block": fails(b"error: %b\ndata: [DONE]\n\n" % json.dumps(CONTEXT).encode(), 400, "shorter one"),
    "Groq: a name": fails(b'event: error\ndata: {"message": "Because", "code": 429}\n\n', 429, ": Because"),
    "a name a blank line before": fails(b"event: error\n\ndata: Because\n\n", 502, ": Because"),
    "OpenAI: a word": fails({"error": {"message": "m", "code": "context_length_exceeded"}}, 400, "shorter one"),
    "vLLM: a word": fails(
        sse({"error": {"message": "Because", "type": "BadRequestError", "code": 400}}, DONE), 400, "Because"
    ),
    "a word alone": fails(sse({"error": {"message": "Because", "type": "RateLimitError"}}), 429, ": Because"),
    "a page as a 502": fails(
        b"<html><h1>Secret words</h1>", 502, "status 502", status=502, headers={"Content-Type": "text/html"}
    ),
    "text as a 400": fails(b"Because", 400, ": Because", status=400, headers={"Content-Type": "text/plain"}),
    "an event as a 400": fails(sse({"error": {"message": "Because"}}), 400, ": Because", status=400),
    "a page in a message": fails(
        {"error": {"message": "<!DOCTYPE html><p>Secret words"}}, 502, "status 502, so try again"
    ),
    "text as an event": fails(b"data: Because\n\n", 502, ": Because", tries=1),
    "text as the body": fails(b"Because", 502, ": Because", tries=1),
    "a page as the body": fails(b"<!doctype html>\n<p>Secret words\n{\n}\n", 502, "OPENROUTER_BASE_URL", tries=1),
    "a page as an event": fails(b"data: <html>Secret words</html>\n\n", 502, "isn't JSON", tries=1),
    "text, then [DONE]": fails(b"Because\n\ndata: [DONE]\n\n", 502, ": Because", tries=1),
    "text instead of the rest": Sent(
        sse(*FOUR) + b"stream error: Because\n", error=(502, ": stream error: Because"), finish_reason=None
    ),
    "a 404 that is text (Go)": fails(b"404 page not found", 404, "OPENROUTER_BASE_URL", status=404),
    "a 404 that is a page": fails(b"<html>no model, no provider", 404, "OPENROUTER_BASE_URL", status=404),
    "a 404 of FastAPI": fails({"detail": "Not Found"}, 404, "OPENROUTER_BASE_URL", status=404),
    "a 405": fails({"detail": "Method Not Allowed"}, 405, "OPENROUTER_BASE_URL", status=405),
    "a 404 without a body": fails(b"", 404, "OPENROUTER_BASE_URL", status=404),
    "a 404 of OpenRouter": fails({"error": {"message": "No endpoints found"}}, 404, "no provider", status=404),
    "a 404 of Ollama": fails({"error": "model 'x' not found"}, 404, "no provider", status=404),
    "an error after a finish reason, with usage": Sent(
        sse(says("Four"), chunk({}, "length"), TOKENS), error=(400, "Token limit"), usage=USAGE, retryable=False
    ),
    "an error after a finish reason, before any text": Sent(
        sse(chunk({}, "length"), {"error": {"message": "Token limit reached"}, "usage": USAGE}),
        "",
        error=(502, "Token limit"),
        usage=USAGE,
    ),
    "an error by name, with usage": Sent(
        sse(says("Four")) + b"event: error\n" + sse({"message": "Because", "usage": USAGE}),
        error=(502, ": Because"),
        usage=USAGE,
    ),
    "tool calls": Sent(
        sse(chunk({"content": None, "tool_calls": [{"index": 0, "id": "call_1"}]}), chunk({}, "tool_calls"), DONE),
        "",
        error=(502, "tool calls"),
        retryable=False,
    ),
    "tool calls that only the finish reason tells of": Sent(
        sse(chunk({"reasoning": "Hm"}), chunk({}, "tool_calls"), DONE),
        "",
        "Hm",
        error=(502, "tool calls"),
        retryable=False,
    ),
    "tool calls in a whole answer": Sent(
        json.dumps(message("", "tool_calls", tool_calls=[{"id": "call_1"}])).encode(),
        "",
        usage=USAGE,
        error=(502, "tool calls"),
        retryable=False,
    ),
    "images": Sent(
        sse(chunk({"content": "", "images": [{"type": "image_url", "image_url": {"url": "data:,"}}]}), STOP, DONE),
        "",
        error=(502, "images"),
        retryable=False,
    ),
    "audio": Sent(
        sse(chunk({"audio": {"id": "a", "data": "AAAA"}}), STOP, DONE), "", error=(502, "audio"), retryable=False
    ),
    "images, cut off": Sent(sse(chunk({"images": [{"image_url": {"url": "data:,"}}]})), "", error=(502, "middle")),
    "a last text without its blank line, and no end": Sent(
        sse(says("Fo")) + b"data: " + lines(says("ur"))[0], error=(502, "middle")
    ),
    "an only text without its blank line, and no end": Sent(b"data: " + lines(says("Four"))[0], error=(502, "middle")),
    "text with an image": Sent(sse(*FOUR, chunk({"images": [{"image_url": {"url": "data:,"}}]}), STOP, DONE)),
}

ALL = TEXT | ENDS | FRAMING | DECLARED | ERRORS
IN_STREAM = {name: sent for name, sent in ALL.items() if sent.status < 300 and "Content-Encoding" not in sent.headers}


def assert_read(sent: Sent, pieces: list[bytes]) -> None:
    completion = Completion(KEY)
    values: list[object] = []
    for piece in pieces:
        if not completion.is_over:
            values += completion.feed(piece)
    rest, end = completion.finish()
    values += rest
    texts = {
        kind: "".join(v.text for v in values if isinstance(v, Delta) and v.kind == kind)
        for kind in ("content", "reasoning")
    }
    reports = [value for value in values if isinstance(value, Report)] or [Report()]
    assert texts == {"content": sent.content, "reasoning": sent.reasoning}
    assert json.loads(reports[-1].usage or "null") == sent.usage
    if sent.error is None:
        assert end == Finish(sent.finish_reason)
    else:
        assert isinstance(end, UpstreamError) and end.failure.code == sent.error[0]
        assert sent.error[1] in end.failure.message and "Secret" not in end.failure.message
        assert end.failure.retryable == sent.retryable


@pytest.mark.parametrize("sent", IN_STREAM.values(), ids=IN_STREAM)
def test_what_a_server_sends_is_read_the_same_wherever_it_is_cut(sent: Sent) -> None:
    assert_read(sent, [sent.body])
    assert_read(sent, [sent.body[i : i + 1] for i in range(len(sent.body))])
    for cut in range(len(sent.body)):
        assert_read(sent, [sent.body[:cut], sent.body[cut:]])


@pytest.fixture(scope="module")
async def service() -> AsyncIterator[tuple[Relay, ScriptedUpstream]]:
    async with ScriptedUpstream() as upstream, serving(upstream, timers=Timers(retries=(0.0, 0.0))) as relay:
        yield relay, upstream


@pytest.mark.parametrize("sent", ALL.values(), ids=ALL)
async def test_what_a_server_sends_reaches_the_reader(sent: Sent, service: tuple[Relay, ScriptedUpstream]) -> None:
    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await wire.head(sent.status, {"Content-Length": str(len(sent.body))} | sent.headers)
        await wire.raw(sent.body)
        wire.close()

    relay, upstream = service
    upstream.play(script)
    asked = len(upstream.requests)
    conversation_id = await relay.ask()
    transcript = await relay.read(conversation_id)
    [_, reply] = await relay.messages(conversation_id)
    assert transcript.content == reply["content"] == sent.content
    assert (reply["reasoning"] or "") == sent.reasoning
    assert (reply["usage"], len(upstream.requests) - asked) == (sent.usage, sent.tries)
    if sent.error is None:
        assert (reply["status"], reply["finish_reason"]) == ("complete", sent.finish_reason)
    else:
        assert (reply["status"], reply["error"]["code"]) == ("failed", sent.error[0])
        assert sent.error[1] in reply["error"]["message"] and "Secret" not in reply["error"]["message"]
        assert reply["error"]["retryable"] == sent.retryable


async def test_a_finish_reason_on_every_chunk_cuts_nothing_however_slowly_they_come() -> None:
    """Each event moves the end, comments don't: 5 s without one end an answer that was promised to end."""

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await wire.head()
        for word in ["One ", "two ", "three ", "four"]:
            await wire.event(says(word, "stop"))
            for _number in range(6):
                await asyncio.sleep(0.05)
                await wire.comment()
        while not wire.gone.is_set():
            await wire.comment()
            await asyncio.sleep(0.05)

    async with ScriptedUpstream() as upstream, serving(upstream, timers=Timers(tail=0.6)) as relay:
        upstream.play(script)
        conversation_id = await relay.ask()
        assert (await relay.read(conversation_id)).content == "One two three four"
        assert (await relay.messages(conversation_id))[-1]["status"] == "complete"


async def test_events_without_text_for_ever_after_a_finish_reason_end_the_answer() -> None:
    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await wire.event(says("Four", "stop"))
        while not wire.gone.is_set():
            await wire.event({"choices": []})
            await asyncio.sleep(0.02)

    async with ScriptedUpstream() as upstream, serving(upstream, timers=Timers(tail=0.5, delta=1.0)) as relay:
        upstream.play(script)
        conversation_id = await relay.ask()
        assert (await relay.read(conversation_id)).content == "Four"
        assert (await relay.messages(conversation_id))[-1]["status"] == "complete"


async def test_a_question_after_a_failed_reply_is_sent_with_the_one_before_as_one_turn() -> None:
    async with ScriptedUpstream() as upstream, serving(upstream, timers=Timers(retries=())) as relay:

        async def script(_: UpstreamRequest, wire: Wire) -> None:
            await wire.delta("Half")
            await wire.error(400, "No")
            await wire.end()

        upstream.queue(script)
        conversation_id = await relay.ask("One")
        await relay.read(conversation_id)
        await relay.client.post(f"/conversations/{conversation_id}/messages", json={"content": "Two"})
        await relay.read(conversation_id)
        assert (await upstream.called(2)).body["messages"] == [{"role": "user", "content": "One\n\nTwo"}]
