"""The adapter of OpenRouter: it streams a completion as small typed values, and fetches the models list.

This module knows nothing about conversations, Starlette or the environment. Any OpenAI-compatible server speaks this
part of the protocol; `upstream/` has its errors, its events and the HTTP client.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from result import Finish, Report
from settings import Settings
from upstream.completion import Completion
from upstream.errors import (
    NotConfigured,
    UpstreamBroken,
    UpstreamError,
    UpstreamSilent,
    UpstreamTimeout,
    UpstreamUnreachable,
    UpstreamUnreadable,
)
from upstream.http.connection import Exchange
from upstream.models import Models, ModelsCache
from upstream.refusals import decoded, redacted, refusal, retry_after_seconds
from upstream.request import Parts, encode_request
from upstream.values import Delta, Prompt, Retry

__all__ = ["Delta", "Models", "OpenRouter", "Prompt", "Retry", "Timers", "UpstreamError", "Values"]

MAX_ERROR_BYTES = 64 * 1024
MAX_MODELS_BYTES = 32 * 1024 * 1024

_ENCODINGS = {"identity", "gzip", "x-gzip", "deflate", ""}  # httpx decodes these without another package

Values = AsyncGenerator[Report | Retry | Delta | Finish, None]
_Read = Callable[[], Awaitable[bytes]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timers:
    """The limits on waiting for upstream, and the pauses between tries, all in seconds."""

    connect: float = 10.0
    read: float = 60.0  # until the next byte
    delta: float = 300.0  # until the next delta, even if comments come
    tail: float = 5.0  # from the finish reason to the usage, and for the body of an error
    rest: float = 1.0  # from `[DONE]` to the response's end
    retries: tuple[float, ...] = (0.5, 1.5)  # the pauses before the second and the third try
    retry_after: float = 30.0  # a longer `Retry-After` means no further try
    models: float = 3600.0  # the time for which the models list is fresh
    models_retry: float = 30.0  # the pause after a failed refresh


class OpenRouter:
    """One upstream, and the transport that all requests to it share. Call `aclose()` when done."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport, timers: Timers) -> None:
        self._api_key, self._max_tokens = settings.openrouter_api_key, settings.max_tokens
        self._transport, self._timers = transport, timers
        self._loop = asyncio.get_running_loop()
        self._timeout = httpx.Timeout(timers.read, connect=timers.connect, pool=None).as_dict()
        title = settings.app_title.encode()
        headers = [(b"User-Agent", b"chat-relay"), (b"HTTP-Referer", settings.app_url.encode())]
        headers += [(b"X-Title", title), (b"X-OpenRouter-Title", title)]
        if self._api_key:
            headers.append((b"Authorization", f"Bearer {self._api_key}".encode()))
        base_url = httpx.URL(settings.openrouter_base_url.rstrip("/"))
        self._models_url = httpx.URL(f"{base_url}/models")
        self._completions_url = httpx.URL(f"{base_url}/chat/completions")
        self._models = ModelsCache(self._fetch_models, timers.models, timers.models_retry)
        self._models_headers = [*headers, (b"Accept-Encoding", b"gzip, deflate")]
        forms = [(b"Content-Type", b"application/json"), (b"Accept", b"text/event-stream")]
        self._completion_headers = [*headers, *forms, (b"Accept-Encoding", b"identity")]

    async def models(self) -> Models:
        """Return the models list; concurrent requests share one fetch. Raises `UpstreamError` if there is no list."""
        return await self._models.models()

    def lists(self, model: str) -> bool:
        """Whether the models list had this model at the last fetch."""
        return model in self._models.ids

    def stop_fetching(self) -> None:
        """Make requests that wait for the models list fail with a 503."""
        self._models.stop()

    async def aclose(self) -> None:
        """Close every connection."""
        self._models.stop()
        await self._transport.aclose()

    async def stream(self, prompt: Prompt) -> Values:
        """Yield the values of the answer, the last of them a `Finish`. Raises `UpstreamError`.

        The adapter repeats a failed try, but not after the first delta, nor if upstream may have generated an answer.
        """
        if not self._api_key:
            raise NotConfigured
        headers, body = self._headers(prompt), await encode_request(prompt, self._max_tokens)
        del prompt  # the answer may last long, and its history may be long
        for number, pause in enumerate((*self._timers.retries, None), start=1):
            completion, cause = Completion(self._api_key), None
            try:
                async with self._response_to(headers, body, completion) as (exchange, read, first_values):
                    for value in first_values:
                        yield value
                    patience_ends = exchange.deadline
                    while not completion.is_over and (chunk := await read()):
                        for value in (values := completion.feed(chunk)):
                            yield value
                        if completion.is_generated:
                            body = []
                        if values:
                            patience_ends = exchange.deadline = self._loop.time() + self._timers.delta
                        if completion.is_whole and completion.has_event:  # more events may follow
                            exchange.deadline = min(self._loop.time() + self._timers.tail, patience_ends)
            except (httpx.HTTPError, UpstreamError) as error:
                cause = _as_upstream_error(error)
            values, end = completion.finish(cause)
            for value in values:
                yield value
            if isinstance(end, Finish):
                yield end
                return
            if completion.is_generated or pause is None or not _may_be_repeated(end, self._timers):
                raise end
            failure = end.failure
            pause = max(pause, failure.retry_after or 0)
            logger.warning("try %d failed (%s, %d), next in %.1f s", number, type(end).__name__, failure.code, pause)
            yield Retry()
            await asyncio.sleep(pause)

    def _headers(self, prompt: Prompt) -> list[tuple[bytes, bytes]]:
        own = {b"x-session-id": prompt.session_id, b"traceparent": prompt.traceparent}
        return self._completion_headers + [(name, value.encode()) for name, value in own.items() if value]

    @asynccontextmanager
    async def _response_to(
        self, headers: list[tuple[bytes, bytes]], body: Sequence[bytes], completion: Completion
    ) -> AsyncIterator[tuple[Exchange, _Read, list[Report | Delta]]]:
        """Yield the exchange, a function that reads its body, and the head's values; hang up unless `[DONE]` came."""
        headers = [*headers, (b"Content-Length", b"%d" % sum(map(len, body)))]
        response = await self._response("POST", self._completions_url, headers, body)
        del body  # it has the whole history
        exchange = response.stream
        assert isinstance(exchange, Exchange)
        try:
            await self._check(response)
            read, head = _reader(response, exchange), response.headers
            first_values = completion.begin(head.get("x-generation-id"), head.get("retry-after"))
            del response, headers, head  # a stream may last long, and so would these
            yield exchange, read, first_values
        finally:
            if completion.is_done:
                exchange.finish(self._timers.rest)
            else:
                await exchange.aclose()

    async def _response(
        self, method: str, url: httpx.URL, headers: list[tuple[bytes, bytes]], body: Sequence[bytes] = ()
    ) -> httpx.Response:
        extensions = {"timeout": self._timeout, "deadline": self._loop.time() + self._timers.delta}
        stream = Parts(body) if len(body) > 1 else httpx.ByteStream(b"".join(body))
        request = httpx.Request(method, url, headers=headers, stream=stream, extensions=extensions)
        return await self._transport.handle_async_request(request)

    async def _check(self, response: httpx.Response) -> None:
        status = response.status_code
        if status >= 400:
            retry_after = retry_after_seconds(response.headers.get("retry-after"))
            raise refusal(status, await self._error_body(response), retry_after, self._api_key)
        if not 200 <= status < 204:  # the content type doesn't count: the bytes show what the body is
            message = f"Upstream answered with status {status} and no event stream: check OPENROUTER_BASE_URL."
            raise UpstreamUnreadable(message)
        _check_encoding(response)

    async def _error_body(self, response: httpx.Response) -> object:
        """Return the decoded body of an error; None if it can't be read."""
        body = b""
        try:
            _check_encoding(response)
            async with asyncio.timeout(self._timers.tail):
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_ERROR_BYTES:
                        return None
            return decoded(body)
        except (httpx.HTTPError, UpstreamError, TimeoutError):
            return None

    async def _fetch_models(self) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._timers.connect + self._timers.read):
                response = await self._response("GET", self._models_url, self._models_headers)
                assert isinstance(response.stream, Exchange)
                try:
                    if response.status_code >= 400:
                        raise refusal(response.status_code, await self._error_body(response), None, self._api_key)
                    _check_encoding(response)
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


def _reader(response: httpx.Response, exchange: Exchange) -> _Read:
    if "content-encoding" not in response.headers:
        return exchange.read
    chunks = response.aiter_bytes()
    return lambda: anext(chunks, b"")


def _check_encoding(response: httpx.Response) -> None:
    encoding = response.headers.get("content-encoding", "identity")
    if not {name.strip().lower() for name in encoding.split(",")} <= _ENCODINGS:
        raise UpstreamUnreadable(
            f"Upstream's answer is encoded as {redacted(encoding)[:40]}, which the relay didn't ask for and can't read."
        )


def _as_upstream_error(error: httpx.HTTPError | UpstreamError) -> UpstreamError:
    """Translate httpx's errors; no other function does so."""
    translated: UpstreamError
    match error:
        case UpstreamError():
            return error
        case httpx.ConnectTimeout():
            translated = UpstreamTimeout("Upstream took too long to accept a connection.")
        case httpx.TimeoutException():
            translated = UpstreamSilent()
        case httpx.ConnectError() | httpx.ProxyError() | httpx.UnsupportedProtocol():
            translated = UpstreamUnreachable(error)
        case httpx.DecodingError():
            translated = UpstreamUnreadable("Upstream's answer isn't in the encoding that it names.")
        case _:
            translated = UpstreamBroken("The connection to upstream broke, or its answer can't be read.")
    translated.__cause__ = error
    return translated


def _may_be_repeated(error: UpstreamError, timers: Timers) -> bool:
    # If upstream has taken the request, it might generate and bill each try, but a question has one answer.
    is_brief = (error.failure.retry_after or 0) <= timers.retry_after
    return error.failure.retryable and is_brief and not isinstance(error, (UpstreamSilent, UpstreamUnreadable))
