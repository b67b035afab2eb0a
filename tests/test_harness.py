"""The harness does what it says: the scripted upstream, and the ways to run the service."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.support.process import process
from tests.support.relay import serving
from tests.support.upstream import USAGE, Gate, ScriptedUpstream, UpstreamRequest, Wire, answer, gated, status
from tests.support.waiting import bounded, eventually


@asynccontextmanager
async def asking(upstream: ScriptedUpstream) -> AsyncIterator[httpx.Response]:
    """A completion request straight to the upstream."""
    async with httpx.AsyncClient(trust_env=False) as client:
        body = {"model": "test/one", "messages": []}
        async with client.stream("POST", f"{upstream.base_url}/chat/completions", json=body) as response:
            yield response


async def test_an_answer_comes_in_the_recorded_shape(upstream: ScriptedUpstream) -> None:
    upstream.play(answer("Hello", pieces=2, reasoning="Hm"))
    async with asking(upstream) as response:
        text = (await response.aread()).decode()
    *events, end = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    chunks = [json.loads(event) for event in events]
    request = await upstream.called()
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["", "", "Hel", "lo", "", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"] * 2
    assert {chunk["id"] for chunk in chunks} == {response.headers["x-generation-id"], request.generation_id}
    assert (chunks[-1]["usage"], end) == (USAGE, "[DONE]")
    assert request.body == {"model": "test/one", "messages": []}


async def test_half_a_surrogate_pair_can_be_sent(upstream: ScriptedUpstream) -> None:
    upstream.play(answer("\ud83d"))
    async with asking(upstream) as response:
        assert b'"\\ud83d"' in await response.aread()


async def test_queued_scripts_come_first_and_the_connection_is_kept(upstream: ScriptedUpstream) -> None:
    upstream.queue(status(429, headers={"Retry-After": "2"}), status(502, "<html>", {"Content-Type": "text/html"}))
    url = f"{upstream.base_url}/chat/completions"
    async with httpx.AsyncClient(trust_env=False) as client:
        responses = [await client.post(url, json={"model": "m"}) for _ in range(3)]
        assert (upstream.accepted, upstream.connections) == (1, 1)
    assert [response.status_code for response in responses] == [429, 502, 200]
    assert responses[0].headers["retry-after"] == "2" and responses[0].json()["error"]["code"] == 429
    assert responses[1].text == "<html>"
    await eventually(lambda: upstream.connections == 0)


async def test_the_models_list_is_served_and_counted(upstream: ScriptedUpstream) -> None:
    async with httpx.AsyncClient(trust_env=False, base_url=upstream.base_url) as client:
        assert (await client.get("/models")).json() == {"data": upstream.models}
        upstream.models = status(503)
        assert (await client.get("/models")).status_code == 503
        assert (await client.get("/other")).status_code == 404
    assert (len(upstream.models_requests), len(upstream.requests)) == (2, 1)


async def test_a_gate_holds_each_piece_back(upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.play(gated(gate, "one", "two"))
    async with asking(upstream) as response:
        pieces = response.aiter_bytes()
        for reached, piece in enumerate([b"one", b"two", b"stop"], 1):
            await gate.reached(reached)
            gate.open()
            assert piece in await bounded(anext(pieces))
        gate.open_wide()
        await bounded(gate.passage())
        assert b"[DONE]" in b"".join([piece async for piece in pieces])


async def test_a_script_learns_that_its_client_has_gone(upstream: ScriptedUpstream) -> None:
    ended = asyncio.Event()

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await wire.comment()
        await wire.hang()
        ended.set()
        await wire.delta("to nobody")

    upstream.play(script)
    async with asking(upstream):
        assert not (await upstream.called()).gone.is_set()
    await bounded(ended.wait())


@pytest.mark.parametrize("breaks", ["reset", "close", "return"])
@pytest.mark.parametrize("text", ["", "some text"])
async def test_a_broken_connection_breaks_after_what_was_sent(
    upstream: ScriptedUpstream, breaks: str, text: str
) -> None:
    async def script(_: UpstreamRequest, wire: Wire) -> None:
        if text:
            await wire.send(text.encode())
        if breaks != "return":
            getattr(wire, breaks)()

    upstream.play(script)
    kind = httpx.ReadError if breaks == "reset" else httpx.RemoteProtocolError
    received = b""
    with pytest.raises(kind):
        async with asking(upstream) as response:
            async for piece in response.aiter_bytes():
                received += piece
    assert received == text.encode()


async def test_what_a_script_raises_fails_the_test() -> None:
    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await wire.head()
        raise KeyError("a mistake in a script")

    with pytest.raises(KeyError, match="a mistake"):
        async with ScriptedUpstream() as upstream:
            upstream.play(script)
            with pytest.raises(httpx.RemoteProtocolError):
                async with asking(upstream) as response:
                    await response.aread()


async def test_a_relay_stops_though_a_reply_is_in_progress(upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.play(gated(gate, "never sent"))
    async with serving(upstream) as relay, relay.stream(await relay.ask()) as reader:
        assert (await reader.next()).event == "start"
        await gate.reached()


async def test_a_process_that_does_not_start_says_why() -> None:
    with pytest.raises(AssertionError, match="No module named nowhere"):
        async with process("python", "-m", "nowhere"):
            pass
    async with process("python", "-c", "raise SystemExit(3)", listening=False) as failed:
        assert await failed.exit() == 3
