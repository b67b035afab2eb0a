"""A run's fixed parts, and a subject while it runs: its process, and connections to it."""

import asyncio
import contextlib
import itertools
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from benchmarks import install
from benchmarks.dialects import Dialect
from benchmarks.errors import DidNotStart
from benchmarks.exchange import Exchange, connect, request
from benchmarks.processes import Process
from benchmarks.subjects import Subject
from benchmarks.upstream import Upstream

START_SECONDS = 120


@dataclass(frozen=True)
class Sizes:
    """How much of everything a form of the benchmark does; `flood` is tokens a stream, windows are seconds."""

    rounds: int
    slow_rounds: int  # of the slow measurements
    window: float
    flood: int
    hammer: float
    probes: int
    stored: int
    chats: int


QUICK = Sizes(3, 1, window=1.0, flood=2_000, hammer=0.5, probes=6, stored=1_000, chats=60)
FULL = Sizes(3, 3, window=5.0, flood=6_000, hammer=2.0, probes=40, stored=10_000, chats=200)


@dataclass
class Relay:
    """A running subject."""

    subject: Subject
    dialect: Dialect
    process: Process
    port: int
    started_in: float

    @contextlib.asynccontextmanager
    async def exchange(self) -> AsyncIterator[Exchange]:
        """A connection of one's own."""
        exchange = await connect(self.port)
        try:
            yield exchange
        finally:
            exchange.close()


@dataclass
class Bench:
    """The things that every measurement needs: the scripted upstream, the sizes, the relay's core."""

    upstream: Upstream
    url: str
    sizes: Sizes
    core: int | None
    keys: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @contextlib.asynccontextmanager
    async def running(self, subject: Subject) -> AsyncIterator[Relay]:
        """The subject, freshly started and answering; ended afterwards."""
        port = _free_port()
        process = Process(subject.command(port, self.url), self.core, install.CACHE / "logs" / f"{subject.name}.log")
        try:
            started_in = await _ready(process, port, subject)
            yield Relay(subject, subject.dialect(self.url), process, port, started_in)
        finally:
            process.end()


def cores() -> tuple[int | None, int | None]:
    """The relay's core, and the one for upstream and readers; None, None where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else (None, None)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


async def _ready(process: Process, port: int, subject: Subject) -> float:
    """Seconds from the process's start to its first 200."""
    payload = request("GET", subject.ready_path)
    while time.monotonic() - process.started_at < START_SECONDS:
        if not process.running:
            raise DidNotStart(f"{subject.name} ended at its start:\n{process.last_words()}")
        with contextlib.suppress(OSError):
            exchange = await connect(port)
            answer = await exchange.ask(payload)
            exchange.close()
            if answer.status == 200:
                return time.monotonic() - process.started_at
        await asyncio.sleep(0.002)
    raise DidNotStart(f"{subject.name} didn't answer {subject.ready_path} within {START_SECONDS} s; see {process.log}")
