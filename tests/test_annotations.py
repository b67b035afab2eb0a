"""The sources that an answer cites: what is kept of them, where they may stand, and their bounds."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.completions import told
from upstream.texts import Citations

Citation = dict[str, Any]

PAGE = "https://example.com/page"


def cites(url: object = PAGE, title: object = "A page", start: object = 0, end: object = 5, **more: Any) -> Any:
    """One annotation in OpenRouter's shape."""
    inner = {"url": url, "title": title, "start_index": start, "end_index": end, "content": "Its text", **more}
    return {"type": "url_citation", "url_citation": inner}


def kept(*annotations: Any) -> list[Citation]:
    """What is kept of them."""
    return sources(Citations().take(list(annotations)))


def sources(text: str | None) -> list[Citation]:
    return json.loads(text) if text else []


def citation(url: str = PAGE, title: str | None = "A page", start: int | None = 0, end: int | None = 5) -> Citation:
    """One as it is kept."""
    return {"type": "url_citation", "url": url, "title": title, "start_index": start, "end_index": end}


def test_a_source_is_kept_without_the_text_of_its_page() -> None:
    assert kept(cites()) == [citation()]


def test_a_source_may_stand_in_the_annotation_itself() -> None:
    assert kept({"type": "url_citation", "url": PAGE, "title": "A page", "start_index": 0, "end_index": 5}) == [
        citation()
    ]


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", "//example.com", "ftp://example.com", "https://", "", None, 7]
)
def test_only_web_addresses_are_kept(url: object) -> None:
    assert kept(cites(url)) == []


def test_a_scheme_may_be_in_capitals() -> None:
    assert kept(cites("HTTPS://EXAMPLE.COM")) == [citation("HTTPS://EXAMPLE.COM")]


def test_a_source_with_too_long_an_address_is_left_out() -> None:
    longest = PAGE.ljust(2048, "x")
    assert kept(cites(longest + "x"), cites(longest)) == [citation(longest)]


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("x" * 301, "x" * 300),
        ("😀" * 301, "😀" * 300),
        ("", None),
        (" ", None),
        (None, None),
        (7, None),
        ("\ud83d", "�"),
    ],
)
def test_a_title_is_cut_or_null(title: object, shown: str | None) -> None:
    assert kept(cites(title=title)) == [citation(title=shown)]


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 0), (5, 5), (5, 4), (-1, 5), (None, 5), (0, None), ("0", "5"), (0.0, 5.0), (False, True), (0, 2**60)],
)
def test_indexes_that_are_no_span_are_both_null(start: object, end: object) -> None:
    assert kept(cites(start=start, end=end)) == [citation(start=None, end=None)]


def test_exact_repeats_are_dropped_and_another_span_is_kept() -> None:
    again = cites(content="Its text, read again")
    assert kept(cites(), again, cites(end=9), cites()) == [citation(), citation(end=9)]


def test_repeats_take_no_room() -> None:
    long, others = cites(PAGE.ljust(2000, "x")), [cites(f"{PAGE}/{n}") for n in range(99)]
    assert len(kept(*[long] * 30, *others)) == 100


@pytest.mark.parametrize(
    "annotations", [None, {}, "x", [None, 7, "x", [], {}], [{"type": "file", "url_citation": {"url": PAGE}}]], ids=repr
)
def test_what_is_no_citation_is_ignored(annotations: object) -> None:
    assert Citations().take(annotations) is None


def test_at_most_a_hundred_are_kept() -> None:
    assert kept(*(cites(f"{PAGE}/{n}") for n in range(101))) == [citation(f"{PAGE}/{n}") for n in range(100)]


def test_what_does_not_fit_into_the_last_event_is_left_out() -> None:
    """A line of the stream has at most 60,000 bytes."""
    found = kept(*(cites(PAGE.ljust(2000, "é") + str(n)) for n in range(10)))
    assert len(found) == 3
    assert len(json.dumps(found)) <= 40_000 < len(json.dumps([*found, found[0]]))


@given(st.lists(st.builds(cites, st.integers(0, 2000).map(PAGE.ljust), st.text(max_size=400)), max_size=120))
def test_whatever_comes_the_bounds_hold(annotations: list[Any]) -> None:
    found = kept(*annotations)
    assert len(found) <= 100 and len(json.dumps(found)) <= 40_000


# Where they stand


def reported(*choices: dict[str, Any]) -> list[Citation]:
    """The sources of a completion that had these choices, one an event."""
    return sources(told(*({"choices": [choice]} for choice in choices)).report.annotations)


@pytest.mark.parametrize(
    "choice",
    [
        {"delta": {"content": "", "annotations": [cites()]}},
        {"delta": {"content": "Text", "annotations": [cites()]}},
        {"delta": {"content": "Text"}, "annotations": [cites()]},
        {"delta": {}, "annotations": [cites()], "finish_reason": "stop"},
        {"delta": None, "annotations": [cites()]},
        {"message": {"content": "Text", "annotations": [cites()]}},
    ],
    ids=["delta", "delta with text", "choice with text", "choice with the end", "choice alone", "message"],
)
def test_sources_are_found_before_with_and_after_the_text(choice: dict[str, Any]) -> None:
    says = {"delta": {"content": "Hi"}}
    assert reported(choice) == reported(choice, says) == reported(says, choice) == [citation()]


def test_sources_add_up_over_the_events_of_an_answer() -> None:
    first, second = {"delta": {"annotations": [cites()]}}, {"delta": {"content": "a", "annotations": [cites(end=9)]}}
    assert reported(first, first, second) == [citation(), citation(end=9)]


def test_a_search_is_billed_so_an_answer_with_sources_is_not_asked_for_again() -> None:
    assert told({"choices": [{"annotations": [cites()]}]}).is_generated
