"""`python -m benchmarks.frames`: the Python frames that one token takes through the service, socket to socket.

The service runs in the main thread, on a real uvicorn; upstream and the reader run in a thread of their own, which
isn't counted. A frame is a `call` event of `sys.setprofile`: a function called, or a coroutine or generator resumed.
"""

import asyncio
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import CodeType, FrameType

import uvicorn
import uvloop

from benchmarks.dialects import Conversations
from benchmarks.exchange import connect
from benchmarks.readers import open_reader
from benchmarks.script import FRAMES
from benchmarks.upstream import Upstream
from server import create_app
from serving.settings import Settings

KEY, WARM_UP, TOKENS, GAP = 1, 50, 300, 0.02


class Frames:
    """Counts, in the thread that made it, while `counting`."""

    def __init__(self) -> None:
        self.counting = False
        self.by_code: Counter[CodeType] = Counter()
        sys.setprofile(self._see)

    def _see(self, frame: FrameType, event: str, _: object) -> None:
        if self.counting and event == "call":
            self.by_code[frame.f_code] += 1

    def table(self) -> str:
        """One line a function, most frames first, those that a token doesn't pass left out."""
        per_token = [(count / TOKENS, code) for code, count in self.by_code.most_common() if count > TOKENS / 10]
        lines = [f"{count:6.2f}  {code.co_qualname}  ({Path(code.co_filename).name})" for count, code in per_token]
        return "\n".join([*lines, f"{sum(count for count, _ in per_token):6.1f}  frames a token"])


async def _load(port: int, upstream: Upstream, frames: Frames) -> None:
    """One stream, a token every `GAP` seconds; counted after the first `WARM_UP` tokens."""
    assert len(FRAMES) > 1
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


def main() -> None:
    """Count, and print."""
    frames, ready = Frames(), threading.Event()
    base_url, port = [""], [0]
    started = threading.Event()

    async def load() -> None:
        upstream = Upstream()
        base_url[0] = await upstream.listen()
        ready.set()
        await asyncio.to_thread(started.wait)
        await _load(port[0], upstream, frames)
        upstream.close()

    def run_load() -> None:
        uvloop.run(load())
        server.should_exit = True

    thread = threading.Thread(target=run_load)
    thread.start()
    ready.wait()
    app = create_app(Settings(openrouter_base_url=base_url[0], openrouter_api_key="key", log_level="WARNING"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, ws="none"))

    async def serve() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port[0] = server.servers[0].sockets[0].getsockname()[1]
        started.set()
        await serving

    uvloop.run(serve())
    thread.join()
    print(frames.table())


if __name__ == "__main__":
    main()
