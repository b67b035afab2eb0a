"""The form of `options`: what is taken as it is, and what is refused, with its reason."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.fields import Options


def complaints(options: object, max_tokens: int = 0) -> dict[str, str]:
    """What is wrong, by where."""
    return dict(Options(max_tokens)(options))


def nested(levels: int, kind: type) -> Any:
    """A value of so many levels."""
    value: Any = {} if kind is dict else []
    for _ in range(levels - 1):
        value = {"a b": value} if kind is dict else [value]
    return value


@pytest.mark.parametrize(
    "options",
    [
        None,
        {},
        {"temperature": 0.1, "max_tokens": 10**6, "seed": -1, "stop": None, "user": "é 😀 \u2028"},
        {"reasoning": {"effort": "high"}, "provider": {"order": ["a"], "allow fallbacks!": True}},
        {"plugins": [{"id": "web"}], "models": ["a/b", "c/d"], "transforms": []},
        {"tools": [{"type": "openrouter:web_search"}], "modalities": ["text"]},
        {"tools": None, "modalities": None},
        {"tools": [], "modalities": []},
        {"tools": "something that upstream will refuse", "max_completion_tokens": "many"},
        {f"{'x' * 62}{n:02}": n for n in range(64)},
        {"a": nested(9, dict), "b": nested(9, list)},
        {"a": "x" * (16 * 1024 - 8)},
        {"a": "é" * (8 * 1024 - 4)},
    ],
    ids=lambda options: str(options)[:60],
)
def test_values_are_upstreams_business(options: Any) -> None:
    assert complaints(options) == {}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "must be a JSON object, or null"),
        ("{}", "must be a JSON object, or null"),
        (7, "must be a JSON object, or null"),
        ({f"n{n}": n for n in range(65)}, "at most 64 names"),
        ({"": 1}, "A-Z a-z 0-9 _"),
        ({"a b": 1}, "A-Z a-z 0-9 _"),
        ({"é": 1}, "A-Z a-z 0-9 _"),
        ({"\ud800": 1}, "A-Z a-z 0-9 _"),
        ({"a\n": 1}, "A-Z a-z 0-9 _"),
        ({"x" * 65: 1}, "1 to 64 characters"),
        ({"a": nested(10, dict)}, "at most 10 levels"),
        ({"a": nested(10, list)}, "at most 10 levels"),
        ({"a": nested(400, list)}, "at most 10 levels"),
        ({"a": "x" * (16 * 1024 - 7)}, "at most 16384 bytes"),
        ({"a": "é" * (8 * 1024 - 3)}, "at most 16384 bytes"),
        ({"a": float("inf")}, "finite numbers"),
        ({"a": [{"b": float("-inf")}]}, "finite numbers"),
        ({"a": "\ud83d"}, "surrogate"),
        ({"a": {"\ude80": 1}}, "surrogate"),
    ],
    ids=lambda value: str(value)[:40].encode(errors="replace").decode(),
)
def test_a_form_that_is_not_taken_is_refused_as_a_whole(options: Any, reason: str) -> None:
    [(where, complaint)] = complaints(options).items()
    assert where == "" and reason in complaint


@pytest.mark.parametrize("value", [None, 1, "text", []], ids=repr)
@pytest.mark.parametrize("name", ["model", "messages", "prompt", "input", "stream", "stream_options", "n"])
def test_what_the_service_sends_itself_is_refused_by_name(name: str, value: object) -> None:
    assert complaints({name: value, "top_p": 1}) == {f".{name}": "is set by the service itself"}


@pytest.mark.parametrize("value", [None, True, 5], ids=repr)
@pytest.mark.parametrize("name", ["logprobs", "top_logprobs", "audio", "functions", "function_call"])
def test_what_would_be_paid_for_and_lost_is_refused_by_name(name: str, value: object) -> None:
    assert "other than text" in complaints({name: value})[f".{name}"]


@pytest.mark.parametrize("value", [["image"], ["text", "image"], "image", {}, 1], ids=repr)
def test_no_modality_but_text_is_taken(value: object) -> None:
    assert '["text"]' in complaints({"modalities": value})[".modalities"]


def test_a_tool_of_type_function_is_refused_among_others() -> None:
    tools = [{"type": "openrouter:web_search"}, {"type": "function", "function": {"name": "f"}}]
    assert "`function`" in complaints({"tools": tools})[".tools"]


def test_every_part_that_is_wrong_is_told() -> None:
    assert [*complaints({"n": 2, "top_p": 1, "audio": {}, "max_tokens": 0}, 100)] == [".n", ".audio", ".max_tokens"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(
    ("value", "is_taken"),
    [
        *((value, True) for value in (1, 100, None)),
        *((value, False) for value in (101, 0, -1, 50.0, "5", True, "")),
    ],
    ids=str,
)
def test_with_max_tokens_set_an_answer_may_be_no_longer(name: str, value: object, is_taken: bool) -> None:
    told = {} if is_taken else {f".{name}": "must be a whole number from 1 to 100 (MAX_TOKENS), or null"}
    assert complaints({name: value}, 100) == told
    assert complaints({name: value}) == {}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=3) | st.sampled_from(["tools", "modalities", "max_tokens"]), VALUES) | VALUES)
def test_what_is_taken_can_be_sent(options: Any) -> None:
    if not complaints(options, 100) and options is not None:
        assert len(json.dumps(options, allow_nan=False, ensure_ascii=False).encode()) < 20_000


@given(st.text(min_size=1, max_size=5), VALUES)
def test_whatever_comes_is_taken_or_refused_with_a_sentence(name: str, value: Any) -> None:
    assert all(complaint and "\n" not in complaint for complaint in complaints({name: value}, 7).values())
