"""httpx on aiohttp, whose HTTP parser is in C, where `httpx-aiohttp` is installed (requirements-fast.txt).

Knows nothing of upstream's protocol. Without the package everything here is httpx itself.
"""

import httpx

try:
    import aiohttp
    from httpx_aiohttp import HttpxAiohttpClient
except ImportError:
    Client: type[httpx.AsyncClient] = httpx.AsyncClient
    ERRORS: tuple[type[Exception], ...] = (httpx.HTTPError,)
    IS_ACTIVE = False
else:
    Client = HttpxAiohttpClient
    ERRORS = (httpx.HTTPError, aiohttp.ClientError)
    IS_ACTIVE = True

UNLIMITED = 0 if IS_ACTIVE else None  # connections: to httpx-aiohttp None means 100


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
        case aiohttp.ClientConnectorError() | aiohttp.InvalidURL():
            return httpx.ConnectError("")
    return httpx.ReadError("")
