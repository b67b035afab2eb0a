"""Upstream's models list: fetched once however many ask, encoded and gzipped once a fetch, stale if it must be."""

import asyncio
import gzip
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from result import Failure
from upstream.errors import UpstreamBroken, UpstreamError
from upstream.refusals import parsed

logger = logging.getLogger("openrouter")


@dataclass(frozen=True, slots=True)
class Models:
    """The models list, encoded as the response's body, plain and gzipped."""

    body: bytes
    gzipped: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class _Cached:
    until: float  # of the monotonic clock
    answer: Models
    stale: Models  # the answer if the next fetch fails


class ModelsCache:
    """The list as `fetch` gives it (upstream's body): kept for `fresh` seconds, `retry` after a fetch that failed."""

    def __init__(self, fetch: Callable[[], Awaitable[bytes]], fresh: float, retry: float) -> None:
        self._fetch = fetch
        self._fresh, self._retry = fresh, retry
        self._cached: _Cached | None = None
        self._is_used = False
        self.ids: frozenset[str] = frozenset()
        """Of the models in the list, as it was last fetched."""
        self._refreshing: asyncio.Task[Models] | None = None

    async def models(self) -> Models:
        """The list. Raises `UpstreamError` if there is none at all."""
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
        """Tell whoever waits for the list to come back later."""
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
            until = time.monotonic() + self._retry
            self._cached = replace(self._cached, until=until, answer=self._cached.stale)
            return self._cached.stale
        logger.info("Models fetched: %d bytes in %.2f s", len(body), time.monotonic() - started)
        self._cached = _Cached(time.monotonic() + self._fresh, cached, stale)
        self._is_used, self.ids = False, ids
        return fetched


def _encode(body: bytes) -> tuple[list[Models], frozenset[str]]:
    """The response's bodies: as fetched just now, from the cache, stale; and the models' ids."""
    listing = parsed(body)
    models = listing.get("data") if isinstance(listing, dict) else listing  # Together's is bare
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
