"""`python -m benchmarks.frames`: the Python frames that one token takes through the service, socket to socket.

The service runs in the main thread, on a real uvicorn; upstream and the reader run in a thread of their own, which
isn't counted. A frame is a `call` event of `sys.setprofile`: a function called, or a coroutine or generator resumed.
"""

import asyncio
import socket
import sys
import threading
from collections import Counter
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from types import CodeType, FrameType

import uvicorn
import uvloop

from benchmarks.dialects import Conversations
from benchmarks.exchange import connect
from benchmarks.readers import open_reader
from benchmarks.upstream import Upstream
from server import create_app
from serving.connections import ClientConnection
from settings import Settings

KEY, WARM_UP, TOKENS, GAP = 1, 50, 300, 0.02  # tokens come one every `GAP` seconds


class Frames:
    """Counts frames in the thread that made it, while `counting`."""

    def __init__(self) -> None:
        self.counting = False
        self.by_code: Counter[CodeType] = Counter()
        sys.setprofile(self._see)

    def _see(self, frame: FrameType, event: str, _: object) -> None:
        if self.counting and event == "call":
            self.by_code[frame.f_code] += 1

    def table(self) -> str:
        """A line a function, most frames first; those that tokens don't pass are left out."""
        passed = [(count / TOKENS, code) for code, count in self.by_code.most_common() if count > TOKENS * 0.9]
        lines = [f"{count:6.2f}  {code.co_qualname}  ({Path(code.co_filename).name})" for count, code in passed]
        return "\n".join([*lines, f"{sum(count for count, _ in passed):6.1f}  frames a token"])


class Server(uvicorn.Server):
    """Says on which port it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.port: Future[int] = Future()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn has it."""
        await super().startup(sockets)
        self.port.set_result(self.servers[0].sockets[0].getsockname()[1])


def main() -> None:
    """Count, and print."""
    frames, server = Frames(), Future[Server]()
    base_url = Future[str]()
    loading = threading.Thread(target=lambda: uvloop.run(_load(frames, base_url, server)))
    loading.start()
    settings = Settings(openrouter_base_url=base_url.result(), openrouter_api_key="key", log_level="WARNING")
    config = uvicorn.Config(
        create_app(settings), port=0, http=ClientConnection, log_level="warning", access_log=False, ws="none"
    )
    server.set_result(Server(config))
    server.result().run()
    loading.join()
    print(frames.table())


async def _load(frames: Frames, base_url: "Future[str]", server: "Future[Server]") -> None:
    """One stream, counted once it is warm; then the end of the server."""
    upstream = Upstream()
    base_url.set_result(await upstream.listen())
    running = await asyncio.wrap_future(server)
    port = await asyncio.wrap_future(running.port)
    exchange = await connect(port)
    payload = await Conversations().prepare(exchange, str(KEY))
    exchange.close()
    with closing(await open_reader(port, KEY, payload)) as reader:
        reader.ask()
        while KEY not in upstream.generations:
            await asyncio.sleep(GAP)
        for number in range(WARM_UP + TOKENS):
            frames.counting = number >= WARM_UP
            upstream.generations[KEY].send()
            await asyncio.sleep(GAP)
        frames.counting = False
        upstream.generations[KEY].finish()
        await reader.done
    upstream.close()
    running.should_exit = True


if __name__ == "__main__":
    main()
