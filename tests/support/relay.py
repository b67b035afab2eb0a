"""The service as its users meet it: a real uvicorn on a real socket, in the event loop of the test."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import httpx
import uvicorn

from openrouter import Timers
from server import create_app
from serving.connections import ClientConnection
from settings import Settings
from store import Store
from tests.support.connections import Connections
from tests.support.engines import new_store_url
from tests.support.readers import Reader, Transcript
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import bounded, eventually

Fields = Mapping[str, str]

EVENTS = {"Accept": "text/event-stream"}
NOWHERE = "00000000-0000-4000-8000-000000000000"
"""An id that nothing has."""
VITE = "http://localhost:5173"
"""An origin that may call."""

STARTING = 20.0
STOPPING = 2.0
"""Seconds that a service without anything to do may take."""


class Relay:
    """The service at `url`, and short forms of what tests do most. Each asserts that it was granted."""

    def __init__(self, url: str, client: httpx.AsyncClient, store: Store | None = None) -> None:
        self.url = url
        self.client = client
        self.store = store
        """Its own, where it is in this process."""

    async def conversation(self, **body: Any) -> dict[str, Any]:
        """A new conversation."""
        return _granted(await self.client.post("/conversations", json=body), 201)

    async def say(self, conversation_id: str, content: str = "Hi", **message: Any) -> dict[str, Any]:
        """A user's message in it."""
        path = f"/conversations/{conversation_id}/messages"
        return _granted(await self.client.post(path, json={"content": content, **message}), 201)

    async def ask(self, content: str = "Hi", **message: Any) -> str:
        """The id of a new conversation with this question in it; no reply has been started."""
        conversation_id: str = (await self.conversation())["id"]
        await self.say(conversation_id, content, **message)
        return conversation_id

    async def messages(self, conversation_id: str) -> list[dict[str, Any]]:
        """All of its messages, oldest first."""
        response = await self.client.get(f"/conversations/{conversation_id}/messages")
        messages: list[dict[str, Any]] = _granted(response)["messages"]
        return messages

    async def shown(self, conversation_id: str) -> dict[str, Any]:
        """The conversation."""
        return _granted(await self.client.get(f"/conversations/{conversation_id}"))

    async def stop(self, conversation_id: str) -> httpx.Response:
        """The answer to a stop, whatever it is."""
        return await self.client.delete(f"/conversations/{conversation_id}/stream")

    async def contents(self, conversation_id: str) -> list[str]:
        """Of all of its messages."""
        return [message["content"] for message in await self.messages(conversation_id)]

    async def post(self, conversation_id: str, headers: Fields | None = None, **body: Any) -> httpx.Response:
        """The answer to a question, whatever it is; `EVENTS` has its reply streamed, here to its end."""
        path = f"/conversations/{conversation_id}/messages"
        return await bounded(self.client.post(path, json={"content": "Hi", **body}, headers=headers))

    @contextlib.asynccontextmanager
    async def stream(
        self,
        conversation_id: str,
        last_event_id: str | None = None,
        params: Fields | None = None,
        headers: Fields | None = None,
    ) -> AsyncIterator[Reader]:
        """A reader of its stream, whatever the status is; `last_event_id` is the header.

        A response that is no event stream has been read: `assert_problem(reader.response, ...)` works.
        """
        fields = dict(headers or {}) | ({} if last_event_id is None else {"Last-Event-ID": last_event_id})
        path = f"/conversations/{conversation_id}/stream"
        async with self.client.stream("GET", path, params=params, headers=fields) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                await response.aread()
            yield Reader(response)

    async def read(
        self,
        conversation_id: str,
        last_event_id: str | None = None,
        params: Fields | None = None,
        headers: Fields | None = None,
    ) -> Transcript:
        """The stream from its start to its end."""
        async with self.stream(conversation_id, last_event_id, params, headers) as reader:
            return await reader.whole()

    async def health(self) -> dict[str, Any]:
        """What /health says, draining or not."""
        health: dict[str, Any] = (await self.client.get("/health")).json()
        return health

    async def idle(self) -> None:
        """Return once no reply is in progress; bounded."""

        async def no_reply_in_progress() -> bool:
            return not (await self.health())["replies_in_progress"]

        await eventually(no_reply_in_progress)


def _granted(response: httpx.Response, status: int = 200) -> dict[str, Any]:
    assert response.status_code == status, f"{response.request}: {response.status_code} {response.text}"
    body: dict[str, Any] = response.json()
    return body


def client(url: str) -> httpx.AsyncClient:
    """A client without proxies, and without a limit to the connections it may have."""
    return httpx.AsyncClient(base_url=url, timeout=30, trust_env=False, transport=Connections())


@contextlib.asynccontextmanager
async def serving(
    upstream: ScriptedUpstream | str, *, timers: Timers | None = None, **settings: Any
) -> AsyncIterator[Relay]:
    """A relay on that upstream (or base URL) in this event loop, lifespan included.

    `AssertionError` at the end if it doesn't stop within 2 s (and its SHUTDOWN_GRACE, 0.1 s unless given).
    """
    url = upstream if isinstance(upstream, str) else upstream.base_url
    chosen: dict[str, Any] = {
        "openrouter_api_key": "test-key",
        "openrouter_base_url": url,
        "shutdown_grace": 0.1,
        "store_url": new_store_url(),
    } | settings
    app = create_app(Settings(**chosen), timers=timers or Timers())
    server = _Server(
        uvicorn.Config(
            app,
            lifespan="on",
            http=ClientConnection,
            log_config=None,
            ws="none",
            access_log=False,
            server_header=False,
            timeout_keep_alive=60,
        )
    )
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else a response waits 40 ms for an ACK
        base = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with server.running(listening, STOPPING + chosen["shutdown_grace"]), client(base) as connections:
            yield Relay(base, connections, app.state.store)


class _Server(uvicorn.Server):
    """uvicorn, but start and stop are events instead of polls, and the signal handlers stay as they are."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._up = asyncio.Event()
        self._stop = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self, listening: socket.socket, stopping: float) -> AsyncIterator[None]:
        serving = asyncio.create_task(self._serve_or_raise(listening))
        try:
            await self._started(serving)
            yield
        finally:
            self.should_exit = True
            self._stop.set()
            await self._ended(serving, stopping)

    async def _started(self, serving: asyncio.Task[None]) -> None:
        up = asyncio.create_task(self._up.wait())
        await asyncio.wait([serving, up], timeout=STARTING, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if serving.done():
            serving.result()
        assert self.started, f"the service did not start within {STARTING} s"

    async def _ended(self, serving: asyncio.Task[None], stopping: float) -> None:
        await asyncio.wait([serving], timeout=stopping)
        if serving.done():
            return serving.result()
        left = f"{len(self.server_state.connections)} connections, {len(self.server_state.tasks)} requests"
        self.force_exit = True
        await asyncio.wait([serving], timeout=1)
        serving.cancel()
        raise AssertionError(f"the service did not stop within {stopping} s: {left} left")

    async def _serve_or_raise(self, listening: socket.socket) -> None:
        try:
            await self.serve(sockets=[listening])
        except SystemExit as error:  # would end the test run
            raise RuntimeError("the service could not start; the log says why") from error
        assert not self.lifespan.should_exit, "the lifespan ended with an error; the log says which"

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._up.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await bounded(self._stop.wait(), 1)


async def comes_behind(relay: Relay, request: asyncio.Task[Any]) -> None:
    """Return when the service has taken the request as far as it goes for now."""
    for _ in range(3):
        await relay.health()
    assert not request.done()
