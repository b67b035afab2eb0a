"""What happens at SIGTERM and Ctrl-C: probes see it, nobody's answer is cut off within the grace, and then it exits.

The service is a process of its own here, started as `python server.py`, for which all of this is promised.
"""

import asyncio
import contextlib
import os
import re
import signal
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from sse_starlette.sse import AppStatus

from tests.support.engines import on_each_engine
from tests.support.problems import assert_problem
from tests.support.process import RelayProcess, process
from tests.support.readers import Transcript
from tests.support.relay import Relay, client, serving
from tests.support.scripts import hanging
from tests.support.sockets import connected, request
from tests.support.sse import Parser
from tests.support.upstream import Gate, ScriptedUpstream, answer, gated, status
from tests.support.waiting import bounded, eventually

SERVER = ("python", "server.py")
UVICORN = ("uvicorn", "server:app")
HURRY = 2.0 * max(1.0, os.getloadavg()[0] / 2 / (os.cpu_count() or 1))
"""Seconds that an exit may take when nothing has to be waited for: 2, and more only where the machine is overloaded."""

RESTARTING = {"code": 503, "retryable": True, "retry_after": None}

either_signal = pytest.mark.parametrize("leave", [RelayProcess.terminate, RelayProcess.interrupt], ids=["TERM", "INT"])


@contextlib.asynccontextmanager
async def running(
    upstream: ScriptedUpstream, command: tuple[str, ...] = SERVER, grace: int = 20, **settings: str
) -> AsyncIterator[RelayProcess]:
    """The service on that upstream; what it wrote must be without a traceback or a complaint of asyncio."""
    env = {
        "OPENROUTER_API_KEY": "test-key",
        "OPENROUTER_BASE_URL": upstream.base_url,
        "SHUTDOWN_GRACE": str(grace),
    } | settings
    async with process(*command, env=env) as relay:
        yield relay
        complaints = re.findall("Traceback|Task was destroyed|never retrieved|Exception|ERROR|CRITICAL", relay.output)
        assert not complaints, relay.output


async def begin(relay: Relay) -> str:
    """The id of a conversation whose reply has been started and whose reader has left."""
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        assert (await reader.next()).event == "start"
    return conversation_id


async def is_draining(relay: Relay) -> bool:
    """As a probe sees it, over a connection of its own."""
    async with client(relay.url) as probe:
        response = await probe.get("/health")
    return (response.status_code, response.json()["status"]) == (503, "draining")


async def exited_cleanly(relay: RelayProcess, since: float, within: float) -> None:
    """Exit code 0, at `within` seconds after `since` at the latest."""
    assert await relay.exit(within + 5) == 0
    assert time.monotonic() - since < within


class Curl:
    """`curl -N` on a stream."""

    def __init__(self, child: Process) -> None:
        assert child.stdout and child.stderr
        self._child, self._out, self._errors = child, child.stdout, child.stderr
        self._begun = b""

    async def until(self, text: bytes) -> None:
        """Return once it has printed this."""
        self._begun += await bounded(self._out.readuntil(text))

    async def transcript(self) -> Transcript:
        """What it has printed when it has ended, which it must without an error."""
        rest, errors = await bounded(self._child.communicate())
        assert (self._child.returncode, errors) == (0, b"")
        transcript = Transcript()
        for block in Parser().feed(self._begun + rest):
            transcript.add(block)
        return transcript


async def curl(relay: Relay, conversation_id: str) -> Curl:
    url = f"{relay.url}/conversations/{conversation_id}/stream"
    argv = ("curl", "-sSN", "--noproxy", "*", url)
    return Curl(await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=PIPE))


LOCAL = [("Host", "localhost")]
SLOW_HEAD = b"POST /conversations HTTP/1.1\r\nHost: localh"
SLOW_BODY = (
    b"POST /conversations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\nContent-Type: application/json\r\n\r\n{"
)


@contextlib.asynccontextmanager
async def lagging(relay: Relay, path: str, last_id: str) -> AsyncIterator[asyncio.StreamReader]:
    """The bytes of a stream that is taken up again, as slowly as they are read."""
    reader, writer = await asyncio.open_connection(*relay.url.removeprefix("http://").split(":"), limit=2**16)
    with contextlib.closing(writer):
        writer.write(request("GET", path, [*LOCAL, ("Last-Event-ID", last_id)]))
        yield reader


# Within the grace


@on_each_engine
@either_signal
async def test_replies_finish_within_the_grace_with_their_readers_attached(
    upstream: ScriptedUpstream, leave: Callable[[RelayProcess], None]
) -> None:
    gate = Gate()
    upstream.play(gated(gate, "one ", "two"))
    async with running(upstream) as relay, contextlib.AsyncExitStack() as stack:
        conversation_id = await relay.ask()
        first = await stack.enter_async_context(relay.stream(conversation_id))
        gate.open()
        last_id = (await first.until("one ")).last_id
        leave(relay)
        await eventually(lambda: is_draining(relay))
        joined = await stack.enter_async_context(relay.stream(conversation_id))
        resumed = await stack.enter_async_context(relay.stream(conversation_id, last_id))
        printed = await curl(relay, conversation_id)
        await printed.until(b"one ")
        gate.open_wide()
        since = time.monotonic()
        assert [(await reader.whole()).content for reader in (first, joined, resumed)] == ["one two", "one two", "two"]
        assert (await printed.transcript()).content == "one two"
        await exited_cleanly(relay, since, HURRY)


async def test_new_questions_are_refused_while_it_drains_and_the_rest_goes_on(upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.play(gated(gate, "one"))
    async with running(upstream, grace=9) as relay:
        running_id, waiting_id, empty = await begin(relay), await relay.ask(), (await relay.conversation())["id"]
        relay.terminate()
        await eventually(lambda: is_draining(relay))
        async with client(relay.url) as newcomer:
            for response in (
                await newcomer.get(f"/conversations/{waiting_id}/stream"),
                await newcomer.post(f"/conversations/{empty}/messages", json={"content": "Hi"}),
            ):
                assert_problem(response, 503, "restarting")
                assert response.headers["retry-after"] == "9"
            assert_problem(await newcomer.get("/conversations/nowhere/stream"), 404)
            assert (await newcomer.post("/conversations")).status_code == 201
            assert (await newcomer.get("/conversations")).status_code == 200
            assert (await newcomer.patch(f"/conversations/{empty}", json={"title": "x"})).status_code == 200
            assert (await newcomer.delete(f"/conversations/{empty}")).status_code == 204
            stopped = await newcomer.delete(f"/conversations/{running_id}/stream")
        since = time.monotonic()
        assert stopped.json()["status"] == "stopped"
        await exited_cleanly(relay, since, HURRY)


async def test_a_reply_without_readers_is_finished_too(upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.play(gated(gate, "one"))
    async with running(upstream) as relay:
        await begin(relay)
        relay.terminate()
        await eventually(lambda: is_draining(relay))
        await gate.reached()
        gate.open_wide()
        await exited_cleanly(relay, time.monotonic(), HURRY)
        assert "Completed streaming for conversation" in relay.output


# At its end


@on_each_engine
@either_signal
async def test_what_is_left_at_the_end_of_the_grace_fails_with_an_error_that_says_so(
    upstream: ScriptedUpstream, leave: Callable[[RelayProcess], None]
) -> None:
    upstream.play(hanging("Half an ans"))
    async with running(upstream, grace=1) as relay:
        conversation_id = await relay.ask()
        async with relay.stream(conversation_id) as reader:
            await reader.until("Half")
            printed = await curl(relay, conversation_id)
            await printed.until(b"Half")
            joined = asyncio.create_task(relay.read(conversation_id))
            await begin(relay)
            since = time.monotonic()
            leave(relay)
            transcripts = [await reader.whole(), await joined, await printed.transcript()]
        for transcript in transcripts:
            assert transcript.content == "Half an ans"
            error = transcript.last["error"]
            assert "restarting" in error.pop("message")
            assert error == RESTARTING
        assert time.monotonic() - since > 1
        await exited_cleanly(relay, since, 1 + HURRY)
        assert len(re.findall("Failed streaming for conversation .*, code 503", relay.output)) == 2


async def test_clients_that_read_nothing_or_send_nothing_hold_nobody_up(upstream: ScriptedUpstream) -> None:
    upstream.models = [{"id": "x" * 12_000_000}]
    upstream.play(hanging("x" * 900_000))
    async with running(upstream, grace=1) as relay, contextlib.AsyncExitStack() as stack:
        conversation_id = await begin(relay)
        assert len((await relay.client.get("/models")).content) > 12_000_000
        for target in (f"/conversations/{conversation_id}/stream", "/models"):
            stack.enter_context(connected(relay, sending=request("GET", target, LOCAL), receive_buffer=4096))
        for start in (SLOW_HEAD, SLOW_BODY, b""):
            stack.enter_context(connected(relay, sending=start))
        async with relay.stream(conversation_id) as reader:
            await reader.until("x")
            since = time.monotonic()
            relay.terminate()
            transcript = await reader.whole()
        assert (len(transcript.content), transcript.last["error"]["code"]) == (900_000, 503)
        await exited_cleanly(relay, since, 1 + HURRY)


# At once


@either_signal
async def test_it_exits_at_once_when_nothing_is_in_progress(
    upstream: ScriptedUpstream, leave: Callable[[RelayProcess], None]
) -> None:
    async with running(upstream) as relay:
        assert (await relay.read(await relay.ask())).last["done"]
        since = time.monotonic()
        leave(relay)
        await exited_cleanly(relay, since, HURRY)


async def test_it_exits_at_once_though_connections_are_open_that_ask_for_nothing(upstream: ScriptedUpstream) -> None:
    upstream.models = lambda _, wire: wire.hang()
    async with running(upstream) as relay, contextlib.AsyncExitStack() as stack:
        for start in (SLOW_HEAD, SLOW_BODY, b"", request("GET", "/models", LOCAL)):
            stack.enter_context(connected(relay, sending=start))
        await eventually(lambda: upstream.models_requests)
        since = time.monotonic()
        relay.terminate()
        await exited_cleanly(relay, since, HURRY)


@either_signal
async def test_it_exits_at_once_at_a_second_signal_and_readers_are_told(
    upstream: ScriptedUpstream, leave: Callable[[RelayProcess], None]
) -> None:
    upstream.play(hanging("Half an ans"))
    async with running(upstream) as relay:
        async with relay.stream(await relay.ask()) as reader:
            await reader.until("Half")
            leave(relay)
            await eventually(lambda: is_draining(relay))
            since = time.monotonic()
            leave(relay)
            transcript = await reader.whole()
        assert transcript.last["error"]["code"] == 503
        await exited_cleanly(relay, since, HURRY)


async def test_a_reply_that_waits_for_its_next_try_is_given_up_at_the_end_of_the_grace(
    upstream: ScriptedUpstream,
) -> None:
    upstream.play(status(429, headers={"Retry-After": "25"}))
    async with running(upstream, grace=1) as relay:
        async with relay.stream(await relay.ask()) as reader:
            await upstream.called()
            since = time.monotonic()
            relay.terminate()
            assert (await reader.whole()).last["error"]["code"] == 503
        await exited_cleanly(relay, since, 1 + HURRY)


async def test_a_server_that_was_stopped_before_in_this_process_ends_no_stream(upstream: ScriptedUpstream) -> None:
    """sse-starlette notes a shutdown in the class, for ever."""
    AppStatus.should_exit = True
    async with serving(upstream) as relay:
        assert (await relay.read(await relay.ask())).last["status"] == "complete"


@on_each_engine
async def test_a_signal_during_the_start_ends_it_in_good_order(upstream: ScriptedUpstream) -> None:
    async with process("python", "server.py", env={"OPENROUTER_API_KEY": "key"}, listening=False) as relay:
        await eventually(lambda: catches_sigterm(relay.pid))
        relay.terminate()
        assert await relay.exit() == 0
        assert "Traceback" not in relay.output


def catches_sigterm(pid: int) -> bool:
    caught = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    return bool(caught and int(caught[1], 16) & 1 << signal.SIGTERM - 1)


# Whatever clients do


async def test_a_reader_that_lags_far_behind_gets_the_rest_within_the_grace(upstream: ScriptedUpstream) -> None:
    """At the signal nothing is in progress any more, but more is left for this reader than a socket holds."""
    text = "👋" * 900_000
    upstream.play(answer(text, pieces=20))
    async with running(upstream, grace=10) as relay:
        conversation_id = await relay.ask()
        first_id = (await relay.read(conversation_id)).ids[0]
        assert first_id
        async with lagging(relay, f"/conversations/{conversation_id}/stream", first_id) as reader:
            octets = await bounded(reader.readexactly(500_000))
            since = time.monotonic()
            relay.terminate()
            while piece := await bounded(reader.read(2**18)):
                octets += piece
                await asyncio.sleep(0.05)  # it is slow
            assert octets.count(b'"done": true') == 1
            assert octets.count(b"\\ud83d\\udc4b") == 900_000
            assert time.monotonic() - since > 1.5
        await exited_cleanly(relay, since, 10 + HURRY)


async def test_a_client_that_pipelines_and_leaves_does_not_hold_the_exit_up(upstream: ScriptedUpstream) -> None:
    upstream.play(gated(gate := Gate(), "one"))
    async with running(upstream, grace=2) as relay:
        stream = f"GET /conversations/{await relay.ask()}/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        with connected(relay, sending=stream + request("GET", "/", LOCAL)):
            await gate.reached()
        gate.open_wide()
        await relay.idle()
        since = time.monotonic()
        relay.terminate()
        await exited_cleanly(relay, since, HURRY)


async def test_who_waits_for_the_models_list_is_told_to_come_back(upstream: ScriptedUpstream) -> None:
    upstream.models = lambda _, wire: wire.hang()
    async with running(upstream) as relay:
        waiting = asyncio.create_task(relay.client.get("/models"))
        await eventually(lambda: upstream.models_requests)
        relay.terminate()
        response = await bounded(waiting)
        assert_problem(response, 503, "restarting")
        assert int(response.headers["Retry-After"]) > 0
        assert await relay.exit() == 0


async def test_uvicorn_alone_cuts_readers_off_but_finishes_their_replies(upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.play(gated(gate, "one", "two"))
    env = {"OPENROUTER_API_KEY": "test-key", "OPENROUTER_BASE_URL": upstream.base_url}
    async with process(*UVICORN, env=env) as relay:
        gate.open()
        async with relay.stream(await relay.ask()) as reader:
            await reader.until("one")
            relay.terminate()
            with pytest.raises(httpx.RemoteProtocolError):
                await reader.next()
        gate.open_wide()
        assert await relay.exit() == -signal.SIGTERM
        assert "Completed streaming for conversation" in relay.output
