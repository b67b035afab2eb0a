"""A stand-in for OpenRouter: its wire protocol over real HTTP, without a key, a network or a bill.

Its models let a front end meet every outcome. A model is a script: it turns a question into the steps of an answer and
knows nothing about HTTP. `Generation` gives the steps their shape on the wire. This module doesn't know the relay.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

COMMENT = b": OPENROUTER PROCESSING\n\n"
PRICES = {"prompt": "0.0000001", "completion": "0.0000004"}  # USD a token


def create_demo(pace: float = 1.0) -> Starlette:
    """Build the stand-in, under /api/v1. `pace` multiplies every wait: 1 suits people, 0 sends an answer at once."""
    routes = [Route("/api/v1/chat/completions", complete, methods=["POST"]), Route("/api/v1/models", list_models)]
    app = Starlette(routes=routes, exception_handlers={Fault: refuse})
    app.state.pace, app.state.attempts = pace, Counter[int]()
    return app


@contextmanager
def running(pace: float = 1.0) -> Iterator[str]:
    """Run a stand-in on a free loopback port in its own thread; yield its base URL. Leaving cuts off open streams."""
    listener = socket.create_server(("127.0.0.1", 0))
    # access_log=False would mute the access log of every uvicorn server in the process.
    config = uvicorn.Config(create_demo(pace), log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=0)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="demo", daemon=True)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1"
    with listener, mute(thread):
        thread.start()
        try:
            wait_for_start(server, thread)
            yield url
        finally:
            server.should_exit = True
            thread.join(timeout=5)


def wait_for_start(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + 10
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the demo upstream did not start")
        time.sleep(0.005)


@contextmanager
def mute(thread: threading.Thread) -> Iterator[None]:
    """Filter this server's records, except its bugs, from the loggers that all uvicorn servers in a process share."""

    def is_wanted(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return record.thread != thread.ident or not isinstance(error, CutOff | asyncio.CancelledError | None)

    loggers = [logging.getLogger("uvicorn.error"), logging.getLogger("uvicorn.access")]
    for logger in loggers:
        logger.addFilter(is_wanted)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_wanted)


async def list_models(request: Request) -> Response:
    entries = [entry(model, script) for model, script in MODELS.items()]
    listing = {"data": entries, "total_count": len(entries), "links": {"next": None}}
    return Response(encoded(listing), media_type="application/json", headers={"Cache-Control": "public, max-age=300"})


def entry(model: str, script: Callable[[Question], Script]) -> dict[str, object]:
    modalities = {"input_modalities": ["text"], "output_modalities": ["text"], "modality": "text->text"}
    limits = {"context_length": 131072, "max_completion_tokens": 32768, "is_moderated": script is moderated}
    thinks = {"reasoning": {"mandatory": True, "default_enabled": True}} if script is reasoning else {}
    return thinks | {
        "id": model,
        "canonical_slug": f"{model}-20260901",
        "name": "Demo: " + model.removeprefix("demo/").replace("-", " ").capitalize(),
        "created": 1788220800,
        "description": script.__doc__,
        "context_length": 131072,
        "architecture": modalities | {"tokenizer": "Other", "instruct_type": None},
        "pricing": PRICES | {"request": "0", "image": "0"},
        "top_provider": limits,
        "per_request_limits": None,
        "supported_parameters": ["max_tokens", "stop", "temperature", "top_p", *thinks],
        "expiration_date": None,
    }


async def complete(request: Request) -> Response:
    if not re.match(r"(?i)bearer +\S", request.headers.get("Authorization", "")):
        raise Fault(401, "Missing Authentication header")
    fields = parse(await request.body())
    model, messages = fields.pop("model"), fields.pop("messages")
    key = hash((model, repr(messages)))
    request.app.state.attempts[key] += 1
    is_stream, _ = fields.pop("stream", None) is True, fields.pop("stream_options", None)
    question = Question(model, messages, request.app.state.attempts[key], fields)
    generation = Generation(question, MODELS[model](question), request.app.state.pace)
    body, kind = (generation.stream(), "text/event-stream") if is_stream else (generation.whole(), "application/json")
    headers = {"X-Generation-Id": generation.id, "Cache-Control": "no-cache"}
    return StreamingResponse(body, headers=headers, media_type=kind)


def parse(body: bytes) -> dict[str, Any]:
    """Return the fields of a request with a model and messages. Raises `Fault` with OpenRouter's words."""
    try:
        fields: Any = json.loads(body)
    except ValueError:
        raise Fault(400, "Invalid JSON in request body") from None
    messages = fields.get("messages") if isinstance(fields, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise Fault(400, 'Input required: specify "prompt" or "messages"')
    if not fields.get("model"):
        raise Fault(400, "No models provided")
    if str(fields["model"]) not in MODELS:
        raise Fault(400, f"{fields['model']} is not a valid model ID")
    request: dict[str, Any] = fields
    return request


async def refuse(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, Fault)
    return Response(encoded(fault.body), fault.code, fault.headers, "application/json")


def encoded(value: object) -> bytes:
    """Encode like JavaScript's JSON.stringify: U+2028 stays as it is, a lone surrogate becomes an escape."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


class CutOff(Exception):
    """Ends the connection in the middle of the body, as uvicorn does when an app raises an exception."""


class Fault(Exception):
    """An error from OpenRouter: it is the response, or a chunk once the answer has begun."""

    def __init__(self, code: int, message: str, metadata: object = None, retry_after: int | None = None) -> None:
        self.code = code
        self.headers = {"Retry-After": str(retry_after)} if retry_after else {}
        error = {"code": code, "message": message} | ({"metadata": metadata} if metadata else {})
        self.body = {"error": error} | ({"user_id": "user_2demo1x7Qk"} if code != 401 else {})


class Question:
    """The last user message, cut to a length that an answer can quote, and the facts about its request."""

    def __init__(
        self, model: str, messages: list[dict[str, Any]], attempt: int = 1, options: dict[str, Any] | None = None
    ) -> None:
        self.model, self.served, self.messages, self.attempt = model, model, len(messages), attempt
        self.options = options or {}
        self.tokens = sum(len(str(message.get("content"))) // 4 + 1 for message in messages)
        texts = [str(message.get("content")) for message in messages if message["role"] == "user"]
        self.text = shortened(texts[-1] if texts else "nothing", 2000)
        self.topic = shortened(" ".join(self.text.split()), 60)
        self.words = len(self.text.split())


def shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass(frozen=True)
class Step:
    """A wait of `after` seconds at pace 1, then a piece of the answer or reasoning, other delta fields, or the end.

    A step without any of them is a comment.
    """

    after: float
    content: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    other: dict[str, Any] = field(default_factory=dict)

    @property
    def is_comment(self) -> bool:
        return not (self.content or self.reasoning or self.finish_reason or self.other)

    def choice(self) -> dict[str, object]:
        delta: dict[str, object] = {"content": self.content, "role": "assistant"}
        if self.reasoning:
            detail = {"type": "reasoning.text", "text": self.reasoning, "format": "unknown", "index": 0}
            delta |= {"reasoning": self.reasoning, "reasoning_details": [detail]}
        return {"index": 0, "delta": delta | self.other} | ending(self)


def ending(step: Step) -> dict[str, str | None]:
    return {"finish_reason": step.finish_reason, "native_finish_reason": step.finish_reason}


Script = Iterator[Step]


class Generation:
    """One answer in progress: the steps of its script in OpenRouter's shapes, and their cost."""

    def __init__(self, question: Question, script: Script, pace: float) -> None:
        self.created = int(time.time())
        self.id = f"gen-{self.created}-{secrets.token_hex(10)}"
        self.question, self.script, self.pace = question, script, pace
        self.sent: list[Step] = []

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield Server-Sent Events. Nothing follows an error, not even [DONE]."""
        yield COMMENT * 2
        try:
            for step in self.steps():
                await self.wait(step)
                yield COMMENT if step.is_comment else self.event(choices=[step.choice()])
        except Fault as fault:
            yield self.event(**fault.body, choices=[])
        else:
            yield self.event(choices=[Step(0, finish_reason=step.finish_reason).choice()], usage=self.usage())
            yield b"data: [DONE]\n\n"

    async def whole(self) -> AsyncIterator[bytes]:
        """Yield one JSON document; white space before it keeps the connection open."""
        try:
            for step in self.steps():
                await self.wait(step)
                yield b"\n" if step.is_comment else b""
        except Fault as fault:
            yield encoded(fault.body)
        else:
            yield encoded(self.head("chat.completion") | {"choices": [self.message()], "usage": self.usage()})

    def message(self) -> dict[str, object]:
        content, reasoning = "".join(s.content for s in self.sent), "".join(s.reasoning for s in self.sent)
        message: dict[str, Any] = {"role": "assistant", "content": content, "reasoning": reasoning or None}
        for step in self.sent:
            message |= step.other
        return {"index": 0, "message": message} | ending(self.sent[-1])

    def steps(self) -> Script:
        """Yield the script's steps up to its end, and add an end to a script without one."""
        for step in itertools.chain(self.script, [Step(0, finish_reason="stop")]):
            self.sent += [] if step.is_comment else [step]
            yield step
            if step.finish_reason:
                return

    async def wait(self, step: Step) -> None:
        """Wait until the step is due. Comments take a moment at any pace, since a script may yield them for ever."""
        await asyncio.sleep(max(step.after * self.pace, 0.02 if step.is_comment else 0))

    def event(self, **fields: object) -> bytes:
        return b"data: " + encoded(self.head("chat.completion.chunk") | fields) + b"\n\n"

    def head(self, kind: str) -> dict[str, object]:
        model = f"{self.question.served}-20260901"
        return {"id": self.id, "object": kind, "created": self.created, "model": model, "provider": "Demo"}

    def usage(self) -> dict[str, object]:
        prompt, reasoning = self.question.tokens, sum(bool(step.reasoning) for step in self.sent)
        completion = reasoning + sum(bool(step.content or step.other) for step in self.sent)
        cost = round(prompt * float(PRICES["prompt"]) + completion * float(PRICES["completion"]), 10)
        counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return counts | {
            "cost": cost,
            "is_byok": False,
            "prompt_tokens_details": {"cached_tokens": 0},
            "cost_details": {"upstream_inference_cost": cost},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }


def typed(text: str, rate: float = 25) -> Script:
    """Yield `rate` pieces of the text a second: each is a word with the space before it, or a part of a long word."""
    return (Step(1 / rate, piece) for piece in re.findall(r"\s*\S{1,12}|\s+", text))


def echo(question: Question) -> Script:
    """Repeats your question at a reader's pace and counts words and messages. Start here."""
    return typed(
        f"You asked: {question.text}\n\nNumber of words: {question.words}. Number of messages in our conversation, "
        f"this one included: {question.messages}. I am the demo model: I know nothing and cost nothing, but everything "
        "between us is real, and my answer comes one word at a time. Reload the page or cut the connection while I "
        "speak: I go on, and you get every word exactly once. Other demo models answer with Markdown, or with trouble."
    )


def markdown(question: Question) -> Script:
    """A long answer in Markdown: headings, lists, a table, code, a quotation, a link."""
    return typed(MARKDOWN.format(question=question, literal=json.dumps(question.topic, ensure_ascii=False)), rate=40)


MARKDOWN = """\
# About “{question.topic}”

A demo **can't answer** that, but it can show what an answer may look like. Every part is _Markdown_.

## What came in

| What            | How many |
| :-------------- | -------: |
| Words           | {question.words} |
| Messages so far | {question.messages} |

## What to do with it

1. Split it into words, with `str.split`.
2. Number them:
   - long words from one,
   - short words from one, too.

```python
question = {literal}
for number, word in enumerate(question.split(), start=1):
    print(number, word, sep="\\t")
```

> Whoever counts the words need not understand them.

The syntax is that of [CommonMark](https://commonmark.org/help/), with ~~no~~ tables from GitHub.
"""


def long(question: Question) -> Script:
    """Answers with four thousand words, 400 a second, for you to scroll through and to interrupt."""
    for number in range(1, 101):
        yield from typed(
            f"Paragraph {number} of 100 is one more about “{question.topic}”. It has a number, so it is easy to see "
            "that none is missing, came twice or is out of place after the connection was lost in the middle.\n\n",
            rate=400,
        )


def reasoning(question: Question) -> Script:
    """Thinks first, then answers."""
    thoughts = (
        f"I am asked about “{question.topic}”. I can't look that up, so what would be useful? The author of a front "
        "end wants my thoughts first, apart from the answer, to fold them away. So I think for a while."
    )
    yield from (Step(step.after, reasoning=step.content) for step in typed(thoughts))
    yield from typed(f"I have thought about “{question.topic}”, and this is the answer that follows the reasoning.")


def slow(question: Question) -> Script:
    """Is silent for eight seconds, then says one word a second."""
    yield from itertools.repeat(Step(1), 8)
    yield from typed("Thank you for waiting. A slow answer is an answer, too.", rate=1)


def rate_limited(question: Question) -> NoReturn:
    """Refuses with 429 and asks you to wait for a minute."""
    raw = f"{question.model} is temporarily rate-limited upstream. Please retry shortly."
    metadata = {"raw": raw, "provider_name": "Demo", "error_type": "rate_limit_exceeded"}
    raise Fault(429, "Provider returned error", metadata, retry_after=60)


def busy(question: Question) -> Script:
    """Fails twice with 503 and answers the third time, which shows that the relay tries again."""
    if question.attempt % 3:
        metadata = {"raw": "overloaded", "provider_name": "Demo", "error_type": "provider_overloaded"}
        raise Fault(503, "Provider returned error", metadata)
    return typed(f"I was busy twice. This is try number {question.attempt}, and the answer about “{question.topic}”.")


def no_credit(question: Question) -> NoReturn:
    """Refuses with 402: the account has no credit."""
    raise Fault(402, "Insufficient credits. Add more using https://openrouter.ai/settings/credits")


def moderated(question: Question) -> NoReturn:
    """Refuses with 403: moderation has flagged your question."""
    message = (
        f'{question.model} requires moderation on Demo. Your input was flagged for "demo". No credits were charged.'
    )
    metadata = {"reasons": ["demo"], "flagged_input": question.topic, "provider_name": "Demo"}
    raise Fault(403, message, metadata | {"model_slug": question.model})


def cut_off(question: Question) -> Script:
    """Loses the connection in the middle of the answer."""
    yield from typed(f"An answer about “{question.topic}” that breaks off in the middle of")
    raise CutOff


def error(question: Question) -> Script:
    """Reports an error in the middle of the answer."""
    yield from typed(f"An answer about “{question.topic}” that goes well until the provider")
    raise Fault(502, "Provider disconnected unexpectedly", {"raw": "connection reset", "provider_name": "Demo"})


def length(question: Question) -> Script:
    """Stops in the middle of a sentence, at its limit of tokens."""
    yield from typed(
        f"There would be much to say about “{question.topic}”, but an answer has a limit, and this one is at its"
    )
    yield Step(0, finish_reason="length")


def search(question: Question) -> Script:
    """Answers from two web pages and cites them."""
    text = f"About “{question.topic}”, one page describes events [1] and another their source [2]."
    yield from typed(text)
    pages = {"[1]": "Using_server-sent_events", "[2]": "EventSource"}
    places = [(text.index(mark), f"https://developer.mozilla.org/docs/Web/API/{page}") for mark, page in pages.items()]
    citations = [
        {"url": url, "title": url.rpartition("/")[2], "start_index": at, "end_index": at + 3} for at, url in places
    ]
    yield Step(0, other={"annotations": [{"type": "url_citation", "url_citation": citation} for citation in citations]})


def fallback(question: Question) -> Script:
    """Is always busy: another model answers in its place, as with openrouter/auto."""
    question.served = "demo/echo"
    return typed(f"You asked {question.model} about “{question.topic}”, and {question.served} answers.")


def options(question: Question) -> Script:
    """Answers with the options that came with your question."""
    return typed(f"```json\n{json.dumps(question.options, indent=2, ensure_ascii=False)}\n```")


def refusal(question: Question) -> Script:
    """Declines to answer; its words are a refusal on the wire."""
    pieces = typed(f"I'm sorry, but I can't help with “{question.topic}”.")
    return (Step(step.after, other={"content": None, "refusal": step.content}) for step in pieces)


def tool_call(question: Question) -> Script:
    """Calls a tool instead of answering, which is of no use to a chat."""
    call = {"name": "search", "arguments": json.dumps({"query": question.topic})}
    yield Step(0.5, other={"content": None, "tool_calls": [{"index": 0, "id": "call_1", "function": call}]})
    yield Step(0, finish_reason="tool_calls")


def image(question: Question) -> Script:
    """Answers with an image and without a word."""
    yield Step(0.5, other={"images": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DOT}"}}]})


DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


def too_long(question: Question) -> Script:
    """Refuses with 400: the conversation is too long for it unless you choose the plugin context-compression."""
    if {"id": "context-compression"} in question.options.get("plugins", []):
        return typed(f"With a compressed context I can answer about “{question.topic}”.")
    message = "This endpoint's maximum context length is 131072 tokens. However, you requested about 200000 tokens."
    raise Fault(400, message, {"error_type": "context_length_exceeded", "provider_name": "Demo"})


def silent(question: Question) -> Script:
    """Accepts your question and never answers, so you can try the stop button."""
    return itertools.repeat(Step(1))


def empty(question: Question) -> Script:
    """Finishes without a word."""
    return iter(())


def unicode(question: Question) -> Script:
    """Emoji, combining characters, right-to-left text and unusual line ends, one code point at a time."""
    text = (
        f"“{question.topic}”\n\n- Emoji: 👋🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇪🇺, and one in two halves: \ud83d\ude80\n"
        "- Combining characters: e\u0301 n\u0303 Z\u0351\u036ba\u0328l\u0334g\u0315o\u0341\n"
        "- From right to left: שלום עולם, مرحبا بالعالم\n- Other scripts: 你好世界 こんにちは नमस्ते สวัสดี 𠮷\n"
        "- Line ends that are none in JSON: U+2028\u2028U+2029\u2029U+0085\x85and no more."
    )
    return (Step(1 / 40, character) for character in text)


MODELS: dict[str, Callable[[Question], Script]] = {
    "demo/echo": echo,
    "demo/markdown": markdown,
    "demo/reasoning": reasoning,
    "demo/long": long,
    "demo/slow": slow,
    "demo/unicode": unicode,
    "demo/search": search,
    "demo/options": options,
    "demo/fallback": fallback,
    "demo/length": length,
    "demo/refusal": refusal,
    "demo/tool-call": tool_call,
    "demo/image": image,
    "demo/too-long": too_long,
    "demo/empty": empty,
    "demo/silent": silent,
    "demo/busy": busy,
    "demo/error": error,
    "demo/cut-off": cut_off,
    "demo/rate-limited": rate_limited,
    "demo/no-credit": no_credit,
    "demo/moderated": moderated,
}


def hint(port: int) -> str:
    """Return the next steps: a chat, the API's page, and three lines for a terminal."""
    elsewhere = "" if port == 8001 else f"VITE_RELAY_URL=http://localhost:{port} "
    return _HINT.format(port=port, react=f"{elsewhere}make react")


_HINT = r"""
Answers come from a stand-in: no key, no network. What to do next:

- In another terminal, `{react}` starts a whole chat on http://localhost:5173
- In a browser, http://localhost:{port}/docs lets you try the API
- Or paste into another terminal:

  C=$(curl -si -X POST localhost:{port}/conversations | tr -d '\r' | sed -n 's/^location: //p')
  curl -s localhost:{port}$C/messages -H 'Content-Type: application/json' -d '{{"content": "Why is the sky blue?"}}'
  curl -N localhost:{port}$C/stream
"""
