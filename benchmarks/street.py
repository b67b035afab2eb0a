"""`python -m benchmarks.street`: the code that a question, its tokens, their end and an error of upstream run through.

The service runs on a real uvicorn, in a thread of its own that `sys.setprofile` watches; upstream and the reader run in
the main thread. A trip ends when the service has been quiet for `PAUSE`. Every trip is taken several times, and its
shortest run counts, since signs of life and new connections lengthen the others.
"""

import argparse
import asyncio
import logging
import re
import socket
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager, closing, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import count, pairwise
from pathlib import Path
from types import CodeType, FrameType
from urllib.parse import urlsplit

import uvicorn
import uvloop

from benchmarks import script
from benchmarks.dialects import Conversations, question
from benchmarks.exchange import connect, request
from benchmarks.upstream import Upstream
from server import create_app
from serving.connections import ClientConnection
from settings import Settings
from tests.support.engines import ENGINES, engine, new_store_url
from tests.support.servers import server, usual_program

ROOT = Path(__file__).parents[1]
NOT_CORE = {"demo.py", "tests", "benchmarks"}
HTTP_CLIENT = "upstream/http/"

VISITS = 3
TOKENS = 3  # in each conversation, after the first one
PAUSE = 0.02  # seconds; longer than engines gather text, so that they write each token by itself
LONGEST = 60.0  # seconds that one engine may take


@dataclass(frozen=True)
class Street:
    """The figures of one engine. The HTTP client is left out of `files` and `lines`, and of nothing else."""

    files: int
    lines: int
    """From the first line to the last of each core function that ran."""
    files_with_client: int
    lines_with_client: int
    question_moves: int
    """Core calls whose file differs from the file of the core call before."""
    error_moves: int
    question_calls: int
    """Core functions called, and core coroutines and generators resumed."""
    token_calls: int
    end_calls: int
    error_calls: int
    token_frames: int
    """Calls of all Python functions, libraries included."""
    question_loads: int
    """Commands to the server of STORE_URL that read a conversation."""
    question_commits: int
    """Commands to that server that change a conversation."""
    question_commands: int
    """All commands to that server."""


@dataclass
class Trip:
    """The calls of the watched thread and the commands to the server, from one quiet moment to the next."""

    frames: Counter[CodeType] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)  # the file of each core call, in order
    commands: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """The number of core calls."""
        return len(self.files)

    @property
    def moves(self) -> int:
        """The number of core calls whose file differs from the file of the call before."""
        return sum(before != after for before, after in pairwise(self.files))


Visit = list[Trip]
"""The trips of one conversation: its question, its first token, `TOKENS` more, and its end or an error."""


def measure(store: str, program: str) -> tuple[Street, Trip]:
    """The figures on an engine, and its token; `program` is the server that relays share."""
    with server(program) if store == "valkey" else nullcontext() as shared, engine(store, shared.url if shared else ""):
        visits = asyncio.run(_visits(new_store_url()))
    trips = {
        "question": _shortest(visit[0] for visit in visits),
        "first": _shortest(visit[1] for visit in visits),
        "token": _shortest(token for visit in visits for token in visit[2:-1]),
        "end": _shortest(visit[-1] for visit in visits[::2]),
        "error": _shortest(visit[-1] for visit in visits[1::2]),
    }
    everything = _lines(trip for visit in visits for trip in visit)
    client = {(file, line) for file, line in everything if is_http_client(file)}
    own = {(file, line) for file, line in _lines(trips.values()) if not is_http_client(file)}
    commands = trips["question"].commands
    street = Street(
        files=_files(own),
        lines=len(own),
        files_with_client=_files(own | client),
        lines_with_client=len(own | client),
        question_moves=trips["question"].moves,
        error_moves=trips["error"].moves,
        question_calls=trips["question"].calls,
        token_calls=trips["token"].calls,
        end_calls=trips["end"].calls,
        error_calls=trips["error"].calls,
        token_frames=trips["token"].frames.total(),
        question_loads=commands.count("load"),
        question_commits=commands.count("commit"),
        question_commands=len(commands),
    )
    return street, trips["token"]


def core_files() -> dict[str, str]:
    """The project's own code without demo.py, tests and benchmarks: each path from the root by its absolute path."""
    packages = (marker.parent for marker in ROOT.glob("*/__init__.py"))
    files = {*ROOT.glob("*.py"), *(path for package in packages for path in package.rglob("*.py"))}
    paths = {str(path): path.relative_to(ROOT) for path in sorted(files)}
    return {absolute: path.as_posix() for absolute, path in paths.items() if not {*path.parts} & NOT_CORE}


def is_http_client(file: str) -> bool:
    """Whether a core file is a part of the HTTP client, a library of its own."""
    return file.startswith(HTTP_CLIENT)


Lines = set[tuple[str, int]]
"""Lines of source: the file and the number of each."""


def _lines(trips: Iterable[Trip]) -> Lines:
    """The lines of the core functions that ran."""
    core = core_files()
    code = {code for trip in trips for code in trip.frames if code.co_filename in core}
    return {(core[one.co_filename], line) for one in code for line in _span(one)}


def _span(code: CodeType) -> range:
    return range(code.co_firstlineno, max(line or 0 for *_, line in code.co_lines()) + 1)


def _files(lines: Lines) -> int:
    return len({file for file, _ in lines})


def _shortest(trips: Iterable[Trip]) -> Trip:
    return min(trips, key=lambda trip: (trip.calls, trip.frames.total()))


# The trips


async def _visits(store_url: str) -> list[Visit]:
    """Conversations in turn: upstream ends the reply of one, and breaks off the reply of the next."""
    upstream, watch = Upstream(), Watch()
    settings = Settings(openrouter_base_url=await upstream.listen(), openrouter_api_key="key", store_url=store_url)
    async with asyncio.timeout(LONGEST), _serving(settings, watch) as port, _monitor(store_url) as monitor:
        visitor = Visitor(port, upstream, watch, monitor)
        visits = [await visitor.visit(last) for _ in range(VISITS) for last in (script.END, script.ERROR)]
    upstream.close()
    return visits


class Watch:
    """Counts the calls in the thread that runs `run`."""

    def __init__(self) -> None:
        self.trip = Trip()
        """The trip under way."""
        self._core = core_files()

    async def run(self, work: Awaitable[None]) -> None:
        """Do the work in this thread, and watch the thread."""
        self._loop = asyncio.get_running_loop()
        sys.setprofile(self._see)
        await work

    async def turn(self) -> None:
        """Return when the thread has looked at all of its sockets and run what was ready."""
        turned: list[None] = []
        self._loop.call_soon_threadsafe(turned.append, None)
        while not turned:
            await asyncio.sleep(PAUSE / 10)

    def _see(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            self.trip.frames[frame.f_code] += 1
            if file := self._core.get(frame.f_code.co_filename):
                self.trip.files.append(file)


@asynccontextmanager
async def _serving(settings: Settings, watch: Watch) -> AsyncIterator[int]:
    """The port of the service, which runs in a watched thread. It logs nothing: log lines are no part of the street."""
    listening = socket.create_server(("127.0.0.1", 0))
    app = create_app(settings)
    uvicorn_server = uvicorn.Server(
        uvicorn.Config(app, http=ClientConnection, log_config=None, access_log=False, ws="none")
    )
    thread = threading.Thread(target=lambda: uvloop.run(watch.run(uvicorn_server.serve([listening]))))
    logging.disable()
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        uvicorn_server.should_exit = True
        await asyncio.to_thread(thread.join)
        logging.disable(logging.NOTSET)


class Monitor:
    """Tells the commands that a server gets from its clients, without those of its scripts."""

    def __init__(self, watching: asyncio.StreamReader, asking: asyncio.StreamWriter) -> None:
        self._watching, self._asking = watching, asking

    async def commands(self) -> list[str]:
        """The commands since the last time."""
        self._asking.write(b"ECHO quiet\r\n")
        found: list[bytes] = []
        while b'"ECHO" "quiet"' not in (line := await self._watching.readuntil(b"\r\n")):
            found.append(line)
        return [_command(re.findall(rb'"((?:[^"\\]|\\.)*)"', line)) for line in found if b" lua] " not in line]


def _command(words: list[bytes]) -> str:
    """A command's name; `load` or `commit` for a script that reads or changes a conversation."""
    if words[0] != b"EVAL":
        return words[0].decode()
    keys = words[3 : 3 + int(words[2])]
    if not any(b":c:" in key for key in keys):
        return "EVAL"
    return "load" if b"no-writes" in words[1].partition(rb"\n")[0] else "commit"


@asynccontextmanager
async def _monitor(store_url: str) -> AsyncIterator[Monitor | None]:
    """A monitor of the server that STORE_URL names; None where it names no server."""
    place = urlsplit(store_url)
    if not place.port:
        yield None
        return
    watching, telling = await asyncio.open_connection(place.hostname, place.port, limit=1 << 20)
    _, asking = await asyncio.open_connection(place.hostname, place.port)
    telling.write(b"MONITOR\r\n")
    await watching.readuntil(b"\r\n")
    with closing(telling), closing(asking):
        yield Monitor(watching, asking)


class Visitor:
    """Takes trips, one conversation after the other."""

    def __init__(self, port: int, upstream: Upstream, watch: Watch, monitor: Monitor | None) -> None:
        self._port, self._upstream, self._watch, self._monitor = port, upstream, watch, monitor
        self._keys = count(1)

    async def visit(self, last: bytes) -> Visit:
        """The trips of a new conversation, whose answer upstream ends with these bytes."""
        key = next(self._keys)
        payload = await self._question(key)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        await self._trip()
        with closing(writer):
            writer.write(payload)
            await reader.readuntil(b"\n\n")
            while key not in self._upstream.generations:
                await asyncio.sleep(PAUSE)
            trips, generation = [await self._trip()], self._upstream.generations[key]
            for _ in range(1 + TOKENS):
                generation.send()
                await reader.readuntil(b"\n\n")
                trips.append(await self._trip())
            generation.finish(last)
            await reader.readuntil(b"\r\n0\r\n\r\n")
            return [*trips, await self._trip()]

    async def _question(self, key: int) -> bytes:
        """The request that asks a question in a new conversation and reads the reply to it."""
        with closing(await connect(self._port)) as exchange:
            path = (await Conversations().after(exchange, [])).path
        accepting = {"Accept": "text/event-stream"}
        return request("POST", f"{path}/messages", {"content": question(str(key))}, accepting)

    async def _trip(self) -> Trip:
        """The calls that have run since the last trip, once the service is quiet and nothing is on its way to it."""
        commands: list[str] = []
        calls = -1
        while calls != self._watch.trip.calls:
            calls = self._watch.trip.calls
            await asyncio.sleep(PAUSE)
            if self._monitor:
                commands += await self._monitor.commands()
            await self._watch.turn()
        trip, self._watch.trip = self._watch.trip, Trip()
        trip.commands = commands
        return trip


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.street", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", choices=ENGINES, action="append", help="only this engine")
    parser.add_argument("--token", action="store_true", help="the functions that a token passes, too")
    arguments = parser.parse_args()
    found = {store: measure(store, usual_program()) for store in arguments.store or ENGINES}
    print(_table({store: street for store, (street, _) in found.items()}))
    for store, (_, token) in found.items() if arguments.token else ():
        print(f"\nA token on {store}:\n{_functions(token)}")


def _table(streets: dict[str, Street]) -> str:
    """A row a figure, a column an engine."""
    rows = zip(*(asdict(street).items() for street in streets.values()), strict=True)
    lines = [[cells[0][0].replace("_", " "), *(str(value) for _, value in cells)] for cells in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [["figure", *streets], ["---"] * (1 + len(streets)), *lines])


def _functions(trip: Trip) -> str:
    """A line a function, most calls first."""
    calls = trip.frames.most_common()
    return "\n".join(f"{n:4}  {code.co_qualname}  ({Path(code.co_filename).name})" for code, n in calls)


if __name__ == "__main__":
    main()
