"""What an `Accept` header wants: events, bare text or JSON."""

import pytest

from api.requests import wants_events, wants_text
from tests.support.relay import Relay
from tests.support.upstream import ANSWER

AXIOS = "application/json, text/plain, */*"


@pytest.mark.parametrize(
    "accept",
    [
        "text/plain",
        "TEXT/PLAIN",
        "text/plain, */*;q=0.5",
        "text/plain;q=0.9, text/event-stream;q=0.8",
        "text/plain;q=.5",
    ],
)
def test_text_is_for_who_wants_it_more_than_events(accept: str) -> None:
    assert wants_text(accept)


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/*",
        AXIOS,
        "text/plain;q=0",
        "text/plain; q=0.0",
        "text/plain;q=0.",
        "text/event-stream",
        "text/event-stream, text/plain",
        "text/plain;q=0.5, */*",
        "text/plain;q=0.5, text/*;q=0.7",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "application/json",
        "nonsense",
        ",;q=,",
        "text/plain;q=., */*",
    ],
)
def test_everybody_else_gets_events(accept: str) -> None:
    assert not wants_text(accept)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream; charset=utf-8", True),
        ("application/json, text/event-stream", True),
        ("text/event-stream, application/json;q=0.5", True),
        ("text/event-stream, */*", True),
        ("text/event-stream;q=0.5, application/json", False),
        ("text/event-stream;q=0.5, */*", False),
        ("text/event-stream;q=0", False),
        ("*/*", False),
        ("text/*", False),
        ("", False),
        (AXIOS, False),
    ],
)
def test_a_question_is_answered_with_a_stream_where_it_is_named_and_json_is_not_wanted_more(
    accept: str, wanted: bool
) -> None:
    assert wants_events(accept) is wanted


async def test_axios_gets_events_and_a_terminal_its_text(relay: Relay) -> None:
    conversation_id = await relay.ask()
    path = f"/conversations/{conversation_id}/stream"
    events = await relay.client.get(path, headers={"Accept": AXIOS})
    assert events.headers["content-type"].startswith("text/event-stream")
    await relay.say(conversation_id)
    text = await relay.client.get(path, headers={"Accept": "text/plain"})
    assert (text.headers["content-type"], text.text) == ("text/plain; charset=utf-8", ANSWER + "\n")
