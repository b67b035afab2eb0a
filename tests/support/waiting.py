"""Bounded waits, so that no test sleeps to let something happen and none hangs."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

LIMIT = 20.0
"""Seconds that anything a test waits for may take; much more than it does, since the machine may be busy."""

POLL = 0.005


async def bounded(awaitable: Awaitable[T], within: float = LIMIT) -> T:
    """What `awaitable` gives; `TimeoutError` after `within` seconds."""
    async with asyncio.timeout(within):
        return await awaitable


async def eventually(check: Callable[[], object], within: float = LIMIT) -> None:
    """Return once `check()` (or what it awaits) is true; `AssertionError` after `within` seconds."""
    try:
        async with asyncio.timeout(within):
            while not await _result(check):
                await asyncio.sleep(POLL)
    except TimeoutError:
        raise AssertionError(f"still not so after {within} s: {inspect.getsource(check).strip()}") from None


async def _result(check: Callable[[], object]) -> object:
    result = check()
    return await result if inspect.isawaitable(result) else result


class Gate:
    """Where scripts wait until the test lets them pass."""

    def __init__(self) -> None:
        self.arrived = 0
        """How many have come to the gate so far, those that passed included."""
        self._permits = asyncio.Semaphore(0)
        self._wide = False

    def open(self, times: int = 1) -> None:
        """Let `times` arrivals pass, present or future."""
        for _ in range(times):
            self._permits.release()

    def open_wide(self) -> None:
        """Let everybody pass from now on."""
        self._wide = True
        self._permits.release()

    async def reached(self, times: int = 1) -> None:
        """Return once `times` arrivals have been counted; bounded."""
        await eventually(lambda: self.arrived >= times)

    async def passage(self) -> None:
        """Wait here until the gate lets one more pass."""
        self.arrived += 1
        await self._permits.acquire()
        if self._wide:
            self._permits.release()
