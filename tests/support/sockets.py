"""Clients that no HTTP library would be, and what they may not leave behind."""

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from tests.support.relay import Relay
from tests.support.waiting import bounded, eventually

Headers = list[tuple[str, str]]


def address(relay: Relay) -> tuple[str, int]:
    """Where it listens."""
    url = httpx.URL(relay.url)
    assert url.port
    return url.host, url.port


def request(method: str, target: str, headers: Headers | None = None, body: bytes = b"") -> bytes:
    """A request with exactly these headers, and `Connection: close`."""
    fields = [*(headers or []), ("Connection", "close")]
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


async def exchange(relay: Relay, octets: bytes) -> httpx.Response:
    """Send these bytes and read until the service closes the connection: its one response."""
    reader, writer = await asyncio.open_connection(*address(relay))
    with contextlib.closing(writer):
        writer.write(octets)
        return response_in(await bounded(reader.read()))


def response_in(octets: bytes) -> httpx.Response:
    """The response that these bytes are."""
    head, _, body = octets.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return httpx.Response(int(first.split(" ")[1]), headers=fields, content=body)


@contextlib.contextmanager
def connected(relay: Relay, *, sending: bytes = b"", receive_buffer: int = 0) -> Iterator[socket.socket]:
    """A connection on which these bytes have been sent and nothing is read; a frozen reader has a small buffer."""
    with socket.socket() as connection:
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.connect(address(relay))
        connection.sendall(sending)
        yield connection


class Server(Protocol):
    """Any that counts its connections."""

    @property
    def connections(self) -> int: ...


@dataclass(frozen=True)
class Leftovers:
    """What there is in this process, and between the client and a server of the test."""

    tasks: int
    connections: int
    """To that server."""
    descriptors: int

    @classmethod
    def now(cls, server: Server) -> "Leftovers":
        """A count of everything."""
        return cls(len(asyncio.all_tasks()), server.connections, len(os.listdir("/proc/self/fd")))

    async def are_all(self, server: Server) -> None:
        """Return once there is no more than this; bounded."""
        try:
            await eventually(lambda: self._covers(Leftovers.now(server)))
        except AssertionError:
            tasks = "\n".join(map(repr, asyncio.all_tasks()))
            raise AssertionError(f"before: {self}\nnow: {Leftovers.now(server)}\n{tasks}") from None

    def _covers(self, other: "Leftovers") -> bool:
        return (
            other.tasks <= self.tasks
            and other.connections <= self.connections
            and other.descriptors <= self.descriptors
        )


def resident(pid: int | str = "self") -> int:
    """Bytes of memory that a process really uses."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
