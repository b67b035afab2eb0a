"""What stands around every request, from outside in: `Envelope`, `Cors`, `Boundary`, `Guard`.

Knows nothing of conversations, events or the environment. Pure ASGI: Starlette's `BaseHTTPMiddleware` would hide
disconnects.
"""

import asyncio
import hmac
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from routes import problem
from serving.logs import outline, request_id

GONE_SECONDS = 1.0  # in which an aborted connection is gone
PIECE = 256 * 1024  # bytes of a body that are sent at once

WITHOUT_EFFECT = ("/", "/docs", "/redoc", "/openapi.json", "/health")  # other sites may link to these

logger = logging.getLogger("server")


class Connections:
    """The requests being answered, so that the last of them can be cut off."""

    def __init__(self) -> None:
        self._open: set[asyncio.Timeout] = set()

    @contextmanager
    def holding(self, answering: asyncio.Timeout) -> Iterator[None]:
        """While the request is answered, within this timeout."""
        self._open.add(answering)
        try:
            yield
        finally:
            self._open.discard(answering)

    def abort(self) -> None:
        """Give up what is still open, whatever its client or upstream does."""
        for answering in self._open:
            answering.reschedule(0)


class Envelope:
    """Adds what every response carries, and drops the connection of one that breaks off."""

    def __init__(self, app: ASGIApp, connections: Connections) -> None:
        self.app = app
        self.connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        this_id = Headers(scope=scope).get("x-request-id", "")
        if not re.fullmatch(r"[\w.:-]{1,128}", this_id, re.ASCII):
            this_id = uuid.uuid4().hex
        request_id.set(this_id)
        started = time.perf_counter()

        async def send_in_envelope(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = this_id
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers.setdefault("Cache-Control", "no-store")
                taken = (time.perf_counter() - started) * 1000
                logger.debug("%s %r %d %.1f ms", scope["method"], scope["path"], message["status"], taken)
            await (_send_in_pieces(send, message) if len(message.get("body", b"")) > PIECE else send(message))

        try:
            async with asyncio.timeout(None) as answering:
                with self.connections.holding(answering):
                    await self.app(scope, receive, send_in_envelope)
        except Exception as error:  # after the response's start, or given up: the connection can only be dropped
            if not answering.expired():
                logger.error("%s crashed in the middle of its response\n%s", scope["method"], outline(error))
            if not _abort(receive):
                raise
            with suppress(TimeoutError):  # until the server, too, knows that the connection is gone
                async with asyncio.timeout(GONE_SECONDS):
                    while (await receive())["type"] != "http.disconnect":
                        pass


async def _send_in_pieces(send: Send, message: Message) -> None:
    """A large body no faster than its client reads it, so that a slow one doesn't hold all of it in a buffer."""
    body = memoryview(message["body"])
    for start in range(0, len(body), PIECE):
        more = start + PIECE < len(body) or message.get("more_body", False)
        await send({**message, "body": bytes(body[start : start + PIECE]), "more_body": more})


def _abort(receive: Receive) -> bool:
    """Drop the connection without waiting for its client to read; uvicorn's `receive` knows the transport."""
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is not None:
        transport.abort()
    return transport is not None


class Cors(CORSMiddleware):
    """Starlette's, with a problem response to a preflight that fails."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """What isn't allowed, as a problem that names the setting."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        del response.headers["content-length"], response.headers["content-type"]
        refused = response.body.decode() if isinstance(response.body, bytes) else ""
        return problem(
            403, f"{refused}. CORS_ORIGINS lists the origins, /openapi.json the methods.", headers=response.headers
        )


class Boundary:
    """Turns a crash into a problem response that says nothing of the code; inside Cors, for its headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, noting_send)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            logger.error("%s %r crashed\n%s", scope["method"], scope["path"], outline(error))
            response = problem(500, "The service failed; its log says where, under this response's X-Request-ID.")
            await response(scope, receive, send)


class Guard:
    """Refuses requests with a foreign `Host` or `Origin`, and those without the token."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str], origins: Iterable[str], token: str) -> None:
        self.app = app
        self.hosts = {host.lower().strip("[]").rstrip(".") for host in hosts}
        self.origins = {origin.lower() for origin in origins}
        self.token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        path, headers = scope["path"].removeprefix(scope.get("root_path", "")), Headers(scope=scope)
        is_probe = path == "/health"  # a kubelet sends the pod's address, and no token
        if not is_probe and not self._is_host_allowed(headers.getlist("host")):
            return problem(403, "The `Host` isn't allowed: it must be a loopback name or stand in ALLOWED_HOSTS.")
        if not self._is_page_allowed(path, headers):
            return problem(403, "Pages of this origin aren't allowed: CORS_ORIGINS must list it.")
        if not is_probe and not self._is_token_right(headers.get("authorization", "")):
            detail = "The token is missing or wrong: send the value of AUTH_TOKEN as `Authorization: Bearer <token>`."
            return problem(401, detail, headers={"WWW-Authenticate": "Bearer"})
        return None

    def _is_host_allowed(self, hosts: list[str]) -> bool:
        return "*" in self.hosts or (
            len(hosts) == 1 and bool(host := _bare_host(hosts[0])) and (host in self.hosts or is_loopback(host))
        )

    def _is_page_allowed(self, path: str, headers: Headers) -> bool:
        origins = headers.getlist("origin")
        if not origins:
            # An <img> or a link sends no Origin; pages without effect may be linked to.
            is_foreign = headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
            return not is_foreign or path in WITHOUT_EFFECT
        origin = origins[0].lower()
        is_own = re.sub("^https?://", "", origin) == headers.get("host", "").lower()
        return len(origins) == 1 and (is_own or origin in self.origins or "*" in self.origins)

    def _is_token_right(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        is_right = hmac.compare_digest(token.strip().encode(), self.token)
        return not self.token or (scheme.lower() == "bearer" and is_right)


def _bare_host(host: str) -> str:
    """The name in a Host header in lower case, without port, brackets and a last dot; empty if it isn't one."""
    match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^\s\[\]:/?#@,\\]+?)\.?)(?::\d{0,5})?", host.lower())
    return (match[1] or match[2]) if match else ""


def is_loopback(host: str) -> bool:
    """Whether a name or an address (without brackets) means this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
