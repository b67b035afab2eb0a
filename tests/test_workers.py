"""Several processes of one relay, on one port and one shared server."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.process import RelayProcess, process
from tests.support.replicas import place
from tests.support.servers import Server, free_port, server
from tests.support.upstream import ANSWER, Gate, ScriptedUpstream, gated
from tests.support.waiting import bounded, eventually


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of this module's own."""
    with server(request.config.getoption("--server")) as running:
        yield running


@contextlib.asynccontextmanager
async def two_processes(url: str, upstream: ScriptedUpstream, **env: str) -> AsyncIterator[RelayProcess]:
    """Of `python server.py`, on one port."""
    env |= {"STORE_URL": url, "OPENROUTER_BASE_URL": upstream.base_url, "OPENROUTER_API_KEY": "k"}
    async with process("python", "server.py", env={"WEB_CONCURRENCY": "2", "SHUTDOWN_GRACE": "10", **env}) as relay:
        yield relay


async def test_two_processes_on_one_port_are_one_relay_and_end_what_they_make_at_sigterm(
    shared: Server, upstream: ScriptedUpstream
) -> None:
    upstream.play(gated(gate := Gate(), "Some ", "text"))
    async with two_processes(place(shared.url), upstream) as relay:
        assert len(relay.children) == 2
        reading = asyncio.create_task(relay.read(await relay.ask()))
        await upstream.called()
        relay.terminate()
        await eventually(lambda: relay.output.count("Draining") == 2)
        gate.open_wide()
        whole = await bounded(reading)
        assert (whole.content, whole.last["status"]) == ("Some text", "complete")
        assert await relay.exit() == 0
        assert "Traceback" not in relay.output
    assert len(upstream.requests) == 1


async def test_a_second_signal_ends_the_grace_of_all_processes(shared: Server, upstream: ScriptedUpstream) -> None:
    upstream.play(gated(Gate(), "never"))
    async with two_processes(place(shared.url), upstream) as relay:
        reading = asyncio.create_task(relay.read(await relay.ask()))
        await upstream.called()
        relay.terminate()
        await eventually(lambda: relay.output.count("Draining") == 2)
        began = time.monotonic()
        relay.terminate()
        assert await relay.exit() == 0
        assert time.monotonic() - began < 5
        assert (await bounded(reading)).last["error"]["code"] == 503


async def test_signals_to_each_process_of_the_group_are_one_signal(shared: Server, upstream: ScriptedUpstream) -> None:
    """A terminal and systemd send theirs so."""
    upstream.play(gated(gate := Gate(), "Some text"))
    async with two_processes(place(shared.url), upstream) as relay:
        reading = asyncio.create_task(relay.read(await relay.ask()))
        await upstream.called()
        os.killpg(relay.pid, signal.SIGINT)
        await eventually(lambda: relay.output.count("Draining") == 2)
        gate.open_wide()
        assert (await bounded(reading)).last["status"] == "complete"
        assert await relay.exit() == 0


async def test_a_process_that_dies_is_replaced(shared: Server, upstream: ScriptedUpstream) -> None:
    async with two_processes(place(shared.url), upstream) as relay:
        dying, staying = relay.children
        os.kill(dying, signal.SIGKILL)
        await eventually(lambda: len(relay.children) == 2 and dying not in relay.children)
        assert staying in relay.children
        assert f"Process {dying} has ended with -9" in relay.output
        assert (await relay.read(await relay.ask())).content == ANSWER


async def test_several_processes_end_when_what_started_them_is_killed(
    shared: Server, upstream: ScriptedUpstream
) -> None:
    async with two_processes(place(shared.url), upstream) as relay:
        pids = relay.children
        relay.kill()
        await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


async def test_several_processes_that_cannot_start_say_so_once() -> None:
    env = {"STORE_URL": f"valkey://127.0.0.1:{free_port()}", "WEB_CONCURRENCY": "2"}
    async with process("python", "server.py", env=env, listening=False) as relay:
        assert await relay.exit(20) == 3
        assert relay.output.count("STORE_URL") == 1


async def test_several_processes_of_uvicorn_share_a_server(shared: Server, upstream: ScriptedUpstream) -> None:
    upstream.play(gated(gate := Gate(), ANSWER))
    env = {"STORE_URL": place(shared.url), "OPENROUTER_BASE_URL": upstream.base_url, "OPENROUTER_API_KEY": "k"}
    async with (
        process("uvicorn", "server:app", "--workers", "2", env=env) as relay,
        contextlib.AsyncExitStack() as stack,
    ):
        conversation_id = await relay.ask()
        readers = [await stack.enter_async_context(relay.stream(conversation_id)) for _ in range(10)]
        for reader in readers:
            await reader.next()
        gate.open_wide()
        assert {(await reader.whole()).content for reader in readers} == {ANSWER}
    assert len(upstream.requests) == 1
