"""A SQLite file over the ends of the process, in order and not: what was said is there, and nothing more happens."""

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import statistics
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks import full_file
from stores.sqlite.file import File
from tests.crash import campaign
from tests.support.process import ROOT, RelayProcess, process
from tests.support.readers import Transcript
from tests.support.relay import Relay
from tests.support.scripts import answer, breaking, chunk, gated, says, steps, thinks
from tests.support.upstream import ANSWER, Gate, ScriptedUpstream, Wire

UNUSUAL = "é👋\x00\u2028\u0085\r\n\ufeff'; DROP TABLE messages; --"
PIECES = ["One ", "two\u2028 ", "👋 ", "never seen"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the conversations are."""
    return tmp_path / "chat.db"


@contextlib.asynccontextmanager
async def life(file: Path, upstream: ScriptedUpstream, **env: str) -> AsyncIterator[RelayProcess]:
    """One process on that file, killed at the end unless it has ended before."""
    env = {"OPENROUTER_API_KEY": "key", "OPENROUTER_BASE_URL": upstream.base_url, **env}
    async with process("python", "server.py", env={"STORE_URL": f"sqlite:///{file}", **env}) as relay:
        yield relay
        relay.kill()
        await relay.exit()


async def everything(relay: Relay) -> list[bytes]:
    """The list, each conversation and all messages, byte for byte."""
    listing = await relay.client.get("/conversations", params={"limit": 200})
    found = [listing.content]
    for conversation in listing.json()["conversations"]:
        path = f"/conversations/{conversation['id']}"
        found += [(await relay.client.get(path + of_it)).content for of_it in ("", "/messages")]
    return found


# Ended in order


async def test_an_end_in_order_and_a_start_change_nothing(file: Path, upstream: ScriptedUpstream) -> None:
    free = answer("For nothing.", usage={"cost": 0, "total_tokens": 10**40})
    upstream.queue(answer(UNUSUAL * 9, reasoning=UNUSUAL), INTERLEAVED, breaking("Half an ans"), free)
    turns = [{"role": role, "content": f"{UNUSUAL} {number}"} for number, role in enumerate(["user", "assistant"] * 50)]
    async with life(file, upstream) as relay:
        for number in range(4):
            fields = {"system_prompt": UNUSUAL, "default_model": "a/b", "options": {"temperature": 1e-7, "x": UNUSUAL}}
            made = await relay.conversation(title=f"{number}{UNUSUAL}", **fields)
            await relay.say(made["id"], UNUSUAL, model="c/d", id=f"own-{number}", options={"seed": 2**70})
            await relay.read(made["id"])
        await relay.conversation(messages=turns)
        await relay.conversation(id="empty")
        before = await everything(relay)
        assert b"example.org" in b"".join(before) and b'"cost":0.0' in b"".join(before)
        relay.terminate()
        assert await relay.exit() == 0
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    async with life(file, upstream) as relay:
        assert await everything(relay) == before
    assert len(upstream.requests) == 4


CITED = {"url": "https://example.org/é", "title": UNUSUAL, "start_index": 0, "end_index": 1}
INTERLEAVED = steps(
    *((thinks if number % 2 else says)(f"{number}{UNUSUAL}") for number in range(9)),
    chunk({"annotations": [{"type": "url_citation", "url_citation": CITED}]}),
    lambda wire: wire.finish("length"),
    Wire.done,
)
"""Reasoning and content in turns."""


async def test_text_that_was_taken_when_a_signal_comes_is_kept(file: Path, upstream: ScriptedUpstream) -> None:
    upstream.play(gated(gate := Gate(), *PIECES))
    async with life(file, upstream, SHUTDOWN_GRACE="0") as relay:
        conversation_id = await relay.ask()
        async with relay.stream(conversation_id) as reader:
            gate.open(3)
            await reader.until("👋 ")
            relay.terminate()
            last = (await reader.whole()).last
        assert await relay.exit() == 0
    async with life(file, upstream) as relay:
        message = (await relay.messages(conversation_id))[-1]
    assert (message["content"], message["error"]) == ("".join(PIECES[:3]), last["error"])
    assert "restarting" in last["error"]["message"]


# Killed


@pytest.mark.bound(180)
async def test_killed_at_random_moments_it_forgets_nothing_and_asks_nothing_by_itself() -> None:
    await campaign(kills=10, seed=11, tell=lambda _: None)


async def test_a_reply_in_progress_when_it_is_killed_has_failed_with_its_text_and_can_be_tried_again(
    file: Path, upstream: ScriptedUpstream
) -> None:
    upstream.queue(gated(gate := Gate(), *PIECES))
    async with life(file, upstream) as relay:
        conversation_id = await relay.ask("Why?", id="q-1")
        async with relay.stream(conversation_id) as reader:
            gate.open(3)
            seen = await reader.until("👋 ")
            relay.kill()
            await relay.exit()
    async with life(file, upstream) as relay:
        question, message = await relay.messages(conversation_id)
        assert message["content"] == "".join(PIECES[:3]) and question["id"] == "q-1"
        error = {"code": 503, "message": "The service was restarted: ask again.", "retryable": True}
        assert (message["status"], message["error"]) == ("failed", error | {"retry_after": None})
        rest = await relay.read(conversation_id, seen.last_id)
        assert (rest.content, rest.last["error"]) == ("", message["error"])
        assert len(upstream.requests) == 1
        assert (await relay.read(conversation_id)).content == ANSWER  # "Try again"
    async with life(file, upstream) as relay:
        assert await relay.contents(conversation_id) == ["Why?", ANSWER]
    assert len(upstream.requests) == 2


async def test_a_reader_of_a_reply_that_ended_in_the_last_moment_gets_its_end(
    file: Path, upstream: ScriptedUpstream
) -> None:
    async with life(file, upstream) as relay:
        conversation_id = await relay.ask()
        async with relay.stream(conversation_id) as reader:
            seen = Transcript([await reader.next()])
            await relay.idle()
    async with life(file, upstream) as relay:
        rest = await relay.read(conversation_id, seen.last_id)
        assert (rest.content, rest.last["status"]) == (ANSWER, "complete")
    assert len(upstream.requests) == 1


@pytest.mark.bound(120)
async def test_a_hundred_replies_in_progress_when_it_is_killed_have_all_failed_with_their_text(
    file: Path, upstream: ScriptedUpstream
) -> None:
    upstream.play(gated(gate := Gate(), "Half an ", "answer"))
    async with life(file, upstream) as relay:
        ids = [await relay.ask() for _ in range(100)]
        async with contextlib.AsyncExitStack() as streams:
            readers = [await streams.enter_async_context(relay.stream(id)) for id in ids]
            await gate.reached(100)
            gate.open(100)
            await asyncio.gather(*(reader.until("Half") for reader in readers))
            relay.kill()
            await relay.exit()
    async with life(file, upstream) as relay:
        assert (await relay.health())["replies_in_progress"] == 0
        for id in ids:
            message = (await relay.messages(id))[-1]
            assert (message["status"], message["content"]) == ("failed", "Half an ")
    assert len(upstream.requests) == 100


async def test_what_was_killed_before_it_had_told_the_file_how_replies_ended_ends_them_again(
    file: Path, upstream: ScriptedUpstream
) -> None:
    upstream.play(gated(gate := Gate(), *PIECES))
    async with life(file, upstream) as relay:
        conversation_id = await relay.ask()
        async with relay.stream(conversation_id) as reader:
            gate.open()
            await reader.until("One ")
    for _ in range(3):
        async with life(file, upstream) as relay:
            message = (await relay.messages(conversation_id))[-1]
            assert (message["status"], message["content"]) == ("failed", "One ")
    assert len(upstream.requests) == 1


FOLDING = """
import sys
from pathlib import Path
from benchmarks.full_file import imports
from stores.sqlite.file import File

file = File(Path(sys.argv[1]))
file.open(0)
file._execute("PRAGMA wal_autocheckpoint = 1")
for change in imports(100_000):
    file.write([change], [])
    print(change.conversation_id, flush=True)
"""


async def test_what_is_killed_while_it_folds_its_log_in_has_what_it_told(file: Path) -> None:
    chance = random.Random(5)
    told: list[str] = []
    for _ in range(12):
        command = [sys.executable, "-c", FOLDING, str(file)]
        child = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE)
        assert child.stdout
        for _ in range(chance.randrange(1, 60)):
            told.append((await child.stdout.readline()).decode().strip())
        await asyncio.sleep(chance.uniform(0, 0.01))
        os.kill(child.pid, signal.SIGKILL)
        told += (await child.stdout.read()).decode().split()
        await child.wait()
        stored = File(file)
        threads = {thread.conversation.id: thread for thread in stored.open(5)}
        stored.close()
        assert threads.keys() >= set(told) and len(threads) <= len(told) + 1
        assert {len(thread.messages) for thread in threads.values()} == {10}
        told = list(threads)


# The clock


async def test_times_grow_though_the_clock_has_run_backwards_between_two_lives(
    file: Path, upstream: ScriptedUpstream
) -> None:
    async with life(file, upstream) as relay:
        first = await relay.conversation()
        await relay.conversation()
    future = "2999-01-01T00:00:00.000000Z"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("UPDATE conversations SET updated_at = ? WHERE id = ?", (future, first["id"]))
    async with life(file, upstream) as relay:
        later = [await relay.conversation() for _ in range(3)]
        times = [conversation["updated_at"] for conversation in later]
        assert [future, *times] == sorted({future, *times})
        listed = json.loads((await everything(relay))[0])["conversations"]
        assert [entry["id"] for entry in listed[:4]] == [entry["id"] for entry in [*reversed(later), first]]


# The file


async def test_a_thousand_conversations_are_there_in_a_moment_and_a_change_waits_for_the_disk_alone(
    file: Path,
) -> None:
    """Generous: `python -m benchmarks.full_file` measures."""
    full_file.fill(file, part=0.1)
    assert full_file.reading(file) < 5
    assert statistics.median(await full_file.commits(file)) < 50


async def test_only_its_owner_may_read_the_file_and_its_log(file: Path, upstream: ScriptedUpstream) -> None:
    async with life(file, upstream) as relay:
        await relay.conversation()
        modes = {path.name: path.stat().st_mode & 0o777 for path in file.parent.iterdir()}
    assert modes == {"chat.db": 0o600, "chat.db-wal": 0o600}


async def test_a_deleted_text_is_not_to_be_found_in_the_file(file: Path, upstream: ScriptedUpstream) -> None:
    async with life(file, upstream) as relay:
        conversation_id = await relay.ask("a secret question")
        await relay.read(conversation_id)
        await relay.client.delete(f"/conversations/{conversation_id}")
        relay.terminate()
        await relay.exit()
    assert not texts_in(file, b"secret question", ANSWER.encode())


def texts_in(file: Path, *texts: bytes) -> list[bytes]:
    octets = file.read_bytes()
    return [text for text in texts if text in octets]
