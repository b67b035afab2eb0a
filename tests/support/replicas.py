"""Relays that share one server, and the network between them and it."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any
from uuid import uuid4

import httpx

from settings import Settings
from store import Store
from stores.records import Question
from stores.reply import OwnReply
from tests.support.process import RelayProcess, process
from tests.support.readers import Transcript
from tests.support.relay import Relay, serving
from tests.support.stores import ask
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import bounded


@contextlib.asynccontextmanager
async def relays(upstream: ScriptedUpstream, url: str, count: int = 2, **settings: Any) -> AsyncIterator[list[Relay]]:
    """Relays in this process, each with a store of its own."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serving(upstream, store_url=url, **settings)) for _ in range(count)]


@contextlib.asynccontextmanager
async def stores(*urls: str) -> AsyncIterator[list[Store]]:
    """A store without a relay for each URL."""
    opened: list[Store] = []
    try:
        for url in urls:
            opened.append(Store(Settings(store_url=url)))
            await opened[-1].open()
        yield opened
    finally:
        for store in opened:
            await store.close()


async def begun(store: Store) -> tuple[str, OwnReply]:
    """A conversation, and the reply that is in progress in it."""
    conversation_id = (await store.create_conversation()).id
    return conversation_id, (await ask(store, conversation_id, Question("Why?"))).reply


@contextlib.asynccontextmanager
async def processes(upstream: ScriptedUpstream, *urls: str, **environ: str) -> AsyncIterator[list[RelayProcess]]:
    """A relay in a process of its own for each URL."""
    env = {"OPENROUTER_BASE_URL": upstream.base_url, "OPENROUTER_API_KEY": "test-key", "SHUTDOWN_GRACE": "5", **environ}
    async with contextlib.AsyncExitStack() as stack:
        starting = [process("python", "server.py", env=env | {"STORE_URL": url}) for url in urls]
        yield list(await asyncio.gather(*(stack.enter_async_context(one) for one in starting)))


def place(url: str) -> str:
    """The URL with a prefix that nobody else has."""
    return f"{url}?prefix={uuid4()}"


class Hopper:
    """A reader that is cut off, or leaves, and comes back with its id to whichever relay is next."""

    def __init__(self, relays: Sequence[Relay], conversation_id: str, last_id: str | None = None) -> None:
        self._relays = relays
        self._conversation_id = conversation_id
        self._last_id = last_id
        self.hops = 0

    async def read(self, events: Iterator[int], within: float = 40.0) -> Transcript:
        """All of the stream, after so many events each time at another relay. `start` counts once."""
        return await bounded(self._read(events), within)

    async def _read(self, events: Iterator[int]) -> Transcript:
        transcript, last_id = Transcript(), self._last_id
        for relay in itertools.cycle(self._relays):
            try:
                async with relay.stream(self._conversation_id, last_id) as reader:
                    if reader.response.status_code >= 500:
                        raise httpx.ConnectError("not now")
                    assert reader.response.status_code == 200, reader.response.text
                    self.hops += 1
                    for _ in range(next(events)):
                        block = await reader.next()
                        last_id = block.id or last_id
                        if block.event != "start" or not transcript.blocks:
                            transcript.add(block)
                        if block.is_terminal:
                            return transcript
            except (httpx.TransportError, EOFError):
                await asyncio.sleep(0.05)
        raise AssertionError("there are no relays")


class Network:
    """TCP between a relay and its server, which can be cut, held up, slow, and led to another server."""

    def __init__(self, to: int) -> None:
        self.to = to
        self.delay = 0.0
        """Seconds that everything takes, each way."""
        self._is_cut = False
        self._asks, self._answers = asyncio.Event(), asyncio.Event()
        self._lost: bytes | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.mend()

    @contextlib.asynccontextmanager
    async def laid(self) -> AsyncIterator[str]:
        """The URL of the server as it is seen through this."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield f"valkey://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            self._drop()
            await asyncio.gather(*self._connections, return_exceptions=True)

    def cut(self) -> None:
        """Close all connections, and take no new ones."""
        self._is_cut = True
        self._drop()

    def mend(self) -> None:
        """Let everything through again, and take connections."""
        self._is_cut = False
        self._asks.set()
        self._answers.set()

    def hold(self) -> None:
        """Let nothing through, and close nothing."""
        self._asks.clear()
        self._answers.clear()

    def deafen(self) -> None:
        """Let nothing through that the server says, so that it does what it is asked for unheard."""
        self._answers.clear()

    def lose(self, octets: bytes) -> None:
        """Close the connection that carries these to the server, once, in place of its answer."""
        self._lost = octets

    def lead(self, to: int) -> None:
        """To another server from now on."""
        self.to = to
        self._drop()

    def _drop(self) -> None:
        for connection in self._connections:
            connection.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._carry(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)
        connection.add_done_callback(lambda _: writer.transport.abort())

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            return
        is_lost = False

        def asked(octets: bytes) -> bool:
            nonlocal is_lost
            if self._lost and self._lost in octets:
                self._lost, is_lost = None, True
            return True

        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.to)
            ways = [
                asyncio.create_task(self._copy(reader, far_writer, self._asks, asked)),
                asyncio.create_task(self._copy(far_reader, writer, self._answers, lambda _: not is_lost)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                far_writer.transport.abort()

    async def _copy(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        flows: asyncio.Event,
        passes: Callable[[bytes], bool],
    ) -> None:
        with contextlib.suppress(OSError):
            while (octets := await reader.read(65536)) and passes(octets):
                await asyncio.sleep(self.delay)
                await flows.wait()
                writer.write(octets)
                await writer.drain()
