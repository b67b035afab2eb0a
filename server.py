"""The app with its middleware and lifespan, and the command `python server.py`.

This module knows nothing about the form of a conversation or an event.
"""

import argparse
import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import uvicorn
from dotenv import dotenv_values
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette
from starlette.middleware import Middleware
from uvicorn.server import HANDLED_SIGNALS

import demo
import logs
from openrouter import OpenRouter, Timers
from replies import Replies
from routes import State, exception_handlers, routes
from serving.access import Access, Origins, is_loopback
from serving.connections import MAX_CONNECTIONS, ClientConnection
from serving.metrics import Metrics
from serving.middleware import Boundary, Cors, Envelope
from serving.process import BACKLOG, Server, listen
from settings import VERSION, Settings, SettingsError
from store import Store
from upstream.http.transport import Transport

STARTUP_FAILURE = 3  # this exit code makes uvicorn's supervisor give up, too

logger = logging.getLogger("server")


def create_app(settings: Settings, *, timers: Timers | None = None, is_demo: bool = False) -> Starlette:
    """Build the ASGI app; a demo accepts requests from every page of this machine. Raises `SettingsError`.

    Two apps in one process share nothing but the log.
    """
    logs.configure(settings.log_level.upper(), settings.log_format.lower())
    try:
        transport = Transport.for_base_url(settings.openrouter_base_url)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    metrics, store = Metrics(VERSION, settings.model_name), Store(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[State]:
        AppStatus.should_exit = False  # an earlier server in this process may have set sse-starlette's flag
        asyncio.get_running_loop().set_exception_handler(_log_uncaught)
        openrouter = OpenRouter(settings, transport, timers or Timers())
        replies = Replies(store, openrouter, settings, metrics.count_reply)
        _warn(settings)
        await store.open()
        try:
            yield State(settings=settings, store=store, replies=replies, openrouter=openrouter, metrics=metrics)
        finally:
            await replies.drain(settings.shutdown_grace)
            await openrouter.aclose()
            await store.close()

    origins = Origins(settings.cors_origins, allow_loopback=is_demo)
    layers = [
        Middleware(Envelope, metrics=metrics),
        Middleware(Cors, origins=origins),
        Middleware(Boundary),
        Middleware(Access, hosts=settings.allowed_hosts, origins=origins, token=settings.auth_token),
    ]
    app = Starlette(routes=routes, middleware=layers, exception_handlers=exception_handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    app.state.store = store
    return app


def _log_uncaught(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # The default handler would quote the exception, in the repr of its task.
    logger.error("%s\n%s", context["message"], logs.outline(context.get("exception")))


def _warn(settings: Settings) -> None:
    if not settings.openrouter_api_key:
        logger.warning("OPENROUTER_API_KEY is not set: everything works but replies")
    if not settings.auth_token and not is_loopback(settings.host):
        logger.warning(
            "LISTENING ON %s WITHOUT A TOKEN: anyone who reaches this port can spend your credit. Set "
            "AUTH_TOKEN, or HOST=127.0.0.1",
            settings.host,
        )


# Start


def load_settings() -> Settings:
    """Read the settings from `.env` and the environment, which takes precedence. Raises `SettingsError`."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(".env")  # raises without permission, while python-dotenv would ignore the file
        return Settings.from_environ({**dotenv_values(".env"), **os.environ})
    except OSError as error:
        raise SettingsError(f".env can't be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise SettingsError(".env can't be read: it must be UTF-8.") from None


@contextlib.contextmanager
def exiting_with_one_line() -> Iterator[None]:
    """Print a `SettingsError` as one line and exit with `STARTUP_FAILURE`."""
    try:
        yield
    except SettingsError as error:
        print(error, file=sys.stderr)
        sys.exit(STARTUP_FAILURE)


def refuse_workers(store: Store) -> None:
    """Raise `SettingsError` if uvicorn has started several processes and each would have its own conversations."""
    if multiprocessing.parent_process() is not None and "--reload" not in sys.argv and not store.is_shared:
        condition = "The relay must run in one process unless STORE_URL names a server to share"
        raise SettingsError(f"{condition}: unset WEB_CONCURRENCY and leave out --workers.")


def serve(settings: Settings, *, is_demo: bool = False) -> None:
    """Run until a signal arrives. Raises `SettingsError` before the app starts."""
    app = create_app(settings, is_demo=is_demo)
    if os.environ.get("WEB_CONCURRENCY"):  # some platforms set this variable themselves
        logger.info("WEB_CONCURRENCY means nothing to `python server.py`, which is one process")
    sockets = listen(settings.host, settings.port)
    port = sockets[0].getsockname()[1]
    config = uvicorn.Config(
        app,
        host=settings.host.strip("[]"),
        backlog=BACKLOG,
        http=ClientConnection,
        ws="none",
        workers=1,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=75,  # longer than clients' and proxies' own time-outs, so that they close first
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    AppStatus.enable_automatic_graceful_drain = False  # `Server` drains; sse-starlette would cut off readers
    _raise_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the server handles the signals
    with contextlib.suppress(KeyboardInterrupt):
        hint = demo.hint(port) if is_demo else ""
        Server(config, settings.shutdown_grace, hint, prepare=app.state.store.open).run(sockets)
    for number in HANDLED_SIGNALS:  # a signal must not interrupt the exit of a stopped server
        signal.signal(number, signal.SIG_IGN)


def _raise_file_limit() -> None:
    """Allow more open files: each stream needs two descriptors, and a shell's limit is often 1,024."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def main() -> None:
    """Run `python server.py`; `--demo` puts the stand-in in upstream's place."""
    parser = argparse.ArgumentParser(description="A relay between chat front ends and OpenRouter.")
    parser.add_argument("--demo", action="store_true", help="answer from a stand-in: no key, no network")
    is_demo = parser.parse_args().demo
    settings = load_settings()
    if not is_demo:
        return serve(settings)
    with demo.running() as base_url:
        settings = replace(settings, openrouter_base_url=base_url, openrouter_api_key="sk-demo", model_name="demo/echo")
        serve(settings, is_demo=True)


with exiting_with_one_line():
    if __name__ == "__main__":
        main()
    else:
        app = create_app(load_settings())
        refuse_workers(app.state.store)
