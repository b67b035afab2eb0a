"""The middleware around every request, from the outside in: `Envelope`, `Cors`, `Boundary`; then `access.Access`.

This module knows nothing about conversations, events or the environment. It is pure ASGI: Starlette's
`BaseHTTPMiddleware` would hide disconnects.
"""

import asyncio
import logging
import re
import time
import uuid
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import problem
from logs import outline, request_id
from serving.access import Origins
from serving.metrics import METHODS, Metrics

ABORT_TIMEOUT = 1.0  # seconds to wait until an aborted connection is gone

logger = logging.getLogger("server")


class Envelope:
    """Adds the common headers to every response, counts it, and aborts its connection if the app crashes midway.

    The scope's `straight_send` is the server's `send`: it skips the wrappers, which only act on a response's start.
    The scope's `has_started` says whether the response has started.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        this_id = Headers(scope=scope).get("x-request-id", "")
        if not re.fullmatch(r"[\w.:-]{1,128}", this_id, re.ASCII):
            this_id = uuid.uuid4().hex
        request_id.set(this_id)
        started_at = time.perf_counter()
        scope["straight_send"], scope["has_started"] = send, False

        async def send_in_envelope(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["has_started"] = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = this_id
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers.setdefault("Cache-Control", "no-store")
                elapsed = (time.perf_counter() - started_at) * 1000
                self.metrics.count_request(scope["method"], _route(scope), message["status"])
                logger.debug("%s %r %d %.1f ms", scope["method"], scope["path"], message["status"], elapsed)
            await send(message)

        try:
            await self.app(scope, receive, send_in_envelope)
        except Exception as error:  # the response has started: the connection can only be aborted
            logger.error("%s crashed in the middle of its response\n%s", scope["method"], outline(error))
            if not _abort(receive):
                raise
            with suppress(TimeoutError):  # wait until the server has noticed the disconnect
                async with asyncio.timeout(ABORT_TIMEOUT):
                    while (await receive())["type"] != "http.disconnect":
                        pass


def _route(scope: Scope) -> str | None:
    """Return the path template of the request's route, even if the request was refused before routing."""
    routes: list[Route] = [scope["route"]] if "route" in scope else scope["app"].routes
    return next((route.path for route in routes if route.matches(scope)[0] is not Match.NONE), None)


def _abort(receive: Receive) -> bool:
    """Abort the connection if `receive` leads to its transport, as uvicorn's does; return whether it did."""
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is not None:
        transport.abort()
    return transport is not None


class Cors(CORSMiddleware):
    """Starlette's middleware, but `Origins` decides, and a refused preflight gets a problem response."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        super().__init__(
            app,
            allow_origins=("*",) if origins.allow_all else (),
            allow_methods=METHODS,
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=("Allow", "ETag", "Location", "Retry-After", "X-Message-Id", "X-Model", "X-Request-ID"),
        )
        self.origins = origins

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether `Origins` allows this origin."""
        return self.origins.allow(origin)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Turn Starlette's refusal into a problem response that names the setting."""
        if not self.is_allowed_origin(request_headers["origin"]):
            self.origins.log_refusal(request_headers["origin"])
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        del response.headers["content-length"], response.headers["content-type"]
        reason = response.body.decode() if isinstance(response.body, bytes) else ""
        detail = f"{reason}. CORS_ORIGINS lists the origins, /openapi.json the methods."
        return problem(403, detail, headers=response.headers)


class Boundary:
    """Turns a crash into a problem response that reveals no code. It is inside `Cors`, which adds its headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            if scope["type"] != "http" or scope["has_started"]:
                raise
            logger.error("%s %r crashed\n%s", scope["method"], scope["path"], outline(error))
            response = problem(500, "The service failed; its log says where, under this response's X-Request-ID.")
            await response(scope, receive, send)
