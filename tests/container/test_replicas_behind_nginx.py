"""Relays that share a server, behind nginx with the example's file, which spreads requests over them by turns."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.container.test_proxies import nginx
from tests.support.process import RelayProcess, process
from tests.support.relay import Relay, client
from tests.support.replicas import Hopper, place, processes
from tests.support.servers import free_port, server
from tests.support.upstream import Gate, ScriptedUpstream, UpstreamRequest, Wire, gated
from tests.support.waiting import bounded


async def slowly(_: UpstreamRequest, wire: Wire) -> None:
    """Words as long as anybody listens."""
    await wire.head()
    for number in range(10_000):
        await wire.delta(f"word {number} ")
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def behind_nginx(relays: list[RelayProcess], folder: Path) -> AsyncIterator[Relay]:
    """All of them at one address."""
    port = free_port()
    command = nginx(folder, {"relay:8001": "relays", "8080": str(port)})
    servers = " ".join(f"server {relay.url.removeprefix('http://')};" for relay in relays)
    (config := folder / "server.conf").write_text(f"upstream relays {{ {servers} }}\n{config.read_text()}")
    env = {"PORT": str(port), "HOME": str(folder)}
    async with process(*command, env=env) as running, client(f"{running.url}/api") as connections:
        connections.timeout = httpx.Timeout(30)
        yield Relay(f"{running.url}/api", connections)


@pytest.mark.bound(120)
async def test_a_page_that_reloads_keeps_its_answer_and_gets_an_error_when_the_relay_that_made_it_is_killed(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    upstream.play(slowly)
    with server("redis") as shared:
        url = place(shared.url)
        async with processes(upstream, url, url) as relays, behind_nginx(relays, tmp_path) as page:
            conversation_id = await page.ask()
            async with page.stream(conversation_id) as reader:
                await reader.until("word 10 ")
            for _ in range(10):  # a reload: what there is, then the rest
                shown = (await page.messages(conversation_id))[1]
                async with page.stream(conversation_id, shown["last_event_id"]) as reader:
                    while len(reader.transcript.blocks) < 4:
                        await reader.next()
            [maker] = [relay for relay in relays if (await relay.health())["replies_in_progress"]]
            maker.kill()
            shown = (await page.messages(conversation_id))[1]
            rest = await bounded(
                Hopper([page], conversation_id, shown["last_event_id"]).read(itertools.repeat(1000)), 16
            )
            assert rest.last["error"]["code"] == 503 and rest.last["error"]["retryable"]
            kept = (await page.messages(conversation_id))[1]
            assert kept["content"] == shown["content"] + rest.content
            assert len(upstream.requests) == 1
            upstream.play(gated(gate := Gate(), "Again."))
            gate.open_wide()
            assert (await page.read(conversation_id)).content == "Again."
