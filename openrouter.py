"""The OpenRouter adapter: one streamed completion as an async iterator of small typed values, and the models list.

Knows nothing of conversations, Starlette or the environment. Any OpenAI-compatible server speaks the part of the
protocol that is used here; `upstream/` has its errors, its events and the HTTP client.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import httpx

from serving.settings import Settings
from upstream.completion import Completion, Delta, Finish, Generation
from upstream.connection import Exchange
from upstream.errors import (
    NotConfigured,
    UpstreamBroken,
    UpstreamError,
    UpstreamRefused,
    UpstreamSilent,
    UpstreamTimeout,
    UpstreamUnreachable,
    UpstreamUnreadable,
    parse_object,
    refusal,
    retry_after_seconds,
)
from upstream.models import Models, ModelsCache
from upstream.timers import Timers

__all__ = ["Delta", "Finish", "Generation", "Models", "OpenRouter", "Timers", "UpstreamError", "Values"]

BATCH_CHARS = 256 * 1024  # of a history that are encoded in one go
MAX_ERROR_BYTES = 64 * 1024
MAX_MODELS_BYTES = 32 * 1024 * 1024

Values = AsyncGenerator[Generation | Delta | Finish, None]

logger = logging.getLogger(__name__)


class OpenRouter:
    """One upstream, and the transport that all requests to it share. `aclose()` when done."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport, timers: Timers) -> None:
        self._api_key = settings.openrouter_api_key
        self._base_url = httpx.URL(settings.openrouter_base_url.rstrip("/"))
        self._transport = transport
        self._timers = timers
        self._loop = asyncio.get_running_loop()
        self._timeout = httpx.Timeout(timers.read, connect=timers.connect, pool=None).as_dict()
        title = settings.app_title.encode()
        headers = [
            (b"User-Agent", b"chat-relay"),
            (b"HTTP-Referer", settings.app_url.encode()),
            (b"X-Title", title),
            (b"X-OpenRouter-Title", title),
        ]
        if self._api_key:
            headers.append((b"Authorization", f"Bearer {self._api_key}".encode()))
        self._models = ModelsCache(self._fetch_models, timers)
        self._models_url, self._models_headers = (
            self._url("/models"),
            [*headers, (b"Accept-Encoding", b"gzip, deflate")],
        )
        self._completions_url = self._url("/chat/completions")
        self._completion_headers = [
            *headers,
            (b"Content-Type", b"application/json"),
            (b"Accept", b"text/event-stream"),
            (b"Accept-Encoding", b"identity"),
        ]

    async def models(self) -> Models:
        """The models list, fetched once however many ask. Raises `UpstreamError` if there is none at all."""
        return await self._models.models()

    def stop_fetching(self) -> None:
        """Tell whoever waits for the models list to come back later."""
        self._models.stop()

    async def aclose(self) -> None:
        """Close every connection."""
        self._models.stop()
        await self._transport.aclose()

    async def stream(self, model: str, turns: Sequence[tuple[str, str]], traceparent: str | None = None) -> Values:
        """The answer to `turns` (role, content), ended by a `Finish`. Raises `UpstreamError`.

        A failed try is repeated, but never after the first delta, nor where upstream may have generated an answer.
        """
        if not self._api_key:
            raise NotConfigured
        body = await _encode_request(model, turns)
        del turns  # a history may be long, and the answer, too
        for number, pause in enumerate((*self._timers.retries, None), start=1):
            completion = Completion(self._api_key)
            try:
                async with self._asked(body, traceparent, completion) as (exchange, read):
                    for value in completion.feed(b""):  # what the response's head says
                        yield value
                    while not completion.is_done and (chunk := await read()):
                        was_whole = completion.is_whole
                        for value in (values := completion.feed(chunk)):
                            yield value
                        if completion.error:
                            raise completion.error
                        if completion.has_delta:
                            body = b""
                        if not was_whole and (values or completion.is_whole):
                            patience = self._timers.tail if completion.is_whole else self._timers.delta
                            exchange.deadline = self._loop.time() + patience
                ending = completion.finish()
            except (httpx.HTTPError, UpstreamError) as caught:
                error = _as_upstream_error(caught)
                if completion.is_whole and not isinstance(error, UpstreamRefused):
                    ending = completion.finish()  # it needs nothing more
                elif completion.has_delta or pause is None or not _may_be_repeated(error, self._timers):
                    raise error from caught
                else:
                    pause = max(pause, error.retry_after or 0)
                    logger.warning("try %d failed (%s, %d), next in %.1f s", number, _name(error), error.code, pause)
                    await asyncio.sleep(pause)
                    continue
            for last in ending:
                yield last
            return

    @asynccontextmanager
    async def _asked(
        self, body: bytes, traceparent: str | None, completion: Completion
    ) -> AsyncIterator[tuple[Exchange, Callable[[], Awaitable[bytes]]]]:
        """The response's exchange, and what reads its body; given up at the end, unless `[DONE]` was read."""
        headers = [*self._completion_headers, (b"Content-Length", b"%d" % len(body))]
        if traceparent:
            headers.append((b"traceparent", traceparent.encode()))
        response = await self._response("POST", self._completions_url, headers, body)
        del body  # it is the whole history
        exchange = response.stream
        assert isinstance(exchange, Exchange)
        try:
            await self._check(response)
            completion.begin(response.headers.get("x-generation-id"))
            yield exchange, _reader(response, exchange)
        finally:
            if completion.is_done:
                exchange.finish(self._timers.rest)
            else:
                await exchange.aclose()

    async def _response(
        self, method: str, url: httpx.URL, headers: list[tuple[bytes, bytes]], body: bytes = b""
    ) -> httpx.Response:
        extensions = {"timeout": self._timeout, "deadline": self._loop.time() + self._timers.delta}
        stream = httpx.ByteStream(body)
        request = httpx.Request(method, url, headers=headers, stream=stream, extensions=extensions)
        return await self._transport.handle_async_request(request)

    async def _check(self, response: httpx.Response) -> None:
        content_type = response.headers.get("content-type", "text/event-stream")
        status = response.status_code
        if status == 200 and content_type.lower().startswith("text/event-stream"):
            return
        body = await self._error_body(response)
        if status >= 400 or body.get("error"):
            retry_after = retry_after_seconds(response.headers.get("retry-after"))
            raise refusal(status if status >= 400 else None, body, retry_after, self._api_key)
        raise UpstreamUnreadable(
            f"Upstream answered with status {status} and no event stream: check OPENROUTER_BASE_URL."
        )

    async def _error_body(self, response: httpx.Response) -> dict[str, object]:
        """The JSON object in an error's response; empty if there is none, as on an edge's HTML page."""
        body = b""
        try:
            async with asyncio.timeout(self._timers.tail):
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_ERROR_BYTES:
                        return {}
            return parse_object(body)
        except (httpx.HTTPError, UpstreamError, TimeoutError):
            return {}

    async def _fetch_models(self) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._timers.connect + self._timers.read):
                response = await self._response("GET", self._models_url, self._models_headers)
                assert isinstance(response.stream, Exchange)
                try:
                    if response.status_code >= 400:
                        raise refusal(response.status_code, await self._error_body(response), None, self._api_key)
                    async for chunk in response.aiter_bytes():
                        body += chunk
                        if len(body) > MAX_MODELS_BYTES:
                            raise UpstreamBroken(f"Upstream's models list has more than {MAX_MODELS_BYTES} bytes.")
                finally:
                    await response.stream.aclose()
        except TimeoutError as error:
            raise UpstreamTimeout("Upstream's models list comes too slowly.") from error
        except httpx.HTTPError as error:
            raise _as_upstream_error(error) from error
        return bytes(body)

    def _url(self, path: str) -> httpx.URL:
        return httpx.URL(f"{self._base_url}{path}")


def _reader(response: httpx.Response, exchange: Exchange) -> Callable[[], Awaitable[bytes]]:
    if "content-encoding" not in response.headers:
        return exchange.read
    chunks = response.aiter_bytes()
    return lambda: anext(chunks, b"")


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


def _as_upstream_error(error: httpx.HTTPError | UpstreamError) -> UpstreamError:
    """httpx's error as one of the adapter's: the one place where they meet."""
    match error:
        case UpstreamError():
            return error
        case httpx.ConnectTimeout():
            return UpstreamTimeout("Upstream took too long to accept a connection.")
        case httpx.TimeoutException():
            return UpstreamSilent()
        case httpx.ConnectError() | httpx.ProxyError() | httpx.UnsupportedProtocol():
            return UpstreamUnreachable()
    return UpstreamBroken("The connection to upstream broke, or what came can't be read.")


def _may_be_repeated(error: UpstreamError, timers: Timers) -> bool:
    # Not where upstream has taken the request: each try might be generated and billed, and a question is answered once.
    is_brief = (error.retry_after or 0) <= timers.retry_after
    return error.retryable and is_brief and not isinstance(error, (UpstreamSilent, UpstreamUnreadable))


def _name(error: UpstreamError) -> str:
    return type(error).__name__
