"""The client for upstream: httpx on `network`, or on aiohttp, whose HTTP parser is in C, where that is installed.

Knows nothing of upstream's protocol. The latter is the accelerator of requirements-fast.txt, `httpx-aiohttp`.
"""

import ssl
import urllib.request
from typing import Any

import httpx

from upstream.transport import Transport

try:
    import aiohttp
    from httpx_aiohttp import HttpxAiohttpClient
except ImportError:
    ERRORS: tuple[type[Exception], ...] = (httpx.HTTPError,)
    IS_ACTIVE = False
else:
    ERRORS = (httpx.HTTPError, aiohttp.ClientError)
    IS_ACTIVE = True

KEPT_ALIVE = 100  # connections that wait for the next request


def client(base_url: str, **settings: Any) -> httpx.AsyncClient:
    """A client with as many connections as it takes, for upstream at `base_url`.

    Raises `ValueError` for a proxy of another kind than HTTP, `OSError` for certificates that can't be read.
    """
    url = httpx.URL(base_url)
    is_here = url.host in ("localhost", "::1") or url.host.startswith("127.")
    may_use_proxy = not is_here  # a proxy of the environment can't reach this machine
    proxies = urllib.request.getproxies() if may_use_proxy else {}
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and "://" in proxy and not proxy.startswith("http"):
        raise ValueError("a proxy must be an http:// or https:// URL")
    # Loading certificates takes a while; without TLS an empty context does.
    verify = httpx.create_ssl_context() if url.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if IS_ACTIVE:
        limits = httpx.Limits(max_connections=0, max_keepalive_connections=KEPT_ALIVE)  # None would mean 100 here
        accelerated: httpx.AsyncClient = HttpxAiohttpClient(
            limits=limits, trust_env=may_use_proxy, verify=verify, **settings
        )
        return accelerated
    limits = httpx.Limits(max_keepalive_connections=KEPT_ALIVE)
    if proxy:
        return httpx.AsyncClient(limits=limits, verify=verify, **settings)
    return httpx.AsyncClient(transport=Transport(verify, limits), verify=verify, trust_env=False, **settings)


def as_httpx(error: Exception) -> Exception:
    """The error that httpx itself would raise; httpx-aiohttp calls whatever a connection suffers a `ConnectTimeout`."""
    cause = error.__cause__ if isinstance(error, httpx.HTTPError) else error
    if not IS_ACTIVE or not isinstance(cause, aiohttp.ClientError):
        return error
    match cause:
        case aiohttp.ConnectionTimeoutError():
            return httpx.ConnectTimeout("")
        case TimeoutError():
            return httpx.ReadTimeout("")
        case aiohttp.ClientConnectorError() | aiohttp.ClientHttpProxyError() | aiohttp.InvalidURL():
            return httpx.ConnectError("")
    return httpx.ReadError("")
