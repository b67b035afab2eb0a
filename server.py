"""The service: settings, the app with its middleware and lifespan, logging, and `python server.py`.

Knows nothing of what a conversation or an event looks like.
"""

import argparse
import asyncio
import contextlib
import ipaddress
import logging
import math
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvicorn
from dotenv import dotenv_values
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette
from starlette.middleware import Middleware
from uvicorn.server import HANDLED_SIGNALS

import demo
from api.bodies import Bounds
from openrouter import OpenRouter, Timers
from replies import Replies, ReplyLimits
from routes import State, exception_handlers, routes
from serving import logs, shutdown
from serving.connections import Protocol
from serving.middleware import Boundary, Connections, Cors, Envelope, Guard, is_loopback
from serving.shutdown import Shutdown
from store import Limits, Store
from upstream import client as accelerator

MAX_CONNECTIONS = 10_000  # beyond them requests are refused
STARTUP_FAILURE = 3  # the exit code that makes uvicorn's supervisor give up, too

logger = logging.getLogger("server")


# Settings


class SettingsError(ValueError):
    """A setting that can't be read; the text is one line that names the variable."""


@dataclass(frozen=True)
class Settings:
    """One field a variable, which has the field's name in upper case."""

    openrouter_api_key: str = field(default="", repr=False)
    openrouter_base_url: str = "https://openrouter.ai/api/v1"
    model_name: str = "openrouter/auto"
    app_title: str = "Chat relay"
    app_url: str = "http://localhost:8001"
    host: str = "127.0.0.1"
    port: int = 8001
    cors_origins: tuple[str, ...] = ("http://localhost:5173", "http://localhost:3000")
    allowed_hosts: tuple[str, ...] = ()  # besides loopback names
    auth_token: str = field(default="", repr=False)
    log_level: str = "INFO"
    log_format: str = "text"
    reply_timeout: float = 900.0  # seconds
    shutdown_grace: float = 20.0  # seconds
    max_body_bytes: int = 1024 * 1024
    max_message_chars: int = 200_000
    max_messages: int = 2_000  # a conversation
    max_conversations: int = 10_000
    max_store_bytes: int = 256 * 1024 * 1024  # of text
    max_replies: int = 1_000  # in progress
    max_reply_chars: int = 1_000_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            is_right, what = _RULES.get(name) or _RULE_OF_TYPE[type(getattr(Settings, name))]
            if not is_right(value):
                raise SettingsError(f"{name.upper()} must be {what}.")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str | None]) -> "Settings":
        """Read from variables; one that is missing or empty has its default. Raises `SettingsError`."""
        values: dict[str, Any] = {}
        for entry in fields(cls):
            if text := (environ.get(entry.name.upper()) or "").strip():
                values[entry.name] = _value(entry.name.upper(), text, type(entry.default))
        return cls(**values)


def _value(variable: str, text: str, kind: type) -> Any:
    if kind is tuple:
        return tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    try:
        return kind(text)
    except ValueError:
        raise SettingsError(f"{variable} must be {_RULE_OF_TYPE[kind][1]}.") from None


def _is_base_url(url: str) -> bool:
    try:
        parts, port = urlsplit(url), urlsplit(url).port
        is_for_client = bool(httpx.URL(url).host)
    except (ValueError, httpx.InvalidURL):
        return False
    is_web = parts.scheme in ("http", "https") and not re.search(r"[\s?#@]", url) and port != 0
    return is_web and is_for_client and _is_host(parts.hostname or "")


def _is_origin(origin: str) -> bool:
    return bool(re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#@*]+", origin))


def _is_host(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host.strip("[]")))
    except ValueError:  # a name, then; if its last part were a number, it would be a bad address
        pattern = r"(?=.{1,253}$)(?!-)[\w-]{1,63}(\.(?!-)[\w-]{1,63})*\.?"
        return bool(re.fullmatch(pattern, host, re.ASCII)) and not re.search(r"(^|\.)\d+\.?$", host)


_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

_Rule = tuple[Callable[[Any], bool], str]
_SECRET: _Rule = (lambda v: v.isascii() and v.isprintable(), "printable ASCII")
_RULES: dict[str, _Rule] = {
    "openrouter_api_key": _SECRET,
    "auth_token": _SECRET,
    "openrouter_base_url": (_is_base_url, "an http:// or https:// URL without a user and a query"),
    "host": (_is_host, "an address or a name to listen on, without a port"),
    "model_name": (lambda v: v.isascii() and v.isprintable() and 0 < len(v) <= 200, "a model's id in ASCII"),
    "port": (lambda v: 0 <= v <= 65535, "a port from 0 to 65535"),
    "cors_origins": (lambda v: all(map(_is_origin, v)), "origins such as http://localhost:5173, with commas between"),
    "allowed_hosts": (
        lambda v: all(host == "*" or _is_host(host) for host in v),
        "names of hosts without a port, with commas between",
    ),
    "log_level": (lambda v: v.upper() in _LEVELS, "DEBUG, INFO, WARNING, ERROR or CRITICAL"),
    "log_format": (lambda v: v.lower() in ("text", "json"), "text or json"),
    "shutdown_grace": (lambda v: 0 <= v < math.inf, "a number of seconds, 0 or more"),
}
_RULE_OF_TYPE: dict[type, _Rule] = {
    int: (lambda v: v > 0, "a whole number above 0"),
    float: (lambda v: 0 < v < math.inf, "a number of seconds above 0"),
    str: (str.isprintable, "one line of text"),
}


# The app


def create_app(settings: Settings, *, timers: Timers | None = None) -> Starlette:
    """The ASGI app. Nothing is shared between two apps in one process but the log."""
    connections = Connections()
    origins = [_as_browsers_send_it(origin) for origin in settings.cors_origins]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[State]:
        logs.configure(settings.log_level.upper(), settings.log_format.lower())
        AppStatus.should_exit = False  # sse-starlette's flag outlives a server that ran before in this process
        asyncio.get_running_loop().set_exception_handler(_log_unseen)
        state = _state(settings, timers or Timers())
        server = shutdown.uvicorn_server()
        if server:  # under `uvicorn server:app`, too
            server.config.http_protocol_class = Protocol
            server.config.limit_concurrency = server.config.limit_concurrency or MAX_CONNECTIONS
        _warn(settings, server.config.host if server else settings.host)
        replies, openrouter = state["replies"], state["openrouter"]
        try:
            with Shutdown(server, replies, openrouter, connections, settings.shutdown_grace):
                yield state
        finally:
            await replies.drain(settings.shutdown_grace)
            await openrouter.aclose()

    layers = [
        Middleware(Envelope, connections=connections),
        Middleware(
            Cors,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST", "PATCH", "DELETE"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=("Allow", "ETag", "Location", "Retry-After", "X-Message-Id", "X-Model", "X-Request-ID"),
        ),
        Middleware(Boundary),
        Middleware(Guard, hosts=settings.allowed_hosts, origins=origins, token=settings.auth_token),
    ]
    app = Starlette(routes=routes, middleware=layers, exception_handlers=exception_handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    return app


def _as_browsers_send_it(origin: str) -> str:
    scheme, _, host = origin.lower().partition("://")
    return origin.lower().removesuffix({"http": ":80", "https": ":443"}.get(scheme, "/")) if host else origin.lower()


def _state(settings: Settings, timers: Timers) -> State:
    limits = Limits(settings.max_conversations, settings.max_messages, settings.max_store_bytes)
    store = Store(settings.model_name, limits)
    openrouter = OpenRouter(
        settings.openrouter_base_url,
        settings.openrouter_api_key,
        app_url=settings.app_url,
        app_title=settings.app_title,
        timers=timers,
    )
    reply_limits = ReplyLimits(settings.max_replies, settings.max_reply_chars, settings.reply_timeout)
    return State(
        store=store,
        replies=Replies(store, openrouter, reply_limits),
        openrouter=openrouter,
        bounds=Bounds(settings.max_body_bytes, settings.max_message_chars),
    )


def _log_unseen(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody caught; asyncio's own line would quote the exception in the repr of its task."""
    logger.error("%s\n%s", context["message"], logs.outline(context.get("exception")))


def _warn(settings: Settings, host: str) -> None:
    if not settings.openrouter_api_key:
        logger.warning("OPENROUTER_API_KEY is not set: everything works but replies")
    if not settings.auth_token and not is_loopback(host):
        logger.warning(
            "LISTENING ON %s WITHOUT A TOKEN: whoever reaches this port spends your credit. Set AUTH_TOKEN, or "
            "HOST=127.0.0.1",
            host,
        )


# Start


def load_settings() -> Settings:
    """Settings from the environment and `.env`, the environment first; exits with one line if one can't be read."""
    try:
        return Settings.from_environ({**dotenv_values(".env"), **os.environ})
    except (SettingsError, OSError, UnicodeDecodeError) as error:
        print(error if isinstance(error, SettingsError) else ".env can't be read.", file=sys.stderr)
        sys.exit(STARTUP_FAILURE)


def check_client(settings: Settings) -> None:
    """Exits with one line if upstream can't be asked with the proxies or certificates of the environment."""
    if not {"ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"} & {*map(str.upper, os.environ)}:
        return
    try:
        accelerator.client(settings.openrouter_base_url)
    except (OSError, ValueError, httpx.InvalidURL):
        print(
            "ALL_PROXY, HTTP_PROXY and HTTPS_PROXY must be http:// or https:// proxies, SSL_CERT_FILE a PEM file.",
            file=sys.stderr,
        )
        sys.exit(STARTUP_FAILURE)


def refuse_workers() -> None:
    """Exits where uvicorn has started several processes: each would have conversations of its own."""
    if multiprocessing.parent_process() is not None and "--reload" not in sys.argv:
        print("The relay runs in one process: unset WEB_CONCURRENCY and leave --workers out.", file=sys.stderr)
        sys.exit(STARTUP_FAILURE)


def serve(settings: Settings) -> None:
    """Run until a signal."""
    logs.configure(settings.log_level.upper(), settings.log_format.lower())
    check_client(settings)
    _raise_file_limit()
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host.strip("[]"),
        port=settings.port,
        workers=1,
        ws="none",
        timeout_keep_alive=75,  # longer than clients and proxies keep idle connections, so that they close first
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # before the lifespan, where the drain takes over
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run()
    for number in HANDLED_SIGNALS:  # nothing is left to end
        signal.signal(number, signal.SIG_IGN)


def _raise_file_limit() -> None:
    """As many descriptors as the system grants: a stream takes two, and shells often start with 1,024."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def main() -> None:
    """`python server.py`, with `--demo` against the stand-in."""
    parser = argparse.ArgumentParser(description="A relay between chat front ends and OpenRouter.")
    parser.add_argument("--demo", action="store_true", help="answer from a stand-in: no key, no network")
    wants_demo = parser.parse_args().demo
    settings = load_settings()
    if not wants_demo:
        serve(settings)
        return
    with demo.running() as base_url:
        print(DEMO_HINT.format(port=settings.port), flush=True)
        serve(replace(settings, openrouter_base_url=base_url, openrouter_api_key="sk-demo", model_name="demo/echo"))


DEMO_HINT = r"""
Answers come from a stand-in: no key, no network. Paste into another terminal:

  C=$(curl -si -X POST localhost:{port}/conversations | tr -d '\r' | sed -n 's/^location: //p')
  curl -s localhost:{port}$C/messages -H 'Content-Type: application/json' -d '{{"content": "Why is the sky blue?"}}'
  curl -N localhost:{port}$C/stream
"""

if __name__ == "__main__":
    main()
else:
    refuse_workers()
    _settings = load_settings()
    check_client(_settings)
    logs.configure(_settings.log_level.upper(), _settings.log_format.lower())  # uvicorn's first lines, too
    app = create_app(_settings)
