"""Which engine `STORE_URL` asks for. Nothing else knows."""

import re
from pathlib import Path
from urllib.parse import unquote

from serving.settings import Settings, SettingsError
from stores.disk import Disk
from stores.engine import Engine
from stores.memory import Memory

LOCK_PATIENCE = 5.0  # seconds beyond SHUTDOWN_GRACE, in which another process lets go of its file


def engine_for(settings: Settings) -> Engine:
    """Raises `SettingsError`."""
    url = settings.store_url
    if not url:
        return Memory()
    if re.match(r"(valkey|redis)s?(\+\w+)?:", url):
        return _shared(url)
    if file := re.fullmatch(r"sqlite:///(?!:memory:|.*%00)([^?#]*[^?#/])", url):
        return Disk(Path(unquote(file[1])), settings.shutdown_grace + LOCK_PATIENCE)
    raise SettingsError(
        "STORE_URL must be empty, or sqlite:///chat.db, or with an absolute path sqlite:////data/chat.db, "
        "or the URL of a server: valkey://host:6379, or another of docs/settings.md."
    )


def _shared(url: str) -> Engine:
    try:
        from stores.shared.engine import Shared
    except ModuleNotFoundError as error:
        if error.name != "valkey":
            raise
        raise SettingsError("STORE_URL needs one package more: pip install -r requirements-valkey.txt") from None
    return Shared(url)
