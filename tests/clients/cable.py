"""TCP between a client and the relay that is cut at chosen bytes of the streams that pass it."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Sequence

STREAM = b"content-type: text/event-stream"
START = b"event: start"
HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"\r\n0\r\n\r\n"
BLOCK_END = b"\n\n"
SETTLING = 0.5


class Cable:
    """One port in front of the relay. The n-th stream through it ends after `cuts[n]` bytes, its head included.

    Cuts are in turn orderly (FIN) and not (RST). One inside the head falls before it: Chromium takes half a head for a
    whole one, of something that is no stream. With `whole_ends` none falls between the two bytes that end a block. With
    a `mark` the bytes are counted from where the mark stands.
    """

    def __init__(self, cuts: Sequence[int] = (), *, whole_ends: bool = False, mark: bytes = b"") -> None:
        self.made = 0
        """Cuts that have been made."""
        self.streams = 0
        """Streams that have begun."""
        self.pings = 0
        self._began: float | None = None
        self._to = 0
        self._cuts = list(cuts)
        self._whole_ends = whole_ends
        self._mark = mark
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def settled(self) -> bool:
        """Whether a reader has had its first event long enough to know it: a page forgets what it hasn't read yet."""
        return self._began is not None and asyncio.get_running_loop().time() > self._began + SETTLING

    @contextlib.asynccontextmanager
    async def laid(self, to: int) -> AsyncIterator[str]:
        """To the relay's port: the address where clients find it."""
        self._to = to
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=64)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._carry(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)
        connection.add_done_callback(lambda _: writer.close())

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        up = asyncio.create_task(_copy(reader, far_writer))
        down = asyncio.create_task(self._copy_down(far_reader, writer))
        try:
            await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in (up, down):
                direction.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            writer.close()
            far_writer.transport.abort()

    async def _copy_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passing = _Passing()
        with contextlib.suppress(ConnectionError):
            while octets := await reader.read(65536):
                if passing.begins(octets):
                    self.streams += 1
                    passing.left = self._next_cut(octets.index(HEAD_END) + len(HEAD_END))
                if self._mark and self._mark in octets and self._cuts:
                    passing.left = octets.index(self._mark) + self._cuts.pop(0)
                self.pings += octets.count(b"event: ping")
                if passing.cuts(octets, whole_ends=self._whole_ends):
                    writer.write(octets[: passing.left])
                    if self._mark:
                        await asyncio.sleep(SETTLING)  # a page forgets what it hasn't read when the connection breaks
                    self._cut(writer)
                    return
                passing.past(octets)
                if START in octets:
                    self._began = asyncio.get_running_loop().time()
                writer.write(octets)
                await writer.drain()

    def _next_cut(self, head: int) -> int | None:
        if self._mark or not self._cuts:
            return None
        cut = self._cuts.pop(0)
        return cut if cut >= head else 0

    def _cut(self, writer: asyncio.StreamWriter) -> None:
        self.made += 1
        self._began = None
        if self.made % 2 == 0:
            connection: socket.socket = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()


class _Passing:
    """The stream that passes a connection, if one does."""

    def __init__(self) -> None:
        self.left: int | None = None
        """Bytes that it may still have."""
        self._inside = False
        self._tail = b""

    def begins(self, octets: bytes) -> bool:
        if self._inside or STREAM not in octets.lower():
            return False
        self._inside = True
        return True

    def cuts(self, octets: bytes, *, whole_ends: bool) -> bool:
        if self.left is None or self.left > len(octets):
            return False
        around = (self._tail + octets)[len(self._tail) + self.left - 1 :][:2]
        self.left += whole_ends and around == BLOCK_END
        return self.left <= len(octets)

    def past(self, octets: bytes) -> None:
        self._tail = (self._tail + octets)[-len(LAST_CHUNK) :]
        if self._inside and self.left is not None:
            self.left -= len(octets)
        if self._tail.endswith(LAST_CHUNK):  # the connection may take another request
            self._inside, self.left = False, None


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while octets := await reader.read(65536):
            writer.write(octets)
            await writer.drain()
