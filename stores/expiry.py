"""Conversations in which nothing has happened for `CONVERSATION_TTL` are deleted."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from serving.logs import outline

EVERY = 10.0  # seconds between two looks

_Delete = Callable[[float], Awaitable[None]]

logger = logging.getLogger("store")


@asynccontextmanager
async def expiring(delete_expired: _Delete, seconds: float) -> AsyncIterator[None]:
    """Delete what is older than so many seconds, 0 for nothing, as long as the context lasts."""
    looking = asyncio.create_task(_look(delete_expired, seconds)) if seconds else None
    try:
        yield
    finally:
        if looking:
            looking.cancel()


async def _look(delete_expired: _Delete, seconds: float) -> None:
    while True:
        try:
            await delete_expired(seconds)
        except Exception as error:  # the next look may be luckier
            logger.error("expired conversations could not be deleted\n%s", outline(error))
        await asyncio.sleep(EVERY)
