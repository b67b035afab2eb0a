"""Which proxy of the environment applies to a URL: that of its scheme, else ALL_PROXY, unless NO_PROXY names the host.

What doesn't apply isn't looked at: environments are full of proxies that are meant for others.
"""

import base64
import ipaddress
import re
import urllib.request

import httpx

LOOPBACK = ("localhost", "127.0.0.0/8", "::1")  # no proxy can reach it


def proxy_for(url: httpx.URL) -> httpx.URL | None:
    """The proxy's URL. Raises `ValueError` with a sentence that names the variable where it can't be used."""
    proxies = urllib.request.getproxies()
    kind = url.scheme if proxies.get(url.scheme) else "all"
    exempt = (*LOOPBACK, *proxies.get("no", "").split(","))
    if not (told := proxies.get(kind)) or any(_names(entry, url) for entry in exempt):
        return None
    try:
        proxy = httpx.URL(told if "://" in told else f"http://{told}")
    except httpx.InvalidURL:
        proxy = httpx.URL()
    if proxy.scheme not in ("http", "https") or not proxy.host or (proxy.port or 1) > 65535:
        variable = f"{kind.upper()}_PROXY"
        raise ValueError(f"{variable} must be an http:// or https:// URL; NO_PROXY={url.host} does without it.")
    return proxy


def authorization(proxy: httpx.URL) -> list[tuple[bytes, bytes]]:
    """The header that a proxy whose URL has a user wants."""
    if not proxy.userinfo:
        return []
    return [(b"Proxy-Authorization", b"Basic " + base64.b64encode(f"{proxy.username}:{proxy.password}".encode()))]


def _names(entry: str, url: httpx.URL) -> bool:
    """Whether an entry of NO_PROXY means this host: `*`, a name and what is below it, an address, a network."""
    entry = entry.strip().lower()
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
    except ValueError:  # one of them is a name, or nothing that can be read
        return False
