"""Choose a URL's proxy from the environment: that of its scheme, else ALL_PROXY; none if NO_PROXY names the host.

A proxy that doesn't apply isn't checked: environments are full of proxies that are meant for other programs.
"""

import base64
import ipaddress
import re
import urllib.request

import httpx

LOOPBACK = ("localhost", "127.0.0.0/8", "::1")  # a proxy would reach its own


def proxy_for(url: httpx.URL) -> httpx.URL | None:
    """Return the proxy's URL. Raises `ValueError` with a sentence that names the variable if it can't be used."""
    proxies = urllib.request.getproxies()
    kind = url.scheme if proxies.get(url.scheme) else "all"
    exempt = (*LOOPBACK, *proxies.get("no", "").split(","))
    if not (value := proxies.get(kind)) or any(_names(entry, url) for entry in exempt):
        return None
    try:
        proxy = httpx.URL(value if "://" in value else f"http://{value}")
    except httpx.InvalidURL:
        proxy = httpx.URL()
    if proxy.scheme not in ("http", "https") or not proxy.host or (proxy.port or 1) > 65535:
        raise ValueError(f"{kind.upper()}_PROXY must be an http:// or https:// URL; NO_PROXY={url.host} bypasses it.")
    return proxy


def authorization(proxy: httpx.URL) -> list[tuple[bytes, bytes]]:
    """Return the header that tells the proxy its URL's user and password, if there are any."""
    if not proxy.userinfo:
        return []
    return [(b"Proxy-Authorization", b"Basic " + base64.b64encode(f"{proxy.username}:{proxy.password}".encode()))]


def _names(entry: str, url: httpx.URL) -> bool:
    """Tell whether an entry of NO_PROXY covers the URL: `*`, a name and all names below it, an address or a network."""
    entry = entry.strip().lower().removeprefix(f"{url.scheme}://")
    if entry == "*" or _is_within(url.host, entry):
        return True
    if port := re.search(r"(?<=[^:]):(\d+)$", entry):
        if int(port[1]) != (url.port or {"http": 80, "https": 443}.get(url.scheme)):
            return False
        entry = entry[: port.start()]
    name = entry.removeprefix("*").removeprefix(".").strip("[]")
    return bool(name) and (url.host == name or url.host.endswith(f".{name}"))


def _is_within(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network.strip("[]"), strict=False)
    except ValueError:  # one of the two is a name, or malformed
        return False
