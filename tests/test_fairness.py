"""However long what clients ask for is, others are served meanwhile: no turn of the event loop takes 20 ms.

Each limit of docs/settings.md is used to the full. Measured is the processor time of the loop's thread from one turn to
the next (`tests/support/timed.py`).
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from tests.support.sockets import connected, request
from tests.support.timed import TimedRelay, timed
from tests.support.upstream import Gate, ScriptedUpstream, UpstreamRequest, Wire
from tests.support.waiting import bounded

LONGEST_REPLY = 1_000_000  # characters, MAX_REPLY_CHARS
ALPHABETS = {"ascii": "abcd fghi ", "other": "漢字é 😀 abc ", "alternating": "漢字é 😀 abc "}


@pytest.fixture
async def relay(upstream: ScriptedUpstream) -> AsyncIterator[TimedRelay]:
    async with timed(upstream) as relay:
        yield relay


class LongReply:
    """`LONGEST_REPLY` characters: nine tenths at once, the rest and the end behind `gate`."""

    def __init__(self, kind: str) -> None:
        self.gate = Gate()
        self._piece = ALPHABETS[kind] * 500
        self._alternates = kind == "alternating"

    async def __call__(self, _: UpstreamRequest, wire: Wire) -> None:
        await wire.head()
        for number in range(pieces := LONGEST_REPLY // len(self._piece)):
            if number == pieces * 9 // 10:
                await self.gate.passage()
            if self._alternates:
                await self._alternate(wire)
            else:
                await wire.delta(self._piece)
        await wire.finish()
        await wire.done()

    async def _alternate(self, wire: Wire) -> None:
        for start in range(0, len(self._piece), 50):
            await (wire.reasoning if start % 100 else wire.delta)(self._piece[start : start + 50])


async def asked(upstream: ScriptedUpstream, relay: TimedRelay, kind: str) -> tuple[str, Gate]:
    """A conversation that is owed a long reply, and what holds the reply's end."""
    upstream.play(reply := LongReply(kind))
    return await relay.ask(), reply.gate


@contextmanager
def silent_readers(
    count: int, relay: TimedRelay, conversation_id: str, *headers: tuple[str, str]
) -> Iterator[list[socket.socket]]:
    """Connections that have asked for the stream and read nothing yet."""
    ask = request("GET", f"/conversations/{conversation_id}/stream", [("Host", "localhost"), *headers])
    with ExitStack() as stack:
        yield [stack.enter_context(connected(relay, sending=ask, receive_buffer=4096)) for _ in range(count)]


async def whole(connection: socket.socket) -> bytes:
    """All that comes on a connection, to its end."""
    reader, writer = await asyncio.open_connection(sock=connection, limit=1 << 20)
    with closing(writer):
        return await bounded(reader.read(), 60)


@pytest.mark.parametrize("kind", ALPHABETS)
async def test_readers_that_are_far_behind_and_hang_up(
    upstream: ScriptedUpstream, relay: TimedRelay, kind: str
) -> None:
    conversation_id, gate = await asked(upstream, relay, kind)
    with relay.brief_turns():
        with silent_readers(60, relay, conversation_id):
            await gate.reached()
            await relay.has_readers(60)
            gate.open_wide()
            await relay.idle()
        await relay.has_readers(0)


@pytest.mark.parametrize(
    "count, kind, accept",
    [(40, "other", "text/event-stream"), (40, "other", "text/plain"), (5, "alternating", "text/event-stream")],
)
async def test_readers_that_are_far_behind_and_read_on(
    upstream: ScriptedUpstream, relay: TimedRelay, count: int, kind: str, accept: str
) -> None:
    conversation_id, gate = await asked(upstream, relay, kind)
    with relay.brief_turns(), silent_readers(count, relay, conversation_id, ("Accept", accept)) as readers:
        await gate.reached()
        await relay.has_readers(count)
        gate.open_wide()
        await relay.idle()
        bodies = await asyncio.gather(*map(whole, readers))
    assert len({len(body) for body in bodies}) == 1


async def test_readers_that_come_back_in_the_middle(upstream: ScriptedUpstream, relay: TimedRelay) -> None:
    conversation_id, gate = await asked(upstream, relay, "other")
    gate.open_wide()
    transcript = await relay.read(conversation_id)
    middle = transcript.ids[len(transcript.ids) // 2] or ""
    with relay.brief_turns():
        for _ in range(10):
            with silent_readers(15, relay, conversation_id, ("Last-Event-ID", middle)):
                await relay.has_readers(15)
        await relay.has_readers(0)
