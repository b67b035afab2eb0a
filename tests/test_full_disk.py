"""A disk that is full, or takes no more for another reason: said, survived, and over when there is room again.

A small file system in memory where mounting is allowed; a limit of the process on the size of its files everywhere.
"""

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.problems import assert_problem
from tests.support.process import RelayProcess
from tests.support.relay import Relay
from tests.support.scripts import Script, finishes, says, steps, waits
from tests.support.upstream import ANSWER, Gate, ScriptedUpstream, Wire
from tests.support.waiting import bounded, eventually
from tests.test_disk import everything, life

SIZE = 6 * 1024 * 1024
PIECE = "x" * 64 * 1024
PIECES = 15
"""Of a reply that is longer than what any log has room for."""


class SmallDisk:
    """A file system that can be filled up."""

    code = 507

    def __init__(self, folder: Path) -> None:
        self.file = folder / "chat.db"
        self._ballast = folder / "ballast"

    def fill(self, _: RelayProcess | None = None) -> None:
        """No byte is left."""
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))

    def make_room(self, _: RelayProcess | None = None) -> None:
        """As when somebody cleans up."""
        self._ballast.unlink()


class SmallLimit:
    """A limit that a running process can be given: its files grow no further. SQLite calls that an I/O error."""

    code = 503

    def __init__(self, folder: Path) -> None:
        self.file = folder / "chat.db"

    def fill(self, relay: RelayProcess) -> None:
        """No file grows any more."""
        biggest = max(path.stat().st_size for path in self.file.parent.iterdir())
        resource.prlimit(relay.pid, resource.RLIMIT_FSIZE, (biggest, resource.RLIM_INFINITY))

    def make_room(self, relay: RelayProcess) -> None:
        """They do again."""
        resource.prlimit(relay.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[bool]:
    """Whether there is a small file system in that folder."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(params=[SmallDisk, SmallLimit])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk | SmallLimit]:
    """Each kind that can be had here."""
    with contextlib.ExitStack() as stack:
        is_small = request.param is SmallDisk and stack.enter_context(mounted(tmp_path))
        yield SmallDisk(tmp_path) if is_small else SmallLimit(tmp_path)


def long_after(gate: Gate) -> Script:
    """Some text, and behind the gate more than a full disk can take."""

    pieces = (f"{number}{PIECE}" for number in range(PIECES))
    return steps(says("The beginning. "), waits(gate), says(*pieces), finishes, Wire.done)


async def refused(relay: Relay, code: int) -> None:
    """Ask for more room than there is, until that is said."""

    async def is_refused() -> bool:
        response = await relay.client.post("/conversations", json={"system_prompt": PIECE})
        if response.status_code == 201:
            return False
        assert_problem(response, code, "STORE_URL")
        return True

    await eventually(is_refused)


async def test_a_full_disk_is_told_nothing_is_half_done_and_it_goes_on_when_there_is_room(
    disk: SmallDisk | SmallLimit, upstream: ScriptedUpstream
) -> None:
    async with life(disk.file, upstream) as relay:
        answered = await relay.ask("First")
        await relay.read(answered)
        upstream.play(long_after(gate := Gate()))
        cut = await relay.ask("Second")
        async with relay.stream(cut) as reader:
            await reader.until("beginning. ")
            disk.fill(relay)
            gate.open()
            last = (await bounded(reader.whole())).last
        await relay.idle()
        assert last["error"]["code"] == disk.code and "STORE_URL" in last["error"]["message"]
        message = (await relay.messages(cut))[-1]
        assert (message["status"], message["error"]) == ("failed", last["error"])
        assert message["content"] == reader.transcript.content
        assert message["content"].startswith("The beginning. ")
        await refused(relay, disk.code)
        assert (await relay.health())["store"] == "unreachable"
        assert await relay.contents(answered) == ["First", ANSWER]
        disk.make_room(relay)
        await eventually(lambda: is_well(relay))  # by itself
        await relay.conversation(system_prompt=PIECE)
        shown = await everything(relay)
    async with life(disk.file, upstream) as relay:
        assert await everything(relay) == shown
    assert len(upstream.requests) == 2


async def is_well(relay: Relay) -> bool:
    return bool((await relay.health())["store"] == "ok")


async def test_what_a_full_disk_has_taken_is_there_after_a_kill_and_nothing_else(
    disk: SmallDisk | SmallLimit, upstream: ScriptedUpstream
) -> None:
    async with life(disk.file, upstream) as relay:
        await relay.read(await relay.ask("First"))
        disk.fill(relay)
        await refused(relay, disk.code)
        for conversation in (await relay.client.get("/conversations")).json()["conversations"]:
            path = f"/conversations/{conversation['id']}/messages"
            response = await relay.client.post(path, json={"content": PIECE * 3})
            assert response.status_code in (201, disk.code)
        shown = await everything(relay)
    async with life(disk.file, upstream) as relay:
        assert await everything(relay) == shown


async def test_a_start_on_a_full_disk_shows_what_there_is_and_writes_when_there_is_room(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    with mounted(tmp_path) as is_small:
        disk = SmallDisk(tmp_path)
        upstream.play(long_after(Gate()))
        async with life(disk.file, upstream) as relay:
            conversation_id = await relay.ask()
            async with relay.stream(conversation_id) as reader:
                await reader.until("beginning. ")
        if is_small:
            disk.fill()
        async with life(disk.file, upstream) as relay:
            message = (await relay.messages(conversation_id))[-1]
            assert (message["status"], message["content"]) == ("failed", "The beginning. ")
            if is_small:
                disk.make_room()
            await eventually(lambda: is_well(relay))
            await relay.conversation()  # with which all is written that waits
            shown = await everything(relay)
        async with life(disk.file, upstream) as relay:
            assert await everything(relay) == shown


async def test_a_signal_on_a_full_disk_ends_it_in_time_and_in_order(
    disk: SmallDisk | SmallLimit, upstream: ScriptedUpstream
) -> None:
    upstream.play(long_after(Gate()))
    async with life(disk.file, upstream, SHUTDOWN_GRACE="0") as relay:
        conversation_id = await relay.ask()
        async with relay.stream(conversation_id) as reader:
            await reader.until("beginning. ")
            disk.fill(relay)
            await refused(relay, disk.code)
            relay.terminate()
            transcript = await bounded(reader.whole())
        assert await relay.exit() == 0
        assert transcript.last["error"]["code"] in (503, 507)
        for word in ("Traceback", "never awaited", "was destroyed", "never retrieved"):
            assert word not in relay.output
