"""Who may call: the `Host` and the `Origin` of a request, and its token.

Knows nothing of conversations, events or the environment.
"""

import hmac
import ipaddress
import logging
import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import problem

WITHOUT_EFFECT = ("/", "/docs", "/redoc", "/openapi.json", "/health")  # other sites may link to these
MAX_NAMED = 100  # origins that the log names; whoever sends more invents them

logger = logging.getLogger("server")


class Origins:
    """Whose pages may call. A page can't read why it was refused, so the log tells it once an origin."""

    def __init__(self, listed: Iterable[str], *, all_of_loopback: bool = False) -> None:
        self._listed = {as_browsers_send_it(origin) for origin in listed}
        self._all_of_loopback = all_of_loopback
        self._named: set[str] = set()

    @property
    def are_all(self) -> bool:
        """Whether every page may call."""
        return "*" in self._listed

    def allow(self, origin: str) -> bool:
        """Whether pages of this origin may call."""
        scheme, _, host = origin.lower().partition("://")
        is_of_loopback = scheme in ("http", "https") and is_loopback(_bare_host(host))
        return self.are_all or origin.lower() in self._listed or (self._all_of_loopback and is_of_loopback)

    def tell_of(self, refused: str) -> None:
        """Log that pages of this origin are refused, unless the log has it already."""
        named = refused[:100]
        if named not in self._named and len(self._named) < MAX_NAMED:
            self._named.add(named)
            logger.warning("A page of %a was refused: CORS_ORIGINS doesn't list this origin", named)


class Access:
    """Refuses requests with a foreign `Host` or `Origin`, and those without the token."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str], origins: Origins, token: str) -> None:
        self.app = app
        self.hosts = {host.lower().strip("[]").rstrip(".") for host in hosts}
        self.origins = origins
        self.token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        path, headers = scope["path"].removeprefix(scope.get("root_path", "")), Headers(scope=scope)
        is_probe = path == "/health"  # a kubelet sends the pod's address, and no token
        has_token = self._is_token_right(headers.get("authorization", ""))
        is_scrape = path == "/metrics" and bool(self.token) and has_token  # Prometheus sends the pod's address, too
        is_page_allowed = self._is_page_allowed(path, headers)
        if not (is_probe or is_scrape or self._is_host_allowed(headers.getlist("host"))):
            return problem(403, "The `Host` isn't allowed: it must be a loopback name or stand in ALLOWED_HOSTS.")
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
            # An <img> or a link sends no Origin; pages without effect may be linked to.
            is_foreign = headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
            return not is_foreign or path in WITHOUT_EFFECT
        if len(origins) == 1 and (_is_own(origins[0], headers.get("host", "")) or self.origins.allow(origins[0])):
            return True
        self.origins.tell_of(", ".join(origins))
        return False

    def _is_token_right(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        is_right = hmac.compare_digest(token.strip().encode(), self.token)
        return not self.token or (scheme.lower() == "bearer" and is_right)


def _is_own(origin: str, host: str) -> bool:
    """Whether the page came from this `Host`. Its scheme isn't known behind a proxy, so it is that of the origin."""
    scheme = origin.lower().partition("://")[0]
    return scheme in ("http", "https") and as_browsers_send_it(origin) == as_browsers_send_it(f"{scheme}://{host}")


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


def as_browsers_send_it(origin: str) -> str:
    """An origin in lower case, without the port that its scheme has by default."""
    scheme, _, host = origin.lower().partition("://")
    return origin.lower().removesuffix({"http": ":80", "https": ":443"}.get(scheme, "/")) if host else origin.lower()
