"""An HTTP transport for many connections at once."""

import ssl
from collections.abc import AsyncIterator, Callable

import httpx

LOOPBACK = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Never used, but httpx makes one for each transport that has none, and that takes milliseconds."""


class Connections(httpx.AsyncBaseTransport):
    """As many connections as there are requests at a time, each kept for the next request.

    httpcore's pool looks at all its connections for each of its requests, which makes hundreds of streams slow.
    """

    def __init__(self) -> None:
        self._all: set[httpx.AsyncHTTPTransport] = set()
        self._idle: list[httpx.AsyncHTTPTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        connection = self._idle.pop() if self._idle else httpx.AsyncHTTPTransport(verify=LOOPBACK)
        self._all.add(connection)
        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            await self._drop(connection)
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Body(response.stream, lambda: self._idle.append(connection))
        return response

    async def _drop(self, connection: httpx.AsyncHTTPTransport) -> None:
        self._all.discard(connection)
        await connection.aclose()

    async def aclose(self) -> None:
        for connection in list(self._all):
            await self._drop(connection)


class _Body(httpx.AsyncByteStream):
    """The body of a response; tells when it has been closed."""

    def __init__(self, stream: httpx.AsyncByteStream, closed: Callable[[], None]) -> None:
        self._stream = stream
        self._closed = closed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()
        self._closed()
