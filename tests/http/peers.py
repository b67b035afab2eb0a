"""A server whose bytes each test writes itself, for the HTTP client: what no HTTP server would send."""

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import cast

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
UNTIL_THE_END = OK + b"\r\n"
RESET = struct.pack("ii", 1, 0)
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"


class Wire:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """The next request, its body included."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
        return head + await self.reader.readexactly(int(length or b"0"))

    async def write(self, *pieces: bytes) -> None:
        """Each in a read of its own: a few turns of the loop lie between them."""
        for piece in pieces:
            if self.writer.transport.is_closing():
                raise ConnectionResetError("the client has gone")
            self.writer.write(piece)
            await self.writer.drain()
            await turns(3)

    async def tunnel(self, port: int, answer: bytes = OK + b"\r\n") -> None:
        """Answer a CONNECT that has been read, and pass on what comes, until one side leaves."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await self.write(answer)
        ways = [asyncio.create_task(_pass_on(*way)) for way in ((self.reader, writer), (reader, self.writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.transport.abort()

    async def answer(self, *pieces: bytes) -> None:
        """Write this to every request, for as long as there are any."""
        while await self.request():
            await self.write(*pieces)

    def stop_reading(self) -> None:
        """Leave in the kernel what the client sends."""
        cast(asyncio.Transport, self.writer.transport).pause_reading()

    async def gone(self) -> None:
        """Return when the client has closed the connection; what it still sends is dropped."""
        while await self.reader.read(1 << 20):
            pass

    def reset(self) -> None:
        """Break the connection (RST)."""
        connection: socket.socket = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.writer.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while octets := await reader.read(65536):
        writer.write(octets)
        await writer.drain()


Script = Callable[[Wire], Awaitable[object]]


class Peer:
    """Counts its connections. What a script raises fails the test, except that the client has gone."""

    def __init__(self, script: Script, scheme: str) -> None:
        self.script = script
        self.scheme = scheme
        self.port = self.accepted = 0
        self.errors: list[Exception] = []
        self.serving: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/"

    @property
    def connections(self) -> int:
        """Those whose script runs."""
        return len(self.serving)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._serve(Wire(reader, writer)))
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)

    async def _serve(self, wire: Wire) -> None:
        try:
            await self.script(wire)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        except Exception as error:
            self.errors.append(error)
        finally:
            wire.writer.close()


@contextlib.asynccontextmanager
async def served_by(script: Script, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[Peer]:
    """A port whose connections are served so. They are closed when the script ends, or with the server."""
    peer = Peer(script, "https" if tls else "http")
    async with await asyncio.start_server(peer.accept, "127.0.0.1", port, ssl=tls, backlog=1024) as server:
        peer.port = server.sockets[0].getsockname()[1]
        yield peer
        serving = list(peer.serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
    assert not peer.errors, peer.errors


async def hello(wire: Wire) -> None:
    """Greet every request of a connection."""
    await wire.answer(HELLO)


def saying(*pieces: bytes, then: str = "close") -> Script:
    """Answer each request of a connection so; `then` is `close`, `reset` or `stay`."""

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.write(*pieces)
        if then == "stay":
            await wire.gone()
        elif then == "reset":
            wire.reset()

    return script


class Refusal:
    """The two bytes of a request's body, between which the server at `url` refuses the request and resets.

    The server is a thread, and the event loop stands still meanwhile: it writes the second byte before it reads.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._half_sent, self._refused = threading.Event(), threading.Event()
        threading.Thread(target=self._refuse, daemon=True).start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}/"

    def _refuse(self) -> None:
        connection, _ = self._listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        with self._tls.wrap_socket(connection, server_side=True) if self._tls else connection as connection:
            connection.recv(1)
            self._half_sent.wait(10)
            connection.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno!")
        self._listener.close()
        self._refused.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"H"
        await turns(20)
        self._half_sent.set()
        self._refused.wait(10)
        yield b"i"


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """A port of 127.0.0.2 that completes no connection: its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.2", 0), backlog=0))
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


async def turns(number: int) -> None:
    """Let the event loop turn so many times."""
    for _ in range(number):
        await asyncio.sleep(0)
