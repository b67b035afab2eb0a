"""A message's text: read from anywhere, while it grows and after."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stores.records import Kind, Transcript, byte_size

RUNS: st.SearchStrategy[list[tuple[Kind, str]]] = st.lists(
    st.tuples(st.sampled_from(["content", "reasoning"]), st.text(max_size=6).filter(bool)), max_size=12
)


def merged(runs: list[tuple[Kind, str]]) -> list[tuple[Kind, str]]:
    """Neighbours of one kind as one run."""
    found: list[tuple[Kind, str]] = []
    for kind, text in runs:
        if found and found[-1][0] == kind:
            text = found.pop()[1] + text
        found.append((kind, text))
    return found


def cut(runs: list[tuple[Kind, str]], start: int, end: int) -> list[tuple[Kind, str]]:
    """What stands from `start` to `end`, character by character."""
    characters: list[tuple[Kind, str]] = [(kind, character) for kind, text in runs for character in text]
    return merged(characters[start:end])


def grown(runs: list[tuple[Kind, str]]) -> Transcript:
    transcript = Transcript()
    for kind, text in runs:
        transcript.append(kind, text)
    return transcript


@given(RUNS, st.integers(0, 80), st.integers(1, 20))
@example([("content", "a\r\nb\r"), ("content", "\n")], 2, 3)
@example([("reasoning", "abc"), ("content", "d")], 0, 3)
@example([("reasoning", "abc"), ("content", "d")], 3, 1)
def test_a_transcript_read_from_anywhere_in_slices_of_any_size_gives_exactly_what_was_appended(
    runs: list[tuple[Kind, str]], start: int, most: int
) -> None:
    transcript = grown(runs)
    length = sum(len(text) for _, text in runs)
    for _ in ("growing", "closed"):
        position, read = start, list[tuple[Kind, str]]()
        while piece := transcript.read(position, most):
            assert piece == cut(runs, position, position + most)
            read += piece
            position += sum(len(text) for _, text in piece)
        assert merged(read) == cut(runs, start, length)
        assert position == max(start, length)
        transcript.close()


@given(RUNS, st.integers(1, 10))
def test_a_transcript_read_while_it_grows_gives_every_character_once(runs: list[tuple[Kind, str]], most: int) -> None:
    transcript, position, read = Transcript(), 0, list[tuple[Kind, str]]()
    for kind, text in runs:
        transcript.append(kind, text)
        piece = transcript.read(position, most)
        read += piece
        position += sum(len(text) for _, text in piece)
    transcript.close()
    assert merged(read + transcript.read(position, transcript.kept)) == merged(runs)


@given(RUNS, st.integers(0, 12))
def test_a_transcript_catches_up_with_another_of_the_same_text(runs: list[tuple[Kind, str]], some: int) -> None:
    whole, behind = grown(runs), grown(runs[:some])
    behind.catch_up(whole)
    assert (behind, behind.size) == (whole, whole.size)
    behind.append("reasoning", "more")
    assert behind.reasoning == whole.reasoning + "more"


@given(RUNS)
def test_a_transcript_knows_its_text_by_kind_its_length_and_its_bytes(runs: list[tuple[Kind, str]]) -> None:
    transcript = grown(runs)
    whole = "".join(text for _, text in runs)
    for _ in ("growing", "closed"):
        assert transcript.content == "".join(text for kind, text in runs if kind == "content")
        assert transcript.reasoning == "".join(text for kind, text in runs if kind == "reasoning")
        assert transcript.has_reasoning == bool(transcript.reasoning)
        assert "".join(transcript.pieces("content", len(whole))) == transcript.content
        assert "".join(transcript.pieces("reasoning", len(whole))) == transcript.reasoning
        assert (transcript.kept, transcript.size) == (len(whole), len(whole.encode()))
        transcript.close()


@given(st.text())
def test_a_transcript_of_a_whole_text_is_all_content(text: str) -> None:
    transcript = Transcript(text)
    assert (transcript.content, transcript.reasoning) == (text, "")
    assert (transcript.kept, transcript.size) == (len(text), byte_size(text)) == (len(text), len(text.encode()))
    transcript.close()
    assert transcript.read(0, len(text)) == ([("content", text)] if text else [])


@given(RUNS, RUNS, st.integers(1, 10))
def test_text_that_is_not_kept_is_seen_by_engines_alone_and_can_be_dropped(
    kept: list[tuple[Kind, str]], taken: list[tuple[Kind, str]], most: int
) -> None:
    transcript = grown(kept)
    length, size = transcript.kept, transcript.size
    assert [transcript.take(kind, text) for kind, text in taken] == [len(text.encode()) for _, text in taken]
    assert transcript.read(length, most) == []
    assert transcript.read(length, most, is_kept=False) == cut([*kept, *taken], length, length + most)
    assert transcript.parts() == grown(kept).parts()
    assert transcript.drop() == sum(len(text.encode()) for _, text in taken)
    assert (transcript.kept, transcript.taken, transcript.size) == (length, length, size)
    transcript.append("content", "end")
    assert merged(transcript.read(0, 1000)) == merged([*kept, ("content", "end")])


def test_a_closed_transcript_does_not_grow() -> None:
    for closed in (Transcript("text"), grown([("content", "text")])):
        closed.close()
        with pytest.raises(AssertionError, match="closed transcript"):
            closed.append("content", "more")
        assert closed.content == "text"


def test_nothing_has_no_bytes() -> None:
    assert byte_size(None) == byte_size("") == 0


LONG_TEXTS = [(alphabet * 12_000)[:12_000] for alphabet in ("漢", "😀", "aé漢😀", "abc")]
LONG = [(text, Transcript(text)) for text in LONG_TEXTS]


@given(st.integers(0, 12_000), st.integers(1, 9_000))
@example(4095, 2)
@example(1365, 1)
def test_a_long_text_at_rest_is_read_from_anywhere(start: int, most: int) -> None:
    """Its pieces begin and end in characters of one to four bytes, at the edges of blocks, too."""
    for text, transcript in LONG:
        assert transcript.read(start, most) == [("content", text[start : start + most])][: start < len(text)]


def test_a_piece_of_a_text_at_rest_costs_what_is_in_it() -> None:
    transcript = Transcript("漢字é 😀 ab, " * 100_000)
    started = time.thread_time()
    position = 0
    while position < transcript.kept:
        position += sum(len(text) for _, text in transcript.read(position, 1_000))
    assert time.thread_time() - started < 0.5, "decoding all of it for each piece takes 2 s"


@given(RUNS, st.integers(0, 80), st.integers(1, 20), st.integers(1, 4))
def test_runs_are_read_some_at_a_time(runs: list[tuple[Kind, str]], start: int, most: int, some: int) -> None:
    transcript = grown(runs)
    assert transcript.read(start, most, some) == cut(runs, start, start + most)[:some]


def test_a_text_that_switches_with_every_word_is_read_in_one_go() -> None:
    """Decoding it for each run would take minutes."""
    transcript = Transcript()
    for number in range(50_000):
        transcript.append("reasoning" if number % 2 else "content", "😀" * 10)
    transcript.close()
    started = time.monotonic()
    assert (len(transcript.content), len(transcript.reasoning)) == (250_000, 250_000)
    assert time.monotonic() - started < 5.0
