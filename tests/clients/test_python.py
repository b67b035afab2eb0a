"""Libraries for Python, and curl."""

import asyncio
import contextlib
import json
from collections.abc import Sequence

import pytest

from tests.clients.campaign import LATE, Case, at_once, campaign, case, hurried
from tests.clients.libraries import Library, those
from tests.clients.seeing import all_cut, seen
from tests.support.upstream import ScriptedUpstream


@pytest.fixture(scope="module")
def cases() -> Sequence[Case]:
    return all_cut("python")


@pytest.mark.parametrize("library", those("python"), ids=str)
def test_cut_anywhere_and_after_a_silence_nothing_is_lost_or_doubled(cases: Sequence[Case], library: Library) -> None:
    seen(cases, library)


async def test_a_long_text_at_once_is_no_line_too_long() -> None:
    tried = [case(library, method, text=LATE) for library in those("python") for method in library.methods]
    await campaign("python", tried, at_once)
    assert [one.problems for one in tried] == [[]] * len(tried)


async def test_asyncio_takes_each_line_of_a_long_text() -> None:
    """`readline` of asyncio stops at 64 KiB, as Go's scanner does."""
    async with ScriptedUpstream() as upstream, hurried(upstream) as relay:
        upstream.play(at_once([]))
        conversation_id = await relay.ask()
        host, _, port = relay.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        with contextlib.closing(writer):
            writer.write(f"GET /conversations/{conversation_id}/stream HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            lines = [line async for line in reader]
        texts = [json.loads(line[6:]).get("content", "") for line in lines if line.startswith(b"data: ")]
        assert ("".join(texts), max(map(len, lines)) < 60_000) == (LATE, True)
