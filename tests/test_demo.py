"""The stand-in OpenRouter on the wire: every demo model's outcome, seen by an HTTP client over a real socket."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

import demo

QUESTION = "What is a relay for?"
KEY = {"Authorization": "Bearer sk-or-demo"}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with demo.running(pace=0) as url, httpx.Client(base_url=url, headers=KEY, timeout=10) as client:
        yield client


def asking(model: str, content: str = QUESTION, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], "stream": True, **fields}


def ask(client: httpx.Client, model: str, content: str = QUESTION, **fields: Any) -> httpx.Response:
    return client.post("/chat/completions", json=asking(model, content, **fields))


def blocks(body: bytes) -> list[bytes]:
    """The events and comments of a whole stream, without the blank lines."""
    *whole, rest = body.split(b"\n\n")
    assert rest == b""
    return whole


def chunks(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(block[6:]) for block in blocks(body) if block.startswith(b"data: {")]


def text(received: list[dict[str, Any]], kind: str = "content") -> str:
    """The answer as JavaScript would join it: halves of a surrogate pair become one character."""
    pieces = [choice["delta"].get(kind) or "" for chunk in received for choice in chunk["choices"]]
    return "".join(pieces).encode("utf-16", "surrogatepass").decode("utf-16")


def finish_reasons(received: list[dict[str, Any]]) -> list[str]:
    reasons = [choice["finish_reason"] for chunk in received for choice in chunk["choices"]]
    return [reason for reason in reasons if reason]


def refusal(response: httpx.Response, status: int) -> dict[str, Any]:
    assert (response.status_code, response.headers["Content-Type"]) == (status, "application/json")
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == status
    return error


def test_a_stream_has_the_framing_of_openrouter(client: httpx.Client) -> None:
    response = ask(client, "demo/echo")
    assert response.headers["Content-Type"].startswith("text/event-stream")
    first, *_, last = blocks(response.content)
    assert (first, last) == (b": OPENROUTER PROCESSING", b"data: [DONE]")
    assert b"\r" not in response.content
    received = chunks(response.content)
    assert {chunk["id"] for chunk in received} == {response.headers["X-Generation-Id"]}
    assert {chunk["object"] for chunk in received} == {"chat.completion.chunk"}
    assert {chunk["choices"][0]["delta"]["role"] for chunk in received} == {"assistant"}


def test_the_finish_reason_comes_twice_and_the_second_time_with_usage_and_cost(client: httpx.Client) -> None:
    *rest, last = chunks(ask(client, "demo/echo").content)
    assert finish_reasons([*rest, last]) == ["stop", "stop"]
    assert not any("usage" in chunk for chunk in rest)
    usage = last["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    assert 0 < usage["cost"] < 0.01


def test_an_answer_without_streaming_is_one_completion_with_the_same_text(client: httpx.Client) -> None:
    response = ask(client, "demo/reasoning", stream=False)
    assert response.headers["Content-Type"] == "application/json"
    completion = response.json()
    assert (completion["object"], completion["id"]) == ("chat.completion", response.headers["X-Generation-Id"])
    (choice,) = completion["choices"]
    streamed = chunks(ask(client, "demo/reasoning").content)
    assert choice["message"]["content"] == text(streamed)
    assert choice["message"]["reasoning"] == text(streamed, "reasoning")
    assert (choice["finish_reason"], completion["usage"]["total_tokens"] > 0) == ("stop", True)


def test_an_error_without_streaming_comes_inside_a_200(client: httpx.Client) -> None:
    response = ask(client, "demo/error", stream=False)
    assert (response.status_code, response.json()["error"]["code"]) == (200, 502)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic abc", "sk-or-demo"])
def test_a_request_without_a_key_is_refused_whatever_its_body(client: httpx.Client, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    response = httpx.post(f"{client.base_url}chat/completions", headers=headers, content=b"{")
    assert refusal(response, 401)["message"] == "Missing Authentication header"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"model": "demo/echo", "messages": [}'])
def test_a_body_that_is_not_json_is_refused(client: httpx.Client, body: bytes) -> None:
    assert "JSON" in refusal(client.post("/chat/completions", content=body), 400)["message"]


@pytest.mark.parametrize("messages", [None, [], "hello", {"role": "user"}, ["hello"], [{"content": "no role"}]])
def test_messages_that_are_no_list_of_messages_are_refused(client: httpx.Client, messages: Any) -> None:
    response = client.post("/chat/completions", json={"model": "demo/echo", "messages": messages})
    assert refusal(response, 400)["message"] == 'Input required: specify "prompt" or "messages"'


@pytest.mark.parametrize("model", ["demo/none", "echo", 7, ["demo/echo"]])
def test_an_unknown_model_is_refused_in_openrouters_words(client: httpx.Client, model: Any) -> None:
    assert refusal(ask(client, model), 400)["message"] == f"{model} is not a valid model ID"


def test_a_request_without_a_model_is_refused(client: httpx.Client) -> None:
    assert refusal(ask(client, ""), 400)["message"] == "No models provided"


def test_the_models_are_listed_without_a_key_and_say_what_they_do(client: httpx.Client) -> None:
    response = httpx.get(f"{client.base_url}models")
    assert response.headers["Cache-Control"] == "public, max-age=300"
    listing = response.json()
    assert [entry["id"] for entry in listing["data"]] == list(demo.MODELS)
    assert listing["total_count"] == len(demo.MODELS)
    for entry in listing["data"]:
        assert entry["name"].startswith("Demo: ")
        assert entry["description"].endswith(".")
        assert float(entry["pricing"]["prompt"]) > 0
        assert entry["context_length"] > 0
        assert {"architecture", "top_provider", "supported_parameters", "expiration_date"} <= entry.keys()
    assert [entry["id"] for entry in listing["data"] if "reasoning" in entry] == ["demo/reasoning"]


def test_a_chunk_names_the_dated_slug_of_its_model(client: httpx.Client) -> None:
    slugs = {entry["id"]: entry["canonical_slug"] for entry in client.get("/models").json()["data"]}
    assert {chunk["model"] for chunk in chunks(ask(client, "demo/echo").content)} == {slugs["demo/echo"]}


def test_echo_repeats_the_question_and_counts_what_came(client: httpx.Client) -> None:
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    messages.append({"role": "user", "content": "Two\n  words "})
    answer = text(chunks(ask(client, "demo/echo", messages=messages).content))
    assert answer.startswith("You asked: Two\n  words \n\nNumber of words: 2.")
    assert "this one included: 4." in answer


def test_echo_takes_a_person_two_to_four_seconds_to_watch() -> None:
    question = demo.Question("demo/echo", [{"role": "user", "content": QUESTION}], attempt=1)
    assert 2 < sum(step.after for step in demo.echo(question)) < 4


def test_a_lone_surrogate_in_the_question_comes_back_as_its_escape(client: httpx.Client) -> None:
    body = rb'{"model": "demo/echo", "stream": true, "messages": [{"role": "user", "content": "\ud83d"}]}'
    response = client.post("/chat/completions", content=body)
    assert rb"\ud83d" in response.content
    assert chunks(response.content)[-1]["choices"][0]["finish_reason"] == "stop"


def test_markdown_has_every_kind_of_block(client: httpx.Client) -> None:
    lines = text(chunks(ask(client, "demo/markdown").content)).splitlines()
    for start in ("# ", "## ", "| ", "1. ", "   - ", "```python", "> "):
        assert any(line.startswith(start) for line in lines), start
    assert f'question = "{QUESTION}"' in lines
    assert "](https://" in "".join(lines)


def test_long_is_several_thousand_words_in_order(client: httpx.Client) -> None:
    answer = text(chunks(ask(client, "demo/long").content))
    assert 3000 < len(answer.split()) < 6000
    numbers = [int(part.split()[1]) for part in answer.split("\n\n") if part]
    assert numbers == list(range(1, 101))


def test_reasoning_comes_first_and_twice_over_as_text_and_as_details(client: httpx.Client) -> None:
    received = chunks(ask(client, "demo/reasoning").content)
    deltas = [chunk["choices"][0]["delta"] for chunk in received]
    thinking = ["reasoning" in delta for delta in deltas]
    assert thinking == sorted(thinking, reverse=True)
    assert thinking[0]
    assert deltas[0]["content"] == ""
    details = [detail["text"] for delta in deltas for detail in delta.get("reasoning_details", [])]
    assert "".join(details) == text(received, "reasoning")
    assert QUESTION in text(received)
    assert received[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] == sum(thinking)


def test_slow_sends_comments_for_eight_seconds_and_then_a_word_a_second(client: httpx.Client) -> None:
    question = demo.Question("demo/slow", [], attempt=1)
    assert [step.is_comment for step in demo.slow(question)][:9] == [True] * 8 + [False]
    assert {step.after for step in demo.slow(question)} == {1}
    body = ask(client, "demo/slow").content
    assert blocks(body).count(b": OPENROUTER PROCESSING") == 10
    assert text(chunks(body)).startswith("Thank you for waiting.")


def test_unicode_arrives_whole_though_a_surrogate_pair_is_split(client: httpx.Client) -> None:
    body = ask(client, "demo/unicode").content
    answer = text(chunks(body))
    assert rb"\ud83d" in body
    assert "🚀" in answer
    for piece in (QUESTION, "👩‍👩‍👧‍👦", "e\u0301", "שלום", "مرحبا", "𠮷", "U+2028\u2028", "\u2029", "\x85"):
        assert piece in answer
    assert "\u2028".encode() in body


def test_length_stops_in_the_middle_of_a_sentence(client: httpx.Client) -> None:
    received = chunks(ask(client, "demo/length").content)
    assert finish_reasons(received) == ["length", "length"]
    assert text(received).endswith(" at its")


def deltas(received: list[dict[str, Any]], name: str) -> list[Any]:
    """What the deltas have under that name."""
    found = [choice["delta"].get(name) for chunk in received for choice in chunk["choices"]]
    return [part for part in found if part]


def test_search_cites_two_pages_where_its_text_names_them(client: httpx.Client) -> None:
    received = chunks(ask(client, "demo/search").content)
    [cited] = deltas(received, "annotations")
    spans = [(one["url_citation"]["start_index"], one["url_citation"]["end_index"]) for one in cited]
    assert [text(received)[start:end] for start, end in spans] == ["[1]", "[2]"]
    assert {one["type"] for one in cited} == {"url_citation"}
    assert all(one["url_citation"]["url"].startswith("https://developer.mozilla.org/") for one in cited)


def test_fallback_is_answered_by_another_model(client: httpx.Client) -> None:
    received = chunks(ask(client, "demo/fallback").content)
    assert {chunk["model"] for chunk in received} == {"demo/echo-20260901"}
    assert "You asked demo/fallback" in text(received)


def test_options_are_told_as_they_came_but_for_what_is_always_sent(client: httpx.Client) -> None:
    sent: dict[str, Any] = {"temperature": 0.5, "reasoning": {"effort": "low"}, "attempt": 7}
    answer = text(chunks(ask(client, "demo/options", stream_options={"include_usage": True}, **sent).content))
    assert json.loads(answer.removeprefix("```json\n").removesuffix("\n```")) == sent


def test_a_refusal_has_a_field_of_its_own_and_is_counted(client: httpx.Client) -> None:
    received = chunks(ask(client, "demo/refusal").content)
    assert (text(received), finish_reasons(received)) == ("", ["stop", "stop"])
    assert "".join(deltas(received, "refusal")) == f"I'm sorry, but I can't help with “{QUESTION}”."
    assert received[-1]["usage"]["completion_tokens"] > 5


def test_a_tool_call_and_an_image_come_without_a_word(client: httpx.Client) -> None:
    called, shown = (chunks(ask(client, f"demo/{name}").content) for name in ("tool-call", "image"))
    assert (text(called), text(shown)) == ("", "")
    assert finish_reasons(called) == ["tool_calls", "tool_calls"]
    assert deltas(called, "tool_calls")[0][0]["function"]["name"] == "search"
    assert deltas(shown, "images")[0][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert ask(client, "demo/image", stream=False).json()["choices"][0]["message"]["images"]


def test_too_long_answers_only_with_a_compressed_context(client: httpx.Client) -> None:
    error = refusal(ask(client, "demo/too-long"), 400)
    assert error["metadata"]["error_type"] == "context_length_exceeded"
    answered = ask(client, "demo/too-long", plugins=[{"id": "context-compression"}])
    assert QUESTION in text(chunks(answered.content))


def test_empty_finishes_without_a_word(client: httpx.Client) -> None:
    received = chunks(ask(client, "demo/empty").content)
    assert (text(received), finish_reasons(received)) == ("", ["stop", "stop"])
    assert received[-1]["usage"]["completion_tokens"] == 0


def test_silent_sends_comments_and_no_token(client: httpx.Client) -> None:
    with client.stream("POST", "/chat/completions", json=asking("demo/silent")) as response:
        lines = response.iter_lines()
        heard = {next(lines) for _ in range(20)}
    assert (response.status_code, heard) == (200, {": OPENROUTER PROCESSING", ""})


def test_busy_refuses_each_conversation_twice_and_then_answers(client: httpx.Client) -> None:
    tries = [ask(client, "demo/busy", content) for content in ("one", "two") * 4]
    assert [response.status_code for response in tries] == [503] * 4 + [200] * 2 + [503] * 2
    assert refusal(tries[0], 503)["metadata"]["error_type"] == "provider_overloaded"
    assert "“one”" in text(chunks(tries[4].content))


def test_rate_limited_asks_to_wait_a_minute_and_names_the_account(client: httpx.Client) -> None:
    response = ask(client, "demo/rate-limited")
    error = refusal(response, 429)
    assert (response.headers["Retry-After"], error["message"]) == ("60", "Provider returned error")
    assert error["metadata"]["raw"]
    assert response.json()["user_id"]


def test_no_credit_is_402_without_a_time_to_wait(client: httpx.Client) -> None:
    response = ask(client, "demo/no-credit")
    assert refusal(response, 402)["message"].startswith("Insufficient credits.")
    assert "Retry-After" not in response.headers


def test_moderated_is_403_and_quotes_what_was_flagged(client: httpx.Client) -> None:
    error = refusal(ask(client, "demo/moderated"), 403)
    assert "requires moderation" in error["message"]
    assert (error["metadata"]["flagged_input"], error["metadata"]["reasons"]) == (QUESTION, ["demo"])


def test_error_is_a_chunk_in_the_middle_and_nothing_follows_it(client: httpx.Client) -> None:
    response = ask(client, "demo/error")
    *answer, last = chunks(response.content)
    assert response.status_code == 200
    assert QUESTION in text(answer)
    assert (last["choices"], last["error"]["code"], last["id"]) == ([], 502, answer[0]["id"])
    assert finish_reasons(answer) == []
    assert b"[DONE]" not in response.content


def test_cut_off_closes_the_connection_without_an_end(client: httpx.Client) -> None:
    received: list[bytes] = []
    with (
        client.stream("POST", "/chat/completions", json=asking("demo/cut-off")) as response,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        received.extend(response.iter_raw())
    body = b"".join(received)
    assert text(chunks(body)).startswith("An answer about")
    assert finish_reasons(chunks(body)) == []
    assert b"[DONE]" not in body


@pytest.mark.parametrize("model", ["demo/slow", "demo/silent", "demo/long"])
def test_a_reader_that_leaves_ends_the_generation(model: str) -> None:
    """Seen from the server's side: no client can tell whether the one that left still costs something."""
    asyncio.run(asyncio.wait_for(leave_after_the_first_bytes(model), timeout=5))


async def leave_after_the_first_bytes(model: str) -> None:
    left = asyncio.Event()
    body = [{"type": "http.request", "body": json.dumps(asking(model)).encode()}]

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body"):
            left.set()

    headers = [(name.lower().encode(), value.encode()) for name, value in KEY.items()]
    scope = {"type": "http", "method": "POST", "path": "/api/v1/chat/completions", "headers": headers}
    await demo.create_demo()({**scope, "query_string": b"", "asgi": {"spec_version": "2.3"}}, receive, send)


def test_it_stops_at_once_though_streams_are_open() -> None:
    with ExitStack() as stack:
        url = stack.enter_context(demo.running())
        with httpx.stream("POST", f"{url}/chat/completions", json=asking("demo/silent"), headers=KEY) as response:
            lines = response.iter_lines()
            next(lines)
            leaving = time.monotonic()
            stack.close()
            assert time.monotonic() - leaving < 3
            with pytest.raises(httpx.TransportError):
                list(lines)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")


def test_two_run_side_by_side_and_share_nothing() -> None:
    with demo.running(pace=0) as one, demo.running(pace=0) as other, httpx.Client(headers=KEY) as client:
        assert one != other
        assert one.startswith("http://127.0.0.1:")
        tries = [client.post(f"{url}/chat/completions", json=asking("demo/busy")) for url in (one, one, other, one)]
    assert [response.status_code for response in tries] == [503, 503, 503, 200]


def test_it_says_nothing_in_the_log_of_the_process(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with demo.running(pace=0) as url, httpx.Client(headers=KEY) as client:
        client.get(f"{url}/models")
        with pytest.raises(httpx.RemoteProtocolError):
            client.post(f"{url}/chat/completions", json=asking("demo/cut-off"))
        with client.stream("POST", f"{url}/chat/completions", json=asking("demo/silent")) as response:
            next(response.iter_raw())
    assert [record.name for record in caplog.records if record.name != "httpx"] == []


def test_a_bug_in_a_model_is_logged_all_the_same(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(demo.MODELS, "demo/buggy", lambda question: iter([1 / 0]))
    with demo.running(pace=0) as url, httpx.Client(headers=KEY) as client:
        assert client.post(f"{url}/chat/completions", json=asking("demo/buggy")).status_code == 500
    assert "ZeroDivisionError" in caplog.text
