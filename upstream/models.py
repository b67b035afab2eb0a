"""A cache of upstream's models list: concurrent requests share a fetch, and a failed fetch leaves the stale list."""

import asyncio
import gzip
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from result import Failure
from upstream.errors import UpstreamBroken, UpstreamError
from upstream.refusals import parsed

logger = logging.getLogger("openrouter")


@dataclass(frozen=True, slots=True)
class Models:
    """The models list as a response's body, plain and gzipped."""

    body: bytes
    gzipped: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class _Cached:
    until: float  # on the monotonic clock
    answer: Models
    stale: Models  # the answer if the next fetch fails


class ModelsCache:
    """Keeps the list that `fetch` returns for `fresh` seconds, and a stale list for `retry` after a failed fetch."""

    def __init__(self, fetch: Callable[[], Awaitable[bytes]], fresh: float, retry: float) -> None:
        self._fetch, self._fresh, self._retry = fetch, fresh, retry
        self._cached: _Cached | None = None
        self._refreshing: asyncio.Task[Models] | None = None
        self._is_used = False  # whether the cache has answered since the fetch
        self.ids: frozenset[str] = frozenset()  # the models' ids at the last fetch

    async def models(self) -> Models:
        """Return the list. Raises `UpstreamError` if there is none, not even a stale one."""
        if self._cached is not None and time.monotonic() < self._cached.until:
            logger.log(logging.DEBUG if self._is_used else logging.INFO, "Models served from the cache")
            self._is_used = True
            return self._cached.answer
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
        refreshing = self._refreshing
        await asyncio.wait({refreshing})
        if refreshing.cancelled():
            raise UpstreamError(Failure(503, "The service is restarting: ask again in a moment.", retryable=True))
        return refreshing.result()

    def stop(self) -> None:
        """Make requests that wait for the list fail with a 503."""
        if self._refreshing is not None:
            self._refreshing.cancel()

    async def _refresh(self) -> Models:
        started = time.monotonic()
        try:
            body = await self._fetch()
            (fetched, cached, stale), ids = await asyncio.to_thread(_encode, body)
        except UpstreamError as error:
            logger.warning("models not fetched: %s, code %d", type(error).__name__, error.failure.code)
            if self._cached is None:
                raise
            stale = self._cached.stale
            self._cached = _Cached(time.monotonic() + self._retry, stale, stale)
            return stale
        logger.info("Models fetched: %d bytes in %.2f s", len(body), time.monotonic() - started)
        self._cached = _Cached(time.monotonic() + self._fresh, cached, stale)
        self._is_used, self.ids = False, ids
        return fetched


def _encode(body: bytes) -> tuple[list[Models], frozenset[str]]:
    """Return three answers, for a list that is new, cached or stale, and the models' ids."""
    listing = parsed(body)
    models = listing.get("data") if isinstance(listing, dict) else listing  # Together sends a bare list
    try:
        encoded = json.dumps(models, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        models = None
    if not isinstance(models, list):
        raise UpstreamBroken("Upstream's models list isn't one: check OPENROUTER_BASE_URL.")
    etag = f'W/"{hashlib.sha256(encoded).hexdigest()[:32]}"'
    fetched_at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    answers = []
    for cached, stale in ((False, False), (True, False), (True, True)):
        state = json.dumps({"cached": cached, "stale": stale, "fetched_at": fetched_at})
        answer = b'{"models":' + encoded + b"," + state[1:].encode()
        answers.append(Models(answer, gzip.compress(answer, 6), etag))
    ids = (model.get("id") for model in models if isinstance(model, dict))
    return answers, frozenset(name for name in ids if isinstance(name, str))
