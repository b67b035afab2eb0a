"""The OpenRouter adapter: the models list and its cache, and one streamed completion as an iterator of typed values.

Knows nothing of conversations, Starlette or the environment. Errors and wire format are in `wire`; any
OpenAI-compatible server speaks the part of it that is used here.
"""

import asyncio
import gzip
import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx

from upstream import client as accelerator
from upstream.runs import Runs
from upstream.wire import (
    Completion,
    Delta,
    Finish,
    Generation,
    NotConfigured,
    UpstreamBroken,
    UpstreamError,
    UpstreamRefused,
    UpstreamSilent,
    UpstreamTimeout,
    UpstreamUnreachable,
    UpstreamUnreadable,
    generation_in,
    parse_object,
    refusal,
    retry_after_seconds,
)

__all__ = ["Delta", "Finish", "Generation", "Models", "OpenRouter", "Timers", "UpstreamError"]

BATCH_CHARS = 256 * 1024  # of a history that are encoded in one go
MAX_ERROR_BYTES = 64 * 1024
MAX_MODELS_BYTES = 32 * 1024 * 1024
MAX_RETRY_AFTER = 30.0  # seconds that a `Retry-After` is waited for

T = TypeVar("T")
Values = AsyncGenerator[Generation | Delta | Finish, None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timers:
    """Seconds that upstream is waited for."""

    connect: float = 10.0
    read: float = 60.0  # without a byte
    delta: float = 300.0  # without a delta, whatever comments come
    tail: float = 5.0  # for the usage, after the finish reason
    retries: tuple[float, ...] = (0.5, 1.5)  # before the second and the third try
    models: float = 3600.0  # that the models list is fresh
    models_retry: float = 30.0  # after a failed refresh, until the next


@dataclass(frozen=True, slots=True)
class Models:
    """The models list, encoded as the response's body, plain and gzipped."""

    body: bytes
    gzipped: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class _ModelsCache:
    until: float  # of the monotonic clock
    answer: Models
    stale: Models  # the answer if the next fetch fails


class OpenRouter:
    """One upstream and the one client that all requests to it share. `aclose()` when done."""

    def __init__(self, base_url: str, api_key: str, *, app_url: str, app_title: str, timers: Timers) -> None:
        self._api_key = api_key
        self._timers = timers
        self._loop = asyncio.get_running_loop()
        self._base_url = base_url.rstrip("/")
        title = app_title.encode()
        headers = [(b"HTTP-Referer", app_url.encode()), (b"X-Title", title), (b"X-OpenRouter-Title", title)]
        if api_key:
            headers.append((b"Authorization", f"Bearer {api_key}".encode()))
        timeout = httpx.Timeout(timers.read, connect=timers.connect, pool=None)
        self._client = accelerator.client(self._base_url, headers=headers, timeout=timeout)
        # What all requests for a completion have in common, made once.
        like = {"Content-Type": "application/json", "Accept": "text/event-stream", "Accept-Encoding": "identity"}
        self._like = self._client.build_request("POST", f"{self._base_url}/chat/completions", headers=like)
        del self._like.headers["Content-Length"]
        if accelerator.IS_ACTIVE:
            logger.info("the accelerator is in use: httpx-aiohttp is installed")
        self._models: _ModelsCache | None = None
        self._cache_used = False
        self._refreshing: asyncio.Task[Models] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def aclose(self) -> None:
        """Close every connection, those of given-up requests too, in less than a second."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=0.3)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=0.3)
        await self._client.aclose()

    # Completions

    async def stream(self, model: str, turns: Sequence[tuple[str, str]], traceparent: str | None = None) -> Values:
        """The answer to `turns` (role, content), ended by a `Finish`. Raises `UpstreamError`.

        A failed try is repeated, but never after the first delta. Cancel the task that reads it once at the most: a
        second time would interrupt httpcore's cleaning up, and lose a place in its pool.
        """
        if not self._api_key:
            raise NotConfigured
        body = await _encode_request(model, turns)
        del turns  # and the body is kept until the first delta alone: a history may be long, and the answer, too
        for number, pause in enumerate((*self._timers.retries, None), start=1):
            has_delta = False
            try:
                async with aclosing(self._try(self._request(body, traceparent))) as values:
                    async for value in values:
                        if not has_delta and isinstance(value, Delta):
                            has_delta, body = True, b""
                        yield value
                return
            except UpstreamError as error:
                if has_delta or pause is None or not _may_be_repeated(error):
                    raise
                pause = max(pause, error.retry_after or 0)
                logger.warning("try %d failed (%s, %d), next in %.1f s", number, _name(error), error.code, pause)
            await asyncio.sleep(pause)

    def _request(self, body: bytes, traceparent: str | None) -> httpx.Request:
        headers = [*self._like.headers.raw, (b"Content-Length", b"%d" % len(body))]
        if traceparent:
            headers.append((b"traceparent", traceparent.encode()))
        return httpx.Request(
            self._like.method,
            self._like.url,
            headers=headers,
            stream=_Body(body),
            extensions=self._like.extensions.copy(),
        )

    async def _try(self, request: httpx.Request) -> Values:
        patience_ends = self._loop.time() + self._timers.delta
        with _translated():
            response = await self._send(request, patience_ends)
        completion = Completion(self._api_key)
        # Undecoded where nothing has to be: each layer that is left out counts, once a token.
        chunks = response.aiter_bytes() if "content-encoding" in response.headers else response.aiter_raw()
        try:
            await self._check(response)
            if generation := generation_in(response.headers.get("x-generation-id")):
                completion.generation_id = generation.id
                yield generation
            async with aclosing(self._values(chunks, completion, patience_ends)) as values:
                async for value in values:
                    yield value
        finally:
            # After `[DONE]` the rest is read elsewhere, so that the connection can be used again.
            # In a task of its own: closing, too, must not be cancelled half-way.
            closing = self._own(_read_out(response, chunks) if completion.done else response.aclose())
            if not completion.done:
                await asyncio.wait({closing})

    async def _send(self, request: httpx.Request, patience_ends: float) -> httpx.Response:
        # httpx leaks a pool slot when it is cancelled between connecting and sending. So it sends in a task of its
        # own, which `_give_up` cancels once the request is out; `trace` tells when.
        sent: asyncio.Future[None] = self._loop.create_future()
        is_tunnel = False  # that a proxy is asked for, first

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            nonlocal is_tunnel
            if event.endswith("send_request_headers.started"):
                is_tunnel = info["request"].method == b"CONNECT"
            elif event.endswith("send_request_body.complete") and not is_tunnel and not sent.done():
                sent.set_result(None)

        if accelerator.IS_ACTIVE:  # it can be cancelled at any time, and has no trace
            sent.set_result(None)
        request.extensions["trace"] = trace
        sending = self._own(self._client.send(request, stream=True))
        try:
            await asyncio.wait({sending}, timeout=patience_ends - self._loop.time())
        except asyncio.CancelledError:
            self._own(self._give_up(sending, sent))
            raise
        if not sending.done():
            self._own(self._give_up(sending, sent))
            raise UpstreamSilent
        return sending.result()

    async def _give_up(self, sending: asyncio.Task[httpx.Response], sent: asyncio.Future[None]) -> None:
        first: set[asyncio.Future[Any]] = {sending, sent}
        try:
            await asyncio.wait(first, timeout=self._timers.connect, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not sending.cancelling():
                sending.cancel()
        [response] = await asyncio.gather(sending, return_exceptions=True)
        if isinstance(response, httpx.Response):
            await response.aclose()

    async def _check(self, response: httpx.Response) -> None:
        content_type = response.headers.get("content-type", "text/event-stream")
        if response.status_code == 200 and content_type.lower().startswith("text/event-stream"):
            return
        status, body = response.status_code, await self._error_body(response)
        if status >= 400 or body.get("error"):
            retry_after = retry_after_seconds(response.headers.get("retry-after"))
            raise refusal(status if status >= 400 else None, body, retry_after, self._api_key)
        kind = UpstreamUnreadable if status >= 200 else UpstreamBroken
        raise kind(f"Upstream answered with status {status} and no event stream: check OPENROUTER_BASE_URL.")

    async def _error_body(self, response: httpx.Response) -> dict[str, Any]:
        """The JSON object in an error's response; empty if there is none, as on an edge's HTML page."""
        body = b""
        try:
            with _translated():
                async with asyncio.timeout(self._timers.tail):
                    async for chunk in response.aiter_bytes():
                        body += chunk
                        if len(body) > MAX_ERROR_BYTES:
                            return {}
            return parse_object(body)
        except (UpstreamError, TimeoutError):
            return {}

    async def _values(self, chunks: AsyncIterator[bytes], completion: Completion, patience_ends: float) -> Values:
        runs = Runs(completion)
        deadline = patience_ends
        while not completion.done:
            was_whole = completion.whole
            chunk = await self._next(chunks, completion, deadline)
            values, error = runs.take(chunk) if chunk else runs.close()
            for value in values:
                yield value
            if isinstance(error, UpstreamRefused) or (error and chunk and not completion.whole):
                raise error
            if error or not chunk:
                break  # an event that was cut off here can't be read: `finish` says what that means
            if not was_whole and (values or completion.whole):
                deadline = self._loop.time() + (self._timers.tail if completion.whole else self._timers.delta)
        end = completion.finish()
        for delta in completion.leftover():
            yield delta
        yield end

    async def _next(self, chunks: AsyncIterator[bytes], completion: Completion, deadline: float) -> bytes:
        """The next bytes, empty at the end; a whole completion needs nothing more, so no error there either."""
        now = self._loop.time()
        try:
            if deadline - now > self._timers.read and not accelerator.IS_ACTIVE:
                return await anext(chunks, b"")  # httpx's own timer is the nearer one
            async with asyncio.timeout_at(min(deadline, now + self._timers.read)):
                return await anext(chunks, b"")
        except TimeoutError:
            error: UpstreamError = UpstreamSilent()
        except accelerator.ERRORS as caught:
            error = _translation(caught)
        if completion.whole:
            return b""
        raise error

    # The models list

    async def models(self) -> Models:
        """The models list, fetched once however many ask. Raises `UpstreamError` if there is none at all."""
        if self._models is not None and time.monotonic() < self._models.until:
            logger.log(logging.DEBUG if self._cache_used else logging.INFO, "models served from the cache")
            self._cache_used = True
            return self._models.answer
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._own(self._refresh())
        refreshing = self._refreshing
        await asyncio.wait({refreshing})
        if refreshing.cancelled():
            raise UpstreamError(503, "The service is restarting: ask again in a moment.", retryable=True)
        return refreshing.result()

    def stop_fetching(self) -> None:
        """Let whoever waits for the models list be told to come back."""
        if self._refreshing is not None:
            self._refreshing.cancel()

    async def _refresh(self) -> Models:
        try:
            fetched, cached, stale = await self._fetch_models()
        except UpstreamError as error:
            logger.warning("models not fetched: %s, code %d", _name(error), error.code)
            if self._models is None:
                raise
            until = time.monotonic() + self._timers.models_retry
            self._models = replace(self._models, until=until, answer=self._models.stale)
            return self._models.stale
        self._models = _ModelsCache(time.monotonic() + self._timers.models, cached, stale)
        self._cache_used = False
        return fetched

    async def _fetch_models(self) -> list[Models]:
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._timers.connect + self._timers.read):
                body = await self._read_models()
        except TimeoutError as error:
            raise UpstreamTimeout("Upstream's models list comes too slowly.") from error
        models = await asyncio.to_thread(_encode_models, bytes(body))
        logger.info("models fetched: %d bytes in %.2f s", len(body), time.monotonic() - started)
        return models

    async def _read_models(self) -> bytes:
        body = bytearray()
        with _translated():
            async with self._client.stream("GET", f"{self._base_url}/models") as response:
                await self._check_models(response)
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_MODELS_BYTES:
                        raise UpstreamBroken(f"Upstream's models list has more than {MAX_MODELS_BYTES} bytes.")
        return bytes(body)

    async def _check_models(self, response: httpx.Response) -> None:
        if response.status_code >= 400:
            raise refusal(response.status_code, await self._error_body(response), None, self._api_key)

    def _own(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._disown)
        return task

    def _disown(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # so that it counts as retrieved: whoever waits for it has it


class _Body(httpx.AsyncByteStream):
    """A request's body, which is forgotten once it has been sent."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body, self._body = self._body, b""
        yield body


async def _encode_request(model: str, turns: Sequence[tuple[str, str]]) -> bytes:
    # `include_usage` is for local servers; OpenRouter reports usage anyway.
    head = _encode({"model": model, "stream": True, "stream_options": {"include_usage": True}})
    messages: list[bytes] = []
    for batch in _batches(turns):
        if messages:
            await asyncio.sleep(0)
        messages.append(_encode([{"role": role, "content": content} for role, content in batch])[1:-1])
    return b"".join((head[:-1], b',"messages":[', b",".join(messages), b"]}"))


def _batches(turns: Sequence[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """A history of megabytes in parts, so that others are served between them."""
    batch: list[tuple[str, str]] = []
    size = 0
    for turn in turns:
        batch.append(turn)
        size += len(turn[1])
        if size > BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


async def _read_out(response: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
    with suppress(*accelerator.ERRORS, TimeoutError):  # the answer is whole; at worst the connection isn't used again
        async with asyncio.timeout(1.0):
            async for _ in chunks:
                pass
    await response.aclose()


def _encode_models(body: bytes) -> list[Models]:
    """The response's bodies: as fetched just now, from the cache, stale."""
    models = parse_object(body).get("data")
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
    return answers


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except accelerator.ERRORS as error:
        raise _translation(error) from error


def _translation(error: Exception) -> UpstreamError:
    """httpx's error as one of this module's: the one place where they meet."""
    match accelerator.as_httpx(error):
        case httpx.ConnectTimeout():
            return UpstreamTimeout("Upstream took too long to accept a connection.")
        case httpx.TimeoutException():
            return UpstreamSilent()
        case httpx.ConnectError() | httpx.ProxyError() | httpx.UnsupportedProtocol():
            return UpstreamUnreachable()
    return UpstreamBroken("The connection to upstream broke, or what came can't be read.")


def _may_be_repeated(error: UpstreamError) -> bool:
    # Not where upstream has taken the request: each try might be generated and billed, and a question is answered once.
    is_brief = (error.retry_after or 0) <= MAX_RETRY_AFTER
    return error.retryable and is_brief and not isinstance(error, (UpstreamSilent, UpstreamUnreadable))


def _name(error: UpstreamError) -> str:
    return type(error).__name__
