"""From a host's name to a connection: its addresses, of both families, and the first that answers (RFC 8305).

Knows nothing of HTTP.
"""

import asyncio
import ipaddress
import socket
import threading
from contextlib import suppress
from itertools import zip_longest
from typing import Any

from upstream.http.connection import Connection

ATTEMPT_INTERVAL = 0.25  # seconds until a host's next address is tried, too (RFC 8305, 8)

_Lookup = asyncio.Future[list[str] | OSError]


class Dialer:
    """Connects to hosts. A name is looked up once, however many ask for it at a time."""

    def __init__(self) -> None:
        self._lookups: dict[str, _Lookup] = {}  # under way

    async def connect(self, host: str, port: int) -> Connection:
        """A new connection by TCP. Raises `OSError`."""
        try:
            addresses = [str(ipaddress.ip_address(host))]
        except ValueError:
            addresses = await self._look_up(host)
        return await _first_to_connect(addresses, port)

    async def _look_up(self, host: str) -> list[str]:
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._lookups[host] = asyncio.get_running_loop().create_future()
            lookup.add_done_callback(lambda _: self._lookups.pop(host))
            # A thread of its own: asyncio's hold the process's exit up while a resolver is silent.
            threading.Thread(target=_resolve, args=(host, lookup), name=f"lookup of {host}", daemon=True).start()
        await asyncio.wait({lookup})
        found = lookup.result()
        if isinstance(found, OSError):
            raise found
        return list(found)  # each caller uses up its own


def _resolve(host: str, lookup: _Lookup) -> None:
    found: list[str] | OSError
    try:
        found = _in_turns(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except OSError as error:
        found = error
    except UnicodeError:
        found = socket.gaierror(socket.EAI_NONAME, "the name can't be looked up")
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        lookup.get_loop().call_soon_threadsafe(lookup.set_result, found)


def _in_turns(found: list[tuple[Any, ...]]) -> list[str]:
    new = [address[0] for family, *_, address in found if family == socket.AF_INET6]
    old = [address[0] for family, *_, address in found if family != socket.AF_INET6]
    return [address for pair in zip_longest(new, old) for address in pair if address]


async def _first_to_connect(addresses: list[str], port: int) -> Connection:
    tried: list[asyncio.Task[Connection]] = []
    pending: set[asyncio.Task[Connection]] = set()
    failure: BaseException = OSError("the host has no address")
    try:
        while addresses or pending:
            if addresses:
                tried.append(asyncio.create_task(_connect(addresses.pop(0), port)))
                pending.add(tried[-1])
            patience = ATTEMPT_INTERVAL if addresses else None
            done, pending = await asyncio.wait(pending, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                failure = task.exception() or failure
                if not task.exception():
                    tried.remove(task)
                    return task.result()
        raise failure
    finally:  # also when the caller is cancelled
        for task in tried:
            task.cancel()
            task.add_done_callback(_close)


async def _connect(address: str, port: int) -> Connection:
    return (await asyncio.get_running_loop().create_connection(Connection, address, port))[1]


def _close(connecting: asyncio.Task[Connection]) -> None:
    if not connecting.cancelled() and not connecting.exception():
        connecting.result().abort()
