"""Long work in steps: the event loop serves others between two of them, and takes one step a turn for all callers.

Knows nothing of what the work is.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from typing import TypeVar

STEP = 0.001  # seconds after which a walk over many small things makes its next step

T = TypeVar("T")


class Steps:
    """A queue for turns of the event loop: however many work at a time, a turn is as long as one step."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_waking = False

    async def next(self) -> None:
        """Return in a turn of the loop that is nobody else's in this queue."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiting.append(waiter)
        if not self._is_waking:
            self._is_waking = True
            loop.call_soon(self._wake, loop)
        await waiter

    async def over(self, items: Iterable[T]) -> AsyncGenerator[T, None]:
        """The items, as many in a step as `STEP` allows."""
        ends = time.perf_counter() + STEP
        for item in items:
            if time.perf_counter() > ends:
                await self.next()
                ends = time.perf_counter() + STEP
            yield item

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting and self._waiting[0].done():  # a caller was cancelled
            self._waiting.popleft()
        self._is_waking = bool(self._waiting)
        if self._waiting:
            self._waiting.popleft().set_result(None)
            loop.call_soon(self._wake, loop)
