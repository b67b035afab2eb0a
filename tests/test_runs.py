"""The shortcut for runs of like events gives what the ordinary way gives, whatever comes and however it is cut."""

import json
from collections.abc import Iterable
from itertools import groupby, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upstream import runs
from upstream.runs import Runs
from upstream.wire import Completion, Delta, EventParser, Generation, UpstreamError

Outcome = tuple[list[Generation | Delta], str | None, bool, Any]


def event(delta: dict[str, Any], end: str = "\n\n", *, ensure_ascii: bool = False, **more: Any) -> bytes:
    """A chunk in OpenRouter's shape."""
    choice = {"index": 0, "delta": delta, "finish_reason": more.pop("finish_reason", None)}
    chunk = {"id": "gen-1", "created": 5, "choices": [choice], **more}
    text = json.dumps(chunk, ensure_ascii=ensure_ascii, separators=(",", ":"))
    return b"data: " + text.encode("utf-8", "surrogatepass") + end.encode()


def said(text: str, **more: Any) -> bytes:
    return event({"role": "assistant", "content": text}, **more)


def the_ordinary_way(pieces: Iterable[bytes]) -> Outcome:
    completion, parser = Completion("key"), EventParser()
    values: list[Generation | Delta] = []
    error = None
    try:
        for piece in pieces:
            for data in parser.feed(piece):
                values += completion.take(data)
        for data in parser.close():
            values += completion.take(data)
    except UpstreamError as caught:
        error = caught.message
    return merged(values), error, completion.whole, completion.usage


def by_runs(pieces: Iterable[bytes]) -> Outcome:
    completion = Completion("key")
    reader = Runs(completion)
    values: list[Generation | Delta] = []
    for piece in pieces:
        new, error = reader.take(piece)
        values += new
        if error:
            return merged(values), error.message, completion.whole, completion.usage
    new, error = reader.close()
    return merged(values + new), error.message if error else None, completion.whole, completion.usage


def merged(values: Iterable[Generation | Delta]) -> list[Generation | Delta]:
    together: list[Generation | Delta] = []
    for kind, neighbours in groupby(values, key=lambda value: getattr(value, "kind", None)):
        if kind is None:
            together += neighbours
        else:
            together.append(Delta(kind, "".join(value.text for value in neighbours if isinstance(value, Delta))))
    return together


def cut(raw: bytes, places: Iterable[int]) -> list[bytes]:
    edges = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    return [raw[a:b] for a, b in pairwise(edges)]


WORDS = st.sampled_from(
    [
        "a",
        " the",
        "\n",
        '"',
        "\\",
        'x\\"',
        '","',
        '" , "',
        "]}",
        "data: ",
        "\u2028",
        "ü",
        "😀",
        "\ud83d",
        "\ude00",
        "",
        "\x00",
    ]
)
ORDINARY = st.builds(said, WORDS)
ODD = st.one_of(
    st.builds(said, WORDS, ensure_ascii=st.just(True)),
    st.builds(said, WORDS, end=st.sampled_from(["\r\n\r\n", "\r\r", "\n\n\n", "\n"])),
    st.builds(said, WORDS, created=st.just(6)),
    st.builds(said, WORDS, usage=st.just({"cost": 1})),
    st.builds(said, WORDS, error=st.just({"code": 429, "message": "no"})),
    st.builds(said, WORDS, finish_reason=st.just("stop")),
    st.builds(event, st.fixed_dictionaries({"content": WORDS, "reasoning": WORDS})),
    st.builds(event, st.fixed_dictionaries({"content": st.sampled_from([None, 1, ["x"]])})),
    st.sampled_from(
        [b": OPENROUTER PROCESSING\n\n", b"data: [DONE]\n\n", b"data: {oops\n\n", b"event: x\ndata: {}\n\n"]
    ),
    # Not JSON, and made to be taken for it.
    st.sampled_from([said("MARK").replace(b"MARK", raw) for raw in (b"c\\", b',"d', b'","', b"\xff", b"\n")]),
)


@given(st.lists(st.one_of(ORDINARY, ORDINARY, ORDINARY, ODD), max_size=30), st.lists(st.integers(0), max_size=8))
def test_runs_give_what_the_ordinary_way_gives(events: list[bytes], places: list[int]) -> None:
    pieces = cut(b"".join(events), places)
    assert by_runs(pieces) == the_ordinary_way(pieces)


LIKE = [said("one"), said("two"), said("three")]


@pytest.mark.parametrize(
    "pieces",
    {
        "two texts seem to be two others": [
            b"".join(LIKE + [said("MARK").replace(b"MARK", raw) for raw in (b"c\\", b',"d')])
        ],
        "one text seems to be two": [b"".join([*LIKE, said("MARK").replace(b"MARK", b'a","b')])],
        "every event says something else, too": [event({"content": f"{n}", "reasoning": "hm"}) for n in range(9)],
        "every event reports usage": [said(f"{n}", usage={"cost": 1}) for n in range(9)],
        "every event is the last": [said(f"{n}", finish_reason="stop") for n in range(9)],
        "the same words stand elsewhere, too": [
            said("A", first={"content": "A"}).replace(b"data: {", b'data: {"x":{"content":"A"},'),
            said("A", first={"content": "A"}).replace(b"data: {", b'data: {"x":{"content":"B"},'),
        ],
        "a line goes on with what looks like an event": [*LIKE, b"event: x", said("no"), said("yes")],
    }.items(),
    ids=lambda case: case[0],
)
def test_what_only_looks_like_a_run_is_none(pieces: tuple[str, list[bytes]]) -> None:
    assert by_runs(pieces[1]) == the_ordinary_way(pieces[1])


@given(st.lists(WORDS, min_size=1, max_size=40), st.integers(1, 400))
def test_any_text_arrives_whole_in_pieces_of_any_size(words: list[str], size: int) -> None:
    raw = b"".join(said(word, ensure_ascii="\ud800" <= word[:1] <= "\udfff") for word in words)
    pieces = [raw[start : start + size] for start in range(0, len(raw), size)]
    assert by_runs(pieces) == the_ordinary_way(pieces)


def test_like_events_are_parsed_one_by_one_only_until_their_shape_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = parses(monkeypatch)
    values, error = Runs(Completion("key")).take(b"".join(said(f"word {number} ") for number in range(100)))
    assert (values[1:], error) == ([Delta("content", "".join(f"word {number} " for number in range(100)))], None)
    assert len(parsed) < 10


def test_a_stream_whose_events_all_differ_is_not_tried_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = parses(monkeypatch)
    reader = Runs(Completion("key"))
    for number in range(1000):
        reader.take(said(f"word {number} ", created=number))
    assert len(parsed) < 1000 + 10 * runs.MAX_MISSES


def parses(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the JSON parser is asked to read from now on."""
    parsed: list[object] = []
    loads = json.loads

    def counting(text: str | bytes) -> object:
        parsed.append(text)
        return loads(text)

    monkeypatch.setattr(json, "loads", counting)
    return parsed
