"""Whether a server can be used, looked at once: what it is, how it is set, and whether the account may do what we do.

Knows nothing of conversations.
"""

import asyncio
import contextlib
import logging
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

from valkey.asyncio.connection import Connection
from valkey.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ResponseError,
    ValkeyError,
)

from serving.settings import SettingsError
from stores.records import StoreUnavailable
from stores.shared.place import Place
from stores.shared.scripts import Keys

PATIENCE = 10.0  # seconds for a server that is just starting
TRY_AGAIN = 0.3
FORMAT = "1"  # of what the keys hold

logger = logging.getLogger("store")


async def check(place: Place, keys: Keys) -> None:
    """Raises `SettingsError` with one line, which never has the password."""
    try:
        async with asyncio.timeout(PATIENCE):
            await _checked(place, keys)
    except (OSError, TimeoutError, ValkeyError) as error:
        raise SettingsError(f"The server of STORE_URL can't be used: {_reason(error)}.") from None


async def first(beat: Callable[[], Awaitable[None]]) -> None:
    """Give the first sign of life: nothing is asked of a relay before. Raises `SettingsError`."""
    patience_ends = time.monotonic() + PATIENCE
    while True:
        try:
            return await beat()
        except StoreUnavailable:
            if time.monotonic() > patience_ends:
                raise SettingsError("The server of STORE_URL can't be used: it doesn't answer.") from None
            await asyncio.sleep(TRY_AGAIN)


async def _checked(place: Place, keys: Keys) -> None:
    """Again and again while it is only just starting."""
    patience_ends = time.monotonic() + PATIENCE - 2
    while True:
        try:
            return await _checked_once(place, keys)
        except (AuthenticationError, NoPermissionError, ssl.SSLCertVerificationError):
            raise
        except (OSError, TimeoutError, ValkeyError) as error:
            if time.monotonic() > patience_ends or "certificate verify failed" in str(error):
                raise
            await asyncio.sleep(TRY_AGAIN)


async def _checked_once(place: Place, keys: Keys) -> None:
    connection = await place.connect()
    try:
        await _check(connection, keys)
    finally:
        await connection.disconnect(nowait=True)


async def _check(connection: Connection, keys: Keys) -> None:
    info = dict(re.findall(r"^(\w+):(.*?)\r?$", (await _ask(connection, "INFO")).decode(), re.MULTILINE))
    if info.get("loading") == "1":
        raise BusyLoadingError  # what it says of itself isn't so yet
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
    """Everything that an account or a proxy may forbid."""
    await _ask(connection, "EVAL", "#!lua flags=allow-oom\nreturn 1", 1, keys.of("format"))
    await _ask(connection, "XREAD", "BLOCK", 1, "STREAMS", keys.of("in:nobody"), "0")
    with contextlib.suppress(OutOfMemoryError):  # a full server can still be read and made room on
        await _ask(connection, "SET", keys.of("format"), FORMAT, "NX")
    found = await _ask(connection, "GET", keys.of("format"))
    if found not in (None, FORMAT.encode()):
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


def _reason(error: Exception) -> str:
    if isinstance(error, AuthenticationError | NoPermissionError):
        return "it refuses the user or the password"
    if "certificate" in str(error).lower():
        return "its certificate isn't trusted, or is another name's"
    if isinstance(error, TimeoutError) or "imeout" in type(error).__name__:
        return "it doesn't answer"
    return "it can't be reached"
