"""The sockets to listen on, bound before anything says that the service has started.

Knows nothing of what is served. uvicorn would bind them after the app's start, and end with `[Errno 98]`.
"""

import errno
import os
import socket
import sys

from serving.settings import SettingsError

BACKLOG = 2048  # connections that wait to be accepted

_Address = tuple[socket.AddressFamily, int, tuple[str | int | bytes, ...]]  # with the protocol's number


def listen(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of the host; for port 0 all have the one that the system chooses.

    Raises `SettingsError` with a line that names HOST or PORT.
    """
    listening: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, protocol, (name, wanted, *scope) in _addresses(host.strip("[]"), port):
            chosen = listening[0].getsockname()[1] if listening else wanted
            try:
                listening.append(_bound((family, protocol, (name, chosen, *scope))))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error  # `localhost` has an address of IPv6 where the system has none
        if not listening and missing:
            raise missing
    except OSError as error:
        for one in listening:
            one.close()
        raise SettingsError(_reason(error, host, port)) from None
    return listening


def _addresses(host: str, port: int) -> list[_Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise SettingsError(
            f"HOST must be an address of this machine, such as 127.0.0.1: {host} can't be resolved."
        ) from None
    return list(dict.fromkeys((family, protocol, address) for family, _, protocol, _, address in found))


def _bound(at: _Address) -> socket.socket:
    family, protocol, address = at
    # Connections inherit the protocol's number, by which asyncio knows that TCP_NODELAY is to be set.
    one = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        if os.name == "posix" and sys.platform != "cygwin":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        one.listen(BACKLOG)  # now: two processes that only bind may both have the port
    except BaseException:
        one.close()
        raise
    return one


def _reason(error: OSError, host: str, port: int) -> str:
    other = f"Choose another, such as {port + 1 if 1024 <= port < 65535 else 8001}."
    if error.errno == errno.EADDRINUSE:
        return f"PORT must be a free port: {port} is taken (address already in use). {other}"
    if error.errno in (errno.EACCES, errno.EPERM) and port:
        return f"PORT must be one that this user may listen on: {port} isn't. {other}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"HOST must be an address of this machine, such as 127.0.0.1: {host} isn't one."
    return f"HOST must be an address to listen on, such as 127.0.0.1: {host} isn't one ({error.strerror})."
