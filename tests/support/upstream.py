"""An upstream whose bytes and timing each test controls.

A script, `async def script(request, wire)`, answers one request. If it returns before the response is complete, the
connection is closed. What a script raises is raised again when the upstream is left, except that the client went away.
"""

import asyncio
import ssl
from collections import deque
from itertools import count
from types import TracebackType
from typing import Any, Self

from tests.support.scripts import ANSWER, Script, answer, cut, gated, status
from tests.support.upstream_wire import USAGE, UpstreamRequest, Wire, read_request
from tests.support.waiting import Gate, eventually

__all__ = ["ANSWER", "MODELS", "USAGE", "Gate", "Script", "ScriptedUpstream", "UpstreamRequest", "Wire"]
__all__ += ["answer", "cut", "gated", "status"]

MODELS: list[dict[str, Any]] = [{"id": "test/one", "name": "One"}, {"id": "test/two", "name": "Two"}]


class ScriptedUpstream:
    """An OpenRouter on a loopback port. `async with ScriptedUpstream() as upstream: ...`"""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.requests: list[UpstreamRequest] = []
        """Everything that was asked, in order, but for the models list."""
        self.models_requests: list[UpstreamRequest] = []
        self.models: list[dict[str, Any]] | Script = list(MODELS)
        self.accepted = 0
        """Connections accepted since the start."""
        self._ids = (f"gen-1778452651-{number}" for number in count(1))
        self._script: Script = answer()
        self._queue: deque[Script] = deque()
        self._errors: list[Exception] = []
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._clients: set[asyncio.Event] = set()

    def play(self, script: Script) -> None:
        """Answer every completion with `script`, from now on."""
        self._script = script

    def queue(self, *scripts: Script) -> None:
        """Answer the next completions with these, one each, before what `play` was given."""
        self._queue.extend(scripts)

    @property
    def base_url(self) -> str:
        """What OPENROUTER_BASE_URL should be."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/api/v1"

    @property
    def connections(self) -> int:
        """Connections that neither side has closed."""
        return sum(not gone.is_set() for gone in self._clients)

    async def called(self, times: int = 1) -> UpstreamRequest:
        """The `times`-th completion request, as soon as it has arrived; bounded."""
        await eventually(lambda: len(self.requests) >= times)
        return self.requests[times - 1]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1024, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        await self._disconnect()
        await self._server.wait_closed()
        if self._errors and (error is None or isinstance(error, Exception)):
            raise ExceptionGroup("scripts failed", self._errors) if self._errors[1:] else self._errors[0]

    async def _disconnect(self) -> None:
        connections = dict(self._connections)
        for connection, writer in connections.items():
            connection.cancel()
            writer.transport.abort()
        await asyncio.gather(*connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections[connection] = writer
        connection.add_done_callback(self._connections.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = asyncio.Event()
        self._clients.add(gone)
        requests: asyncio.Queue[UpstreamRequest | None] = asyncio.Queue()
        reading = asyncio.create_task(self._read(reader, gone, requests))
        try:
            await self._answer_all(requests, writer)
        except ConnectionError:
            pass
        except Exception as error:
            self._errors.append(error)
        finally:
            reading.cancel()
            self._clients.discard(gone)
            writer.close()

    async def _answer_all(self, requests: asyncio.Queue[UpstreamRequest | None], writer: asyncio.StreamWriter) -> None:
        complete = True
        while complete and (request := await requests.get()):
            wire = Wire(request, writer)
            await self._script_for(request)(request, wire)
            complete = wire.complete

    async def _read(
        self, reader: asyncio.StreamReader, gone: asyncio.Event, requests: asyncio.Queue[UpstreamRequest | None]
    ) -> None:
        """Read ahead of the scripts: that is how they learn at once that the client has gone."""
        try:
            while True:
                request = await read_request(reader, next(self._ids), gone)
                (self.models_requests if _asks_for_models(request) else self.requests).append(request)
                requests.put_nowait(request)
        except (asyncio.IncompleteReadError, ConnectionError):
            gone.set()
        except Exception as error:
            self._errors.append(error)
        finally:
            requests.put_nowait(None)

    def _script_for(self, request: UpstreamRequest) -> Script:
        if _asks_for_models(request):
            return self.models if callable(self.models) else status(200, {"data": self.models})
        if (request.method, request.path) == ("POST", "/api/v1/chat/completions"):
            return self._queue.popleft() if self._queue else self._script
        return status(404)


def _asks_for_models(request: UpstreamRequest) -> bool:
    return (request.method, request.path) == ("GET", "/api/v1/models")
