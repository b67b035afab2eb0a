"""From a host's name to a connection: its addresses, of both families, and the first that answers (RFC 8305).

Knows nothing of HTTP.
"""

import asyncio
import ipaddress
import socket
import threading
from contextlib import suppress
from itertools import chain, zip_longest
from typing import Any

from upstream.connection import Connection

STAGGER = 0.25  # seconds until a host's next address is tried, too (RFC 8305, 8)

_Lookup = asyncio.Future[list[str] | OSError]


class Dialer:
    """Connects to hosts. A name is looked up once, however many ask for it at a time."""

    def __init__(self) -> None:
        self._lookups: dict[str, _Lookup] = {}  # under way

    async def connect(self, host: str, port: int) -> Connection:
        """A new connection by TCP. Raises `OSError`."""
        return await _first_to_connect(await self._addresses(host), port)

    async def _addresses(self, host: str) -> list[str]:
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._lookups[host] = _look_up(host)
            lookup.add_done_callback(lambda _: self._lookups.pop(host))
        await asyncio.wait({lookup})
        found = lookup.result()
        if isinstance(found, OSError):
            raise found
        return list(found)  # each caller uses up its own


def _look_up(host: str) -> _Lookup:
    """Addresses, or the error, from a daemon thread: asyncio's own hold the exit up while a resolver is silent."""
    loop = asyncio.get_running_loop()
    lookup: _Lookup = loop.create_future()

    def run() -> None:
        found: list[str] | OSError
        try:
            found = _in_turns(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        except OSError as error:
            found = error
        except UnicodeError:
            found = socket.gaierror(socket.EAI_NONAME, "the name can't be looked up")
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lookup.set_result, found)

    threading.Thread(target=run, name=f"lookup of {host}", daemon=True).start()
    return lookup


def _in_turns(found: list[tuple[Any, ...]]) -> list[str]:
    new = [str(address[0]) for family, *_, address in found if family == socket.AF_INET6]
    old = [str(address[0]) for family, *_, address in found if family != socket.AF_INET6]
    return [address for address in chain.from_iterable(zip_longest(new, old)) if address]


async def _first_to_connect(addresses: list[str], port: int) -> Connection:
    trying: set[asyncio.Task[Connection]] = set()
    failures: list[BaseException] = [OSError("the host has no address")]
    connected: list[Connection] = []
    try:
        while (addresses or trying) and not connected:
            if addresses:
                trying.add(asyncio.create_task(_connect(addresses.pop(0), port)))
            done, trying = await asyncio.wait(
                trying, timeout=STAGGER if addresses else None, return_when=asyncio.FIRST_COMPLETED
            )
            failures += [failure for task in done if (failure := task.exception())]
            connected += [task.result() for task in done if not task.exception()]
        if not connected:
            raise failures[-1]
        return connected.pop(0)
    finally:  # close what isn't returned, when the caller is cancelled, too
        for task in trying:
            if not task.cancel() and not task.exception():
                connected.append(task.result())
        for late in connected:
            late.abort()


async def _connect(address: str, port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, address, port)
    return connection
