"""The adapter alone, and what comes of its completions."""

import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from itertools import groupby
from typing import Any

from openrouter import Delta, OpenRouter, Prompt, Retry, Timers, UpstreamError
from result import Failure, Finish, Report
from settings import Settings
from tests.support.completions import KEY
from tests.support.upstream import ANSWER, ScriptedUpstream, answer
from tests.support.waiting import bounded, eventually
from upstream.http.transport import Transport

TITLE = "Plaudertasche é ☕"
HELLO = Prompt("test/one", [("user", "Hi")])


@asynccontextmanager
async def adapter(base_url: str, *, key: str = KEY, max_tokens: int = 0, **timers: Any) -> AsyncIterator[OpenRouter]:
    """An adapter that doesn't try again unless told, closed at the end."""
    chosen = Timers(**{"retries": (), **timers})
    settings = Settings(
        openrouter_base_url=base_url,
        openrouter_api_key=key,
        app_url="http://app.test",
        app_title=TITLE,
        max_tokens=max_tokens,
    )
    openrouter = OpenRouter(settings, Transport.for_base_url(base_url), chosen)
    try:
        yield openrouter
    finally:
        await bounded(openrouter.aclose())


class Outcome:
    """What came of a completion, as far as it has come."""

    def __init__(self) -> None:
        self.values: list[Report | Retry | Delta | Finish] = []
        self.error: UpstreamError | None = None

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Neighbouring deltas of one kind as one: how they are merged is the network's affair."""
        deltas = [value for value in self.values if isinstance(value, Delta)]
        return [(kind, "".join(delta.text for delta in run)) for kind, run in groupby(deltas, lambda delta: delta.kind)]

    @property
    def end(self) -> Finish:
        """The finish: the last value and the only one of its kind."""
        assert self.error is None and [type(value) for value in self.values].count(Finish) == 1
        last = self.values[-1]
        assert isinstance(last, Finish)
        return last

    @property
    def report(self) -> Report:
        """The last one."""
        return self.reports[-1] if self.reports else Report()

    @property
    def usage(self) -> Any:
        """What that says of it, decoded."""
        return json.loads(self.report.usage or "null")

    @property
    def reports(self) -> list[Report]:
        return [value for value in self.values if isinstance(value, Report)]

    def failed(self, kind: type[UpstreamError], code: int) -> Failure:
        """What the error says, which must be of this kind."""
        assert isinstance(self.error, kind), f"{self.error!r}, {self.values}"
        assert self.error.failure.code == code
        return self.error.failure


async def read(openrouter: OpenRouter, outcome: Outcome | None = None, *turns: tuple[str, str]) -> Outcome:
    """A completion, read to its end."""
    outcome = outcome or Outcome()
    try:
        async with aclosing(openrouter.stream(Prompt("test/one", turns or [("user", "Hi")]))) as values:
            async for value in values:
                outcome.values.append(value)
    except UpstreamError as error:
        outcome.error = error
    return outcome


def slots(openrouter: OpenRouter) -> tuple[int, int]:
    """How many connections are in use, and how many wait for another request."""
    transport = openrouter._transport
    assert isinstance(transport, Transport)
    open_ones = [connection for connection in transport._open if not connection.is_closed]
    idle = sum(map(len, transport._idle.values()))
    return len(open_ones) - idle, idle


async def settled(openrouter: OpenRouter) -> None:
    """Return once no connection is in use."""
    await eventually(lambda: slots(openrouter)[0] == 0)


async def assert_nothing_left_open(openrouter: OpenRouter, upstream: ScriptedUpstream) -> None:
    """Assert that connections which can't be used again are closed."""
    await settled(openrouter)
    await eventually(lambda: upstream.connections <= slots(openrouter)[1])


async def assert_nothing_left(openrouter: OpenRouter, upstream: ScriptedUpstream) -> None:
    """Assert that no slot of the pool and no connection outlives what was given up, and that all goes on."""
    await settled(openrouter)
    assert slots(openrouter) == (0, 0)
    await eventually(lambda: upstream.connections == 0)
    upstream.play(answer())
    assert (await read(openrouter)).texts == [("content", ANSWER)]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def full_port() -> Iterator[int]:
    """A port where connecting takes for ever: its queue is full and nobody accepts."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening, ExitStack() as waiting:
        for _ in range(4):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]
