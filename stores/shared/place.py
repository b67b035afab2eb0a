"""Where the server is: what `STORE_URL` says, and a connection to whichever server is the primary now.

Knows nothing of conversations.
"""

import re
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from valkey.asyncio.connection import Connection, SSLConnection
from valkey.exceptions import AuthenticationError, ResponseError, ValkeyError
from valkey.exceptions import ConnectionError as Refused

from serving.settings import SettingsError

CONNECTING = 1.0  # seconds

_KINDS = (
    "valkey://, valkeys://, redis:// or rediss://, with +sentinel or +cluster in front of the colon where it is one"
)


@dataclass(frozen=True)
class Place:
    """One server, the primary of a service that Sentinels know, or the part of a cluster that has our keys."""

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
    def of(cls, url: str) -> "Place":
        """What a URL says. Raises `SettingsError`, which doesn't quote it: there is a password in it."""
        try:
            return cls._of(url)
        except (ValueError, OSError, IndexError) as error:
            raise SettingsError(f"STORE_URL must {_reason(error)}.") from None

    @classmethod
    def _of(cls, url: str) -> "Place":
        parts = urlsplit(url)
        scheme = re.fullmatch(r"(valkey|redis)(s?)(?:\+(sentinel|cluster))?", parts.scheme)
        if not scheme:
            raise _Wrong(f"begin with {_KINDS}")
        account, _, hosts = parts.netloc.rpartition("@")
        user, _, password = account.partition(":")
        options = parse_qs(parts.query, strict_parsing=bool(parts.query))
        if options.keys() - {"prefix", "ssl_ca_certs"}:
            raise _Wrong("have no options but prefix and ssl_ca_certs")
        place = cls(
            kind=scheme[3] or "",
            hosts=tuple(_host(host, 26379 if scheme[3] == "sentinel" else 6379) for host in hosts.split(",")),
            user=unquote(user) or None,
            password=unquote(password) or None,
            has_tls=bool(scheme[2]),
            ca_certs=options.get("ssl_ca_certs", [None])[0],
            prefix=options.get("prefix", ["relay"])[0],
        )
        return place._with_path([part for part in parts.path.split("/") if part])

    def _with_path(self, path: list[str]) -> "Place":
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
        return Place(**fields)

    async def connect(self) -> Connection:
        """A connection to the primary. Raises valkey's errors and `OSError`; bounded by whoever calls."""
        host, port = await self._primary() if self.kind == "sentinel" else self.hosts[0]
        connection = await self._connected(host, port)
        try:
            moved = await self._moved(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if moved is None:
            return connection
        await connection.disconnect(nowait=True)
        return await self._connected(*moved)

    async def _moved(self, connection: Connection) -> tuple[str, int] | None:
        """Where to go instead, None if this is the right server."""
        if self.kind == "cluster":
            return await _moved(connection, self.prefix)
        if self.kind == "sentinel":
            await connection.send_command("ROLE")
            if (await connection.read_response())[0] != b"master":
                raise Refused("not the primary any more")
        return None

    async def _primary(self) -> tuple[str, int]:
        """As the first Sentinel that can tell says: https://valkey.io/topics/sentinel-clients/."""
        failure: Exception = Refused("there are no Sentinels")
        for host, port in self.hosts:
            try:
                return await self._told_by(host, port)
            except (OSError, ValkeyError) as error:
                failure = error
        raise failure

    async def _told_by(self, host: str, port: int) -> tuple[str, int]:
        """Sentinels have no password, as a rule; one that asks for it has that of the servers."""
        try:
            return await self._asked(host, port)
        except AuthenticationError:
            return await self._asked(host, port, username=self.user, password=self.password)

    async def _asked(self, host: str, port: int, **account: str | None) -> tuple[str, int]:
        sentinel = await self._opened(host, port, socket_timeout=CONNECTING, **account)
        try:
            await sentinel.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
            found = await sentinel.read_response()
        finally:
            await sentinel.disconnect(nowait=True)
        if not found:
            raise Refused("the Sentinel doesn't know the service")
        return found[0].decode(), int(found[1])

    async def _connected(self, host: str, port: int) -> Connection:
        account: dict[str, Any] = {"username": self.user, "password": self.password}
        return await self._opened(host, port, db=self.database, socket_timeout=None, **account)  # `Line` bounds it

    async def _opened(self, host: str, port: int, **options: Any) -> Connection:
        if self.has_tls:
            options |= {"ssl_ca_certs": self.ca_certs, "ssl_check_hostname": True}
        kind = SSLConnection if self.has_tls else Connection
        connection = kind(host=host, port=port, socket_connect_timeout=CONNECTING, **options)
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection


class _Wrong(ValueError):
    """What is wrong with a URL, in words that don't quote it."""


def _reason(error: Exception) -> str:
    if isinstance(error, _Wrong):
        return str(error)
    return "name a file with certificates in ssl_ca_certs" if isinstance(error, OSError) else "be a URL"


def _host(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise _Wrong("name a host")
    return parts.hostname, port if parts.port is None else parts.port


async def _moved(connection: Connection, prefix: str) -> tuple[str, int] | None:
    """The node of the cluster that has our slot, if it isn't this one."""
    await connection.send_command("EXISTS", f"{{{prefix}}}:list")
    try:
        await connection.read_response()
        return None
    except ResponseError as error:
        moved = re.match(r"MOVED [0-9]+ (\S*):([0-9]+)", str(error))
        if not moved:
            raise
        return moved[1] or connection.host, int(moved[2])
