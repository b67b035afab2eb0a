"""The relay behind nginx and behind Caddy, with the examples' files: what it promises holds there, too."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.problems import assert_problem
from tests.support.process import ROOT, process
from tests.support.relay import Relay, client, serving
from tests.support.servers import free_port
from tests.support.upstream import Gate, ScriptedUpstream, gated
from tests.support.waiting import eventually

PROXIES = ["nginx", "caddy"]

pytestmark = [pytest.mark.parametrize("proxy", PROXIES), pytest.mark.bound(60)]


async def test_each_token_passes_while_upstream_holds_the_next_one_back(
    proxy: str, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    gate = Gate()
    upstream.play(gated(gate, "One ", "two ", "three"))
    async with serving(upstream) as relay, behind(proxy, relay.url, tmp_path) as proxied:
        headers = {"Accept-Encoding": "gzip, br, zstd"}
        async with proxied.stream(await proxied.ask(), headers=headers) as reader:
            assert (await reader.next()).event == "start"  # before upstream has said a word
            for token in ("One ", "two ", "three"):
                gate.open()
                assert (await reader.next()).content == token
            gate.open()
            assert (await reader.rest()).last["status"] == "complete"
        assert "content-encoding" not in reader.response.headers


async def test_a_question_and_its_answer_are_one_request(
    proxy: str, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    gate = Gate()
    upstream.play(gated(gate, "One"))
    async with serving(upstream) as relay, behind(proxy, relay.url, tmp_path) as proxied:
        path = f"/conversations/{(await proxied.conversation())['id']}/messages"
        ask = proxied.client.stream("POST", path, json={"content": "Hi"}, headers={"Accept": "text/event-stream"})
        async with ask as response:
            chunks = response.aiter_text()
            assert "event: start" in await anext(chunks)
            gate.open_wide()
            assert '"done": true' in "".join([chunk async for chunk in chunks])


async def test_pings_keep_a_silent_stream_open(
    proxy: str, upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.events.PING_INTERVAL", 0.3)
    gate = Gate()
    upstream.play(gated(gate, "One"))
    async with (
        serving(upstream) as relay,
        behind(proxy, relay.url, tmp_path, silence="1s") as proxied,
        proxied.stream(await proxied.ask()) as reader,
    ):
        reading = asyncio.create_task(reader.whole())
        await eventually(lambda: len(reader.transcript.pings) >= 8)  # 2.4 s, more than the proxy would wait
        gate.open_wide()
        assert (await reading).last["status"] == "complete"


async def test_a_reader_that_drops_is_let_go_and_gets_exactly_the_rest(
    proxy: str, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    gate = Gate()
    upstream.play(gated(gate, "One ", "two ", "three"))
    async with serving(upstream) as relay, behind(proxy, relay.url, tmp_path) as proxied:
        conversation = await proxied.ask()
        gate.open()
        async with proxied.stream(conversation) as reader:
            seen = await reader.until("One")
        await eventually(lambda: not any("EventSourceResponse" in repr(task) for task in asyncio.all_tasks()))
        assert (await relay.health())["replies_in_progress"] == 1
        gate.open_wide()
        rest = await proxied.read(conversation, last_event_id=seen.last_id)
        assert (seen.content, rest.content) == ("One ", "two three")
        assert len(upstream.requests) == 1


async def test_the_page_of_the_same_origin_is_let_in_and_refusals_are_the_relays_own(
    proxy: str, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with serving(upstream) as relay, behind(proxy, relay.url, tmp_path) as proxied:
        assert_problem(await proxied.client.get("/nowhere"), 404)
        path = f"/conversations/{(await proxied.conversation())['id']}/messages"
        assert_problem(await proxied.client.post(path, json={"content": "x" * (1024 * 1024 + 1)}), 413)
        page = {"Origin": proxied.url.removesuffix("/api")}
        made = await proxied.client.post("/conversations", headers=page)
        assert made.status_code == 201 and made.headers["Location"].startswith("/api/conversations/")
        foreign = {"Origin": "https://elsewhere.example"}
        assert_problem(await proxied.client.post("/conversations", headers=foreign), 403)
        assert_problem(await proxied.client.get("/conversations", headers={"Host": "chat.example"}), 403)


async def test_a_relay_that_is_down_is_a_problem_and_not_a_page(proxy: str, tmp_path: Path) -> None:
    async with behind(proxy, f"http://127.0.0.1:{free_port()}", tmp_path) as proxied:
        response = await proxied.client.get("/conversations")
        assert_problem(response, 503)
        assert int(response.headers["Retry-After"]) > 0


@contextlib.asynccontextmanager
async def behind(proxy: str, relay_url: str, folder: Path, silence: str = "60s") -> AsyncIterator[Relay]:
    """The relay as it is reached through nginx or Caddy, set up by the file of examples/."""
    port = free_port()
    changes = {"relay:8001": relay_url.removeprefix("http://"), "8080": str(port), "60s": silence}
    command = (nginx if proxy == "nginx" else caddy)(folder, changes)
    async with process(*command, env={"PORT": str(port), "HOME": str(folder)}) as running:
        url = f"{running.url}/api"
        async with client(url) as connections:
            yield Relay(url, connections)


def nginx(folder: Path, changes: dict[str, str]) -> tuple[str, ...]:
    """How to start it."""
    frame = (ROOT / "tests/container/nginx-unprivileged.conf").read_text()
    server = changed(ROOT / "examples/nginx/nginx.conf", changes)
    (folder / "server.conf").write_text(server)
    frame = frame.replace("/tmp/", f"{folder}/").replace("/etc/nginx/conf.d/*.conf", f"{folder}/server.conf")
    (folder / "nginx.conf").write_text("user root;\n" + frame)  # the folder is root's
    return "/usr/sbin/nginx", "-c", f"{folder}/nginx.conf", "-g", "daemon off;"


def caddy(folder: Path, changes: dict[str, str]) -> tuple[str, ...]:
    """How to start it."""
    (folder / "Caddyfile").write_text("{\n\tadmin off\n}\n" + changed(ROOT / "examples/caddy/Caddyfile", changes))
    return "/usr/bin/caddy", "run", "--config", f"{folder}/Caddyfile"


def changed(example: Path, changes: dict[str, str]) -> str:
    """The example's text for this machine."""
    text = example.read_text()
    for old, new in changes.items():
        text = text.replace(old, new)
    return text
