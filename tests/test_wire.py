"""OpenRouter's wire protocol without a network: events at every split, chunks in every shape, what errors say.

The recorded chunks are those of OpenRouter's streams of May 2026; the shapes of errors are those of its documentation
and of other OpenAI-compatible servers.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import astuple, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from result import Finish, Report
from tests.support.completions import DONE, GENERATION, KEY, chunk, pieces_of, raw, read, says, sse, told
from tests.support.sse import Parser
from tests.support.upstream import USAGE
from upstream.errors import UpstreamBroken, UpstreamRefused, UpstreamUnreadable
from upstream.events import EventParser
from upstream.refusals import encodable, plain_usage, redacted, refusal, retry_after_seconds
from upstream.refusals import parsed as parsed_json
from upstream.values import Delta, Kind

# Events


def parsed(pieces: Iterable[bytes]) -> list[bytes]:
    parser = EventParser()
    return [data for piece in pieces for data in parser.feed(piece)] + [*parser.close()]


STREAMS: dict[str, tuple[bytes, list[bytes]]] = {
    "LF": (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
    "CRLF": (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    "CR": (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    "mixed line ends": (b"data: a\r\n\rdata: b\n\r\ndata: c\r\ndata: d\r\n\n", [b"a", b"b", b"c\nd"]),
    "a BOM": (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    "a BOM before a line end": (b"\xef\xbb\xbf\r\ndata: a\n\n", [b"a"]),
    "a BOM that isn't at the start": (b"data: a\n\n\xef\xbb\xbfdata: b\n\ndata: c\n\n", [b"a", b"c"]),
    "comments": (b": OPENROUTER PROCESSING\n\n:\n\n:data: x\n\ndata: a\n:in the middle\ndata: b\n\n", [b"a\nb"]),
    "several data lines": (b'data: {"a":\ndata: 1}\n\n', [b'{"a":\n1}']),
    "no space after the colon": (b"data:a\n\ndata:  b\n\n", [b"a", b" b"]),
    "data without a colon": (b"data: a\ndata\ndata: b\n\n", [b"a\n\nb"]),
    "events without text": (b"data\n\ndata:\n\ndata: \n\ndata: a\n\n", [b"a"]),
    "other fields": (b"event: message\nid: 1\nretry: 5\ndata: a\ndatas: x\n data: y\nDATA: z\n\n", [b"a"]),
    "a last event without its blank line": (b"data: a\n\ndata: b\n", [b"a", b"b"]),
    "a last event without its line end": (b"data: a\r\n\r\ndata: b", [b"a", b"b"]),
    "a last event that ends with a CR": (b"data: a\r\rdata: b\r", [b"a", b"b"]),
    "line separators of other worlds": (
        'data: {"a": "1\u20282\u20293\x854\x0b5\x0c6\x1c7"}\n\n'.encode(),
        ['{"a": "1\u20282\u20293\x854\x0b5\x0c6\x1c7"}'.encode()],
    ),
    "characters of many bytes": ("data: é€😀\r\n\r\ndata: 中文\n\n".encode(), ["é€😀".encode(), "中文".encode()]),
    "nothing": (b"", []),
    "nothing but line ends": (b"\r\n\n\r\r\n", []),
}


@pytest.mark.parametrize(("stream", "events"), STREAMS.values(), ids=STREAMS)
def test_events_come_out_the_same_wherever_the_bytes_are_cut_in_two_or_one_by_one(
    stream: bytes, events: list[bytes]
) -> None:
    assert parsed([stream]) == events
    assert parsed(stream[i : i + 1] for i in range(len(stream))) == events
    for cut in range(len(stream) + 1):
        assert parsed([stream[:cut], stream[cut:]]) == events, f"cut at {cut}"


@given(st.sampled_from([*STREAMS.values()]), st.lists(st.integers(0, 200)))
@example((b"data: a\r\ndata: b\n\n", [b"a\nb"]), [8, 8])
def test_events_come_out_the_same_at_every_split(case: tuple[bytes, list[bytes]], cuts: list[int]) -> None:
    stream, events = case
    assert parsed(pieces_of(stream, cuts)) == events


LINES = st.one_of(
    st.sampled_from([b"", b"", b":", b": ping", b"data", b"data:", b"data: ", b"event: x", b"id: 1", b"retry: 10"]),
    st.text(st.characters(exclude_characters="\r\n{[", codec="utf-8"), max_size=6).map(lambda s: f"data:{s}".encode()),
    st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=6).map(lambda s: f":{s}".encode()),
)


@given(
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=20),
    st.lists(st.integers(0, 400)),
)
def test_an_independent_parser_finds_the_same_events(
    bom: bytes, lines: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    stream = bom + b"".join(line + end for line, end in lines) + b"\n\n"
    blocks = Parser().feed(stream)
    events = [block.data.encode() for block in blocks if block.data and block.data.encode().strip()]
    assert parsed(pieces_of(stream, cuts)) == events


@given(st.lists(st.binary(max_size=40)))
def test_any_bytes_are_parsed_the_same_however_they_are_cut(pieces: list[bytes]) -> None:
    def made_of(pieces: list[bytes]) -> list[bytes] | str:
        try:
            return parsed(pieces)
        except UpstreamUnreadable as error:
            return error.failure.message

    assert made_of(pieces) == made_of([b"".join(pieces)])


def test_an_event_is_there_as_soon_as_its_blank_line_has_come() -> None:
    parser = EventParser()
    assert [*parser.feed(b"data: a\r\n\r")] == [b"a"]
    assert [*parser.feed(b"\ndata: b\n")] == []
    assert [*parser.feed(b"\n")] == [b"b"]


@pytest.fixture
def cap(monkeypatch: pytest.MonkeyPatch) -> int:
    """The most bytes of an event, made small."""
    monkeypatch.setattr("upstream.events.MAX_EVENT_BYTES", 100)
    return 100


ENDLESS = {
    "a line": b"data: " + b"x" * 20,
    "a comment": b": still" + b"." * 20,
    "one of many lines": b"data: xxxxxxxx\n",
    "one of many lines without text": b"data:\n",
}


@pytest.mark.parametrize("piece", ENDLESS.values(), ids=ENDLESS)
def test_an_event_without_end_is_refused_at_the_cap(cap: int, piece: bytes) -> None:
    parser = EventParser()
    with pytest.raises(UpstreamBroken, match="more than 100 bytes") as caught:
        for _ in range(cap):
            assert not [*parser.feed(piece)]
    assert caught.value.failure.retryable and caught.value.failure.code == 502


def test_only_a_single_event_counts_against_the_cap(cap: int) -> None:
    parser = EventParser()
    event = b"data: " + b"x" * (cap - 20) + b"\n\n"
    assert [*parser.feed(event[:10]), *parser.feed(event[10:])] == [b"x" * (cap - 20)]
    for _ in range(cap):
        assert [*parser.feed(event)] == [b"x" * (cap - 20)]
        assert not [*parser.feed(b": OPENROUTER PROCESSING\n\n")]


# Completions


def recorded(delta: dict[str, Any], finish_reason: str | None = None, **more: object) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "native_finish_reason": finish_reason}
    return {
        "id": GENERATION,
        "object": "chat.completion.chunk",
        "created": 1778452651,
        "model": "qwen/qwen3.5-35b-a3b-20260224",
        "provider": "DeepInfra",
        "choices": [choice],
        **more,
    }


THOUGHT = {"type": "reasoning.text", "text": "Thinking", "format": "unknown", "index": 0}
RECORDED = [
    recorded({"content": "", "role": "assistant", "reasoning": "Thinking", "reasoning_details": [THOUGHT]}),
    recorded({"content": "Hello", "role": "assistant"}),
    recorded({"content": "", "role": "assistant", "reasoning": None}, "stop"),
    recorded({"content": "", "role": "assistant"}, "stop", usage=USAGE),
]


@given(st.lists(st.integers(0, 5000), max_size=30))
def test_a_recorded_stream_is_who_answers_the_thought_the_answer_and_the_usage(cuts: list[int]) -> None:
    comment = b": OPENROUTER PROCESSING\n\n"
    stream = comment + b"".join(sse(entry) + comment for entry in RECORDED) + sse(DONE)
    report = Report(GENERATION, "qwen/qwen3.5-35b-a3b-20260224", "DeepInfra")
    deltas = [Delta("reasoning", "Thinking"), Delta("content", "Hello")]
    whole = replace(report, usage=json.dumps(USAGE))
    assert told(*RECORDED, DONE).values == [report, *deltas, whole, Finish("stop")]
    answer = read(pieces_of(stream, cuts))
    assert [value for value in answer.values if not isinstance(value, Report)] == [*deltas, Finish("stop")]
    assert (answer.values[0], answer.report) in ((report, whole), (whole, whole))


def test_deltas_that_arrive_together_are_merged_and_never_reordered() -> None:
    deltas = [{"content": "a"}, {"content": "b"}, {"reasoning": "c"}, {"reasoning": "d", "content": "e"}]
    together = read([sse(*({"choices": [{"delta": delta}]} for delta in deltas), DONE)])
    assert together.values == [Delta("content", "ab"), Delta("reasoning", "cd"), Delta("content", "e"), Finish(None)]


NOTHING = [
    {},
    {"id": None, "choices": None, "usage": None, "error": None},
    {"choices": []},
    {"choices": {}},
    {"choices": [None]},
    {"choices": [[]]},
    {"choices": [{}]},
    {"choices": [{"delta": None, "finish_reason": None}]},
    {"choices": [{"delta": [], "finish_reason": ""}]},
    {"choices": [{"delta": {}}]},
    {"choices": [{"delta": {"content": None, "reasoning": None, "reasoning_content": None, "role": None}}]},
    {"choices": [{"delta": {"content": 7, "reasoning": ["x"], "tool_calls": [{"index": 0}]}, "finish_reason": 1}]},
    {"id": 5, "usage": [], "error": {}},
    {"id": 7, "usage": "none", "choices": None, "error": None},
    {"id": "gen with a line end\n"},
    {"id": "gén"},
    {"id": ""},
]


@pytest.mark.parametrize("empty", NOTHING, ids=str)
def test_what_is_null_missing_or_unknown_is_no_value(empty: dict[str, Any]) -> None:
    assert told(empty).values == []
    assert told(empty, says("a"), DONE).text("content") == "a"


def test_the_generation_id_is_told_once_and_the_first_one_counts() -> None:
    answer = told(says("a"), says("b") | {"id": "gen-2", "usage": USAGE})
    assert answer.values[0] == Report(GENERATION)
    assert answer.report == Report(GENERATION, usage=json.dumps(USAGE))


BY = {"model": "m-20260801", "provider": "Demo"}
LATER = {"provider": "Demo", "usage": USAGE}
WHO: dict[str, list[dict[str, Any]]] = {
    "with the text": [says("a") | BY],
    "in the first text's chunk": [chunk({"role": "assistant"}), says("a") | BY],
    "not yet": [{"model": "", "provider": None, "choices": []}, chunk() | BY],
    "half with the usage": [says("a") | {"model": "m-20260801"}, chunk({}, "stop") | LATER | {"model": "no"}],
    "no name": [says("a") | {"model": ["m"]}, chunk({}, "stop") | LATER | {"model": "m-20260801"}],
    "with an error": [BY | {"error": "Because"}],
}


@pytest.mark.parametrize("events", WHO.values(), ids=WHO)
def test_who_answered_is_told_before_the_text_or_with_the_usage(events: list[dict[str, Any]]) -> None:
    report = told(*events).report
    assert (report.served_model, report.provider) == ("m-20260801", "Demo")


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\ud800", 7, None, {}], ids=repr)
def test_a_name_that_cannot_be_shown_is_none(name: object) -> None:
    assert told(says("a") | {"model": name, "provider": name}).report == Report(GENERATION)


def test_a_long_name_is_cut() -> None:
    report = told(says("a") | {"model": "é" * 300, "provider": "x" * 300}).report
    assert (report.served_model, report.provider) == ("é" * 200, "x" * 200)


def test_usage_that_is_repeated_is_not_added_up() -> None:
    events = [says("a") | {"usage": {"total_tokens": n}} for n in (1, 2, 3)]
    assert told(*events, chunk({}, "stop")).usage == {"total_tokens": 3}


NO_OBJECTS = [b"null", b"NaN", b"[]", b'"text"', b"17", b"{", b"<html>", b"[" * 100_000, b'{"a":' * 100_000]


@pytest.mark.parametrize("event", [*NO_OBJECTS, b'{"a": %b}' % (b"9" * 9000)], ids=lambda event: event[:8].decode())
def test_what_is_no_json_object_is_broken(event: bytes) -> None:
    assert isinstance(told(event).error, UpstreamUnreadable)


# Surrogates: OpenAI-compatible servers cut text by tokens, and JSON escapes carry half a pair.

HALVES = st.sampled_from(["\ud800", "\ud83d", "\udbff", "\udc00", "\ude00", "\udfff", "a", "é", "😀"])
KINDS: st.SearchStrategy[Kind] = st.sampled_from(["content", "reasoning"])


def joined(text: str) -> str:
    """Pairs as one character, halves replaced; independent of the product's way."""

    def one(match: re.Match[str]) -> str:
        high, low = map(ord, match.group())
        return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))

    return re.sub("[\ud800-\udfff]", "\ufffd", re.sub("[\ud800-\udbff][\udc00-\udfff]", one, text))


@given(st.lists(st.tuples(KINDS, st.lists(HALVES, min_size=1, max_size=4).map("".join)), max_size=12))
@example([("content", "\ud83d"), ("reasoning", "\ud83d"), ("content", "\ude00"), ("reasoning", "\ude00")])
@example([("content", "\ud83d"), ("reasoning", "a"), ("content", "\ude00")])
@example([("content", "\ud83d"), ("content", "\ud83d"), ("content", "\ude00")])
def test_surrogate_pairs_split_over_deltas_are_joined_and_halves_replaced(deltas: list[tuple[Kind, str]]) -> None:
    answer = told(*(chunk({kind: text}) for kind, text in deltas), DONE)
    for kind in ("content", "reasoning"):
        sent = "".join(text for of, text in deltas if of == kind)
        assert answer.text(kind) == joined(sent)
    for _, text in answer.deltas:
        assert text and text.encode()


def test_the_first_half_of_a_pair_waits_for_the_second() -> None:
    assert told(says("a\ud83d"), says(""), says("\ude00b")).deltas == [("content", "a"), ("content", "😀b")]


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_made_encodable_and_good_text_stays(text: str) -> None:
    assert encodable(text) == joined(text)


# What errors mean

STATUSES: dict[str, tuple[dict[str, Any], int]] = {
    "an int": ({"code": 429}, 429),
    "a numeric string": ({"code": "408"}, 408),
    "a word": ({"code": "server_error"}, 502),
    "a word with a meaning": ({"code": "rate_limit_exceeded"}, 429),
    "null": ({"code": None}, 502),
    "missing": ({}, 502),
    "true": ({"code": True}, 502),
    "a list": ({"code": [429]}, 502),
    "the first status": ({"code": 400}, 400),
    "the last status": ({"code": "599"}, 599),
    "beyond the last": ({"code": 600}, 502),
    "a long number": ({"code": "9" * 5000}, 502),
    "a longer one": ({"code": 10**30}, 502),
    "a word of three letters": ({"code": "EOF"}, 502),
    "no status": ({"code": 200}, 502),
    "a type": ({"type": "overloaded_error"}, 529),
    "an error_type": ({"metadata": {"error_type": "context_length_exceeded"}}, 400),
    "an unknown code and an error_type": ({"code": "boom", "metadata": {"error_type": "provider_overloaded"}}, 503),
}


@pytest.mark.parametrize(("fields", "code"), STATUSES.values(), ids=STATUSES)
def test_the_status_of_an_error_is_found(fields: dict[str, Any], code: int) -> None:
    error = told({"choices": [], "error": fields | {"message": "Because"}}).error
    assert isinstance(error, UpstreamRefused) and error.failure.code == code
    assert error.failure.message.endswith(": Because") or code == 400


WORDS = {
    "authentication_error": 401,
    "content_policy_violation": 403,
    "context_length_exceeded": 400,
    "insufficient_quota": 402,
    "invalid_request_error": 400,
    "not_found_error": 404,
    "permission_error": 403,
    "provider_overloaded": 503,
    "rate_limit_exceeded": 429,
    "timeout": 408,
    "something_new": 502,
}


@pytest.mark.parametrize(("word", "code"), WORDS.items())
def test_a_word_stands_for_a_status_in_code_type_and_metadata(word: str, code: int) -> None:
    for fields in ({"code": word}, {"type": word}, {"metadata": {"error_type": word}}):
        assert refusal(None, {"error": fields}, None, KEY).failure.code == code


# Refusals


def test_errors_of_the_request_stay_and_408_429_and_5xx_pass() -> None:
    retryable = [code for code in range(400, 600) if refusal(code, {}, None, KEY).failure.retryable]
    assert retryable == [408, 429, *range(500, 600)]


def test_nobody_is_told_to_try_again_where_that_makes_no_sense() -> None:
    errors = [refusal(code, {}, None, KEY) for code in range(400, 600)]
    assert [e.failure.code for e in errors if not e.failure.retryable and "try again" in e.failure.message] == []


def test_a_402_is_retryable_only_for_a_budget_in_flight() -> None:
    def said(source: str) -> dict[str, Any]:
        return {"error": {"code": 402, "message": "m", "metadata": {"limit_source": source}}}

    in_flight = refusal(402, said("openrouter_in_flight_budget"), 3.0, KEY)
    assert (in_flight.failure.retryable, in_flight.failure.retry_after) == (True, 3.0)
    assert not refusal(402, said("key_limit"), None, KEY).failure.retryable


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "MAX_TOKENS"])
def test_a_402_for_the_longest_answer_says_how_to_ask_for_less(name: str) -> None:
    """Without `max_tokens` OpenRouter reserves the model's whole output."""
    words = f"This request requires more credits, or fewer {name}. You requested up to 65536, but can only afford 40."
    error = refusal(402, {"error": {"code": 402, "message": words}}, None, KEY)
    assert "set MAX_TOKENS" in error.failure.message and words in error.failure.message and not error.failure.retryable
    assert "MAX_TOKENS" not in refusal(402, {"error": {"message": "Insufficient credits"}}, None, KEY).failure.message


def test_where_the_context_is_too_long_three_ways_out_are_told() -> None:
    said = {"error": {"code": 400, "message": "m", "metadata": {"error_type": "context_length_exceeded"}}}
    message = refusal(400, said, None, KEY).failure.message
    assert all(way in message for way in ("a shorter one", "a model that reads more", '"context-compression"'))


def test_the_status_of_the_response_counts_more_than_the_code_in_its_body() -> None:
    assert refusal(503, {"error": {"code": 400, "message": "m"}}, None, KEY).failure.code == 503


@pytest.mark.parametrize("body", [{}, {"error": None}, {"error": 5}, {"error": []}, {"error": {"message": None}}])
def test_a_refusal_without_words_has_the_services_own(body: dict[str, Any]) -> None:
    assert refusal(401, body, None, KEY).failure.message == "Upstream doesn't accept the API key in OPENROUTER_API_KEY."


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 408, 413, 422, 429, 500, 529])
def test_an_error_is_one_sentence_with_upstreams_words_after_its_colon(status: int) -> None:
    message = refusal(status, {"error": {"message": "no such model"}}, None, KEY).failure.message
    assert re.fullmatch(r"[A-Z][^:]+[^:.]: no such model", message)


def test_upstreams_words_are_one_line_of_300_characters_at_the_most() -> None:
    said = refusal(500, {"error": {"message": "word\r\n\t " * 200}}, None, KEY).failure.message.partition(": ")[2]
    assert said == ("word " * 60)[:300]


def secretive(message: str) -> str:
    """What a person gets to read of a refusal that names private things in all places."""
    metadata = {"raw": "Acme account 4711", "flagged_input": "my diary", "provider_name": "Acme"}
    body = {"error": {"code": 403, "message": message, "metadata": metadata}, "user_id": "user_2abcDEF"}
    return refusal(403, body, None, KEY).failure.message


@pytest.mark.parametrize(
    "secret",
    [
        KEY,
        "user_2abcDEF",
        "Acme account 4711",
        "my diary",
        "sk-proj-aBcDeF_123456",
        "sk-ab12******89yz",
        "org-abc123def",
    ],
)
def test_keys_and_what_upstream_says_of_an_account_are_redacted(secret: str) -> None:
    message = secretive(f"No: '{secret}' isn't allowed ({secret}).")
    assert message.endswith(": No: '[redacted]' isn't allowed ([redacted]).")


@pytest.mark.parametrize(("key", "said"), [("local", "no local model"), ("secret", "no [redacted] model")])
def test_a_key_that_is_a_short_word_is_none(key: str, said: str) -> None:
    """Local servers take any word."""
    assert refusal(404, {"error": {"message": f"no {key} model"}}, None, key).failure.message.endswith(f": {said}")


def test_nothing_private_shows_that_upstream_did_not_say_in_its_message() -> None:
    assert "Acme account" not in secretive("Provider returned error") and "diary" not in secretive("Flagged")


@pytest.mark.parametrize("inner", ["user_id", "key"])
def test_a_secret_inside_a_secret_does_not_uncover_the_rest(inner: str) -> None:
    name = {"user_id": "u77", "key": KEY}[inner]
    quoted = f"{name} wrote: my diary"
    body = {"error": {"message": f"Refused: {quoted}", "metadata": {"raw": quoted}}, "user_id": "u77"}
    assert "diary" not in refusal(403, body, None, KEY).failure.message


def test_private_fields_are_found_at_the_top_and_in_the_error_and_its_metadata() -> None:
    for body in (
        {"error": {"message": "a b7"}, "user_id": "b7"},
        {"error": {"message": "a b7", "user_id": "b7"}},
        {"error": {"message": "a b7", "metadata": {"user_id": "b7"}}},
        {"error": "a b7", "user_id": "b7"},
    ):
        assert refusal(400, body, None, KEY).failure.message.endswith(": a [redacted]")


@pytest.mark.parametrize("message", [None, 5, ["x"], {"a": 1}, "", " \n"])
def test_what_is_no_text_says_nothing(message: object) -> None:
    assert redacted(message, [KEY]) == ""


@given(st.text(st.characters(exclude_categories=())), st.lists(st.text(max_size=3)))
def test_redacted_words_can_be_sent(message: str, secrets: list[str]) -> None:
    said = redacted(message, secrets)
    assert len(said) <= 300 and said.encode() is not None


# Retry-After: https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("12", 12.0),
        (" 12 ", 12.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("86400", 86400.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        (None, None),
        ("", None),
        (" ", None),
        ("soon", None),
        ("12 s", None),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("1e999", None),
        ("Sun, 99 Nov 2094 08:49:37 GMT", None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2030 00:00:00 +99999999999999999999", None),
    ],
)
def test_retry_after_is_seconds_from_now_or_nothing(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value) == seconds


def test_a_retry_after_of_many_digits_is_long_or_nothing() -> None:
    assert retry_after_seconds("9" * 30) == 1e30
    assert retry_after_seconds("9" * 5000) is None


@pytest.mark.parametrize(
    "form",
    ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y", "%a, %d %b %Y %H:%M:%S -0000"],
    ids=["IMF-fixdate", "RFC 850", "asctime", "no zone"],
)
def test_a_retry_after_date_in_any_http_form_is_seconds_from_now(form: str) -> None:
    seconds = retry_after_seconds((datetime.now(UTC) + timedelta(seconds=90)).strftime(form))
    assert seconds is not None and 80 < seconds <= 90


@pytest.mark.parametrize("digits", ["\u0661\u0662", "1_0"])
def test_a_retry_after_that_only_python_calls_a_number_harms_nobody(digits: str) -> None:
    assert retry_after_seconds(digits) in (None, 12.0, 10.0)


DATES = st.datetimes(timezones=st.just(UTC)).map(format_datetime)
SCRAPS = st.lists(
    st.sampled_from(["Mon,", "1", "Jan", "2030", "99999999999", "00:00:00", "+9999", "GMT", ":", "-", "+"])
)


@given(st.text() | DATES | SCRAPS.map(" ".join) | st.floats().map(str) | st.integers().map(str))
def test_no_retry_after_raises(value: str) -> None:
    seconds = retry_after_seconds(value)
    assert seconds is None or 0 <= seconds < float("inf")


# Usage


def test_usage_keeps_figures_and_short_words_alone() -> None:
    usage = parsed_json(
        b'{"a": 1, "b": 0.5, "c": true, "d": "free", "e": null, "f": NaN, "g": 1e999, "h": -Infinity, "i": [1],'
        b' "j": {"k": {"l": {"m": 1}}}, "n": 123456789012345678901234567890, "o": "\\ud83d"}'
    )
    kept = {"a": 1, "b": 0.5, "c": True, "d": "free", "j": {"k": {"l": None}}, "n": 123456789012345678901234567890}
    assert plain_usage(usage) == dict.fromkeys("abcdefghijno") | kept | {"o": "\ufffd"}


def test_usage_is_cut_to_a_size_that_can_be_kept() -> None:
    usage = plain_usage({f"{n:03}{'x' * 100}": "y" * 1000 for n in range(500)})
    assert len(usage) == 64
    assert {len(key) for key in usage} == {len(value) for value in usage.values()} == {64}


# Anything at all

TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object with some of these fields, each right or anything."""
    return st.fixed_dictionaries({}, optional={name: value | JSON for name, value in fields.items()})


CODES = st.integers(0, 700) | st.sampled_from([*WORDS]) | st.integers(0, 700).map(str)
METADATA = some(raw=TEXTS, flagged_input=TEXTS, error_type=CODES, limit_source=TEXTS)
ERRORS = some(code=CODES, message=TEXTS, type=CODES, metadata=METADATA, user_id=TEXTS)
LINKS = st.sampled_from(["https://a.example/é", "http://b.example", "javascript:alert(1)"])
SOURCES = some(url=LINKS, title=TEXTS, start_index=st.integers(), end_index=st.integers(), content=TEXTS)
CITED = st.lists(some(type=st.just("url_citation"), url_citation=SOURCES), max_size=3)
DELTAS = some(content=TEXTS, reasoning=TEXTS, reasoning_content=TEXTS, annotations=CITED)
CHOICE = some(delta=DELTAS, finish_reason=TEXTS | st.just("error"), error=ERRORS, annotations=CITED)
CHOICES = st.lists(CHOICE, max_size=2)
USAGES = some(total_tokens=JSON, details=some(cost=JSON))
CHUNKS = some(id=TEXTS, model=TEXTS, provider=TEXTS, choices=CHOICES, usage=USAGES, user_id=TEXTS)
BAD_CHUNKS = some(id=TEXTS, choices=CHOICES, error=ERRORS, user_id=TEXTS)


def assert_bears(pieces: Iterable[bytes]) -> None:
    """Assert that this ends in nothing worse than an error of upstream's, and that all of it can be sent."""
    answer = read(pieces)
    assert json.dumps([astuple(value) for value in answer.values], allow_nan=False, ensure_ascii=False).encode()
    if error := answer.error:
        assert error.failure.message.encode() and 400 <= error.failure.code <= 599
        assert KEY not in error.failure.message
    else:
        assert answer.finish


@given(st.lists((CHUNKS | BAD_CHUNKS | JSON).map(raw) | st.just(b"[DONE]"), max_size=6))
def test_no_chunk_raises_anything_but_an_upstream_error(events: list[bytes]) -> None:
    assert_bears(map(sse, events))


FRAGMENTS = st.sampled_from([b"data: ", b"data:", b"\n", b"\r\n", b"\r", b"\n\n", b"[DONE]", b"\xef\xbb\xbf", b":"])
SCRAP_BYTES = st.lists(FRAGMENTS | st.binary(max_size=8) | CHUNKS.map(raw) | BAD_CHUNKS.map(raw), max_size=12)


@given(SCRAP_BYTES.map(b"".join), st.lists(st.integers(0, 10_000), max_size=6))
@example(b"<", [])
def test_no_bytes_raise_anything_but_an_upstream_error(stream: bytes, cuts: list[int]) -> None:
    assert_bears(pieces_of(stream, cuts))


def test_a_usage_report_that_is_too_long_is_left_out() -> None:
    short, long = {"a": "x" * 64}, {f"{n}": "x" * 64 for n in range(64)}
    assert told({"usage": short}).usage == short
    assert told({"usage": short}, {"usage": long}).usage is None
