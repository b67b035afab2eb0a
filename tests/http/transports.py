"""What tests ask of the HTTP client, and how they see what it leaves."""

import asyncio
import gc
import random
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.http.peers import Peer, turns
from tests.support.sockets import Leftovers
from tests.support.waiting import bounded
from upstream.http.connection import Exchange
from upstream.http.transport import Transport


async def ask(
    transport: Transport,
    server: Peer | str,
    method: str = "GET",
    *,
    body: bytes | AsyncIterable[bytes] = b"",
    read: float = 10.0,
    headers: dict[str, str] | None = None,
    **more: Any,
) -> tuple[httpx.Response, Exchange]:
    """The response's head, and its exchange. The server is a peer or a URL."""
    timeout = {"connect": 10.0, "read": read, "write": read}
    url = server if isinstance(server, str) else server.url
    extensions = {"timeout": timeout, **more}
    request = httpx.Request(method, url, headers=headers, content=body or None, extensions=extensions)
    response = await transport.handle_async_request(request)
    assert isinstance(response.stream, Exchange)
    return response, response.stream


async def body(exchange: Exchange) -> bytes:
    return b"".join([part async for part in exchange])


async def get(transport: Transport, server: Peer | str, **more: Any) -> bytes:
    return await body((await ask(transport, server, **more))[1])


def kept(transport: Transport) -> int:
    """Connections that wait for another request."""
    return sum(not connection.is_closed for idle in transport._idle.values() for connection in idle)


def in_use(transport: Transport) -> int:
    return sum(not connection.is_closed for connection in transport._open) - kept(transport)


@asynccontextmanager
async def nothing_left_of(peer: Peer) -> AsyncIterator[None]:
    """No connection, task, descriptor, or timer that refers to an exchange."""
    before = Leftovers.now(peer)
    yield
    await before.are_all(peer)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, Exchange)]


async def cancelled_at_every_turn(transport: Transport, server: Peer | str, times: int, **how: Any) -> None:
    """Cancel a whole request, its body read, at random turns of the loop; every other time twice."""

    async def whole() -> None:
        _, exchange = await ask(transport, server, **how)
        try:
            await body(exchange)
        finally:
            await exchange.aclose()

    chance = random.Random(times)
    whole_task, most = asyncio.create_task(whole()), 0
    while not whole_task.done():
        await turns(1)
        most += 1
    await whole_task
    for number in range(times):
        for idle in transport._idle.values():
            for connection in list(idle):
                connection.abort()
        task = asyncio.create_task(whole())
        await turns(chance.randint(0, most))
        task.cancel()
        if number % 2:
            await turns(1)
            task.cancel()
        await bounded(asyncio.wait([task]))
        assert task.cancelled() or not task.exception()
        assert in_use(transport) == 0
    await transport.aclose()
