"""Look up a host's name and connect to the first of its addresses, IPv6 or IPv4, that answers (RFC 8305).

This module knows nothing of HTTP.
"""

import asyncio
import ipaddress
import socket
import threading
from contextlib import suppress
from itertools import zip_longest
from typing import Any

from upstream.http.connection import Connection

ATTEMPT_INTERVAL = 0.25  # seconds until the next address is tried beside the earlier ones (RFC 8305, 8)

_Lookup = asyncio.Future[list[str] | OSError]


class Dialer:
    """Connects to hosts. Callers that ask for the same name at the same time share one lookup."""

    def __init__(self) -> None:
        self._lookups: dict[str, _Lookup] = {}  # the lookups under way, by name

    async def connect(self, host: str, port: int) -> Connection:
        """Open a TCP connection. Raises `OSError`."""
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
            # A process that exits would wait for asyncio's own threads while a resolver is silent.
            threading.Thread(target=_resolve, args=(host, lookup), name=f"lookup of {host}", daemon=True).start()
        await asyncio.wait({lookup})
        answer = lookup.result()
        if isinstance(answer, OSError):
            raise answer
        return list(answer)  # a copy, from which the caller takes one address after the other


def _resolve(host: str, lookup: _Lookup) -> None:
    try:
        answer: list[str] | OSError = _in_turns(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except OSError as error:
        answer = error
    except UnicodeError:
        answer = socket.gaierror(socket.EAI_NONAME, "the name can't be looked up")
    with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
        lookup.get_loop().call_soon_threadsafe(lookup.set_result, answer)


def _in_turns(infos: list[tuple[Any, ...]]) -> list[str]:
    new = [address[0] for family, *_, address in infos if family == socket.AF_INET6]
    old = [address[0] for family, *_, address in infos if family != socket.AF_INET6]
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
    finally:  # a caller may also have been cancelled
        for task in tried:
            task.cancel()
            task.add_done_callback(_close)


async def _connect(address: str, port: int) -> Connection:
    return (await asyncio.get_running_loop().create_connection(Connection, address, port))[1]


def _close(connecting: asyncio.Task[Connection]) -> None:
    if not connecting.cancelled() and not connecting.exception():
        connecting.result().abort()
