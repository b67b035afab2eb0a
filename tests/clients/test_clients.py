"""Libraries as their users have them, against `python server.py`, over a network that breaks."""

import pytest

from tests.clients.campaign import Program, browser, campaign, cuts, node

PROGRAMS = [
    node("eventsource"),
    node("eventsource-2", early_id=True),
    node("undici"),
    node("eventsource-client"),
    node("eventsource-client", "POST"),
    node("launchdarkly-eventsource"),
    node("launchdarkly-eventsource", "POST"),
    node("eventsource-parser"),
    node("eventsource-parser", "POST"),
    node("axios"),
    node("axios", "POST"),
    node("@ai-sdk/provider-utils", "POST"),
    node("openai", "POST"),
    browser("EventSource"),
    browser("event-source-polyfill"),
    browser("reconnecting-eventsource"),
    browser("@microsoft/fetch-event-source", early_id=True),
    browser("@microsoft/fetch-event-source", "POST", early_id=True),
    browser("@fortaine/fetch-event-source", early_id=True),
    browser("@fortaine/fetch-event-source", "POST", early_id=True),
    browser("extended-eventsource", early_id=True),
    browser("extended-eventsource", "POST", early_id=True),
    browser("sse.js"),
    browser("sse.js", "POST"),
    browser("axios"),
    browser("axios", "POST"),
]


def name(program: Program) -> str:
    return "-".join([*program.command[1].split("/")[-1:], program.library, program.method])


@pytest.mark.parametrize("program", PROGRAMS, ids=name)
async def test_cut_anywhere_nothing_is_lost_or_doubled(program: Program) -> None:
    cables = await campaign(program, cuts(name(program), 3))
    assert sum(cable.made for cable in cables) >= len(cables)
    assert sum(cable.pings for cable in cables) >= len(cables)
