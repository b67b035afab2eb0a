"""One library, many questions at once, each over a cable that is cut: what it read, and what that cost."""

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.clients.cable import Cable
from tests.clients.hurried import PING_INTERVAL
from tests.clients.libraries import Library
from tests.support.process import ROOT, RelayProcess, process
from tests.support.upstream import Script, ScriptedUpstream, UpstreamRequest, Wire, cut
from tests.support.waiting import bounded, eventually

PROGRAMS = Path(__file__).parent / "programs"

REASONING = "Über 数字 nachgedacht.\n" * 6
TEXT = 'Grüße, "Welt"!\\ 你好 \u2028\u2029\x85\x0b\x0c 🎉\n\n\tdata: id: 7\r\n{"done": true}\n' * 12
WORDS = ("one ", "two ", "three")
LATE = "汉字" * 10_000
"""What a reader has to take at once."""

LONGEST = 40.0
"""Seconds that a program may take."""

QUESTIONS = 12
"""To each library."""

FIRST_EVENT = 900
"""Bytes of a stream's head and first event, at most. Who is cut off there has no id yet, and may wait 3 s."""

STREAM_BYTES = 6_000
"""About the length of the stream with all its events."""


COMMANDS = {
    "node": ("node", f"{PROGRAMS}/node.mjs"),
    "browser": ("node", f"{PROGRAMS}/browser.mjs", "read"),
    "switch": ("node", f"{PROGRAMS}/browser.mjs", "switch"),
    "reload": ("node", f"{PROGRAMS}/browser.mjs", "reload"),
    "python": (sys.executable, f"{PROGRAMS}/read.py"),
    "java": ("java", f"{PROGRAMS}/Read.java"),
}

Target = dict[str, Any]


async def run(program: str, targets: Sequence[Target]) -> list["Reading"]:
    """What a program reads of these targets; `AssertionError` if it fails or goes on."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = await asyncio.create_subprocess_exec(
            *COMMANDS[program], stdin=PIPE, stdout=output, stderr=errors, cwd=ROOT, start_new_session=True
        )
        late = False
        try:
            await bounded(child.communicate(told(program, targets)), LONGEST)
        except TimeoutError:
            late = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
        found = readings(_all(output), len(targets))
        left = [(targets[number]["library"], one) for number, one in enumerate(found) if not one.how]
        assert not late, f"no end after {LONGEST} s: {left}\n{_all(errors)[-4000:]}"
        assert child.returncode == 0, f"exit code {child.returncode}:\n{_all(errors)[-4000:]}"
        return found


def told(program: str, targets: Sequence[Target]) -> bytes:
    """The targets as a program takes them."""
    if program != "java":
        return json.dumps(targets).encode()
    lines = ["\t".join([target["url"], target["method"], target["body"] or ""]) for target in targets]
    return "".join(f"{line}\n" for line in lines).encode()


def _all(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


@dataclass
class Reading:
    """What a library made of one stream."""

    text: str = ""
    reasoning: str = ""
    ends: list[dict[str, Any]] = field(default_factory=list)
    pings: int = 0
    how: str = ""
    names: list[str] = field(default_factory=list)

    def take(self, name: str, data: str) -> None:
        """An event, or what is said of the reading."""
        if name == "=":
            if data == "again":
                self.text, self.reasoning = "", ""
            else:
                self.how = data
            return
        self.names.append(name)
        if name == "start":  # some libraries put a block before it that was cut
            return
        event = json.loads(data)
        self.text += event.get("content", "") if name == "message" else ""
        self.reasoning += event.get("reasoning", "")
        self.pings += name == "ping"
        if event.keys() & {"done", "error"}:
            self.ends.append(event)


def readings(output: str, count: int) -> list[Reading]:
    """All readings of a program's lines."""
    found = [Reading() for _ in range(count)]
    for line in output.split("\n")[:-1]:
        number, name, data = line.split("\t", 2)
        found[int(number)].take(name, data)
    return found


def lively(cables: Sequence[Cable]) -> Script:
    """An answer in many small parts, and a silence in its middle; it begins when its reader has had the first event.

    A reader that was cut off before may take 3 s to come back, and has no id yet.
    """

    async def script(request: UpstreamRequest, wire: Wire) -> None:
        await wire.head()
        cable = cables[int(request.body["messages"][-1]["content"])]
        await eventually(lambda: cable.settled)
        for piece in cut(REASONING, 10):
            await wire.reasoning(piece)
        for number, piece in enumerate(cut(TEXT, 50)):
            await wire.delta(piece)
            await asyncio.sleep(2.5 * PING_INTERVAL if number == 25 else 0.005)
        await wire.finish()
        await wire.done()

    return script


def in_turns(cables: Sequence[Cable], turns: int) -> Script:
    """The same answer, the next tenth of which begins when its reader has come back the next time, `turns` times."""

    async def script(request: UpstreamRequest, wire: Wire) -> None:
        await wire.head()
        await wire.reasoning(REASONING)
        cable = cables[int(request.body["messages"][-1]["content"])]
        for number, piece in enumerate(cut(TEXT, 50)):
            await wire.delta(piece)
            turn = min(turns, number // 10 + 1) if number % 10 == 9 else 0
            await eventually(lambda turn=turn: cable.streams > turn)  # type: ignore[misc]
        await wire.finish()
        await wire.done()

    return script


def spelled(cables: Sequence[Cable]) -> Script:
    """Three words, an event each; the first begins when its reader has had the first event."""

    async def script(request: UpstreamRequest, wire: Wire) -> None:
        await wire.head()
        cable = cables[int(request.body["messages"][-1]["content"])]
        await eventually(lambda: cable.settled)
        for word in WORDS:
            await wire.delta(word)
            await asyncio.sleep(PING_INTERVAL / 2)  # else they might be one event
        await wire.finish()
        await wire.done()

    return script


def at_once(_: Sequence[Cable]) -> Script:
    """A long text in one piece."""

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await wire.reasoning(REASONING)
        await wire.delta(LATE)
        await wire.finish()
        await wire.done()

    return script


@contextlib.asynccontextmanager
async def hurried(upstream: ScriptedUpstream) -> AsyncIterator[RelayProcess]:
    """The relay as a process, in a hurry."""
    env = {"OPENROUTER_BASE_URL": upstream.base_url, "OPENROUTER_API_KEY": "test-key", "LOG_LEVEL": "ERROR"}
    async with process("python", "-m", "tests.clients.hurried", env=env) as relay:
        yield relay


async def target(relay: RelayProcess, library: str, method: str, url: str, number: int) -> Target:
    """A new conversation and what a client is told of it: a POST that streams, or a question and then a GET."""
    conversation_id = (await relay.conversation(id=f"c{number}"))["id"]
    path = f"{url}/conversations/{conversation_id}"
    told = {"library": library, "method": method}
    if method == "GET":
        await relay.say(conversation_id, f"{number}")
        return told | {"url": f"{path}/stream", "headers": {}, "body": None}
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    body = json.dumps({"content": f"{number}", "id": f"q{number}"})
    return told | {"url": f"{path}/messages", "headers": headers, "body": body}


def places(library: Library) -> list[tuple[str, list[int]]]:
    """Methods, and where the streams of each question are cut: the first cuts lie all over, the others anywhere."""
    chance = random.Random(library.name)
    count = QUESTIONS // len(library.methods)
    step = STREAM_BYTES // count
    return [
        (
            method,
            [number * step + chance.randrange(step), *(chance.randrange(FIRST_EVENT, STREAM_BYTES) for _ in range(2))],
        )
        for method in library.methods
        for number in range(count)
    ]


@dataclass
class Case:
    """One question, and all that happened to it."""

    library: Library
    method: str
    cable: Cable
    text: str = TEXT
    reasoning: str = REASONING
    reading: Reading = field(default_factory=Reading)
    generations: int = 0
    messages: list[tuple[str, str]] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """What isn't as it should be."""
        reading = self.reading
        ends = [end.get("status") for end in reading.ends]
        right = {
            "text": (reading.text, self.text),
            "reasoning": (reading.reasoning, self.reasoning),
            "ends": (ends, ["complete"]),
            "generations": (self.generations, 1),
            "messages": (self.messages, [("user", "complete"), ("assistant", "complete")]),
        }
        return [
            f"{self.method}, {name}: {is_} instead of {should}"
            for name, (is_, should) in right.items()
            if is_ != should
        ]


async def campaign(program: str, cases: Sequence[Case], script: Callable[[Sequence[Cable]], Script] = lively) -> None:
    """Ask a question for each of these cables, read its answer with the library, and see."""
    async with ScriptedUpstream() as upstream, hurried(upstream) as relay, contextlib.AsyncExitStack() as stack:
        port = int(relay.url.rpartition(":")[2])
        upstream.play(script([case.cable for case in cases]))
        urls = [await stack.enter_async_context(case.cable.laid(port)) for case in cases]
        targets = [
            await target(relay, case.library.name, case.method, url, number)
            for number, (case, url) in enumerate(zip(cases, urls, strict=True))
        ]
        found = await run(program, targets)
        asked = Counter(request.body["messages"][-1]["content"] for request in upstream.requests)
        for number, case in enumerate(cases):
            case.reading, case.generations = found[number], asked[f"{number}"]
            case.messages = [(message["role"], message["status"]) for message in await relay.messages(f"c{number}")]


def case(library: Library, method: str, cuts: Sequence[int] = (), text: str = TEXT) -> Case:
    """One over a cable that spares what the library is known for."""
    return Case(library, method, Cable(cuts, whole_ends=library.early_id), text)
