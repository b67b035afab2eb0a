"""What servers send in this protocol, one recorded shape each: the text, the error and the end are found by rule.

The bytes are made here, in shapes of recordings and reports of 2025 and 2026. Each is read cut anywhere, without I/O,
and one of each family once more through the running service.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from openrouter import Timers
from result import Finish
from tests.support import scripts
from tests.support.completions import DONE, KEY, chunk, raw, read, says, sse
from tests.support.relay import Relay, serving
from tests.support.upstream import ScriptedUpstream, Wire
from upstream.errors import UpstreamError
from upstream.refusals import decoded, refusal

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


@dataclass(frozen=True)
class Sent:
    """A response's body, and what it says; an `error` is its code and a part of its message."""

    body: bytes
    content: str = "Four"
    reasoning: str = ""
    finish_reason: str | None = "stop"
    usage: dict[str, Any] | None = None
    error: tuple[int, str] | None = None
    retryable: bool = True
    again: bool = False
    """Whether the relay may ask again by itself."""
    status: int = 200


def message(text: str, finish_reason: object = "stop", **more: object) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **more}, "finish_reason": finish_reason}
    return {"id": "gen-7", "object": "chat.completion", "choices": [choice], "usage": USAGE}


STOP = chunk({}, "stop")
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
    "reasoning under two names": Sent(
        sse(chunk({"reasoning": "Hm", "reasoning_content": "Hm"}), *FOUR, STOP, DONE), reasoning="Hm"
    ),
    "bytes that aren't UTF-8": Sent(
        b'data: {"choices": [{"delta": {"content": "a\xffb"}}]}\n\n' + sse(STOP), "a\ufffdb"
    ),
    "half a surrogate pair at the end": Sent(sse(says("a\ud83d"), STOP), "a\ufffd"),
    "half a surrogate pair before [DONE]": Sent(sse(says("a\ud83d"), DONE), "a\ufffd", finish_reason=None),
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
    "[DONE] with blanks around it": Sent(sse(*FOUR, STOP, " [DONE] ")),
    "anything after [DONE]": Sent(
        sse(*FOUR, STOP, DONE, says("more", "length") | {"usage": USAGE}, {"error": "late"}, "no JSON", DONE)
    ),
    "an error of null": Sent(sse(*FOUR, STOP | {"error": None}, DONE)),
    "reasoning that took all tokens": Sent(
        sse(chunk({"reasoning": "Hm"}), chunk({}, "length"), DONE), "", "Hm", "length"
    ),
    "Moonshot: usage in the choice": Sent(sse(*FOUR, chunk({}, "stop", usage=USAGE), DONE), usage=USAGE),
    "usage as a preview, then with the end": Sent(
        sse(says("Fo") | {"usage": {"prompt_tokens": 9}}, says("ur"), STOP, {"choices": [], "usage": USAGE}, DONE),
        usage=USAGE,
    ),
    "usage without choices, null around it": Sent(
        sse(*FOUR, STOP | {"usage": None}, {"usage": USAGE}, {"choices": [], "usage": None}, DONE), usage=USAGE
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
        sse(*(json.dumps(event, indent=1) for event in (*FOUR, STOP)))
    ),
    "an object that ends in the middle of its lines": Sent(
        b'data: {"choices": [{"delta": {"content": "Four"}\ndata: , "finish_reason": "stop"}\ndata: ]}\n\n'
    ),
    "no space after the colon": Sent(sse(*FOUR, STOP, DONE, field=b"data:")),
    "names and ids": Sent(sse(*FOUR, STOP, DONE, field=b"event: message\nid: 1\ndata: ")),
    "names a blank line before their data": Sent(sse(*FOUR, STOP, DONE, field=b"event: message\n\ndata: ")),
    "a last event without its blank line": Sent(sse(*FOUR) + b"data: " + raw(STOP)),
    "a last text without its blank line": Sent(sse(says("Fo")) + b"data: " + raw(says("ur", "stop")) + b"\n"),
    "a byte order mark": Sent(b"\xef\xbb\xbf" + sse(*FOUR, STOP, DONE)),
    "lines of JSON without a field": Sent(sse(*FOUR, STOP, DONE, field=b"", end=b"\n")),
    "a raw tab in a string": Sent(b'data: {"choices": [{"delta": {"content": "a\tb"}}]}\n\n' + sse(STOP), "a\tb"),
}

WHOLE = {
    "a whole answer": Sent(raw(message("Four")), usage=USAGE),
    "a whole answer over several lines": Sent(
        b"\n" + json.dumps(message("Four", reasoning="Hm"), indent=2).encode(), reasoning="Hm", usage=USAGE
    ),
    "a whole answer without a finish reason": Sent(raw(message("Four", None)), finish_reason=None, usage=USAGE),
    "a whole answer as an event": Sent(sse(message("Four"), DONE), usage=USAGE),
}


def fails(body: object, code: int, words: str, **more: Any) -> Sent:
    """An error before any text, as bytes or as JSON; one that passes may be asked about again."""
    passes = code in (408, 429) or code >= 500
    octets = body if isinstance(body, bytes) else raw(body)
    return Sent(octets, "", error=(code, words), **{"retryable": passes, "again": passes} | more)


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
    "an error that is a list": ({"error": ["Because"]}, ": Because"),
    "an error inside an error": ({"error": {"error": {"message": "Because"}}}, ": Because"),
    "a phrase and a message (NestJS)": ({"error": "Bad Gateway", "message": "Because"}, ": Because"),
    "a sentence as the code (xAI)": ({"code": "It isn't there", "error": "Because"}, ": Because"),
    "errors (Cloudflare)": ({"success": False, "errors": [{"code": 7003, "message": "Because"}]}, ": Because"),
}

FIELD = b"error: %b\n\ndata: [DONE]\n\n"
IMAGES = chunk({"content": "", "images": [{"type": "image_url", "image_url": {"url": "data:,"}}]})
CALLS = [{"index": 0, "id": "call_1"}]

ERRORS = {
    **{f"{name}, as an event": fails(sse(body), 502, words) for name, (body, words) in SHAPES.items()},
    **{f"{name}, as the whole body": fails(body, 502, words) for name, (body, words) in SHAPES.items()},
    **{f"{name}, as a field": fails(FIELD % raw(body), 502, words) for name, (body, words) in SHAPES.items()},
    "llama.cpp: a field": fails(FIELD % raw(CONTEXT), 400, "shorter one"),
    "llama.cpp: in one block": fails(b"error: %b\ndata: [DONE]\n\n" % raw(CONTEXT), 400, "shorter one"),
    "Groq: a name": fails(b'event: error\ndata: {"message": "Because", "code": 429}\n\n', 429, ": Because"),
    "a name a blank line before": fails(b"event: error\n\ndata: Because\n\n", 502, ": Because"),
    "OpenAI: a word": fails({"error": {"message": "m", "code": "context_length_exceeded"}}, 400, "shorter one"),
    "vLLM: a word": fails(sse({"error": {"message": "m", "type": "BadRequestError", "code": 400}}, DONE), 400, ": m"),
    "a word alone": fails(sse({"error": {"message": "Because", "type": "RateLimitError"}}), 429, ": Because"),
    "a finish reason alone": fails(sse(chunk({"content": ""}, "error")), 502, "Upstream failed with status 502"),
    "a finish reason, and nothing in the error": fails(sse(chunk(None, "error", error={})), 502, "status 502"),
    "in the choice": fails(sse(chunk({}, error={"code": 504, "message": "Because"})), 504, ": Because"),
    "documented": fails(sse(chunk({}, "error") | {"error": {"code": 503, "message": "Because"}}), 503, ": Because"),
    "nothing in it but a key": fails(sse({"choices": [], "error": {"x": None}}), 502, "status 502"),
    "a page in a message": fails({"error": {"message": "<!DOCTYPE html><p>Secret words"}}, 502, "status 502, so try"),
    "text as an event": fails(b"data: Because\n\n", 502, ": Because", again=False),
    "text as the body": fails(b"Because", 502, ": Because", again=False),
    "text, then [DONE]": fails(b"Because\n\ndata: [DONE]\n\n", 502, ": Because", again=False),
    "a page as the body": fails(b"<!doctype html>\n<p>Secret words\n{\n}\n", 502, "OPENROUTER_BASE_URL", again=False),
    "a page as an event": fails(b"data: <html>Secret words</html>\n\n", 502, "isn't JSON", again=False),
    "JSON that is no answer": fails({"object": "list", "data": []}, 502, "OPENROUTER_BASE_URL", again=False),
    "half an event": fails(b'data: {"choices": [{"delta": {"con', 502, "middle", again=False),
    "nothing": fails(b"", 502, "middle"),
}

CUT_OFF = {
    "by an error": Sent(sse(says("Four"), TOKENS), error=(400, "Token limit"), retryable=False, usage=USAGE),
    "by an error by name": Sent(
        sse(says("Four")) + b"event: error\n" + sse({"message": "Because", "usage": USAGE}),
        error=(502, ": Because"),
        usage=USAGE,
    ),
    "by an error with the last text": Sent(
        sse(says("Fo"), says("ur", "error") | {"error": {"code": 503, "message": "Because"}}), error=(503, ": Because")
    ),
    "by an error after a finish reason": Sent(
        sse(says("Four"), chunk({}, "length"), TOKENS), error=(400, "Token limit"), retryable=False, usage=USAGE
    ),
    "by an error after a finish reason, before any text": Sent(
        sse(chunk({}, "length"), {"error": "Token limit reached", "usage": USAGE}),
        "",
        error=(502, "Token limit"),
        usage=USAGE,
    ),
    "by text": Sent(sse(*FOUR) + b"stream error: Because\n", error=(502, ": stream error: Because")),
    "by JSON that is no object": Sent(sse(*FOUR, "[1]"), error=(502, "isn't an object")),
    "by what isn't JSON": Sent(sse(*FOUR, "<html>"), error=(502, "isn't JSON")),
    "by nothing": Sent(sse(says("Fo"), says("ur") | {"usage": USAGE}), error=(502, "middle"), usage=USAGE),
    "in a last text": Sent(sse(says("Fo")) + b"data: " + raw(says("ur")), error=(502, "middle")),
    "in an only text": Sent(b"data: " + raw(says("Four")), error=(502, "middle")),
    "in a finish": Sent(sse(*FOUR) + b'data: {"choices":[{"finish_reason":"st', error=(502, "middle")),
    "in images": Sent(sse(IMAGES), "", error=(502, "middle")),
}


def without_text(body: bytes, what: str, reasoning: str = "", **more: Any) -> Sent:
    """A whole answer that has something else in it, which nobody could be shown."""
    return Sent(body, "", reasoning, error=(502, what), retryable=False, **more)


OTHER = {
    "tool calls": without_text(sse(chunk({"tool_calls": CALLS}), chunk({}, "tool_calls"), DONE), "tool calls"),
    "tool calls that only the finish reason tells of": without_text(
        sse(chunk({"reasoning": "Hm"}), chunk({}, "tool_calls"), DONE), "tool calls", "Hm"
    ),
    "tool calls in a whole answer": without_text(
        raw(message("", "tool_calls", tool_calls=CALLS)), "tool calls", usage=USAGE
    ),
    "images": without_text(sse(IMAGES, STOP, DONE), "images"),
    "audio": without_text(sse(chunk({"audio": {"id": "a", "data": "AAAA"}}), STOP, DONE), "audio"),
    "images beside text": Sent(sse(*FOUR, IMAGES, STOP, DONE)),
}

REFUSED = {
    **{f"{name}, as a 422": fails(body, 422, words, status=422) for name, (body, words) in SHAPES.items()},
    "a page as a 502": fails(b"<html><h1>Secret words</h1>", 502, "status 502", status=502),
    "text as a 400": fails(b"Because", 400, ": Because", status=400),
    "an event as a 400": fails(sse({"error": {"message": "Because"}}), 400, ": Because", status=400),
    "a 404 that is text (Go)": fails(b"404 page not found", 404, "OPENROUTER_BASE_URL", status=404),
    "a 404 that is a page": fails(b"<html>no model, no provider", 404, "OPENROUTER_BASE_URL", status=404),
    "a 404 of FastAPI": fails({"detail": "Not Found"}, 404, "OPENROUTER_BASE_URL", status=404),
    "a 405": fails({"detail": "Method Not Allowed"}, 405, "OPENROUTER_BASE_URL", status=405),
    "a 404 without a body": fails(b"", 404, "OPENROUTER_BASE_URL", status=404),
    "a 404 of OpenRouter": fails({"error": {"message": "No endpoints found"}}, 404, "no provider", status=404),
    "a 404 of Ollama": fails({"error": "model 'x' not found"}, 404, "no provider", status=404),
}

FAMILIES = {
    "text": TEXT,
    "end": ENDS,
    "framing": FRAMING,
    "whole": WHOLE,
    "error": ERRORS,
    "cut off": CUT_OFF,
    "other": OTHER,
}
IN_STREAM = {f"{family}: {name}": sent for family, rows in FAMILIES.items() for name, sent in rows.items()}
ONE_EACH = {family: next(iter(rows.values())) for family, rows in {**FAMILIES, "refused": REFUSED}.items()}


def assert_read(sent: Sent, pieces: list[bytes]) -> None:
    answer = read(pieces)
    assert (answer.text("content"), answer.text("reasoning")) == (sent.content, sent.reasoning)
    assert answer.usage == sent.usage
    if sent.error is None:
        assert (answer.error, answer.finish) == (None, Finish(sent.finish_reason))
    else:
        assert_error(sent, answer.error)
        assert answer.may_be_asked_again == sent.again


def assert_error(sent: Sent, error: UpstreamError | None) -> None:
    assert error and sent.error
    failure = error.failure
    assert (failure.code, failure.retryable) == (sent.error[0], sent.retryable)
    assert sent.error[1] in failure.message and "Secret" not in failure.message


@pytest.mark.parametrize("sent", IN_STREAM.values(), ids=IN_STREAM)
def test_what_a_server_sends_is_read_the_same_wherever_it_is_cut(sent: Sent) -> None:
    assert_read(sent, [sent.body])
    assert_read(sent, [sent.body[i : i + 1] for i in range(len(sent.body))])
    for cut in range(len(sent.body)):
        assert_read(sent, [sent.body[:cut], sent.body[cut:]])


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
def test_what_a_server_refuses_with_is_told(sent: Sent) -> None:
    assert_error(sent, refusal(sent.status, decoded(sent.body), None, KEY))


@pytest.fixture(scope="module")
async def service() -> AsyncIterator[tuple[Relay, ScriptedUpstream]]:
    async with ScriptedUpstream() as upstream, serving(upstream, timers=Timers(retries=(0.0, 0.0))) as relay:
        yield relay, upstream


@pytest.mark.parametrize("sent", ONE_EACH.values(), ids=ONE_EACH)
async def test_what_a_server_sends_reaches_the_reader(sent: Sent, service: tuple[Relay, ScriptedUpstream]) -> None:
    relay, upstream = service
    upstream.play(scripts.status(sent.status, sent.body, {"Content-Type": "text/plain; charset=utf-8"}))
    asked = len(upstream.requests)
    conversation_id = await relay.ask()
    transcript = await relay.read(conversation_id)
    [_, reply] = await relay.messages(conversation_id)
    assert transcript.content == reply["content"] == sent.content
    assert (reply["reasoning"] or "") == sent.reasoning
    assert (reply["usage"], len(upstream.requests) - asked) == (sent.usage, 3 if sent.again else 1)
    if sent.error is None:
        assert (reply["status"], reply["finish_reason"]) == ("complete", sent.finish_reason)
    else:
        assert (reply["status"], reply["error"]["code"]) == ("failed", sent.error[0])
        assert sent.error[1] in reply["error"]["message"] and reply["error"]["retryable"] == sent.retryable


PINGED = scripts.repeats(Wire.comment, scripts.pauses(0.05), times=6)
SLOW_ENDS = {
    "a finish reason on every chunk": (
        [step for word in ("One ", "two ", "three") for step in (scripts.event(says(word, "stop")), PINGED)]
        + [scripts.repeats(Wire.comment, scripts.pauses(0.05))],
        "One two three",
    ),
    "events without text for ever after it": (
        [
            scripts.event(says("Four", "stop")),
            scripts.repeats(scripts.event({"choices": []}), scripts.pauses(0.02)),
        ],
        "Four",
    ),
}


@pytest.mark.parametrize(("does", "text"), SLOW_ENDS.values(), ids=SLOW_ENDS)
async def test_what_was_promised_to_end_is_waited_for_as_long_as_text_comes(
    upstream: ScriptedUpstream, does: list[scripts.Step], text: str
) -> None:
    """Each text moves the end, comments don't: 5 s without one end an answer that was promised to end."""
    upstream.play(scripts.steps(*does))
    async with serving(upstream, timers=Timers(tail=0.6, delta=1.5)) as relay:
        conversation_id = await relay.ask()
        assert (await relay.read(conversation_id)).content == text
        assert (await relay.messages(conversation_id))[-1]["status"] == "complete"
