"""Access control by a request's `Host`, its `Origin` and its token.

This module knows nothing about conversations, events or the environment.
"""

import hmac
import ipaddress
import logging
import re
from collections.abc import Awaitable, Iterable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import problem

LINKABLE_PATHS = ("/", "/docs", "/redoc", "/openapi.json", "/health")  # other sites may link to these
MAX_NAMED = 100  # origins that the log names; a client that sends more is inventing them

logger = logging.getLogger("server")


class Origins:
    """The origins whose pages may call. A page can't read why it was refused, so the log says so once per origin."""

    def __init__(self, origins: Iterable[str], *, allow_loopback: bool = False) -> None:
        self._origins = {_normalized(origin) for origin in origins}
        self._allow_loopback = allow_loopback
        self._logged: set[str] = set()

    @property
    def allow_all(self) -> bool:
        """Whether every page may call."""
        return "*" in self._origins

    def allow(self, origin: str) -> bool:
        """Whether pages of this origin may call."""
        scheme, _, host = origin.lower().partition("://")
        is_local = scheme in ("http", "https") and is_loopback(_bare_host(host))
        return self.allow_all or origin.lower() in self._origins or (self._allow_loopback and is_local)

    def log_refusal(self, origin: str) -> None:
        """Log that the relay refuses pages of this origin, unless the log says so already."""
        name = origin[:100]
        if name not in self._logged and len(self._logged) < MAX_NAMED:
            self._logged.add(name)
            logger.warning("A page of %a was refused: CORS_ORIGINS doesn't list this origin", name)


class Access:
    """Refuses a request with a foreign `Host` or `Origin`, or without the token."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str], origins: Origins, token: str) -> None:
        self.app, self.origins = app, origins
        self.hosts = {host.lower().strip("[]").rstrip(".") for host in hosts}
        self.token = token.encode()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        return (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        path, headers = scope["path"].removeprefix(scope.get("root_path", "")), Headers(scope=scope)
        is_probe = path == "/health"  # a kubelet sends the pod's address as `Host`, and no token
        has_token = self._is_token_right(headers.get("authorization", ""))
        is_scrape = path == "/metrics" and bool(self.token) and has_token  # Prometheus sends the pod's address, too
        is_page_allowed = self._is_page_allowed(path, headers)
        if not (is_probe or is_scrape or self._is_host_allowed(headers.getlist("host"))):
            return problem(403, "The `Host` isn't allowed: it must be a loopback name or be listed in ALLOWED_HOSTS.")
        if not is_page_allowed:
            return problem(403, "Pages of this origin aren't allowed: CORS_ORIGINS must list it.")
        if not (is_probe or has_token):
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
            # Links and <img> send no Origin; those on other sites may lead only to `LINKABLE_PATHS`.
            is_foreign = headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
            return not is_foreign or path in LINKABLE_PATHS
        if len(origins) == 1 and (_is_own(origins[0], headers.get("host", "")) or self.origins.allow(origins[0])):
            return True
        self.origins.log_refusal(", ".join(origins))
        return False

    def _is_token_right(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        is_right = hmac.compare_digest(token.strip().encode(), self.token)
        return not self.token or (scheme.lower() == "bearer" and is_right)


def _is_own(origin: str, host: str) -> bool:
    """Whether the origin is this `Host`. A proxy may hide the page's scheme, so the origin may have either."""
    scheme = origin.lower().partition("://")[0]
    return scheme in ("http", "https") and _normalized(origin) == _normalized(f"{scheme}://{host}")


def _bare_host(host: str) -> str:
    """Return a `Host` in lower case, without port, brackets and final dot; empty if it is malformed."""
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


def _normalized(origin: str) -> str:
    """Return an origin as browsers send it: in lower case, without the default port of its scheme."""
    scheme, _, host = origin.lower().partition("://")
    return origin.lower().removesuffix({"http": ":80", "https": ":443"}.get(scheme, "/")) if host else origin.lower()
