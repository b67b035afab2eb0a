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
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.clients.cable import Cable
from tests.clients.hurried import KEEP_ALIVE
from tests.support.process import ROOT, RelayProcess, process
from tests.support.upstream import Script, ScriptedUpstream, UpstreamRequest, Wire, cut
from tests.support.waiting import bounded, eventually

PROGRAMS = Path(__file__).parent / "programs"

REASONING = "Über 数字 nachgedacht.\n" * 6
TEXT = 'Grüße, "Welt"!\\ 你好 \u2028\u2029\x85\x0b\x0c 🎉\n\n\tdata: id: 7\r\n{"done": true}\n' * 12
LATE = "汉字" * 10_000
"""What a reader that comes late has to take at once."""

LONGEST = 15.0
"""Seconds that a program may take."""

QUESTIONS = 24
FIRST_EVENT = 900
"""Bytes that the head of a stream and its first event have at most."""

STREAM_BYTES = 9_000
"""About the length of the stream with all its events."""


@dataclass(frozen=True)
class Program:
    """How a library is run: a command that takes targets on stdin and writes a line for each event."""

    library: str
    command: tuple[str, ...]
    method: str = "GET"
    early_id: bool = False
    """It takes an id before the block has ended: cut between the last two bytes of a block, it loses that block."""

    async def run(self, targets: Sequence[dict[str, Any]]) -> str:
        """What it writes; `AssertionError` if it fails."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            child = await asyncio.create_subprocess_exec(
                *self.command, stdin=PIPE, stdout=output, stderr=errors, cwd=ROOT, start_new_session=True
            )
            try:
                await bounded(child.communicate(json.dumps(targets).encode()), LONGEST)
            except TimeoutError:
                output.seek(0)
                found = readings(output.read().decode(), len(targets))
                left = [(number, one) for number, one in enumerate(found) if not one.how]
                raise AssertionError(f"no end after {LONGEST} s: {left}\n{_tail(errors)}") from None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                await child.wait()
            assert child.returncode == 0, f"exit code {child.returncode}:\n{_tail(errors)}"
            output.seek(0)
            return output.read().decode()


def _tail(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
    return file.read().decode(errors="replace")


def node(library: str, method: str = "GET", *, early_id: bool = False) -> Program:
    """A library for Node."""
    return Program(library, ("node", f"{PROGRAMS}/node.mjs", library), method, early_id)


def browser(library: str, method: str = "GET", what: str = "read", *, early_id: bool = False) -> Program:
    """A library for browsers, in Chromium."""
    return Program(library, ("node", f"{PROGRAMS}/browser.mjs", library, what), method, early_id)


def python(library: str, method: str = "GET") -> Program:
    """A library for Python."""
    return Program(library, (sys.executable, f"{PROGRAMS}/read.py", library), method)


def java(method: str = "GET") -> Program:
    """The JDK's own client, as it is."""
    return Program("java.net.http", ("java", f"{PROGRAMS}/Read.java"), method)


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
        await eventually(lambda: cable.farthest > FIRST_EVENT)
        for piece in cut(REASONING, 10):
            await wire.reasoning(piece)
        for number, piece in enumerate(cut(TEXT, 50)):
            await wire.delta(piece)
            await asyncio.sleep(2.5 * KEEP_ALIVE if number == 25 else 0.005)
        await wire.finish()
        await wire.done()

    return script


@contextlib.asynccontextmanager
async def hurried(upstream: ScriptedUpstream) -> AsyncIterator[RelayProcess]:
    """The relay as a process, in a hurry."""
    env = {"OPENROUTER_BASE_URL": upstream.base_url, "OPENROUTER_API_KEY": "test-key", "LOG_LEVEL": "ERROR"}
    async with process("python", "-m", "tests.clients.hurried", env=env) as relay:
        yield relay


async def target(relay: RelayProcess, method: str, url: str, number: int, query: str = "") -> dict[str, Any]:
    """A new conversation and what a client is told of it: a POST that streams, or a question and then a GET."""
    conversation_id = (await relay.conversation(id=f"c{number}"))["id"]
    path = f"{url}/conversations/{conversation_id}"
    if method == "GET":
        await relay.say(conversation_id, f"{number}")
        return {"url": f"{path}/stream{query}", "method": "GET", "headers": {}, "body": None}
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    body = json.dumps({"content": f"{number}", "id": f"q{number}"})
    return {"url": f"{path}/messages", "method": "POST", "headers": headers, "body": body}


def cuts(seed: str, count: int, questions: int = QUESTIONS) -> list[list[int]]:
    """Where each question's streams are cut: the first cuts lie all over the stream, the others anywhere."""
    chance = random.Random(seed)
    step = STREAM_BYTES // questions
    return [
        [number * step + chance.randrange(step), *(chance.randrange(STREAM_BYTES * 2 // 3) for _ in range(count - 1))]
        for number in range(questions)
    ]


async def campaign(program: Program, places: Sequence[Sequence[int]], script: Script | None = None) -> list[Cable]:
    """Ask as many questions as there are lists of cuts; each answer is exact, whole and generated once."""
    async with ScriptedUpstream() as upstream, hurried(upstream) as relay, contextlib.AsyncExitStack() as stack:
        port = int(relay.url.rpartition(":")[2])
        cables = [Cable(port, cuts, whole_ends=program.early_id) for cuts in places]
        upstream.play(script or lively(cables))
        urls = [await stack.enter_async_context(cable.laid()) for cable in cables]
        targets = [await target(relay, program.method, url, number) for number, url in enumerate(urls)]
        found = readings(await program.run(targets), len(targets))
        wrong = {number: one for number, one in enumerate(found) if not exact(one)}
        assert not wrong, [(number, places[number], one) for number, one in wrong.items()][:2]
        assert len(upstream.requests) == len(targets)
        for number in range(len(targets)):
            messages = await relay.messages(f"c{number}")
            assert [(m["role"], m["status"]) for m in messages] == [("user", "complete"), ("assistant", "complete")]
        return cables


def exact(reading: Reading) -> bool:
    """Nothing lost, nothing doubled, one end."""
    ends = [end.get("status") for end in reading.ends]
    return (reading.text, reading.reasoning, ends) == (TEXT, REASONING, ["complete"]) and reading.how != ""
