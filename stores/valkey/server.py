"""The URL of a server, a connection to whichever server is the primary now, and the check whether it can be used.

Knows nothing of conversations.
"""

import asyncio
import contextlib
import logging
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from valkey.asyncio.connection import Connection, SSLConnection
from valkey.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ResponseError,
    ValkeyError,
)
from valkey.exceptions import ConnectionError as Refused

from settings import SettingsError
from stores.records import StoreUnavailable
from stores.valkey.keys import Keys

CONNECT_TIMEOUT = 1.0  # seconds
START_TIMEOUT = 10.0  # seconds for a server that is just starting
START_RETRY_INTERVAL = 0.3  # seconds between two attempts
FORMAT = "1"  # the version of the layout of the keys

_SCHEMES = (
    "valkey://, valkeys://, redis:// or rediss://, with +sentinel or +cluster in front of the colon where it is one"
)

logger = logging.getLogger("store")


@dataclass(frozen=True)
class ServerUrl:
    """The URL of one server, of a service that Sentinels know, or of a cluster of which one node has our keys."""

    kind: str  # "", "sentinel", "cluster"
    hosts: tuple[tuple[str, int], ...]
    service: str = ""
    database: int = 0
    user: str | None = None
    password: str | None = None
    has_tls: bool = False
    ca_certs: str | None = None
    prefix: str = "relay"

    @classmethod
    def of(cls, url: str) -> "ServerUrl":
        """Parse a URL. Raises `SettingsError`, which doesn't quote the URL: there is a password in it."""
        try:
            return cls._of(url)
        except (ValueError, OSError, IndexError) as error:
            raise SettingsError(f"STORE_URL must {_demand(error)}.") from None

    @classmethod
    def _of(cls, url: str) -> "ServerUrl":
        parts = urlsplit(url)
        scheme = re.fullmatch(r"(valkey|redis)(s?)(?:\+(sentinel|cluster))?", parts.scheme)
        if not scheme:
            raise _Wrong(f"begin with {_SCHEMES}")
        account, _, hosts = parts.netloc.rpartition("@")
        user, _, password = account.partition(":")
        options = parse_qs(parts.query, strict_parsing=bool(parts.query))
        if options.keys() - {"prefix", "ssl_ca_certs"}:
            raise _Wrong("have no options but prefix and ssl_ca_certs")
        server = cls(
            kind=scheme[3] or "",
            hosts=tuple(_host(host, 26379 if scheme[3] == "sentinel" else 6379) for host in hosts.split(",")),
            user=unquote(user) or None,
            password=unquote(password) or None,
            has_tls=bool(scheme[2]),
            ca_certs=options.get("ssl_ca_certs", [None])[0],
            prefix=options.get("prefix", ["relay"])[0],
        )
        return server._with_path([part for part in parts.path.split("/") if part])

    def _with_path(self, path: list[str]) -> "ServerUrl":
        service = path.pop(0) if self.kind == "sentinel" and path else ""
        if self.kind == "sentinel" and not service:
            raise _Wrong("have the name of the service that the Sentinels know, behind the hosts and a slash")
        if self.kind != "sentinel" and len(self.hosts) > 1:
            raise _Wrong("name one host; several are for +sentinel")
        if len(path) > 1 or not all(re.fullmatch("[0-9]{1,4}", part) for part in path):
            raise _Wrong("have the number of a database, or nothing, behind the slash")
        if not re.fullmatch("[A-Za-z0-9_.:-]{1,64}", self.prefix):
            raise _Wrong("have a prefix of 1 to 64 letters, digits or _ . : -")
        if self.ca_certs:
            ssl.create_default_context(cafile=self.ca_certs)
        fields = vars(self) | {"service": service, "database": int(path[0]) if path else 0}
        return ServerUrl(**fields)

    async def connect(self) -> Connection:
        """Connect to the primary. Raises valkey's errors and `OSError`; the caller limits the time."""
        host, port = await self._primary() if self.kind == "sentinel" else self.hosts[0]
        connection = await self._open_server(host, port)
        try:
            owner = await self._owner(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if owner is None:
            return connection
        await connection.disconnect(nowait=True)
        return await self._open_server(*owner)

    async def _owner(self, connection: Connection) -> tuple[str, int] | None:
        """The host and port to connect to instead, None if this is the right server."""
        if self.kind == "cluster":
            return await _slot_owner(connection, self.prefix)
        if self.kind == "sentinel":
            await connection.send_command("ROLE")
            if (await connection.read_response())[0] != b"master":
                raise Refused("not the primary any more")
        return None

    async def _primary(self) -> tuple[str, int]:
        """The primary that the first reachable Sentinel names: https://valkey.io/topics/sentinel-clients/."""
        failure: Exception = Refused("there are no Sentinels")
        for host, port in self.hosts:
            try:
                try:
                    return await self._ask_sentinel(host, port)
                except AuthenticationError:  # few Sentinels have a password; where one has, it is the servers' password
                    return await self._ask_sentinel(host, port, username=self.user, password=self.password)
            except (OSError, ValkeyError) as error:
                failure = error
        raise failure

    async def _ask_sentinel(self, host: str, port: int, **account: str | None) -> tuple[str, int]:
        sentinel = await self._open(host, port, socket_timeout=CONNECT_TIMEOUT, **account)
        try:
            await sentinel.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
            address = await sentinel.read_response()
        finally:
            await sentinel.disconnect(nowait=True)
        if not address:
            raise Refused("the Sentinel doesn't know the service")
        return address[0].decode(), int(address[1])

    async def _open_server(self, host: str, port: int) -> Connection:
        account: dict[str, Any] = {"username": self.user, "password": self.password}
        return await self._open(host, port, db=self.database, socket_timeout=None, **account)  # `Client` has a timeout

    async def _open(self, host: str, port: int, **options: Any) -> Connection:
        if self.has_tls:
            options |= {"ssl_ca_certs": self.ca_certs, "ssl_check_hostname": True}
        kind = SSLConnection if self.has_tls else Connection
        connection = kind(host=host, port=port, socket_connect_timeout=CONNECT_TIMEOUT, **options)
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection


class _Wrong(ValueError):
    """A fault of a URL. The text doesn't quote the URL."""


def _demand(error: Exception) -> str:
    if isinstance(error, _Wrong):
        return str(error)
    return "name a file with certificates in ssl_ca_certs" if isinstance(error, OSError) else "be a URL"


def _host(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise _Wrong("name a host")
    return parts.hostname, port if parts.port is None else parts.port


async def _slot_owner(connection: Connection, prefix: str) -> tuple[str, int] | None:
    """The node of the cluster that has the slot of our keys, None if it is this one."""
    await connection.send_command("EXISTS", f"{{{prefix}}}:list")
    try:
        await connection.read_response()
        return None
    except ResponseError as error:
        match = re.match(r"MOVED [0-9]+ (\S*):([0-9]+)", str(error))
        if not match:
            raise
        return match[1] or connection.host, int(match[2])


async def check(url: ServerUrl, keys: Keys) -> None:
    """Wait until the server can be used. Raises `SettingsError` with one line, which never has the password."""
    try:
        async with asyncio.timeout(START_TIMEOUT):
            await _until_started(partial(_check_once, url, keys), START_TIMEOUT - 2)
    except (OSError, ValkeyError) as error:
        raise SettingsError(f"The server of STORE_URL can't be used: {_why_unusable(error)}.") from None


async def first(beat: Callable[[], Awaitable[None]]) -> None:
    """Give the first sign of life, before the relay takes requests. Raises `SettingsError`."""
    try:
        await _until_started(beat, START_TIMEOUT)
    except StoreUnavailable:
        raise SettingsError("The server of STORE_URL can't be used: it doesn't answer.") from None


async def _until_started(attempt: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Repeat the attempt for so many seconds: the server may only just be starting."""
    patience_ends = time.monotonic() + seconds
    while True:
        try:
            return await attempt()
        except (AuthenticationError, NoPermissionError, ssl.SSLCertVerificationError):
            raise
        except (OSError, ValkeyError, StoreUnavailable) as error:
            if time.monotonic() > patience_ends or "certificate verify failed" in str(error):
                raise
            await asyncio.sleep(START_RETRY_INTERVAL)


async def _check_once(url: ServerUrl, keys: Keys) -> None:
    connection = await url.connect()
    try:
        await _check(connection, keys)
    finally:
        await connection.disconnect(nowait=True)


async def _check(connection: Connection, keys: Keys) -> None:
    info = dict(re.findall(r"^(\w+):(.*?)\r?$", (await _ask(connection, "INFO")).decode(), re.MULTILINE))
    if info.get("loading") == "1":
        raise BusyLoadingError  # the rest of INFO isn't valid yet
    version = info.get("valkey_version") or info.get("redis_version", "0")
    if int(version.partition(".")[0]) < 7:
        raise SettingsError(f"The server of STORE_URL is too old ({version}): it must be Valkey 7.2 or Redis 7.0.")
    if info.get("role") != "master":
        raise SettingsError("The server of STORE_URL is a replica: name the primary, or use +sentinel.")
    policy = info.get("maxmemory_policy", "noeviction")
    if int(info.get("maxmemory", 0)) and policy.startswith("allkeys"):
        raise SettingsError(
            f"The server of STORE_URL would forget conversations when it is full (maxmemory-policy is {policy}): "
            "set noeviction."
        )
    if info.get("aof_enabled") == "0":
        logger.warning("appendonly is off: the server of STORE_URL forgets what came last when it restarts")
    await _try_all(connection, keys)


async def _try_all(connection: Connection, keys: Keys) -> None:
    """Try every kind of command that an account or a proxy may forbid."""
    await _ask(connection, "EVAL", "#!lua flags=allow-oom\nreturn 1", 1, keys.of("format"))
    await _ask(connection, "XREAD", "BLOCK", 1, "STREAMS", keys.of("in:nobody"), "0")
    with contextlib.suppress(OutOfMemoryError):  # a full server still allows reads and deletions
        await _ask(connection, "SET", keys.of("format"), FORMAT, "NX")
    if await _ask(connection, "GET", keys.of("format")) not in (None, FORMAT.encode()):
        raise SettingsError("What STORE_URL names was written by a newer version of the relay.")


async def _ask(connection: Connection, *command: str | int) -> Any:
    await connection.send_command(*command)
    try:
        return await connection.read_response()
    except NoPermissionError:
        raise SettingsError(f"The account of STORE_URL isn't allowed to use {command[0]} on our keys.") from None
    except OutOfMemoryError:
        raise
    except ResponseError:
        raise SettingsError(f"The server of STORE_URL refuses {command[0]}.") from None


def _why_unusable(error: Exception) -> str:
    if isinstance(error, AuthenticationError | NoPermissionError):
        return "it refuses the user or the password"
    if "certificate" in str(error).lower():
        return "its certificate isn't trusted, or is another name's"
    if isinstance(error, TimeoutError) or "imeout" in type(error).__name__:
        return "it doesn't answer"
    return "it can't be reached"
