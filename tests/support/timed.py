"""The service in a thread and an event loop of its own, and how long the turns of that loop are."""

import asyncio
import contextlib
import gc
import selectors
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from tests.support.relay import Relay, client, serving
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually

T = TypeVar("T")

LONGEST_TURN = 0.020
"""Seconds for which nobody else may be served."""


class _Selector(selectors.DefaultSelector):
    """Each turn of a loop begins behind one `select` and lasts until the next.

    Measured is the processor time of the loop's thread, the garbage collector's share included: what other processes
    and threads take of a busy machine doesn't count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.longest = 0.0
        self._began: float | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._began is not None:
            self.longest = max(self.longest, time.thread_time() - self._began)
        ready = super().select(timeout)
        self._began = time.thread_time()
        return ready


class TimedRelay(Relay):
    """A relay whose turns are measured."""

    def __init__(self, relay: Relay, loop: asyncio.AbstractEventLoop, selector: _Selector) -> None:
        super().__init__(relay.url, client(relay.url), relay.store)
        self._loop = loop
        self._selector = selector

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What this gives, in the service's own loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def has_readers(self, count: int) -> None:
        """Return once so many streams are being sent; bounded."""

        async def are_all() -> bool:
            return f"\nchat_relay_readers {count}\n" in (await self.client.get("/metrics")).text

        await eventually(are_all)

    @contextlib.asynccontextmanager
    async def brief_turns(self) -> AsyncIterator[None]:
        """`AssertionError` where a turn that begins meanwhile is longer than `LONGEST_TURN`."""
        self._selector.longest = 0.0
        yield
        await self.run(asyncio.sleep(0))  # the last turn isn't over when its response is there
        longest = self._selector.longest

        assert longest <= LONGEST_TURN, f"for {longest * 1000:.1f} ms nobody else was served"


@contextlib.asynccontextmanager
async def timed(upstream: ScriptedUpstream, **settings: Any) -> AsyncIterator[TimedRelay]:
    """As `serving`, elsewhere. What the tests have made before is left alone by the garbage collector."""
    started: Future[tuple[Relay, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    selector = _Selector()
    gc.collect()
    gc.freeze()
    thread = threading.Thread(target=_serve, args=(upstream.base_url, settings, selector, started))
    thread.start()
    try:
        relay, loop, stop = await asyncio.wrap_future(started)
        there = TimedRelay(relay, loop, selector)
        try:
            async with there.client:
                yield there
        finally:
            loop.call_soon_threadsafe(stop.set)
    finally:
        await asyncio.to_thread(thread.join)
        gc.unfreeze()


def _serve(
    base_url: str,
    settings: dict[str, Any],
    selector: _Selector,
    started: "Future[tuple[Relay, asyncio.AbstractEventLoop, asyncio.Event]]",
) -> None:
    async def serve() -> None:
        async with serving(base_url, **settings) as relay:
            started.set_result((relay, asyncio.get_running_loop(), stop := asyncio.Event()))
            await stop.wait()

    try:
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            runner.run(serve())
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)
