"""Debian's Redis, which relays share while a benchmark runs, and relays that are told where it is."""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

from benchmarks import install
from benchmarks.errors import NotInstalled
from benchmarks.processes import Command, Process
from benchmarks.subjects import Subject

PORT = 19379
URL = f"redis://127.0.0.1:{PORT}"


def is_installed() -> bool:
    """Whether there is one on this machine."""
    return bool(shutil.which("redis-server"))


@contextlib.contextmanager
def server(core: int | None) -> Iterator[Process]:
    """It runs on that core, and forgets everything afterwards."""
    program = shutil.which("redis-server")
    if not program:
        raise NotInstalled("redis-server isn't installed")
    folder = install.CACHE / "shared"
    folder.mkdir(parents=True, exist_ok=True)
    options = ("--port", str(PORT), "--save", "", "--appendonly", "yes", "--dir", str(folder))
    running = Process(Command((program, *options)), core, install.CACHE / "logs" / "redis.log")
    try:
        yield running
    finally:
        running.end()
        shutil.rmtree(folder, ignore_errors=True)


def keeping_in(service: Subject, name: str, store_url: Callable[[], str]) -> Subject:
    """The relay with this `STORE_URL`, asked for at each start."""

    def command(port: int, url: str) -> Command:
        on_dicts = service.command(port, url)
        arguments = (sys.executable, *on_dicts.arguments[1:])  # this Python has the client of the server
        return Command(arguments, {**on_dicts.environment, "STORE_URL": store_url()})

    return replace(service, name=name, command=command)
